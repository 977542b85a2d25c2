"""Isolation trees in a perfect binary layout: growing, walking, attributing.

A tree of depth D is three flat arrays over 2^D - 1 inner nodes and 2^D leaves; node i has the children 2i + 1 and
2i + 2. A branch that ends early is padded with thresholds of +inf (always left), so every walk takes exactly D
steps without a branch to mispredict. Tree by tree over a block of rows, a tree's few kilobytes stay in the first
cache and the rows' independent walks overlap.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np
from numpy.typing import NDArray

from skerry.kernels.compiled import njit
from skerry.kernels.threads import in_parts

__all__ = ["attribute_paths", "average_path_length", "grow_trees", "path_lengths"]

BLOCK = 128
FEW = 8  # rows that go down the trees one by one, without a block


@njit(cache=True)
def _c(n):
    """Mean path length of an unsuccessful search among n keys (Liu et al., 2008, eq. 1)."""
    if n <= 1:
        return 0.0
    if n == 2:
        return 1.0
    return 2.0 * (math.log(n - 1.0) + 0.5772156649015329) - 2.0 * (n - 1.0) / n


def average_path_length(n: int) -> float:
    """Return c(n), the mean path length that scores are measured against.

    >>> round(average_path_length(256), 4)
    10.2448
    """
    return float(_c(n))


@njit(cache=True)
def _next(state):
    """SplitMix64: one 64-bit word; the state is an array of one word."""
    state[0] += np.uint64(0x9E3779B97F4A7C15)
    z = state[0]
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@njit(cache=True)
def _uniform(state):
    return (_next(state) >> np.uint64(11)) * (1.0 / 9007199254740992.0)


@njit(cache=True)
def _grow(sample, depth, seed, feature, threshold, leaf, mean):
    """Grow one tree on ``sample``; ``mean`` receives the mean final path length under every node."""
    n, d = sample.shape
    state = np.array([seed], dtype=np.uint64)
    order = np.arange(n)
    n_nodes = 2 ** (depth + 1) - 1
    low = np.zeros(n_nodes, dtype=np.int64)
    high = np.zeros(n_nodes, dtype=np.int64)
    path = np.full(n_nodes, -1.0)  # of an ended branch, handed down to the padded leaves
    high[0] = n
    candidates = np.arange(d)
    first_leaf = 2**depth - 1
    for node in range(n_nodes):
        level = int(math.floor(math.log2(node + 1.0)))
        size = high[node] - low[node]
        if path[node] < 0.0 and (size <= 1 or node >= first_leaf):
            path[node] = level + _c(size)
        chosen = -1
        cut = np.inf
        if path[node] < 0.0:
            left = d
            while left > 0:  # draw features until one is not constant here
                k = int(_uniform(state) * left)
                f = candidates[k]
                left -= 1
                candidates[k] = candidates[left]
                candidates[left] = f
                lo = np.inf
                hi = -np.inf
                for i in range(low[node], high[node]):
                    v = sample[order[i], f]
                    lo = min(lo, v)
                    hi = max(hi, v)
                if hi > lo:
                    chosen = f
                    cut = lo + _uniform(state) * (hi - lo)
                    if not cut < hi:  # rounding must not leave the right side empty
                        cut = lo
                    break
            if chosen < 0:  # all points coincide
                path[node] = level + _c(size)
        if node >= first_leaf:
            leaf[node - first_leaf] = path[node]
            continue
        a, b = 2 * node + 1, 2 * node + 2
        if chosen < 0:
            feature[node] = 0
            threshold[node] = np.inf
            low[a], high[a], path[a] = low[node], high[node], path[node]
            low[b], high[b], path[b] = high[node], high[node], path[node]
            continue
        feature[node] = chosen
        threshold[node] = cut
        i, j = low[node], high[node] - 1
        while i <= j:
            if sample[order[i], chosen] <= cut:
                i += 1
            else:
                order[i], order[j] = order[j], order[i]
                j -= 1
        low[a], high[a] = low[node], i
        low[b], high[b] = i, high[node]
    for node in range(n_nodes - 1, -1, -1):
        if node >= first_leaf:
            mean[node] = leaf[node - first_leaf]
            continue
        a, b = 2 * node + 1, 2 * node + 2
        na, nb = high[a] - low[a], high[b] - low[b]
        mean[node] = mean[a] if na + nb == 0 else (na * mean[a] + nb * mean[b]) / (na + nb)


@njit(cache=True, nogil=True)
def _grow_some(X, rows, depth, seeds, feature, threshold, leaf, mean, first, last):
    sample = np.empty((rows.shape[1], X.shape[1]))
    for t in range(first, last):
        for i in range(rows.shape[1]):
            for j in range(X.shape[1]):
                sample[i, j] = X[rows[t, i], j]
        _grow(sample, depth, seeds[t], feature[t], threshold[t], leaf[t], mean[t])


@njit(cache=True, nogil=True)
def _path_lengths(X, at, threshold, leaf, depth, out, first, last):
    n, d = X.shape
    n_trees, inner = at.shape
    one, two, bottom = np.uint64(1), np.uint64(2), np.uint64(inner)
    for block in range(first, last):
        start = block * BLOCK
        m = min(BLOCK, n - start)
        columns = np.zeros(d * BLOCK)
        for i in range(m):
            for j in range(d):
                columns[j * BLOCK + i] = X[start + i, j]
        node = np.zeros(BLOCK, dtype=np.uint64)
        total = np.zeros(BLOCK)
        for t in range(n_trees):
            f, c, v = at[t], threshold[t], leaf[t]
            node[:] = 0
            for _ in range(depth):
                for i in range(BLOCK):
                    k = node[i]
                    node[i] = two * k + one + np.uint64(columns[f[k] + np.uint64(i)] > c[k])
            for i in range(BLOCK):
                total[i] += v[node[i] - bottom]
        for i in range(m):
            out[start + i] = total[i] / n_trees


@njit(cache=True, nogil=True)
def _path_lengths_of_few(X, feature, threshold, leaf, depth):
    n = len(X)
    n_trees, inner = feature.shape
    out = np.empty(n)
    for i in range(n):
        total = 0.0
        for t in range(n_trees):
            node = 0
            for _ in range(depth):
                node = 2 * node + 1 + np.int64(X[i, feature[t, node]] > threshold[t, node])
            total += leaf[t, node - inner]
        out[i] = total / n_trees
    return out


@njit(cache=True, nogil=True)
def _attribute_paths(X, at, threshold, gain, depth, out, first, last):
    n, d = X.shape
    n_trees = len(at)
    one, two = np.uint64(1), np.uint64(2)
    for block in range(first, last):
        start = block * BLOCK
        m = min(BLOCK, n - start)
        columns, parts = np.zeros(d * BLOCK), np.zeros(d * BLOCK)
        for i in range(m):
            for j in range(d):
                columns[j * BLOCK + i] = X[start + i, j]
        node = np.zeros(BLOCK, dtype=np.uint64)
        for t in range(n_trees):
            f, c, g = at[t], threshold[t], gain[t]
            node[:] = 0
            for _ in range(depth):
                for i in range(BLOCK):
                    k = node[i]
                    place = f[k] + np.uint64(i)
                    child = two * k + one + np.uint64(columns[place] > c[k])
                    parts[place] += g[child]
                    node[i] = child
        for i in range(m):
            for j in range(d):
                out[start + i, j] = parts[j * BLOCK + i]


def _rows(X: NDArray) -> NDArray[np.float64]:
    return np.ascontiguousarray(X, dtype=np.float64)


def _gains(mean: NDArray) -> NDArray[np.float64]:
    """Return by how much arriving at a node shortens the mean path over all trees."""
    gain = np.zeros(mean.shape)
    gain[:, 1:] = (mean[:, (np.arange(1, mean.shape[1]) - 1) // 2] - mean[:, 1:]) / len(mean)
    return gain


def _columns(feature: NDArray) -> NDArray[np.uint64]:
    """Return where the column of each node begins in a block of rows."""
    return feature.astype(np.uint64) * np.uint64(BLOCK)


def grow_trees(X: NDArray, rows: NDArray, depth: int, seeds: NDArray) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """Grow one tree per row of ``rows`` (indices of its sample).

    Parameters
    ----------
    X : ndarray of shape (n, d)
    rows : ndarray of shape (T, psi), int64
    depth : int
    seeds : ndarray of shape (T,), uint64

    Returns
    -------
    feature : ndarray of shape (T, 2^depth - 1), int32
    threshold : ndarray of the same shape, float64
    leaf : ndarray of shape (T, 2^depth), float32
        Path lengths.
    mean : ndarray of shape (T, 2^(depth + 1) - 1), float64
        Mean path length under each node.
    """
    X, inner = _rows(X), 2**depth - 1
    feature = np.zeros((len(rows), inner), dtype=np.int32)
    threshold = np.full((len(rows), inner), np.inf)
    leaf = np.zeros((len(rows), inner + 1), dtype=np.float32)
    mean = np.zeros((len(rows), 2 * inner + 1))
    grow = partial(_grow_some, X, rows, depth, seeds, feature, threshold, leaf, mean)
    in_parts(grow, len(rows), 2 * rows.size * depth)
    return feature, threshold, leaf, mean


def path_lengths(X: NDArray, feature: NDArray, threshold: NDArray, leaf: NDArray, depth: int) -> NDArray[np.float64]:
    """Return the mean path length of each row of ``X`` (n, d), shape (n,).

    A block of rows lies transposed in the first-level cache and goes down a tree level by level, so that no row
    waits for its own last step. Unsigned indices spare the test for negative ones. A few rows, as those of a stream,
    are not worth a block or a second thread.
    """
    if len(X) <= FEW:
        return _path_lengths_of_few(_rows(X), feature, threshold, leaf, depth)
    out = np.empty(len(X))
    walk = partial(_path_lengths, _rows(X), _columns(feature), threshold, leaf, depth, out)
    in_parts(walk, -(-len(X) // BLOCK), len(X) * len(feature) * depth)
    return out


def attribute_paths(X: NDArray, feature: NDArray, threshold: NDArray, mean: NDArray, depth: int) -> NDArray[np.float64]:
    """Return by how much the splits on each feature shortened the mean path, shape (n, d).

    A step from a node to its child changes the expected path length; the change belongs to the split's feature.
    A row sums to the mean over trees of (expected path at the root - path of the row).
    """
    out = np.empty(X.shape)
    walk = partial(_attribute_paths, _rows(X), _columns(feature), threshold, _gains(mean), depth, out)
    in_parts(walk, -(-len(X) // BLOCK), len(X) * len(feature) * depth)
    return out
