import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry.core.errors import DataError
from skerry.data import table_csv, table_csv_head
from skerry.data.tables import open_table


def put(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    ("text", "columns", "rows"),
    [
        ('"a\nb",c\n1,2\n3,4\n', ["a\nb", "c"], [(1, 2), (3, 4)]),
        ('"a,b",c\n1,2\n3,4\n', ["a,b", "c"], [(1, 2), (3, 4)]),
        ("a,b\r\n1,2\r\n3,4\r\n", ["a", "b"], [(1, 2), (3, 4)]),
        ("a,b\r1,2\r3,4\r", ["a", "b"], [(1, 2), (3, 4)]),
        (b'\xef\xbb\xbf"a",b\n1,2\n', ["a", "b"], [(1, 2)]),
        ("a,b,\n1,2,\n3,4,\n", ["a", "b", "column_2"], [(1, 2, None), (3, 4, None)]),
        ("column_1,,a\n1,2,3\n", ["column_1", "column_1_", "a"], [(1, 2, 3)]),
        ("a,b\n\n1,2\n\n3,4", ["a", "b"], [(1, 2), (3, 4)]),
        ('a;b\n"x;y";1\n"z";2\n', ["a", "b"], [("x;y", 1), ("z", 2)]),
    ],
)
def test_names_and_rows_of_odd_files(tmp_path, text, columns, rows):
    table = open_table(put(tmp_path / "t.csv", text))
    assert table.columns == columns
    assert table.read().rows() == rows
    assert table.n_rows == len(rows)


def test_a_row_longer_than_a_block_wherever_it_stands(tmp_path, monkeypatch):
    monkeypatch.setattr(table_csv_head, "HEAD_BYTES", 1 << 12)
    monkeypatch.setattr(table_csv_head, "BLOCK", 1 << 13)
    long = '1,"' + "x" * 100_000 + '"\n'
    short = "2,y\n"
    for text in (long + short, short * 9000 + long + short):
        frame = open_table(put(tmp_path / "t.csv", "a,b\n" + text)).read()
        assert frame.height == text.count("\n")
        assert frame["b"].str.len_chars().max() == 100_000
    monkeypatch.setattr(table_csv, "MAX_BLOCK", 1 << 14)
    with pytest.raises(DataError, match="a row takes more than"):
        open_table(tmp_path / "t.csv")


def test_a_wide_table_whose_types_all_change_late_is_read_a_few_times(tmp_path, monkeypatch):
    monkeypatch.setattr(table_csv_head, "BLOCK", 1 << 13)
    readings = []
    stream = table_csv._stream
    monkeypatch.setattr(table_csv, "_stream", lambda *a: readings.append(1) or stream(*a))
    n = 60
    lines = [",".join(["1"] * n)] * 2000 + [",".join(["1.5", "x"] * (n // 2))]
    header = ",".join(f"c{j}" for j in range(n))
    table = open_table(put(tmp_path / "t.csv", "\n".join([header, *lines]) + "\n"))
    assert [str(t) for t in table.schema.values()] == ["Float64", "String"] * (n // 2)
    assert len(readings) < 8
    assert "mixed in 'c1', 'c3', 'c5', 'c7', 'c9'" in table.notes[0]
    assert table.read().row(-1) == (1.5, "x") * (n // 2)


@pytest.mark.parametrize(
    ("early", "late", "kind"),
    [("1", "2.5", pl.Float64), ("1", "x", pl.String), ("true", "maybe", pl.String), ("2024-01-01", "soon", pl.String),
     ("1", " 7 ", pl.Int64), ("", "3", pl.String), ("9", "99999999999999999999", pl.Float64)],
)  # fmt: skip
def test_what_comes_late_widens_the_type(tmp_path, monkeypatch, early, late, kind):
    monkeypatch.setattr(table_csv_head, "BLOCK", 1 << 12)
    text = "a,b\n" + f"{early},1\n" * 3000 + f"{late},2\n"
    table = open_table(put(tmp_path / "t.csv", text))
    assert table.schema["a"] == kind
    frame = table.read()
    assert frame.height == 3001
    assert frame["b"].to_list() == [1] * 3000 + [2]
    assert frame["a"].null_count() == (3000 if early == "" else 0)


CELL = st.one_of(
    st.text(st.characters(codec="utf-8", exclude_characters="\x00\r\ufeff", exclude_categories=["Cs"]), min_size=1),
    st.sampled_from(["a,b", 'say "hi"', "two\nlines", ";|\t", "x"]),
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data(), st.integers(1, 6), st.integers(2, 4), st.sampled_from(",;\t|"))
def test_text_with_quotes_separators_and_line_breaks_comes_back(tmp_path_factory, data, n, d, separator):
    cells = [[data.draw(CELL) for _ in range(n)] for _ in range(d)]
    frame = pl.DataFrame({f"c{j}": [f"k{c}" for c in column] for j, column in enumerate(cells)})  # never a number
    path = tmp_path_factory.mktemp("csv") / "t.csv"
    frame.write_csv(path, separator=separator, quote_style="always")
    table = open_table(path, separator=separator)
    assert table.columns == frame.columns
    assert table.read().equals(frame)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.one_of(st.none(), st.floats(allow_nan=False)), min_size=2, max_size=20))
def test_numbers_come_back_exactly(tmp_path_factory, values):
    frame = pl.DataFrame({"i": np.arange(len(values)), "v": pl.Series(values, dtype=pl.Float64)})
    path = tmp_path_factory.mktemp("csv") / "t.csv"
    frame.write_csv(path)
    back = open_table(path).read()["v"].cast(pl.Float64)
    np.testing.assert_array_equal(back.to_numpy(), frame["v"].to_numpy())


@pytest.mark.parametrize("kept", [0, 40, 1 << 30])
def test_columns_read_as_text_are_as_they_are_written(tmp_path, monkeypatch, kept):
    monkeypatch.setattr(table_csv, "MAX_KEPT", kept)
    monkeypatch.setattr(table_csv_head, "BLOCK", 64)
    lines = [f"0{i},{i}.50,{'x' if i % 2 else 'NA'}" for i in range(40)]
    table = open_table(put(tmp_path / "t.csv", "a,b,c\n" + "\n".join(lines) + "\n"), text=True)
    assert table.n_rows == 40
    for _ in range(2):  # again and again
        rows = [r for part in table.arrow_batches(7) for r in part.to_pylist()]
        assert [(r["a"], r["b"], r["c"]) for r in rows] == [
            (f"0{i}", f"{i}.50", "x" if i % 2 else None) for i in range(40)
        ]
    assert table.read()["a"].to_list() == [f"0{i}" for i in range(40)]


def test_text_that_is_not_utf8_far_down_is_read_as_latin_1(tmp_path, monkeypatch):
    monkeypatch.setattr(table_csv_head, "HEAD_BYTES", 64)
    body = b"a\n" + b"plain\n" * 400 + b"caf\xe9\n"
    table = open_table(put(tmp_path / "t.csv", body), text=True)
    assert table.read()["a"].to_list()[-1] == "café"
    assert "not UTF-8; read as Latin-1" in table.notes
