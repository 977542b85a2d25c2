"""The study of ImDiffusion at a tiny size: every method scores, and the figures are those of its scores."""

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra 'deep'")

from skerry.bench import imdiffusion
from skerry.core.errors import ParameterError
from skerry.core.metrics import average_precision
from skerry.data.series_sets import LabelledSeries
from skerry.detect.series.forecast import Forecast

METHODS = (
    imdiffusion.VOTES, imdiffusion.LAST, imdiffusion.MEAN, imdiffusion.CONDITIONAL, imdiffusion.RANDOM,
    imdiffusion.REBUILD, imdiffusion.FORECAST, imdiffusion.RIDGE, imdiffusion.COMPONENTS, imdiffusion.TREES,
)  # fmt: skip


def series(data, group, names=None):
    rng = np.random.default_rng(0)
    X = np.sin(np.arange(700)[:, None] / np.array([6.0, 9.0])) + 0.05 * rng.normal(size=(700, 2))
    X[500:510, 0] += 3.0
    label = np.zeros(400, dtype=bool)
    label[200:210] = True
    yield LabelledSeries(group, names[0] if names else "all", X[:300], X[300:], label, ["a", "b"])


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(imdiffusion, "labelled_series", series)
    network = {"window": 16, "mask_split": 4, "n_steps": 5, "vote_last": 3, "vote_every": 1, "channels": 8}
    network |= {"n_layers": 1, "n_heads": 2, "batch_size": 8, "train_stride": 8}
    monkeypatch.setattr(imdiffusion, "NETWORK", imdiffusion.NETWORK | network)


def test_every_method_is_measured_and_the_figures_are_true(tiny, tmp_path):
    found = imdiffusion.run(quick=True, data=tmp_path, seed=0, progress=lambda text: None)
    assert {r["method"] for r in found["table"]} == set(METHODS)
    assert all(np.isfinite(r["VUS-PR"]) and 0 <= r["AUC-PR"] <= 1 for r in found["table"])
    case = next(series(tmp_path, "asd", ["omi"]))
    want = average_precision(case.label, Forecast().fit(case.train).anomaly_score(case.test))
    ridge = next(r for r in found["table"] if r["method"] == imdiffusion.RIDGE)
    assert ridge["AUC-PR"] == pytest.approx(want)
    assert ridge["seed sd of AUC-PR"] == 0
    assert {r["met"] for r in found["tables"]["Expectations"]} <= {"yes", "no"}
    assert f"{sum(r['met'] == 'yes' for r in found['tables']['Expectations'])} of 6 expectations" in found["claim"]


def test_presets_take_whole_series_and_name_what_they_do_not_know(tiny, tmp_path, monkeypatch):
    assert {k: v for k, v in imdiffusion.PAPER.items() if k in ("window", "n_steps", "channels", "n_layers")} == {
        "window": 100, "n_steps": 50, "channels": 64, "n_layers": 4
    }  # fmt: skip
    monkeypatch.setitem(imdiffusion.SIZES["brief"], "updates", 7)
    found = imdiffusion.run(False, tmp_path, 0, lambda text: None, preset="brief", seeds=1, variants="smd")
    (shape,) = found["tables"]["Series"]
    assert (shape["series"], shape["train"], shape["test"]) == ("smd/all", 300, 400)
    assert 7 <= shape["updates at most"] < 7 + 2  # 36 windows in batches of 32
    with pytest.raises(ParameterError, match="unknown preset 'huge'"):
        imdiffusion.run(False, tmp_path, 0, print, preset="huge")
    with pytest.raises(ParameterError, match="unknown set 'sdm'"):
        imdiffusion.run(False, tmp_path, 0, print, variants="sdm/machine-1-6")


def test_the_delay_is_that_of_the_highest_hundredth():
    label = np.zeros(200, dtype=bool)
    label[50:60] = True
    scores = np.zeros(200)
    scores[[54, 120]] = 9.0, 8.0
    assert imdiffusion.measures(label, scores)["delay at 1 % alarms"] == 4
    scores[54] = 0.0
    assert imdiffusion.measures(label, scores)["delay at 1 % alarms"] == 10


def test_one_step_networks_judge_every_step(tiny):
    case = next(series(None, "asd", ["omi"]))
    for forecast in (False, True):
        s = imdiffusion.one_step(
            case.train, case.test, forecast=forecast, epochs=2, seed=0, network=imdiffusion.NETWORK
        )
        assert s.shape == (400,)
        assert np.isfinite(s).all()
        first = 8 if forecast else 0  # half a window has no past to forecast from
        assert (s[first:] > 0).all()
