"""Searching for a detector on labelled tables: AutoOD's parts against random search (Li et al., 2020).

Each table is split 50/25/25. Detectors learn from the first part, designs are judged on at most 50 labelled rows of the
second, and the third is scored once. Every search has the same children and epochs. A small part does the same with
the space of convolutions on images, one class of which is normal (:mod:`skerry.bench.autood_images`).
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from skerry.bench.autood_images import CLAIMED, PICTURED, on_images
from skerry.bench.tables import adbench_tables
from skerry.core.errors import DataError
from skerry.core.metrics import average_precision, roc_auc
from skerry.detect.tabular.autood import AutoOD, _ranks
from skerry.detect.tabular.autood_child import WeightPool, train_child
from skerry.detect.tabular.autood_network import score
from skerry.detect.tabular.autood_reward import UnlabelledReward
from skerry.detect.tabular.autood_search import Search
from skerry.detect.tabular.autood_space import SearchSpace
from skerry.detect.tabular.isolation_forest import IsolationForest
from skerry.detect.tabular.knn import KNN

TABLES = ("annthyroid", "cardio", "Cardiotocography", "letter", "optdigits", "pendigits", "Pima", "vowels")
SIZES = {
    "full": {
        "tables": 8,
        "rows": 2000,
        "children": 30,
        "epochs": 10,
        "final": 40,
        "seeds": 2,
        "classes": 2,
        "images": 400,
        "image_children": 8,
        "image_epochs": 3,
        "image_final": 12,
    },
    "quick": {
        "tables": 2,
        "rows": 600,
        "children": 6,
        "epochs": 4,
        "final": 10,
        "seeds": 1,
        "classes": 1,
        "images": 120,
        "image_children": 3,
        "image_epochs": 1,
        "image_final": 2,
    },
}
LABELLED_ROWS, LABELLED_OUTLIERS = 50, 5
ENSEMBLE = 3
FIXED, RANDOM, AUTOOD, BLIND = "fixed autoencoder", "random search", "both (AutoOD)", "random search, no labels"
SEARCHES = {
    RANDOM: {"strategy": "random"},
    "REINFORCE": {"curiosity": 0.0, "self_imitation": None},
    "+ curiosity": {"self_imitation": None},
    "+ self-imitation": {"curiosity": 0.0},
    AUTOOD: {},
    BLIND: {"strategy": "random"},
}


class _Watched(UnlabelledReward):
    """The reward without labels, which also notes what labels would have said."""

    def __init__(self, train, z, seed, y) -> None:
        super().__init__(train, z, seed)
        self.rows, self.y_true, self.truth = z, y, []

    def measures(self, scorer):
        found = super().measures(scorer)
        if found is not None:
            self.truth.append(roc_auc(self.y_true, scorer(self.rows)))
        return found


def _split(y: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Return train, validation, labelled and test rows, each class split alike."""
    train, val, test, labelled = [], [], [], []
    share = max(LABELLED_OUTLIERS, round(LABELLED_ROWS * y.mean()))
    for cls, n_labelled in ((1, share), (0, LABELLED_ROWS - share)):
        rows = rng.permutation(np.flatnonzero(y == cls))
        half, quarter = len(rows) // 2, len(rows) // 4
        train.append(rows[:half])
        val.append(rows[half : half + quarter])
        labelled.append(val[-1][:n_labelled])
        test.append(rows[half + quarter :])
    return tuple(np.sort(np.concatenate(part)) for part in (train, val, labelled, test))


def _fixed(train, test, size, seed) -> np.ndarray:
    """Scores of the default autoencoder, as many networks of it as a search averages."""
    mean, scale = train.mean(0), train.std(0)
    keep = scale > 1e-12
    z, t = ((a[:, keep] - mean[keep]) / scale[keep] for a in (train, test))
    design, total = SearchSpace(z.shape[1]).default(), np.zeros(len(t))
    for k in range(ENSEMBLE):
        net = train_child(design, z, WeightPool(seed + k, share=False), size["final"], seed + k)
        known = _ranks(score(net, z))
        s = score(net, t)
        total += np.interp(s, known["scores"], known["ranks"])
        total += np.log1p(np.maximum(0, s - known["scores"][-1]) / known["spread"])
    return total


def _agreement(train, val, y_val, size, seed) -> float:
    """Spearman's correlation of the reward without labels and the AUROC on all validation labels, over children."""
    mean, scale = train.mean(0), train.std(0)
    keep = scale > 1e-12
    z, v = ((a[:, keep] - mean[keep]) / scale[keep] for a in (train, val))
    watched = _Watched(z, v, seed, y_val)
    search = Search(
        SearchSpace(z.shape[1]),
        z,
        watched,
        seed=seed,
        n_children=size["children"],
        child_epochs=size["epochs"],
        strategy="random",
    )
    measures = [h["measures"] for h in search.run() if h["measures"] is not None]
    return float(spearmanr(watched.rewards(measures), watched.truth).statistic)


def run(quick: bool, data: Path, seed: int, progress: Callable[[str], None]) -> dict[str, Any]:
    size = SIZES["quick" if quick else "full"]
    tables = [t for t in adbench_tables(data, max_rows=size["rows"], seed=seed) if t[0] in TABLES][: size["tables"]]
    if not tables:
        raise DataError(f"{data}: none of {', '.join(TABLES)} in adbench there")
    auc: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    more: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    agreement: dict[str, list[float]] = defaultdict(list)
    for name, X, y in tables:
        for s in range(seed, seed + size["seeds"]):
            progress(f"{name}: {X.shape[0]} x {X.shape[1]}, seed {s}")
            train, val, labelled, test = _split(y, np.random.default_rng([s, 11]))

            def note(method, scores, began, name=name, y=y, test=test):
                auc[method][name].append(roc_auc(y[test], scores))
                more[method]["AP"].append(average_precision(y[test], scores))
                more[method]["seconds"].append(time.process_time() - began)

            began = time.process_time()
            note(FIXED, _fixed(X[train], X[test], size, s), began)
            for method, peer in (("IsolationForest", IsolationForest(random_state=s)), ("KNN", KNN())):
                began = time.process_time()
                note(method, peer.fit(X[train]).anomaly_score(X[test]), began)
            for method, parameters in SEARCHES.items():
                began = time.process_time()
                det = AutoOD(
                    n_children=size["children"],
                    child_epochs=size["epochs"],
                    final_epochs=size["final"],
                    ensemble=ENSEMBLE,
                    random_state=s,
                    **parameters,
                )
                if method == BLIND:
                    det.fit(X[train], X_val=X[val])
                else:
                    det.fit(X[train], X_val=X[labelled], y_val=y[labelled])
                    more[method]["area"].append(float(det.search_.best_so_far.mean()))
                note(method, det.anomaly_score(X[test]), began)
                more[method]["strings"].append(len({tuple(h["string"]) for h in det.history_}))
            agreement[name].append(_agreement(X[train], X[val], y[val], size, s))
    pictures = on_images(data, size, seed, progress)

    def overall(method):
        return float(np.mean([np.mean(v) for v in auc[method].values()]))

    rows = sorted(
        (
            {
                "method": method,
                "test AUROC": overall(method),
                "test AP": float(np.mean(more[method]["AP"])),
                "curve area": float(np.mean(more[method]["area"])) if more[method]["area"] else None,
                "distinct strings": float(np.mean(more[method]["strings"])) if more[method]["strings"] else None,
                "seed sd": float(np.mean([np.std(v) for v in per.values()])),
                "CPU seconds": float(np.mean(more[method]["seconds"])),
            }
            for method, per in auc.items()
        ),
        key=lambda r: -r["test AUROC"],
    )
    area = {r["method"]: r["curve area"] for r in rows}
    gain = {m: overall(m) - overall(FIXED) for m in SEARCHES}
    differences = [a - b for t in auc[AUTOOD] for a, b in zip(auc[AUTOOD][t], auc[RANDOM][t], strict=True)]
    error = float(np.std(differences, ddof=1) / np.sqrt(len(differences))) if len(differences) > 1 else float("nan")
    gap = float(np.mean(differences))
    verdict = "above" if gap > 0 else "below"
    if not abs(gap) > 2 * error:
        verdict += ", within two standard errors of it: the run does not separate them"
    return {
        "title": "Searching for a detector: AutoOD and random search",
        "claim": (
            f"Over {len(tables)} tables, mean test AUROC: fixed autoencoder {overall(FIXED):.3f}, random search "
            f"{overall(RANDOM):.3f}, REINFORCE {overall('REINFORCE'):.3f}, with curiosity "
            f"{overall('+ curiosity'):.3f}, with self-imitation "
            f"{overall('+ self-imitation'):.3f}, with both (AutoOD) {overall(AUTOOD):.3f}; random "
            f"search without labels {overall(BLIND):.3f}. AutoOD minus random search {gap:+.3f} (standard error "
            f"{error:.3f}): {verdict}. The best row is {rows[0]['method']}."
            + CLAIMED.format(*(next(r["test AUROC"] for r in pictures if r["method"] == m) for m in PICTURED))
        ),
        "table": rows,
        "tables": {
            "Test AUROC by table": [
                {"table": n, "rows": len(y), **{m: float(np.mean(auc[m][n])) for m in auc}} for n, _, y in tables
            ],
            "Reward without labels against the AUROC of all validation labels": [
                {"table": n, "Spearman": float(np.nanmean(v))} for n, v in agreement.items()
            ],
            "Images: one class of Fashion-MNIST is normal": pictures,
            "Expectations": [
                {"expected": text, "measured": value, "met": "yes" if met else "no"}
                for text, value, met in (
                    ("every labelled search gains 0.03 to 0.10 on the fixed autoencoder (least gain)",
                     min(v for m, v in gain.items() if m != BLIND),
                     all(0.03 <= v <= 0.10 for m, v in gain.items() if m != BLIND)),
                    ("curve area of AutoOD minus random search is at least 0",
                     area[AUTOOD] - area[RANDOM], area[AUTOOD] >= area[RANDOM]),
                    ("without labels the gain of random search is about a third (share kept; met: 0.2 to 0.5)",
                     gain[BLIND] / gain[RANDOM] if gain[RANDOM] > 0 else None,
                     gain[RANDOM] > 0 and 0.2 <= gain[BLIND] / gain[RANDOM] <= 0.5),
                )
            ],
        },
        "notes": [
            f"{size['children']} children of at most {size['epochs']} epochs, then {ENSEMBLE} designs of at most "
            f"{size['final']} epochs averaged (the fixed autoencoder too: {ENSEMBLE} starts); {size['seeds']} seed(s), "
            f"tables of at most {size['rows']:,} rows. The plan of this study was 60 children of 15 epochs, 5 seeds "
            "and 5,000 rows: smaller here so that it ends in minutes on one core.",
            f"Validation labels: {LABELLED_ROWS} rows at most, at least {LABELLED_OUTLIERS} of them outliers where the "
            "part holds so many; the search without labels sees the whole validation part instead.",
            "Curve area: the mean over children of the best validation reward so far. IsolationForest and KNN are "
            "hand-made peers on the same rows and use no label.",
            f"Images: {size['classes']} normal class(es) of Fashion-MNIST, the other nine mixed in at a tenth, at 14 x "
            f"14 pixels, {size['images']} in each part, {size['image_children']} children of at most "
            f"{size['image_epochs']} epochs, {size['seeds']} seed(s): a check that the space works, not the paper's "
            "protocol, which trains on whole data sets and judges tables of classes.",
        ],
    }  # fmt: skip
