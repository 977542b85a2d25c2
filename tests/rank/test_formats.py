"""Folders of the published tool."""

import gzip

import pytest

from skerry.core.errors import DataError, SkerryWarning
from skerry.rank.formats import read_outrank_folder
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
