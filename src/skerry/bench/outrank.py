"""Cardinality-aware ranking beside the published package: planted columns, seconds, real tables, and what it saves.

Follows the protocol of OutRank (Škrlj & Mramor, RecSys 2023) at a small size: recovery of planted columns over
several seeds, CPU seconds against a target and over pairs of columns, agreement of the two rankings, held-out loss
against the number of columns, and a model search with and without a ranking before it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from skerry.bench.outrank_downstream import loss_by_columns, search_with_ranking
from skerry.bench.outrank_peer import Ranked, by_package, by_skerry
from skerry.bench.outrank_tables import PLANTED, planted_table, real_tables

__all__ = ["run"]

PEER_TIMEOUT = 900  # seconds
PAIRS_TIMEOUT = 3_600
SUBSET = [f"f{20 * group + t}" for group in range(5) for t in range(8)]  # 40 columns, 8 of each cardinality
METHODS = {
    "Skerry, permutation": ("--correction", "permutation"),
    "Skerry, expected": ("--correction", "expected"),
    "Skerry, the package's estimator": ("--heuristic", "MI-numba-randomized"),
    "Skerry, none (plain information)": ("--correction", "none"),
}
PACKAGE = "outrank 0.97, MI-numba-randomized"


def run(quick: bool, data: Path, seed: int, progress: Callable[[str], None]) -> dict[str, Any]:
    """Run the study."""
    notes = [
        "Seconds are of whole processes, start and imports among them, reading the same CSV file; Skerry's loops were "
        "compiled before, the package compiles its own in each worker.",
        "The package needs about 40 CPU minutes for all 5,151 pairs of 100,000 x 100: pairs are compared on 40 of the "
        "columns and the label (861 pairs), Skerry's time for all pairs is given beside.",
        "Most columns are independent of one another: the order of their pairs is noise, on which two estimators "
        "cannot agree. With the package's own estimator Skerry gives the package's order.",
    ]
    with tempfile.TemporaryDirectory() as folder:
        table, facts = _recovery(Path(folder) / "data.csv", quick, seed, progress)
        pairs, pair_facts = _pairs(Path(folder) / "data.csv", quick, seed, progress)
        tables, found = real_tables(data)
        notes += found
        real = _real(Path(folder) / "data.csv", tables, quick, progress)
    losses = loss_by_columns(tables, quick, seed, progress)
    searched, search_facts = search_with_ranking(quick, seed, progress)
    if facts["problem"]:
        notes.append(f"The package outrank: {facts['problem']}. pip install outrank 'xxhash<4', SKERRY_OUTRANK_PYTHON.")
    return {
        "title": "Cardinality-aware feature ranking",
        "table": table,
        "tables": {
            "pairs of columns": pairs,
            "real tables": real,
            "held-out log-loss against the number of columns": losses,
            "a model search, with and without a ranking before it": searched,
        },
        "claim": f"{facts['text']} {pair_facts} {search_facts}",
        "notes": notes,
    }


def _ranks(order: list[str]) -> list[int]:
    return [order.index(name) + 1 for name in PLANTED]


def _recovery(
    path: Path, quick: bool, seed: int, progress: Callable[[str], None]
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Rank the planted table by every method, over seeds."""
    n, seeds = (20_000, 1) if quick else (100_000, 3)
    runs: dict[str, list[Ranked]] = {name: [] for name in (*METHODS, PACKAGE)}
    crossed: list[int] = []
    crosses: list[Ranked] = []
    for s in range(seed, seed + seeds):
        planted_table(n, s)[0].write_csv(path)
        if s == seed:  # fill the cache of compiled loops
            by_skerry(path, "label", "--pairwise", "--interaction-order", "2", "--max-combinations", "9")
            by_skerry(path, "label", "--heuristic", "MI-numba-randomized", "--pairwise")
        for name, options in METHODS.items():
            runs[name].append(by_skerry(path, "label", *options))
            _must(runs[name][-1], name)
        runs[PACKAGE].append(by_package(path, "label", timeout=PEER_TIMEOUT))
        crosses.append(by_skerry(path, "label", "--interaction-order", "2"))
        _must(crosses[-1], "crosses")
        only = [v for v in crosses[-1].order if " AND " in v]
        crossed.append(only.index("f5 AND f6") + 1)
        for name, got in runs.items():
            last = got[-1]
            progress(f"seed {s}, {name}: {last.problem or _ranks(last.order)}, {last.cpu:.1f} CPU s, {last.wall:.1f} s")
    table = [_recovered(name, got) for name, got in runs.items()]
    table.append(
        {
            "method": f"Skerry, permutation, {len(only):,} crosses too",
            "rank of f5 AND f6 among the crosses, by seed": ", ".join(map(str, crossed)),
            **_seconds(crosses),
        }
    )
    ours, theirs = table[0], table[len(METHODS)]
    text = (
        f"On {n:,} rows of 100 columns the three planted columns all stand in the first "
        f"{ours['worst rank of f3, f25, f45, by seed'].replace(', ', '/')} places ({seeds} seeds) "
        f"in {ours['CPU s']:.1f} CPU s a table ({ours['of them reading and ranking']:.1f} without the start of Python)"
    )
    problem = runs[PACKAGE][0].problem
    if problem:
        return table, {"text": f"{text}; the package gave no result.", "problem": problem}
    same = [
        _difference(a.scores, b.scores)
        for a, b in zip(runs["Skerry, the package's estimator"], runs[PACKAGE], strict=True)
    ]
    text += (
        f", the package's within {theirs['worst rank of f3, f25, f45, by seed'].replace(', ', '/')} in "
        f"{theirs['CPU s']:.1f} CPU s ({theirs['CPU s'] / ours['CPU s']:.1f} times, "
        f"{theirs['CPU s'] / ours['of them reading and ranking']:.1f} without our start); its estimator in "
        f"Skerry gives its scores to {max(same):.1g} nats. The planted cross is number "
        f"{'/'.join(map(str, crossed))} of {len(only):,}."
    )
    return table, {"text": text, "problem": ""}


def _must(got: Ranked, name: str) -> None:
    if got.problem:
        raise RuntimeError(f"{name}: {got.problem}")


def _difference(a: dict[Any, float], b: dict[Any, float]) -> float:
    return max(abs(a[k] - b[k]) for k in a.keys() & b.keys())


def _recovered(name: str, runs: list[Ranked]) -> dict[str, Any]:
    good = [r for r in runs if not r.problem]
    if not good:
        return {"method": f"{name} ({runs[0].problem})"}
    noise = np.array([[r.scores[f"f{j}"] for j in range(60, 100)] for r in good])
    return {
        "method": name,
        "ranks of f3, f25, f45 (first seed)": ", ".join(map(str, _ranks(good[0].order))),
        "worst rank of f3, f25, f45, by seed": ", ".join(str(max(_ranks(r.order))) for r in good),
        "noise of 1,000 values and more: mean": round(float(noise.mean()), 5),
        "its sd": round(float(noise.std()), 5),
        **_seconds(good),
    }


def _seconds(runs: list[Ranked]) -> dict[str, float | None]:
    inside = float(np.mean([r.inside for r in runs]))
    return {
        "CPU s": round(float(np.mean([r.cpu for r in runs])), 2),
        "of them reading and ranking": round(inside, 2) or None,
        "wall s": round(float(np.mean([r.wall for r in runs])), 2),
    }


def _pairs(path: Path, quick: bool, seed: int, progress: Callable[[str], None]) -> tuple[list[dict[str, Any]], str]:
    """Time and agreement over pairs: 40 columns beside the package, all 100 alone."""
    from scipy.stats import spearmanr

    n = 5_000 if quick else 100_000
    frame = planted_table(n, seed)[0]
    frame.write_csv(path)
    whole = by_skerry(path, "label", "--pairwise")
    _must(whole, "all pairs")
    frame.select([*SUBSET, "label"]).write_csv(path)
    ours = by_skerry(path, "label", "--pairwise")
    same = by_skerry(path, "label", "--pairwise", "--heuristic", "MI-numba-randomized")
    theirs = by_package(path, "label", pairs=True, timeout=120 if quick else PAIRS_TIMEOUT)
    progress(f"pairs: {ours.cpu:.1f}, the package {theirs.cpu:.1f} CPU s {theirs.problem}")

    def row(method: str, got: Ranked) -> dict[str, Any]:
        out: dict[str, Any] = {"method": method, "pairs": len(got.pairs), **_seconds([got])}
        if theirs.pairs and method != PACKAGE:
            keys = [k for k in theirs.pairs if k in got.pairs]
            if len(keys) == len(theirs.pairs):
                a, b = ([side.pairs[k] for k in keys] for side in (got, theirs))
                out["rank agreement with the package"] = round(float(spearmanr(a, b)[0]), 4)
        return out

    rows = [
        row("Skerry, permutation, all columns", whole),
        row("Skerry, permutation, 40 columns", ours),
        row("Skerry, the package's estimator, 40 columns", same),
        row(PACKAGE, theirs) if not theirs.problem else {"method": f"{PACKAGE} ({theirs.problem})"},
    ]
    text = f"All {len(whole.pairs):,} pairs take {whole.cpu:.1f} CPU s"
    if theirs.problem:
        return rows, text + "."
    return rows, (
        f"{text}; the {len(ours.pairs)} pairs of {len(SUBSET)} columns {ours.cpu:.1f}, the package {theirs.cpu:.0f} "
        f"({theirs.cpu / ours.cpu:.0f} times)."
    )


def _real(
    path: Path, tables: list[tuple[str, Any, str, list[str]]], quick: bool, progress: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Agreement and time on the real tables, against the target."""
    from scipy.stats import spearmanr

    rows = []
    for name, frame, target, _ in tables:
        frame.write_csv(path)
        ours = by_skerry(path, target)
        _must(ours, name)
        same = by_skerry(path, target, "--heuristic", "MI-numba-randomized")
        row = {
            "table": name, "rows": frame.height, "columns": frame.width - 1, "first three": ", ".join(ours.order[:3]),
            **_seconds([ours]),
        }  # fmt: skip
        theirs = by_package(path, target, timeout=60 if quick else PEER_TIMEOUT)
        row["package: first three"] = theirs.problem or ", ".join(theirs.order[:3])
        if not theirs.problem:
            names = list(theirs.scores)
            row["package: CPU s"], row["package: wall s"] = round(theirs.cpu, 2), round(theirs.wall, 2)
            for label, got in (("rank agreement", ours), ("with the package's estimator", same)):
                a, b = ([side.scores[v] for v in names] for side in (got, theirs))
                row[label] = round(float(spearmanr(a, b)[0]), 4)
        rows.append(row)
        progress(f"{name}: {row}")
    return rows
