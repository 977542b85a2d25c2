"""What is learned about a layer's inputs while calibration batches stream by; bounded memory, mergeable.

One pass computes every statistic that a recipe asks for. The result does not depend on how the tokens were cut into
batches, up to rounding; sums run in float64.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from skerry.core.errors import ModelError, ParameterError

__all__ = ["LayerStatistics", "StatisticsCollector"]

KNOWN = frozenset({"gram", "range", "absmax", "mean_abs", "mid_range", "sample", "covariance"})
SAMPLE_TOKENS = 4096
CHUNK = 4096  # tokens of one product


@dataclass
class LayerStatistics:
    """Statistics of inputs X (tokens, in); a field is None unless it was asked for.

    Attributes
    ----------
    tokens : int
    gram : Tensor of shape (in, in), float64, optional
        ``X^T X``, not divided by the tokens.
    low, high, absmax, mean_abs : Tensor of shape (in,), float32, optional
        Minimum, maximum, largest and mean absolute value of every channel.
    mid_range : Tensor of shape (in,), float32, optional
        Mean over calibration batches' sequences of (max + min) / 2.
    mean : Tensor of shape (in,), float64, optional
        With ``gram`` or ``covariance``.
    sample : Tensor of shape (<= 4096, in), float32, optional
        The first tokens seen.
    """

    tokens: int = 0
    gram: Tensor | None = None
    low: Tensor | None = None
    high: Tensor | None = None
    absmax: Tensor | None = None
    mean_abs: Tensor | None = None
    mid_range: Tensor | None = None
    mean: Tensor | None = None
    sample: Tensor | None = None

    @property
    def covariance(self) -> Tensor:
        """Covariance (in, in) of the inputs, float64, divided by tokens - 1."""
        if self.gram is None or self.mean is None or self.tokens < 2:
            raise ModelError("a covariance needs the 'gram' statistic and at least two tokens")
        return (self.gram - self.tokens * torch.outer(self.mean, self.mean)) / (self.tokens - 1)

    @classmethod
    def of(cls, X: Tensor, needs: Iterable[str] = KNOWN) -> LayerStatistics:
        """Return the statistics of inputs at hand, (tokens, in) or (sequences, tokens, in).

        Examples
        --------
        >>> found = LayerStatistics.of(torch.tensor([[1.0, -2.0], [3.0, 0.0]]), {"absmax"})
        >>> found.absmax.tolist(), found.tokens
        ([3.0, 2.0], 2)
        """
        collector = StatisticsCollector(needs)
        collector.update(X)
        return collector.finish()


class StatisticsCollector:
    """Gathers the named statistics over calls of :meth:`update`.

    Parameters
    ----------
    needs : iterable of str
        Of "gram", "covariance", "range", "absmax", "mean_abs", "mid_range", "sample".
    name : str
        The layer's name, for errors.

    Raises
    ------
    ParameterError
        For an unknown statistic.
    """

    def __init__(self, needs: Iterable[str], name: str = "the layer") -> None:
        self.needs = frozenset(needs)
        if unknown := self.needs - KNOWN:
            raise ParameterError(f"unknown statistics {', '.join(sorted(unknown))}; known: {', '.join(sorted(KNOWN))}")
        self.name = name
        self._tokens = 0
        self._sequences = 0
        self._sums: dict[str, Tensor] = {}
        self._sample: list[Tensor] = []

    def update(self, X: Tensor, mask: Tensor | None = None) -> None:
        """Take in inputs (tokens, in) or (sequences, tokens, in); ``mask`` (sequences, tokens) is False at padding.

        Raises
        ------
        ModelError
            If a value is not finite: the message names the layer.
        """
        X = X.detach().float()
        if X.ndim > 3:
            X = X.reshape(-1, *X.shape[-2:])
        sequences = [X] if X.ndim == 2 else list(X)
        if mask is not None:
            sequences = [x[m.bool()] for x, m in zip(sequences, mask, strict=True)]
        sequences = [x for x in sequences if len(x)]
        if not sequences:
            return
        flat = sequences[0] if len(sequences) == 1 else torch.cat(sequences)
        low, high = flat.amin(0), flat.amax(0)
        if not bool(torch.isfinite(low).all() and torch.isfinite(high).all()):
            raise ModelError(f"{self.name}: its inputs hold NaN or infinite values; the model is broken before here")
        self._tokens += len(flat)
        if self.needs & {"range", "absmax"}:
            self._fold("low", low, torch.minimum)
            self._fold("high", high, torch.maximum)
        if "mean_abs" in self.needs:
            self._fold("mean_abs", flat.abs().sum(0, dtype=torch.float64), torch.add)
        if "mid_range" in self.needs:
            middles = torch.stack([(x.amin(0) + x.amax(0)) / 2 for x in sequences])
            self._fold("mid_range", middles.sum(0, dtype=torch.float64), torch.add)
            self._sequences += len(sequences)
        if self.needs & {"gram", "covariance"}:
            self._fold("mean", flat.sum(0, dtype=torch.float64), torch.add)
            for part in flat.split(CHUNK):
                self._fold("gram", (part.T @ part).double(), torch.add)
        if "sample" in self.needs:
            self._keep(flat)

    def finish(self) -> LayerStatistics:
        """Return what was gathered.

        Raises
        ------
        ModelError
            If no token reached the layer.
        """
        if not self._tokens:
            raise ModelError(f"{self.name}: no calibration token reached this layer; is it used by the model?")
        low, high = self._sums.get("low"), self._sums.get("high")
        found = LayerStatistics(tokens=self._tokens, gram=self._sums.get("gram"))
        if low is not None and high is not None:
            found.low, found.high, found.absmax = low, high, torch.maximum(low.abs(), high.abs())
        if "mean_abs" in self._sums:
            found.mean_abs = (self._sums["mean_abs"] / self._tokens).float()
        if "mean" in self._sums:
            found.mean = self._sums["mean"] / self._tokens
        if "mid_range" in self._sums:
            found.mid_range = (self._sums["mid_range"] / self._sequences).float()
        if self._sample:
            found.sample = torch.cat(self._sample)[:SAMPLE_TOKENS]
        return found

    def _fold(self, key: str, value: Tensor, how) -> None:
        self._sums[key] = value if key not in self._sums else how(self._sums[key], value)

    def _keep(self, flat: Tensor) -> None:
        room = SAMPLE_TOKENS - sum(len(s) for s in self._sample)
        if room > 0:
            self._sample.append(flat[:room].clone())
