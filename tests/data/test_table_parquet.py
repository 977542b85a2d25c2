import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from skerry.data.table_parquet import parquet_table
from skerry.data.tables import open_table

ROWS, COLUMNS = 1_000_000, 6  # 48 MB of doubles that do not compress


@pytest.fixture(scope="module")
def big(tmp_path_factory):
    rng = np.random.default_rng(0)
    frame = pl.DataFrame({f"c{j}": rng.normal(size=ROWS) for j in range(COLUMNS)})
    folder = tmp_path_factory.mktemp("big")
    pq.write_table(frame.to_arrow(), folder / "one group.parquet", row_group_size=ROWS, use_dictionary=False)
    pq.write_table(frame.to_arrow(), folder / "ten groups.parquet", row_group_size=ROWS // 10)
    return folder, frame


@pytest.mark.parametrize("name", ["one group", "ten groups"])
def test_a_stream_holds_pages_and_a_batch_never_the_file(big, name):
    folder, frame = big
    path = str(folder / f"{name}.parquet")
    table = parquet_table(path, [path])
    before, most, total, at = pa.total_allocated_bytes(), 0, 0.0, 0
    for batch in table.batches(8192):
        most = max(most, pa.total_allocated_bytes() - before)
        total += float(batch["c0"].sum())
        at += batch.height
    assert at == ROWS
    np.testing.assert_allclose(total, frame["c0"].sum())
    # a batch is 0.4 MB; beside it stand a page (1 MiB), a dictionary and a buffer for each column, for two threads
    assert most < 24 << 20, f"{most / 2**20:.0f} MiB held"


def test_leaving_early_releases_everything(big):
    folder, _ = big
    table = parquet_table("t", [str(folder / "one group.parquet")])
    before = pa.total_allocated_bytes()
    stream = table.batches(1000)
    first = next(stream).clone()
    stream.close()
    del first
    assert pa.total_allocated_bytes() - before < 1 << 20


def test_partitions_in_the_names_of_folders_are_told(tmp_path):
    for year in (2023, 2024):
        (tmp_path / f"year={year}").mkdir()
        pl.DataFrame({"a": [year]}).write_parquet(tmp_path / f"year={year}" / "0.parquet")
    table = open_table(tmp_path)
    assert table.read()["a"].to_list() == [2023, 2024]
    assert table.notes == ["columns held in the names of folders are not read: year"]
    assert open_table(tmp_path / "year=2023" / "0.parquet").notes == table.notes
