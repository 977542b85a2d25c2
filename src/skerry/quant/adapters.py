"""LoRA adapters on a quantized model: they join the low-rank branch, and no weight is quantized again (SVDQuant).

A layer ``y = x_hat (L + Q(R))`` with ``x_hat = f(x)`` takes the adapter ``x -> B A x`` as more columns of its branch:
``up <- [up, c B]``, ``down <- [down, A f^-1]``; a layer without a branch gets one. That needs f: what the recipe did to
the input must stay in front of the layer at run time (arXiv 2411.05007, section 4.3).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from skerry.core.errors import ModelError, ParameterError
from skerry.quant.linear import BlockRotation, InputAffine, InputTransform, QuantizedLinear
from skerry.quant.parts import LowRank
from skerry.quant.recipe import Recipe
from skerry.quant.report import recipe_of

__all__ = ["attach_lora"]

_KEY = re.compile(r"(?:base_model\.model\.)?(?P<layer>.+)\.lora_(?P<side>[AB])(?:\.[^.]+)??(?:\.weight)?")


def attach_lora(
    model: nn.Module,
    adapter: Mapping[str, Tensor],
    scale: float = 1.0,
    *,
    recipe: Recipe | None = None,
    dtype: torch.dtype | None = None,
) -> list[str]:
    """Add a LoRA adapter, trained on the float model, to the quantized one in place.

    Parameters
    ----------
    model : Module
        From :func:`skerry.quant.quantize` or :func:`skerry.quant.load`.
    adapter : mapping of str to Tensor
        ``LAYER.lora_A.weight`` (r, in) and ``LAYER.lora_B.weight`` (out, r), as PEFT saves them; its prefix
        ``base_model.model.`` is taken off.
    scale : float, default 1.0
        Of the product: ``lora_alpha / r`` in PEFT's configuration.
    recipe : Recipe, optional
        How the model was quantized; by default what its report, or the folder that it was loaded from, says.
    dtype : torch.dtype, optional
        Of the new columns; by default that of the branch, or bfloat16.

    Returns
    -------
    list of str
        The layers that changed.

    Raises
    ------
    ModelError
        If the recipe folded changes of the inputs into other layers (SVDQuant with ``fold=False`` does not), a layer is
        missing or not quantized, an adapter lacks a half, or shapes do not fit.
    ParameterError
        If the adapter is empty or the scale is not finite.

    Examples
    --------
    >>> import skerry.quant as quant
    >>> model = nn.Sequential(nn.Linear(8, 4))
    >>> small = quant.quantize(model, "rtn", "w8a8")
    >>> halves = {"0.lora_A.weight": torch.randn(2, 8), "0.lora_B.weight": torch.randn(4, 2)}
    >>> attach_lora(small, halves, scale=0.5), small[0].solved.low_rank.up.shape
    (['0'], torch.Size([4, 2]))
    """
    if not torch.isfinite(torch.tensor(float(scale))):
        raise ParameterError(f"scale must be finite, got {scale}")
    _check_recipe(model, recipe)
    pairs = _pairs(adapter)
    chosen = {name: _layer(model, name, A, B) for name, (A, B) in pairs.items()}  # all are checked before any changes
    for name, (A, B) in pairs.items():
        model.set_submodule(name, _joined(chosen[name], A, B * scale, dtype))
    return list(pairs)


def _check_recipe(model: nn.Module, recipe: Recipe | None) -> None:
    if recipe is None:
        recipe = recipe_of(model)
        if recipe is None:
            raise ModelError("how this model was quantized is not known: give attach_lora its recipe")
    folded = [type(t).__name__ for t in recipe.transforms if not getattr(t, "keeps_inputs", False)]
    if folded:
        raise ModelError(
            f"{folded[0]} folds changes of the layers' inputs into other layers, so an adapter of the float model does "
            "not fit any more: quantize with a recipe that keeps them at run time (svdquant with fold=False), or merge "
            "the adapter before quantizing"
        )


def _pairs(adapter: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    halves: dict[str, dict[str, Tensor]] = {}
    for key, tensor in adapter.items():
        found = _KEY.fullmatch(key)
        if found is None:
            raise ModelError(f"{key!r} is no half of a LoRA adapter: names end in lora_A.weight or lora_B.weight")
        halves.setdefault(found["layer"], {})[found["side"]] = tensor.detach().float().cpu()
    if not halves:
        raise ParameterError("the adapter is empty")
    for name, sides in halves.items():
        if len(sides) < 2:
            raise ModelError(f"{name}: the adapter has lora_{next(iter(sides))} and not the other half")
        if not all(bool(torch.isfinite(t).all()) for t in sides.values()):
            raise ModelError(f"{name}: the adapter holds NaN or infinite values")
    return {name: (sides["A"], sides["B"]) for name, sides in halves.items()}


def _layer(model: nn.Module, name: str, A: Tensor, B: Tensor) -> QuantizedLinear:
    try:
        layer = model.get_submodule(name)
    except AttributeError:
        raise ModelError(f"the adapter speaks of {name}, which the model does not have") from None
    if not isinstance(layer, QuantizedLinear):
        raise ModelError(f"{name} is a {type(layer).__name__} and was not quantized: merge the adapter into it")
    wanted = (layer.in_features, layer.out_features)
    if A.ndim != 2 or B.ndim != 2 or A.shape[0] != B.shape[1] or (A.shape[1], B.shape[0]) != wanted:
        raise ModelError(
            f"{name}: an adapter of {tuple(A.shape)} and {tuple(B.shape)} does not fit {wanted[1]} outputs of "
            f"{wanted[0]} inputs"
        )
    return layer


def _joined(layer: QuantizedLinear, A: Tensor, B: Tensor, dtype: torch.dtype | None) -> QuantizedLinear:
    A, offset = _behind(A, layer.before)
    kept = layer.solved.low_rank
    dtype = dtype or (torch.bfloat16 if kept is None else kept.down.dtype)
    up, down = B.to(dtype), A.to(dtype)
    if kept is not None:  # its down is no longer that of the layers beside it
        up = torch.cat((kept.up.to(dtype).cpu(), up), 1)
        down = torch.cat((kept.down.to(dtype).cpu(), down))
    device = layer.solved.weight.dequantize().device
    solved = replace(layer.solved, low_rank=LowRank(up.to(device).contiguous(), down.to(device).contiguous()))
    bias = layer.bias
    if offset is not None:
        bias = (B @ offset).to(device) + (0.0 if bias is None else bias.float())
        bias = bias.to(dtype if layer.bias is None else layer.bias.dtype)
    joined = QuantizedLinear(solved, layer.activation, bias, layer.before)
    joined.train(layer.training)
    if layer.kernel is not None:
        from skerry.quant.runtime import prepare_kernel

        joined.set_kernel(prepare_kernel(joined.solved, joined.activation, joined.bias))
    return joined


def _behind(A: Tensor, before: tuple[InputTransform, ...]) -> tuple[Tensor, Tensor | None]:
    """Return what ``A`` (r, in) is to the changed input, and a constant (r,) if the change shifts."""
    offset: Tensor | None = None
    for change in before:
        if isinstance(change, BlockRotation):
            A = change(A.double()).float()
        elif isinstance(change, InputAffine):
            if change.shift is not None:
                constant = A @ change.shift.float().cpu()
                offset = constant if offset is None else offset + constant
            A = A * change.scale.float().cpu()
    return A, offset
