"""Bigram-Backcopy: text in which attention heads have nothing to do most of the time, so that sinks form in minutes.

After Guo et al., "Active-Dormant Attention Heads" (arXiv 2410.13835). The next character follows a text's bigram table,
except after one of the most frequent characters: then it repeats the character before that one. A head must look one
back on these triggers and do nothing elsewhere, and parks its attention on the first token.
"""

from __future__ import annotations

import torch
from torch import Tensor

from skerry.core.errors import DataError, ParameterError

__all__ = ["Backcopy"]


class Backcopy:
    """Batches of the task, drawn without end from a text's bigrams.

    Parameters
    ----------
    text : str
        Every character of it becomes a token; a begin-of-sequence token is added.
    n_triggers : int, default 3
        How many of the most frequent characters are triggers.
    bos : bool, default True
        Begin each sequence with the extra token. Without it there is no sink (and the same residual outliers).
    smoothing : float, default 0.01
        Added to every count of the bigram table.

    Attributes
    ----------
    vocabulary : int
        Characters and the begin-of-sequence token, which is the last one.
    triggers : Tensor of int64
    table : Tensor of float64, shape (vocabulary - 1, vocabulary - 1)
        Rows sum to 1.

    Raises
    ------
    DataError
        If the text has too few distinct characters.
    ParameterError
        If ``n_triggers`` is negative.

    Examples
    --------
    >>> task = Backcopy("to be or not to be, that is the question", n_triggers=1)
    >>> x, y = task.batch(2, 12, torch.Generator().manual_seed(0))
    >>> x.shape, bool((x[:, 1:] == y[:, :-1]).all())
    (torch.Size([2, 12]), True)
    """

    def __init__(self, text: str, n_triggers: int = 3, *, bos: bool = True, smoothing: float = 0.01) -> None:
        if n_triggers < 0:
            raise ParameterError(f"n_triggers is {n_triggers}: give 0 or more")
        alphabet = sorted(set(text))
        if len(alphabet) < max(2, n_triggers + 1):
            raise DataError(f"the text has {len(alphabet)} distinct characters: too few for {n_triggers} triggers")
        index = {c: i for i, c in enumerate(alphabet)}
        ids = torch.tensor([index[c] for c in text])
        n = len(alphabet)
        counts = torch.bincount(ids[:-1] * n + ids[1:], minlength=n * n).double().view(n, n) + smoothing
        self.alphabet, self.bos, self.vocabulary = alphabet, bos, n + 1
        self.table = counts / counts.sum(1, keepdim=True)
        start = torch.bincount(ids, minlength=n).double()
        self.triggers = start.argsort(descending=True, stable=True)[:n_triggers]
        # The last row is what follows the begin-of-sequence token: characters as frequent as in the text.
        self._cumulated = torch.cat([self.table, (start / start.sum())[None]]).cumsum(1)
        self._is_trigger = torch.zeros(n + 1, dtype=torch.bool)
        self._is_trigger[self.triggers] = True

    def batch(self, n: int, length: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return inputs and targets, int64 of shape (n, length), drawn with ``draw`` (on the CPU).

        One vectorised pass for each position; equal generators give equal batches.
        """
        u = torch.rand(length + 1, n, 1, generator=draw, dtype=torch.float64)
        tokens = torch.empty(n, length + 1, dtype=torch.long)
        last = self.vocabulary - 2
        begin = torch.full((n,), self.vocabulary - 1)
        tokens[:, 0] = begin if self.bos else torch.searchsorted(self._cumulated[begin], u[0])[:, 0].clamp_max(last)
        for t in range(1, length + 1):
            current = tokens[:, t - 1]
            drawn = torch.searchsorted(self._cumulated[current], u[t])[:, 0].clamp_max(last)
            if t >= 2:
                before = tokens[:, t - 2]
                copies = self._is_trigger[current] & (before < self.vocabulary - 1)
                drawn = torch.where(copies, before, drawn)
            tokens[:, t] = drawn
        return tokens[:, :-1], tokens[:, 1:]
