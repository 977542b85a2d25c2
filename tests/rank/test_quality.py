"""The quality report against naive counts; the sketch within its error; noise that knows nothing."""

import math
from collections import Counter

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry.kernels import contingency as kernel
from skerry.rank import quality
from skerry.rank.outrank import OutRank
from skerry.rank.quality import (
    NOISE,
    ColumnStats,
    DistinctSketch,
    character_entropy,
    control_columns,
    row_quality,
)


@pytest.mark.parametrize("n", [0, 1, 1_000, 200_000, 2_000_000])
def test_sketch_counts_within_one_percent(n):
    rng = np.random.default_rng(n)
    hashes = rng.integers(0, 2**64, n, dtype=np.uint64)
    sketch = DistinctSketch()
    for part in (hashes[: n // 2], hashes[n // 3 :]):  # what is seen twice counts once
        sketch.add(part)
    assert sketch.count() == pytest.approx(n, rel=0.01)


@given(st.lists(st.lists(st.sampled_from(["", "{}", "a", "b", "1", "2.5", None]), max_size=12), min_size=1, max_size=4))
def test_column_equals_naive(batches):
    stats = ColumnStats()
    codes = [stats.add(pl.Series(b, dtype=pl.String)) for b in batches]
    values = ["" if v is None else v for b in batches for v in b]
    counts = Counter(values)
    order = list(dict.fromkeys(values))
    assert np.concatenate(codes).tolist() == [order.index(v) for v in values]
    assert stats.cardinality == len(counts)
    if not values:
        return
    row = stats.summary("c", rare=1)
    absent = sum(v in ("", "{}") for v in values)
    assert row["coverage"] == pytest.approx(100 * (1 - absent / len(values)))
    assert row["bytes"] == pytest.approx(sum(map(len, values)) / len(values))
    assert row["majority"] == pytest.approx(max(counts.values()) / len(values))
    assert row["rare_values"] == sum(c == 1 for c in counts.values())
    for k in (0, 1, 10):
        assert row[f"seen_over_{k}"] == sum(c > k for c in counts.values())
    assert stats.rare(1) == [(v, 1) for v in order if counts[v] == 1]
    assert stats.is_numeric == (absent < len(values) and all(v not in "ab" for v in values if v not in ("", "{}")))


def test_past_the_bound_values_share_codes_and_are_estimated(monkeypatch):
    monkeypatch.setattr(quality, "EXACT", 1_000)
    stats = ColumnStats()
    first = stats.add(pl.Series(np.arange(900).astype(str)))
    codes = stats.add(pl.Series(np.arange(5_000).astype(str)))
    assert (codes[:900] == first).all()
    assert codes.max() < 2_000 + quality.SPARE
    assert len(stats.places) == 1_000
    assert stats.cardinality == pytest.approx(5_000, rel=0.01)


def test_missing_symbols_keep_a_code_of_their_own_past_the_bound(monkeypatch):
    monkeypatch.setattr(quality, "EXACT", 100)
    stats = ColumnStats()
    stats.add(pl.Series(np.arange(300).astype(str)))
    stats.add(pl.Series(["", "{}", "5", None]))
    assert stats.absent == 3
    assert stats.coverage == pytest.approx(100 * 301 / 304)


@pytest.mark.parametrize("values", [[1, 2, None, 1], [0.5, -0.0, None, 1e300], [True, False, None, True]])
def test_numbers_are_read_as_their_text(values):
    column = pl.Series(values)
    typed, text = ColumnStats(), ColumnStats()
    assert typed.add(column).tolist() == text.add(column.cast(pl.String)).tolist()
    assert typed.places == text.places
    assert typed.summary("c") == text.summary("c")


def test_levels_are_numbers_or_places():
    numbers, texts = ColumnStats(), ColumnStats()
    codes = numbers.add(pl.Series(["3", "-1", "", "3"]))
    assert np.array_equal(numbers.levels()[codes], [3, -1, np.nan, 3], equal_nan=True)
    codes = texts.add(pl.Series(["pear", "apple", "pear"]))
    assert texts.levels()[codes].tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (["", "{}"] * 60, "no value in any row"),
        (["x"] * 120, "is constant"),
        (["1"] + [""] * 119, "nearly empty"),
        ([str(i) for i in range(119)] + ["n/a?"], "1 values are text, the rest numbers"),
        (["caf\ufffd", "tea"] * 60, "could not be decoded"),
        ([f"id-{i}" for i in range(120)], "looks like an identifier"),
    ],
)
def test_what_is_wrong_is_told(values, told):
    stats = ColumnStats()
    stats.add(pl.Series(values))
    assert any(told in line for line in stats.anomalies("c"))


def test_a_sound_column_is_not_accused():
    stats = ColumnStats()
    stats.add(pl.Series(np.random.default_rng(0).integers(0, 50, 500).astype(str)))
    assert stats.anomalies("c") == []


@given(st.lists(st.text(max_size=8), max_size=8))
def test_character_entropy_equals_naive(values):
    def naive(text):
        counts = Counter(text)
        return sum(-c / len(text) * math.log2(c / len(text)) for c in counts.values())

    assert character_entropy(values) == pytest.approx([naive(v) for v in values], abs=1e-9)


def test_row_report_equals_naive():
    frame = pl.DataFrame({"a": ["", "x", "{}", "0"], "b": [None, "ab", "0", "0"]}, schema_overrides={"b": pl.String})
    got = row_quality(frame)
    assert got["empty"].tolist() == [1.0, 0.0, 0.0, 0.0]
    assert got["empty_dict"].tolist() == [0.0, 0.0, 0.5, 0.0]
    assert got["all_empty"].tolist() == [1.0, 0.0, 0.5, 0.0]
    assert got["zero"].tolist() == [0.0, 0.0, 0.5, 1.0]
    assert got["entropy"].tolist() == [0.0, 1.0, 1.0, 0.0]
    assert got["entropy"].dtype == np.float32
    frame = frame.with_columns(label=pl.Series(["0", "1", "0", "1"]))
    rows = OutRank(row_quality=True).fit(frame).rows_
    assert rows.height == 4
    assert rows["all_empty"][0] == pytest.approx(2 / 3)


def test_controls_are_noise_of_their_cardinality():
    rng = np.random.default_rng(1)
    n = 20_000
    y = rng.integers(0, 2, n)
    features = np.stack([kernel.encode(rng.integers(0, 50, n))[0], kernel.encode(y)[0]])
    controls = control_columns(n, 3, 0, features, y)
    assert set(controls) == {*NOISE, "target", "row-hash"}
    for k in (2, 100, 2_000):
        assert np.unique(controls[f"random-{k}"]).size == k
    assert np.unique(controls["row"]).size == n
    assert (controls["target"] == y).all()
    assert np.unique(controls["row-hash"]).size == 100  # as many as there are different rows
    again = control_columns(n, 3, 0, features, y)
    assert all((again[k] == v).all() for k, v in controls.items())
    other = control_columns(n, 3, n, features, y)
    assert (other["random-100"] != controls["random-100"]).any()


@given(st.lists(st.integers(-3, 900), max_size=60))
def test_codes_of_whole_numbers_are_those_of_a_sort(values):
    got = quality.appearance_codes(np.array(values, dtype=np.int64))
    assert got.dtype == np.int32
    assert got.tolist() == kernel.encode(np.array(values, dtype=np.int64))[0].tolist()


@pytest.mark.parametrize("kind", ["series", "array", "chunks", "views", "dictionary"])
def test_a_column_of_any_arrow_kind_gives_the_same_codes(kind):
    import pyarrow as pa

    values = ["b", None, "", "a b", "b", " 7", "7"]
    column = {
        "series": pl.Series(values),
        "array": pa.array(values),
        "chunks": pa.chunked_array([values[:2], [], values[2:]], type=pa.large_string()),
        "views": pa.array(values, type=pa.string_view()),
        "dictionary": pa.array(values).dictionary_encode(),
    }[kind]
    stats = ColumnStats()
    assert stats.add(column).tolist() == [0, 1, 1, 2, 0, 3, 4]
    assert stats.numeric == 2  # a number with a space before it is one
    assert (stats.absent, stats.bytes) == (2, 8)


@pytest.mark.parametrize("kept", [0, 1 << 30])
def test_a_text_file_is_ranked_as_it_is_written_whether_read_once_or_twice(tmp_path, monkeypatch, kept):
    from skerry.data import table_csv

    monkeypatch.setattr(table_csv, "MAX_KEPT", kept)
    path = tmp_path / "t.csv"
    path.write_text(
        "code,flag,y\n" + "".join(f"{'0' * (i % 2)}7,{('True', 'NA')[i % 3 == 0]},{i % 2}\n" for i in range(90))
    )
    ranker = OutRank().fit(path, target="y")
    assert ranker.ranking_["feature"][0] == "code"  # 7 and 07 differ, and tell the target
    about = {r["feature"]: (r["cardinality"], round(r["coverage"])) for r in ranker.quality_.to_dicts()}
    assert about == {"code": (2, 100), "flag": (2, 67), "y": (2, 100)}
