"""Counts of a stream: frames in, blocks of codes out, and the scores of a block or of counts kept without rows.

OutRank (Škrlj & Mramor, RecSys 2023) scores mini-batches and takes the median. Contingency counts are additive, so
here a table is counted whole where its codes fit in memory, and where they do not, the joint counts of each column
with the target are kept (``TargetCounts``), bounded by hashing; both give what one pass over all rows would.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skerry.core.errors import DataError
from skerry.kernels import contingency as kernel
from skerry.kernels.contingency_expected import expected_mutual_information, margin_draws
from skerry.kernels.contingency_pairs import pair_sums
from skerry.rank.formats import is_outrank_folder, read_outrank_folder, read_ragged
from skerry.rank.quality import ColumnStats
from skerry.rank.transforms import derived_columns

__all__ = [
    "Block",
    "TargetCounts",
    "all_pairs",
    "build_block",
    "joined",
    "narrow",
    "read_frames",
    "score_columns",
]

CELLS = 1 << 22  # joint cells kept of a column and the target before they are hashed
_KEY = 1 << 20  # above any code
_NONE = np.zeros(0, dtype=np.int64)
TABLE = 100_000_000  # cells of a table that is drawn; above it the exact mean serves as its mean


def read_frames(X: Any, y: Any, target: str, rows: int, subsampling: int) -> Iterator[Any]:
    """Yield pyarrow tables of a source, every ``subsampling``-th row, with ``y`` as the column ``target`` if given.

    The columns of a text file are read as they are written.
    """
    import pyarrow as pa

    from skerry.data.tables import open_table

    if is_outrank_folder(X):
        frames = (frame.to_arrow() for frame in read_outrank_folder(X, rows))
    elif isinstance(X, Iterator):
        frames = itertools.chain.from_iterable(open_table(part).arrow_batches(rows) for part in X)
    else:
        try:
            frames = open_table(X, text=True).arrow_batches(rows)
        except DataError as error:
            if "expected; check quoting" not in str(error):
                raise
            frames = (frame.to_arrow() for frame in read_ragged(X, rows))
    start = 0
    labels = None if y is None else np.asarray(y)
    for frame in frames:
        if labels is not None:
            if target in frame.column_names:
                raise DataError(f"y is given, and X has a column {target!r} too: leave y out, or name y by target=")
            part = labels[start : start + frame.num_rows]
            if part.shape[0] != frame.num_rows:
                raise DataError("y has fewer rows than X")
            frame = frame.append_column(target, pa.array(part.astype(str).tolist(), type=pa.string()))
        first = -start % subsampling
        start += frame.num_rows
        if subsampling > 1:
            frame = frame.take(pa.array(np.arange(first, frame.num_rows, subsampling)))
        if frame.num_rows:
            yield frame
    if labels is not None and start != len(labels):
        raise DataError(f"X has {start} rows, y has {len(labels)}")


def joined(frames: Iterator[Any]) -> Iterator[Any]:
    """Yield small tables of the same columns together (a batch costs something whatever its rows).

    >>> import pyarrow as pa
    >>> [f.num_rows for f in joined(iter([pa.table({"a": [1]}), pa.table({"a": [2, 3]})]))]
    [3]
    """
    import pyarrow as pa

    held: list[Any] = []
    cells = 0
    for frame in frames:
        more = frame.num_rows * frame.num_columns
        if held and (frame.schema != held[0].schema or cells + more > CELLS):
            yield pa.concat_tables(held)
            held, cells = [], 0
        held.append(frame)
        cells += more
    if held:
        yield pa.concat_tables(held)


def narrow(codes: NDArray[np.int32]) -> NDArray:
    """Return the codes in the smallest unsigned type that holds them."""
    top = int(codes.max(initial=0))
    return codes.astype(np.uint8 if top < 1 << 8 else np.uint16 if top < 1 << 16 else np.int32)


@dataclass
class Block:
    """Rows to score together: the features, derived ones among them, and the target as the last row.

    Attributes
    ----------
    names : list of str, length p
    parents : list of tuple of int
        Which columns of the table each feature comes from.
    codes : ndarray of shape (p + 1, n)
    cards : ndarray of shape (p + 1,)
    start : int
        Number of the first row.
    values : ndarray of shape (p + 1, n) or None
        The columns as numbers.
    """

    names: list[str]
    parents: list[tuple[int, ...]]
    codes: NDArray
    cards: NDArray[np.int64]
    start: int
    values: NDArray[np.float64] | None = None
    sums: kernel.Sums = field(init=False)

    def __post_init__(self) -> None:
        self.sums = kernel.Sums(self.codes.shape[1])

    @property
    def features(self) -> tuple[NDArray, NDArray[np.int64]]:
        """Codes and cardinalities without the target."""
        return self.codes[:-1], self.cards[:-1]

    @property
    def target(self) -> tuple[NDArray, int]:
        """Codes and cardinality of the target."""
        return self.codes[-1], int(self.cards[-1])


def build_block(
    names: list[str],
    columns: list[NDArray],
    stats: list[ColumnStats],
    start: int,
    *,
    dense: bool,
    numbers: bool = False,
    numeric: frozenset[str] | None = None,
    transforms: str | None = None,
    operators: tuple[str, ...] = (),
    lists: tuple[str, ...] = (),
) -> Block:
    """Return a block of the columns (features, then the target) and of what is derived from them.

    ``dense`` tells that the codes are all of 0..c-1 in order of appearance; ``numbers`` keeps the columns as numbers;
    ``numeric`` names the columns that a description declares to be numbers (by default those that read as such).
    """
    labels, parents = list(names), [(j,) for j in range(len(names))]
    parts = [c if dense else kernel.encode(c)[0] for c in columns[:-1]]
    values = [s.levels()[c] for s, c in zip(stats, columns, strict=True)] if numbers else []
    extra = derived_columns(
        names, columns[:-1], stats[:-1], numeric=numeric, transforms=transforms, operators=operators, lists=lists
    ) if transforms or operators or lists else ()  # fmt: skip
    for label, origin, codes, by_code in extra:
        labels.append(label if label not in names else f"{label} (derived)")
        parents.append(origin)
        parts.append(kernel.encode(codes)[0])
        if numbers:
            values.insert(len(values) - 1, codes.astype(np.float64) if by_code is None else by_code[codes])
    parts.append(columns[-1] if dense else kernel.encode(columns[-1])[0])
    codes, cards = kernel.pack(parts)
    return Block(labels, parents, codes, cards, start, np.stack(values) if numbers else None)


def _chance(counts_a: NDArray, counts_b: NDArray) -> float:
    """Return the mean information of shuffled rows; its leading term where all expected counts are above 5."""
    a, b = counts_a[counts_a > 0], counts_b[counts_b > 0]
    n = int(a.sum())
    if n > 100_000 and a.min() * b.min() > 5 * n:
        return (a.size - 1) * (b.size - 1) / (2 * n)
    return expected_mutual_information(a, b)


def score_columns(
    columns: NDArray,
    sizes: NDArray[np.int64],
    y: NDArray,
    card_y: int,
    sums: kernel.Sums,
    keys: NDArray,
    *,
    correction: str,
    draws: int,
    seed: int,
) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """Return score, plug-in information, its mean by chance, and cardinality of each column against the target.

    The exact mean serves z and p whatever the correction: a mean of three draws is too noisy for a test.
    """
    draws = draws if correction == "permutation" else 0
    joint, null = kernel.target_sums(
        columns, sizes, y, card_y, sums, draws=draws, seed=seed, keys=np.asarray(keys, dtype=np.int64)
    )
    margin = sums.margins(columns, sizes)
    own = np.bincount(y, minlength=card_y)
    base = math.log(sums.n) - float(sums.value(sums.margins(y[None, :], np.array([card_y]))[0]))
    mi = base + sums.value(joint - margin)
    counts = [np.bincount(c) for c in columns]
    cells = np.array([np.count_nonzero(c) for c in counts])
    chance = np.array([_chance(c, own) for c in counts])
    if correction == "none":
        score = mi
    elif correction == "shift":
        here, moved = kernel.shift_sums(columns, sizes, y, card_y, sums)
        score = sums.value(here - moved)
    else:
        score = mi - ((base + sums.value(null - margin[:, None])).mean(axis=1) if draws else chance)
    return np.where(cells > 1, score, 0.0), mi, chance, cells


def all_pairs(block: Block, *, correction: str, draws: int, seed: int) -> NDArray[np.float64]:
    """Return the scores of all pairs of columns, the target among them: (p + 1, p + 1), entropies on the diagonal."""
    codes, cards, sums = block.codes, block.cards, block.sums
    joint, null = pair_sums(codes, cards, sums, draws=draws if correction == "permutation" else 0, seed=seed)
    margin = sums.margins(codes, cards)
    entropy = math.log(sums.n) - sums.value(margin)
    if correction == "permutation":
        score = sums.value(joint * draws - null) / draws
    elif correction == "shift":
        score = np.zeros(joint.shape)
        for j in range(len(cards)):
            here, moved = kernel.shift_sums(codes, cards, codes[j], int(cards[j]), sums)
            score[:, j] = sums.value(here - moved)
    else:
        score = math.log(sums.n) + sums.value(joint - margin[:, None] - margin[None, :])
        if correction == "expected":
            counts = [np.bincount(c) for c in codes]
            for i, j in itertools.combinations(range(len(cards)), 2):
                score[i, j] -= _chance(counts[i], counts[j])
    score = np.triu(score, 1)
    score[(entropy[:, None] <= 0) | (entropy[None, :] <= 0)] = 0.0
    score += score.T
    np.fill_diagonal(score, entropy)
    return score


class TargetCounts:
    """Joint counts of one column and the target, added up over batches; no row is kept.

    Past 2^22 cells the column's codes are folded to the next lower power of two, again and again as needed, so memory
    stays bounded: the information of such a column is then too low by what collides. The values that came first keep
    codes of their own.

    Examples
    --------
    >>> counts = TargetCounts()
    >>> counts.add(np.array([0, 1]), np.array([0, 1]))
    >>> counts.add(np.array([0, 1]), np.array([0, 1]))
    >>> mi = counts.score(correction="none", draws=0, seed=0, key=0)[1]
    >>> round(mi, 4)
    0.6931
    """

    def __init__(self) -> None:
        self.keys = self.counts = _NONE
        self.bits = 20  # of the column's codes that are kept

    def add(self, codes: NDArray, y: NDArray) -> None:
        """Add a batch of codes of the column and of the target, shape (n,) each, below 2^20."""
        width = int(y.max(initial=0)) + 1
        joint = codes.astype(np.int64) * width + y
        if int(codes.max(initial=0) + 1) * width <= 8 * joint.size:  # a table of counts is cheaper than a sort
            counts = np.bincount(joint)
            keys = np.flatnonzero(counts)
            counts = counts[keys]
        else:
            keys, counts = np.unique(joint, return_counts=True)
        keys = keys // width * _KEY + keys % width
        self._merge(keys, counts)
        while self.keys.size > CELLS and self.bits > 1:
            self.bits -= 1
            self._merge()

    def merge_targets(self, neighbours: int) -> None:
        """Join every so many neighbouring codes of the target."""
        self.keys = self.keys // _KEY * _KEY + self.keys % _KEY // neighbours
        self._merge()

    def _merge(self, keys: NDArray[np.int64] = _NONE, counts: NDArray[np.int64] = _NONE) -> None:
        if self.keys.size == 0 and self.bits == 20 and keys.size:  # the first batch is sorted, and nothing is folded
            self.keys, self.counts = keys, counts
            return
        keys, counts = np.concatenate([self.keys, keys]), np.concatenate([self.counts, counts])
        keys = keys // _KEY % (1 << self.bits) * _KEY + keys % _KEY  # the target must stay what it is
        self.keys, place = np.unique(keys, return_inverse=True)
        self.counts = np.bincount(place, weights=counts, minlength=self.keys.size).astype(np.int64)

    def _margins(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        own = self.keys // _KEY  # in order
        a = np.add.reduceat(self.counts, np.flatnonzero(np.r_[True, own[1:] != own[:-1]]))
        b = np.bincount(self.keys % _KEY, weights=self.counts).astype(np.int64)
        return a, b[b > 0]

    def information(self) -> float:
        """Return the plug-in information of the column about the target, in nats."""
        n = int(self.counts.sum())
        margin = sum(float((c * np.log(c)).sum()) for c in self._margins()) / n
        return math.log(n) + float((self.counts * np.log(self.counts)).sum()) / n - margin

    def score(self, *, correction: str, draws: int, seed: int, key: int) -> tuple[float, float, float, int]:
        """Return score, plug-in information, its mean by chance, and cardinality, as :func:`score_columns` does."""
        n, a, b = int(self.counts.sum()), *self._margins()
        sums = kernel.Sums(n)
        margin = sum(float((c * np.log(c)).sum()) for c in (a, b)) / n
        mi = self.information()
        if min(a.size, b.size) < 2:
            return 0.0, mi, 0.0, a.size
        chance = _chance(a, b)
        if correction == "permutation" and a.size * b.size <= TABLE:
            null = margin_draws(a, b, sums, draws=draws, seed=seed, key=key)
            return mi - float((math.log(n) + sums.value(null) - margin).mean()), mi, chance, a.size
        return (mi if correction == "none" else mi - chance), mi, chance, a.size
