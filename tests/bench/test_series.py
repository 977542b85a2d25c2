"""The series study at a tiny size: figures are true; absent, slow and broken peers are told; nothing is lost."""

import json

import numpy as np
import pytest

from skerry.bench import series, series_methods, series_runs
from skerry.bench.series_runs import Case, Method, Runs
from skerry.core.metrics import roc_auc, vus_pr
from skerry.data.series_sets import LabelledSeries

METHODS = """
import time
import numpy as np

def level(train, test, seed):
    s = np.abs(test[:, 0] - train[:, 0].mean())
    return s, s > 1.0

def broken(train, test, seed):
    if len(test) == 300:
        raise RuntimeError("no third series")
    return level(train, test, seed)[0]

def endless(train, test, seed):
    while len(test) == 300:
        pass
    return np.full(len(test), np.nan)

def crash(train, test, seed):
    import os
    if len(test) == 300:
        os._exit(3)
    return np.zeros(len(test) - 1)

METHODS = {"level": level, "broken": broken, "endless": endless, "crash": crash}
"""


@pytest.fixture
def cases(tmp_path):
    out = []
    for i, n in enumerate((100, 200, 300, 301)):
        path = tmp_path / f"{i}.npz"
        np.savez(path, train=np.zeros((50, 1)), test=np.arange(float(n))[:, None])
        out.append(Case(f"set/{i}", path, 50 + n))
    return out


@pytest.fixture
def runs(tmp_path):
    (tmp_path / "methods.py").write_text(METHODS)
    return Runs(tmp_path / "cache", tmp_path, limit=1.0, seed=0)


def _method(tmp_path, name, version="1"):
    import sys

    return Method(name, tmp_path / "methods.py", sys.executable, version)


def _top(key, scores, flags):
    return {"VUS-PR": float(scores.max()), "flagged": None if flags is None else float(flags.mean())}


def test_results_are_measured_and_kept(runs, cases, tmp_path):
    got = runs.run(_method(tmp_path, "level"), cases, _top)
    assert [got[c.key]["VUS-PR"] for c in cases] == [99.0, 199.0, 299.0, 300.0]
    assert got["set/0"]["flagged"] == pytest.approx(0.98)
    assert 0 <= got["set/0"]["cpu"] < 1.0

    def never(key, scores, flags):
        raise AssertionError("measured again")

    file = runs.cache / "level.jsonl"
    file.write_text(file.read_text() + '{"key": "set/9", "sta')  # an interruption in mid-line
    assert runs.run(_method(tmp_path, "level"), cases, never) == got
    with pytest.raises(AssertionError, match="measured again"):
        runs.run(_method(tmp_path, "level", version="2"), cases, never)


def test_a_broken_series_does_not_end_the_method(runs, cases, tmp_path):
    got = runs.run(_method(tmp_path, "broken"), cases, _top)
    assert got["set/2"]["problem"] == "RuntimeError: no third series"
    assert got["set/3"]["VUS-PR"] == 300.0


def test_a_process_that_dies_or_gives_too_few_scores_is_told(runs, cases, tmp_path):
    got = runs.run(_method(tmp_path, "crash"), cases, _top)
    assert got["set/0"]["problem"] == "99 scores for 100 steps"
    assert got["set/2"]["problem"] == "the process ended with 3"
    assert got["set/3"]["problem"] == "300 scores for 301 steps"


def test_the_limit_ends_a_series_and_then_the_larger_ones(runs, cases, tmp_path):
    more = [*cases, Case("set/again", cases[2].path, cases[2].size), Case("set/large", cases[2].path, 999)]
    got = runs.run(_method(tmp_path, "endless"), more, _top)
    assert got["set/0"]["not finite"] == 100
    assert got["set/0"]["VUS-PR"] == 0.0
    assert got["set/2"]["problem"] == got["set/again"]["problem"] == "over the limit"
    assert got["set/large"]["problem"] == "not tried, over the limit on smaller ones"
    runs.deadline = 0.0  # what is known to be too large needs no time
    assert runs.run(_method(tmp_path, "endless"), more, _top)["set/large"] == got["set/large"]
    kept = [json.loads(line) for line in (runs.cache / "endless.jsonl").read_text().splitlines()]
    assert all(r["key"] != "set/large" for r in kept)


def test_a_peer_that_is_not_there_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv(series_runs.AEON_PYTHON, str(tmp_path / "no-python"))
    peers = series_runs.peer_methods()
    assert len(peers) >= 15
    assert {p.problem for p in peers} == {"not installed"}
    assert Runs(tmp_path, tmp_path, 1.0, 0).run(peers[0], [], _top) == {}


def test_decisions_of_a_series_by_hand():
    label = np.zeros(200, dtype=bool)
    label[50:60] = label[100:110] = True
    flags = np.zeros(200, dtype=bool)
    flags[[52, 57, 150, 180]] = True  # one alarm in the first anomaly, two false ones
    assert series.decisions(label, flags) == {"flagged": 0.02, "found": 0.5, "alarms": 3.0, "true": 1.0}


def test_baselines_and_standardising():
    rng = np.random.default_rng(0)
    train, test = rng.normal(size=(300, 3)), rng.normal(size=(200, 3))
    train[:, 2] = test[:, 2] = 4.0
    train[:, 1] = 7.0
    a, b = series_methods.standardised(train, test)
    assert a.shape == (300, 2)
    np.testing.assert_allclose(b[:, 0], (test[:, 0] - train[:, 0].mean()) / train[:, 0].std())
    np.testing.assert_allclose(b[:, 1], test[:, 1] - 7.0)
    x = np.r_[a, b]
    z = [np.abs(x[t] - x[t - 100 : t].mean(0)) / (x[t - 100 : t].std(0) + 1e-3) for t in range(300, 500)]
    np.testing.assert_allclose(series_methods.moving_z(train, test, 0), np.max(z, axis=1), rtol=1e-6)
    want = np.abs(np.diff(x[299:], axis=0)).max(axis=1)
    np.testing.assert_allclose(series_methods.first_difference(train, test, 0), want)


def test_the_study(monkeypatch, tmp_path):
    rng = np.random.default_rng(0)

    def some(data, group):
        for k in range(2 if group in ("nab", "ucr") else 0):
            x = np.sin(np.arange(700) / 6) + 0.05 * rng.normal(size=700)
            label = np.zeros(400, dtype=bool)
            if group == "nab" or k == 0:
                x[550:560] += 2.0
                label[250:260] = True
            yield LabelledSeries(group, f"{group}{k}", x[:300, None], x[300:, None], label, ["x"])

    names = (series.DEFAULT, "baseline random", "baseline absolute first difference")
    monkeypatch.setattr(series, "labelled_series", some)
    monkeypatch.setattr(series, "QUICK_STEPS", 400)
    monkeypatch.setattr(series, "METHODS", dict.fromkeys(names))
    monkeypatch.setattr(series, "_speed", lambda quick, seed: [])
    monkeypatch.setattr(series, "peer_methods", lambda: [Method("aeon LOF", tmp_path, "python", "", "not installed")])
    monkeypatch.setenv("SKERRY_CACHE", str(tmp_path / "cache"))
    found = series.run(quick=False, data=tmp_path, seed=0, progress=lambda text: None)
    rows = {r["method"]: r for r in found["table"]}
    assert rows["aeon LOF"] == {"method": "aeon LOF", "series": 0, "remark": "not installed"}
    assert "2 of nab, 1 of ucr; 1 without both classes" in found["notes"][0]
    rng = np.random.default_rng(0)
    nab, ucr = [list(some(None, g)) for g in ("nab", "ucr")]
    noise = np.random.RandomState(0).rand(400)
    want = [np.mean([vus_pr(s.label, noise) for s in group]) for group in (nab, ucr[:1])]
    assert rows["baseline random"]["VUS-PR"] == pytest.approx(np.mean(want))
    auc = [np.mean([roc_auc(s.label, noise) for s in group]) for group in (nab, ucr[:1])]
    assert rows["baseline random"]["AUROC"] == pytest.approx(np.mean(auc))
    assert rows[series.DEFAULT]["VUS-PR"] > 0.7
    assert {r["set"] for r in found["tables"]["Alarms at the default threshold"]} == {"nab", "ucr"}
    assert "no peer was there" in found["claim"]


def test_a_method_without_an_answer_counts_as_all_alike():
    label = np.zeros(100, dtype=bool)
    label[10:20] = True
    empty = {"a/1": series.nothing(label), "a/2": series.nothing(label)}
    done = series.measures(label, label.astype(float)) | {"cpu": 1.0, "wall": 1.0, "limit": 20.0}
    per = {"a/1": done, "a/2": {"problem": "over the limit", "limit": 20.0}}
    row = series._row("peer", per, empty, {"a/1": {"VUS-PR": 0.5}})
    assert row["AUROC"] == pytest.approx((1.0 + 0.5) / 2)
    assert row["CPU s"] == pytest.approx((1.0 + 20.0) / 2)
    assert row["delay at 1 % alarms"] == pytest.approx((0.0 + 10.0) / 2)
    assert (row["series"], row["default there"]) == (1, 0.5)
    assert row["VUS-PR where done"] == pytest.approx(done["VUS-PR"])


def test_a_run_that_ends_early_goes_on_later(runs, cases, tmp_path):
    runs.deadline = 0.0
    assert runs.run(_method(tmp_path, "level"), cases, _top) == {}
    runs.deadline = float("inf")
    assert len(runs.run(_method(tmp_path, "level"), cases, _top)) == 4
    row = series._row("peer", {"a/1": {"VUS-PR": 0.4}}, {"a/1": {}, "a/2": {}}, {"a/1": {"VUS-PR": 0.5}})
    assert row["VUS-PR"] is None
    assert row["remark"] == "1 of 2 series so far"
    assert (row["VUS-PR where done"], row["default there"]) == (0.4, 0.5)


def test_the_claim_tells_what_is_still_to_be_run():
    row = {"series": 2, "VUS-PR where done": 0.4, "default there": 0.5}
    rows = [
        row | {"method": series.DEFAULT, "VUS-PR": 0.5, "CPU s": 1.0},
        row | {"method": "pyod A", "VUS-PR": 0.4, "CPU s": 2.0},
        row | {"method": "pyod B", "VUS-PR": None, "remark": "1 of 2 series so far", "default there": 0.3},
        {"method": "aeon C", "series": 0, "remark": "not run yet"},
        {"method": "aeon D", "series": 0, "remark": "not installed"},
    ]
    claim = series._claim(rows, 2)
    assert "best of 1 peers is pyod A with 0.400 at 2.00 CPU s" in claim
    assert "ahead of 1 of 1 peers over all series, and of 1 of 2 on the series" in claim
    assert "Median time of the peers: 2.00 CPU s" in claim
    assert claim.endswith("2 methods have not been run on all series yet.")
