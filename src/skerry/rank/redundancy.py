"""3MR: an order of features by relevance, minus redundancy with those chosen, plus relation (synergy).

Follows the greedy rule of OutRank (Škrlj & Mramor, RecSys 2023).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skerry.core.errors import ParameterError

__all__ = ["order_3mr", "unit_scale"]

_AGGREGATES = ("median", "mean", "sum")


def unit_scale(values: ArrayLike) -> NDArray[np.float64]:
    """Return ``values`` min-max scaled to [0, 1]; all zero where they do not differ."""
    values = np.asarray(values, dtype=np.float64)
    if values.size == 0:
        return values
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else np.zeros_like(values)


def order_3mr(
    names: Sequence[str],
    relevance: ArrayLike,
    redundancy: ArrayLike,
    relation: ArrayLike,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    aggregate: str = "median",
) -> list[dict[str, object]]:
    """Order features greedily; the arguments are used as they are given (scale them first).

    Parameters
    ----------
    names : sequence of str, length p
    relevance : array of shape (p,)
    redundancy, relation : array of shape (p, p)
        Of pairs, symmetric; the diagonal is not read.
    alpha, beta : float, default 1
        Weights of redundancy and of relation.
    aggregate : {"median", "mean", "sum"}, default "median"
        Over the features chosen so far.

    Returns
    -------
    list of dict
        ``feature``, ``step``, ``score``, ``relevance``, ``redundancy``, ``relation``, in the order chosen.

    Examples
    --------
    >>> red = [[0, 1, 0], [1, 0, 0], [0, 0, 0]]
    >>> steps = order_3mr(["a", "copy of a", "b"], [1, 1, 0.5], red, np.zeros((3, 3)))
    >>> [s["feature"] for s in steps]
    ['a', 'b', 'copy of a']
    """
    if aggregate not in _AGGREGATES:
        raise ParameterError(f"aggregate={aggregate!r}: use one of {', '.join(sorted(_AGGREGATES))}")
    relevance, redundancy, relation = (np.asarray(a, dtype=np.float64) for a in (relevance, redundancy, relation))
    left = np.arange(len(names))
    chosen: list[int] = []
    sums = [np.zeros(len(names)), np.zeros(len(names))]  # over those chosen; a median has no such short cut

    def together(matrix: NDArray[np.float64], total: NDArray[np.float64]) -> NDArray[np.float64]:
        if not chosen:
            return np.zeros(left.size)
        if aggregate == "median":
            return np.median(matrix[np.ix_(chosen, left)], axis=0)
        return total[left] / (len(chosen) if aggregate == "mean" else 1)

    steps = []
    while left.size:
        red, syn = together(redundancy, sums[0]), together(relation, sums[1])
        score = relevance[left] - alpha * red + beta * syn
        at = int(np.argmax(score))
        best = int(left[at])
        steps.append(
            {
                "feature": str(names[best]),
                "step": len(steps) + 1,
                "score": float(score[at]),
                "relevance": float(relevance[best]),
                "redundancy": float(red[at]),
                "relation": float(syn[at]),
            }
        )
        chosen.append(best)
        sums[0] += redundancy[best]
        sums[1] += relation[best]
        left = np.delete(left, at)
    return steps
