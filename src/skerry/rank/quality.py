"""What a stream of values says about a column and about a row: cardinality, coverage, repetition, rarity, breakage.

Counts are exact until 2^18 values; beyond that the cardinality comes from a HyperLogLog sketch of 2^19 registers
(OutRank, Škrlj & Mramor, RecSys 2023, switches the same way; Flajolet et al. 2007 for the sketch). Control columns
are noise of known kinds, and two references: the target itself and the hash of a row.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import polars as pl

__all__ = ["NOISE", "ColumnStats", "DistinctSketch", "character_entropy", "control_columns", "row_quality"]

EXACT = 1 << 18
SPARE = 1 << 10  # codes for missing symbols that are first seen later
REGISTERS = 19  # bits of a hash that choose the register
REPETITIONS = (0, 1, 10, 100, 1_000, 10_000, 100_000)
CARDINALITIES = (2, 100, 2_000, 10_000, 50_000)
NOISE = ("constant", "gaussian", "uniform", *(f"random-{k}" for k in CARDINALITIES), "row")


class DistinctSketch:
    """Number of distinct 64-bit hashes seen, in 2^19 bytes; the standard error is 0.14 %.

    Linear counting while registers are empty in number, the harmonic mean after that.

    Examples
    --------
    >>> sketch = DistinctSketch()
    >>> sketch.add(np.random.default_rng(0).integers(0, 2**64, 1000, dtype=np.uint64))
    >>> abs(sketch.count() - 1000) < 10
    True
    """

    def __init__(self) -> None:
        self.registers = np.zeros(1 << REGISTERS, dtype=np.uint8)

    def add(self, hashes: NDArray[np.uint64]) -> None:
        """Note uint64 hashes of shape (m,)."""
        place = (hashes >> np.uint64(64 - REGISTERS)).astype(np.int64)
        rest = (hashes & np.uint64((1 << (64 - REGISTERS)) - 1)).astype(np.float64)  # 45 bits: exact in a double
        leading = (64 - REGISTERS) - np.frexp(rest)[1]  # the exponent of a whole number is its length in bits
        np.maximum.at(self.registers, place, (leading + 1).astype(np.uint8))

    def count(self) -> int:
        """Return the estimate."""
        m = self.registers.size
        raw = 0.7213 / (1 + 1.079 / m) * m * m / np.ldexp(1.0, -self.registers.astype(np.int64)).sum()
        empty = int(np.count_nonzero(self.registers == 0))
        return round(m * np.log(m / empty)) if raw <= 2.5 * m and empty else round(raw)


class ColumnStats:
    """Values of one column, seen batch by batch.

    Parameters
    ----------
    missing : sequence of str, default ("", "{}")
        Symbols that mean "no value"; null is the empty string.

    Attributes
    ----------
    places : dict of str to int
        The code of each value: its order of appearance.
    numbers : ndarray of float64
        By code, the value read as a number, else NaN.
    """

    def __init__(self, missing: Iterable[str] = ("", "{}")) -> None:
        self.missing = frozenset(missing)
        self.places: dict[str, int] = {}
        self.counts = np.zeros(1024, dtype=np.int64)
        self.numbers = np.full(1024, np.nan)
        self.void = np.zeros(1024, dtype=bool)  # by code, whether it means "no value"
        self.rows = self.absent = self.bytes = self.numeric = 0
        self.sketch: DistinctSketch | None = None

    def add(self, column: Any) -> NDArray[np.int32]:
        """Count a batch and return its codes: the order of first appearance over all batches.

        The batch is a polars Series, or an Array or ChunkedArray of pyarrow.
        """
        return self.add_packed(*packed(column))

    def add_packed(self, local: NDArray[np.integer], text: Any) -> NDArray[np.int32]:
        """Count a batch that :func:`packed` has prepared, here or elsewhere, and return its codes.
        Past 2^18 values a new one shares the code of its hash, so memory stays bounded.
        """
        import polars as pl
        import pyarrow.compute as pc

        series = pl.Series(pl.from_arrow(text))
        values = series.to_list()
        hashes = None
        if self.sketch is not None or len(self.places) + len(values) > EXACT:
            hashes = series.hash(seed=7).to_numpy()
            if self.sketch is None:
                self.sketch = DistinctSketch()
                self.sketch.add(pl.Series(list(self.places), dtype=pl.String).hash(seed=7).to_numpy())
            self.sketch.add(hashes)
        places = self.places
        codes = list(map(places.get, values))
        fresh = [i for i, code in enumerate(codes) if code is None]
        if len(places) + len(fresh) <= EXACT:
            new = dict.fromkeys(values[i] for i in fresh)  # a null and an empty text are one value
            places.update(zip(new, range(len(places), EXACT), strict=False))
            codes = list(map(places.__getitem__, values)) if fresh else codes
        else:
            for i in fresh:
                if values[i] in places:
                    codes[i] = places[values[i]]
                elif len(places) < EXACT or values[i] in self.missing:
                    codes[i] = places[values[i]] = len(places)
                else:
                    codes[i] = EXACT + SPARE + int(hashes[i] % EXACT)
        lookup = np.array(codes, dtype=np.int32)
        tally = np.bincount(local, minlength=len(values))
        self._grow(int(lookup.max(initial=0)) + 1)
        np.add.at(self.counts, lookup, tally)
        if fresh:
            at = lookup[fresh]
            trimmed = pl.Series(pl.from_arrow(pc.utf8_trim_whitespace(text.take(fresh))))
            self.numbers[at] = trimmed.cast(pl.Float64, strict=False).to_numpy()  # null is NaN
            self.void[[places[v] for v in self.missing if v in places]] = True
        void = self.void[lookup]
        self.rows += local.size
        self.absent += int(tally[void].sum())
        self.numeric += int(tally[~void & ~np.isnan(self.numbers[lookup])].sum())
        self.bytes += int((pc.binary_length(text).to_numpy() * tally).sum()) if values else 0
        return lookup[local]

    def _grow(self, size: int) -> None:
        more = max(size, 2 * self.counts.size) - self.counts.size
        if size > self.counts.size:
            self.counts = np.concatenate([self.counts, np.zeros(more, dtype=np.int64)])
            self.numbers = np.concatenate([self.numbers, np.full(more, np.nan)])
            self.void = np.concatenate([self.void, np.zeros(more, dtype=bool)])

    @property
    def cardinality(self) -> int:
        """Number of distinct values, exact until 2^18, then estimated."""
        return len(self.places) if self.sketch is None else self.sketch.count()

    @property
    def coverage(self) -> float:
        """Percent of rows with a value."""
        return 100.0 * (1.0 - self.absent / self.rows) if self.rows else 0.0

    @property
    def is_numeric(self) -> bool:
        """Whether every value that is there reads as a number."""
        return self.rows > self.absent and self.numeric == self.rows - self.absent

    def levels(self) -> NDArray[np.float64]:
        """Return a number for each code: the value if the column is numeric, else its place in sorted order."""
        if self.is_numeric:
            return self.numbers
        order = np.full(self.numbers.size, float(len(self.places)))
        for place, value in enumerate(sorted(self.places)):
            order[self.places[value]] = place
        return order

    def rare(self, bound: int = 1) -> list[tuple[str, int]]:
        """Return the values seen at most ``bound`` times, with their counts, in order of appearance."""
        return [(v, int(self.counts[c])) for v, c in self.places.items() if self.counts[c] <= bound]

    def summary(self, name: str, rare: int = 1) -> dict[str, object]:
        """Return one row of the quality report; ``rare`` is the largest count of a rare value."""
        counts = self.counts[self.counts > 0]
        few = int((counts <= rare).sum())
        row: dict[str, object] = {
            "feature": name,
            "cardinality": self.cardinality,
            "coverage": self.coverage,
            "bytes": self.bytes / self.rows if self.rows else 0.0,
            "majority": float(counts.max() / self.rows) if counts.size else 0.0,
            "rare_values": few,
            "rare_share": few / max(counts.size, 1),
            "numeric": self.numeric / max(self.rows - self.absent, 1),
        }
        return row | {f"seen_over_{k}": int((counts > k).sum()) for k in REPETITIONS}

    def anomalies(self, name: str) -> list[str]:
        """Return what is wrong with the column by itself, as sentences."""
        held = self.rows - self.absent
        if held == 0:
            return [f"{name} is broken: it has no value in any row"]
        if self.cardinality == 1:
            return [f"{name} is constant"]
        found = []
        if self.coverage < 5:
            found.append(f"{name} is nearly empty: {self.coverage:.2g} % of rows have a value")
        share = self.numeric / held
        if 0.9 <= share < 1 and self.rows >= 100:
            found.append(f"{name} may be broken: {held - self.numeric} values are text, the rest numbers")
        if "\ufffd" in "\n".join(self.places):
            found.append(f"{name} may be broken: it has characters that could not be decoded")
        if self.cardinality > 0.95 * self.rows and self.rows >= 100 and share < 0.5:
            found.append(f"{name} looks like an identifier: {self.cardinality} values in {self.rows} rows")
        return found


def packed(column: Any) -> tuple[NDArray[np.int32], Any]:
    """Return each row's place in the list of a column's different values, shape (n,), and that list as text (pyarrow).

    Only the different numbers are ever written out; null is the empty text.

    >>> import polars as pl
    >>> packed(pl.Series(["b", None, "b"]))[0].tolist()
    [0, 1, 0]
    """
    import polars as pl
    import pyarrow as pa
    import pyarrow.compute as pc

    if isinstance(column, pl.Series):
        column = column.to_arrow()
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    kind = column.type
    written = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    if not (written or pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        column = _as_text(column)
    both = column.dictionary_encode(null_encoding="encode")
    text = both.dictionary
    if pa.types.is_integer(kind):
        text = text.cast(pa.string())
    elif not (pa.types.is_string(text.type) or pa.types.is_large_string(text.type)):
        text = _as_text(text)
    return both.indices.to_numpy(zero_copy_only=False), pc.fill_null(text, "") if text.null_count else text


def _as_text(column: Any) -> Any:
    """Write values as polars does, in a type of text that every kernel of Arrow takes."""
    import polars as pl

    text = pl.Series(pl.from_arrow(column)).cast(pl.String)
    return text.to_arrow(compat_level=pl.CompatLevel.oldest())


def appearance_codes(values: NDArray[np.integer]) -> NDArray[np.int32]:
    """Return codes 0..c-1 in the order of first appearance of whole numbers, without a sort where they are small.

    >>> appearance_codes(np.array([7, 2, 7]))
    array([0, 1, 0], dtype=int32)
    """
    from skerry.kernels.contingency import encode

    n = values.size
    if n == 0 or values.min() < 0 or values.max() >= 4 * n:
        return encode(values)[0]
    first = np.full(int(values.max()) + 1, n, dtype=np.int64)
    np.minimum.at(first, values, np.arange(n))
    present = np.flatnonzero(first < n)
    order = present[np.argsort(first[present])]
    rank = np.zeros(first.size, dtype=np.int32)
    rank[order] = np.arange(order.size, dtype=np.int32)
    return rank[values]


def control_columns(n: int, seed: int, start: int, columns: NDArray, target: NDArray) -> dict[str, NDArray[np.integer]]:
    """Return control columns of length n.

    Those in ``NOISE`` (constant, gaussian, uniform, five cardinalities, the row number) know nothing of the target:
    a feature below the best of them is noise. ``target`` is its copy, the score that is the most possible, and
    ``row-hash`` the hash of all features of a row: what they tell together, and no noise where rows repeat.

    Parameters
    ----------
    n, seed, start : int
        Rows of the block, seed, and number of its first row.
    columns : ndarray of shape (p, n)
        Codes of the features.
    target : ndarray of shape (n,)
    """
    rng = np.random.default_rng([seed, start])
    out: dict[str, NDArray[np.integer]] = {
        "constant": np.zeros(n, dtype=np.int32),
        "gaussian": np.floor(rng.standard_normal(n) * 10).astype(np.int32) + 100,
        "uniform": np.floor(rng.random(n) * 1000).astype(np.int32),
    }
    for k in CARDINALITIES:
        out[f"random-{k}"] = rng.integers(0, k, n, dtype=np.int32)
    out["row"] = np.arange(start, start + n, dtype=np.int32)
    out["target"] = target
    mixed = np.zeros(n, dtype=np.uint64)
    for column in columns:
        mixed = (mixed ^ column.astype(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
    out["row-hash"] = mixed.view(np.int64)
    return out


def character_entropy(values: list[str]) -> NDArray[np.float64]:
    """Return the Shannon entropy of the characters of each text, in bits; 0 for an empty one.

    >>> character_entropy(["", "aa", "ab"])
    array([0., 0., 1.])
    """
    points = np.frombuffer("".join(values).encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    lengths = np.fromiter(map(len, values), dtype=np.int64, count=len(values))
    owner = np.repeat(np.arange(len(values)), lengths)
    keys, counts = np.unique(owner << 21 | points, return_counts=True)
    owner = keys >> 21
    share = counts / lengths[owner]
    return np.abs(np.bincount(owner, weights=-share * np.log2(share), minlength=len(values)))


def row_quality(frame: pl.DataFrame) -> dict[str, NDArray[np.float32]]:
    """Return for each row the share of empty, ``{}``, either, and ``0`` fields, and its total character entropy.

    Parameters
    ----------
    frame : polars.DataFrame
        Read as text; null is the empty string.

    Returns
    -------
    dict of str to ndarray of shape (n,), float32
        ``empty``, ``empty_dict``, ``all_empty``, ``zero``, ``entropy`` (bits).
    """
    import polars as pl

    n, p = frame.height, max(frame.width, 1)
    out: dict[str, Any] = {k: np.zeros(n) for k in ("empty", "empty_dict", "all_empty", "zero", "entropy")}
    for column in frame.iter_columns():
        packed = column.cast(pl.String).fill_null("").to_arrow().dictionary_encode()
        values = packed.dictionary.to_pylist()
        local = packed.indices.to_numpy(zero_copy_only=False)
        for key, symbol in (("empty", ""), ("empty_dict", "{}"), ("zero", "0")):
            out[key] += np.array([v == symbol for v in values], dtype=np.float64)[local] / p
        out["entropy"] += character_entropy(values)[local]
    out["all_empty"] = out["empty"] + out["empty_dict"]
    return {k: v.astype(np.float32) for k, v in out.items()}
