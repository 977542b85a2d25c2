"""Whatever a table holds, the encoder answers with finite numbers of a fixed width, or with one clear error."""

import datetime as dt
import json
from decimal import Decimal

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from skerry.core.errors import DataError
from skerry.data.encoder import TableEncoder

FLOATS = st.one_of(
    st.floats(), st.floats(-3, 3), st.sampled_from([0.0, -0.0, 1e308, -1e308, 5e-324, np.inf, -np.inf, np.nan])
)
DATES = st.dates(dt.date(1, 1, 1), dt.date(9999, 12, 31))
STAMPS = st.datetimes(dt.datetime(1, 1, 1), dt.datetime(9999, 12, 31))
WORDS = st.sampled_from(
    ["a", "b", " a ", "", "(missing)", "(rare)", "1", "2.5", "$3,000", "nan", "inf", "?", "2024-02-29", "é\u0000"]
)
KINDS = {
    "float": (FLOATS, pl.Float64),
    "float32": (st.floats(width=32), pl.Float32),
    "integer": (st.integers(-(2**63), 2**63 - 1), pl.Int64),
    "small": (st.integers(0, 3), pl.UInt8),
    "boolean": (st.booleans(), pl.Boolean),
    "word": (WORDS, pl.String),
    "text": (st.text(max_size=50), pl.String),
    "category": (st.sampled_from("xyz"), pl.Categorical),
    "date": (DATES, pl.Date),
    "stamp": (STAMPS, pl.Datetime("us")),
    "zoned": (STAMPS.map(lambda t: t.replace(tzinfo=dt.UTC)), pl.Datetime("us", "UTC")),
    "date as text": (DATES.map(str), pl.String),
    "time": (st.times(), pl.Time),
    "duration": (st.timedeltas(dt.timedelta(days=-9), dt.timedelta(days=9)), pl.Duration("us")),
    "decimal": (st.decimals(-999, 999, places=2, allow_nan=False).map(Decimal), pl.Decimal(12, 2)),
    "list": (st.lists(st.integers(0, 3), max_size=2), pl.List(pl.Int64)),
    "bytes": (st.binary(max_size=3), pl.Binary),
    "null": (st.none(), pl.Null),
}


@st.composite
def columns(draw, name, n):
    values, dtype = KINDS[draw(st.sampled_from(sorted(KINDS)))]
    missing = draw(st.sampled_from([False, False, True]))
    cell = st.one_of(st.none(), values) if missing else values
    distinct = draw(st.lists(cell, min_size=1, max_size=8))  # a few values that repeat, as in real columns
    picked = draw(st.lists(st.integers(0, len(distinct) - 1), min_size=n, max_size=n))
    return pl.Series(name, [distinct[i] for i in picked], dtype=dtype)


@st.composite
def frames(draw, names=None, rows=st.integers(1, 30)):
    n = draw(rows)
    if names is None:
        names = draw(st.lists(st.text(min_size=1, max_size=4), min_size=1, max_size=5, unique=True))
    return pl.DataFrame([draw(columns(name, n)) for name in names])


def fitted(frame):
    """Fit, or skip the example if every column is rightly left out."""
    error, encoder = None, TableEncoder()
    try:
        return encoder.fit(frame)
    except DataError as caught:
        error = str(caught)
    assert "no column is left" in error
    assert len(encoder.report_) == frame.width
    return assume(False)


CHECKS = settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


@CHECKS
@given(frames(), st.data())
def test_finite_fixed_width_reported_and_independent_of_batch_and_order(frame, data):
    encoder = fitted(frame)
    X = encoder.transform(frame)
    names = encoder.get_feature_names_out().tolist()
    assert X.shape == (frame.height, len(names))
    assert X.dtype == np.float64
    assert np.isfinite(X).all()
    # every column is accounted for, and every feature belongs to one
    assert [r.column for r in encoder.report_] == frame.columns
    assert [f for r in encoder.report_ for f in r.features] == names
    assert len(set(names)) == len(names)
    for r in encoder.report_:
        assert r.kind
        assert r.action
        assert 0 <= r.n_missing <= frame.height
        assert (r.action == "left out") == (not r.features)
        assert all(encoder.feature_column_[f] == r.column for f in r.features)
    assert encoder.weighted_.shape == (len(names),)
    # neither batches, nor the order of columns, nor a column too many changes a number
    size = data.draw(st.integers(1, frame.height))
    parts = [encoder.transform(frame[i : i + size]) for i in range(0, frame.height, size)]
    np.testing.assert_array_equal(np.vstack(parts), X)
    shuffled = frame.select(data.draw(st.permutations(frame.columns)))
    more = shuffled.with_columns(pl.lit(7).alias("a column never seen"))
    np.testing.assert_array_equal(encoder.transform(more), X)
    assert encoder.transform(frame.clear()).shape == (0, len(names))
    # the state is plain data
    again = TableEncoder.from_dict(json.loads(json.dumps(encoder.to_dict())))
    np.testing.assert_array_equal(again.transform(frame), X)
    assert again.report_ == encoder.report_


@CHECKS
@given(frames())
def test_a_missing_column_is_named(frame):
    encoder = fitted(frame)
    for r in encoder.report_:
        if not r.features:
            encoder.transform(frame.drop(r.column)) if frame.width > 1 else None
        elif frame.width > 1:
            with pytest.raises(DataError) as caught:
                encoder.transform(frame.drop(r.column))
            assert repr(r.column) in str(caught.value)


@CHECKS
@given(st.data())
def test_columns_of_any_other_kind_are_encoded_or_named(data):
    names = data.draw(st.lists(st.sampled_from("abcd"), min_size=1, max_size=3, unique=True))
    encoder = fitted(data.draw(frames(names)))
    other = data.draw(frames(names))
    error = None
    try:
        X = encoder.transform(other)
    except DataError as caught:
        error = str(caught)
    if error is not None:
        assert any(f"column {c!r} holds" in error and "were in fitting" in error for c in names)
        return
    assert X.shape == (other.height, len(encoder.feature_column_))
    assert np.isfinite(X).all()


@CHECKS
@given(frames())
def test_every_value_has_a_reason_in_words(frame):
    encoder = fitted(frame)
    for name in frame.columns:
        for value in frame[name].to_list()[:5]:
            text = encoder.reason(name, value)
            assert text.startswith(f"`{name}` ")
            assert "nan" not in text.replace(repr(value), "").replace(f"`{name}`", "")
