"""Norms, gates, clipped softmax and embedding projection for models of ``transformers``, in one call.

Works on every model whose attention goes through the library's attention interface and has separate query, key and
value layers; Llama, OPT, BERT and ViT are tested. The parts follow Bondarenko et al. (NeurIPS 2023), "Outlier-Driven
Rescaling" (arXiv 2601.22966), Park et al. (ACL 2025) and Yang et al. (ACM MM 2022): see the modules themselves.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from skerry.core.errors import MissingExtra, ModelError, ParameterError, nearest
from skerry.train.nn.dyt import DyT, GatedDyT
from skerry.train.nn.embedding_projection import ProjectedEmbedding, ProjectedHead
from skerry.train.nn.gated_norm import GatedNorm
from skerry.train.nn.gates import HeadGate
from skerry.train.nn.pre_affine import PreAffineRMSNorm
from skerry.train.nn.replace import find_norms, replace_norms, set_module
from skerry.train.nn.single_scale_norm import SingleScaleRMSNorm
from skerry.train.nn.unified_norm import UnifiedNorm

__all__ = ["convert_transformers"]

NORMS: dict[str, Callable[[int], nn.Module]] = {
    "dyt": DyT,
    "gated": GatedNorm,
    "gated-dyt": GatedDyT,
    "pre-affine": PreAffineRMSNorm,
    "single-scale": SingleScaleRMSNorm,
    "unified": UnifiedNorm,
}
_PROJECTIONS = (("q_proj", "k_proj", "v_proj"), ("query", "key", "value"))
_NAME = "skerry"  # of the attention function, in the registry of transformers


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    head_gate: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attend as transformers' own functions do, with the clip and the gate that the module carries."""
    softmax = getattr(module, "clipped_softmax", None)
    weights = None
    if softmax is None:
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        out, weights = ALL_ATTENTION_FUNCTIONS["sdpa"](
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    else:
        groups = query.shape[1] // key.shape[1]
        if groups > 1:
            key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
        scores = query @ key.mT * (query.shape[-1] ** -0.5 if scaling is None else scaling)
        length = query.shape[2]
        if attention_mask is None and length > 1 and kwargs.get("is_causal", getattr(module, "is_causal", True)):
            # the masks are made for sdpa, which leaves out a causal one
            attention_mask = torch.ones(length, key.shape[2], dtype=torch.bool, device=query.device).tril()
        if attention_mask is not None and attention_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attention_mask, -torch.inf)
        elif attention_mask is not None:
            scores = scores + attention_mask
        weights = softmax(scores)
        out = (nn.functional.dropout(weights, dropout, module.training) @ value).transpose(1, 2).contiguous()
    if head_gate is not None:
        out = out * head_gate.transpose(1, 2)
    return out, weights


def _give_gate(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """Pre-hook of an attention module: its input opens the gate, which travels on to the attention function."""
    hidden = args[0] if args else kwargs["hidden_states"]
    return args, {**kwargs, "head_gate": module.head_gate(hidden)}


def _give_padding(model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
    """Pre-hook of a model: its norms learn which tokens are padding, which no layer would tell them."""
    given = dict(zip(inspect.signature(model.forward).parameters, args, strict=False)) | kwargs
    mask = given.get("attention_mask")
    pad = mask == 0 if isinstance(mask, Tensor) and mask.dim() == 2 else None
    for module in model.modules():
        if isinstance(module, UnifiedNorm):
            module.pad_mask = pad


def _forget_padding(model: nn.Module, args: tuple, output: Any) -> None:
    for module in model.modules():
        if isinstance(module, UnifiedNorm):
            module.pad_mask = None


def _attentions(model: nn.Module) -> dict[str, nn.Module]:
    found = {
        name: module
        for name, module in model.named_modules()
        if any(all(isinstance(getattr(module, p, None), nn.Linear) for p in names) for names in _PROJECTIONS)
    }
    if not found:
        raise ModelError(
            f"no attention with separate query, key and value layers in {type(model).__name__}: "
            "Llama, OPT, BERT, ViT and models built like them can be converted"
        )
    for name, module in found.items():
        if not any(p.kind is p.VAR_KEYWORD for p in inspect.signature(module.forward).parameters.values()):
            raise ModelError(
                f"{name} ({type(module).__name__}) hands nothing on to its attention function: "
                "use transformers 5 or newer, or another model"
            )
    return found


def _sizes(module: nn.Module) -> tuple[int, int, int, nn.Linear]:
    """Return d_model, heads, head_dim and the query layer of an attention module."""
    query = getattr(module, "q_proj", None) or module.query
    head_dim = getattr(module, "head_dim", None) or module.attention_head_size
    return query.in_features, query.out_features // head_dim, head_dim, query


def _new_gates(
    found: dict[str, nn.Module],
    gate: str | Callable[[int, int, int], nn.Module],
    gate_init: float | None,
    finetune: bool,
) -> dict[str, nn.Module]:
    """Return a gate for each attention module, without touching the model."""
    gates = {}
    for name, module in found.items():
        if hasattr(module, "head_gate"):
            raise ModelError(f"{name} has a gate already: convert a model once")
        d_model, n_heads, head_dim, query = _sizes(module)
        if isinstance(gate, str):
            std = 0.0 if finetune else None
            new = HeadGate(gate, d_model, n_heads, head_dim=head_dim, init=gate_init, finetune_std=std)
        else:
            new = gate(d_model, n_heads, head_dim)
        if getattr(new, "pooled", False) and getattr(module, "is_causal", True):
            raise ParameterError("a pooled gate reads tokens to come: a causal model needs a gate for each token")
        gates[name] = new.to(device=query.weight.device, dtype=query.weight.dtype).train(module.training)
    return gates


def _use_own_attention(model: nn.Module) -> None:
    try:
        from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
        from transformers.modeling_utils import AttentionInterface
    except ImportError:
        raise ModelError("this transformers has no registry of attention functions: use version 5 or newer") from None
    AttentionInterface.register(_NAME, _attention)
    AttentionMaskInterface.register(_NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    model.set_attn_implementation(_NAME)
    if model.config._attn_implementation != _NAME:
        raise ModelError(f"{type(model).__name__} does not go through the attention interface of transformers")


def _projected(model: nn.Module, finetune: bool) -> dict[int, nn.Module]:
    """Return what stands in place of embedding and head, by the identity of the old modules."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if not isinstance(embedding, nn.Embedding):
        raise ModelError(f"{type(model).__name__} has no plain embedding of tokens to project")
    if head is not None and head.weight is embedding.weight:
        raise ModelError("the head is tied to the embedding: set tie_word_embeddings=False in the configuration")
    wrapped: dict[int, nn.Module] = {id(embedding): ProjectedEmbedding(embedding)}
    if head is not None:
        wrapped[id(head)] = ProjectedHead(head)
    if finetune:
        for module in wrapped.values():
            nn.init.eye_(module.projection.weight)
    return wrapped


def convert_transformers(
    model: nn.Module,
    *,
    norm: str | Callable[[int], nn.Module] | None = None,
    gate: str | Callable[[int, int, int], nn.Module] | None = None,
    gate_init: float | None = None,
    softmax: nn.Module | None = None,
    embedding_projection: bool = False,
    finetune: bool = False,
) -> nn.Module:
    """Put the parts of this package into a ``transformers`` model, in place.

    The names of its weights stay; new ones are added beside them (``self_attn.head_gate.weight``). To load a converted
    model, build the plain one, convert it with the same arguments and call ``load_state_dict``. Generation with a cache
    works. Once trained, :func:`skerry.train.nn.fuse_unified_norm`,
    :func:`skerry.train.nn.absorb_embedding_projection` and :func:`skerry.train.nn.expand_single_scale` give the plain
    architecture back.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        Built from a configuration, or trained (see ``finetune``).
    norm : str or callable, optional
        ``"unified"``, ``"gated"``, ``"pre-affine"``, ``"dyt"``, ``"gated-dyt"``, ``"single-scale"``, or a function from
        the width to a module, such as ``lambda width: UnifiedNorm(width, warmup=100)``. Replaces every norm of the
        residual stream; those of queries and keys stay. UnifiedNorm leaves the padding of ``attention_mask`` out of
        its statistics.
    gate : str or callable, optional
        A kind of :class:`skerry.train.nn.HeadGate` for every attention, or a function from ``(d_model, n_heads,
        head_dim)`` to such a module.
    gate_init : float, optional
        Start of the gates.
    softmax : Module, optional
        Such as ``ClippedSoftmax(alpha=3.2, seq_len=128)``; one for all layers. Attention then forms its probabilities;
        with gates alone it goes through ``scaled_dot_product_attention``.
    embedding_projection : bool, default False
        Project embedding and head; they must not be tied.
    finetune : bool, default False
        For a trained model: let everything start as near to it as it can. Gates are exactly 1, ``"gated"`` puts a gate
        of exactly 1 behind the norm that is there, projections are the identity, and other norms take over gains and
        biases that fit.

    Returns
    -------
    transformers.PreTrainedModel
        The same object.

    Raises
    ------
    MissingExtra
        Without ``transformers``.
    ParameterError
        For an unknown norm or gate, or if nothing is asked for.
    ModelError
        If the model has no such part, or does not go through the library's attention interface.

    Examples
    --------
    With ``transformers`` installed::

        model = LlamaForCausalLM(LlamaConfig(hidden_size=64, num_hidden_layers=2))
        convert_transformers(model, norm="single-scale", gate="linear", gate_init=0.25)

    The norms that have a name:

    >>> sorted(NORMS)
    ['dyt', 'gated', 'gated-dyt', 'pre-affine', 'single-scale', 'unified']
    """
    try:
        import transformers
    except ImportError:
        raise MissingExtra("transformers", "deep") from None
    if not isinstance(model, transformers.PreTrainedModel):
        raise ModelError(
            f"{type(model).__name__} is no model of transformers: use the modules of this package directly"
        )
    if norm is None and gate is None and softmax is None and not embedding_projection:
        raise ParameterError("nothing to convert: give norm, gate, softmax or embedding_projection")
    if isinstance(norm, str) and norm not in NORMS:
        raise ParameterError(f"unknown norm {norm!r}: {nearest(norm, NORMS)}")
    if gate_init is not None and not isinstance(gate, str):
        raise ParameterError("gate_init belongs to a gate named by its kind")
    # everything that can be refused is refused before anything changes
    projected = _projected(model, finetune) if embedding_projection else {}
    attentions = _attentions(model) if gate is not None or softmax is not None else {}
    gates = {} if gate is None else _new_gates(attentions, gate, gate_init, finetune)
    if norm is not None:
        find_norms(model)
    if attentions:
        _use_own_attention(model)
    for name, module in attentions.items():
        if softmax is not None:
            module.clipped_softmax = softmax
        if name in gates:
            module.head_gate = gates[name]
            module.register_forward_pre_hook(_give_gate, with_kwargs=True)
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if id(module) in projected:
            set_module(model, name, projected[id(module)])
    if norm == "gated" and finetune:
        GatedNorm.retrofit(model)
    elif norm is not None:
        replace_norms(model, NORMS[norm] if isinstance(norm, str) else norm, copy_affine=finetune)
    if norm is not None and any(isinstance(m, UnifiedNorm) for m in model.modules()):
        model.register_forward_pre_hook(_give_padding, with_kwargs=True)
        model.register_forward_hook(_forget_padding, always_call=True)
    return model
