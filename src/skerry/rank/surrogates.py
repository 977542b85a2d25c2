"""Other scores of a column against a target, in the names of the published ``outrank`` tool.

Corrected mutual information is the default of :class:`skerry.rank.OutRank`; these are for comparison, and for the
ranking conditional on a reference model: how well a linear model predicts the target from the one-hot codes of the
columns that a model already has, together with the candidate (OutRank, Škrlj & Mramor, RecSys 2023).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from skerry.core.errors import DataError

__all__ = ["CORRECTIONS", "HEURISTICS", "SURROGATES", "heuristic_scores", "reference_columns", "surrogate_score"]

CORRECTIONS = {"MI": "none", "MI-numba-randomized": "shift", "MI-numba-3mr": "none"}
SURROGATES = ("surrogate-SGD", "surrogate-SVM", "surrogate-SGD-RP", "surrogate-SGD-SVD")
HEURISTICS = ("information", *CORRECTIONS, "AMI", "correlation-Pearson", "max-value-coverage", *SURROGATES, "Constant")
SVD_DIMENSIONS = 8
PROJECTED = 1_024
SVM_ROWS = 2_000  # a kernel machine is quadratic in the rows: the first ones of each fold


def surrogate_score(columns: list[NDArray], y: NDArray, kind: str = "surrogate-SGD", seed: int = 0) -> float:
    """Return 1 - the median log-loss in two-fold cross-validation on the one-hot codes of the columns.

    Parameters
    ----------
    columns : list of ndarray of shape (n,)
        Codes 0..c-1 each.
    y : ndarray of shape (n,)
        Codes of the target.
    kind : {"surrogate-SGD", "surrogate-SVM", "surrogate-SGD-RP", "surrogate-SGD-SVD"}, default "surrogate-SGD"
        Logistic regression by stochastic gradient descent; a kernel machine on at most 2,000 rows a fold; the first
        after a sparse random projection, or after a truncated singular value decomposition to 8 dimensions.
    seed : int, default 0

    Returns
    -------
    float
        1 is certain and right; 1 - H(target) is what the class shares alone reach.

    Examples
    --------
    >>> y = np.arange(200) % 2
    >>> surrogate_score([y], y) > surrogate_score([np.zeros(200, int)], y)
    True
    """
    from sklearn.decomposition import TruncatedSVD
    from sklearn.model_selection import KFold, StratifiedKFold

    n = y.size
    offsets = np.concatenate([[0], np.cumsum([int(c.max()) + 1 for c in columns])])
    places = np.stack([c.astype(np.int64) + o for c, o in zip(columns, offsets[:-1], strict=True)], axis=1)
    X: Any = csr_matrix(
        (np.ones(places.size), places.ravel(), np.arange(n + 1) * len(columns)), shape=(n, int(offsets[-1]))
    )
    if kind.endswith("-SVD") and X.shape[1] > SVD_DIMENSIONS:
        X = TruncatedSVD(SVD_DIMENSIONS, random_state=seed).fit_transform(X)
    folds: Any = (
        StratifiedKFold(2) if np.bincount(y)[np.unique(y)].min() >= 2 else KFold(2, shuffle=True, random_state=0)
    )
    losses = []
    for train, test in folds.split(X, y):
        if np.unique(y[train]).size < 2:
            continue
        if kind == "surrogate-SVM":
            train = train[np.linspace(0, train.size - 1, min(train.size, SVM_ROWS)).astype(int)]
        model = _model(kind, X.shape[1], seed).fit(X[train], y[train])
        share = np.zeros((test.size, int(y.max()) + 1))
        share[:, model.classes_] = model.predict_proba(X[test])
        losses.append(-np.log(np.clip(share[np.arange(test.size), y[test]], 1e-15, 1.0)).mean())
    return 1.0 - float(np.median(losses)) if losses else 0.0


def _model(kind: str, width: int, seed: int) -> Any:
    from sklearn.linear_model import SGDClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.random_projection import SparseRandomProjection

    if kind == "surrogate-SVM":
        from sklearn.calibration import CalibratedClassifierCV
        from sklearn.model_selection import KFold
        from sklearn.svm import SVC

        folds = KFold(3, shuffle=True, random_state=0)
        return CalibratedClassifierCV(SVC(gamma="auto"), ensemble=False, cv=folds)
    linear = SGDClassifier(loss="log_loss", max_iter=1_000, random_state=seed)
    if kind == "surrogate-SGD-RP":
        return make_pipeline(SparseRandomProjection(min(width, PROJECTED), random_state=seed), linear)
    return linear


def heuristic_scores(
    heuristic: str,
    codes: NDArray,
    y: NDArray,
    *,
    values: NDArray[np.float64] | None = None,
    y_values: NDArray[np.float64] | None = None,
    reference: list[NDArray] | None = None,
    seed: int = 0,
    n_jobs: int = 1,
) -> NDArray[np.float64]:
    """Score every column against the target by one of the other heuristics.

    Parameters
    ----------
    heuristic : str
        ``AMI`` (adjusted mutual information, Vinh et al. 2010), ``correlation-Pearson`` (its absolute value),
        ``max-value-coverage`` (share of the most frequent pair of values), a surrogate, or ``Constant`` (0).
    codes : ndarray of shape (p, n)
    y : ndarray of shape (n,)
    values, y_values : ndarray of shape (p, n) and (n,), optional
        Numbers for the correlation; the codes if absent. NaN is replaced by the column's mean.
    reference : list of ndarray of shape (n,), optional
        Codes of the columns that a model already has, for the surrogates.
    seed : int, default 0
    n_jobs : int, default 1

    Returns
    -------
    ndarray of shape (p,)

    Examples
    --------
    >>> y = np.array([0, 0, 1, 1])
    >>> heuristic_scores("max-value-coverage", np.array([[0, 0, 0, 1]]), y)
    array([0.5])
    """
    if heuristic == "Constant":
        return np.zeros(len(codes))
    if heuristic == "AMI":
        from sklearn.metrics import adjusted_mutual_info_score

        return np.array([adjusted_mutual_info_score(column, y) for column in codes])
    if heuristic == "max-value-coverage":
        width = int(y.max()) + 1
        return np.array(
            [np.unique(c.astype(np.int64) * width + y, return_counts=True)[1].max() / y.size for c in codes]
        )
    if heuristic == "correlation-Pearson":
        x = codes.astype(np.float64) if values is None else values
        target = y.astype(np.float64) if y_values is None else y_values
        return np.array([_correlation(column, target) for column in x])
    from joblib import Parallel, delayed

    given = list(reference or [])
    task = delayed(surrogate_score)
    jobs = (task([*given, column], y, heuristic, seed) for column in codes)
    return np.array(Parallel(n_jobs=n_jobs, prefer="threads")(jobs))


def _correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    if np.isnan(a).all() or np.isnan(b).all():
        return 0.0
    a, b = (np.where(np.isfinite(v), v, np.nanmean(v[np.isfinite(v)])) for v in (a, b))
    a, b = a - a.mean(), b - b.mean()
    scale = np.sqrt((a @ a) * (b @ b))
    return float(abs(a @ b) / scale) if scale > 0 else 0.0


def reference_columns(reference: Any) -> tuple[tuple[str, ...], ...]:
    """Return the features of a reference model, each a tuple of column names (more than one is a cross).

    Parameters
    ----------
    reference : path or sequence of str
        A JSON file with ``{"desc": {"features": ["a", "b,c"], "fields": [...]}}``, or the features themselves; a
        cross is written ``b,c`` or ``b AND c``.

    Raises
    ------
    DataError
        If the file cannot be read or holds no features.

    Examples
    --------
    >>> reference_columns(["a", "b,c"])
    (('a',), ('b', 'c'))
    """
    if isinstance(reference, (str, Path)):
        try:
            described = json.loads(Path(reference).read_text(encoding="utf-8"))["desc"]
            features = [*described.get("features", []), *described.get("fields", [])]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{reference}: needs an object desc with a list features ({error!r})") from None
    else:
        features = list(reference)
    if not features or not all(isinstance(f, str) and f for f in features):
        raise DataError(f"{reference}: the reference model names no feature")
    split = (tuple(p.strip() for p in f.replace(" AND ", ",").split(",")) for f in features)
    return tuple(dict.fromkeys(split))
