"""The methods of the series study: our detectors, PyOD's and stumpy's for series, and plain baselines.

Each is ``score(train, test, seed)`` and returns one score per step of the test part; ours return the flags of their
default threshold as well. Ours get the raw channels, peers get them standardised by the train part, since most of
them do not do it themselves. Peers have their own defaults.
"""

import importlib

import numpy as np


def standardised(train, test):
    """Return both parts by mean and deviation of the train part; channels constant in it are only centred.

    Channels constant in both parts are dropped: some peers answer NaN to them.
    """
    x = np.concatenate([train, test])
    vary = np.ptp(x, axis=0) > 0
    train, test = (train[:, vary], test[:, vary]) if vary.any() else (train, test)
    spread = train.std(axis=0)
    spread = np.where(spread > 1e-9 * np.maximum(np.abs(train).max(axis=0), 1e-300), spread, 1.0)
    return (train - train.mean(axis=0)) / spread, (test - train.mean(axis=0)) / spread


# ---- ours


def ours(name, **parameters):
    """Return the detector of that registry name, fitted to the train part."""

    def score(train, test, seed):
        from skerry.detect.series.registry import make_series_detector

        detector = make_series_detector(name, random_state=seed, **parameters).fit(train)
        scores = detector.anomaly_score(test)
        return scores, scores > detector.threshold_

    return score


# ---- PyOD


def pyod(module, name, *arguments, whole=False):
    """Return a detector of PyOD; ``whole``: it can only score the series it was fitted to, so that it gets both."""

    def score(train, test, seed):
        cls = getattr(importlib.import_module(f"pyod.models.{module}"), name)
        if module in ("ts_lstm", "ts_anomaly_transformer"):
            import torch

            torch.set_num_threads(1)
            torch.manual_seed(seed)
        a, b = standardised(train, test)
        if whole:
            return cls(*arguments).fit(np.concatenate([a, b])).decision_scores_[len(a) :]
        return cls(*arguments).fit(a).decision_function(b)

    return score


# ---- stumpy


def stumpy_profile(train, test, seed, window=64):
    """Mean over the channels of the matrix profile of both parts in one piece; a step takes its windows' mean."""
    import stumpy

    x = np.concatenate(standardised(train, test))
    total = np.zeros(len(x))
    window = min(window, len(x) // 3)
    for j in range(x.shape[1]):
        if np.ptp(x[:, j]) == 0:
            continue
        profile = stumpy.stump(np.ascontiguousarray(x[:, j]), window)[:, 0].astype(np.float64)
        sums = np.concatenate([[0.0], np.cumsum(np.where(np.isfinite(profile), profile, 0.0))])
        steps = np.arange(len(x))
        first, last = np.maximum(steps - window + 1, 0), np.minimum(steps, len(profile) - 1)
        s = (sums[last + 1] - sums[first]) / (last + 1 - first)
        total += (s - s.mean()) / max(s.std(), 1e-12)
    return total[len(train) :]


# ---- baselines


def random_scores(train, test, seed):
    """Uniform noise: what a figure is worth by chance."""
    return np.random.RandomState(seed).rand(len(test))


def moving_z(train, test, seed, window=100):
    """Largest absolute deviation over the channels from mean and deviation of the last 100 steps."""
    a, b = standardised(train, test)
    x = np.concatenate([a, b])
    first = np.concatenate([np.zeros((1, x.shape[1])), np.cumsum(x, axis=0)])
    second = np.concatenate([np.zeros((1, x.shape[1])), np.cumsum(x**2, axis=0)])
    t = np.arange(1, len(x))
    low = np.maximum(t - window, 0)
    n = (t - low)[:, None]
    mean = (first[t] - first[low]) / n
    deviation = np.sqrt(np.maximum((second[t] - second[low]) / n - mean**2, 0.0)) + 1e-3
    z = np.abs(x[1:] - mean) / deviation
    return np.concatenate([[0.0], z.max(axis=1)])[len(a) :]


def first_difference(train, test, seed):
    """Largest absolute step of a channel, standardised."""
    a, b = standardised(train, test)
    x = np.concatenate([a[-1:], b])
    return np.abs(np.diff(x, axis=0)).max(axis=1)


def level(train, test, seed):
    """Mean absolute deviation of the channels from the mean of the train part."""
    return np.abs(standardised(train, test)[1]).mean(axis=1)


DEFAULT = "skerry Ensemble (default)"
METHODS = {
    DEFAULT: ours("ensemble"),
    "skerry Forecast": ours("forecast"),
    "skerry HalfSpaceTrees": ours("half-space-trees"),
    "skerry MatrixProfile": ours("matrix-profile"),
    "skerry SeasonalResidual": ours("seasonal-residual"),
    "skerry SpectralResidual": ours("spectral-residual"),
    "skerry Themis (built-in bank)": ours("themis"),
    "skerry Windowed(IsolationForest)": ours("windowed"),
    "skerry Windowed(PCA)": ours("windowed:pca"),
    "skerry Windowed(ReferenceNeighbours)": ours("windowed:reference-neighbours"),
    "pyod AnomalyTransformer": pyod("ts_anomaly_transformer", "AnomalyTransformer"),
    "pyod KShape": pyod("ts_kshape", "KShape"),
    "pyod LSTMAD": pyod("ts_lstm", "LSTMAD"),
    "pyod MatrixProfile": pyod("ts_matrix_profile", "MatrixProfile", whole=True),
    "pyod SAND": pyod("ts_sand", "SAND"),
    "pyod SpectralResidual": pyod("ts_spectral_residual", "SpectralResidual"),
    "pyod TimeSeriesOD(ECOD)": pyod("ts_od", "TimeSeriesOD", "ECOD"),
    "pyod TimeSeriesOD(IForest)": pyod("ts_od", "TimeSeriesOD", "IForest"),
    "pyod TimeSeriesOD(KNN)": pyod("ts_od", "TimeSeriesOD", "KNN"),
    "pyod TimeSeriesOD(LOF)": pyod("ts_od", "TimeSeriesOD", "LOF"),
    "pyod TimeSeriesOD(PCA)": pyod("ts_od", "TimeSeriesOD", "PCA"),
    "stumpy stump": stumpy_profile,
    "baseline absolute first difference": first_difference,
    "baseline distance from the train mean": level,
    "baseline moving z-score": moving_z,
    "baseline random": random_scores,
}
