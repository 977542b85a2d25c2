"""Writers of the outputs of the published ``outrank`` tool, so that two runs can be compared file by file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skerry.core.errors import DataError
from skerry.core.files import atomic_write
from skerry.rank.redundancy import unit_scale

if TYPE_CHECKING:
    from skerry.rank.outrank import OutRank

__all__ = ["write_results"]


def write_results(ranker: OutRank, folder: str | Path) -> None:
    """Write ``ranking.csv``, ``quality.csv`` and the tool's own tables of a fitted ranker to ``folder``.

    The tool's: ``feature_singles.tsv`` (min-max scaled scores), ``pairwise_ranks.tsv`` (both orders; names end in
    ``-(cardinality; coverage)``), ``value_repetitions.json``, ``arguments.json``.

    Raises
    ------
    DataError
        If the folder cannot be made.
    """
    import polars as pl

    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: cannot make the folder ({error.strerror})") from None

    def table(name: str, frame: Any, separator: str) -> None:
        with atomic_write(folder / name) as file:
            frame.write_csv(file, separator=separator)

    def document(name: str, value: Any) -> None:
        with atomic_write(folder / name) as file:
            file.write(json.dumps(value, indent=1, default=str).encode())

    table("ranking.csv", ranker.ranking_, ",")
    table("quality.csv", ranker.quality_, ",")
    quality = {r["feature"]: r for r in ranker.quality_.to_dicts()}
    label = {n: f"{n}-({r['cardinality']}; {round(r['coverage'])})" for n, r in quality.items()}
    names = [label.get(n, n) for n in ranker.ranking_["feature"]]
    scaled = unit_scale(ranker.ranking_["score"].to_numpy())
    table("feature_singles.tsv", pl.DataFrame({"Feature": names, "Score": scaled}), "\t")
    if hasattr(ranker, "pairs_"):
        a, b = ([label[n] for n in ranker.pairs_[side]] for side in ("a", "b"))
        pairs = pl.DataFrame({"FeatureA": a + b, "FeatureB": b + a, "Score": [*ranker.pairs_["score"]] * 2})
        table("pairwise_ranks.tsv", pairs.unique(maintain_order=True), "\t")
    repeats = {n: {k: v for k, v in r.items() if k.startswith("seen_over_")} for n, r in quality.items()}
    document("value_repetitions.json", repeats)
    document("arguments.json", ranker.get_params())
