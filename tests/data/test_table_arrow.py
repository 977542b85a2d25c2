import decimal

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from skerry.core.errors import DataError
from skerry.data.tables import open_table


def write(path, table):
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    else:
        opened = pa.ipc.new_file if path.suffix == ".arrow" else pa.ipc.new_stream
        with opened(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
    return path


@pytest.mark.parametrize("kind", ["parquet", "arrow", "feather"])
def test_types_that_polars_does_not_hold_are_converted_or_named(tmp_path, kind):
    table = pa.table(
        {
            "big decimal": pa.array([decimal.Decimal("1.25"), None, decimal.Decimal(3)], pa.decimal256(60, 2)),
            "half": pa.array([1.0, 2.5, None], pa.float16()),
            "letters": pa.array(["a", None, "a"]).dictionary_encode(),
            "zone": pa.array([0, 1, None], pa.timestamp("us", tz="+02:00")),
            "bytes": pa.array([b"\xff", None, b""]),
        }
    )
    if kind != "parquet":
        table = table.append_column("runs", pa.RunEndEncodedArray.from_arrays([2, 3], [7, 8]))
    frame = open_table(write(tmp_path / f"t.{kind}", table)).read()
    assert frame["big decimal"].to_list() == [1.25, None, 3.0]
    assert frame["half"].cast(pl.Float64).to_list() == [1.0, 2.5, None]
    assert frame["letters"].cast(pl.String).to_list() == ["a", None, "a"]
    if kind != "parquet":
        assert frame["runs"].to_list() == [7, 7, 8]
        union = pa.UnionArray.from_sparse(pa.array([0, 0, 0], pa.int8()), [pa.array([1, 2, 3])])
        path = write(tmp_path / f"u.{kind}", pa.table({"either": union}))
        with pytest.raises(DataError, match=r"column 'either' has the type .*union.*drop or convert it"):
            open_table(path)


@pytest.mark.parametrize("kind", ["parquet", "arrow", "feather"])
def test_text_that_is_not_utf8_is_told(tmp_path, kind):
    bad = pa.array([b"\xff\xfe", b"a"]).view("string")
    path = write(tmp_path / f"t.{kind}", pa.table({"s": bad}))
    with pytest.raises(DataError, match=r"t\.\w+: .*(UTF-?8|utf8)"):
        open_table(path).read()
