"""The fit of Newton-Schulz coefficients: better than Muon's triple on matrices it never saw, bounded, remembered."""

import json

import numpy as np
import pytest

from skerry.core.errors import ParameterError
from skerry.train.optim import adanewton

MUON = (3.4445, -4.7750, 2.0315)


@pytest.mark.parametrize(("m", "n", "times"), [(64, 64, 1.5), (64, 128, 10), (256, 64, 10), (128, 512, 10)])
@pytest.mark.parametrize("objective", ["mse", "minimax"])
def test_a_fit_beats_muons_triple_on_held_out_matrices(m, n, times, objective):
    triple = adanewton.fit(m, n, objective=objective, cache=None)
    measure = "mse" if objective == "mse" else "max"
    ours, muons = (getattr(adanewton.error(m, n, t, seed=77), measure) for t in (triple, MUON))
    assert ours * (times if objective == "mse" else 1) <= muons


def test_minimax_has_the_smaller_worst_error_and_mse_the_smaller_mean():
    mse, minimax = (
        adanewton.error(64, 96, adanewton.fit(64, 96, objective=o, cache=None), seed=0) for o in ("mse", "minimax")
    )
    assert minimax.max < mse.max
    assert mse.mse < minimax.mse


@pytest.mark.parametrize("shape", [(1, 5), (4, 8), (16, 16), (64, 64), (64, 256), (2048, 8192)])
def test_every_spectrum_stays_bounded(shape):
    values = adanewton._compose(np.array(adanewton.fit(*shape, cache=None)), np.linspace(0, 1, 5001), 5)
    assert values.min() >= 0
    assert values.max() <= 1.501


def test_ten_steps_reach_where_five_do_not():
    five, ten = (adanewton.error(64, 64, adanewton.fit(64, 64, steps=t, cache=None), steps=t) for t in (5, 10))
    assert ten.mse < five.mse
    assert ten.q05 > five.q05


def test_spectrum():
    s = adanewton.spectrum(20, 50, samples=3)
    assert s.shape == (60,)
    assert (s.reshape(3, 20) ** 2).sum(1) == pytest.approx(np.ones(3))
    assert np.array_equal(s, adanewton.spectrum(50, 20, samples=3))
    assert not np.array_equal(s, adanewton.spectrum(20, 50, samples=3, seed=1))
    real = np.zeros((2, 50, 20))
    real[0, 0, 0] = 5.0
    mixed = adanewton.spectrum(20, 50, momenta=real)
    assert mixed.shape == ((2 * 3 + 1) * 20,)  # three random for each, and the zero matrix has no directions
    assert mixed[-20:].max() == pytest.approx(1)


def test_the_limit_law_meets_the_sampled_spectrum():
    for shape in ((1000, 1000), (500, 2000)):
        limit = adanewton._limit_law(*shape)
        sampled = np.quantile(adanewton.spectrum(*shape, samples=1), np.linspace(0.02, 0.98, 25))
        assert np.quantile(limit, np.linspace(0.02, 0.98, 25)) == pytest.approx(sampled, rel=0.03, abs=2e-4)


def test_slopes_against_finite_differences():
    s, t, h = adanewton.spectrum(8, 12, samples=1), np.array([2.5, -2.4, 0.9]), 1e-6
    for k in range(3):
        step = h * np.eye(3)[k]
        numeric = (adanewton._compose(t + step, s, 5) - adanewton._compose(t - step, s, 5)) / (2 * h)
        assert adanewton._slopes(t, s, 5)[:, k] == pytest.approx(numeric, rel=1e-5, abs=1e-7)


def test_live_momenta_change_the_fit():
    rng = np.random.default_rng(0)
    low_rank = rng.normal(size=(2, 64, 3)) @ rng.normal(size=(2, 3, 128)) + 0.02 * rng.normal(size=(2, 64, 128))
    plain, live = adanewton.fit(64, 128, cache=None), adanewton.fit(64, 128, momenta=low_rank, cache=None)
    assert live[0] > plain[0]  # small singular values must grow faster
    ours, gaussian = (adanewton.error(64, 128, t, momenta=low_rank).mse for t in (live, plain))
    assert ours < gaussian


def test_cache(tmp_path, monkeypatch):
    path = tmp_path / "new" / "fits.json"
    monkeypatch.setattr(adanewton, "_memory", {})
    triple = adanewton.fit(5, 9, cache=path)
    kept = json.loads(path.read_text())
    assert list(kept.values()) == [list(triple)]
    monkeypatch.setattr(adanewton, "_memory", {})
    path.write_text(json.dumps({next(iter(kept)): [1.0, 2.0, 3.0], "worse": "x"}))
    assert adanewton.fit(9, 5, cache=path) == (1.0, 2.0, 3.0)
    for damaged in ("{", "[]", json.dumps({next(iter(kept)): [1.0, "x", 3.0]}), '{"a": [NaN, 1.0, 2.0]}'):
        monkeypatch.setattr(adanewton, "_memory", {})
        path.write_text(damaged)
        assert adanewton.fit(5, 9, cache=path) == triple
    monkeypatch.setattr(adanewton, "_memory", {})
    assert adanewton.fit(5, 9, cache=tmp_path) == triple  # a folder cannot be written as a file: passed over
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    adanewton.fit(5, 9)
    assert (tmp_path / "home" / "skerry" / "adanewton.json").is_file()


def test_wrong_arguments_are_refused():
    with pytest.raises(ParameterError, match="objective is 'l1'"):
        adanewton.fit(4, 4, objective="l1")
    with pytest.raises(ParameterError, match="steps is 0"):
        adanewton.fit(4, 4, steps=0)
    with pytest.raises(ParameterError, match="give 1 or more"):
        adanewton.spectrum(0, 4)
    with pytest.raises(ParameterError, match=r"\(3, 4\) among those for 4 x 4"):
        adanewton.spectrum(4, 4, momenta=[np.ones((3, 4))])
