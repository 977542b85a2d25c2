import gzip
import io
import sys
import types
import zipfile

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry.core.errors import DataError, ParameterError
from skerry.data import packed
from skerry.data.table import MAX_CELLS
from skerry.data.tables import open_table, reservoir_sample

FRAME = pl.DataFrame({"a": [1, 2, 3], "b": [0.5, None, 2.5], "c": ["x", "y", "x"]})


def put(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def write(kind, path):
    if kind == "csv":
        FRAME.write_csv(path)
    elif kind == "tsv":
        FRAME.write_csv(path, separator="\t")
    elif kind == "csv.gz":
        path.write_bytes(gzip.compress(FRAME.write_csv().encode()))
    elif kind == "jsonl":
        FRAME.write_ndjson(path)
    elif kind == "jsonl.gz":
        path.write_bytes(gzip.compress(FRAME.write_ndjson().encode()))
    elif kind == "parquet":
        FRAME.write_parquet(path)
    elif kind == "arrow":
        FRAME.write_ipc(path)
    else:
        FRAME.write_ipc_stream(path)


@pytest.mark.parametrize("kind", ["csv", "tsv", "csv.gz", "jsonl", "jsonl.gz", "parquet", "arrow", "feather"])
def test_every_kind_gives_the_same_table_twice_and_leaves_the_file(tmp_path, kind):
    path = tmp_path / f"t.{kind}"
    write(kind, path)
    before = path.read_bytes()
    table = open_table(path)
    assert table.columns == ["a", "b", "c"]
    assert table.n_rows == 3
    for _ in range(2):
        assert pl.concat(list(table.batches(2))).equals(FRAME)
    assert [f.height for f in table.batches(2)] == [2, 1]
    assert table.read().equals(FRAME)
    assert path.read_bytes() == before


@pytest.mark.parametrize("kind", ["pandas", "arrow", "polars", "lazy", "table"])
def test_objects(kind):
    pandas = pytest.importorskip("pandas")
    made = {
        "pandas": lambda: pandas.DataFrame({"a": [1, 2, 3], "b": [0.5, None, 2.5], "c": ["x", "y", "x"]}),
        "arrow": FRAME.to_arrow,
        "polars": lambda: FRAME,
        "lazy": FRAME.lazy,
        "table": lambda: open_table(FRAME),
    }[kind]()
    got = open_table(made).read()
    assert got.columns == FRAME.columns
    assert got["a"].to_list() == [1, 2, 3]
    assert got["c"].cast(pl.String).to_list() == ["x", "y", "x"]
    assert got["b"].fill_nan(None).to_list() == [0.5, None, 2.5]


def test_pandas_of_mixed_types_and_integer_names():
    pandas = pytest.importorskip("pandas")
    frame = open_table(pandas.DataFrame({0: [1, "x", None], 1: [1.0, 2.0, 3.0]})).read()
    assert frame.to_dict(as_series=False) == {"0": ["1", "x", None], "1": [1.0, 2.0, 3.0]}


@pytest.mark.parametrize("dtype", ["<f8", "<f4", "<f2", ">f8", "<i4", "|b1", "<u8"])
@pytest.mark.parametrize("kind", ["memory", "npy", "npz", "packed", "fortran", "sparse"])
def test_arrays(tmp_path, dtype, kind):
    X = (np.arange(20).reshape(10, 2) % 7).astype(dtype)
    y = np.arange(10) % 2
    expected = X.astype(float)
    if kind == "sparse":
        if dtype in ("<f2", ">f8"):
            pytest.skip("SciPy does not hold this type")
        source = sp.coo_matrix(X)
    elif kind == "memory":
        source = X
    elif kind == "npy":
        source = tmp_path / "t.npy"
        np.save(source, X)
    else:
        source = tmp_path / "t.npz"
        (np.savez_compressed if kind == "packed" else np.savez)(
            source, X=np.asfortranarray(X) if kind == "fortran" else X, y=y
        )
    table = open_table(source)
    has_y = kind in ("npz", "packed", "fortran")
    assert table.columns == ["x0", "x1"] + ["y"] * has_y
    assert table.n_rows == 10
    got = pl.concat(list(table.batches(4)))
    assert dict(got.schema) == table.schema
    np.testing.assert_array_equal(got.select("x0", "x1").cast(pl.Float64).to_numpy(), expected)
    if has_y:
        assert got["y"].to_list() == y.tolist()


def test_parquet_folder_and_glob_and_schemas_that_differ(tmp_path):
    for i in range(3):
        FRAME.with_columns(a=pl.lit(i)).write_parquet(tmp_path / f"{i}.parquet")
    for source in (tmp_path, tmp_path / "*.parquet"):
        table = open_table(source)
        assert table.n_rows == 9
        assert table.read()["a"].to_list() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    FRAME.with_columns(a=pl.lit("s")).write_parquet(tmp_path / "3.parquet")
    with pytest.raises(DataError, match=r"3\.parquet: column 'a' is large_string, but int32 in .*0\.parquet"):
        open_table(tmp_path)
    FRAME.drop("a").write_parquet(tmp_path / "3.parquet")
    with pytest.raises(DataError, match=r"3\.parquet: its columns differ"):
        open_table(tmp_path)


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_the_separator_is_found_and_told(tmp_path, separator):
    text = "\n".join(separator.join(r) for r in [["a", "b"], ["1", "2"], ["3", "4"]])
    table = open_table(put(tmp_path / "t.csv", text))
    assert table.read().rows() == [(1, 2), (3, 4)]
    assert bool(table.notes) == (separator != ",")


def test_decimal_commas_and_a_given_separator(tmp_path):
    path = put(tmp_path / "t.csv", "a;b\n1,5;2,5\n3,5;4,5\n")
    table = open_table(path)
    assert table.columns == ["a", "b"]
    assert "separated by semicolon" in table.notes[0]
    assert open_table(path, separator=";").columns == ["a", "b"]
    with pytest.raises(DataError, match="no '|' in the first line; it looks separated by ';'"):
        open_table(path, separator="|")
    with pytest.raises(ParameterError, match="one character"):
        open_table(path, separator="::")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.csv", "", "the file is empty"),
        ("t.csv", " \n\n", "the file is empty"),
        ("t.csv.gz", gzip.compress(b""), "the file is empty"),
        ("t.jsonl", "", "the file is empty"),
        ("t.parquet", "", "the file is empty"),
        ("t.csv", "a,b\n", "a header but no rows"),
        ("t.csv", "\na,b\n1,2\n", "first line is blank"),
        ("t.csv", "a,b,a\n1,2,3\n", "two columns are named 'a'"),
        ("t.csv", "a,b\n1,2\n3\n4,5\n", r"row 1 has 1 fields, 2 expected|has 1 fields, 2 expected"),
        ("t.csv", "a,b\n1,2\n3,4,5\n", r"has 3 fields, 2 expected; check quoting"),
        ("t.csv", b"a,b\n\x00\x01,2\n", "is binary"),
        ("t.csv", "a,b\n1,2\n".encode("utf-16"), "is UTF-16 text; save it as UTF-8"),
        ("t.jsonl", "{'a': 1}\n", "not JSON lines"),
        ("t.jsonl", '{"a": 1}\n{"a": \n', "not JSON lines"),
        ("t.parquet", b"PAR1 no parquet", "not a whole Parquet file"),
        ("t.arrow", b"ARROW1 no arrow", "not a whole Arrow IPC file"),
        ("t.npy", b"\x93NUMPY", "not a whole .npy file"),
        ("t.npz", b"PK no zip", "not a whole .npz"),
        ("t.csv.gz", b"no gzip", "not a sound gzip file"),
        ("t.xyz", "a", "unknown kind '.xyz'; use .csv"),
    ],
)
def test_bad_files_are_told_by_name(tmp_path, name, text, message):
    path = put(tmp_path / name, text)
    with pytest.raises(DataError, match=message) as caught:
        open_table(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_files_folders_and_globs(tmp_path):
    with pytest.raises(DataError, match="no such file or folder"):
        open_table(tmp_path / "t.csv")
    with pytest.raises(DataError, match="holds no .parquet file"):
        open_table(tmp_path)
    with pytest.raises(DataError, match="no file matches"):
        open_table(tmp_path / "*.parquet")


@pytest.mark.parametrize("kind", ["csv.gz", "jsonl.gz", "parquet", "arrow", "npy", "npz"])
def test_truncated_files(tmp_path, kind):
    path = tmp_path / f"t.{kind}"
    rng = np.random.default_rng(0)
    frame = pl.DataFrame({"a": rng.normal(size=3000), "b": rng.normal(size=3000)})
    if kind == "npy":
        np.save(path, frame.to_numpy())
    elif kind == "npz":
        np.savez_compressed(path, X=frame.to_numpy())
    elif kind == "parquet":
        frame.write_parquet(path)
    elif kind == "arrow":
        frame.write_ipc(path)
    else:
        text = frame.write_csv() if kind == "csv.gz" else frame.write_ndjson()
        path.write_bytes(gzip.compress(text.encode()))
    raw = path.read_bytes()
    path.write_bytes(raw[: len(raw) // 2])
    with pytest.raises(DataError, match=r"truncated|not a whole"):
        open_table(path).read()


def test_bombs(tmp_path, monkeypatch):
    monkeypatch.setattr(packed, "FREE_BYTES", 1 << 20)
    path = put(tmp_path / "t.csv.gz", gzip.compress(b"a,b\n" + b"1,2\n" * 500_000))
    with pytest.raises(DataError, match="unpacks to more than 1 MiB"):
        open_table(path)
    np.savez_compressed(tmp_path / "t.npz", X=np.zeros((200_000, 2)))
    with pytest.raises(DataError, match="unpacks to 3 MiB; refused as a bomb"):
        open_table(tmp_path / "t.npz")


def member(shape, payload=b"", descr="<f8"):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
    return file.getvalue() + payload


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"X.npy": member((10**9, 10**6))}, r"X: not a whole .npy file \(declares shape \(1000000000, 1000000\)"),
        ({"X.npy": member((2, 2), b"\x80" * 32, "|O")}, "holds Python objects, which are never read"),
        ({"Z.npy": member((1, 1), bytes(8))}, "holds Z, but no array X"),
        ({"X.npy": member((4,), bytes(32))}, "two-dimensional array is needed"),
        ({"X.npy": member((2, 1), bytes(16)), "y.npy": member((3,), bytes(24))}, r"X has 2 rows, y has shape \(3,\)"),
        ({"X.npy": member((2, 1), bytes(8), "<U1")}, "array of numbers is needed"),
        ({"X.npy": member((0, 2))}, "no rows"),
        ({"X.npy": member((2, 0))}, "no columns"),
    ],
)
def test_hostile_npz(tmp_path, members, message):
    with zipfile.ZipFile(tmp_path / "t.npz", "w") as z:
        for name, data in members.items():
            z.writestr(name, data)
    with pytest.raises(DataError, match=message):
        open_table(tmp_path / "t.npz")


def test_objects_in_npy_are_never_unpickled(tmp_path):
    np.save(tmp_path / "t.npy", np.array([[{}]], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="holds Python objects, which are never read"):
        open_table(tmp_path / "t.npy")


def test_bad_objects():
    with pytest.raises(DataError, match="two-dimensional"):
        open_table(np.zeros(3))
    with pytest.raises(DataError, match="array of numbers"):
        open_table(np.array([["a"]]))
    with pytest.raises(DataError, match="no rows"):
        open_table(np.zeros((0, 3)))
    with pytest.raises(DataError, match="no columns"):
        open_table(np.zeros((3, 0)))
    with pytest.raises(DataError, match="no rows"):
        open_table(FRAME.head(0))
    with pytest.raises(DataError, match="two columns are named 'a'"):
        open_table(pa.table([[1], [2]], names=["a", "a"]))
    with pytest.raises(DataError):
        open_table(object())


def test_types_hold_for_the_whole_file(tmp_path):
    n = 400_000
    lines = [f"{i},{i},{i}" for i in range(n)] + ["1.5,x,9"]
    table = open_table(put(tmp_path / "t.csv", "a,b,c\n" + "\n".join(lines) + "\n"))
    assert table.n_rows == n + 1
    assert [str(t) for t in table.schema.values()] == ["Float64", "String", "Int64"]
    assert "mixed in 'b'" in table.notes[0]
    assert {tuple(f.schema.values()) for f in table.batches()} == {tuple(table.schema.values())}


def test_latin_text_wherever_it_begins(tmp_path):
    for n in (1, 300_000):
        table = open_table(put(tmp_path / "t.csv", b"a,b\n" + b"xx,1\n" * n + b"\xe9t\xe9,2\n"))
        assert table.notes == ["not UTF-8; read as Latin-1"]
        assert list(table.batches())[-1]["a"][-1] == "été"


def test_five_thousand_columns_and_long_rows(tmp_path):
    names = [f"c{i}" for i in range(5000)]
    row = ",".join(["1234567890"] * 5000)
    table = open_table(put(tmp_path / "t.csv", ",".join(names) + "\n" + row + "\n" + row + "\n"))
    assert table.read().shape == (2, 5000)
    assert max(f.height for f in open_table(np.zeros((20_000, 5000), np.int8)).batches()) * 5000 <= MAX_CELLS


def test_json_with_new_keys_and_mixed_types(tmp_path):
    table = open_table(put(tmp_path / "t.jsonl", '{"a": 1}\n{"a": 2.5, "b": "x"}\n'))
    assert table.read().to_dict(as_series=False) == {"a": [1.0, 2.5], "b": [None, "x"]}


def test_standard_input(monkeypatch):
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(b"a,b\n1,2\n3,4\n")))
    table = open_table("-")
    assert table.read().rows() == table.read().rows() == [(1, 2), (3, 4)]
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(b"")))
    with pytest.raises(DataError, match="nothing came"):
        open_table("-")


def test_format_and_columns(tmp_path):
    path = put(tmp_path / "t.data", "a,b\n1,2\n")
    table = open_table(path, format="csv", columns=["b"])
    assert table.read().to_dict(as_series=False) == {"b": [2]}
    with pytest.raises(ParameterError, match="did you mean 'csv'"):
        open_table(path, format="cvs")
    with pytest.raises(DataError, match="no column 'bb'; did you mean 'b'"):
        open_table(FRAME, columns=["bb"])


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 60),
    st.integers(1, 20),
    st.integers(1, 9),
    st.lists(st.one_of(st.none(), st.floats(allow_nan=False)), min_size=1, max_size=20),
)
def test_batches_and_samples_partition_the_table(tmp_path_factory, n, k, rows, values):
    frame = pl.DataFrame({"i": np.arange(n), "v": (values * n)[:n]}, schema={"i": pl.Int64, "v": pl.Float64})
    path = tmp_path_factory.mktemp("t") / "t.parquet"
    frame.write_parquet(path)
    table = open_table(path)
    assert pl.concat(list(table.batches(rows))).equals(frame)
    sample, where = reservoir_sample(table, k, 0)
    assert sample["i"].to_list() == where.tolist() == sorted(set(where.tolist()))
    assert sample.height == min(n, k)
    assert sample.equals(frame[where])


def test_the_sample_is_uniform_and_repeats_for_a_seed():
    table = open_table(np.arange(40.0).reshape(40, 1))
    counts = np.zeros(40)
    for seed in range(600):
        counts[reservoir_sample(table, 10, seed)[1]] += 1
    assert ((counts - 150) ** 2 / 112.5).sum() < 75  # chi-square with 39 degrees of freedom, p about 0.0005
    np.testing.assert_array_equal(reservoir_sample(table, 10, 5)[1], reservoir_sample(table, 10, 5)[1])
    with pytest.raises(ParameterError, match="n=0"):
        reservoir_sample(table, 0, 0)
