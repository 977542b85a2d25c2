"""What a ranking is worth downstream: held-out loss of a model on the first k columns, and a model search made shorter.

The search is a small stand-in for the AutoML system of the paper (Škrlj & Mramor, RecSys 2023), which is not public:
linear models on one-hot columns, eight settings, three-fold cross-validation, the best one fitted again. It is run on
all columns, and on the first ten of each ranking, whose time is counted in.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from skerry.bench.outrank_tables import planted_table

__all__ = ["loss_by_columns", "search_with_ranking"]

KEPT = 10  # columns after a ranking
RANKINGS: dict[str, dict[str, Any] | None] = {
    "random forest, first 10": None,
    "plain information, first 10": {"correction": "none", "controls": False},
    "Skerry, first 10": {},
    "Skerry with 4,950 crosses, first 10": {"interaction_order": 2},
}
Features = list[tuple[str, ...]]  # a name, or two crossed
Codes = dict[str, NDArray[np.int64]]


class OneHot:
    """One-hot codes of columns and crosses, in the vocabulary of the rows it was made from."""

    def __init__(self, codes: Codes, features: Features, train: NDArray[np.int64]) -> None:
        self.codes, self.features = codes, features
        self.vocabulary = [np.unique(self._key(f)[train]) for f in features]

    def _key(self, feature: tuple[str, ...]) -> NDArray[np.int64]:
        key = self.codes[feature[0]]
        for name in feature[1:]:
            key = key * (int(self.codes[name].max()) + 1) + self.codes[name]
        return key

    def matrix(self, rows: NDArray[np.int64]) -> Any:
        """Return the sparse matrix of some rows; a value that was not seen has no column."""
        parts, columns, offset = [], [], 0
        for feature, known in zip(self.features, self.vocabulary, strict=True):
            key = self._key(feature)[rows]
            place = np.minimum(np.searchsorted(known, key), known.size - 1)
            hit = np.flatnonzero(known[place] == key)
            parts.append(hit)
            columns.append(place[hit] + offset)
            offset += known.size
        at, column = np.concatenate(parts), np.concatenate(columns)
        return csr_matrix((np.ones(at.size), (at, column)), shape=(rows.size, offset))


def _codes(frame: Any, target: str) -> Codes:
    return {
        c: np.unique(frame[c].to_numpy().astype(str), return_inverse=True)[1].astype(np.int64)
        for c in frame.columns
        if c != target
    }


def _logistic(C: float) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=C, max_iter=200)


def _loss(model: Any, X: Any, y: NDArray[np.int64]) -> float:
    from sklearn.metrics import log_loss

    return float(log_loss(y, model.predict_proba(X)[:, 1], labels=[0, 1]))


def _by_forest(
    codes: dict[str, NDArray[np.int64]], y: NDArray[np.int64], train: NDArray[np.int64], seed: int
) -> Features:
    """Rank by the importances of a random forest on the codes."""
    from sklearn.ensemble import RandomForestClassifier

    X = np.stack([c[train] for c in codes.values()], axis=1)
    forest = RandomForestClassifier(50, min_samples_leaf=5, n_jobs=2, random_state=seed).fit(X, y[train])
    names = list(codes)
    return [(names[j],) for j in np.argsort(-forest.feature_importances_, kind="stable")]


def _by_information(
    frame: Any, y: NDArray[np.int64], train: NDArray[np.int64], target: str, **options: Any
) -> Features:
    from skerry.rank.outrank import OutRank

    part = frame.drop(target)[train]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ranking = OutRank(**options).fit(part, y[train], target=target).ranking_
    return [tuple(v.split(" AND ")) for v in ranking["feature"]]


def loss_by_columns(
    tables: list[tuple[str, Any, str, list[str]]], quick: bool, seed: int, progress: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Fit logistic regression on the first k columns of each ranking; mean held-out log-loss over splits."""
    rows = []
    for name, frame, target, ones in tables:
        codes = _codes(frame, target)
        y = frame[target].is_in(ones).to_numpy().astype(np.int64)
        steps = [k for k in (1, 2, 3, 5, 8, 12, 20) if k < len(codes)]
        got: dict[str, list[list[float]]] = {}
        for s in range(seed, seed + (1 if quick else 2)):
            order = np.random.default_rng(s).permutation(y.size)
            train, test = np.sort(order[: y.size // 2]), np.sort(order[y.size // 2 :])
            rankings = {
                "Skerry": _by_information(frame, y, train, target, random_state=s),
                "plain information": _by_information(frame, y, train, target, correction="none", controls=False),
                "random forest": _by_forest(codes, y, train, s),
            }
            for ranker, features in rankings.items():
                losses = []
                for k in [*steps, len(codes)]:
                    hot = OneHot(codes, features[:k], train)
                    model = _logistic(0.1).fit(hot.matrix(train), y[train])
                    losses.append(_loss(model, hot.matrix(test), y[test]))
                got.setdefault(ranker, []).append(losses)
        for ranker, losses in got.items():
            means = np.mean(losses, axis=0)
            row: dict[str, Any] = {"table": name, "ranking": ranker}
            row |= {f"k = {k}": round(float(v), 4) for k, v in zip(steps, means, strict=False)}
            rows.append(row | {"all": round(float(means[-1]), 4)})
            progress(f"log-loss: {rows[-1]}")
    return rows


def _search(hot_features: Features, codes: Any, y: NDArray[np.int64], train: NDArray[np.int64], seed: int) -> Any:
    """Choose among eight linear models by cross-validated log-loss, and fit the best again."""
    from sklearn.linear_model import SGDClassifier
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from threadpoolctl import threadpool_limits

    hot = OneHot(codes, hot_features, train)
    X = hot.matrix(train)
    models = [_logistic(C) for C in (0.01, 0.1, 1.0, 10.0)]
    models += [SGDClassifier(loss="log_loss", alpha=a, random_state=seed) for a in (1e-5, 1e-4, 1e-3, 1e-2)]
    folds = StratifiedKFold(3, shuffle=True, random_state=seed)
    with warnings.catch_warnings(), threadpool_limits(1):  # idle threads that spin would count as work
        warnings.simplefilter("ignore")
        means = [cross_val_score(m, X, y[train], cv=folds, scoring="neg_log_loss").mean() for m in models]
        return models[int(np.argmax(means))].fit(X, y[train]), hot


def search_with_ranking(quick: bool, seed: int, progress: Callable[[str], None]) -> tuple[list[dict[str, Any]], str]:
    """Search on all columns and on the first ten of each ranking; CPU seconds and held-out log-loss."""
    n = 4_000 if quick else 40_000
    sums: dict[str, list[tuple[float, float, float, float]]] = {}
    floor = []
    for s in range(seed, seed + (1 if quick else 3)):
        frame, share = planted_table(n, 100 + s)
        codes = _codes(frame, "label")
        y = frame["label"].to_numpy().astype(np.int64)
        train, test = np.arange(n // 2), np.arange(n // 2, n)
        p = share[test]
        floor.append(float(-(y[test] * np.log(p) + (1 - y[test]) * np.log(1 - p)).mean()))
        for name in ("all 100 columns", *RANKINGS):
            start = time.process_time()
            features = _chosen(name, frame, codes, y, train, s)
            ranked = time.process_time()
            model, hot = _search(features, codes, y, train, s)
            done = time.process_time()
            loss = _loss(model, hot.matrix(test), y[test])
            sums.setdefault(name, []).append((ranked - start, done - ranked, done - start, loss))
            progress(f"search, seed {s}, {name}: {done - start:.1f} CPU s, log-loss {loss:.4f}")
    base = np.mean(sums["all 100 columns"], axis=0)
    rows = []
    for name, got in sums.items():
        mean = np.mean(got, axis=0)
        rows.append(
            {
                "columns": name,
                "ranking, CPU s": round(mean[0], 2),
                "search, CPU s": round(mean[1], 2),
                "together": round(mean[2], 2),
                "times faster": round(base[2] / mean[2], 1),
                "held-out log-loss": round(mean[3], 4),
                "by seed": ", ".join(f"{g[3]:.4f}" for g in got),
            }
        )
    rows.append({"columns": "the true probabilities", "held-out log-loss": round(float(np.mean(floor)), 4)})
    by_name = {r["columns"]: r for r in rows}
    ours, crossed = by_name["Skerry, first 10"], by_name["Skerry with 4,950 crosses, first 10"]
    text = (
        f"A model search after the ranking takes {ours['together']:.1f} CPU s for {base[2]:.1f} on all columns, at a "
        f"held-out log-loss of {ours['held-out log-loss']:.4f} for {base[3]:.4f} (with the crosses ranked too "
        f"{crossed['held-out log-loss']:.4f} in {crossed['together']:.1f} CPU s; the true probabilities reach "
        f"{rows[-1]['held-out log-loss']:.4f})."
    )
    return rows, text


def _chosen(name: str, frame: Any, codes: Codes, y: NDArray[np.int64], train: NDArray[np.int64], seed: int) -> Features:
    """Return the columns that a search is run on."""
    if name not in RANKINGS:
        return [(v,) for v in codes]
    options = RANKINGS[name]
    if options is None:
        return _by_forest(codes, y, train, seed)[:KEPT]
    return _by_information(frame, y, train, "label", random_state=seed, **options)[:KEPT]
