"""Folders of the published tool."""

import gzip

import polars as pl
import pytest

from skerry.core.errors import DataError, SkerryWarning
from skerry.rank.formats import declared_numbers, is_outrank_folder, read_outrank_folder
from skerry.rank.outrank import OutRank


def test_vowpal_wabbit(tmp_path):
    (tmp_path / "vw_namespace_map.csv").write_text("A,colour\nB,size,f32\n")
    with gzip.open(tmp_path / "data.vw.gz", "wt") as file:
        file.write("1 |A red blue |B 3\n-1 |B 4\n")
    frame = next(read_outrank_folder(tmp_path))
    assert frame.rows() == [("red-blue", "3", "1"), ("", "4", "-1")]
    assert frame.columns == ["colour", "size", "label"]


def test_csv_counts_bad_lines(tmp_path):
    (tmp_path / "data.csv").write_text('a,label\n"x,1",1\nbad\ny,0\n' * 1)
    with pytest.warns(SkerryWarning, match="1 bad lines were skipped; first: line 3 'bad'"):
        ranker = OutRank(controls=False).fit(tmp_path)
    assert ranker.n_rows_ == 2


def test_description_names_the_columns(tmp_path):
    (tmp_path / "data.csv").write_text("1,2\n3,4\n")
    (tmp_path / "dataset_desc.json").write_text('{"data_features": [{"name": "u"}, {"name": "label"}]}')
    assert next(read_outrank_folder(tmp_path)).rows() == [("1", "2"), ("3", "4")]
    (tmp_path / "dataset_desc.json").write_text("[]")
    with pytest.raises(DataError, match="data_features"):
        next(read_outrank_folder(tmp_path))


def test_raw_dump(tmp_path):
    (tmp_path / "raw_data/0_header").mkdir(parents=True)
    (tmp_path / "raw_data/1_train/day=1").mkdir(parents=True)
    (tmp_path / "raw_data/0_header/header.csv").write_text("u\tv\tlabel\n")
    (tmp_path / "raw_data/1_train/part-0").write_text("u\tv\tlabel\n1\t2\t0\n3\t4\t1\n")
    with gzip.open(tmp_path / "raw_data/1_train/day=1/part-1.gz", "wt") as file:
        file.write("5\t6\t0\n7\t8\n")
    (tmp_path / "raw_data/1_train/_SUCCESS").write_text("")
    assert is_outrank_folder(tmp_path)
    with pytest.warns(SkerryWarning, match=r"1 bad lines were skipped; first: raw_data/1_train/day=1/part-1.gz line 2"):
        rows = [r for frame in read_outrank_folder(tmp_path, 2) for r in frame.rows()]
    assert sorted(rows) == [("1", "2", "0"), ("3", "4", "1"), ("5", "6", "0")]


def test_declared_types_decide_what_is_transformed(tmp_path):
    rows = "".join(f"{i},{i % 7},{i % 2}\n" for i in range(60))
    (tmp_path / "data.csv").write_text("u,v,label\n" + rows)
    features = '[{"name": "u", "type": "int"}, {"name": "v", "type": "float32"}, {"name": "label"}]'
    (tmp_path / "dataset_desc.json").write_text('{"data_features": ' + features + "}")
    assert declared_numbers(tmp_path) == {"v"}
    names = OutRank(transforms="default", controls=False).fit(tmp_path).ranking_["feature"]
    assert {n.split("_tr_")[0] for n in names if "_tr_" in n} == {"v"}


def test_vowpal_wabbit_types_and_bad_lines(tmp_path):
    (tmp_path / "vw_namespace_map.csv").write_text("A,colour\nB,size,f32\n")
    with gzip.open(tmp_path / "data.vw.gz", "wt") as file:
        file.write("1 |A red |B 3\nno bars here\n-1 |C what |B 4\n-1 |B 4\n")
    assert declared_numbers(tmp_path) == {"size"}
    with pytest.warns(SkerryWarning, match="2 bad lines were skipped; first: line 2 'no bars here', line 3"):
        frame = next(iter([pl.concat(read_outrank_folder(tmp_path))]))
    assert frame.height == 2


def test_only_five_bad_lines_are_shown(tmp_path):
    (tmp_path / "data.csv").write_text("a,label\n" + "bad\n" * 9 + "1,0\n2,1\n")
    with pytest.warns(SkerryWarning) as caught:
        list(read_outrank_folder(tmp_path))
    assert str(caught[0].message).count("'bad'") == 5


def test_ragged_tables_are_read(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text('a,b,label\n1,"x,y",0\n1,2\n3,4,1\n3,NA,1,9\n')
    with pytest.warns(SkerryWarning, match="2 bad lines were skipped"):
        ranker = OutRank(controls=False).fit(path)
    assert ranker.n_rows_ == 2
    assert not path.with_suffix(".csv~").exists()


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"data.csv": ""}, "is empty"),
        ({"data.csv": "a,a,label\n1,2,3\n"}, "two columns are named 'a'"),
        ({"data.vw.gz": "damaged"}, "needs vw_namespace_map.csv"),
        ({"data.vw.gz": "damaged", "vw_namespace_map.csv": "A,a\n"}, "the file is damaged"),
        ({"raw_data/0_header/header.csv": "a\tlabel\n"}, "holds no part file"),
    ],
)
def test_damaged_folders(tmp_path, files, told):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=told):
        OutRank().fit(tmp_path)
