"""AutoOD's space of convolutions on images: one class of Fashion-MNIST is normal, the nine others are the outliers.

Small on purpose (14 x 14 pixels, a few hundred images): it shows that a search over convolutions runs under the same
contract as one over tables, and how it stands beside random search and detectors that see pixels as columns.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skerry.core.errors import DataError
from skerry.core.metrics import average_precision, roc_auc
from skerry.detect.tabular.autood import AutoOD
from skerry.detect.tabular.isolation_forest import IsolationForest
from skerry.detect.tabular.knn import KNN

__all__ = ["CLAIMED", "PICTURED", "on_images"]

SIDE = 14
OUTLIERS = 0.1  # share of every part
LABELLED = 50  # validation images with a label
CONVOLUTIONS, RANDOM, COLUMNS = "AutoOD, convolutions", "random search, convolutions", "AutoOD, pixels as columns"
PICTURED = (CONVOLUTIONS, RANDOM, COLUMNS, "KNN", "IsolationForest")
CLAIMED = (
    " On images, one class normal: AutoOD over convolutions {:.3f}, random search over them {:.3f}, AutoOD with pixels "
    "as columns {:.3f}, KNN {:.3f}, isolation forest {:.3f}."
)


def _parts(data: Path, normal: int, n: int, rng: np.random.Generator) -> list[tuple[NDArray, NDArray]]:
    """Return train, validation and test parts of ``n`` images: flat rows in [0, 1] and whether each is an outlier."""
    path = data / "images" / "fashion_mnist.npz"
    if not path.exists():
        raise DataError(f"{data}: no images/fashion_mnist.npz there; see --data")
    with np.load(path, allow_pickle=False) as z:
        x, y = z["x_train"], z["y_train"]
    few = max(2, round(OUTLIERS * n))
    inside = rng.permutation(np.flatnonzero(y == normal))[: 3 * (n - few)].reshape(3, -1)
    outside = rng.permutation(np.flatnonzero(y != normal))[: 3 * few].reshape(3, -1)
    parts = []
    for a, b in zip(inside, outside, strict=True):
        rows = rng.permutation(np.r_[a, b])
        small = x[rows].reshape(-1, SIDE, 2, SIDE, 2).mean(axis=(2, 4)) / 255.0
        parts.append((small.reshape(len(rows), -1), (y[rows] != normal).astype(np.int64)))
    return parts


def on_images(data: Path, size: dict[str, int], seed: int, progress: Callable[[str], None]) -> list[dict[str, Any]]:
    """Return a row a method, best first: test AUROC and average precision, spread over seeds, CPU seconds."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for normal in range(size["classes"]):
        for s in range(seed, seed + size["seeds"]):
            progress(f"Fashion-MNIST, class {normal} normal, seed {s}")
            rng = np.random.default_rng([s, 12, normal])
            (train, _), (val, y_val), (test, y) = _parts(data, normal, size["images"], rng)
            budget = {
                "n_children": size["image_children"],
                "child_epochs": size["image_epochs"],
                "final_epochs": size["image_final"],
                "random_state": s,
            }
            methods = {
                CONVOLUTIONS: AutoOD(image_shape=(SIDE, SIDE), **budget),
                RANDOM: AutoOD(image_shape=(SIDE, SIDE), strategy="random", **budget),
                COLUMNS: AutoOD(**budget),
                "KNN": KNN(),
                "IsolationForest": IsolationForest(random_state=s),
            }
            for name, model in methods.items():
                began = time.process_time()
                if isinstance(model, AutoOD):
                    model.fit(train, X_val=val[:LABELLED], y_val=y_val[:LABELLED])
                else:
                    model.fit(train)
                scores = model.anomaly_score(test)
                found[name]["seconds"].append(time.process_time() - began)
                found[name]["auc"].append(roc_auc(y, scores))
                found[name]["ap"].append(average_precision(y, scores))
    rows = [
        {
            "method": name,
            "test AUROC": float(np.mean(v["auc"])),
            "test AP": float(np.mean(v["ap"])),
            "sd": float(np.std(v["auc"])),
            "CPU seconds": float(np.mean(v["seconds"])),
        }
        for name, v in found.items()
    ]
    return sorted(rows, key=lambda r: -r["test AUROC"])
