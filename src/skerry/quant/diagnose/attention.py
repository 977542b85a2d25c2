"""Attention outliers: keys that draw probability from every query, and what a head does with it.

``C_k = sum_q mean_h P[h, q, k]``; key k is a sink if ``C_k >= 0.1 T``. With sinks s an output is
``S_q y_rest + b_q``: ``S_q = 1 - sum_s p_qs`` scales what the other keys give, ``b_q = sum_s p_qs v_s``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

__all__ = ["AttentionLayer", "AttentionWatch", "sink_decomposition"]


def sink_decomposition(P: Tensor, V: Tensor, sinks: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Split attention outputs into what the sinks give and the rest.

    Parameters
    ----------
    P : Tensor of shape (..., queries, keys)
        Probabilities; rows sum to 1.
    V : Tensor of shape (..., keys, channels)
    sinks : sequence of int

    Returns
    -------
    S : Tensor of shape (..., queries)
    y_rest : Tensor of shape (..., queries, channels)
        Attention over the other keys, renormalised; 0 where nothing is left for them.
    b : Tensor of shape (..., queries, channels)
        ``P @ V = S[..., None] * y_rest + b``.

    Examples
    --------
    >>> P = torch.tensor([[0.75, 0.25]])
    >>> S, rest, b = sink_decomposition(P, torch.tensor([[0.0], [8.0]]), [0])
    >>> S.item(), rest.item(), b.item()
    (0.25, 8.0, 0.0)
    """
    chosen = torch.zeros(P.shape[-1], dtype=torch.bool, device=P.device)
    chosen[list(sinks)] = True
    b = P[..., chosen] @ V[..., chosen, :]
    rest = P[..., ~chosen]
    S = rest.sum(-1)
    y_rest = rest @ V[..., ~chosen, :] / S.clamp(min=1e-30)[..., None]
    return S, torch.where((S > 0)[..., None], y_rest, torch.zeros_like(y_rest)), b


@dataclass
class AttentionLayer:
    """One attention layer, averaged over sequences.

    Attributes
    ----------
    name : str
    received : Tensor of shape (keys,)
        ``C_k``; sums to the number of queries.
    sinks : tuple of int
    head_share : tuple of float
        Of every head, the share of all probability that goes to sinks.
    scale_mean, scale_std : tuple of float
        Mean and standard deviation over queries of ``S`` for every head.
    drain : float
        Mean norm of the sinks' values over the mean norm of all; NaN without sinks or values.
    """

    name: str
    received: Tensor = field(default_factory=lambda: torch.zeros(0))
    sinks: tuple[int, ...] = ()
    head_share: tuple[float, ...] = ()
    scale_mean: tuple[float, ...] = ()
    scale_std: tuple[float, ...] = ()
    drain: float = float("nan")


class AttentionWatch:
    """Takes in probabilities and values of attention layers; sequences of one length.

    Parameters
    ----------
    fraction : float
        A sink receives at least this share of the queries' number.
    """

    def __init__(self, fraction: float) -> None:
        self.fraction = fraction
        self._received: dict[str, Tensor] = {}
        self._count: dict[str, int] = {}
        self._heads: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        self._norms: dict[str, Tensor] = {}
        self.layers: dict[str, AttentionLayer] = {}

    def measure(self, name: str, P: Tensor, V: Tensor | None) -> None:
        """First pass: what every key receives."""
        P = P.detach().float()
        if name in self._received and self._received[name].shape[0] != P.shape[-1]:
            return  # another length: its keys are other places
        received = P.mean(1).sum(1).sum(0).double()
        self._received[name] = self._received.get(name, 0.0) + received
        self._count[name] = self._count.get(name, 0) + len(P)

    def settle(self) -> None:
        """Between the passes: name the sinks."""
        for name, total in self._received.items():
            received = total / self._count[name]
            limit = self.fraction * len(received)
            sinks = tuple((received >= limit).nonzero().flatten().tolist())
            self.layers[name] = AttentionLayer(name, received.float(), sinks)

    def share(self, name: str, P: Tensor, V: Tensor | None) -> None:
        """Second pass: what heads give to the sinks, and how that depends on the query."""
        layer = self.layers.get(name)
        P = P.detach().float()
        if layer is None or not layer.sinks or P.shape[-1] != len(layer.received):
            return
        S = 1.0 - P[..., list(layer.sinks)].sum(-1)  # (B, H, T)
        after = S[..., max(layer.sinks) + 1 :] if max(layer.sinks) + 1 < S.shape[-1] else S
        sums = (after.sum((0, 2)).double(), after.square().sum((0, 2)).double())
        count = torch.full_like(sums[0], after.shape[0] * after.shape[2])
        kept = self._heads.get(name)
        self._heads[name] = (
            (sums[0], sums[1], count) if kept is None else (kept[0] + sums[0], kept[1] + sums[1], kept[2] + count)
        )
        if V is not None:
            norms = V.detach().float().norm(dim=-1)
            norms = norms if norms.ndim == 2 else norms.mean(1)
            pair = torch.stack([norms[:, list(layer.sinks)].mean(), norms.mean()]).double()
            self._norms[name] = self._norms.get(name, torch.zeros(2, dtype=torch.float64)) + pair

    def report(self) -> list[AttentionLayer]:
        """Return the layers."""
        for name, (one, two, count) in self._heads.items():
            layer = self.layers[name]
            mean = one / count
            layer.scale_mean = tuple(mean.tolist())
            layer.scale_std = tuple((two / count - mean**2).clamp(min=0).sqrt().tolist())
            layer.head_share = tuple((1.0 - mean).tolist())
            if name in self._norms:
                own, every = self._norms[name].tolist()
                layer.drain = own / every if every > 0 else float("nan")
        return list(self.layers.values())
