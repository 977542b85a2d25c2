"""Columns made from one or two columns: numeric transforms, sub-features, and indicators of multi-value columns.

The families of OutRank (Škrlj & Mramor, RecSys 2023): ten common transforms, and binned ones that keep small values
and round the rest, ``x if x < g else round(f(x - g) * r)``. All work on codes: a transform is computed once for each
distinct value, not for each row.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from skerry.core.errors import DataError, ParameterError, SkerryWarning, nearest
from skerry.rank.quality import ColumnStats

__all__ = ["TRANSFORMS", "derived_columns", "multi_values", "parse_operator", "sub_features", "transformed"]

Function = Callable[[NDArray[np.float64]], NDArray[np.float64]]
MAX_MAJORITY = 0.80  # a transform with a more frequent value is dropped
MAX_NAN = 0.75
MAX_COLUMNS = 1_000  # that one operator may make; the most frequent values come first


def _binned(function: Function, start: float, resolution: float) -> Function:
    def apply(x: NDArray[np.float64]) -> NDArray[np.float64]:
        above = np.round(function(np.where(x > start, x - start, 1.0)) * resolution)
        return np.where(x < start, x, np.where(x > start, above, np.where(x == start, 0.0, np.nan)))

    return apply


_DEFAULT: dict[str, Function] = {
    "sqrt": np.sqrt,
    "log(x+1)": lambda x: np.log(x + 1),
    "sqrt(abs(x))": lambda x: np.sqrt(np.abs(x)),
    "log(abs(x)+1)": lambda x: np.log(np.abs(x) + 1),
    "sign*log(abs(x))": lambda x: x / np.abs(x) * np.log(np.abs(x)),
    "asinh": np.arcsinh,
    "log*sqrt": lambda x: np.log(x + 1) * np.sqrt(x),
    "log*100": lambda x: np.round(np.log(x + 1) * 100),
    "nonzero": lambda x: np.where(np.isnan(x), np.nan, x != 0),
    "round(x/max)": lambda x: np.round(x / np.nanmax(x)),
}
_FW = dict(_DEFAULT)
for _r in (1, 10, 50, 100):
    for _g in (1, 2, 4, 8, 16, 32, 64, 96):
        for _f, _function in (("sqrt", np.sqrt), ("log", np.log)):
            _FW[f"fw_{_f}_res_{_r}_gt_{_g}"] = _binned(_function, _g, _r)
            _FW[f"fw_prob_{_f}_res_{_r}_gt_{_g / 100}"] = _binned(_function, _g / 100, _r)

TRANSFORMS: dict[str, dict[str, Function]] = {"default": _DEFAULT, "fw": _FW}


def transformed(
    levels: NDArray[np.float64], counts: NDArray[np.int64], preset: str = "default"
) -> Iterator[tuple[str, NDArray[np.int32], NDArray[np.float64]]]:
    """Yield the transforms of a numeric column that are worth keeping.

    One is kept only if it has more than one value, its most frequent value has less than 80 % of the rows, and less
    than 75 % of the rows are NaN.

    Parameters
    ----------
    levels : ndarray of shape (c,)
        The number of each code, NaN where missing.
    counts : ndarray of shape (c,)
        Rows of each code.
    preset : {"default", "fw"}, default "default"

    Yields
    ------
    name : str
    lookup : ndarray of shape (c,), int32
        The new code of each code; equal results share one.
    values : ndarray of shape (c,), float64

    Raises
    ------
    ParameterError
        For an unknown preset.

    Examples
    --------
    >>> [name for name, _, _ in transformed(np.array([0.0, 1.0, 4.0]), np.array([5, 3, 2]))][:2]
    ['sqrt', 'log(x+1)']
    """
    if preset not in TRANSFORMS:
        raise ParameterError(f"transforms={preset!r}: {nearest(preset, TRANSFORMS)}")
    seen = counts > 0
    x = np.where(seen, levels[: counts.size], np.nan)
    rows = counts.sum()
    if rows == 0 or np.isnan(x).all():
        return
    for name, function in TRANSFORMS[preset].items():
        with np.errstate(all="ignore"):
            values = np.asarray(function(x), dtype=np.float64)
        distinct, lookup = np.unique(values, return_inverse=True)
        tally = np.bincount(lookup, weights=counts, minlength=distinct.size)
        lost = counts[np.isnan(values)].sum()
        if np.count_nonzero(tally) > 1 and tally.max() < MAX_MAJORITY * rows and lost < MAX_NAN * rows:
            yield name, lookup.astype(np.int32), values


def parse_operator(text: str) -> tuple[str, str, str]:
    """Split ``A->B`` or ``A<->B`` into first column, operator, second column.

    >>> parse_operator("site<->hour")
    ('site', '<->', 'hour')
    """
    found = re.fullmatch(r"(.+?)(<->|->)(.+)", text)
    if found is None:
        raise ParameterError(f"sub-feature {text!r}: write A->B or A<->B with two column names")
    return found[1].strip(), found[2], found[3].strip()


def sub_features(
    text: str, a: NDArray[np.int32], b: NDArray[np.int32], names_a: list[str], names_b: list[str]
) -> Iterator[tuple[str, NDArray[np.int32]]]:
    """Yield the columns of ``A->B`` (A where B is one value, a column for each) or ``A<->B`` (each pair, 0 or 1).

    Parameters
    ----------
    text : str
    a, b : ndarray of shape (n,)
        Codes of the two columns.
    names_a, names_b : list of str
        The value of each code.
    """
    first, operator, second = parse_operator(text)
    if operator == "->":
        for v in _frequent(b, text):
            yield f"{first}->{second}={_name(names_b, v)}", np.where(b == v, a + 1, 0)
        return
    pair = b.astype(np.int64) * (int(a.max(initial=0)) + 1) + a
    for key in _frequent(pair, text):
        u, v = key % (int(a.max(initial=0)) + 1), key // (int(a.max(initial=0)) + 1)
        yield f"{first}={_name(names_a, u)}<->{second}={_name(names_b, v)}", (pair == key).astype(np.int32)


def multi_values(
    column: str, codes: NDArray[np.int32], names: list[str], missing: frozenset[str]
) -> Iterator[tuple[str, NDArray[np.int32]]]:
    """Yield one 0/1 column for each value of a column of lists, split at commas, else at ``-``.

    >>> [(n, c.tolist()) for n, c in multi_values("tags", np.array([0, 1]), ["a,b", "b"], frozenset())]
    [('tags~b', [1, 1]), ('tags~a', [1, 0])]
    """
    separator = "," if any("," in v for v in names) else "-"
    counts = np.bincount(codes, minlength=len(names))
    holders: dict[str, list[int]] = {}
    for code, value in enumerate(names):
        if code < counts.size and counts[code] and value not in missing:
            for part in {p.strip() for p in value.split(separator)} - missing:
                holders.setdefault(part, []).append(code)
    ordered = sorted(holders, key=lambda p: (-int(counts[holders[p]].sum()), p))
    if len(ordered) > MAX_COLUMNS:
        _warn(column, len(ordered))
    for part in ordered[:MAX_COLUMNS]:
        lookup = np.zeros(counts.size, dtype=np.int32)
        lookup[holders[part]] = 1
        yield f"{column}~{part}", lookup[codes]


def derived_columns(
    names: list[str],
    codes: list[NDArray[np.int32]],
    stats: list[ColumnStats],
    *,
    numeric: frozenset[str] | None = None,
    transforms: str | None,
    operators: tuple[str, ...],
    lists: tuple[str, ...],
) -> Iterator[tuple[str, tuple[int, ...], NDArray[np.int32], NDArray[np.float64] | None]]:
    """Yield name, places of the parents, codes, and values by code (None for no number) of every derived column.

    Raises
    ------
    DataError
        If an operator names a column that is not there.
    """
    place = {name: j for j, name in enumerate(names)}
    vocabulary: dict[int, list[str]] = {}

    def find(name: str, what: str) -> int:
        if name not in place:
            raise DataError(f"{what}: no column {name!r}; {nearest(name, names)}")
        vocabulary.setdefault(place[name], list(stats[place[name]].places))
        return place[name]

    if transforms is not None:
        for j, name in enumerate(names):
            if stats[j].is_numeric and (numeric is None or name in numeric):
                counts = np.bincount(codes[j])
                for label, lookup, values in transformed(stats[j].levels(), counts, transforms):
                    new = lookup[codes[j]]
                    by_code = np.full(int(lookup.max()) + 1, np.nan)
                    by_code[lookup] = values
                    yield f"{name}_tr_{label}", (j,), new, by_code
    for text in operators:
        first, _, second = parse_operator(text)
        i, j = find(first, text), find(second, text)
        for label, new in sub_features(text, codes[i], codes[j], vocabulary[i], vocabulary[j]):
            yield label, (i, j), new, None
    for name in lists:
        j = find(name, "multi-value column")
        for label, new in multi_values(name, codes[j], vocabulary[j], stats[j].missing):
            yield label, (j,), new, None


def _frequent(keys: NDArray, text: str) -> list[int]:
    values, counts = np.unique(keys, return_counts=True)
    if values.size > MAX_COLUMNS:
        _warn(text, values.size)
    return [int(values[i]) for i in np.argsort(-counts, kind="stable")[:MAX_COLUMNS]]


def _warn(what: str, n: int) -> None:
    message = f"{what}: {n:,} values would make as many columns; the {MAX_COLUMNS:,} most frequent are kept"
    warnings.warn(message, SkerryWarning, stacklevel=3)


def _name(names: list[str], code: int) -> str:
    return names[code] if code < len(names) else f"#{code}"
