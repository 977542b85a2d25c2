"""Two other ways for an attention head to do nothing, as controls beside clipped softmax and gates.

Both go into the ``softmax`` argument of :class:`skerry.train.nn.GatedAttention`. One more term in the denominator lets
the whole row become small (Miller, "Attention Is Off By One", 2023); ReLU gives zeros without any competition between
keys (Wortsman et al., "Replacing softmax with ReLU in Vision Transformers", arXiv 2309.08586).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from skerry.core.errors import ParameterError

__all__ = ["ReLUWeights", "SoftmaxPlusOne"]


class SoftmaxPlusOne(nn.Module):
    """``exp(s_i) / (1 + sum_j exp(s_j))``: softmax with one more key, whose logit and value are zero.

    Parameters
    ----------
    dim : int, default -1
        The axis of the keys.

    Examples
    --------
    >>> import torch
    >>> SoftmaxPlusOne()(torch.zeros(3))
    tensor([0.2500, 0.2500, 0.2500])
    """

    def __init__(self, dim: int = -1) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, scores: Tensor) -> Tensor:
        """Return weights of the shape and dtype of ``scores``, computed in float32 at least; rows sum to below 1."""
        x = scores.float() if scores.dtype.itemsize < 4 else scores
        top = x.detach().amax(self.dim, keepdim=True).clamp_min(0.0)  # the further key has the logit 0
        e = torch.exp(x - top)
        return (e / (e.sum(self.dim, keepdim=True) + torch.exp(-top))).to(scores.dtype)


class ReLUWeights(nn.Module):
    """``relu(s_i) / T``: no normalisation over the keys, so no sink.

    Parameters
    ----------
    seq_len : int, optional
        T, the keys in training. Default: the keys of each call.
    dim : int, default -1
        The axis of the keys.

    Examples
    --------
    >>> import torch
    >>> ReLUWeights()(torch.tensor([-1.0, 2.0]))
    tensor([0., 1.])
    """

    def __init__(self, seq_len: int | None = None, dim: int = -1) -> None:
        super().__init__()
        if seq_len is not None and seq_len < 1:
            raise ParameterError(f"seq_len is {seq_len}: give the number of keys in training, 1 or more")
        self.seq_len, self.dim = seq_len, dim

    def forward(self, scores: Tensor) -> Tensor:
        """Return weights of the shape and dtype of ``scores``."""
        return torch.relu(scores) / (self.seq_len or scores.shape[self.dim])

    def extra_repr(self) -> str:
        """Return the arguments."""
        return f"seq_len={self.seq_len}, dim={self.dim}"
