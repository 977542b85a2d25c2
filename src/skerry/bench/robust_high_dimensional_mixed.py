"""Part three of the robust high-dimensional study: mixed models when a tenth of the clusters is moved.

60 clusters of five rows, five signals, random intercepts of deviation 0.5, noise 1. Six clusters are moved by 12:
as a whole (by a sign of their own), or each row by its own sign.
"""

from __future__ import annotations

import importlib.util
import time
import warnings
from typing import Any

import numpy as np
from sklearn.linear_model import HuberRegressor, LassoCV
from sklearn.model_selection import GroupKFold

from skerry.bench.robust_high_dimensional_sparse import judge, mean_row
from skerry.robust.mixed_effects import QGaussianMixedModel

__all__ = ["KINDS", "penalised", "unpenalised"]

KINDS = ("clean", "clusters shifted", "rows of clusters scattered")
N_ALPHAS = 20
SMALL = 20  # columns of the comparison without penalty


def _clusters(p, kind, seed):
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(60), 5)
    X = rng.normal(size=(300, p))
    beta = np.zeros(p)
    beta[:5] = 2.0, -1.5, 1.0, -1.0, 1.5
    y = X @ beta + 0.5 * rng.normal(size=60)[groups] + rng.normal(size=300)
    odd = groups < 6
    if kind == "clusters shifted":
        y[odd] += 12.0 * rng.choice([-1.0, 1.0], 6)[groups[odd]]
    elif kind != "clean":
        y[odd] += 12.0 * rng.choice([-1.0, 1.0], odd.sum())
    return X, y, groups, beta


def penalised(p, seeds, seed, progress):
    """Return a row per model and kind of data, its strength chosen by its own rule, never by the truth."""
    rows = []
    for kind in KINDS:
        for likelihood in ("clustered", "joint"):
            for random in (None, "intercept"):
                progress(f"mixed model: p = {p}, {kind}, {likelihood}, {random or 'no random effect'}")
                values, paths, extra = [], [], []
                for k in range(seeds):
                    X, y, groups, beta = _clusters(p, kind, seed + k)
                    started = time.perf_counter()
                    model = QGaussianMixedModel(
                        likelihood=likelihood, random=random, alpha="ebic", n_alphas=N_ALPHAS, max_iter=60, tol=1e-7
                    )
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")  # a path that ends early has no more rounds to offer
                        model.fit(X, y, groups=groups)
                    values.append((*judge(model.coef_, beta), time.perf_counter() - started))
                    paths.append(np.linalg.norm(model.coef_path_ - beta, axis=1).min())
                    moved = float(model.cluster_weights_[:6].mean())
                    extra.append((model.scale_**2, model.df_, moved, model.alpha_, model.degenerate_))
                name = f"{likelihood}, {'random intercept' if random else 'no random effect'}"
                means = np.mean(np.array(extra, dtype=float), axis=0)
                names = ("scale^2", "df", "weight of moved clusters", "strength", "degenerate")
                row = mean_row({"method": f"skerry {name}", "data": kind}, values)
                row |= {"best of path, by the truth": float(np.mean(paths))}
                rows.append(row | dict(zip(names, map(float, means), strict=True)) | {"status": "run"})
        values = []
        for k in range(seeds):
            X, y, groups, beta = _clusters(p, kind, seed + k)
            started = time.perf_counter()
            folds = list(GroupKFold(5).split(X, y, groups))
            coef = LassoCV(cv=folds).fit(X, y).coef_
            values.append((*judge(coef, beta), time.perf_counter() - started))
        rows.append(
            mean_row({"method": "scikit-learn LassoCV, folds of clusters", "data": kind}, values) | {"status": "run"}
        )
    return rows


def unpenalised(seeds, seed, progress):
    """Return rows at 20 columns without penalty, where peers can be fitted."""
    rows = []
    peer = importlib.util.find_spec("statsmodels") is not None
    for kind in KINDS:
        progress(f"mixed model: no penalty, {kind}")
        methods: dict[str, Any] = {
            "skerry clustered, random intercept": _ours("clustered"),
            "skerry joint, random intercept": _ours("joint"),
            "scikit-learn HuberRegressor": lambda X, y, g: HuberRegressor(alpha=0.0, max_iter=1000).fit(X, y).coef_,
            "statsmodels MixedLM": _statsmodels if peer else None,
        }
        for name, coefficients in methods.items():
            if coefficients is None:
                rows.append({"method": name, "data": kind, "status": "not installed"})
                continue
            values = []
            for k in range(seeds):
                X, y, groups, beta = _clusters(SMALL, kind, seed + k)
                started = time.perf_counter()
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # a variance at its bound is reported by a warning
                    coef = coefficients(X, y, groups)
                values.append((*judge(np.asarray(coef), beta), time.perf_counter() - started))
            row = mean_row({"method": name, "data": kind}, values)
            rows.append({k: v for k, v in row.items() if k not in ("false positives", "missed")} | {"status": "run"})
    return rows


def _ours(likelihood):
    return lambda X, y, g: QGaussianMixedModel(likelihood=likelihood, alpha=0.0).fit(X, y, groups=g).coef_


def _statsmodels(X, y, groups):
    from statsmodels.regression.mixed_linear_model import MixedLM

    fit = MixedLM(y, np.column_stack([np.ones(len(y)), X]), groups).fit()
    return np.asarray(fit.fe_params)[1:]
