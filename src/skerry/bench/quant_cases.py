"""The rows of the study ``quant``: every recipe under the name that its paper gives it, and what the papers claim.

Weight-only rows of the baselines take asymmetric grids, as the papers of GPTQ, AWQ, QuantEase and AdaDim do, so that
solvers are compared on one grid.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from skerry.core.errors import ParameterError
from skerry.quant.numerics import AffineGrid
from skerry.quant.recipe import Recipe, parse_bits
from skerry.quant.recipes import make_recipe

__all__ = ["BITS", "CASES", "CLAIMS", "Claim", "verdict"]

BITS = ("w8a8", "w6a6", "w4a16", "w3a16", "w4a4")
WEIGHT_ONLY = ("w4a16", "w3a16")


def _symmetric(bits: str) -> dict[str, bool]:
    return {"symmetric": False} if bits in WEIGHT_ONLY else {}


def _static(name: str) -> Callable[[str], Recipe]:
    def make(bits: str) -> Recipe:
        if parse_bits(bits).activation == 16:
            raise ParameterError("inputs stay in floating point: the row without 'static' says it")
        return make_recipe(name, bits, static=True)

    return make


def _smooth(bits: str) -> Recipe:
    if parse_bits(bits).activation == 16:
        raise ParameterError("smoothing serves rounded inputs; at a16 there are none")
    return make_recipe("smoothquant", bits)


def _tensor(bits: str) -> Recipe:
    widths = parse_bits(bits)
    if widths.activation != 16:
        raise ParameterError("shown beside SplitQuant, weights only")
    return Recipe("rtn", AffineGrid(widths.weight, symmetric=False, group_size=0))


def _split(bits: str) -> Recipe:
    if parse_bits(bits).activation != 16:
        raise ParameterError("shown weights only, as its grids are about weights")
    return make_recipe("splitquant", bits)


def _svd(bits: str) -> Recipe:
    # rank 16, a coarser search of scales and one pass: the layers are a tenth as wide as the paper's
    return make_recipe("svdquant", bits, rank=16, n_grid=5, iterations=1)


CASES: dict[str, Callable[[str], Recipe]] = {
    "RTN": lambda bits: make_recipe("rtn", bits, **_symmetric(bits)),
    "RTN, static inputs": _static("rtn"),
    "RTN, one scale a tensor": _tensor,
    "SmoothQuant": _smooth,
    "SmoothQuant, static inputs": _static("smoothquant"),
    "GPTQ": lambda bits: make_recipe("gptq", bits, **_symmetric(bits)),
    "AWQ": lambda bits: make_recipe("awq", bits),
    "QuaRot": lambda bits: make_recipe("quarot", bits),
    "QuaRot, GPTQ": lambda bits: make_recipe("quarot", bits, gptq=True),
    "DuQuant": lambda bits: make_recipe("duquant", bits),
    "LLM.int8": lambda bits: make_recipe("llm-int8", bits),
    "Outlier Suppression+": lambda bits: make_recipe("os-plus", bits),
    "OutlierTune": lambda bits: make_recipe("outliertune", bits),
    "QuantEase": lambda bits: make_recipe("quantease", bits, **({} if bits in WEIGHT_ONLY else {"symmetric": True})),
    "QuantEase, 1 % outliers": lambda bits: make_recipe(
        "quantease", bits, outliers=0.01, **({} if bits in WEIGHT_ONLY else {"symmetric": True})
    ),
    "SpQR": lambda bits: make_recipe("spqr", bits),
    "AdaDim": lambda bits: make_recipe("adadim", bits),
    "OliVe": lambda bits: make_recipe("olive", bits),
    "SplitQuant": _split,
    "SVDQuant": _svd,
    "LRQ-DiT": lambda bits: make_recipe("lrq-dit", bits),
    "MambaQuant": lambda bits: make_recipe("mambaquant", bits),
}


@dataclass(frozen=True)
class Claim:
    """An ordering that a paper reports.

    Attributes
    ----------
    better, worse : str
        Keys of :data:`CASES`.
    bits : tuple of str
    outliers : bool
        Whether the paper reports it where inputs hold outliers; the natural language model has few.
    """

    better: str
    worse: str
    bits: tuple[str, ...]
    outliers: bool


CLAIMS: tuple[Claim, ...] = (
    Claim("SmoothQuant", "RTN", ("w8a8", "w6a6"), True),
    Claim("SmoothQuant, static inputs", "RTN, static inputs", ("w8a8",), True),
    Claim("LLM.int8", "RTN", ("w8a8",), True),
    Claim("Outlier Suppression+", "SmoothQuant, static inputs", ("w8a8", "w6a6"), True),
    Claim("OutlierTune", "SmoothQuant", ("w8a8", "w6a6"), True),
    Claim("QuaRot", "RTN", ("w4a4",), True),
    Claim("QuaRot", "SmoothQuant", ("w4a4",), True),
    Claim("QuaRot, GPTQ", "QuaRot", ("w4a4",), False),
    Claim("DuQuant", "QuaRot", ("w4a4",), True),
    Claim("DuQuant", "SmoothQuant", ("w4a4",), True),
    Claim("SVDQuant", "SmoothQuant", ("w4a4",), True),
    Claim("SVDQuant", "RTN", ("w4a4",), True),
    Claim("OliVe", "RTN, static inputs", ("w4a4",), True),
    Claim("GPTQ", "RTN", WEIGHT_ONLY, False),
    Claim("AWQ", "RTN", WEIGHT_ONLY, True),
    Claim("QuantEase", "GPTQ", WEIGHT_ONLY, False),
    Claim("QuantEase", "AWQ", ("w3a16",), False),
    Claim("QuantEase, 1 % outliers", "QuantEase", ("w3a16",), False),
    Claim("SpQR", "GPTQ", ("w3a16",), False),
    Claim("AdaDim", "GPTQ", ("w3a16",), True),
    Claim("SplitQuant", "RTN, one scale a tensor", WEIGHT_ONLY, False),
)


def verdict(better: list[float], worse: list[float]) -> tuple[str, float]:
    """Return "yes", "tie" or "no", and how many standard errors of the paired difference stand between the two.

    Examples
    --------
    >>> verdict([1.0, 2.0, 3.0], [1.5, 2.6, 3.4])[0]
    'yes'
    >>> verdict([1.0, 2.0, 3.0], [0.9, 2.1, 3.0])[0]
    'tie'
    """
    import numpy as np

    gain = np.asarray(worse, dtype=float) - np.asarray(better, dtype=float)
    error = gain.std(ddof=1) / len(gain) ** 0.5
    strength = float(gain.mean() / error) if error > 0 else 0.0
    return ("yes" if strength > 2 else "no" if strength < -2 else "tie"), strength
