import datetime as dt
import decimal

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from skerry.core.errors import DataError
from skerry.data.encoder import TableEncoder
from skerry.data.tables import open_table

N = 30


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (lambda pd: [10**30 * (i % 4 + 1) for i in range(N)], "numeric"),
        (lambda pd: [decimal.Decimal(i) / 4 for i in range(N)], "numeric"),
        (lambda pd: [1, "x", None, 2.5, True] * 6, "category"),
        (lambda pd: [[1], [2, "x"]] * 15, "category"),
        (lambda pd: [{i} for i in range(N)], "nested"),
        (lambda pd: [{"a": i} for i in range(N)], "nested"),
        (lambda pd: [b"a", b"\xff"] * 15, "nested"),
        (lambda pd: np.arange(N) % 7 * 1j, "category"),
        (lambda pd: pd.period_range("2024-01", periods=N, freq="M")[::-1][np.arange(N) % 9], "numeric"),
        (lambda pd: pd.cut(range(N), 5), "nested"),
        (lambda pd: pd.Categorical([1, "a", 2.5] * 10), "category"),
        (lambda pd: pd.Categorical(np.arange(N) % 3), "numeric"),
        (lambda pd: pd.to_timedelta(np.arange(N) % 5, unit="h"), "numeric"),
        (lambda pd: pd.date_range("2024", periods=N, tz="Europe/Paris"), "date"),
        (lambda pd: pd.array([1, None, 3] * 10, dtype="Int64"), "numeric"),
        (lambda pd: pd.array([True, None] * 15, dtype="boolean"), "boolean"),
        (lambda pd: pd.array(["a", None] * 15, dtype="string"), "category"),
        (lambda pd: pd.arrays.SparseArray([0, 0, 1] * 10), "numeric"),
        (lambda pd: [1.5, None, np.nan] * 10, "numeric"),
        (lambda pd: [dt.datetime(1, 1, 1), dt.datetime(9999, 1, 1)] * 15, "date"),
        (lambda pd: [pd.NA] * N, "all missing"),
    ],
)
def test_any_pandas_column_is_read_and_encoded(values, kind):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"it": values(pandas), "x": np.arange(N) % 7}, index=[5] * N)
    table = open_table(frame)
    assert table.n_rows == N
    encoder = TableEncoder().fit(table)
    assert encoder.report_[0].kind == kind
    assert np.isfinite(encoder.transform(table)).all()


def test_missing_values_of_pandas_and_masks_are_missing():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"a": [1, "x", None], "b": [pandas.NaT, pandas.Timestamp("2024"), None]})
    assert open_table(frame).read().null_count().row(0) == (1, 2)
    masked = np.ma.masked_array([[1, 2], [3, 4]], mask=[[False, True], [False, False]])
    np.testing.assert_array_equal(open_table(masked).read().to_numpy(), [[1, np.nan], [3, 4]])


def test_arrow_tables_and_batches_keep_their_names():
    for source in (pa.table({"a": [1, 2]}), pa.RecordBatch.from_pydict({"a": [1, 2]})):
        assert open_table(source).read().to_dict(as_series=False) == {"a": [1, 2]}
    big = pa.table({"a": pa.array([decimal.Decimal("1.5")], pa.decimal256(60, 2))})
    assert open_table(big).read()["a"].to_list() == [1.5]
    text = pa.table({"a": pa.array([b"\xff"]).view("string")})
    with pytest.raises(DataError, match="<Table>: cannot be read"):
        open_table(text)


@pytest.mark.parametrize("source", [None, 3, {"a": [1, 2]}, [[1, 2], [3]], pl.Series([1, 2]), object(), b"a,b"])
def test_what_is_no_table_is_told_with_what_is(source):
    with pytest.raises(DataError, match=f"from {type(source).__name__} .*give a path, a frame or a matrix"):
        open_table(source)


def test_a_lazy_frame_that_fails_is_told():
    with pytest.raises(DataError, match="<LazyFrame>: cannot be collected .*zzz"):
        open_table(pl.LazyFrame({"a": [1]}).select("zzz"))
