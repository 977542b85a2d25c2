"""AutoOD's search loop: which design to try next, what it was worth, and the record of it all.

The loop stops at a number of children or at a time limit, whichever comes first, survives children that fail, and
keeps its state in one file of plain arrays, so that an interrupted search goes on where it was.
"""

from __future__ import annotations

import hashlib
import io
import json
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from skerry.core.errors import ModelError
from skerry.core.files import atomic_write
from skerry.core.metrics import average_precision, roc_auc
from skerry.detect.tabular.autood_child import WeightPool, score, train_child
from skerry.detect.tabular.autood_space import SearchSpace

__all__ = ["LabelledReward", "Search", "SearchReport", "UnlabelledReward", "excess_mass", "synthetic_outliers"]

ITERATION = 5  # children between two updates of the controller
SYNTHETIC_ROWS = 1000
FORMAT = 1


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


class Search:
    """The loop.

    Parameters
    ----------
    space : SearchSpace
    z : array of shape (n, d)
        The standardised table that children train on.
    reward : LabelledReward or UnlabelledReward
    seed, n_children, child_epochs : int
    time_limit : float or None
        Seconds after which no child is started.
    strategy : {"controller", "random"}
    curiosity, self_imitation
        As in :class:`skerry.deep.controller.Controller`.
    share_weights : bool
    device : str
    checkpoint : path or None
        Written after every child; a search with the same question goes on from it.
    question : str
        What identifies the search, beside the table and the reward's rows.
    clock : callable, default time.monotonic

    Attributes
    ----------
    history : list of dict
        One a child: ``string``, ``reward``, ``measures`` (None if it failed), ``gain`` (None until the controller has
        learned from it) and ``seconds``.
    """

    def __init__(self, space: SearchSpace, z, reward, *, seed, n_children, child_epochs, time_limit=None,
                 strategy="controller", curiosity=0.05, self_imitation="advantage", share_weights=True, device="cpu",
                 checkpoint=None, question="", clock=time.monotonic):  # fmt: skip
        self.space, self.z, self.reward, self.seed = space, z, reward, int(seed)
        self.n_children, self.child_epochs, self.time_limit, self.clock = n_children, child_epochs, time_limit, clock
        self.device, self.checkpoint = device, None if checkpoint is None else Path(checkpoint)
        self.pool = WeightPool(self.seed, share_weights)
        self.controller = None
        if strategy == "controller":
            from skerry.deep.controller import Controller

            self.controller = Controller(space, self.seed, curiosity, self_imitation)
        self.history: list[dict[str, Any]] = []
        digest = hashlib.sha256(repr((question, type(reward).__name__, child_epochs, strategy, curiosity)).encode())
        digest.update(repr((self_imitation, share_weights, sorted(space.options.items()), self.seed)).encode())
        for array in (z, reward.z, getattr(reward, "y", np.empty(0))):
            digest.update(repr(array.shape).encode() + np.ascontiguousarray(array).tobytes())
        self.fingerprint = digest.hexdigest()

    def run(self) -> list[dict[str, Any]]:
        """Try children until the budget is spent; return the history."""
        import torch

        if self.checkpoint is not None and self.checkpoint.exists():
            self._load()
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        started = self.clock()
        try:
            while len(self.history) < self.n_children:
                spent = self.clock() - started
                if self.time_limit is not None and self.history and spent >= self.time_limit:
                    break
                self._try_one()
                if self.controller is not None and len(self.history) % ITERATION == 0:
                    share = len(self.history) / self.n_children
                    if self.time_limit:
                        share = max(share, (self.clock() - started) / self.time_limit)
                    last = self.history[-ITERATION:]
                    gains = self.controller.update(
                        [tuple(h["string"]) for h in last], [h["reward"] for h in last], min(1.0, share)
                    )
                    for h, gain in zip(last, gains, strict=True):
                        h["gain"] = gain
                if self.checkpoint is not None:
                    self._save()
        finally:
            torch.set_num_threads(threads)
        return self.history

    def _try_one(self) -> None:
        number, began = len(self.history), time.perf_counter()
        if self.controller is None:
            string = self.space.sample(np.random.default_rng([self.seed, 8, number]))
        else:
            string = self.controller.sample(number)
        net = train_child(
            self.space.decode(string), self.z, self.pool, self.child_epochs, self.seed + number, self.device
        )
        measures = None
        if net is not None:
            with np.errstate(all="ignore"):
                measures = self.reward.measures(lambda rows: score(net, rows))
        if measures is None:  # it failed: the worst seen, and the search goes on
            reward = min((h["reward"] for h in self.history), default=self.reward.floor)
        else:
            known = [h["measures"] for h in self.history if h["measures"] is not None]
            reward = float(self.reward.rewards([*known, measures])[-1])
        self.history.append(
            {
                "string": [int(c) for c in string],
                "reward": reward,
                "measures": measures,
                "gain": None,
                "seconds": time.perf_counter() - began,
            }
        )

    def best_strings(self, k: int) -> list[tuple[int, ...]]:
        """Return the best distinct strings, best first, by rewards recomputed from all children's measures."""
        good = [h for h in self.history if h["measures"] is not None]
        if not good:
            return []
        found: dict[tuple[int, ...], float] = {}
        for h, r in zip(good, self.reward.rewards([h["measures"] for h in good]), strict=True):
            string = tuple(h["string"])
            found[string] = max(float(r), found.get(string, -np.inf))
        return sorted(found, key=lambda s: -found[s])[:k]

    # ---- the checkpoint -----------------------------------------------------------------------------------------
    def _save(self) -> None:
        arrays = {f"pool/{k}": v for k, v in self.pool.arrays.items()}
        plain = {"format": FORMAT, "fingerprint": self.fingerprint, "history": self.history}
        if self.controller is not None:
            learned, plain["controller"] = self.controller.state()
            arrays |= {f"controller/{k}": v for k, v in learned.items()}
        names = sorted(arrays)
        plain["arrays"] = names
        with atomic_write(self.checkpoint) as file, zipfile.ZipFile(file, "w") as archive:
            archive.writestr("search.json", json.dumps(plain))
            for i, name in enumerate(names):
                buffer = io.BytesIO()
                np.save(buffer, arrays[name], allow_pickle=False)
                archive.writestr(f"{i}.npy", buffer.getvalue())

    def _load(self) -> None:
        try:
            with zipfile.ZipFile(self.checkpoint) as archive:
                plain = json.loads(archive.read("search.json"))
                if plain["format"] != FORMAT:
                    raise ModelError(f"{self.checkpoint}: a search of format {plain['format']}, not {FORMAT}")
                if plain["fingerprint"] != self.fingerprint:
                    raise ModelError(
                        f"{self.checkpoint}: belongs to a search on other rows or with other parameters; "
                        "give another path or remove it"
                    )
                arrays = {
                    name: np.load(io.BytesIO(archive.read(f"{i}.npy")), allow_pickle=False)
                    for i, name in enumerate(plain["arrays"])
                }
            self.history = list(plain["history"])
            self.pool.arrays = {k[5:]: v for k, v in arrays.items() if k.startswith("pool/")}
            if self.controller is not None:
                learned = {k[11:]: v for k, v in arrays.items() if k.startswith("controller/")}
                self.controller.load_state(learned, plain["controller"])
        except ModelError:
            raise
        except (OSError, zipfile.BadZipFile, ValueError, LookupError, TypeError, EOFError, RuntimeError) as error:
            raise ModelError(f"{self.checkpoint}: not a whole checkpoint of a search ({error}); remove it") from None


class SearchReport:
    """What a search tried and which choices mattered.

    Parameters
    ----------
    space : SearchSpace
    history : list of dict
    """

    def __init__(self, space: SearchSpace, history: list[dict[str, Any]]) -> None:
        self.space, self.history = space, history

    def __len__(self) -> int:
        return len(self.history)

    @property
    def best_so_far(self) -> NDArray[np.float64]:
        """Return the best reward up to each child, shape (children,)."""
        return np.maximum.accumulate([h["reward"] for h in self.history])

    def _choices(self, h) -> dict[str, Any]:
        design = self.space.decode(h["string"])
        row = {"definition": design["definition"], "distance": design["distance"], "latent": design["latent"]}
        row["depth"] = len(design["layers"])
        for i in range(4):
            for kind in ("width", "norm", "activation", "dropout", "skip"):
                row[f"{kind}_{i}"] = design["layers"][i][kind] if i < len(design["layers"]) else None
        return row

    def to_frame(self):
        """Return a polars frame, a row a child: choices, ``reward``, ``information_gain``, ``seconds``, ``failed``."""
        import polars as pl

        rows = [
            {
                "child": i,
                **self._choices(h),
                "reward": h["reward"],
                "information_gain": h["gain"],
                "seconds": h["seconds"],
                "failed": h["measures"] is None,
            }
            for i, h in enumerate(self.history)
        ]
        return pl.DataFrame(rows, infer_schema_length=None)

    def effects(self):
        """Return a polars frame of marginal effects, the most important decision first.

        Columns: ``decision``, ``choice``, ``children``, ``mean_with``, ``mean_without``, ``effect``, its 95 % interval
        ``low`` and ``high`` (Welch, normal; null with fewer than two children on a side), and ``importance`` of the
        decision: its share of the impurity that a random forest of the reward on all choices removes.
        """
        import polars as pl
        from sklearn.ensemble import RandomForestRegressor

        table = [self._choices(h) for h in self.history]
        r = np.array([h["reward"] for h in self.history])
        levels = {k: sorted({row[k] for row in table if row[k] is not None}, key=str) for k in table[0]}
        columns = [(k, v) for k, values in levels.items() for v in values]
        hot = np.array([[row[k] == v and row[k] is not None for k, v in columns] for row in table])
        forest = RandomForestRegressor(200, min_samples_leaf=2, random_state=0, n_jobs=1).fit(hot.astype(float), r)
        share: dict[str, float] = {}
        for (k, _), value in zip(columns, forest.feature_importances_, strict=True):
            share[k] = share.get(k, 0.0) + float(value)
        rows = []
        for (k, v), has in zip(columns, hot.T, strict=True):
            a, b = r[has], r[~has]
            if not len(b):
                continue
            effect = float(a.mean() - b.mean())
            width = None
            if min(len(a), len(b)) > 1:
                width = 1.96 * float(np.sqrt(a.var(ddof=1) / len(a) + b.var(ddof=1) / len(b)))
            rows.append(
                {
                    "decision": k,
                    "choice": str(v),
                    "children": len(a),
                    "mean_with": float(a.mean()),
                    "mean_without": float(b.mean()),
                    "effect": effect,
                    "low": None if width is None else effect - width,
                    "high": None if width is None else effect + width,
                    "importance": share[k],
                }
            )
        rows.sort(key=lambda row: (-row["importance"], row["decision"], -row["effect"]))
        floats = ("mean_with", "mean_without", "effect", "low", "high", "importance")
        schema = {"decision": pl.String, "choice": pl.String, "children": pl.Int64, **dict.fromkeys(floats, pl.Float64)}
        return pl.DataFrame(rows, schema=schema)
