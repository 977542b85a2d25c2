"""Every kind of bad input through every reader, by the function that ``skerry detect`` calls: a result or one line."""

import gzip
import io
import itertools
import json
import os
import sys
import types
import zipfile

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from skerry.core.errors import DataError, ParameterError, SkerryError
from skerry.data import packed
from skerry.data.tables import open_table
from skerry.detect.tabular.pipeline import find_outliers

TEXT = ("csv", "tsv", "csv.gz", "stdin")
COLUMNAR = ("parquet", "folder", "glob", "arrow", "feather")
MATRIX = ("npy", "npz")
JSON = ("jsonl", "jsonl.gz")
READERS = (*TEXT, *JSON, *COLUMNAR, *MATRIX)


class Source:
    """Bytes of one reader's kind where that reader looks for them."""

    def __init__(self, reader, folder, monkeypatch):
        self.reader, self.monkeypatch = reader, monkeypatch
        name = {"folder": "part.parquet", "glob": "part.parquet", "stdin": "unused"}.get(reader, f"t.{reader}")
        self.file = folder / name
        self.path = {"folder": folder, "glob": folder / "p*.parquet", "stdin": "-"}.get(reader, self.file)
        self.named = {"stdin": "standard input"}.get(reader, str(folder))

    def put(self, data):
        """Place raw bytes."""
        if self.reader == "stdin":
            self.monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(data)))
        else:
            self.file.write_bytes(data)
        return self

    def text(self, text):
        """Place text as a text reader expects it."""
        data = text.encode()
        return self.put(gzip.compress(data) if self.reader.endswith(".gz") else data)

    def frame(self, frame):
        """Place a polars frame, as far as the format holds it."""
        return self.put(packed_frame(self.reader, frame))

    def find(self, **options):
        """Search as the command does; the file must stay as it was."""
        options = {"detector": "ecod"} | options
        before = self.file.read_bytes() if self.file.exists() else None
        try:
            return find_outliers(self.path, **options)
        finally:
            assert before is None or self.file.read_bytes() == before

    def refused(self, message, named=None, **options):
        """Expect one line that says ``message`` and names the file."""
        with pytest.raises(DataError, match=message) as caught:
            self.find(**options)
        line = str(caught.value)
        assert "\n" not in line
        assert (named or self.named) in line
        assert len(line) < 500
        return line


def packed_frame(reader, frame):
    if reader in TEXT:
        data = frame.write_csv(separator="\t" if reader == "tsv" else ",").encode()
        return gzip.compress(data) if reader == "csv.gz" else data
    if reader in JSON:
        rows = "".join(json.dumps(row) + "\n" for row in frame.to_dicts())
        return gzip.compress(rows.encode()) if reader == "jsonl.gz" else rows.encode()
    file = io.BytesIO()
    if reader in ("parquet", "folder", "glob"):
        frame.write_parquet(file)
    elif reader == "arrow":
        frame.write_ipc(file)
    elif reader == "feather":
        frame.write_ipc_stream(file)
    elif reader == "npy":
        np.save(file, frame.cast(pl.Float64).to_numpy())
    else:
        np.savez_compressed(file, X=frame.cast(pl.Float64).to_numpy())
    return file.getvalue()


@pytest.fixture(params=READERS)
def source(request, tmp_path, monkeypatch):
    return Source(request.param, tmp_path, monkeypatch)


def of(*readers):
    """Run a test for these readers only."""
    return pytest.mark.parametrize("source", readers, indirect=True)


def numbers(n=60, **columns):
    rng = np.random.default_rng(0)
    return pl.DataFrame({"x0": rng.normal(size=n), "x1": rng.normal(size=n)} | columns)


def kind_of(found, j):
    return found.columns[j]["kind"]


# ---- too little ---------------------------------------------------------------------------------------------


def test_an_empty_file(source):
    source.put(b"").refused("nothing came" if source.reader == "stdin" else "the file is empty")


@of("csv.gz", "jsonl.gz")
def test_nothing_in_a_packed_file(source):
    source.put(gzip.compress(b"")).refused("the file is empty")


def test_a_header_only(source):
    expected = "file is empty" if source.reader in JSON else "no rows"
    source.frame(numbers().clear()).refused(expected)


def test_one_row(source):
    source.frame(numbers(1)).refused("no column is left to work with: 'x0' is constant; 'x1' is constant")


def test_two_rows(source):
    found = source.frame(numbers(2)).find()
    assert found.rows == 2
    assert np.isfinite(found.score_sample).all()


def test_one_column(source):
    frame = numbers().select("x0")
    frame[7, 0] = 40.0
    found = source.frame(frame).find(detector="knn")
    assert found.features == 1
    assert found.flagged[0].row == 7


def test_all_constant(source):
    line = source.frame(pl.DataFrame({"x0": [1.0] * 30, "x1": [2.0] * 30})).refused("no column is left")
    assert "'x0' is constant" in line


# ---- odd values ---------------------------------------------------------------------------------------------


def test_a_column_without_values(source):
    void = pl.Series([None] * 60, dtype=pl.Float64)
    found = source.frame(numbers(void=void)).find()
    assert kind_of(found, 2) == "all missing"
    assert found.columns[2]["action"] == "left out"
    assert found.features == 2


def test_a_column_of_nan(source):
    if source.reader in JSON:
        source.text('{"x0": 1.0, "x1": NaN}\n').refused("not JSON lines")
        return
    found = source.frame(numbers(nan=[np.nan] * 60)).find()
    assert kind_of(found, 2) == "all missing"


def test_infinities(source):
    if source.reader in JSON:
        source.text('{"x0": 1.0, "x1": Infinity}\n').refused("not JSON lines")
        return
    found = source.frame(numbers(x2=[np.inf, -np.inf, *range(58)])).find(top=60)
    assert "2 infinities became the extreme finite value" in found.columns[2]["note"]
    assert np.isfinite(found.score_sample).all()


def test_numbers_near_the_largest(source):
    found = source.frame(numbers(x2=[1e308, -1e308, *map(float, range(58))])).find(detector="knn")
    assert "values beyond ±1e+100 were clipped" in found.columns[2]["note"]
    assert np.isfinite(found.score_sample).all()
    assert {f.row for f in found.flagged} >= {0, 1}


@of(*TEXT, *JSON)
def test_types_that_mix(source):
    values = [str(i % 7) for i in range(60)]
    values[30] = "x"
    found = source.frame(numbers().with_columns(x2=pl.Series(values))).find()
    assert "1 values are not numbers" in found.columns[2]["note"]


@of(*JSON)
def test_types_that_mix_in_objects(source):
    rows = [{"a": i % 7, "b": i % 5} for i in range(60)]
    rows[30]["a"] = "x"
    rows[31]["a"] = {"deep": [1]}
    rows[32]["b"] = None
    source.text("".join(json.dumps(r) + "\n" for r in rows))
    try:
        found = source.find()
    except DataError as error:
        message = str(error)
        assert source.named in message
        assert "\n" not in message
    else:
        assert found.rows == 60


# ---- what is not a table ------------------------------------------------------------------------------------


def test_two_columns_of_one_name(source):
    message = "two columns are named 'x0'"
    table = pa.table([[1.0, 2.0], [3.0, 4.0]], names=["x0", "x0"])
    file = io.BytesIO()
    if source.reader in TEXT:
        cut = "\t" if source.reader == "tsv" else ","
        source.text(f"x0{cut}x0\n1{cut}2\n3{cut}4\n")
    elif source.reader in JSON:
        source.text('{"x0": 1, "x0": 2}\n{"x0": 3, "x0": 4}\n')
    elif source.reader in ("parquet", "folder", "glob"):
        pq.write_table(table, file)
        source.put(file.getvalue())
    elif source.reader in ("arrow", "feather"):
        opened = pa.ipc.new_file if source.reader == "arrow" else pa.ipc.new_stream
        with opened(file, table.schema) as writer:
            writer.write_table(table)
        source.put(file.getvalue())
    elif source.reader == "npy":
        source.put(packed_frame("npy", numbers()))  # a matrix has no names
        assert [c["column"] for c in source.find().columns] == ["x0", "x1"]
        return
    else:
        with zipfile.ZipFile(file, "w") as archive:
            for name in ("X", "X.npy"):
                archive.writestr(name, packed_frame("npy", numbers()))
        source.put(file.getvalue())
        message = "two arrays are named 'X'"
    source.refused(message)


@of(*TEXT)
@pytest.mark.parametrize("separator", ["^", ":", " "])
def test_a_separator_nobody_expects(source, separator):
    lines = [separator.join(["left", "right"])] + [separator.join([str(i), str(i * i % 17)]) for i in range(60)]
    source.text("\n".join(lines) + "\n")
    told = f"only one column, 'left{separator}right', was found; if {separator!r} separates columns"
    if separator == " ":  # a thousands separator too
        assert told in source.find().notes[0]
    else:
        assert told in source.refused("no column is left")


@of(*TEXT)
def test_a_table_of_the_wrong_width(source):
    cut = "\t" if source.reader == "tsv" else ","
    source.text(f"a{cut}b\n1{cut}2\n3{cut}4{cut}5\n6{cut}7\n").refused("has 3 fields, 2 expected")


@pytest.mark.parametrize("kind", ["png", "text", "zip", "zeros"])
def test_bytes_of_another_kind(source, kind):
    data = {
        "png": b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 8,
        "text": b"Dear reader,\nthis is a letter; it has no columns.\n\nYours",
        "zip": b"PK\x03\x04" + bytes(300),
        "zeros": bytes(4096),
    }[kind]
    source.put(data).refused(".")


@of("csv.gz", "jsonl.gz", *COLUMNAR, *MATRIX)
@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.97])
def test_a_truncated_file(source, share):
    data = packed_frame(source.reader, numbers(3000))
    source.put(data[: int(share * len(data))]).refused("truncated|not a whole")


@of(*JSON)
def test_json_lines_cut_in_the_middle(source):
    source.text('{"a": 1, "b": 2}\n{"a": 3, "b"').refused("not JSON lines")


@of("csv.gz", "jsonl.gz", *COLUMNAR, *MATRIX)
def test_damage_anywhere_is_told_or_harmless(source):
    """Flip bytes all over: whatever a reader makes of it, it must not crash, hang or tell of its insides."""
    data = packed_frame(source.reader, numbers(200))
    rng = np.random.default_rng(1)
    for _ in range(25):
        broken = bytearray(data)
        for at in rng.integers(0, len(data), size=3):
            broken[at] = rng.integers(0, 256)
        source.put(bytes(broken))
        told = None
        try:
            open_table(source.path).read()
        except SkerryError as error:
            told = str(error)
        assert told is None or (source.named in told and "\n" not in told)


@of(*MATRIX)
def test_pickled_objects_are_refused(source, tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "exploded"),)

    file = io.BytesIO()
    bomb = np.array([[Bomb(), 1.0]], dtype=object)
    if source.reader == "npy":
        np.save(file, bomb, allow_pickle=True)
    else:
        np.savez(file, X=bomb)
    source.put(file.getvalue()).refused("object|Object")
    assert not (tmp_path / "exploded").exists()


def claimed(shape):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": shape})
    return file.getvalue()


@of(*MATRIX)
@pytest.mark.parametrize("shape", [(10**9, 10**6), (2**62, 4), (2**40, 1), (-1, 2), (3, -5)])
def test_arrays_that_claim_more_than_the_file_holds(source, shape):
    data = claimed(shape) + bytes(64)
    if source.reader == "npz":
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("X.npy", data)
        data = file.getvalue()
    source.put(data).refused("not a whole .npy|declares")


@of("npz", "csv.gz", "jsonl.gz")
def test_bombs(source, monkeypatch):
    monkeypatch.setattr(packed, "FREE_BYTES", 1 << 20)
    if source.reader == "npz":
        file = io.BytesIO()
        np.savez_compressed(file, X=np.zeros((1 << 21, 1)), y=np.zeros(1 << 21))
        source.put(file.getvalue()).refused("refused as a bomb")
    else:
        line = "1,2\n" if source.reader == "csv.gz" else '{"a": 1, "b": 2}\n'
        source.text(line * 600_000).refused(r"unpacks to more than \d MiB")


def test_five_thousand_columns(source):
    values = np.random.default_rng(0).normal(size=(12, 5000)).round(3)
    frame = pl.DataFrame(values, schema=[f"x{j}" for j in range(5000)])
    table = open_table(source.frame(frame).path)
    assert len(table.columns) == 5000
    np.testing.assert_array_equal(table.read().to_numpy(), values)
    if source.reader in ("csv", "npy"):
        assert source.find(explain=False).features == 5000


# ---- what is asked of a good table --------------------------------------------------------------------------


def test_a_label_of_one_class(source, tmp_path):
    frame = numbers(x2=[0] * 60)
    source.frame(frame).refused("label column 'x2' holds only the class 0", label="x2", out=tmp_path / "s.csv")
    assert not (tmp_path / "s.csv").exists()


def test_a_label_of_many_classes(source):
    source.frame(numbers(x2=[i % 3 for i in range(60)])).refused(
        "label column 'x2', row 2: 2.* is neither 0/1", label="x2"
    )


@of("npz")
@pytest.mark.parametrize(
    ("y", "told"),
    [
        (np.zeros(60), "no metrics: label column 'y' holds only the class 0"),
        (np.ones(60, bool), "no metrics: label column 'y' holds only the class 1"),
        (np.arange(60) % 4, "no metrics: label column 'y', row 2: 2 is neither 0/1"),
        (np.linspace(0, 1, 60), "no metrics: label column 'y', row 1"),
        (np.where(np.arange(60) == 59, np.nan, 0.0), "no metrics: label column 'y', row 59: nan is neither 0/1"),
    ],
)
def test_a_y_that_allows_no_metrics_is_set_aside_with_a_note(source, y, told):
    file = io.BytesIO()
    np.savez(file, X=numbers().to_numpy(), y=y)
    found = source.put(file.getvalue()).find()
    assert found.features == 2
    assert found.metrics == {}
    assert told in found.notes[-1]
    source.refused(told.removeprefix("no metrics: "), label="y")  # who names it is told that it is no label


def test_a_label_that_is_not_there(source):
    source.frame(numbers()).refused("no label column 'nope'; columns are x0, x1", label="nope")


def test_a_table_is_never_written_over(source, tmp_path):
    source.frame(numbers())
    if source.reader == "stdin":
        assert source.find(out=tmp_path / "s.csv").rows == 60
        return
    if source.file.suffix in (".csv", ".parquet"):
        source.refused("would be replaced", out=source.file, named=source.file.name)
        link = tmp_path.parent / f"{tmp_path.name}-link{source.file.suffix}"
        link.symlink_to(source.file)
        source.refused("would be replaced", out=link, named=link.name)
    before = set(tmp_path.iterdir())
    source.refused("must end in .parquet or .csv", out=tmp_path / "s.txt", named="s.txt")
    source.refused("cannot be written", out=tmp_path / "no folder" / "s.csv", named="s.csv")
    folder = tmp_path.parent / f"{tmp_path.name}-d.csv"
    folder.mkdir()
    source.refused("is a folder", out=folder, named=folder.name)
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize("rule", ["contamination:0.9", "contamination:-1", "contamination:nan", "extreme:2", "x"])
def test_a_threshold_out_of_range(rule):
    with pytest.raises(ParameterError, match="contamination|risk|unknown threshold"):
        find_outliers(numbers(), detector="ecod", threshold=rule)


# ---- failing while writing ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize("failure", ["disk", "interrupt", "bug"])
def test_nothing_half_written_when_it_fails_midway(tmp_path, monkeypatch, kind, failure):
    from skerry.detect.tabular.row_writer import RowWriter

    failures = {"disk": OSError(28, "No space left on device"), "interrupt": KeyboardInterrupt(), "bug": KeyError(1)}
    write, count = RowWriter.write, itertools.count()

    def failing(self, *args):
        write(self, *args)
        if next(count) == 2:
            raise failures[failure]

    monkeypatch.setattr(RowWriter, "write", failing)
    out = tmp_path / f"s.{kind}"
    out.write_bytes(b"older")
    expected = {"disk": DataError, "interrupt": KeyboardInterrupt, "bug": KeyError}[failure]
    with pytest.raises(expected, match="No space left" if failure == "disk" else None):
        find_outliers(numbers(100), detector="ecod", out=out, batch_rows=10)
    assert out.read_bytes() == b"older"
    assert [p.name for p in tmp_path.iterdir()] == [out.name]
