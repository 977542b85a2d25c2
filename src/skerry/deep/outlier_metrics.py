"""How strong the outliers of a network's activations are: every definition under its own name, so that none are mixed.

Four kurtoses are in use. ``excess_kurtosis`` is that of "Outlier-Safe Pre-Training" (arXiv 2506.19697): per token, less
the 3 of a Gaussian. ``sequence_kurtosis`` and ``infinity_norm`` are those of "Quantizable Transformers"
(arXiv 2306.12929): per sequence, and 3 for a Gaussian. ``feature_kurtosis`` and ``max_median_ratio`` compare channels
(He et al., arXiv 2405.19279). ``sink_mass`` and ``value_drain`` tell whether attention is parked on the first token.
All compute in float32 or wider and take no gradient.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from skerry.core.errors import ParameterError

__all__ = [
    "channel_rms",
    "excess_kurtosis",
    "feature_kurtosis",
    "gaussian_floor",
    "infinity_norm",
    "is_massive",
    "max_median_ratio",
    "max_to_median",
    "peak",
    "sequence_kurtosis",
    "sink_mass",
    "value_drain",
]

FIRST_QUERY = 8  # sinks are read off queries that have at least this many keys before them
# Mean over rows of N(0, 1) of the relu'd excess kurtosis: simulated, 20 million numbers or 60,000 rows a width.
_FLOORS = {
    16: 0.302,
    32: 0.2225,
    64: 0.1795,
    128: 0.139,
    256: 0.1055,
    512: 0.0776,
    1024: 0.0571,
    2048: 0.0418,
    4096: 0.0303,
    8192: 0.0222,
}


def _wide(x: Tensor) -> Tensor:
    x = x.detach()
    return x.float() if x.dtype.itemsize < 4 or not x.dtype.is_floating_point else x


@torch.no_grad()
def excess_kurtosis(hidden: Tensor) -> Tensor:
    """Return ``relu(mean_j x_j^4 / std(x)^4 - 3)`` of every token over its channels (Outlier-Safe Pre-Training).

    The fourth moment is not centred and the standard deviation is unbiased: the released code's definition. Noise alone
    gives :func:`gaussian_floor`, not 0.

    Parameters
    ----------
    hidden : Tensor of shape (..., d)

    Returns
    -------
    Tensor of shape (...)
        Take the mean over tokens, then over layers. A token without spread gives 0.

    Examples
    --------
    >>> excess_kurtosis(torch.tensor([[1.0, 2, 3, 40], [1, -2, 2, -1]])).mean().item()
    0.9465...
    """
    x = _wide(hidden)
    spread = x.std(-1)
    ratio = x.pow(4).mean(-1) / spread.pow(4)
    return torch.where(spread > 0, (ratio - 3).relu(), 0.0)


def gaussian_floor(d: int) -> float:
    """Return what :func:`excess_kurtosis` gives on Gaussian noise of width ``d``: print it beside every value.

    Parameters
    ----------
    d : int
        At least 16; widths between those of the table are interpolated on log-log axes.

    Raises
    ------
    ParameterError
        For a smaller width.

    Examples
    --------
    >>> round(gaussian_floor(2048), 2)  # the 0.04 of the paper's outlier-free model
    0.04
    """
    if d < 16:
        raise ParameterError(f"the floor is tabulated for 16 channels or more, not {d}")
    widths = sorted(_FLOORS)
    high = next((w for w in widths if w >= d), widths[-1])
    low = widths[max(0, widths.index(high) - 1)]
    if d == high or low == high:
        return _FLOORS[high] * (math.sqrt(high / d) if d > high else 1.0)
    if d > high:
        return _FLOORS[high] * math.sqrt(high / d)  # the spread of a fourth moment over d values
    share = math.log(d / low) / math.log(high / low)
    return math.exp((1 - share) * math.log(_FLOORS[low]) + share * math.log(_FLOORS[high]))


@torch.no_grad()
def sequence_kurtosis(x: Tensor) -> Tensor:
    """Return ``mean (x - mu)^4 / (s^4 + 1e-6)`` of each flattened sequence; a Gaussian gives 3.

    Parameters
    ----------
    x : Tensor of shape (B, ...)
        One recorded tensor; ``s`` is the unbiased standard deviation.

    Returns
    -------
    Tensor of shape (B,)
        Take the mean over sequences, then over recorded tensors.

    Examples
    --------
    >>> sequence_kurtosis(torch.tensor([[1.0, 2, 3, 4, 100]])).item()
    2.0778...
    """
    x = _wide(x).flatten(1)
    centred = x - x.mean(1, keepdim=True)
    return centred.pow(4).mean(1) / (x.std(1).pow(4) + 1e-6)


@torch.no_grad()
def infinity_norm(x: Tensor) -> Tensor:
    """Return the largest absolute value of each sequence, (B,) for ``x`` (B, ...); take the mean, then the maximum.

    Examples
    --------
    >>> infinity_norm(torch.tensor([[1.0, -3.0], [2.0, 0.0]]))
    tensor([3., 2.])
    """
    return _wide(x).flatten(1).abs().amax(1)


@torch.no_grad()
def channel_rms(x: Tensor) -> Tensor:
    """Return the root mean square of every channel over all tokens, (d,) for ``x`` (..., d)."""
    return _wide(x).flatten(0, -2).square().mean(0).sqrt()


def feature_kurtosis(rms: Tensor) -> float:
    """Return ``mean_j s_j^4 / (mean_j s_j^2)^2``, from 1 (equal channels) to d (one channel); take the largest layer.

    Parameters
    ----------
    rms : Tensor of shape (d,)
        See :func:`channel_rms`.

    Examples
    --------
    >>> feature_kurtosis(torch.tensor([1.0, 1, 1, 1])), feature_kurtosis(torch.tensor([0.0, 0, 0, 9]))
    (1.0, 4.0)
    """
    s = rms.double()
    return float(s.pow(4).mean() / s.square().mean().square().clamp_min(1e-300))


def max_median_ratio(rms: Tensor) -> float:
    """Return ``max_j s_j / median_j s_j`` of the channels' root mean squares (MMR); take the largest layer.

    Examples
    --------
    >>> max_median_ratio(torch.tensor([1.0, 2, 20]))
    10.0
    """
    s = rms.double()
    return float(s.max() / s.median().clamp_min(1e-300))


@torch.no_grad()
def peak(x: Tensor) -> float:
    """Return the largest absolute value of a batch; the laboratory takes 16 sequences, and the mean over layers."""
    return float(_wide(x).abs().max())


@torch.no_grad()
def max_to_median(x: Tensor) -> float:
    """Return the largest absolute value of one layer over the median absolute value.

    Examples
    --------
    >>> max_to_median(torch.tensor([1.0, -2.0, 8.0]))
    4.0
    """
    size = _wide(x).abs()
    return float(size.max() / size.median().clamp_min(1e-30))


def is_massive(x: Tensor, ratio: float = 1000.0, absolute: float = 100.0) -> bool:
    """Return whether a layer holds a massive activation: above 1000 medians and above 100 (Sun et al., 2402.17762)."""
    return peak(x) > absolute and max_to_median(x) > ratio


@torch.no_grad()
def sink_mass(weights: Tensor, first_query: int = FIRST_QUERY) -> Tensor:
    """Return the attention probability on key 0 of each head, averaged over sequences and later queries.

    Parameters
    ----------
    weights : Tensor of shape (B, H, T, T)
    first_query : int, default 8
        Queries before it are left out: with few keys, mass on the first means nothing.

    Returns
    -------
    Tensor of shape (H,)

    Raises
    ------
    ParameterError
        If no query is left.

    Examples
    --------
    >>> sink_mass(torch.full((1, 2, 10, 10), 0.1))
    tensor([0.1000, 0.1000])
    """
    if weights.shape[-2] <= first_query:
        raise ParameterError(f"sequences of {weights.shape[-2]} have no query from {first_query} on: give longer ones")
    return _wide(weights)[:, :, first_query:, 0].mean((0, 2))


@torch.no_grad()
def value_drain(values: Tensor) -> float:
    """Return the norm of the first token's value vector over the mean norm of the others; take the smallest layer.

    Parameters
    ----------
    values : Tensor of shape (B, T, c)
        What the value projection returns, all heads together.

    Examples
    --------
    >>> value_drain(torch.tensor([[[0.5], [4.0], [12.0]]]))
    0.0625
    """
    norms = torch.linalg.vector_norm(_wide(values), dim=-1)
    return float(norms[:, 0].mean() / norms[:, 1:].mean().clamp_min(1e-30))
