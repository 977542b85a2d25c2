"""What a Mamba block multiplies beside linear layers, rounded: the convolution, the states and C.

MambaQuant (arXiv 2501.13484) rounds both operands of the product ``h C``, one scale a token, and the depthwise
convolution as if it were a linear layer; the scan itself stays in floating point.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from skerry.core.errors import ModelError, ParameterError
from skerry.quant.activation import TensorStatic
from skerry.quant.architectures.mamba_block import SelectiveScan
from skerry.quant.calibration import live
from skerry.quant.statistics import LayerStatistics, StatisticsCollector

__all__ = ["PercentileStatic", "ScanOperands"]


@dataclass(frozen=True)
class PercentileStatic:
    """One scale for everything, from a quantile of the calibration values; becomes a ``TensorStatic``.

    Parameters
    ----------
    bits : int, default 8
    symmetric : bool, default False
    percentile : float in (0.5, 1], default 0.999999
        The range reaches from its mirror image, ``1 - percentile``, to it. Up to 4096 tokens are looked at.

    Raises
    ------
    ParameterError
        For a percentile out of range.

    Examples
    --------
    >>> X = torch.arange(1000.0)[:, None]
    >>> PercentileStatic(percentile=0.9).calibrated(LayerStatistics.of(X)).high
    899.0
    """

    bits: int = 8
    symmetric: bool = False
    percentile: float = 0.999999

    needs = frozenset({"sample"})

    def __post_init__(self) -> None:
        if not 0.5 < self.percentile <= 1.0:
            raise ParameterError(f"percentile must be above 0.5 and at most 1, got {self.percentile}")

    def calibrated(self, statistics: LayerStatistics) -> TensorStatic:
        """Return the quantizer with its range."""
        if statistics.sample is None:
            raise ModelError("a percentile of the inputs needs the 'sample' statistic")
        values = statistics.sample.flatten()
        rank = min(len(values), max(1, round(self.percentile * len(values))))
        low, high = -(-values).kthvalue(rank).values, values.kthvalue(rank).values
        return TensorStatic(self.bits, self.symmetric, float(low), float(high))

    def fake(self, x: Tensor) -> Tensor:
        """Refuse: it rounds only once it is calibrated."""
        raise ModelError("this static activation quantizer has not seen calibration data")


@dataclass(frozen=True)
class ScanOperands:
    """Rounds the operands of the Mamba blocks' products; other blocks are left alone.

    Parameters
    ----------
    state, readout : ActivationQuantizer or None
        Of the states (the D x N numbers of one token together) and of C.
    conv_weight : AffineGrid or None
        Of the depthwise kernels, one scale a channel. The rounded values are stored as floating point: four codes, a
        scale and a zero point would take no less.
    conv_input : ActivationQuantizer or None
    """

    state: Any = None
    readout: Any = None
    conv_weight: Any = None
    conv_input: Any = None

    @property
    def needs(self) -> frozenset[str]:
        """Statistics wanted."""
        return frozenset(getattr(self.conv_input, "needs", ()))

    def quantize(
        self, block: nn.Module, run: Callable[[int], Tensor], masks: Sequence[Tensor | None]
    ) -> Mapping[str, Any]:
        """Set the quantizers of one block, in place; return plain facts for the report (empty: no Mamba block).

        Parameters
        ----------
        block : Module
        run : callable
            Runs the block on a calibration batch.
        masks : sequence of Tensor or None
            One a batch, (sequences, tokens), false at padding.
        """
        mixers = {n: m for n, m in block.named_modules() if isinstance(m, SelectiveScan)}
        if not mixers:
            return {}
        inputs = self._statistics(mixers, run, masks)
        for name, mixer in mixers.items():
            mixer.state, mixer.readout = self.state, self.readout
            if self.conv_input is not None:
                mixer.conv_input = self.conv_input.calibrated(inputs[name])
            if self.conv_weight is not None:
                kernel = mixer.conv1d.weight
                grid = replace(self.conv_weight, group_size=-1)
                with torch.no_grad():
                    kernel.copy_(grid.quantize(kernel.squeeze(1).float()).dequantize()[:, None])
        given = {"state": self.state, "C": self.readout, "conv": self.conv_input, "kernel": self.conv_weight}
        return {f"{what}_bits": part.bits for what, part in given.items() if part is not None}

    def _statistics(
        self, mixers: Mapping[str, SelectiveScan], run: Callable[[int], Tensor], masks: Sequence[Tensor | None]
    ) -> dict[str, LayerStatistics]:
        if not self.needs:
            return {name: LayerStatistics() for name in mixers}
        current: list[Tensor | None] = [None]
        collectors = {name: StatisticsCollector(self.needs, f"{name}.conv1d") for name in mixers}
        with ExitStack() as stack:
            for name, mixer in mixers.items():
                stack.callback(setattr, mixer, "listener", mixer.listener)
                mixer.listener = _conv_inputs_to(collectors[name], current)
            for b, mask in enumerate(masks):
                current[0] = mask
                run(b)
        return {name: collector.finish() for name, collector in collectors.items()}


def _conv_inputs_to(collector: StatisticsCollector, current: list[Tensor | None]) -> Callable[[str, Tensor], None]:
    def listener(what: str, x: Tensor) -> None:
        if what == "conv":
            collector.update(live(x, current[0]))

    return listener
