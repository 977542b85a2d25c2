"""Counts of a stream: what is added up equals what one pass over all rows gives, in bounded memory."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry.core.errors import DataError
from skerry.kernels import contingency as kernel
from skerry.rank import accumulate, fitting
from skerry.rank.accumulate import TargetCounts, build_block, read_frames, score_columns
from skerry.rank.outrank import OutRank
from skerry.rank.quality import ColumnStats


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 3)), min_size=2, max_size=120), st.integers(1, 40))
def test_counts_added_up_equal_one_pass(rows, size):
    a, y = np.array(rows).T
    counts = TargetCounts()
    for at in range(0, a.size, size):
        counts.add(a[at : at + size], y[at : at + size])
    a, y = kernel.encode(a)[0], kernel.encode(y)[0]
    codes, cards = kernel.pack([a])
    sums = kernel.Sums(a.size)
    for correction in ("none", "expected"):
        whole = score_columns(
            codes, cards, y, int(y.max()) + 1, sums, np.array([0]), correction=correction, draws=0, seed=0
        )
        got = counts.score(correction=correction, draws=0, seed=0, key=0)
        if np.unique(a).size > 1 and np.unique(y).size > 1:
            assert got[:3] == pytest.approx([float(v[0]) for v in whole[:3]], abs=1e-12)
        assert got[3] == whole[3][0]


def test_drawn_nulls_have_the_mean_of_permutations():
    rng = np.random.default_rng(0)
    a, y = rng.integers(0, 300, 2_000), rng.integers(0, 3, 2_000)
    counts = TargetCounts()
    counts.add(a, y)
    drawn = [counts.score(correction="permutation", draws=8, seed=s, key=1) for s in range(20)]
    exact = counts.score(correction="expected", draws=0, seed=0, key=1)[0]
    scores = np.array([d[0] for d in drawn])
    assert abs(scores.mean() - exact) < 4 * scores.std(ddof=1) / np.sqrt(20)


def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(accumulate, "CELLS", 1_000)
    counts = TargetCounts()
    rng = np.random.default_rng(1)
    y = rng.integers(0, 2, 200_000)
    a = np.where(rng.random(200_000) < 0.5, y, rng.integers(2, 90_000, 200_000))
    for at in range(0, a.size, 10_000):
        counts.add(a[at : at + 10_000], y[at : at + 10_000])
        assert counts.keys.size <= 1_000
    assert counts.counts.sum() == 200_000
    score = counts.score(correction="expected", draws=0, seed=0, key=0)[0]
    assert 0.25 < score < np.log(2) / 2 + 0.01  # half of the rows tell all; what came first kept its code


def test_neighbouring_targets_are_joined():
    counts, wanted = TargetCounts(), TargetCounts()
    a, y = np.arange(60) % 7, np.arange(60) % 10
    counts.add(a, y)
    counts.merge_targets(2)
    wanted.add(a, y // 2)
    assert (counts.keys == wanted.keys).all()
    assert (counts.counts == wanted.counts).all()


@pytest.fixture
def stream():
    rng = np.random.default_rng(2)
    y = rng.integers(0, 2, 6_000)
    frame = pl.DataFrame(
        {
            "good": np.where(rng.random(6_000) < 0.8, y, 1 - y),
            "many": rng.integers(0, 900, 6_000),
            "one": np.ones(6_000, int),
            "label": y,
        }
    )
    return lambda: iter([frame.slice(s, 1_000) for s in range(0, 6_000, 1_000)])


@pytest.mark.parametrize("correction", ["none", "expected"])
def test_a_table_past_memory_scores_as_one_held(stream, monkeypatch, correction):
    held = OutRank(correction=correction).fit(stream())
    monkeypatch.setattr(fitting, "MEMORY", 10_000)
    monkeypatch.setattr(fitting, "CHUNK", 1_500)
    counted = OutRank(correction=correction).fit(stream())
    assert counted.mode_ == "cumulative"
    assert counted.scores_ == pytest.approx(held.scores_, abs=1e-12)
    assert counted.ranking_["cardinality"].to_list() == held.ranking_["cardinality"].to_list()
    assert counted.ranking_["p_value"].to_numpy() == pytest.approx(held.ranking_["p_value"].to_numpy())
    assert set(counted.controls_["feature"]) == set(held.controls_["feature"])
    assert counted.anomalies_ == held.anomalies_ == ["one is constant"]


def test_counts_past_memory_do_not_depend_on_batches(stream, monkeypatch):
    monkeypatch.setattr(fitting, "MEMORY", 10_000)
    monkeypatch.setattr(fitting, "CHUNK", 1_500)
    whole = pl.concat(list(stream()))
    a, b = OutRank().fit(stream()), OutRank().fit(whole)
    assert a.ranking_.equals(b.ranking_)
    assert a.controls_.equals(b.controls_)


def test_what_needs_rows_turns_to_mini_batches(stream, monkeypatch):
    monkeypatch.setattr(fitting, "MEMORY", 10_000)
    ranker = OutRank(pairwise=True, batch_rows=1_500).fit(stream())
    assert ranker.mode_ == "batch-median"
    wanted = OutRank(pairwise=True, batch_rows=1_500, mode="batch-median").fit(stream())
    assert ranker.ranking_.equals(wanted.ranking_)
    assert ranker.pairs_.equals(wanted.pairs_)
    assert ranker.rank_3mr()[0]["feature"] == "good"
    with pytest.raises(DataError, match="use mode='auto'"):
        OutRank(pairwise=True, mode="cumulative").fit(stream())


@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 20))
def test_every_kth_row_is_read(n, k, size):
    frame = pl.DataFrame({"a": list(range(n))})
    source = iter([frame.slice(s, size) for s in range(0, n, size)])
    got = [v for part in read_frames(source, None, "y", 100, k) for v in part["a"].to_pylist()]
    assert [int(v) for v in got] == list(range(0, n, k))


def test_y_must_fit():
    frame = pl.DataFrame({"a": [1, 2, 3]})
    with pytest.raises(DataError, match="fewer rows"):
        OutRank().fit(frame, y=[0, 1])
    with pytest.raises(DataError, match="X has 3 rows, y has 4"):
        OutRank().fit(frame, y=[0, 1, 0, 1])
    with pytest.raises(DataError, match="column 'a' too"):
        OutRank().fit(frame, y=[0, 1, 0], target="a")


def test_derived_columns_follow_the_given_ones():
    stats = [ColumnStats() for _ in range(3)]
    columns = [s.add(pl.Series(v)) for s, v in zip(stats, (["1", "4"] * 9, ["a"] * 18, ["0", "1"] * 9), strict=True)]
    block = build_block(["x", "c"], columns, stats, 0, dense=True, transforms="default", numbers=True)
    assert block.names[:2] == ["x", "c"]
    assert all(n.startswith("x_tr_") for n in block.names[2:])
    assert block.parents[2:] == [(0,)] * (len(block.names) - 2)
    assert block.codes.shape[0] == len(block.names) + 1 == block.values.shape[0]
    assert block.values[block.names.index("x_tr_sqrt")].tolist() == [1.0, 2.0] * 9
    assert block.values[-1].tolist() == [0.0, 1.0] * 9


def test_progress_tells_the_rows_read():
    frame = pl.DataFrame({"a": [1, 2, 3, 4], "y": [0, 1, 0, 1]})
    told = []
    OutRank().fit(iter([frame, frame]), target="y", on_progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (8, None)
