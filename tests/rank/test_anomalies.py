"""Duplicates, drift and leaks over a stream."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry.kernels import contingency as kernel
from skerry.rank.anomalies import PERIODS, Watch
from skerry.rank.quality import ColumnStats


class Two:
    cardinality = 2


@given(st.integers(1, 400), st.integers(1, 50), st.integers(1, 30))
def test_periods_never_pass_their_bound(n, size, period):
    watch = Watch(1, period)
    column = np.arange(n, dtype=np.int32) % 3
    for at in range(0, n, size):
        watch.add([column[at : at + size]])
    when = np.unique(watch.counts[0].keys % (1 << 20))
    assert when.size <= 2 * PERIODS
    assert watch.rows == n == watch.counts[0].counts.sum()
    assert (when == np.arange(when.size)).all()


def test_duplicates_up_to_renaming():
    rng = np.random.default_rng(0)
    a = rng.integers(0, 9, 500)
    columns = [kernel.encode(c)[0] for c in (a, 40 - 3 * a, rng.integers(0, 9, 500), a)]
    watch = Watch(4, 100)
    for at in (0, 130):
        watch.add([c[at : at + (130 if at == 0 else 400)] for c in columns])
    found = watch.duplicates(list("abcd"), [Two()] * 4)
    assert [line.split(" (")[0] for line in found] == ["b duplicates a", "d duplicates a"]


def test_constants_are_no_duplicates():
    watch = Watch(2, 10)
    watch.add([np.zeros(50, np.int32)] * 2)
    stats = [ColumnStats() for _ in range(2)]
    assert watch.duplicates(["a", "b"], stats) == []


@pytest.mark.parametrize(("strength", "told"), [(0.0, False), (0.9, True)])
def test_drift(strength, told):
    rng = np.random.default_rng(1)
    n = 20_000
    old, new = rng.integers(0, 20, n), rng.integers(20, 40, n)
    column = np.where(np.arange(n) / n > 0.5, np.where(rng.random(n) < strength, new, old), old)
    watch = Watch(1, 700)
    codes = kernel.encode(column)[0]
    for at in range(0, n, 3_000):
        watch.add([codes[at : at + 3_000]])
    assert bool(watch.drifting(["c"], [np.log(20)])) is told


def test_few_rows_cannot_drift():
    watch = Watch(1, 5)
    watch.add([np.repeat(np.arange(4, dtype=np.int32), 20)])
    assert watch.drifting(["c"], [np.log(4)]) == []


def test_leak():
    assert Watch.leaking(["a", "b"], np.array([0.69, 0.5]), "y", np.log(2)) == [
        "a leaks y: it alone determines it",
    ]


def test_only_possible_twins_are_compared():
    columns = [np.arange(60, dtype=np.int32) % 3] * 3
    watch = Watch(3, 10, [True, False, True])
    watch.add(columns)
    assert [line.split(" (")[0] for line in watch.duplicates(list("abc"), [Two()] * 3)] == ["c duplicates a"]


def test_a_free_identifier_is_no_duplicate_of_another_but_its_copy_is():
    n = 300
    texts = {"id": [f"u{i}" for i in range(n)], "key": [f"k{i * 7919 % n}" for i in range(n)]}
    texts["copy"] = texts["id"]
    stats = [ColumnStats() for _ in texts]
    columns = [s.add(pl.Series(v)) for s, v in zip(stats, texts.values(), strict=True)]
    watch = Watch(3, 100)
    watch.add(columns)
    assert [line.split(" (")[0] for line in watch.duplicates(list(texts), stats)] == ["copy duplicates id"]
