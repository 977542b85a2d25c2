"""Exact k nearest neighbours with float64 distances: a kd-tree, or boxes of rows scanned in float32.

Rows that repeat are kept once with a count, so that tables full of duplicates cost no more than their
distinct
rows. In the "boxes" form the table is cut at medians into blocks of at most 256 rows; a block is skipped
when its
bounding box lies beyond the current k-th neighbour, is otherwise scanned in float32, and every row that the
float32 error bound cannot exclude is measured again in float64. The answer is therefore that of the naive
loop,
with ties broken by row number.
"""

from __future__ import annotations

import math

import numba
import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

__all__ = ["NeighbourIndex", "distinct_rows", "multiplicities"]

LEAF = 256  # rows of a box: long enough for wide vectors, short enough to prune
CHUNK = 64  # rows whose float32 distances are tested at once
EPS32 = 6e-8  # unit round-off of float32, rounded up
TREE_WORK = 24_000  # measured float32 terms per query above which the boxes beat the tree (see NeighbourIndex)


def distinct_rows(X: NDArray) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Return the distinct rows of ``X`` in order of first appearance, their counts, and each row's number.

    Parameters
    ----------
    X : ndarray of shape (n, d)

    Returns
    -------
    rows : ndarray of shape (u, d), float64
    counts : ndarray of shape (u,), int64
    inverse : ndarray of shape (n,), int64
        ``rows[inverse]`` equals ``X``.

    Examples
    --------
    >>> rows, counts, inverse = distinct_rows(np.array([[2.0], [1.0], [2.0]]))
    >>> rows.ravel().tolist(), counts.tolist(), inverse.tolist()
    ([2.0, 1.0], [2, 1], [0, 1, 0])
    """
    X = np.ascontiguousarray(X, dtype=np.float64) + 0.0  # -0.0 and 0.0 are one value
    n, d = X.shape
    bits = X.view(np.uint64)
    code = np.zeros(n, dtype=np.uint64)
    for j in range(d):  # a multiplicative hash; two different rows that share a code are merely not merged
        code = (code ^ bits[:, j] ^ (bits[:, j] >> np.uint64(29))) * np.uint64(0x9E3779B97F4A7C15)
        code ^= code >> np.uint64(32)
    order = np.argsort(code, kind="stable")
    new = np.ones(n, dtype=bool)
    same = code[order[1:]] == code[order[:-1]]
    where = np.flatnonzero(same)
    new[1:][where] = (X[order[where + 1]] != X[order[where]]).any(axis=1)
    group = np.empty(n, dtype=np.int64)
    group[order] = np.cumsum(new) - 1
    first = order[new]
    rank = np.empty(first.size, dtype=np.int64)
    rank[np.argsort(first, kind="stable")] = np.arange(first.size)
    inverse = rank[group]
    return X[np.sort(first)], np.bincount(inverse, minlength=first.size).astype(np.int64), inverse


def multiplicities(distances: NDArray, counts: NDArray, k: int) -> NDArray[np.int64]:
    """Return how often each distinct neighbour stands among the k nearest rows.

    Parameters
    ----------
    distances : ndarray of shape (m, c), float64, ascending
        A first distance of 0 is the query itself in the table: one copy of it is not a neighbour.
    counts : ndarray of shape (m, c), int64
        Copies of each distinct neighbour in the table.
    k : int

    Returns
    -------
    ndarray of shape (m, c), int64
        Rows sum to k, or to the number of rows there are.
    """
    counts = counts.copy()
    if counts.shape[1]:
        counts[:, 0] -= distances[:, 0] == 0.0
    before = np.cumsum(counts, axis=1) - counts
    return np.clip(k - before, 0, counts)


class NeighbourIndex:
    """Index of distinct rows for exact nearest-neighbour queries.

    Parameters
    ----------
    rows : ndarray of shape (u, d), float64
        Preferably distinct (:func:`distinct_rows`).
    algorithm : {"auto", "tree", "boxes"}, default "auto"
        "auto" counts the float32 terms that 64 of the rows need in the boxes; where they are many, or d is
        above
        12, pruning fails and the scan wins; else the tree does. Counting, unlike timing, repeats exactly.

    Attributes
    ----------
    algorithm_ : str
        "tree" or "boxes".

    Examples
    --------
    >>> index = NeighbourIndex(np.array([[0.0], [1.0], [5.0]]))
    >>> distances, numbers = index.query(np.array([[1.5]]), 2)
    >>> distances.tolist(), numbers.tolist()
    ([[0.5, 1.5]], [[1, 0]])
    """

    def __init__(self, rows: NDArray, algorithm: str = "auto") -> None:
        rows = np.ascontiguousarray(rows, dtype=np.float64)
        self.n_rows, d = rows.shape
        self._rows = rows
        self._tree = None
        self.algorithm_ = algorithm
        if algorithm == "tree" or (algorithm == "auto" and d <= 3 and self.n_rows > LEAF):
            self._plant()
            return
        self._pack()
        if algorithm != "auto":
            return
        self.algorithm_ = "boxes"
        if d <= 12 and self.n_rows > 4 * LEAF:
            sample = rows[np.linspace(0, self.n_rows - 1, 64).astype(np.int64)]
            work = self._scan(sample, min(6, self.n_rows))[2].mean() * d
            if work < TREE_WORK:
                self._plant()

    def _plant(self) -> None:
        self._tree = cKDTree(self._rows, leafsize=16, balanced_tree=False, compact_nodes=True)
        self.algorithm_ = "tree"
        self._boxes = None

    def _pack(self) -> None:
        """Cut into blocks, set strays apart, and pack each block for the scan."""
        rows = self._rows
        leaves, strays = [], []
        for part in _cut(rows, np.arange(rows.shape[0])):
            far = _far_from_median(rows[part])  # a few strays would stretch the box over the whole table
            leaves.append(part[~far])
            strays.append(part[far])
        strays = np.concatenate(strays)
        leaves += _cut(rows, strays) if strays.size else []
        order = np.concatenate(leaves)
        starts = np.r_[0, np.cumsum([leaf.size for leaf in leaves])].astype(np.int64)
        packed = np.ascontiguousarray(rows[order])
        self._centre = rows.mean(axis=0)
        scale = float(np.abs(rows - self._centre).max())
        self._scale = scale if scale > 0.0 else 1.0
        low = np.minimum.reduceat(packed, starts[:-1], axis=0)
        high = np.maximum.reduceat(packed, starts[:-1], axis=0)
        small = np.zeros((starts.size - 1, rows.shape[1], LEAF), dtype=np.float32)
        norms = np.empty(starts.size - 1)
        for leaf in range(starts.size - 1):
            block = (packed[starts[leaf] : starts[leaf + 1]] - self._centre) / self._scale
            small[leaf, :, : block.shape[0]] = block.T
            norms[leaf] = np.sqrt((block * block).sum(axis=1).max())
        self._boxes = (packed, order.astype(np.int64), starts, low, high, small, norms)

    def _scan(self, Q: NDArray, k: int) -> tuple[NDArray, NDArray, NDArray]:
        return _scan_boxes(Q, k, self._centre, self._scale, *self._boxes)

    def query(self, Q: NDArray, k: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Return distances and row numbers of the ``min(k, u)`` nearest rows, nearest first.

        Parameters
        ----------
        Q : ndarray of shape (m, d)
        k : int

        Returns
        -------
        distances : ndarray of shape (m, min(k, u)), float64
        numbers : ndarray of shape (m, min(k, u)), int64
        """
        Q = np.ascontiguousarray(Q, dtype=np.float64)
        k = min(k, self.n_rows)
        if Q.shape[0] == 0 or k == 0:
            return np.zeros((Q.shape[0], k)), np.zeros((Q.shape[0], k), dtype=np.int64)
        if self._tree is None:
            distances, numbers, _ = self._scan(Q, k)
            return distances, numbers
        _, numbers = self._tree.query(Q, k=np.arange(1, k + 1), workers=-1)
        numbers = numbers.astype(np.int64)
        return _measure(Q, self._rows, numbers), numbers


def _cut(rows: NDArray, part: NDArray) -> list[NDArray]:
    """Cut along the most spread column, at a gap or else the median, into small blocks."""
    leaves, stack = [], [part]
    while stack:
        part = stack.pop()
        if part.size <= LEAF:
            leaves.append(np.sort(part))
            continue
        sample = rows[part[:: max(1, part.size // 2048)]]
        axis = int(np.argmax(sample.std(axis=0)))
        values = rows[part, axis]
        quantiles = np.quantile(sample[:, axis], np.linspace(0.1, 0.9, 33))
        gaps = np.diff(quantiles)
        widest = int(np.argmax(gaps))
        left = values <= 0.5 * (quantiles[widest] + quantiles[widest + 1])
        share = left.mean()
        if gaps[widest] > 4.0 * np.median(gaps) and 0.05 < share < 0.95:
            stack += [part[~left], part[left]]
        else:
            half = part.size // 2
            cut = np.argpartition(values, half)
            stack += [part[cut[half:]], part[cut[:half]]]
    return leaves


def _far_from_median(block: NDArray) -> NDArray[np.bool_]:
    """Mark at most a tenth of the rows: those over twice the usual distance from the middle."""
    gap = np.sqrt(((block - np.median(block, axis=0)) ** 2).sum(axis=1))
    return gap > max(2.0 * np.median(gap), np.quantile(gap, 0.9))


@numba.njit(cache=True, nogil=True)
def _push(dist, item, top_d, top_i, k):
    """Insert into an ascending list of length k, ordered by distance then row number."""
    at = k - 1
    while at > 0 and (top_d[at - 1] > dist or (top_d[at - 1] == dist and top_i[at - 1] > item)):
        top_d[at] = top_d[at - 1]
        top_i[at] = top_i[at - 1]
        at -= 1
    top_d[at] = dist
    top_i[at] = item


@numba.njit(cache=True, nogil=True, fastmath={"nnan", "reassoc", "nsz", "contract"})
def _block_distances(q, block, at, out):
    """Write float32 squared distances of ``q`` to CHUNK rows of a block; return the least."""
    for t in range(CHUNK):
        out[t] = np.float32(0.0)
    for j in range(q.size):
        v = q[j]
        line = block[j, at : at + CHUNK]
        for t in range(CHUNK):
            gap = line[t] - v
            out[t] += gap * gap
    least = out[0]
    for t in range(1, CHUNK):
        least = min(least, out[t])
    return least


@numba.njit(cache=True, nogil=True)
def _scan_leaf(leaf, q, q32, q_norm, exact, k, scale, packed, order, starts, small, norms, out, top_d, top_i):
    d = q.size
    first, last = starts[leaf], starts[leaf + 1]
    grow = 1.0 + (d + 8) * EPS32
    for at in range(0, last - first, CHUNK):
        # squared distance in float32 above which a row is certainly farther than the k-th
        reach = (math.sqrt(top_d[k - 1]) / scale + 2.0 * EPS32 * (q_norm + norms[leaf])) * grow
        bound = reach * reach * grow + 1e-36
        if not exact and _block_distances(q32, small[leaf], at, out) > bound:
            continue
        for t in range(min(CHUNK, last - first - at)):
            if exact or out[t] <= bound:
                row = first + at + t
                dist = 0.0
                for j in range(d):
                    gap = q[j] - packed[row, j]
                    dist += gap * gap
                item = order[row]
                if dist < top_d[k - 1] or (dist == top_d[k - 1] and item < top_i[k - 1]):
                    _push(dist, item, top_d, top_i, k)
                    reach = (math.sqrt(top_d[k - 1]) / scale + 2.0 * EPS32 * (q_norm + norms[leaf])) * grow
                    bound = reach * reach * grow + 1e-36


@numba.njit(cache=True, nogil=True, parallel=True)
def _scan_boxes(Q, k, centre, scale, packed, order, starts, low, high, small, norms):
    m, d = Q.shape
    n_leaves = low.shape[0]
    distances = np.empty((m, k))
    numbers = np.empty((m, k), dtype=np.int64)
    work = np.zeros(m)
    n_parts = min(m, 256)
    for part in numba.prange(n_parts):
        q32 = np.empty(d, dtype=np.float32)
        out = np.empty(CHUNK, dtype=np.float32)
        bounds = np.empty(n_leaves)
        for i in range(part * m // n_parts, (part + 1) * m // n_parts):
            q = Q[i]
            top_d, top_i = distances[i], numbers[i]
            top_d[:] = np.inf
            top_i[:] = packed.shape[0]
            norm, largest = 0.0, 0.0
            for j in range(d):
                v = (q[j] - centre[j]) / scale
                largest = max(largest, abs(v))
                norm += v * v
                q32[j] = np.float32(min(max(v, -1e30), 1e30))
            exact = largest > 1e15  # squares would leave float32
            norm = math.sqrt(norm)
            for leaf in range(n_leaves):
                bound = 0.0
                for j in range(d):
                    gap = max(low[leaf, j] - q[j], q[j] - high[leaf, j], 0.0)
                    bound += gap * gap
                bounds[leaf] = bound
            for _ in range(min(4, n_leaves)):  # the most promising boxes first: the k-th falls soon
                leaf = np.argmin(bounds)
                if bounds[leaf] > top_d[k - 1]:
                    break
                bounds[leaf] = np.inf
                _scan_leaf(
                    leaf,
                    q,
                    q32,
                    norm,
                    exact,
                    k,
                    scale,
                    packed,
                    order,
                    starts,
                    small,
                    norms,
                    out,
                    top_d,
                    top_i,
                )
                work[i] += LEAF
            for leaf in range(n_leaves):
                if bounds[leaf] <= top_d[k - 1] and bounds[leaf] < np.inf:
                    _scan_leaf(
                        leaf,
                        q,
                        q32,
                        norm,
                        exact,
                        k,
                        scale,
                        packed,
                        order,
                        starts,
                        small,
                        norms,
                        out,
                        top_d,
                        top_i,
                    )
                    work[i] += LEAF
            work[i] += n_leaves
            for c in range(k):
                top_d[c] = math.sqrt(top_d[c])
    return distances, numbers, work


@numba.njit(cache=True, nogil=True, parallel=True)
def _measure(Q, rows, numbers):
    """Measure the tree's neighbours by the scan's own formula, so that both forms give the same figures."""
    m, k = numbers.shape
    out = np.empty((m, k))
    for i in numba.prange(m):
        for c in range(k):
            dist = 0.0
            for j in range(Q.shape[1]):
                gap = Q[i, j] - rows[numbers[i, c], j]
                dist += gap * gap
            out[i, c] = math.sqrt(dist)
    return out
