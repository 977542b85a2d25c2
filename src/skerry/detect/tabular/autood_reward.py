"""What a design of AutoOD is worth: with labels a metric of the validation rows, without them two measures by rank.

The measures without labels are decisions of ours: how well a score separates validation rows from synthetic outliers,
and its excess mass.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from skerry.core.metrics import average_precision, roc_auc

__all__ = ["LabelledReward", "UnlabelledReward", "excess_mass", "synthetic_outliers"]

SYNTHETIC_ROWS = 1000


class LabelledReward:
    """AUROC or average precision of the validation rows.

    Parameters
    ----------
    z : array of shape (m, d), standardised
    y : array of shape (m,), 1 = outlier
    metric : {"auroc", "ap"}
    """

    def __init__(self, z: NDArray, y: NDArray, metric: str) -> None:
        self.z, self.y = z, y
        self.metric = roc_auc if metric == "auroc" else average_precision
        self.floor = 0.5 if metric == "auroc" else float(np.mean(y))

    def measures(self, scorer: Callable[[NDArray], NDArray]) -> list[float] | None:
        """Return the metric in a list, or None where the child failed."""
        s = scorer(self.z)
        return [float(self.metric(self.y, s))] if _usable(s) else None

    @staticmethod
    def rewards(measures: list[list[float]]) -> NDArray[np.float64]:
        """Return the reward of every child from all children's measures."""
        return np.array([m[0] for m in measures])


class UnlabelledReward:
    """Two measures without labels, each as its rank among the children so far, averaged.

    They are the AUROC that separates validation rows from synthetic outliers, and the excess mass of the score.

    Parameters
    ----------
    train, z : arrays of shape (n, d) and (m, d), standardised
    seed : int
    """

    floor = 0.0

    def __init__(self, train: NDArray, z: NDArray, seed: int) -> None:
        rng = np.random.default_rng([seed, 7])
        self.z = z if len(z) <= SYNTHETIC_ROWS else z[np.sort(rng.choice(len(z), SYNTHETIC_ROWS, replace=False))]
        self.fake = synthetic_outliers(train, len(self.z), rng)
        self.box = _box(train, 500, rng)

    def measures(self, scorer: Callable[[NDArray], NDArray]) -> list[float] | None:
        """Return both measures, or None where the child failed."""
        real, fake, box = scorer(self.z), scorer(self.fake), scorer(self.box)
        if not (_usable(real) and np.isfinite(fake).all() and np.isfinite(box).all()):
            return None
        return [
            float(roc_auc(np.r_[np.zeros(len(real)), np.ones(len(fake))], np.r_[real, fake])),
            excess_mass(real, box),
        ]

    @staticmethod
    def rewards(measures: list[list[float]]) -> NDArray[np.float64]:
        """Return the mean of the ranks of both measures, each (rank - 1/2) / number."""
        return np.mean([(rankdata(column) - 0.5) / len(measures) for column in np.transpose(measures)], axis=0)


def synthetic_outliers(train: NDArray, n: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return about ``n`` rows, a quarter each: uniform in the box, shuffled columns, wide mixture, shifted clusters.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> synthetic_outliers(rng.normal(size=(100, 3)), 40, rng).shape
    (40, 3)
    """
    import warnings

    from sklearn.mixture import GaussianMixture

    m = max(1, n // 4)
    rows = train[rng.choice(len(train), min(len(train), 2000), replace=False)]
    shuffled = np.column_stack([rng.choice(rows[:, j], m) for j in range(rows.shape[1])])
    k = max(1, min(3, len(rows) // 50))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # diagonal: a full covariance of many columns has more numbers than the rows can tell
        model = GaussianMixture(k, covariance_type="diag", reg_covar=1e-4, random_state=0).fit(rows)
    label = rng.choice(k, 2 * m, p=model.weights_ / model.weights_.sum())
    noise = rng.normal(size=(2 * m, rows.shape[1])) * np.sqrt(model.covariances_[label])
    local = model.means_[label[:m]] + np.sqrt(5.0) * noise[:m]
    cluster = 1.5 * model.means_[label[m:]] + noise[m:]
    return np.vstack([_box(train, m, rng), shuffled, local, cluster])


def excess_mass(scores: NDArray, box: NDArray) -> float:
    """Return the mean over levels t of ``max_u P(s <= u) - t Vol(s <= u)``, volumes by uniform rows; in [0, 1].

    Parameters
    ----------
    scores, box : arrays of shape (m,) and (v,)
        Of validation rows and of rows uniform in their box (excess mass of Goix, 2016).

    Examples
    --------
    >>> excess_mass(np.zeros(9), np.ones(9))
    1.0
    """
    cuts = np.sort(scores)
    mass = np.searchsorted(cuts, cuts, side="right") / len(cuts)
    volume = np.searchsorted(np.sort(box), cuts, side="right") / len(box)
    return float(np.mean([max(0.0, np.max(mass - t * volume)) for t in np.geomspace(1.0, 100.0, 20)]))


def _box(train, n, rng):
    low, high = train.min(0), train.max(0)
    middle, half = (low + high) / 2, 1.1 * (high - low) / 2
    return rng.uniform(middle - half, middle + half, (n, train.shape[1]))


def _usable(s: NDArray) -> bool:
    return bool(np.isfinite(s).all() and np.ptp(s) > 1e-12 * np.abs(s).max())
