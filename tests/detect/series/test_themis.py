"""The invariants of Themis: the matrix, its scorers, windows, the bank, a frozen Chronos folder."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry.core.errors import ModelError, ParameterError
from skerry.detect.series.convolutional_bank import REACH, ConvolutionalBank
from skerry.detect.series.self_similarity import mean_similarity, similarity_matrix, spectral_residual, trimmed_top
from skerry.detect.series.themis import Themis


@pytest.fixture(scope="module")
def E():
    return np.random.default_rng(0).normal(size=(60, 9)) + 2.0


@pytest.mark.parametrize("center", [False, True])
def test_the_matrix_is_symmetric_and_bounded(E, center):
    S = similarity_matrix(E, center)
    np.testing.assert_array_equal(S, S.T)
    np.testing.assert_allclose(np.diag(S), 1.0, atol=1e-6)
    assert S.min() >= 0.0
    assert S.max() <= 1.0 + 1e-6
    if center:
        assert np.median(S) < np.median(similarity_matrix(E))
    banded = similarity_matrix(E, center, band=4)
    assert banded[0, 5] == 0.0
    assert banded[0, 4] == S[0, 4]


@given(st.integers(0, 10**6), st.integers(2, 40), st.integers(1, 12))
def test_residuals_are_what_the_other_eigenvectors_hold(seed, n, k):
    S = similarity_matrix(np.random.default_rng(seed).normal(size=(n, 5)))
    values, vectors = np.linalg.eigh(S)
    order = np.argsort(-np.abs(values))
    kept = order[: min(k, n)]
    rebuilt = (vectors[:, kept] * values[kept]) @ vectors[:, kept].T
    r = spectral_residual(S, k)
    np.testing.assert_allclose(r, np.linalg.norm(S - rebuilt, axis=1), atol=1e-5)
    np.testing.assert_allclose((r**2).sum(), (values[order[min(k, n) :]] ** 2).sum(), rtol=1e-4, atol=1e-6)


def test_no_residual_where_the_rank_is_reached():
    E = np.repeat(np.eye(3), [20, 10, 5], axis=0)
    assert spectral_residual(similarity_matrix(E), 3).max() < 1e-4
    assert spectral_residual(similarity_matrix(E), 2).max() > 0.5


def test_long_windows_take_the_iterative_way_to_the_same_residuals(monkeypatch):
    S = similarity_matrix(np.random.default_rng(1).normal(size=(200, 6)))
    whole = spectral_residual(S, 5)
    monkeypatch.setattr("skerry.detect.series.self_similarity.WHOLE", 10)
    np.testing.assert_allclose(spectral_residual(S, 5), whole, atol=1e-6)


def test_scorers_equal_plain_loops(E):
    S = similarity_matrix(E)
    np.testing.assert_allclose(mean_similarity(S), [1 - S[i].mean() for i in range(len(S))])
    got = trimmed_top(S, share=0.1, trim=0.05, exclude=2)
    want = []
    for i in range(len(S)):
        others = sorted((S[i, j] for j in range(len(S)) if abs(i - j) > 2), reverse=True)
        want.append(1 - np.mean(others[3 : 3 + 6]))
    np.testing.assert_allclose(got, want)


@pytest.mark.parametrize("scorer", ["spectral", "mean", "top", "lof", "ensemble"])
def test_the_scale_of_the_series_does_not_matter_and_a_spike_stands_out(scorer):
    x = np.sin(2 * np.pi * np.arange(512) / 32)
    x[250:254] += 2.0
    detector = Themis(scorer=scorer, n_components=20, window=256)
    s = detector.fit_score(x)
    assert 230 <= s.argmax() <= 275
    np.testing.assert_allclose(Themis(scorer=scorer, n_components=20, window=256).fit_score(1e3 * x), s, atol=1e-5)


def test_moments_of_one_phase_score_alike_inside_a_periodic_series():
    def raw(v):
        detector = Themis(window=512, n_components=20).fit(v)
        return detector.anomaly_score(v) * detector.scale_[0] + detector.location_[0]

    x = np.sin(2 * np.pi * np.arange(512) / 32)
    spiked = x.copy()
    spiked[256] += 3.0
    plain, odd = raw(x), raw(spiked)
    phases = plain[64:-64].reshape(-1, 32)
    assert np.ptp(phases, axis=0).max() < 0.05 * odd.max()
    assert abs(int(odd.argmax()) - 256) < 32
    assert plain[64:-64].max() < 0.5 * odd.max()


def test_windows_cover_every_step():
    detector = Themis(window=100, stride=70)
    for n in (2, 99, 100, 101, 333):
        starts = detector._starts(n)
        seen = np.zeros(n)
        for s in starts:
            seen[s : s + min(100, n)] += 1
        assert seen.min() >= 1
        assert starts[-1] == n - min(100, n)


def test_the_bank_is_what_it_says():
    bank = ConvolutionalBank(64, seed=3)
    np.testing.assert_allclose(bank.weights.sum(axis=1), 0.0, atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(bank.weights, axis=1), 1.0)
    assert ((bank.lengths - 1) * bank.dilations < REACH).all()
    x = np.random.default_rng(0).normal(size=80)
    got = bank.embed(x[None])[0]
    scaled = x / np.abs(x).mean()
    for i in (0, 7, 63):
        n, d = bank.lengths[i], bank.dilations[i]
        for t in (0, 40, 79):
            at = [min(max(t - (n - 1) * d // 2 + tap * d, 0), 79) for tap in range(n)]
            assert got[t, i] == pytest.approx(np.tanh(scaled[at] @ bank.weights[i, :n] + bank.biases[i]))
    np.testing.assert_array_equal(ConvolutionalBank(64, seed=3).embed(x[None])[0], got)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(bank)).embed(x[None])[0], got)


def test_missing_steps_take_their_neighbours_score_and_batches_do_not_matter():
    x = np.sin(np.arange(700) / 6)
    x[300:320] = np.nan
    s = Themis(window=128, batch_size=3).fit_score(x)
    np.testing.assert_allclose(s[300:320], np.linspace(s[299], s[320], 22)[1:-1])
    np.testing.assert_allclose(Themis(window=128, batch_size=50).fit_score(x), s, atol=1e-6)


def test_a_reference_makes_a_wholly_odd_window_visible():
    rng = np.random.default_rng(0)
    past = np.sin(2 * np.pi * np.arange(2_000) / 25) + 0.02 * rng.normal(size=2_000)
    now = past[:768].copy()
    now[256:512] = np.sign(np.sin(2 * np.pi * np.arange(256) / 90))
    alone = Themis(window=256, stride=256, scorer="mean").fit(past).anomaly_score(now)
    beside = Themis(window=256, stride=256, scorer="mean", reference=64).fit(past).anomaly_score(now)

    def contrast(s):
        return s[256:512].mean() - np.r_[s[:256], s[512:]].mean()

    assert contrast(beside) > contrast(alone)


def test_similarity_is_the_matrix_of_the_window_around_a_step():
    x = np.sin(np.arange(400) / 6)
    detector = Themis(window=100).fit(x)
    start, S = detector.similarity(x, at=200)
    assert start == 150
    assert S.shape == (100, 100)
    with pytest.raises(ParameterError, match="at must lie"):
        detector.similarity(x, at=400)


@pytest.mark.parametrize("reduce", ["max", "mean", "sum-of-top3"])
def test_channels_are_reduced_as_told(reduce):
    X = np.random.default_rng(0).normal(size=(300, 5))
    detector = Themis(window=128, channel_reduce=reduce).fit(X)
    parts = detector.explain(X)
    want = {"max": parts.max(1), "mean": parts.mean(1), "sum-of-top3": np.sort(parts, 1)[:, -3:].sum(1)}[reduce]
    np.testing.assert_allclose(detector.anomaly_score(X), want)
    first = Themis(window=128, channels=[0]).fit(X)
    np.testing.assert_allclose(first.anomaly_score(X), Themis(window=128).fit(X[:, 0]).anomaly_score(X[:, 0]))
    with pytest.raises(ParameterError, match="channels must lie"):
        Themis(channels=[7]).fit(X)


def test_a_folder_that_is_no_model_is_told(tmp_path):
    pytest.importorskip("transformers", reason="needs the extra 'deep'")
    with pytest.raises(ModelError, match=r"config\.json"):
        Themis(encoder=str(tmp_path)).fit(np.arange(50.0))


@pytest.mark.parametrize("kind", ["t5", "bolt"])
def test_a_chronos_folder_embeds(kind, chronos_folder):
    x = np.sin(np.arange(200) / 5)
    detector = Themis(encoder=str(chronos_folder(kind)), window=96)
    s = detector.fit_score(x)
    assert np.isfinite(s).all()
    np.testing.assert_allclose(pickle.loads(pickle.dumps(detector)).anomaly_score(x), s, atol=1e-5)
