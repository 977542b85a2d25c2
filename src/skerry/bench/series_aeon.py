"""aeon's detectors of series as the series study calls them; runs under the interpreter that has aeon.

Every class has its own defaults. Those that learn from ordinary data are fitted to the train part and score the test
part; those that judge a series as a whole get both parts in one piece and are read at the test part. Channels come
standardised by the train part. Detectors of one channel score each by itself; the mean of the standardised scores
counts.
"""

import numpy as np
from aeon.anomaly_detection.series import PyODAdapter, distance_based, distribution_based, outlier_detection


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


def learner(make):
    """Fit to the train part, score the test part, all channels at once."""

    def score(train, test, seed):
        a, b = standardised(train, test)
        return make(seed).fit(a, axis=0).predict(b, axis=0)

    return score


def whole(make, each_channel=True):
    """Judge both parts as one series and return the test part."""

    def score(train, test, seed):
        x = np.concatenate(standardised(train, test))
        if not each_channel:
            return np.asarray(make(seed).fit_predict(x, axis=0), dtype=float)[len(train) :]
        total = np.zeros(len(x))
        for j in range(x.shape[1]):
            if np.ptp(x[:, j]) == 0:
                continue
            s = np.asarray(make(seed).fit_predict(np.ascontiguousarray(x[:, j])), dtype=float)
            s = np.nan_to_num(s, nan=np.nanmedian(s), posinf=np.nanmax(s[np.isfinite(s)], initial=0.0))
            total += (s - s.mean()) / max(s.std(), 1e-12)
        return total[len(train) :]

    return score


def _pca(seed):
    from pyod.models.pca import PCA

    return PyODAdapter(PCA())


METHODS = {
    "aeon CBLOF": learner(lambda seed: distance_based.CBLOF(random_state=seed)),
    "aeon COPOD": learner(lambda seed: distribution_based.COPOD()),
    "aeon DWT_MLEAD": whole(lambda seed: distribution_based.DWT_MLEAD()),
    "aeon ExtendedIsolationForest": learner(lambda seed: outlier_detection.ExtendedIsolationForest(random_state=seed)),
    "aeon IsolationForest": learner(lambda seed: outlier_detection.IsolationForest(random_state=seed)),
    "aeon KMeansAD": learner(lambda seed: distance_based.KMeansAD(random_state=seed)),
    "aeon LOF": learner(lambda seed: distance_based.LOF()),
    "aeon LeftSTAMPi": whole(lambda seed: distance_based.LeftSTAMPi()),
    "aeon MADRID": whole(lambda seed: distance_based.MADRID()),
    "aeon MERLIN": whole(lambda seed: distance_based.MERLIN()),
    "aeon OneClassSVM": learner(lambda seed: outlier_detection.OneClassSVM()),
    "aeon PyODAdapter(PCA)": learner(_pca),
    "aeon ROCKAD": learner(lambda seed: distance_based.ROCKAD(random_state=seed)),
    "aeon STOMP": whole(lambda seed: distance_based.STOMP()),
    "aeon STRAY": whole(lambda seed: outlier_detection.STRAY(), each_channel=False),
}
