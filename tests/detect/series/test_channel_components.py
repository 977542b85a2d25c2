"""ChannelComponents against windows cut by hand and the table detector."""

import numpy as np

from skerry.detect.series.channel_components import CLIP, ChannelComponents
from skerry.detect.tabular.pca import PCA


def test_each_channel_is_scored_by_its_own_components():
    rng = np.random.default_rng(0)
    X = np.cumsum(rng.normal(size=(300, 2)), axis=0) * [1.0, 1e6]
    w = 6
    z = []
    for x in X.T:
        rows = np.array([[x[max(t - lag, 0)] for lag in range(w)] for t in range(len(x))])
        q = PCA().fit_score(rows)
        q1, median, q3 = np.quantile(q, [0.25, 0.5, 0.75])
        z.append((q - median) / (q3 - q1))
    z = np.clip(z, 0, CLIP) + 1e-3 * np.log1p(np.maximum(np.array(z) - CLIP, 0))
    z[:, : w - 1] = np.minimum(z[:, : w - 1], 2.0)  # the window is not whole yet
    got = ChannelComponents(window=w).fit(X)
    np.testing.assert_allclose(got.anomaly_score(X), np.sqrt((z**2).mean(axis=0)), rtol=1e-6)
    np.testing.assert_allclose(got.explain(X).sum(axis=1), got.anomaly_score(X), rtol=1e-9)


def test_blocks_do_not_matter(monkeypatch):
    X = np.random.default_rng(1).normal(size=(200, 3))
    got = ChannelComponents(window=5).fit(X)
    whole = got.anomaly_score(X)
    monkeypatch.setattr("skerry.detect.series.channel_components.BLOCK_STEPS", 17)
    np.testing.assert_allclose(got.anomaly_score(X), whole, rtol=1e-12)


def test_one_odd_channel_among_many_is_seen():
    rng = np.random.default_rng(2)
    t = np.arange(1_000)
    X = np.sin(t[:, None] / rng.uniform(3, 20, 40)) + 0.05 * rng.normal(size=(1_000, 40))
    X[700:715, 17] = X[699, 17]
    got = ChannelComponents().fit(X[:500])
    s = got.anomaly_score(X[500:])
    assert 200 <= s.argmax() < 247
    assert got.explain(X[500:])[s.argmax()].argmax() == 17
