"""ImDiffusion: votes, windows, missing values, checkpoints and determinism."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch", reason="needs the extra 'deep'")

import torch

from skerry.core.errors import ModelError, ParameterError
from skerry.deep import diffusion_imputer
from skerry.detect.series.imdiffusion import ImDiffusion, step_votes

TINY = {"window": 16, "mask_split": 4, "n_steps": 5, "vote_last": 3, "vote_every": 1, "channels": 8, "n_layers": 1}
TINY |= {"n_heads": 2, "train_stride": 8, "max_epochs": 3, "learning_rate": 1e-2}


def tiny(**parameters):
    return ImDiffusion(**(TINY | parameters))


@pytest.fixture(scope="module")
def waves():
    t = np.arange(300)
    X = np.column_stack([np.sin(t / 5), np.cos(t / 7)])
    return X + 0.02 * np.random.default_rng(0).normal(size=X.shape)


@given(st.integers(1, 60), st.integers(1, 5), st.floats(0.01, 0.5), st.integers(0, 99))
def test_votes_and_rates(n, n_votes, base_rate, seed):
    rng = np.random.default_rng(seed)
    errors, squares = rng.integers(0, 5, (n_votes, n)).astype(float), rng.uniform(0.1, 3.0, n_votes)
    votes, rates = step_votes(errors, squares, base_rate)
    want = np.zeros(n, dtype=int)
    for e, r in zip(errors, squares, strict=True):
        rate = min(1.0, base_rate * squares[0] / r)
        flagged = e > np.sort(e)[::-1][max(1, int(rate * n)) - 1]
        assert flagged.mean() <= rate + 1 / n
        want += flagged
    np.testing.assert_array_equal(votes, want)
    assert ((votes >= 0) & (votes <= n_votes)).all()
    assert (rates[squares >= squares[0]] <= base_rate + 1e-12).all()


@pytest.mark.parametrize("n", [16, 17, 24, 31, 100])
@pytest.mark.parametrize("window", [1, 2, 5, 16])
def test_each_step_is_the_business_of_one_window(n, window):
    starts, edges = ImDiffusion(window=window, mask_split=1)._spans(n)
    assert edges[0] == 0 and edges[-1] == n and (np.diff(edges) > 0).all()
    assert (edges[:-1] >= starts).all() and (edges[1:] <= starts + window).all()
    inner = slice(1, -1)
    assert (edges[:-1][inner] - starts[inner] >= window // 4).all()


def test_the_majority_is_the_default_threshold(waves):
    det = tiny(base_rate=0.2).fit(waves)
    s = det.anomaly_score(waves)
    np.testing.assert_array_equal(det.is_outlier(waves), det.votes_ > 3 / 2)
    np.testing.assert_array_equal(np.floor(s), det.votes_)
    assert det.imputed_.shape == waves.shape and np.isfinite(det.imputed_).all()


def test_a_missing_cell_never_counts(waves):
    X = waves.copy()
    X[50:60, 0] = np.nan
    X[120] = np.nan
    det = tiny().fit(X)
    found = det._measure(X)
    assert (found["mean"][50:60, 0] == 0).all() and (found["mean"][50:60, 1] > 0).all()
    assert (found["errors"][:, 120] == 0).all()
    assert np.isfinite(det.imputed_).all()


@pytest.mark.parametrize("n", [1, 5, 15])
def test_a_series_shorter_than_the_window(waves, n):
    det = tiny().fit(waves)
    assert det.anomaly_score(waves[:n]).shape == (n,)


def test_one_channel_and_a_constant_one(waves):
    X = np.column_stack([waves[:, 0], np.full(len(waves), 4.0)])
    det = tiny().fit(X)
    assert det.varying_.tolist() == [0]
    Y = X.copy()
    Y[200, 1] = 9.0
    assert det._measure(X)["mean"][:, 1].max() == 0
    assert det.explain(Y)[200, 1] == pytest.approx(1.25)
    np.testing.assert_allclose(det.imputed_[:, 1], 4.0)


@pytest.mark.parametrize("parameters", [{"conditional": True}, {"train_mask": "random"}, {"train_mask": "mix"}])
def test_variants_run_and_differ(waves, parameters):
    s = tiny(**parameters).fit_score(waves)
    assert np.isfinite(s).all() and not np.array_equal(s, tiny().fit_score(waves))


def test_every_sample_of_an_imputation_is_drawn_anew(waves):
    det = tiny().fit(waves)
    one, four = ([y for *_, y in det.set_params(n_samples=n)._imputations(*det._scaled(waves))] for n in (1, 4))
    assert not any(np.array_equal(a, b) for a, b in zip(one, four, strict=True))


def test_seeds_threads_and_the_callers_random_state(waves):
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    first = tiny(random_state=3).fit_score(waves)
    torch.set_num_threads(1 if threads > 1 else 2)
    try:
        np.testing.assert_array_equal(tiny(random_state=3).fit_score(waves), first)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(torch.get_rng_state(), state)
    assert not np.array_equal(tiny(random_state=4).fit_score(waves), first)


def test_test_values_are_scaled_by_the_training_series_and_clipped(waves):
    det = tiny().fit(waves)
    z, _ = det._scaled(waves * 1e6)
    assert np.abs(z).max() == 80
    z, _ = det._scaled(waves)
    assert z.min() == 0 and z.max() == pytest.approx(20)


def test_training_stops_early_and_keeps_the_best(waves):
    det = tiny(max_epochs=40, patience=1, train_stride=2, learning_rate=0.1).fit(waves)
    assert det.n_epochs_ < 40


def test_an_interrupted_training_ends_as_if_it_had_not_stopped(waves, tmp_path, monkeypatch):
    path = tmp_path / "training.safetensors"
    parameters = {"max_epochs": 5, "patience": 4}
    whole = tiny(**parameters).fit(waves)
    store = diffusion_imputer.DiffusionImputer._store

    def stop(self, path, optimizer, state, best):
        store(self, path, optimizer, state, best)
        if state["epoch"] == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(diffusion_imputer.DiffusionImputer, "_store", stop)
    with pytest.raises(KeyboardInterrupt):
        tiny(**parameters, checkpoint=path).fit(waves)
    monkeypatch.undo()
    resumed = tiny(**parameters, checkpoint=path).fit(waves)
    assert resumed.n_epochs_ == whole.n_epochs_
    for key, value in whole.weights_.items():
        np.testing.assert_array_equal(resumed.weights_[key], value)
    finished = path.read_bytes()
    again = tiny(**parameters, checkpoint=path).fit(waves)  # complete: nothing is left to do
    np.testing.assert_array_equal(again.anomaly_score(waves), whole.anomaly_score(waves))
    assert path.read_bytes() == finished


def test_foreign_and_damaged_checkpoints_are_refused_in_words(waves, tmp_path):
    path = tmp_path / "training.safetensors"
    tiny(max_epochs=1, checkpoint=path).fit(waves)
    with pytest.raises(ModelError, match="other data or parameters"):
        tiny(max_epochs=1, checkpoint=path).fit(waves[::-1])
    with pytest.raises(ModelError, match="other data or parameters"):
        tiny(max_epochs=2, checkpoint=path).fit(waves)
    header = path.read_bytes()
    assert json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")])["__metadata__"]
    path.write_bytes(header[: len(header) // 2])
    with pytest.raises(ModelError, match="not a whole checkpoint"):
        tiny(max_epochs=1, checkpoint=path).fit(waves)


def test_sizes_that_do_not_fit_are_refused(waves):
    with pytest.raises(ParameterError, match="multiple of n_heads"):
        tiny(channels=9).fit(waves)
    with pytest.raises(ParameterError, match="mask_split"):
        tiny(mask_split=17).fit(waves)
