"""Recipes: each paper as a list of parts."""

from __future__ import annotations

import importlib
import inspect
from typing import TYPE_CHECKING, Any

from skerry.core.errors import ParameterError, nearest

if TYPE_CHECKING:
    from skerry.quant.recipe import Bits, Recipe

__all__ = ["RECIPES", "make_recipe"]

# name: (module of this folder, what it is good for in a line)
RECIPES: dict[str, tuple[str, str]] = {
    "adadim": ("adadim", "weights of 4 bits and below: groups by row or column, as the output asks (AdaDim)"),
    "awq": ("awq", "weights of 4 bits and below: column scales from the inputs (AWQ)"),
    "duquant": ("duquant", "4-bit weights and activations: smoothing and two searched rotations (DuQuant)"),
    "gptq": ("gptq", "weights of 4 bits and below: error feedback (GPTQ)"),
    "llm-int8": ("llm_int8", "8 bits without calibration: outlier columns stay in floating point (LLM.int8)"),
    "lrq-dit": ("lrq_dit", "3-bit weights of diffusion transformers: twin logarithmic levels, rotations (LRQ-DiT)"),
    "mambaquant": ("mambaquant", "8-bit Mamba models: rotations that make variances equal (MambaQuant)"),
    "olive": ("olive", "exactly 4 bits with room for outliers: victim pairs (OliVe)"),
    "os-plus": ("os_plus", "static activations: shift and scale every channel (Outlier Suppression+)"),
    "outliertune": ("outliertune", "static activations without a scale at run time (OutlierTune)"),
    "quantease": ("quantease", "weights of 3 and 2 bits: coordinate descent, sparse outliers (QuantEase)"),
    "quarot": ("quarot", "4-bit weights and activations: rotate the residual stream (QuaRot)"),
    "rtn": ("rtn", "round to nearest: no calibration, the baseline"),
    "splitquant": ("splitquant", "data-free, for runtimes with one low width: three value ranges (SplitQuant)"),
    "spqr": ("spqr", "weights of 4 and 3 bits: small groups, the weights that matter most in 16 bits (SpQR)"),
    "svdquant": ("svdquant", "4-bit weights and activations: a low-rank branch absorbs the outliers (SVDQuant)"),
    "smoothquant": ("smoothquant", "move part of the activations' range into the weights"),
}
FLOATING = {  # formats other than integers, and the recipes that know them
    "fp8": ("rtn", "smoothquant"),
    "nvfp4": ("rtn", "smoothquant", "svdquant"),
    "mxfp4": ("rtn", "smoothquant", "svdquant"),
}


def make_recipe(name: str, bits: str | Bits = "w8a8", **settings: Any) -> Recipe:
    """Return the named recipe at these bits.

    Parameters
    ----------
    name : str
        See :data:`RECIPES`.
    bits : str or Bits, default "w8a8"
        For example "w4a16", "w4a16g128", "w4a4", "fp8", "nvfp4", "mxfp4".
    **settings
        The recipe's own; an unknown one raises with the list.

    Raises
    ------
    ParameterError
        For an unknown recipe or setting, or bits that the recipe cannot do.

    Examples
    --------
    >>> make_recipe("rtn", "w4a16").weight.group_size
    128
    """
    from skerry.quant.recipe import parse_bits

    if name not in RECIPES:
        raise ParameterError(f"unknown recipe {name!r}: {nearest(name, RECIPES)}")
    build = importlib.import_module(f"skerry.quant.recipes.{RECIPES[name][0]}").build
    known = [p for p in inspect.signature(build).parameters if p != "bits"]
    if unknown := settings.keys() - set(known):
        raise ParameterError(
            f"recipe {name!r} has no setting {', '.join(sorted(unknown))}; it has {', '.join(known) or 'none'}"
        )
    widths = parse_bits(bits)
    if widths.form != "int" and name not in (known := FLOATING[widths.form]):
        raise ParameterError(f"recipe {name!r} does not know {bits}, which goes with {', '.join(known)}")
    return build(widths, **settings)
