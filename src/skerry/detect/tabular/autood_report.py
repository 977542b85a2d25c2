"""What a search of AutoOD tried, and which choices mattered: the explanation that comes with the detector."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from skerry.detect.tabular.autood_space import SearchSpace

__all__ = ["SearchReport"]


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
            for kind in self.space.layer_kinds:
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
