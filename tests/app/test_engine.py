"""``--engine ray``: the findings and the ranking of ``--engine local``, bit for bit."""

import importlib.util
import json

import numpy as np
import polars as pl
import pytest

ray_only = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the extra 'scale' (ray[data])")


@pytest.fixture
def parts(tmp_path):
    rng = np.random.default_rng(3)
    folder = tmp_path / "parts"
    folder.mkdir()
    for k, n in enumerate((900, 613)):
        frame = pl.DataFrame(
            {
                "a": np.r_[rng.normal(size=n - 4), 9 + rng.normal(size=4)],
                "b": rng.choice(["x", "y", None], n).tolist(),
                "c": rng.integers(0, 300, n),
                "odd": (np.arange(n) >= n - 4).astype(int),
            }
        )
        frame.write_parquet(folder / f"{k}.parquet", row_group_size=257)
    return folder


@ray_only
@pytest.mark.parametrize("csv", [False, True])
def test_detect_on_ray_is_detect_here(skerry, parts, tmp_path, csv):
    source = parts
    if csv:
        source = tmp_path / "t.csv"
        pl.read_parquet(parts / "*.parquet").write_csv(source)
    got = {}
    for engine in ("local", "ray"):
        out = tmp_path / f"{engine}.parquet"
        done = skerry("detect", source, "--label", "odd", "--json", "--out", out, "--engine", engine)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        found = json.loads(done.stdout)
        found.pop("seconds")
        got[engine] = found, pl.read_parquet(out)
    assert got["local"][0] == got["ray"][0]
    assert got["local"][1].equals(got["ray"][1])


@ray_only
def test_rank_on_ray_is_rank_here(skerry, parts):
    got = {}
    for engine in ("local", "ray"):
        done = skerry("rank", parts, "--target", "odd", "--json", "--subsample", "2", "--pairwise", "--engine", engine)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        found.pop("seconds"), found.pop("cpu_seconds")
        got[engine] = found
    assert got["local"] == got["ray"]


def test_engines_that_cannot_be_used_are_told_before_anything_is_read(skerry, tmp_path):
    for command in (("detect", "absent.csv"), ("rank", "absent.csv", "--target", "y")):
        done = skerry(*command, "--engine", "spark")
        assert done.returncode == 2
        assert "use local or ray" in " ".join(done.stderr.split())
        if importlib.util.find_spec("ray") is None:
            done = skerry(*command, "--engine", "ray")
            assert done.returncode == 1
            assert done.stderr == "skerry: error: 'ray' is needed here: pip install 'skerry[scale]'\n"
