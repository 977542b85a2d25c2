"""Does screening by mutual information, nonconvex regression and the q-Gaussian mixed model do what it says?

Three simulations with known truth. Screening: y = x1^2 + 1.5 |x2| + 0.5 x3 + 0.5 e among noise columns. Regression:
beta = (2, -2, 8, -8, 0, ...), correlation 0.6^|i-j|, signal-to-noise ratio 5, SCAD. Mixed model: clusters of five
rows, a tenth of them moved by 12, either as a whole or each row by its own sign.
"""

from __future__ import annotations

import importlib.util
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_selection import mutual_info_regression
from sklearn.linear_model import LassoCV

from skerry.rank.mutual_information import mutual_information
from skerry.robust.composite import SparseProblem, solve
from skerry.robust.mixed_effects import QGaussianMixedModel
from skerry.robust.sparse import SparseRegression

SIZES: dict[str, dict[str, Any]] = {
    "full": {
        "screen": (1000, 2000),
        "sparse": (500, 1004),
        "seeds": 5,
        "columns": (50, 150),
        "mixed_seeds": 3,
        "strengths": (0.3, 0.5, 0.8),
    },
    "quick": {
        "screen": (1000, 400),
        "sparse": (300, 400),
        "seeds": 2,
        "columns": (50,),
        "mixed_seeds": 1,
        "strengths": (0.3, 0.8),
    },
}
STEPS = (25, 50, 100, 200, 400)
SOLVERS = {"proximal gradient": "ista", "accelerated gradient": "accelerated", "proximal CG": "cg"}
MOVED = ("clean", "clusters shifted", "rows of clusters scattered")


def run(quick: bool, data: Path, seed: int, progress: Callable[[str], None]) -> dict[str, Any]:
    size = SIZES["quick" if quick else "full"]
    screening, notes = _screening(*size["screen"], seed, progress)
    descent = _descent(*size["sparse"], seed, progress)
    recovery = _recovery(*size["sparse"], size["seeds"], seed, progress)
    mixed = _mixed(size["columns"], size["mixed_seeds"], size["strengths"], seed, progress)
    small = _small(size["mixed_seeds"], seed, progress)
    kept = [r for r in mixed if r["columns"] == max(size["columns"])]
    table = [
        {
            "part": "screening",
            "method": r["estimator"],
            "worst rank of 3": r.get("worst rank"),
            "ms per column": r.get("ms per column"),
            "status": r["status"],
        }
        for r in screening
    ]
    table += [
        {"part": "optimiser", "method": r["solver"], "steps to optimum": r["steps to 1e-3"], "status": "run"}
        for r in descent
    ]
    for part, rows in (("recovery", recovery), ("mixed model", kept)):
        table += [
            {
                "part": part,
                "method": r["method"],
                "data": r["data"],
                "L2 error": r["L2 error"],
                "false positives": r["false positives"],
                "status": "run",
            }
            for r in rows
        ]
    checks = _checks(screening, descent, recovery, kept, small, size["strengths"])
    p = max(size["columns"])
    notes += [
        f"The mixed models (p = {p} in the main table) use, per method and kind of data, the strength of "
        f"{size['strengths']} with the least mean error: an oracle, for every method alike. The column `worst` "
        "is the error at the poorest strength.",
        "A shift of whole clusters is what a random intercept absorbs, so there a Gaussian model with one does "
        "not break down; scattered rows are what it cannot absorb.",
        "The joint likelihood is the manuscript's model; its coefficients are the Gaussian ones.",
        *(f"Not met: {c['expectation']} ({c['measured']})" for c in checks if c["met"] == "no"),
        *(f"Undecided: {c['expectation']} ({c['measured']})" for c in checks if c["met"] == "undecided"),
    ]
    return {
        "title": "Robust high-dimensional analysis",
        "table": table,
        "tables": {
            "Expectations": checks,
            "Screening": screening,
            "Objective by step": descent,
            "Recovery": recovery,
            "Mixed model": mixed,
            "Mixed model without penalty, 20 columns": small,
        },
        "claim": _claim(screening, descent, recovery, small),
        "notes": notes,
    }


def _screening(n, p, seed, progress):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, p))
    y = X[:, 0] ** 2 + 1.5 * np.abs(X[:, 1]) + 0.5 * X[:, 2] + 0.5 * rng.normal(size=n)
    methods = {
        f"skerry {name}": lambda A, name=name: mutual_information(A, y, estimator=name)
        for name in ("fftkde", "binning", "knn", "pearson")
    }
    methods["skerry fftkde, bandwidth as published"] = lambda A: mutual_information(A, y, bandwidth="official")
    methods["scikit-learn mutual_info_regression"] = lambda A: mutual_info_regression(A, y, random_state=seed, n_jobs=1)
    rows = []
    for name, score in methods.items():
        progress(f"screening: {name}")
        score(X[:, :4])  # compiled before the clock starts
        started, cpu = time.perf_counter(), time.process_time()
        scores = np.asarray(score(X))
        wall, cpu = time.perf_counter() - started, time.process_time() - cpu
        rank = [1 + int(np.sum(scores > scores[j])) for j in range(3)]
        rows.append(
            {
                "estimator": name,
                "rank x1^2": rank[0],
                "rank |x2|": rank[1],
                "rank x3": rank[2],
                "worst rank": max(rank),
                **{f"MI {c}": float(scores[j]) for j, c in enumerate(("x1^2", "|x2|", "x3"))},
                "MI noise, median": float(np.median(scores[3:])),
                "ms per column": 1e3 * wall / p,
                "CPU ms per column": 1e3 * cpu / p,
                "status": "run",
            }
        )
    installed = importlib.util.find_spec("fastHDMI") is not None
    status = "installed, not run: no adapter here" if installed else "not installed"
    rows.append({"estimator": "fastHDMI", "status": status})
    return rows, [f"fastHDMI: {status}; `bandwidth as published` is our code at the bandwidth it really uses."]


def _design(n, p, seed):
    """Rows of a stationary process of correlation 0.6, and y; also the true coefficients."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, p))
    for j in range(1, p):
        X[:, j] = 0.6 * X[:, j - 1] + 0.8 * X[:, j]
    beta = np.zeros(p)
    beta[:4] = 2.0, -2.0, 8.0, -8.0
    signal = X @ beta
    return X, signal + rng.normal(size=n) * signal.std() / np.sqrt(5.0), beta, rng


def _descent(n, p, seed, progress):
    X, y, beta, _ = _design(n, p, seed)
    Z = (X - X.mean(axis=0)) / X.std(axis=0)
    problem = SparseProblem(Z, y - y.mean(), "squared", "scad", 3.7, 2.0, 0)
    found = {}
    for name, solver in SOLVERS.items():
        progress(f"optimiser: {name}")
        trace: list[float] = []
        started = time.perf_counter()
        b, _, done = solve(problem, 0.5, np.zeros(p), solver, 1e-7, 3000, trace=trace)
        found[name] = (b, done, np.array(trace), time.perf_counter() - started)
    best = min(t.min() for _, _, t, _ in found.values())
    rows = []
    for name, (b, done, trace, seconds) in found.items():
        near = np.flatnonzero(trace <= best + 1e-3)
        rows.append(
            {
                "solver": name,
                **{f"after {k}": float(trace[min(k, trace.size) - 1]) for k in STEPS},
                "at the end": float(trace[-1]),
                "steps to 1e-3": int(near[0]) + 1 if near.size else None,
                "steps": trace.size,
                "converged": "yes" if done else "no",
                "seconds with trace": seconds,
                "signals found": int(np.count_nonzero(b[:4])),
                "false positives": int(np.count_nonzero(b[4:])),
            }
        )
    return rows


def _recovery(n, p, seeds, seed, progress):
    common = {"n_alphas": 25, "alpha_min_ratio": 0.05}
    methods = {
        "skerry SCAD, squared": lambda: SparseRegression(alpha="ebic", **common),
        "skerry SCAD, Huber": lambda: SparseRegression(alpha="ebic", loss="huber", **common),
        "scikit-learn LassoCV": lambda: LassoCV(cv=5, random_state=0),
    }
    cells: dict[tuple[str, str], list] = {}
    for k in range(seeds):
        progress(f"recovery: draw {k + 1} of {seeds}")
        X, y, beta, rng = _design(n, p, seed + k)
        spoilt = y.copy()
        spoilt[rng.choice(n, max(1, n // 20), replace=False)] += 20.0
        for kind, target in (("clean", y), ("5 % of y shifted by 20", spoilt)):
            for name, make in methods.items():
                started = time.perf_counter()
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", ConvergenceWarning)
                    coef = make().fit(X, target).coef_
                cells.setdefault((kind, name), []).append((*_judge(coef, beta), time.perf_counter() - started))
    return [_mean_row({"method": name, "data": kind}, values) for (kind, name), values in cells.items()]


def _judge(coef, beta):
    """L2 error, false positives, missed."""
    chosen = coef != 0
    return (
        float(np.linalg.norm(coef - beta)),
        float(np.sum(chosen & (beta == 0))),
        float(np.sum(~chosen & (beta != 0))),
    )


def _mean_row(row, values):
    values = np.array(values)
    error = values[:, 0]
    spread = error.std(ddof=1) / np.sqrt(error.size) if error.size > 1 else float("nan")
    names = ("L2 error", "false positives", "missed", "seconds")
    means = {key: float(v) for key, v in zip(names, values.mean(axis=0), strict=True)}
    return row | means | {"standard error of L2": float(spread)}


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


def _mixed(columns, seeds, strengths, seed, progress):
    rows = []
    for p in columns:
        for kind in MOVED:
            progress(f"mixed model: p = {p}, {kind}")
            for likelihood in ("clustered", "joint"):
                for random in (None, "intercept"):
                    grid = [
                        [
                            _one(p, kind, seed + k, {"likelihood": likelihood, "random": random, "alpha": a})
                            for k in range(seeds)
                        ]
                        for a in strengths
                    ]
                    errors = [np.mean([v[0] for v in cell]) for cell in grid]
                    best = int(np.argmin(errors))
                    name = f"{likelihood}, {'random intercept' if random else 'no random effect'}"
                    row = _mean_row({"method": name, "columns": p, "data": kind}, [v[:4] for v in grid[best]])
                    row |= {
                        "worst": float(max(errors)),
                        "strength": strengths[best],
                        "scale^2": float(np.mean([v[4] for v in grid[best]])),
                        "df": float(np.mean([v[5] for v in grid[best]])),
                        "weight of moved clusters": float(np.mean([v[6] for v in grid[best]])),
                    }
                    rows.append(row)
    return rows


def _one(p, kind, seed, options):
    X, y, groups, beta = _clusters(p, kind, seed)
    started = time.perf_counter()
    model = QGaussianMixedModel(max_iter=40, **options).fit(X, y, groups=groups)
    seconds = time.perf_counter() - started
    weight = float(model.cluster_weights_[:6].mean())
    return (*_judge(model.coef_, beta), seconds, model.scale_**2, model.df_, weight)


def _small(seeds, seed, progress):
    """Without penalty, where statsmodels' Gaussian mixed model can be fitted."""
    p, rows = 20, []
    peer = importlib.util.find_spec("statsmodels") is not None
    for kind in MOVED:
        progress(f"mixed model: no penalty, {kind}")
        for likelihood in ("clustered", "joint"):
            values = [_one(p, kind, seed + k, {"likelihood": likelihood, "alpha": 0.0}) for k in range(seeds)]
            rows.append(
                {
                    "method": f"skerry {likelihood}, random intercept",
                    "data": kind,
                    "L2 error": float(np.mean([v[0] for v in values])),
                    "seconds": float(np.mean([v[3] for v in values])),
                    "status": "run",
                }
            )
        row: dict[str, Any] = {"method": "statsmodels MixedLM", "data": kind}
        if not peer:
            rows.append(row | {"status": "not installed"})
            continue
        from statsmodels.regression.mixed_linear_model import MixedLM

        errors, seconds = [], []
        for k in range(seeds):
            X, y, groups, beta = _clusters(p, kind, seed + k)
            started = time.perf_counter()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a variance at its bound is reported by a warning
                fit = MixedLM(y, np.column_stack([np.ones(len(y)), X]), groups).fit()
            seconds.append(time.perf_counter() - started)
            errors.append(np.linalg.norm(np.asarray(fit.fe_params)[1:] - beta))
        rows.append(row | {"L2 error": float(np.mean(errors)), "seconds": float(np.mean(seconds)), "status": "run"})
    return rows


def _pick(rows, key, value, data=None):
    return next(r for r in rows if r[key] == value and (data is None or r["data"] == data))


def _checks(screening, descent, recovery, mixed, small, strengths):
    """What the brief of this study expected, and what came out."""
    kde = _pick(screening, "estimator", "skerry fftkde")
    knn = _pick(screening, "estimator", "skerry knn")
    ratios = [kde[k] / max(knn[k], 1e-12) for k in ("MI x1^2", "MI |x2|", "MI x3")]
    ista, ag, cg = descent
    rows = []

    def check(expectation, met, measured):
        rows.append({"expectation": expectation, "met": "yes" if met else "no", "measured": measured})

    check("fftkde ranks all three columns first", kde["worst rank"] == 3, f"worst rank {kde['worst rank']}")
    check("fftkde under 3 ms per column", kde["ms per column"] < 3, f"{kde['ms per column']:.2f} ms, all threads")
    check(
        "fftkde values within 20 % of kNN's",
        all(0.8 <= r <= 1.2 for r in ratios),
        "ratios " + ", ".join(f"{r:.2f}" for r in ratios),
    )
    check(
        "accelerated gradient ahead of proximal gradient after 25 steps",
        ag["after 25"] < ista["after 25"],
        f"{ag['after 25']:.3f} against {ista['after 25']:.3f}",
    )
    check(
        "proximal CG ahead of accelerated gradient after 25 steps",
        cg["after 25"] < ag["after 25"],
        f"{cg['after 25']:.3f} against {ag['after 25']:.3f}",
    )
    check(
        "every solver ends at the four signals and nothing else",
        all(r["signals found"] == 4 and r["false positives"] == 0 for r in descent),
        "false positives " + ", ".join(str(r["false positives"]) for r in descent),
    )
    for kind in ("clean", "5 % of y shifted by 20"):
        scad = _pick(recovery, "method", "skerry SCAD, squared", kind)
        lasso = _pick(recovery, "method", "scikit-learn LassoCV", kind)
        check(
            f"SCAD recovers better than the lasso, {kind}",
            scad["L2 error"] < lasso["L2 error"],
            f"{scad['L2 error']:.3f} against {lasso['L2 error']:.3f}",
        )
    spoilt = "5 % of y shifted by 20"
    plain = _pick(recovery, "method", "skerry SCAD, squared", spoilt)["L2 error"]
    huber = _pick(recovery, "method", "skerry SCAD, Huber", spoilt)["L2 error"]
    check("Huber loss better than squared on contaminated y", huber < plain, f"{huber:.3f} against {plain:.3f}")
    names = ("skerry clustered, random intercept", "skerry joint, random intercept")
    ours, joint = (_pick(small, "method", m, MOVED[2])["L2 error"] for m in names)
    check(
        f"clustered model better than joint, no penalty, {MOVED[2]}",
        ours < joint,
        f"{ours:.3f} against {joint:.3f}",
    )
    edges = (min(strengths), max(strengths))
    for kind in MOVED[1:]:
        for effect in ("no random effect", "random intercept"):
            pair = [_pick(mixed, "method", f"{m}, {effect}", kind) for m in ("clustered", "joint")]
            ours, joint = (r["L2 error"] for r in pair)
            check(
                f"clustered model better than joint, {effect}, {kind}",
                ours < joint,
                f"{ours:.3f} against {joint:.3f}",
            )
            if any(r["strength"] in edges for r in pair):
                # a best strength at an end of the grid is not known to be the best: no verdict
                rows[-1]["met"] = "undecided"
                rows[-1]["measured"] += "; best strength at an end of the grid"
    return rows


def _claim(screening, descent, recovery, small):
    kde = _pick(screening, "estimator", "skerry fftkde")
    spoilt = "5 % of y shifted by 20"
    plain, huber, lasso = (
        _pick(recovery, "method", m, spoilt)["L2 error"]
        for m in ("skerry SCAD, squared", "skerry SCAD, Huber", "scikit-learn LassoCV")
    )
    clean = _pick(recovery, "method", "skerry SCAD, squared", "clean")
    clean_lasso = _pick(recovery, "method", "scikit-learn LassoCV", "clean")
    scattered = MOVED[2]
    ours, joint = (
        _pick(small, "method", f"skerry {m}, random intercept", scattered)["L2 error"] for m in ("clustered", "joint")
    )
    steps = " / ".join(str(r["steps to 1e-3"]) for r in descent)
    return (
        f"KDE screening puts the worst of three signals at rank {kde['worst rank']} "
        f"({kde['ms per column']:.1f} ms per column); proximal / accelerated gradient / proximal CG need {steps} "
        f"steps; SCAD's L2 error is {clean['L2 error']:.2f} (lasso {clean_lasso['L2 error']:.2f}) on clean data "
        f"and {plain:.2f} (Huber {huber:.2f}, lasso {lasso:.2f}) with 5 % of y shifted; with a tenth of the "
        f"clusters scattered and no penalty the clustered mixed model errs by {ours:.2f}, "
        f"the joint one by {joint:.2f} (p = 20)."
    )
