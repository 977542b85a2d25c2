"""The tables of a ranking: joined from the scores of its blocks, and written in the files of the published tool.

Names and columns of the files are those of ``outrank`` (Škrlj & Mramor, RecSys 2023), so that two runs can be laid
side by side; ``ranking.csv``, ``controls.csv``, ``quality.csv`` and ``anomalies.txt`` are Skerry's own.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from skerry.core.errors import DataError
from skerry.core.files import atomic_write
from skerry.rank.quality import NOISE
from skerry.rank.redundancy import unit_scale

if TYPE_CHECKING:
    from skerry.rank.outrank import OutRank

__all__ = ["CONTROL", "PairVotes", "Score", "Votes", "benjamini_hochberg", "write_results"]

CONTROL = "\0control"  # first of the key of a control column
COLUMNS = (
    "feature", "score", "z", "p_value", "q_value", "cardinality", "coverage", "bytes", "above_control",
    "gain", "synergy",
)  # fmt: skip

Key = tuple[str, ...]
Score = tuple[float, float, float, int, float]  # score, z, p, cardinality, gain (NaN for a single column)


def benjamini_hochberg(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return q-values of shape (m,); NaN stays NaN.

    >>> benjamini_hochberg(np.array([0.01, 0.5]))
    array([0.02, 0.5 ])
    """
    q = np.full(p.size, np.nan)
    given = np.flatnonzero(~np.isnan(p))
    order = given[np.argsort(p[given])[::-1]]
    q[order] = np.minimum.accumulate(np.minimum(p[order] * order.size / np.arange(order.size, 0, -1), 1.0))
    return q


class Votes:
    """Scores of every feature and control, one from each block; the median counts.

    Attributes
    ----------
    of : dict of tuple of str to list
        What each key, ``(feature,)`` or the columns of a cross, got in each block.
    """

    def __init__(self) -> None:
        self.of: dict[Key, list[Score]] = {}
        self.parents: dict[str, tuple[int, ...]] = {}

    def add(self, key: Key, score: Score) -> None:
        """Add one block's score of one key."""
        self.of.setdefault(key, []).append(score)

    def score(self, key: Key) -> float:
        """Return the median score."""
        return float(np.median([v[0] for v in self.of[key]]))

    def crosses(self) -> dict[Key, float]:
        """Return the scores of all crosses."""
        return {key: self.score(key) for key in self.of if len(key) > 1 and key[0] != CONTROL}

    def rows(self, about: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Return the rows of the features and of the controls; ``about(name)`` gives coverage, bytes, cardinality."""
        from scipy.stats import norm

        features, controls = [], []
        for key, seen in self.of.items():
            score, z, p, cells, gain = (np.array(v, dtype=np.float64) for v in zip(*seen, strict=True))
            combined = float(z.sum() / math.sqrt(z.size))
            row: dict[str, Any] = {
                "feature": key[1] if key[0] == CONTROL else " AND ".join(key),
                "score": float(np.median(score)),
                "z": combined,
                "p_value": float(p[0]) if p.size == 1 else float(norm.sf(combined)),
                "cardinality": int(cells.max()),
                "coverage": 100.0,
                "bytes": 0.0,
            }
            if key[0] == CONTROL:
                controls.append(row | {"kind": "noise" if key[1] in NOISE else "reference"})
                continue
            own = [about(name) for name in key]
            row["coverage"], row["bytes"] = min(o[0] for o in own), sum(o[1] for o in own)
            if len(key) == 1 and own[0][2] is not None:
                row["cardinality"] = own[0][2]
            row["gain"] = row["synergy"] = None
            if len(key) > 1:
                row["gain"] = float(np.median(gain))
                row["synergy"] = row["score"] - sum(self.score((name,)) for name in key)
            features.append(row)
        return features, controls

    def table(self, about: Any, normalize: str | None, entropy: float) -> tuple[Any, Any]:
        """Return the ranking, in the order of the votes, and the controls, best first, as polars frames.

        q-values are taken among single columns and among crosses apart: they test different things.
        """
        import polars as pl

        features, controls = self.rows(about)
        cross = np.array([len(k) > 1 for k in self.of if k[0] != CONTROL])
        p = np.array([r["p_value"] for r in features])
        q = np.full(p.size, np.nan)
        for kind in (cross, ~cross):
            q[kind] = benjamini_hochberg(p[kind])
        score = np.array([r["score"] for r in features])
        best = max((r["score"] for r in controls if r["kind"] == "noise"), default=None)
        above = [None] * p.size if best is None else (score > best).tolist()
        if normalize == "target-entropy":
            score = score / max(entropy, 1e-300)
        elif normalize == "min-max":
            score = unit_scale(score)
        frame = pl.DataFrame(features, infer_schema_length=None).with_columns(
            pl.Series("score", score),
            pl.Series("q_value", q),
            pl.Series("above_control", above, dtype=pl.Boolean),
            pl.col("gain", "synergy").cast(pl.Float64),
        )
        frame = frame.with_columns(pl.col("z", "p_value", "q_value").fill_nan(None)).select(COLUMNS)
        if not controls:
            return frame, pl.DataFrame()
        noise = pl.DataFrame(controls).with_columns(pl.col("z", "p_value").fill_nan(None))
        return frame, noise.sort("score", descending=True)


class PairVotes:
    """Matrices of pair scores, one from each block; the median counts.

    Blocks may have different columns (a derived one can be absent from a block); a pair is missing where no block
    had it, and counts as 0.

    Examples
    --------
    >>> votes = PairVotes()
    >>> votes.add(["a", "y"], np.array([[1.0, 0.2], [0.2, 0.7]]))
    >>> votes.add(["a", "y"], np.array([[1.0, 0.4], [0.4, 0.7]]))
    >>> float(votes.median()[1][0, 1].round(3))
    0.3
    """

    def __init__(self) -> None:
        self.blocks: list[tuple[list[str], NDArray[np.float64]]] = []

    def add(self, names: list[str], scores: NDArray[np.float64]) -> None:
        """Add one block's symmetric scores of shape (m, m), the target last."""
        self.blocks.append((names, scores[np.triu_indices(len(names))]))

    def median(self) -> tuple[list[str], NDArray[np.float64]]:
        """Return all names, the target last, and the symmetric median scores."""
        names = list(dict.fromkeys(n for own, _ in self.blocks for n in own[:-1])) + [self.blocks[0][0][-1]]
        upper = np.triu_indices(len(names))
        if all(own == names for own, _ in self.blocks):
            middle = np.median(np.stack([s for _, s in self.blocks]), axis=0)
        else:
            place = {n: j for j, n in enumerate(names)}
            wide = np.full((len(self.blocks), len(names), len(names)), np.nan)
            for t, (own, scores) in enumerate(self.blocks):
                at = np.array([place[n] for n in own])
                i, j = np.triu_indices(len(own))
                wide[t, np.minimum(at[i], at[j]), np.maximum(at[i], at[j])] = scores
            seen = wide[:, upper[0], upper[1]]
            middle = np.zeros(seen.shape[1])
            known = ~np.isnan(seen).all(axis=0)
            middle[known] = np.nanmedian(seen[:, known], axis=0)
        out = np.zeros((len(names), len(names)))
        out[upper] = middle
        return names, out + np.triu(out, 1).T


def write_results(ranker: OutRank, folder: str | Path) -> None:
    """Write all tables of a fitted ranker to ``folder``, which is made if it is not there.

    ``pairwise_ranks.tsv`` (both orders; names end in ``-(cardinality; coverage)``; pairs with the target only, unless
    all were scored), ``feature_singles.tsv`` (min-max scaled), ``feature_singles_aggregated.tsv`` (median score of the
    crosses a column is in), ``3mr_ranks.tsv`` (if ``rank_3mr`` was called), ``memory.tsv``, ``value_repetitions.json``,
    ``combination_estimation_counts.json``, ``timings.json``, ``arguments.json``, ``rare_values.tsv``,
    ``feature_sparsity_summary.tsv``, and Skerry's own tables.

    Raises
    ------
    DataError
        If the folder cannot be made or written.
    """
    import polars as pl

    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: cannot make the folder ({error.strerror})") from None

    def table(name: str, frame: Any, separator: str = "\t") -> None:
        with atomic_write(folder / name) as file:
            frame.write_csv(file, separator=separator)

    def document(name: str, value: Any) -> None:
        with atomic_write(folder / name) as file:
            file.write(json.dumps(value, indent=1, default=str).encode() + b"\n")

    ranking, quality, target = ranker.ranking_, ranker.quality_, ranker.target_
    table("ranking.csv", ranking, ",")
    table("quality.csv", quality, ",")
    if ranker.controls_.height:
        table("controls.csv", ranker.controls_, ",")
    if ranker.row_quality:
        table("row_quality.csv", ranker.rows_, ",")
    with atomic_write(folder / "anomalies.txt") as file:
        file.write("".join(line + "\n" for line in ranker.anomalies_).encode())

    about = {r["feature"]: (r["cardinality"], r["coverage"]) for r in ranking.to_dicts()}
    about |= {r["feature"]: (r["cardinality"], r["coverage"]) for r in quality.to_dicts()}
    label = {name: f"{name}-({c}; {round(v)})" for name, (c, v) in about.items()}
    names = ranking["feature"].to_list()
    singles = {"Feature": [label[n] for n in names], "Score": unit_scale(ranking["score"].to_numpy())}
    table("feature_singles.tsv", pl.DataFrame(singles))
    if hasattr(ranker, "pairs_"):
        a, b, score = (ranker.pairs_[c].to_list() for c in ("a", "b", "score"))
    else:
        a, b, score = names, [target] * len(names), ranking["score"].to_list()
    first, second = [label[n] for n in a + b], [label[n] for n in b + a]
    pairs = pl.DataFrame({"FeatureA": first, "FeatureB": second, "Score": score * 2})
    table("pairwise_ranks.tsv", pairs.unique(maintain_order=True).sort("Score", maintain_order=True))

    crosses = ranker.cross_scores_
    members: dict[str, list[float]] = {}
    for key, value in crosses.items():
        for name in key:
            members.setdefault(name, []).append(value)
    aggregated = [{"Feature": n, "Combined score": float(np.median(v))} for n, v in members.items()]
    schema: Any = {"Feature": pl.String, "Combined score": pl.Float64}
    joined = pl.DataFrame(aggregated, schema=schema).sort("Combined score", descending=True)
    table("feature_singles_aggregated.tsv", joined)
    steps = getattr(ranker, "steps_3mr_", None)
    if steps is not None:
        chosen = {"Feature": [s["feature"] for s in steps], "3MR_Ranking": [s["step"] for s in steps]}
        table("3mr_ranks.tsv", pl.DataFrame(chosen))
    table("memory.tsv", quality.select(pl.col("feature").alias("Feature"), pl.col("bytes").alias("NormalizedSize")))
    document(
        "value_repetitions.json",
        {
            r["feature"]: {k.removeprefix("seen_over_"): v for k, v in r.items() if k.startswith("seen_over_")}
            for r in quality.to_dicts()
        },
    )
    document("combination_estimation_counts.json", {str(k): v for k, v in ranker.evaluated_.items()})
    document("timings.json", ranker.timings_)
    document("arguments.json", ranker.get_params() | {"target": target})
    rare = ranker.rare_values_
    renamed = {"feature": "Namespace", "value": "value", "count": "Count"}
    table("rare_values.tsv", rare.rename(renamed))
    sparsity = quality.filter(pl.col("rare_values") > 0).select(
        (100 * pl.col("rare_share")).round(2).alias("rare_proportion"),
        pl.when(pl.col("numeric") == 1).then(pl.lit("numeric")).otherwise(pl.lit("nominal")).alias("feature_type"),
        pl.col("feature").alias("feature_name"),
    )
    table("feature_sparsity_summary.tsv", sparsity.sort("rare_proportion", maintain_order=True))
