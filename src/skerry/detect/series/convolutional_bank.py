"""A fixed bank of random dilated convolutions: what a moment looks like in context, without training or download."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["ConvolutionalBank"]

LENGTHS, REACH = (7, 9, 11), 63  # taps of a kernel, and the steps it may span


class ConvolutionalBank:
    """``tanh(conv(x / mean |x|) + b)`` for zero-mean kernels of unit length.

    Parameters
    ----------
    n_kernels : int, default 128
    seed : int, default 0
        The same seed gives the same bank on every machine.

    Attributes
    ----------
    weights : ndarray of shape (n_kernels, 11)
        Shorter kernels are padded with zeros at their end.
    dilations, lengths : ndarray of shape (n_kernels,), int64
    biases : ndarray of shape (n_kernels,)

    Examples
    --------
    >>> ConvolutionalBank(4).embed(np.sin(np.arange(50.0))[None]).shape
    (1, 50, 4)
    """

    centers = False  # whether its embeddings share a direction that should be taken off

    def __init__(self, n_kernels: int = 128, seed: int = 0) -> None:
        rng = np.random.RandomState(seed)
        self.lengths = rng.choice(LENGTHS, size=n_kernels).astype(np.int64)
        self.weights = np.zeros((n_kernels, max(LENGTHS)))
        self.dilations = np.empty(n_kernels, dtype=np.int64)
        for i, length in enumerate(self.lengths):
            w = rng.normal(size=length)
            w -= w.mean()
            self.weights[i, :length] = w / np.linalg.norm(w)
            self.dilations[i] = int(2.0 ** rng.uniform(0.0, np.log2((REACH - 1) / (length - 1))))
        self.biases = rng.normal(scale=0.5, size=n_kernels)

    def embed(self, windows: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return (B, L, n_kernels) for windows (B, L) without missing values; each window has its own scale."""
        scale = np.abs(windows).mean(axis=1, keepdims=True)
        x = windows / np.where(scale > 0.0, scale, 1.0)
        padded = np.pad(x, ((0, 0), (REACH // 2, REACH // 2)), mode="edge")
        n = x.shape[1]
        out = np.empty((*x.shape, len(self.lengths)))
        for i, (length, dilation) in enumerate(zip(self.lengths, self.dilations, strict=True)):
            start = REACH // 2 - (length - 1) * dilation // 2
            total = np.full(x.shape, self.biases[i])
            for tap in range(length):
                at = start + tap * dilation
                total += self.weights[i, tap] * padded[:, at : at + n]
            out[:, :, i] = total
        return np.tanh(out, out=out)
