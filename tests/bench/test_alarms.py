"""The study of false alarms counts what it says it counts."""

import numpy as np
import pytest

from skerry.bench import alarms
from skerry.core.errors import DataError


def test_quiet_steps_and_events_are_counted():
    y = np.zeros(300, dtype=bool)
    y[100:110] = True
    quiet = alarms._quiet(y)
    assert quiet.sum() == 300 - 10 - alarms.AFTER
    assert not quiet[110 + alarms.AFTER - 1]
    assert quiet[110 + alarms.AFTER]
    spans = [(5, 6), (95, 101), (120, 125), (110 + alarms.AFTER, 160)]
    assert alarms._judge(spans, y) == (1, 1, 2)
    assert alarms._judge([], y) == (0, 1, 0)
    assert alarms._judge([(1, 2)], ~y & y) == (0, 0, 1)


def test_the_study_runs_on_a_small_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(alarms, "WARMUP", 300)
    monkeypatch.setattr(alarms, "TEST", 400)
    monkeypatch.setattr(alarms, "FOLLOWED", {"forecast": ("extreme:1e-4", "adaptive:0.01")})
    monkeypatch.setattr(alarms, "CHOICE_RULES", ("extreme:1e-3",))
    monkeypatch.setattr(alarms, "_noise_table", lambda *args: [])
    rng = np.random.default_rng(0)
    for group in alarms.GROUPS:
        (tmp_path / "series" / group).mkdir(parents=True)
        x = np.sin(np.arange(700) / 5)[:, None] + 0.1 * rng.normal(size=(700, 2))
        x[600:610] += 5
        y = np.zeros(400)
        y[300:310] = 1
        np.savez(tmp_path / "series" / group / "a.npz", train=x[:300], test=x[300:], label=y)
    result = alarms.run(True, tmp_path, 0, lambda text: None)
    assert "labelled events of 4 series" in result["claim"]
    assert len(result["table"]) == 2 * 4
    choice = result["tables"]["What the defaults of a stream were chosen by"]
    assert [(r["merge gap"], r["labelled events met"]) for r in choice] == [(10, "4 of 4"), (32, "4 of 4")]
    assert all(r["event F1"] == pytest.approx(8 / (8 + r["false events"])) for r in choice)
    first = [r for r in result["table"] if r["rule"] == "extreme:1e-4"]
    assert {r["labelled events met"] for r in first} == {"1 of 1"}
    assert {r["quiet steps"] for r in first} == {400 - 10 - alarms.AFTER}
    with pytest.raises(DataError, match="no series there"):
        alarms.run(True, tmp_path / "nowhere", 0, lambda text: None)
