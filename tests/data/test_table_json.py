import json

import polars as pl
import pytest

from skerry.core.errors import DataError
from skerry.data import table_json
from skerry.data.tables import open_table


def table_of(tmp_path, lines):
    path = tmp_path / "t.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return open_table(path)


MANY = [{"a": i, "b": i % 2 == 0} for i in range(300)]


@pytest.mark.parametrize("block", [1 << 23, 500])
@pytest.mark.parametrize(
    ("late", "kinds"),
    [
        ({"a": 1.5, "b": True}, {"a": pl.Float64, "b": pl.Boolean}),
        ({"a": "x", "b": True}, {"a": pl.String, "b": pl.Boolean}),
        ({"a": {"deep": [1]}, "b": True}, {"a": pl.String, "b": pl.Boolean}),
        ({"a": 1, "b": 3}, {"a": pl.Int64, "b": pl.String}),
        ({"a": None}, {"a": pl.Int64, "b": pl.Boolean}),
        ({"z": 2, "a": 1, "c": None}, {"a": pl.Int64, "b": pl.Boolean, "c": pl.Null, "z": pl.Int64}),
    ],
    ids=["fraction", "text", "object", "bool and number", "absent", "new keys"],
)
def test_a_kind_that_comes_late_widens_the_column(tmp_path, monkeypatch, block, late, kinds):
    monkeypatch.setattr(table_json, "BLOCK", block)
    table = table_of(tmp_path, [*MANY, late])
    assert list(table.schema.items()) == list(kinds.items())  # in this order
    frame = table.read()
    assert frame.height == table.n_rows == 301
    assert dict(frame.schema) == kinds
    first = frame.row(0, named=True)
    assert (first["a"], first["b"]) == (kinds["a"].to_python()(0), "true" if kinds["b"] == pl.String else True)
    last = {k: v for k, v in frame.row(-1, named=True).items() if v is not None}
    assert last == {
        k: v if isinstance(v, (int, float)) and kinds[k] != pl.String else v if isinstance(v, str) else json.dumps(v)
        for k, v in late.items()
        if v is not None
    }


def test_columns_keep_the_order_of_the_first_line(tmp_path):
    names = [f"x{j}" for j in range(300)]
    table = table_of(tmp_path, [dict.fromkeys(names, i) for i in range(3)])
    assert table.columns == names
    assert table.read().columns == names


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["[1, 2]"], "line 1 is no object"),
        (['[{"a": 1},', '{"a": 2}]'], "line 1: "),
        (["17"], "line 1 is no object"),
        ([*MANY, '{"a": 1'], "line 301: "),
        ([*MANY, '{"a": NaN}'], "line 301: NaN is no JSON; write null"),
        ([{"a": 1}, "", '{"a": 1} x'], "line 3: "),
        (['{"a": 1, "a": 2}'], "two columns are named 'a'"),
        (["{}", "{}"], "has no columns"),
        (['{"a": ' + "[" * 100_000 + "]" * 100_000 + "}"], "not JSON lines"),
    ],
)
def test_the_line_that_is_no_object_is_named(tmp_path, lines, message):
    with pytest.raises(DataError, match=message) as caught:
        table_of(tmp_path, lines)
    assert "t.jsonl" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_blank_lines_and_a_byte_order_mark(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\n\n{"a": 2}\n')
    assert open_table(path).read()["a"].to_list() == [1, 2]
