"""A census of the inputs of linear layers: loud channels, and tokens that carry massive values.

"Quantization meets dLLMs" (arXiv 2508.14896) tells two kinds of outliers apart: normal ones, channels that are loud on
every token, and massive ones, single values of a few tokens that dwarf all others. The thresholds here are for models
of any size: 10 times the median channel, 50 times the median token.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from skerry.quant.calibration import following_mask, live, run_model

__all__ = ["InputCensus", "input_census"]


@dataclass(frozen=True)
class InputCensus:
    """What one linear layer reads.

    Attributes
    ----------
    layer : str
    max : float
        Largest absolute value.
    p99_9 : float
        99.9th percentile of absolute values.
    median_channel_max : float
        Median over channels of the largest value.
    median_token_max : float
        Median over tokens of the largest value.
    n_normal_channels : int
        Channels whose largest value exceeds 10 times the median channel's.
    n_massive_tokens : int
        Tokens with a value above 50 times the median token's largest.
    tokens, channels : int
    """

    layer: str
    max: float
    p99_9: float
    median_channel_max: float
    median_token_max: float
    n_normal_channels: int
    n_massive_tokens: int
    tokens: int
    channels: int

    @property
    def token_ratio(self) -> float:
        """Largest value over the median token's largest: how massive the most massive token is."""
        return self.max / max(self.median_token_max, 1e-30)

    @property
    def channel_ratio(self) -> float:
        """Largest value over the median channel's largest: how loud the loudest channel is."""
        return self.max / max(self.median_channel_max, 1e-30)

    def as_row(self) -> dict[str, Any]:
        """Return the fields as plain data."""
        return asdict(self)


def input_census(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    layers: Sequence[str] | None = None,
    normal: float = 10.0,
    massive: float = 50.0,
) -> list[InputCensus]:
    """Count outliers at the input of every linear layer, padding left out.

    Memory holds the inputs of all batches of one layer at a time.

    Parameters
    ----------
    model : Module
    batches : iterable of Tensor, tuple or mapping
        For ``model(batch)`` or ``model(**batch)``.
    layers : sequence of str, optional
        Names of linear layers; all by default.
    normal, massive : float
        The thresholds, times the median channel and the median token.

    Returns
    -------
    list of InputCensus
        In the model's order; layers that no token reached are left out.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(16, 4))
    >>> x = torch.ones(100, 16)
    >>> x[:, 3], x[7, 5] = 20.0, 2000.0
    >>> found = input_census(model, [x])[0]
    >>> found.n_normal_channels, found.n_massive_tokens
    (2, 1)
    """
    batches = list(batches)
    names = [n for n, m in model.named_modules() if isinstance(m, nn.Linear)] if layers is None else list(layers)
    found = []
    for name in names:
        seen: list[Tensor] = []
        with following_mask(model) as mask:
            handle = model.get_submodule(name).register_forward_pre_hook(
                lambda module, given, seen=seen: seen.append(live(given[0].detach().float(), mask()).flatten(0, -2))
            )
            try:
                for batch in batches:
                    run_model(model, batch)
            finally:
                handle.remove()
        if seen:
            found.append(_count(name, torch.cat(seen).abs(), normal, massive))
    return found


def _count(name: str, size: Tensor, normal: float, massive: float) -> InputCensus:
    channel, token = size.amax(0), size.amax(1)
    median_channel, median_token = float(channel.median()), float(token.median())
    rank = max(1, round(0.999 * size.numel()))
    return InputCensus(
        layer=name,
        max=float(channel.max()),
        p99_9=float(size.flatten().kthvalue(rank).values),
        median_channel_max=median_channel,
        median_token_max=median_token,
        n_normal_channels=int((channel > normal * median_channel).sum()),
        n_massive_tokens=int((token > massive * median_token).sum()),
        tokens=len(token),
        channels=len(channel),
    )
