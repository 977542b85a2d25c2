import json
import os
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from skerry.core.errors import DataError, ParameterError
from skerry.core.events import flag_runs
from skerry.data.series_sets import SERIES_GROUPS, labelled_series

DATA = Path(os.environ.get("SKERRY_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
real = pytest.mark.skipif(not (DATA / "series").is_dir(), reason=f"no series at {DATA}: set SKERRY_DATA")


@real
@pytest.mark.parametrize("group", SERIES_GROUPS)
def test_every_series_of_a_set_holds_together(group):
    seen = set()
    for s in labelled_series(DATA, group):
        assert s.group == group and s.name not in seen
        seen.add(s.name)
        assert s.train.dtype == s.test.dtype == np.float64 and np.isfinite(s.train).all() and np.isfinite(s.test).all()
        assert s.train.shape[1] == s.test.shape[1] == len(s.channels) and len(s.train) > 100
        assert s.label.shape == (len(s.test),) and s.label.dtype == bool
        assert s.time is None or s.time.shape == s.label.shape
        assert s.has_anomaly or group == "nab"
        for (start, stop), channels in s.blame.items():
            assert s.label[start:stop].all() and 0 <= min(channels) <= max(channels) < len(s.channels)
        assert f"{group}/{s.name}" in repr(s)
    assert len(seen) == {"nab": 31, "smd": 5, "asd": 8, "msl": 18, "smap": 36, "skab": 24, "ucr": 2}[group]


@real
def test_spans_of_the_authors_are_the_runs_of_the_label():
    for name in ("machine-1-6", "omi-1"):
        (s,) = (
            labelled_series(DATA, ["smd", "asd"], names=[name])
            if name.startswith("m")
            else labelled_series(DATA, "asd", names=[name])
        )
        assert set(s.blame) == set(zip(*(a.tolist() for a in flag_runs(s.label)), strict=True))
        assert not s.kinds or set(s.kinds) == set(s.blame)


@real
def test_train_and_test_are_the_series_of_the_source():
    table = pl.read_parquet(DATA / "series/nab.parquet").filter(pl.col("name") == "nyc_taxi")
    (s,) = labelled_series(DATA, "nab", names=["nyc_taxi"])
    np.testing.assert_array_equal(np.r_[s.train, s.test][:, 0], table["value"].to_numpy())
    assert len(s.train) == 750 and s.label.sum() == table["in_window"].sum() and len(s.kinds) == 5
    (s,) = labelled_series(DATA, "ucr", names=["135_UCR_Anomaly_InternalBleeding16_1200_4187_4199"])
    assert len(s.train) == 1200 and np.flatnonzero(s.label).tolist() == list(range(2987, 3000))


def test_bad_names_and_files_are_said(tmp_path):
    with pytest.raises(ParameterError, match="did you mean 'smap'"):
        labelled_series(tmp_path, "smpa")
    for group in SERIES_GROUPS:
        with pytest.raises(DataError, match="series"):
            list(labelled_series(tmp_path, group))
    folder = tmp_path / "series" / "msl"
    folder.mkdir(parents=True)
    (folder / "A.npz").write_bytes(b"PK\x03\x04 not a zip")
    with pytest.raises(DataError, match=r"A\.npz"):
        list(labelled_series(tmp_path, "msl"))
    np.savez(folder / "A.npz", train=np.zeros((9, 2)))
    with pytest.raises(DataError, match="test"):
        list(labelled_series(tmp_path, "msl"))
    (tmp_path / "series" / "nab.parquet").write_bytes(b"PAR1")
    (tmp_path / "series" / "nab_labels.json").write_text(json.dumps({}))
    with pytest.raises(DataError, match=r"nab\.parquet"):
        list(labelled_series(tmp_path, "nab"))


def test_only_the_series_asked_for_are_read(tmp_path):
    folder = tmp_path / "series" / "msl"
    folder.mkdir(parents=True)
    arrays = {"train": np.ones((9, 2)), "test": np.ones((5, 2)), "label": np.array([0, 1, 0, 0, 0])}
    np.savez(folder / "good.npz", **arrays)
    (folder / "bad.npz").write_bytes(b"")
    (s,) = labelled_series(tmp_path, "msl", names=["good"])
    assert s.channels == ["telemetry", "command1"] and s.label.tolist() == [False, True, False, False, False]
