"""Softmax stretched beyond [0, 1] and clipped back: a head can give exact zeros, and exact zeros carry no gradient.

Bondarenko, Nagel and Blankevoort, "Quantizable Transformers: Removing Outliers by Helping Attention Heads Do Nothing",
NeurIPS 2023 (arXiv 2306.12929), section 4.1. A head that wants to leave a token alone must otherwise push its logits
apart without end, and the outliers of the residual stream are what creates that gap.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from skerry.core.errors import ParameterError

__all__ = ["ClippedSoftmax", "clipped_softmax"]


def _stretch(alpha: float | None, gamma: float | None, zeta: float, n_keys: int) -> float:
    """Return gamma = -alpha / T, or gamma as it was given."""
    if (alpha is None) == (gamma is None):
        raise ParameterError(f"give alpha (gamma = -alpha / seq_len) or gamma, one of them: got {alpha=}, {gamma=}")
    if gamma is None:
        gamma = -alpha / n_keys
    if gamma > 0 or zeta < 1:
        raise ParameterError(f"the stretch must hold [0, 1]: gamma <= 0 <= 1 <= zeta, not {gamma=}, {zeta=}")
    return gamma


def clipped_softmax(
    scores: Tensor,
    dim: int = -1,
    *,
    alpha: float | None = None,
    seq_len: int | None = None,
    gamma: float | None = None,
    zeta: float = 1.0,
) -> Tensor:
    """Return ``clip((zeta - gamma) * softmax(scores) + gamma, 0, 1)`` along ``dim`` (equation 4 of the paper).

    Rows need not sum to one: to give them their sum back would undo the method. Every probability of at most
    ``-gamma / (zeta - gamma)`` becomes an exact zero without gradient; elsewhere the gradient is that of softmax times
    ``zeta - gamma``.

    Parameters
    ----------
    scores : Tensor
        Logits, masks already added; ``-inf`` marks a masked key. A row in which every key is masked gives zeros.
    dim : int, default -1
        The axis of the keys.
    alpha : float, optional
        Sets ``gamma = -alpha / seq_len``; 2 to 4 for encoders of some hundred tokens (3.2 in the paper's BERT), 12 in
        its OPT, where the method does not help. Uniform attention becomes zero when ``alpha > 1 / (1 - 1 / T)``.
    seq_len : int, optional
        The number of keys in *training*, also when the model decodes shorter contexts. Default: the keys of
        ``scores``.
    gamma : float, optional
        The lower end itself, at most 0; give this or ``alpha``.
    zeta : float, default 1.0
        The upper end, at least 1.

    Returns
    -------
    Tensor
        Same shape and dtype as ``scores``, in [0, 1]; computed in float32 at least.

    Raises
    ------
    ParameterError
        If not exactly one of ``alpha`` and ``gamma`` is given, or if the stretch does not hold [0, 1].

    Examples
    --------
    >>> import torch
    >>> clipped_softmax(torch.arange(4.0), alpha=1)
    tensor([0.0000, 0.0000, 0.0461, 0.5549])
    """
    gamma = _stretch(alpha, gamma, zeta, scores.shape[dim] if seq_len is None else seq_len)
    x = scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores
    # softmax over nothing but -inf is 0 / 0; such rows are computed on zeros and set to zero, so no gradient is NaN
    nothing = x.amax(dim, keepdim=True) == -torch.inf
    p = x.masked_fill(nothing, 0.0).softmax(dim)
    p = ((zeta - gamma) * p + gamma).clamp(0.0, 1.0)
    return p.masked_fill(nothing, 0.0).to(scores.dtype)


class ClippedSoftmax(nn.Module):
    """:func:`clipped_softmax` as a module, for the ``softmax`` argument of :class:`skerry.train.nn.GatedAttention`.

    Use it in encoders (BERT, ViT) that will be quantized; for causal language models the gates work and the clip does
    not, as the paper's OPT rows say.

    Parameters
    ----------
    alpha, gamma, zeta, dim
        As in :func:`clipped_softmax`; without ``alpha`` and ``gamma``, ``alpha`` is 3.2.
    seq_len : int, optional
        Training sequence length. Default: the number of keys of each call, right only where it never changes.

    Examples
    --------
    >>> import torch
    >>> ClippedSoftmax(alpha=2, seq_len=4)(torch.arange(4.0))
    tensor([0.0000, 0.0000, 0.0000, 0.4659])
    """

    def __init__(
        self,
        alpha: float | None = None,
        seq_len: int | None = None,
        gamma: float | None = None,
        zeta: float = 1.0,
        dim: int = -1,
    ) -> None:
        super().__init__()
        if alpha is None and gamma is None:
            alpha = 3.2
        if seq_len is not None and seq_len < 1:
            raise ParameterError(f"seq_len is {seq_len}: give the number of keys in training, 1 or more")
        _stretch(alpha, gamma, zeta, seq_len or 1)
        self.alpha, self.seq_len, self.gamma, self.zeta, self.dim = alpha, seq_len, gamma, zeta, dim

    def forward(self, scores: Tensor) -> Tensor:
        """Return clipped probabilities of the shape of ``scores``."""
        return clipped_softmax(
            scores, self.dim, alpha=self.alpha, seq_len=self.seq_len, gamma=self.gamma, zeta=self.zeta
        )

    def extra_repr(self) -> str:
        """Return the arguments that differ between models."""
        low = f"gamma={self.gamma}" if self.alpha is None else f"alpha={self.alpha}, seq_len={self.seq_len}"
        return f"{low}, zeta={self.zeta}, dim={self.dim}"
