"""The batches of a table here and on Ray: the same results in the same order."""

import importlib.util
import sys

import numpy as np
import polars as pl
import pytest

from skerry.core.errors import DataError, MissingExtra, ParameterError
from skerry.data.engine import check_engine, map_batches
from skerry.data.table_parquet import read_row_group
from skerry.data.tables import open_table

ray_only = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the extra 'scale' (ray[data])")


class Rows:
    """First row, height and sum of a batch; a negative value is refused."""

    def __call__(self, start, frame):
        if frame["a"].min() < 0:
            raise DataError(f"column 'a' is negative from row {start} on")
        return start, frame.height, frame["a"].sum()


@pytest.fixture
def by_value():
    """This module is unknown to the workers."""
    import ray.cloudpickle

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def folder(tmp_path):
    for k, n in enumerate((50, 7, 1)):
        frame = pl.DataFrame({"a": np.arange(n) + 100 * k, "b": np.arange(n) / 3})
        frame.write_parquet(tmp_path / f"{k}.parquet", row_group_size=20)
    return tmp_path


def test_row_groups_are_the_table_in_pieces(tmp_path):
    table = open_table(folder(tmp_path))
    assert [n for _, _, n in table.row_groups] == [20, 20, 10, 7, 1]
    parts = [f for path, group, _ in table.row_groups for f in read_row_group(path, group, 8)]
    assert max(f.height for f in parts) <= 8
    assert pl.concat(parts).equals(table.read())
    with pytest.raises(DataError, match="cannot be read where the work is done"):
        list(read_row_group(str(tmp_path / "gone.parquet"), 0, 8))


def test_an_unknown_engine_is_told():
    with pytest.raises(ParameterError, match="use local or ray"):
        check_engine("spark")


def test_without_ray_the_install_line_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray.data", None)
    with pytest.raises(MissingExtra, match=r"pip install 'skerry\[scale\]'"):
        check_engine("ray")


@ray_only
@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_ray_gives_the_batches_in_the_order_of_the_rows(tmp_path, by_value, kind):
    table = open_table(folder(tmp_path))
    if kind == "csv":
        table.read().write_csv(tmp_path / "t.csv")
        table = open_table(tmp_path / "t.csv")
    got = list(map_batches(table, Rows(), rows=9, engine="ray"))
    assert [g[0] for g in got] == np.cumsum([0] + [g[1] for g in got])[:-1].tolist()
    assert max(g[1] for g in got) <= 9
    assert sum(g[1] for g in got) == table.n_rows
    assert sum(g[2] for g in got) == table.read()["a"].sum()


@ray_only
def test_an_error_in_a_worker_is_told_in_the_same_words(tmp_path, by_value):
    pl.DataFrame({"a": [1, 2, -3]}).write_parquet(tmp_path / "t.parquet", row_group_size=1)
    for engine in ("local", "ray"):
        with pytest.raises(DataError, match="column 'a' is negative from row 2 on"):
            list(map_batches(open_table(tmp_path / "t.parquet"), Rows(), rows=1, engine=engine))


@ray_only
def test_a_defect_in_a_worker_names_the_table(tmp_path, by_value):
    pl.DataFrame({"b": [1]}).write_parquet(tmp_path / "t.parquet")
    with pytest.raises(DataError, match="t.parquet: Ray could not work on it"):
        list(map_batches(open_table(tmp_path / "t.parquet"), Rows(), engine="ray"))
