"""The default of series: what it is made of, and that switches are judged apart."""

import numpy as np
import pytest

from skerry.core.errors import ParameterError
from skerry.detect.series.channel_components import ChannelComponents
from skerry.detect.series.ensemble import CLIP, SWITCH, Ensemble
from skerry.detect.series.matrix_profile import MatrixProfile
from skerry.detect.series.windowed import Windowed
from skerry.detect.tabular.hbos import HBOS
from skerry.detect.tabular.reference_neighbours import ReferenceNeighbours


def _waves(n=800, seed=0):
    rng = np.random.default_rng(seed)
    t = np.arange(n)
    X = np.column_stack([np.sin(t / 7), np.cos(t / 11), (t % 50 < 5).astype(float), np.zeros(n)])
    X[:, :2] += 0.05 * rng.normal(size=(n, 2))
    return X


def test_the_score_is_the_mean_of_the_members_and_what_the_switches_add():
    X, Y = _waves(), _waves(300, 1)
    Y[100:110, 0] += 3.0
    Y[200, 3] = 1.0  # a value that this switch never had
    got = Ensemble(random_state=0).fit(X)
    parts = []
    for mine, again in zip(
        got.detectors_, (ChannelComponents(), Windowed(ReferenceNeighbours(), random_state=None)), strict=True
    ):
        assert type(mine) is type(again)
        assert mine.n_features_in_ == 2
        train, test = mine.anomaly_score(X[:, :2]), mine.anomaly_score(Y[:, :2])
        q1, median, q3 = np.quantile(train, [0.25, 0.5, 0.75])
        z = (test - median) / (q3 - q1)
        parts.append(
            np.where(np.abs(z) > CLIP, np.sign(z) * (CLIP + 1e-3 * np.log1p(np.maximum(np.abs(z) - CLIP, 0))), z)
        )
    switch = SWITCH * (np.log(10) / np.log(800)) ** 4 * Y[:, 2]
    switch[200] = SWITCH
    np.testing.assert_allclose(got.anomaly_score(Y), np.mean(parts, axis=0) + switch, rtol=1e-5, atol=1e-6)


def test_a_rare_command_among_sensors_does_not_drown_them():
    X, Y = _waves(), _waves(400, 1)
    X[300, 3] = 1.0
    Y[50, 3] = 1.0
    Y[250:260, 0] += 1.5
    s = Ensemble(random_state=0).fit(X).anomaly_score(Y)
    assert 250 <= s.argmax() < 292
    apart, along = (Ensemble(switches_apart=v, random_state=0).fit(X) for v in (True, False))
    assert apart.switch_.tolist() == [False, False, True, True]
    assert not along.switch_.any()
    # as a wave, the command's jump is as odd as the bump
    ratio = [s[50:82].max() / s[250:292].max() for s in (along.anomaly_score(Y), apart.anomaly_score(Y))]
    assert ratio[1] < 0.6 * ratio[0]


def test_a_series_of_switches_alone_is_still_scored():
    rng = np.random.default_rng(0)
    X = (np.arange(600)[:, None] % [10, 14] < 5).astype(float)
    X[400:420] = rng.integers(0, 2, size=(20, 2))
    s = Ensemble(random_state=0).fit_score(X)
    assert not Ensemble(random_state=0).fit(X).switch_.any()
    assert 400 <= s.argmax() < 452


def test_a_channel_that_was_dead_and_wakes_is_found():
    X, Y = _waves(), _waves(300, 1)
    Y[150:170, 3] = np.random.default_rng(2).normal(size=20)
    s = Ensemble(random_state=0).fit(X).anomaly_score(Y)
    assert (s[150:170] > np.quantile(np.delete(s, range(150, 170)), 0.95)).mean() > 0.9
    blame = Ensemble(random_state=0).fit(X).explain(Y)
    assert (blame[150:170].argmax(axis=1) == 3).mean() > 0.5


def test_step_by_step_with_switches_and_gaps():
    X, Y = _waves(), _waves(120, 1)
    Y[30, 0] = Y[31, 2] = Y[40] = np.nan
    Y[60, 3] = 1.0
    got = Ensemble(random_state=0).fit(X)
    assert got.causal
    assert got.reach == 31
    want = got.anomaly_score(Y)
    got.reset()
    np.testing.assert_allclose([got.update(y) for y in Y], want, rtol=1e-6, atol=1e-9)


def test_own_members():
    got = Ensemble([Windowed(HBOS()), MatrixProfile()], random_state=0).fit(_waves())
    assert not got.causal
    assert np.isfinite(got.anomaly_score(_waves(200, 1))).all()
    with pytest.raises(ParameterError, match="MatrixProfile needs the whole series"):
        got.update(np.zeros(4))
    for bad in ([], [HBOS()]):
        with pytest.raises(ParameterError, match="list of series detectors"):
            Ensemble(bad).fit(_waves())
