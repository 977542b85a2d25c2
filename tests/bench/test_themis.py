"""The study of Themis at a tiny size: every method scores, figures are true."""

import numpy as np
import pytest

from skerry.bench import themis
from skerry.core.metrics import roc_auc
from skerry.data.series_sets import LabelledSeries


def test_every_method_is_measured_on_every_series(monkeypatch, tmp_path):
    rng = np.random.default_rng(0)

    def series(data, group):
        for k in range(2):
            x = np.sin(np.arange(400) / 6) + 0.05 * rng.normal(size=400)
            label = np.zeros(300, dtype=bool)
            if k == 0 or group == "ucr":
                x[250:260] += 2.0
                label[150:160] = True
            yield LabelledSeries(group, f"{group}{k}", x[:100, None], x[100:, None], label, ["x"])

    monkeypatch.setattr(themis, "labelled_series", series)
    found = themis.run(quick=False, data=tmp_path, seed=0, progress=lambda text: None)
    assert {r["method"] for r in found["table"]} == set(themis.METHODS)
    plain = next(r for r in found["table"] if r["method"] == "distance from the median")
    rng = np.random.default_rng(0)
    first = next(series(tmp_path, "msl"))
    want = roc_auc(first.label, np.abs(first.test[:, 0] - np.median(first.train[:, 0])))
    assert plain["msl AUROC"] == pytest.approx(want)
    assert plain["ucr hits"] in (0, 1, 2)
    assert "1 of msl" in found["notes"][0]
    assert "3 without both labels" in found["notes"][0]
