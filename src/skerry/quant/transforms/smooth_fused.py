"""Smooth-fused rotation: channel scales folded into a Mamba block's neighbours, and Hadamard products at run time.

Xu et al. (ICLR 2025), "MambaQuant" (arXiv 2501.13484). Where a rotation cannot be folded (behind the gate, in front
of the states' product) it cannot be fitted to the data either, so the channels are made alike first: by a scale that
goes through the gate's activation (``f_s(z / s) = SiLU(z) / s``), through B and C of the state space, through the
low-rank path of the time step and through the depthwise convolution. Every change keeps the function.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from skerry.core.errors import ParameterError
from skerry.deep.hadamard import has_hadamard, rotation_matrix
from skerry.quant.architectures.mamba_block import GatedOutput, SelectiveScan, divide_rows
from skerry.quant.groups import Group
from skerry.quant.linear import BlockRotation
from skerry.quant.probe import GroupContext
from skerry.quant.statistics import LayerStatistics

__all__ = ["PLACES", "SmoothFused", "StateHadamard", "mixer_of", "smoothing"]

PLACES = ("gate", "bc", "dt", "conv", "channel")
LEAST, MOST = 1e-2, 100.0


@dataclass(frozen=True)
class SmoothFused:
    """Divide channels by ``max|X_j|^alpha / max|W_j|^(1 - alpha)`` and fold the scales into what stands before.

    Parameters
    ----------
    places : tuple of str, default ("gate", "bc", "dt", "conv")
        "gate" (S2, before the output layer), "bc" (S4, the states against C), "dt" (S5, the time step's path), "conv"
        (S7, before the convolution), "channel" (S3, the states along D, at run time).
    alpha : float in [0, 1], default 0.5

    Raises
    ------
    ParameterError
        For an unknown place, or alpha outside [0, 1].
    """

    places: tuple[str, ...] = ("gate", "bc", "dt", "conv")
    alpha: float = 0.5

    needs = frozenset({"absmax"})

    def __post_init__(self) -> None:
        object.__setattr__(self, "places", tuple(self.places))
        if unknown := set(self.places) - set(PLACES):
            raise ParameterError(f"smoothing places are {', '.join(PLACES)}, got {', '.join(sorted(unknown))}")
        if not 0.0 <= self.alpha <= 1.0:
            raise ParameterError(f"alpha must be in [0, 1], got {self.alpha}")

    def apply(self, group: Group, statistics: LayerStatistics, context: GroupContext) -> Mapping[str, Any]:
        """Smooth one group of a Mamba block; see :class:`~skerry.quant.parts.Transform`."""
        mixer, role = mixer_of(context.model, group)
        if mixer is None or any(reader.before for reader in group.consumers.values()):
            return {}
        scales: dict[str, Tensor] = {}
        with torch.no_grad():
            if role == "out_proj" and "gate" in self.places:
                scales["gate"] = s = self._scale(statistics, mixer.out_proj.weight)
                mixer.set_gate_scale(s)
                mixer.out_proj.weight.copy_(mixer.out_proj.weight.double() * s.double())
            elif role == "dt_proj" and "dt" in self.places:
                scales["dt"] = s = self._scale(statistics, mixer.dt_proj.weight)
                divide_rows(mixer.step_proj, s)
                mixer.dt_proj.weight.copy_(mixer.dt_proj.weight.double() * s.double())
            elif role == "states_proj" and "conv" in self.places:
                scales["conv"] = self._convolution(mixer, context)
            elif role == "step_proj" and {"bc", "channel"} & set(self.places):
                scales |= self._states(mixer, context)
        found = {}
        for name, s in scales.items():
            found |= {f"{name}_largest_scale": float(s.max()), f"{name}_smallest_scale": float(s.min())}
        return found

    def _scale(self, statistics: LayerStatistics, W: Tensor) -> Tensor:
        assert statistics.absmax is not None
        return smoothing(statistics.absmax, W.detach().abs().amax(0), self.alpha)

    def _convolution(self, mixer: Any, context: GroupContext) -> Tensor:
        kernels = [scan.conv1d.weight for scan in mixer.scans]  # (D, 1, k) each; all directions read one input
        largest = torch.stack([kernel.detach().abs().amax((1, 2)) for kernel in kernels]).amax(0)
        s = smoothing(_largest(mixer.scans[0], context)["conv"], largest, self.alpha)
        divide_rows(mixer.states_proj, s)
        for kernel in kernels:
            kernel.copy_(kernel.double() * s.double()[:, None, None])
        return s

    def _states(self, mixer: SelectiveScan, context: GroupContext) -> dict[str, Tensor]:
        found, seen = {}, _largest(mixer, context)
        if "channel" in self.places:
            found["channel"] = s3 = seen["channels"].clamp(min=LEAST)
            mixer.channel_scale = s3.clone()
        if "bc" in self.places:
            ratio = seen["state"].clamp(min=1e-5) / seen["readout"].clamp(min=1e-5)
            found["bc"] = s4 = ratio.sqrt().clamp(LEAST, MOST)
            divide_rows(mixer.B_proj, s4)
            divide_rows(mixer.C_proj, 1.0 / s4.double())
        return found


@dataclass(frozen=True)
class StateHadamard:
    """Rotations at run time: of the output layer's inputs (R2) and of the states' N axis before the product (R4).

    Parameters
    ----------
    out : bool, default True
    state : bool, default True
    inputs : bool, default False
        Also in front of the layers that make time step, B and C (R6, which the paper's recipe leaves out).
    random_state : int, default 0
        For widths without a Hadamard matrix, which get a random rotation.
    """

    out: bool = True
    state: bool = True
    inputs: bool = False
    random_state: int = 0

    needs = frozenset()

    def apply(self, group: Group, statistics: LayerStatistics, context: GroupContext) -> Mapping[str, Any]:
        """Rotate one group of a Mamba block; see :class:`~skerry.quant.parts.Transform`."""
        mixer, role = mixer_of(context.model, group)
        if mixer is None:
            return {}
        found: dict[str, Any] = {}
        if self.state and role == "step_proj":
            mixer.rotate_state(self._rotation(mixer.A_log.shape[1]))
            found["states"] = mixer.A_log.shape[1]
        if (self.out and role == "out_proj") or (self.inputs and role == "step_proj"):
            change = self._rotation(group.width)
            weights = {n: change(layer.weight.detach().double()) for n, layer in group.consumers.items()}
            group.transform_input(change, weights)
            found["width"] = group.width
        return found

    def _rotation(self, width: int) -> BlockRotation:
        matrix = None
        if not has_hadamard(width):
            matrix = rotation_matrix(width, random_state=self.random_state, dtype=torch.float64)
        return BlockRotation(width, matrix)


def smoothing(activation: Tensor, weight: Tensor, alpha: float = 0.5) -> Tensor:
    """Return ``activation^alpha / weight^(1 - alpha)``, at least 0.01 (MambaQuant's bounds), float32.

    Parameters
    ----------
    activation, weight : Tensor of shape (channels,)
        Largest absolute values.
    alpha : float, default 0.5

    Examples
    --------
    >>> smoothing(torch.tensor([4.0, 0.0]), torch.tensor([1.0, 1.0])).tolist()
    [2.0, 0.009999999776482582]
    """
    scale = activation.float() ** alpha / weight.float().clamp(min=1e-5) ** (1.0 - alpha)
    return scale.clamp(min=LEAST)


def mixer_of(model: nn.Module, group: Group) -> tuple[Any, str]:
    """Return the part of a Mamba mixer that holds a group, and the name of the group's first layer in it.

    The part is a :class:`SelectiveScan`, a :class:`GatedOutput`, or both; None for layers of other models.
    """
    path, _, name = next(iter(group.consumers)).rpartition(".")
    mixer = model.get_submodule(path) if path else None
    return (mixer if isinstance(mixer, (SelectiveScan, GatedOutput)) else None), name


@contextmanager
def listening(mixer: SelectiveScan, seen: dict[str, Tensor]) -> Iterator[None]:
    """Gather the largest absolute values of the convolution's inputs, the states (both axes) and C into ``seen``."""

    def keep(name: str, values: Tensor) -> None:
        seen[name] = values if name not in seen else torch.maximum(seen[name], values)

    def listener(what: str, x: Tensor) -> None:
        size = x.detach().abs()
        if what == "state":
            keep("channels", size.amax((0, 1, 3)))
        keep(what, size.flatten(0, -2).amax(0))

    kept, mixer.listener = mixer.listener, listener
    try:
        yield
    finally:
        mixer.listener = kept


def _largest(mixer: SelectiveScan, context: GroupContext) -> dict[str, Tensor]:
    """Run the mixer on the calls that the probe recorded."""
    seen: dict[str, Tensor] = {}
    with listening(mixer, seen):
        context.probe.outputs()
    return seen
