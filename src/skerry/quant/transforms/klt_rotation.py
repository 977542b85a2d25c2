"""KLT-enhanced rotation: eigenvectors of the inputs' covariance in front of a Hadamard matrix, folded into weights.

Xu et al. (ICLR 2025), "MambaQuant" (arXiv 2501.13484). Behind a Hadamard matrix alone the variance of channel l is
``sum_j (sum_i H_il K_ij)^2 lambda_j``, which depends on l; behind ``K H``, K the eigenvectors, it is
``sum_j H_jl^2 lambda_j = trace / m`` for every l, since all ``H_jl^2 = 1 / m``. Vectors are rows: x becomes x K H.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from skerry.core.errors import DataError, ModelError
from skerry.deep.hadamard import has_hadamard, rotation_matrix
from skerry.quant.architectures.base import Architecture
from skerry.quant.calibration import catch_inputs
from skerry.quant.groups import Group
from skerry.quant.probe import GroupContext
from skerry.quant.statistics import LayerStatistics, StatisticsCollector
from skerry.quant.transforms.rotation import plain_norms, rotate_stream
from skerry.quant.transforms.smooth_fused import mixer_of

__all__ = ["KLTResidual", "KLTSteps", "eigenvectors", "equalising_rotation", "klt_rotation", "spread"]


@dataclass(frozen=True)
class KLTResidual:
    """Rotate the residual stream of the whole model (R1) by K H, K from the inputs of the first block's first layers.

    Parameters
    ----------
    klt : bool, default True
        False leaves the Hadamard matrix: QuaRot.
    random_state : int, default 0
        Of the signs of the Hadamard matrix.
    """

    klt: bool = True
    random_state: int = 0

    needs = frozenset({"covariance"})  # what makes a recipe ask for calibration data

    def apply_model(self, model: nn.Module, architecture: Architecture, batches: list[Any]) -> Mapping[str, Any]:
        """Rotate; see :class:`~skerry.quant.parts.ModelTransform`."""
        plain_norms(model, architecture)
        first = architecture.block_names(model)[0]
        group = next(g for g in architecture.block_groups(model, first) if g.kind == "norm")
        C = _covariance(model, first, group, batches)
        R = klt_rotation(C, klt=self.klt, random_state=self.random_state)
        rotate_stream(model, architecture, R)
        return {"width": len(C), "hadamard": has_hadamard(len(C)), **_facts(C, R)}


@dataclass(frozen=True)
class KLTSteps:
    """Rotate what stands between the two low-rank layers of Mamba's time step (R5) by a K H of every block's own.

    Parameters
    ----------
    klt : bool, default True
        False leaves the Hadamard matrix.
    centre : bool, default False
        First take the mid-range of every channel away, which becomes biases of the two layers. (The mean over
        calibration sequences stands for the running mean of the paper's code.)
    rotate : bool, default True
        False only centres.
    random_state : int, default 0
    """

    klt: bool = True
    centre: bool = False
    rotate: bool = True
    random_state: int = 0

    needs = frozenset({"covariance", "mid_range"})

    def apply(self, group: Group, statistics: LayerStatistics, context: GroupContext) -> Mapping[str, Any]:
        """Rotate the group of ``dt_proj``; see :class:`~skerry.quant.parts.Transform`."""
        mixer, role = mixer_of(context.model, group)
        if mixer is None or role != "dt_proj" or any(r.before for r in group.consumers.values()):
            return {}
        C, R, shift = statistics.covariance, None, statistics.mid_range
        first, second = mixer.step_proj, mixer.dt_proj
        with torch.no_grad():
            if self.centre and shift is not None:
                second.add_to_bias(second.weight.float() @ shift)
                first.add_to_bias(-shift)
            if self.rotate:
                R = klt_rotation(C, klt=self.klt, random_state=self.random_state)
                first.weight.copy_(R.T @ first.weight.double())
                if first.bias is not None:
                    first.bias.copy_(first.bias.double() @ R)
                second.weight.copy_(second.weight.double() @ R)
        found = {"largest_shift": float(shift.abs().max())} if self.centre and shift is not None else {}
        return found if R is None else found | _facts(C, R)


def klt_rotation(C: Tensor, *, klt: bool = True, random_state: int = 0) -> Tensor:
    """Return the rotation K H (m, m), float64, behind which all channels have one variance.

    Parameters
    ----------
    C : Tensor of shape (m, m)
        Covariance of the inputs.
    klt : bool, default True
        False returns H alone.
    random_state : int, default 0
        Of H's signs; for a width without a Hadamard matrix, of a random rotation, whose variances are then made
        equal by :func:`equalising_rotation`.

    Raises
    ------
    DataError
        If C is no square matrix of finite numbers.

    Examples
    --------
    >>> C = torch.tensor([[2.5, 1.5], [1.5, 2.5]], dtype=torch.float64)
    >>> H, KH = klt_rotation(C, klt=False), klt_rotation(C)
    >>> [sorted((R.T @ C @ R).diagonal().round(decimals=6).tolist()) for R in (H, KH)]
    [[1.0, 4.0], [2.5, 2.5]]
    """
    C = C.double()
    if C.ndim != 2 or C.shape[0] != C.shape[1] or not bool(torch.isfinite(C).all()):
        raise DataError(f"a covariance is a square matrix of finite numbers, got {tuple(C.shape)}")
    m = len(C)
    H = rotation_matrix(m, random_state=random_state, dtype=torch.float64)
    if not klt:
        return H
    R = eigenvectors(C) @ H
    return R if has_hadamard(m) else R @ equalising_rotation(R.T @ C @ R)


def eigenvectors(C: Tensor) -> Tensor:
    """Return the eigenvectors of a covariance (m, m) as columns, ascending, orthogonal to float64 precision.

    Their largest entries are positive, so that the result does not depend on a library's choice of signs.

    Examples
    --------
    >>> eigenvectors(torch.diag(torch.tensor([3.0, 1.0]))).abs().tolist()
    [[0.0, 1.0], [1.0, 0.0]]
    """
    C = C.double()
    K = torch.linalg.eigh((C + C.T) / 2).eigenvectors
    q, r = torch.linalg.qr(K)  # a badly scaled covariance leaves them slightly off
    K = q * torch.where(torch.diagonal(r) < 0, -1.0, 1.0)
    largest = K.gather(0, K.abs().argmax(0, keepdim=True))
    return K * torch.where(largest < 0, -1.0, 1.0)


def equalising_rotation(C: Tensor) -> Tensor:
    """Return a product of m - 1 plane rotations behind which every channel has the mean variance (Schur-Horn).

    Each turns the channels of the largest and the smallest variance against each other until one has the mean.

    Parameters
    ----------
    C : Tensor of shape (m, m)

    Examples
    --------
    >>> C = torch.diag(torch.tensor([4.0, 1.0, 1.0], dtype=torch.float64))
    >>> G = equalising_rotation(C)
    >>> (G.T @ C @ G).diagonal().round(decimals=6).tolist()
    [2.0, 2.0, 2.0]
    """
    C = C.double().clone()
    m, mean = len(C), float(C.diagonal().mean())
    G = torch.eye(m, dtype=torch.float64)
    for _ in range(m - 1):
        left = C.diagonal() - mean
        i, j = int(left.argmax()), int(left.argmin())
        if i == j or float(left[i] - left[j]) <= 1e-14 * max(abs(mean), 1e-300):
            break
        p, q, r = float(left[i]), float(left[j]), float(C[i, j])
        root = (r * r - p * q) ** 0.5  # p + 2 r t + q t^2 = 0, the smaller t: channel i gets the mean exactly
        tangent = -p / (r + root if r >= 0.0 else r - root)
        cos = (1.0 + tangent * tangent) ** -0.5
        turn = torch.tensor([[cos, -cos * tangent], [cos * tangent, cos]], dtype=torch.float64)
        at = [i, j]
        C[:, at] = C[:, at] @ turn
        C[at] = turn.T @ C[at]
        G[:, at] = G[:, at] @ turn
    return G


def spread(C: Tensor) -> float:
    """Return the largest variance over the smallest, of a covariance; what "variance alignment" brings to 1.

    Examples
    --------
    >>> spread(torch.diag(torch.tensor([8.0, 2.0])))
    4.0
    """
    variances = C.diagonal().double()
    return float(variances.max() / variances.min().clamp(min=1e-30))


def _facts(C: Tensor, R: Tensor) -> dict[str, float]:
    return {"variance_ratio_before": spread(C), "variance_ratio": spread(R.T @ C.double() @ R)}


def _covariance(model: nn.Module, block: str, group: Group, batches: list[Any]) -> Tensor:
    if not batches:
        raise ModelError("a KLT rotation needs calibration data: give some batches of the model's inputs")
    norm = model.get_submodule(group.producer or "")
    states: list[Tensor] = []
    inputs = catch_inputs(model, model.get_submodule(block), batches, states.append)
    collector = StatisticsCollector({"covariance"}, group.name)
    with torch.no_grad():
        for hidden, mask in zip(states, inputs.masks, strict=True):
            collector.update(norm(hidden), mask)
    return collector.finish().covariance
