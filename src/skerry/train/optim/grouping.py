"""Which parameters an orthogonalizing optimizer may take: matrices inside the network, never embeddings or the head.

Muon on the embedding and the head costs loss and brings outliers back (Outlier-Safe Pre-Training, Park et al., 2025,
table of ablations: excess kurtosis 361 with them, 0.04 without).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from torch import Tensor, nn

from skerry.core.errors import ModelError, ParameterError, nearest

__all__ = ["parameter_roles", "split_params"]

_HEAD_NAMES = frozenset(
    "lm_head head heads classifier fc unembed unembedding score output_layer embed_out cls to_logits logits".split()
)
_EMBEDDING_WORDS = ("embed", "token", "pos_", "position", "wte", "wpe", "tok_")
_NOT_MATRICES = (nn.Embedding, nn.EmbeddingBag)
_CONVOLUTIONS = (nn.modules.conv._ConvNd,)


def parameter_roles(model: nn.Module, *, head: str | Iterable[str] | None = None) -> dict[str, str]:
    """Return what each trainable parameter is: ``matrix``, ``kernel``, ``embedding``, ``head`` or ``vector``.

    A parameter with at most one axis longer than 1 is a vector. Weights of embedding modules, and parameters that a
    module holds itself under a name such as ``pos_embed`` or ``cls_token``, are embeddings; so is what is tied to one.
    The head is, in this order: what ``head`` names; ``model.get_output_embeddings()``; a module outside of the repeated
    blocks with an accepted name (``lm_head``, ``head``, ``classifier`` ...); the linear layers outside of them from the
    embedding width to the vocabulary; the last linear layer. Of a head of several layers only the last one counts.

    Parameters
    ----------
    model : torch.nn.Module
    head : str or iterable of str, optional
        Names of the modules that make the outputs; an empty iterable says that there is none.

    Returns
    -------
    dict
        Parameter name to role, in the order of ``model.named_parameters()``; frozen parameters are absent.

    Raises
    ------
    ParameterError
        If ``head`` names no module of the model.

    Examples
    --------
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 10, bias=False))
    >>> for name, role in parameter_roles(model).items():
    ...     print(name, role)
    0.weight embedding
    1.weight matrix
    1.bias vector
    2.weight vector
    2.bias vector
    3.weight head
    """
    heads = {id(p) for module in _heads(model, head) for p in module.parameters()}
    tables = {id(p) for module in model.modules() if isinstance(module, _NOT_MATRICES) for p in module.parameters()}
    kernels = {id(m.weight) for m in model.modules() if isinstance(m, _CONVOLUTIONS)}
    layers = (nn.Linear, nn.Bilinear, nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase, *_CONVOLUTIONS)
    owned = {id(p) for m in model.modules() if isinstance(m, layers) for p in m.parameters(recurse=False)}

    def role(name: str, p: Tensor) -> str:
        own = name.rpartition(".")[2].lower()
        if id(p) in tables:
            return "embedding"
        if sum(size > 1 for size in p.shape) <= 1:
            return "vector"
        if id(p) not in owned and any(word in own for word in _EMBEDDING_WORDS):
            return "embedding"
        if id(p) in heads:
            return "head"
        return "kernel" if id(p) in kernels else "matrix"

    return {name: role(name, p) for name, p in model.named_parameters() if p.requires_grad}


def split_params(
    model: nn.Module,
    *,
    head: str | Iterable[str] | None = None,
    embeddings: Literal["adamw", "muon"] = "adamw",
    vectors: Literal["adamw", "muon"] = "adamw",
) -> tuple[list[dict[str, Any]], list[Tensor]]:
    """Split a model's trainable parameters into those for Muon or ROOT and those for AdamW.

    Parameters
    ----------
    model : torch.nn.Module
    head : str or iterable of str, optional
        Names of the modules that make the outputs; see :func:`parameter_roles`.
    embeddings : {"adamw", "muon"}, default "adamw"
        Where embeddings and the head go. ``"muon"`` is the control of the paper, not an advice.
    vectors : {"adamw", "muon"}, default "adamw"
        Where biases and gains go. ``"muon"`` is Outlier-Safe Pre-Training's choice: their updates are normalised (set
        ``vectors="normalize"`` on the optimizer).

    Returns
    -------
    matrices : list of dict
        Parameter groups for ``Muon`` or ``ROOT``: matrices and stacks of matrices, then, if there are any, kernels of
        convolutions (``stacked=False``: each is flattened to one matrix), then the vectors if they were asked for.
    rest : list of Tensor
        For ``adamw_params``.

    Raises
    ------
    ModelError
        If no parameter is left for Muon.

    Examples
    --------
    >>> from torch import nn
    >>> from skerry.train.optim import Muon
    >>> model = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 4), nn.Linear(4, 10))
    >>> matrices, rest = split_params(model)
    >>> [tuple(p.shape) for p in matrices[0]["params"]], [tuple(p.shape) for p in rest]
    ([(4, 4)], [(10, 4), (4,), (10, 4), (10,)])
    >>> optimizer = Muon(matrices, adamw_params=rest, lr=1e-3)
    """
    for name, value in (("embeddings", embeddings), ("vectors", vectors)):
        if value not in ("adamw", "muon"):
            raise ParameterError(f"{name} is {value!r}: give 'adamw' or 'muon'")
    chosen: dict[str, list[Tensor]] = {"matrix": [], "kernel": [], "vector": []}
    rest = []
    by_name = dict(model.named_parameters())
    for name, role in parameter_roles(model, head=head).items():
        if role in ("embedding", "head"):
            role = "matrix" if embeddings == "muon" else "adamw"
        elif role == "vector":
            role = "vector" if vectors == "muon" else "adamw"
        chosen.get(role, rest).append(by_name[name])
    if not chosen["matrix"] and not chosen["kernel"]:
        raise ModelError(
            f"{type(model).__name__} has no trainable matrix beside embeddings and head: nothing is left for Muon; "
            "use torch.optim.AdamW, or name the output layers by head="
        )
    groups = [
        {"params": chosen["matrix"]},
        {"params": chosen["kernel"], "stacked": False},
        {"params": chosen["vector"]},
    ]
    return [g for g in groups if g["params"]], rest


def _heads(model: nn.Module, head: str | Iterable[str] | None) -> list[nn.Module]:
    """Return the modules that make the outputs."""
    modules = dict(model.named_modules())
    if head is not None:
        names = [head] if isinstance(head, str) else list(head)
        for name in names:
            if name not in modules:
                raise ParameterError(f"head: the model has no module {name!r}: {nearest(name, modules)}")
        return [modules[name] for name in names]
    output = getattr(model, "get_output_embeddings", lambda: None)()
    if isinstance(output, nn.Module):
        return _last_layers(output)
    outer = {n: m for n, m in modules.items() if n and not any(part.isdigit() for part in n.split("."))}
    named = [m for n, m in outer.items() if n.rpartition(".")[2].lower() in _HEAD_NAMES]
    if named:
        return [layer for module in named for layer in _last_layers(module)]
    vocabularies = {(m.embedding_dim, m.num_embeddings) for m in modules.values() if isinstance(m, nn.Embedding)}
    # Inside a block the same sizes are common: 64 to 256 is both a byte model's head and its feed-forward layer.
    to_words = [
        m for m in outer.values() if isinstance(m, nn.Linear) and (m.in_features, m.out_features) in vocabularies
    ]
    return to_words or [m for m in modules.values() if isinstance(m, nn.Linear)][-1:]


def _last_layers(module: nn.Module) -> list[nn.Module]:
    """Return what makes the outputs of a head of several layers: the others are matrices like any."""
    if isinstance(module, nn.ModuleList | nn.ModuleDict):
        children = module.values() if isinstance(module, nn.ModuleDict) else module
        return [layer for child in children for layer in _last_layers(child)]
    return [m for m in module.modules() if isinstance(m, nn.Linear)][-1:] or [module]
