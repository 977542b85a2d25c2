"""Find the layer norms of any network and put another norm in their place.

Recognised are ``torch.nn.LayerNorm`` and ``RMSNorm``, the norms of this package, and foreign classes whose name ends in
``LayerNorm`` or ``RMSNorm`` and whose gain is a vector (those of ``transformers``, for one).
"""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from torch import nn

from skerry.core.errors import ModelError

__all__ = ["find_norms", "replace_norms"]

_NAMES = re.compile(r"(LayerNorm|RMSNorm|^UnifiedNorm|^DyT|^GatedNorm|^GatedDyT)$")
_QUERY_KEY = re.compile(r"(^|\.)(q|k|query|key)_(norm|layernorm|layer_norm|ln)$")


def _width(module: nn.Module) -> int | None:
    """Return how many channels a norm acts on; None if the module is no norm over the last axis."""
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        return module.normalized_shape[0] if len(module.normalized_shape) == 1 else None
    if not _NAMES.search(type(module).__name__):
        return None
    if isinstance(getattr(module, "dim", None), int):
        return module.dim
    weight = getattr(module, "weight", None)
    return len(weight) if isinstance(weight, torch.Tensor) and weight.dim() == 1 else None


def find_norms(
    model: nn.Module, match: str | Callable[[str, nn.Module], bool] | None = None
) -> dict[str, tuple[nn.Module, int]]:
    """Return the norms of ``model``: name to (module, width), outermost only.

    Parameters
    ----------
    model : Module
    match : str or callable, optional
        A regular expression that the name must contain, or a function of name and module. Default: all but the norms
        of queries and keys (``q_norm``, ``k_norm`` and their like), which are no part of the residual stream.

    Raises
    ------
    ModelError
        If no norm is found: a network that stays as it was would be a silent failure.

    Examples
    --------
    >>> from torch import nn
    >>> {name: width for name, (_, width) in find_norms(nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))).items()}
    {'1': 4}
    """
    if match is None:

        def wanted(name: str, module: nn.Module) -> bool:
            return not _QUERY_KEY.search(name)

    elif isinstance(match, str):

        def wanted(name: str, module: nn.Module) -> bool:
            return bool(re.search(match, name))

    else:
        wanted = match
    found: dict[str, tuple[nn.Module, int]] = {}
    inside: tuple[str, ...] = ()
    for name, module in model.named_modules(remove_duplicate=False):
        if name.startswith(inside):
            continue
        width = _width(module)
        if width is not None:
            inside += (name + ".",)
            if wanted(name, module):
                found[name] = (module, width)
    if not found:
        raise ModelError(
            f"no norm found in {type(model).__name__}{'' if match is None else ' that matches'}: "
            "LayerNorm, RMSNorm and modules of such names are known"
        )
    return found


def set_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put ``module`` at ``name``, in the mode of what was there."""
    path, _, own = name.rpartition(".")
    parent = model.get_submodule(path)
    if isinstance(parent, nn.TransformerEncoderLayer):
        parent.activation_relu_or_gelu = 0  # its fused kernel would compute LayerNorm, whatever stands there
        for outer in model.modules():
            if isinstance(outer, nn.TransformerEncoder):
                outer.use_nested_tensor = False
    setattr(parent, own, module.train(getattr(parent, own).training))


@torch.no_grad()
def _copy_affine(old: nn.Module, new: nn.Module, name: str, width: int) -> None:
    """Copy gain and bias by name and shape, once it is seen that they mean what they mean in LayerNorm or RMSNorm."""
    weight, bias = getattr(old, "weight", None), getattr(old, "bias", None)
    if isinstance(weight, torch.Tensor) and not isinstance(old, nn.LayerNorm | nn.RMSNorm) and not hasattr(old, "dim"):
        x = torch.randn(4, width, generator=torch.Generator().manual_seed(0)).to(weight)
        out, tolerance = old(x).float(), 0.05 * weight.abs().max().float() + 1e-3
        plain = [nn.functional.layer_norm(x, (width,), weight, bias), nn.functional.rms_norm(x, (width,), weight)]
        if not any((out - p.float()).abs().max() <= tolerance for p in plain):
            raise ModelError(
                f"the gain of {name} ({type(old).__name__}) does not multiply the normalised input, as it does in "
                "LayerNorm and RMSNorm: replace it without copying, or by a factory of your own"
            )
    inner = getattr(new, "norm", new)
    for key, value in old.named_parameters(recurse=False):
        target = getattr(inner, key, None)
        if isinstance(target, torch.Tensor) and target.shape == value.shape:
            target.copy_(value)


def replace_norms(
    model: nn.Module,
    factory: Callable[[int], nn.Module],
    match: str | Callable[[str, nn.Module], bool] | None = None,
    *,
    copy_affine: bool = False,
) -> nn.Module:
    """Replace every norm of ``model``, in place, by ``factory(width)``.

    The positions, the device and the dtype stay. What the old norm computed does not: LayerNorm subtracts a mean that
    the norms of this package keep, so that a converted network must be trained on, some hundred steps at least.

    Parameters
    ----------
    model : Module
        Not itself a norm.
    factory : callable
        From a width to a module, such as ``lambda width: UnifiedNorm(width, warmup=100)`` or a class.
    match : str or callable, optional
        Which norms; see :func:`find_norms`.
    copy_affine : bool, default False
        For fine-tuning: take over gain and bias where the new norm has a parameter of that name and shape.

    Returns
    -------
    Module
        The same object.

    Raises
    ------
    ModelError
        If no norm is found, or ``model`` is one; with ``copy_affine``, if a gain means something else (as in Gemma,
        where it is added to 1).

    Examples
    --------
    >>> from torch import nn
    >>> replace_norms(nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 2)), nn.RMSNorm)[0]
    RMSNorm((4,), eps=None, elementwise_affine=True)
    """
    shared: dict[int, nn.Module] = {}  # one norm used at two places stays one norm
    for name, (old, width) in find_norms(model, match).items():
        if not name:
            raise ModelError("the model is itself a norm: call the factory in its stead")
        for parameter in old.parameters():
            place = {"device": parameter.device, "dtype": parameter.dtype}
            break
        else:
            first = next(model.parameters(), torch.empty(0))
            place = {"device": first.device, "dtype": first.dtype}
        new = shared.setdefault(id(old), factory(width).to(**place))
        if copy_affine:
            _copy_affine(old, new, name, width)
        set_module(model, name, new)
    return model
