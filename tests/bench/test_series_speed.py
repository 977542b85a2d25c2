"""The speed study of series at a small size: figures of real runs, absent peers said in words."""

import json

import numpy as np
import pytest

from skerry.bench import series_speed


@pytest.fixture
def here(monkeypatch):
    """Cases run in this process; stumpy would compile for half a minute."""

    def measured(spec, threads):
        spec = json.loads(json.dumps(spec))
        peer = any(name in str(part) for part in spec for name in ("stumpy", "pyod"))
        return "not installed" if peer else series_speed.case(*spec)

    monkeypatch.setattr(series_speed, "measured", measured)


def test_profile_whole_and_rates(here):
    row = series_speed._profile_row(400, 0, print)
    assert row["skerry CPU s"] >= 0.0 and row["stumpy CPU s"] == "not installed"
    ours, peer = series_speed._whole_rows(2, 500, 0, print)
    assert ours["CPU s"] > 0.0 and ours["MiB"] >= 0.0
    assert peer["method"].startswith("pyod")
    (rates,) = series_speed._rate_rows(1, True, 0, print)
    assert min(rates[k] for k in rates if k not in ("detector", "channels")) > 100


def test_distances_are_those_of_the_definition(tmp_path):
    series_speed.case("profile", "skerry", 400, 0, str(tmp_path / "p.npy"))
    got, m, x = np.load(tmp_path / "p.npy"), series_speed.WINDOW, series_speed.waves(400, 1, 0)[:, 0]
    z = np.lib.stride_tricks.sliding_window_view(x, m)
    z = (z - z.mean(1, keepdims=True)) / z.std(1, keepdims=True)
    distance = np.linalg.norm(z[:, None] - z[None], axis=2)
    steps = np.arange(len(z))
    distance[np.abs(steps[:, None] - steps) <= 25] = np.inf
    np.testing.assert_allclose(got, distance.min(1), atol=1e-6)


def test_the_month_goes_through_the_command_and_the_claim_tells_it(here, monkeypatch):
    name = "--follow, forecast"
    monkeypatch.setattr(series_speed, "COMMANDS", {name: series_speed.COMMANDS[name]})
    rows = series_speed._month_rows(3_000, 0, print)
    assert [(r["command"], r["steps"]) for r in rows] == [(name, 3_000)]
    assert rows[0]["events"] >= 1
    assert rows[0]["peak MiB"] > 50
    whole = [{"method": "skerry Ensemble", "channels": 2, "steps": 500, "CPU s": 0.1, "wall s": 0.2}]
    told = series_speed._claim({"stumpy CPU s": "not installed"}, whole, [], rows)
    assert "2 x 500 in 0.1 CPU s" in told and "3,000 rows through the command" in told


def test_a_case_that_fails_is_told_in_words():
    assert "KeyError" in series_speed.measured(["nothing"], 1)
