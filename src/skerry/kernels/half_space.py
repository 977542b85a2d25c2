"""Streaming half-space trees: look up and count masses, one step after another."""

from __future__ import annotations

import numpy as np

from skerry.kernels.compiled import njit

__all__ = ["grow_half_spaces", "stream_masses"]


@njit(cache=True, nogil=True)
def grow_half_spaces(low, high, draws):
    """Halve a work range along random columns.

    Parameters
    ----------
    low, high : (trees, d) float64, the range of each tree
    draws : (trees, 2^depth - 1) int64 in [0, d), the column of each node

    Returns
    -------
    (trees, 2^depth - 1) float64, where each node halves its column
    """
    n_trees, n_nodes = draws.shape
    d = low.shape[1]
    split = np.empty((n_trees, n_nodes))
    for t in range(n_trees):
        lows, highs = np.empty((2 * n_nodes + 1, d)), np.empty((2 * n_nodes + 1, d))
        lows[0], highs[0] = low[t], high[t]
        for node in range(n_nodes):
            j = draws[t, node]
            middle = 0.5 * (lows[node, j] + highs[node, j])
            split[t, node] = middle
            left, right = 2 * node + 1, 2 * node + 2
            lows[left], highs[left] = lows[node], highs[node]
            lows[right], highs[right] = lows[node], highs[node]
            highs[left, j] = middle
            lows[right, j] = middle
    return split


@njit(cache=True, nogil=True)
def stream_masses(X, column, split, reference, latest, seen, window, limit):
    """Score each row by the masses of ``reference``, then count it in ``latest``; every ``window`` rows they swap.

    A row goes down each tree until a leaf or a node whose reference mass is at most ``limit``, and takes mass x
    2^depth there. ``reference`` and ``latest`` (trees, 2^(depth + 1) - 1) and ``seen`` (1,) are changed in place.

    Returns
    -------
    (n,) float64, the mean over trees of mass x 2^depth; small in thin places
    """
    n = X.shape[0]
    n_trees, n_inner = column.shape
    out = np.zeros(n)
    for i in range(n):
        total = 0.0
        for t in range(n_trees):
            node, weight, found = 0, 1.0, False
            while True:
                if not found and (reference[t, node] <= limit or node >= n_inner):
                    total += reference[t, node] * weight
                    found = True
                latest[t, node] += 1.0
                if node >= n_inner:
                    break
                node = 2 * node + (1 if X[i, column[t, node]] < split[t, node] else 2)
                weight *= 2.0
        out[i] = total / n_trees
        seen[0] += 1
        if seen[0] == window:
            for t in range(n_trees):
                for node in range(latest.shape[1]):
                    reference[t, node] = latest[t, node]
                    latest[t, node] = 0.0
            seen[0] = 0
    return out
