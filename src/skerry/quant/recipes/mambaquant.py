"""MambaQuant (arXiv 2501.13484): KLT-enhanced rotations folded into weights, smooth-fused ones at run time.

Static inputs, one scale a tensor; weights one scale a row; both asymmetric. Made for models that
``transformers`` calls Mamba; of others only the residual stream is rotated.
"""

from skerry.core.errors import ParameterError
from skerry.quant.activation import TensorStatic, TokenDynamic
from skerry.quant.recipe import Bits, Recipe
from skerry.quant.recipes.common import weights
from skerry.quant.scan_operands import PercentileStatic, ScanOperands
from skerry.quant.transforms.klt_rotation import KLTResidual, KLTSteps
from skerry.quant.transforms.smooth_fused import SmoothFused, StateHadamard

__all__ = ["build"]

ROTATIONS = ("residual", "dt", "out", "state", "input")


def build(
    bits: Bits,
    *,
    klt: bool = True,
    smooth: tuple[str, ...] = ("gate", "bc", "dt", "conv"),
    rotate: tuple[str, ...] = ("residual", "dt", "out", "state"),
    centre: bool = False,
    alpha: float = 0.5,
    observer: str = "minmax",
    percentile: float = 0.999999,
    gptq: bool = False,
    random_state: int = 10,
) -> Recipe:
    """Return the recipe; without ``klt`` and ``smooth`` it is QuaRot, without ``rotate`` too round to nearest.

    ``smooth``: "gate" (S2), "channel" (S3), "bc" (S4), "dt" (S5), "conv" (S7). ``rotate``: "residual" (R1), "out"
    (R2), "state" (R4), "dt" (R5), "input" (R6). ``centre`` takes the mid-range off the time step's path, ``observer``
    is "minmax" or "percentile".
    """
    smooth, rotate = ((p,) if isinstance(p, str) else tuple(p) for p in (smooth, rotate))
    if unknown := set(rotate) - set(ROTATIONS):
        raise ParameterError(f"rotations are {', '.join(ROTATIONS)}, got {', '.join(sorted(unknown))}")
    if observer not in ("minmax", "percentile"):
        raise ParameterError(f"observer must be 'minmax' or 'percentile', got {observer!r}")
    grid = weights(bits, symmetric=False)
    activation = state = None
    if bits.activation < 16:
        activation = TensorStatic(bits.activation, symmetric=False)
        if observer == "percentile":
            activation = PercentileStatic(bits.activation, symmetric=False, percentile=percentile)
        state = TokenDynamic(8, symmetric=False)  # the paper keeps 8 bits for the product of states and C
    solver = None
    if gptq:
        from skerry.quant.solvers import GPTQ

        solver = GPTQ()
    steps = KLTSteps(klt=klt, centre=centre, rotate="dt" in rotate, random_state=random_state)
    online = StateHadamard("out" in rotate, "state" in rotate, "input" in rotate, random_state)
    transforms = (
        *([KLTResidual(klt=klt, random_state=random_state)] if "residual" in rotate else []),
        *([SmoothFused(smooth, alpha)] if smooth else []),
        *([online] if {"out", "state", "input"} & set(rotate) else []),
        *([steps] if "dt" in rotate or centre else []),
    )
    operands = ScanOperands(state, state, grid, activation)
    return Recipe("mambaquant", grid, solver, activation, transforms, operands=operands)
