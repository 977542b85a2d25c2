"""The training studies run at a tiny size, share what they trained, and their tables say what the runs said."""

import gzip
import io
import json
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch", reason="needs the extra 'deep'")
pytest.importorskip("accelerate", reason="needs the extra 'deep'")

import torch

from skerry.bench import (
    outlier_driven_rescaling,
    outlier_safe_pretraining,
    quantizable_transformers,
    runner,
    train,
    train_runs,
    train_tables,
)
from skerry.bench.curves import curves
from skerry.core.errors import DataError, ParameterError

TEXT = b"the skerry stands apart from the shore, and the sea is around it. " * 40
SMALL = {"dim": 16, "n_layers": 1, "n_heads": 2, "seq_len": 16, "steps": 6, "batch_size": 4, "warmup": 2}


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A folder of small texts, settings to match, and a cache of its own."""
    (tmp_path / "text").mkdir()
    for name in set(train_runs.TEXTS.values()):
        (tmp_path / "text" / name).write_bytes(gzip.compress(TEXT))
    for setting in train_runs.SETTINGS:
        monkeypatch.setitem(train_runs.SETTINGS, setting, {**train_runs.SETTINGS[setting], **SMALL})
    cifar(tmp_path / "images")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for module in (outlier_safe_pretraining, outlier_driven_rescaling):
        monkeypatch.setattr(module, "PLAN", {s: dict.fromkeys(of, 1) for s, of in module.PLAN.items()})
    plan = {s: dict.fromkeys(list(of)[:3], 1) for s, of in quantizable_transformers.PLANS["encoders"].items()}
    monkeypatch.setitem(quantizable_transformers.PLANS, "encoders", plan)
    # in this process: the settings above are not those of a new one
    monkeypatch.setattr("joblib.Parallel", _Serial)
    before = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(before)
    train_runs.load_task.cache_clear()


def cifar(folder):
    """Write a few images in the format of the shared CIFAR-10."""
    folder.mkdir()
    rng, arrays = np.random.default_rng(0), {}
    for part, n in (("train", 24), ("test", 16)):
        files = []
        for image in rng.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8):
            file = io.BytesIO()
            Image.fromarray(image).save(file, "JPEG")
            files.append(np.frombuffer(file.getvalue(), np.uint8))
        arrays |= {
            f"jpeg_{part}": np.concatenate(files),
            f"offset_{part}": np.cumsum([0, *map(len, files)]),
            f"y_{part}": rng.integers(0, 10, n),
        }
    np.savez(folder / "cifar10_jpeg.npz", **arrays)


class _Serial:
    def __init__(self, **_):
        pass

    def __call__(self, calls):
        return [function(*args, **kwargs) for function, args, kwargs in calls]


def say(text):
    pass


def test_studies_share_runs_and_fill_their_tables(data, monkeypatch):
    monkeypatch.setitem(train.PRESETS, "tiny", {"backcopy": {"Adam": 2, "OSP": 1}, "bytes": {"Adam": 1}})
    result = train.run(False, data, 0, say, preset="tiny")
    rows = {r["variant"]: r for r in result["table"]}
    assert rows["Adam"]["seeds"] == 2 and rows["OSP"]["seeds"] == 1
    assert rows["Adam"]["loss, sd"] > 0 and rows["OSP"]["loss, sd"] is None
    assert rows["Adam"]["steps"] == 6 and rows["Adam"]["excess kurtosis"] >= 0 < rows["Adam"]["floor"]
    gaps = result["tables"]["Bigram-Backcopy: nats lost at low bits"]
    assert {"W4A4 k", "W4A4 t, FFN Hadamard", "A4 t, in", "A4 t, ao", "A4 t, ffn"} <= set(gaps[0])
    assert "Bytes of WikiText-2" in result["tables"]
    assert result["curves"]["backcopy"]["excess kurtosis"]["Adam"][-1][0] == 6
    for text in result["pictures"].values():
        assert ET.fromstring(text).tag.endswith("svg")
    checked = result["tables"]["Expectations of the laboratory note"]
    assert {r["met"] for r in checked} <= {"yes", "no"}
    told = " ".join(r["expected"] for r in checked)
    assert "OSP" in told and "SGD" not in told  # what no preset asked for is not told

    lines = []
    outlier_safe_pretraining.run(False, data, 0, lines.append)
    trained = int(next(t for t in lines if "to train" in t).split()[0])
    assert trained == sum(map(len, outlier_safe_pretraining.PLAN.values())) - 3  # three were there


def test_the_replicas(data):
    osp = outlier_safe_pretraining.run(False, data, 0, say)
    own = next(t for n, t in osp["tables"].items() if n.startswith("The paper's kurtosis"))
    assert {r["variant"] for r in own} == set(outlier_safe_pretraining.PLAN["backcopy"])
    assert all(r["as released"] >= 0 and r["over sequences"] >= 0 for r in own)
    merged = [r["logits moved by merging"] for r in own if r["logits moved by merging"] is not None]
    assert len(merged) == 2 and max(merged) < 1e-4
    odr = outlier_driven_rescaling.run(False, data, 0, say)
    sinks = next(t for n, t in odr["tables"].items() if n.startswith("The strongest channel"))
    assert {r["variant"] for r in sinks} == set(outlier_driven_rescaling.PLAN["backcopy"])
    assert all(abs(r["absorbed, nats"]) < 1e-4 for r in sinks)
    qt = quantizable_transformers.run(False, data, 0, say, preset="encoders")
    assert all(r["avg kurtosis"] > 1 and r["max inf norm"] > 0 for r in qt["table"])
    assert "Masked bytes of WikiText-2, an encoder" in qt["tables"]
    seen = qt["tables"]["CIFAR-10, a vision transformer"]
    assert [r["variant"] for r in seen] == ["Adam", "Adam, gate", "Adam, clip"]
    assert all(0 <= r["accuracy"] <= 1 for r in seen)
    for result in (osp, odr, qt):
        assert {"title", "claim", "table", "notes"} <= set(result) and "nan" not in result["claim"]


def test_the_runner_writes_pictures_and_refuses_options_of_others(data):
    result = runner.run_study(
        "train", quick=True, data=data, out=data / "out", options={"variants": "Adam; OSP", "seeds": 1}
    )
    assert result["command"] == "skerry bench run train --quick --variants 'Adam; OSP' --seeds 1"
    assert (data / "out" / "train-kurtosis.svg").read_text().startswith("<svg")
    kept = json.loads((data / "out" / "train.json").read_text())
    assert "pictures" not in kept and [r["variant"] for r in kept["table"]] == ["Adam", "OSP"]
    with pytest.raises(ParameterError, match="takes no --seeds"):
        runner.run_study("conformal", data=data, options={"seeds": 2})
    with pytest.raises(ParameterError, match="--preset"):
        runner.run_study("outlier-safe-pretraining", data=data, options={"preset": "cpu"})


def test_every_claim_rests_on_three_seeds():
    plans = [
        train.PRESETS["cpu"],
        train.PRESETS["bytes"],
        train.PRESETS["encoders"],
        *quantizable_transformers.PLANS.values(),
    ]
    assert {n for plan in plans for of in plan.values() for n in of.values()} == {3}
    planned = train.PRESETS["cpu"]["backcopy"]
    assert set(planned) <= set(train_runs.VARIANTS)
    # the replicas need no run that the laboratory lacks
    assert set(outlier_safe_pretraining.PLAN["backcopy"]) <= set(planned)
    assert set(outlier_driven_rescaling.PLAN["backcopy"]) <= set(planned)
    assert set(quantizable_transformers.PLANS["cpu"]["backcopy"]) <= set(planned)


def test_presets_have_files_of_their_own(data, monkeypatch):
    monkeypatch.setitem(train.PRESETS, "tiny", {"masked": {"Adam": 1, "Adam, gate": 1}})
    result = runner.run_study("train", data=data, out=data / "out", options={"preset": "tiny"})
    assert sorted(p.name for p in (data / "out").iterdir()) == [
        "train-tiny-kurtosis.svg", "train-tiny-loss.svg", "train-tiny-sinks.svg", "train-tiny.json", "train-tiny.md",
    ]  # fmt: skip
    assert "file" not in result and result["name"] == "train"
    checked = result["tables"]["Expectations of the laboratory note"]
    assert len(checked) == 2 and all("gate" in r["expected"] and r["met"] in ("yes", "no") for r in checked)


def test_a_budget_stops_and_the_same_call_goes_on(data):
    wanted = train_runs.jobs("backcopy", ["Adam"], [0])
    cut = train_runs.train_all(wanted, data, budget=1e-9)[wanted[0]]
    assert 0 < cut["steps"] < 6
    whole = train_runs.train_all(wanted, data)[wanted[0]]
    assert whole["steps"] == 6 and whole["folder"] == cut["folder"]
    assert whole["history"][-1]["step"] == 6 and "excess kurtosis" in whole["history"][-1]


def test_different_runs_have_different_folders():
    names = [j.folder for s in train_runs.SETTINGS for j in train_runs.jobs(s, list(train_runs.VARIANTS), [0, 1])]
    assert len(set(names)) == len(names)


def test_the_gpu_preset_is_of_the_size_it_says():
    from skerry.train.lab import build_model

    class Size:
        vocabulary, seq_len = 257, 512

    (job,) = train_runs.jobs("bytes-60m", ["OSP"], [0])
    with torch.device("meta"):
        n = sum(p.numel() for p in build_model(job.config, Size()).parameters())
    assert 35e6 < n < 65e6 and job.config.mixed_precision == "bf16"


@pytest.mark.parametrize(("text", "wanted"), [("90s", 90), ("25m", 1500), ("2h", 7200), ("5", 5), (None, None)])
def test_times(text, wanted):
    assert train_tables.seconds(text) == wanted


@pytest.mark.parametrize("text", ["soon", "-5m", "0s", "5 d"])
def test_times_that_are_none(text):
    with pytest.raises(ParameterError, match="budget"):
        train_tables.seconds(text)


def test_unknown_names_and_absent_files_are_named(data):
    with pytest.raises(ParameterError, match="did you mean 'OSP'"):
        train_runs.jobs("backcopy", ["OSSP"], [0])
    with pytest.raises(ParameterError, match="preset"):
        train.run(False, data, 0, say, preset="cpuquick")
    all_texts = train_runs.load_task(data, train_runs.jobs("bytes-60m", ["Adam"], [0])[0].task)
    one_text = train_runs.load_task(data, train_runs.jobs("bytes", ["Adam"], [0])[0].task)
    assert len(all_texts._train) > 1.9 * len(one_text._train)
    train_runs.load_task.cache_clear()
    job = train_runs.jobs("images", ["Adam"], [0])[0]
    (data / "images" / "cifar10_jpeg.npz").unlink()
    with pytest.raises(DataError, match="CIFAR"):
        train_runs.load_task(data, job.task)
    (data / "text" / train_runs.TEXTS["bytes"]).write_bytes(b"no gzip")
    with pytest.raises(DataError, match="cannot be read"):
        train_runs.load_task(data, train_runs.jobs("bytes", ["Adam"], [0])[0].task)


def test_spread_tells_least_and_largest():
    a, b = train_runs.jobs("backcopy", ["Adam"], [0, 1])
    found = {a: {"loss": 1.0}, b: {"loss": 2.0}}
    assert train_tables.spread(found, "Adam", "loss") == "1.5 (1 to 2)"
    assert train_tables.spread(found, "OSP", "loss") == "not run"


def test_curves_leave_out_what_a_scale_cannot_show():
    lines = {"a": [(0, 1.0), (10, 100.0)], "b": [(0, 0.0)], "c": [(0, float("nan"))]}
    text = curves("A < B", lines, "x", "y", log=True, level=("floor", 0.5))
    root = ET.fromstring(text)
    assert sum(e.tag.endswith("polyline") for e in root.iter()) == 1 and "A &lt; B" in text
    ET.fromstring(curves("none", {}, "x", "y"))
    ET.fromstring(curves("flat", {"a": [(5, 1.0)]}, "x", "y"))
