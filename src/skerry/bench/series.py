"""Every series detector of Skerry beside PyOD's, aeon's, stumpy's and plain baselines, on all labelled series.

Every method is fitted to the train part of a series and scores its test part; those that can only judge the series
they were given get both parts in one piece and are read at the test part. Labels serve the figures alone. A figure is
the mean over the series of a set, then over the sets, so that 36 channels of SMAP weigh no more than 5 machines of
SMD. The default was chosen on one half of the series, drawn by a hash of the names; both halves are told.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skerry.bench.series_methods import DEFAULT, METHODS
from skerry.bench.series_runs import AEON_PYTHON, Case, Method, Runs, our_methods, peer_methods
from skerry.core.errors import DataError
from skerry.core.events import AlarmRule, flag_runs
from skerry.core.files import cache_folder
from skerry.core.metrics import average_detection_delay, average_precision, roc_auc, vus_pr
from skerry.data.series_sets import SERIES_GROUPS, LabelledSeries, labelled_series

__all__ = ["chosen_half", "decisions", "measures", "run"]

LIMIT = 20.0  # CPU seconds for fitting and scoring one series
ALARMS = 0.01  # share of the steps that are flagged where the delay is measured
MERGE_GAP = 10  # stays, so that delays of earlier runs compare; find_events merges up to 32
FIGURES = ("VUS-PR", "AP", "AUROC", "delay")
QUICK = (DEFAULT, "skerry Forecast", "skerry Windowed(PCA)", "pyod MatrixProfile", "pyod SpectralResidual",
         "pyod TimeSeriesOD(PCA)", "baseline absolute first difference", "baseline random")  # fmt: skip
QUICK_STEPS, QUICK_CHANNELS = 1_500, 8


def chosen_half(group: str, name: str) -> bool:
    """Return whether a series is of the half that the default was chosen on.

    >>> chosen_half("nab", "nyc_taxi") in (True, False)
    True
    """
    return hashlib.sha256(f"{group}/{name}".encode()).digest()[-1] % 2 == 0


def measures(label: NDArray, scores: NDArray) -> dict[str, float]:
    """Return the figures of the scores (T,) of one series.

    The delay, in steps, is that of the highest 1 % of the scores; an anomaly that none of them falls in counts with
    its whole length.
    """
    flags = np.zeros(len(scores), dtype=bool)
    flags[np.argsort(-scores, kind="stable")[: max(1, round(ALARMS * len(scores)))]] = True
    return {
        "VUS-PR": vus_pr(label, scores),
        "AP": average_precision(label, scores),
        "AUROC": roc_auc(label, scores),
        "delay": average_detection_delay(label, flags),
    }


def nothing(label: NDArray) -> dict[str, float]:
    """Return the figures of a method without an answer: all steps alike, no alarm."""
    found = measures(label, np.zeros(len(label)))
    return found | {"delay": average_detection_delay(label, np.zeros(len(label), dtype=bool))}


def decisions(label: NDArray, flags: NDArray) -> dict[str, float]:
    """Return what the flags of one series mean to the person who is called.

    Returns
    -------
    dict
        ``flagged``: share of the steps; ``found``: share of the anomalies that an alarm touches; ``alarms``: how
        many; ``true``: how many of them touch an anomaly.
    """
    events = AlarmRule(merge_gap=MERGE_GAP).events(flags)
    before = np.r_[0, np.cumsum(flags)]
    anomalies = np.r_[0, np.cumsum(label)]
    starts, stops = flag_runs(label)
    return {
        "flagged": float(np.mean(flags)),
        "found": float(np.mean(before[stops] > before[starts])),
        "alarms": float(len(events)),
        "true": float(sum(anomalies[e.stop] > anomalies[e.start] for e in events)),
    }


def _part(series: LabelledSeries, quick: bool) -> tuple[NDArray, NDArray, NDArray]:
    """Return train, test and label; of a quick run the end of the one and a piece of the other round an anomaly."""
    if not quick:
        return series.train, series.test, series.label
    first = int(np.argmax(series.label))
    begin = int(np.clip(first - QUICK_STEPS // 2, 0, max(0, len(series.test) - QUICK_STEPS)))
    part = slice(begin, begin + QUICK_STEPS)
    return series.train[-QUICK_STEPS:, :QUICK_CHANNELS], series.test[part, :QUICK_CHANNELS], series.label[part]


def _cases(data: Path, folder: Path, quick: bool) -> tuple[list[Case], dict[str, NDArray], int]:
    """Write the series where the workers read them; return them, their labels, and how many have one class only."""
    cases, labels, one_class = [], {}, 0
    for group in SERIES_GROUPS:
        for series in labelled_series(data, group):
            train, test, label = _part(series, quick)
            if not label.any() or label.all():
                one_class += 1
                continue
            key = f"{group}/{series.name}"
            path = folder / f"{len(cases)}.npz"
            np.savez(path, train=train, test=test)
            cases.append(Case(key + (" (part)" if quick else ""), path, train.size + test.size))
            labels[cases[-1].key] = label
            if quick:
                break
    if not cases:
        raise DataError(f"{data}: no labelled series under series there")
    return cases, labels, one_class


def _cores() -> int:
    """Return the cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _group(key: str) -> str:
    return key.partition("/")[0]


def _mean(values: dict[str, float]) -> float:
    """Return the mean over the series of a set, then over the sets."""
    groups: dict[str, list[float]] = {}
    for key, value in values.items():
        groups.setdefault(_group(key), []).append(value)
    return float(np.mean([np.mean(v) for v in groups.values()])) if groups else float("nan")


def run(quick: bool, data: Path, seed: int, progress: Callable[[str], None]) -> dict[str, Any]:
    """Run the study."""
    methods = our_methods([m for m in METHODS if not quick or m in QUICK]) + ([] if quick else peer_methods())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cases, labels, one_class = _cases(data, folder, quick)
        empty = {key: nothing(label) for key, label in labels.items()}
        runs = Runs(
            folder if quick else cache_folder() / "bench" / "series", folder, 5.0 if quick else LIMIT, seed, progress
        )
        if seconds := os.environ.get("SKERRY_BENCH_SECONDS"):
            runs.deadline = time.monotonic() + float(seconds)

        def measure(key: str, scores: NDArray, flags: NDArray | None) -> dict[str, Any]:
            told = decisions(labels[key], flags) if flags is not None else {}
            return measures(labels[key], scores) | told

        with ThreadPoolExecutor(_cores()) as pool:
            results = dict(
                zip((m.name for m in methods), pool.map(lambda m: runs.run(m, cases, measure), methods), strict=True)
            )
    if not any("VUS-PR" in r for r in results[DEFAULT].values()):
        raise DataError("the default has no result yet: give SKERRY_BENCH_SECONDS more, or leave it out")
    absent = {m.name: m.problem for m in methods if m.problem}
    for name, per in list(results.items()):
        if name not in absent and not any("VUS-PR" in r for r in per.values()):
            absent[name] = next((r["problem"] for r in per.values()), "not run yet")
    rows = [_row(name, per, empty, results[DEFAULT]) for name, per in results.items() if name not in absent]
    rows.sort(key=lambda r: -(r["VUS-PR"] or 0.0))
    rows += [{"method": name, "series": 0, "remark": problem} for name, problem in absent.items()]
    broken = _problems(results, absent)
    return {
        "title": "Detectors of series on all labelled series",
        "claim": _claim(rows, len(cases)),
        "table": rows,
        "tables": {
            "VUS-PR by set": _by_set(rows, results, empty),
            "VUS-PR by half: where the default was chosen, and the rest": _by_half(rows, results, empty),
            "Alarms at the default threshold": _alarms(results),
            "Time of the default": _speed(quick, seed),
        },
        "notes": _notes(cases, one_class, quick) + _versions(methods) + broken,
    }


def _full(per: dict[str, dict[str, Any]], empty: dict[str, dict[str, float]], figure: str) -> dict[str, float]:
    return {key: per.get(key, {}).get(figure, empty[key][figure]) for key in empty}


def _row(name: str, per: dict, empty: dict, default: dict) -> dict[str, Any]:
    done = {k: r for k, r in per.items() if "VUS-PR" in r}
    row: dict[str, Any] = {"method": name, "VUS-PR": None}
    if len(per) == len(empty):
        row |= {("delay at 1 % alarms" if f == "delay" else f): _mean(_full(per, empty, f)) for f in FIGURES}
        limit = max((r.get("limit", 0.0) for r in per.values()), default=0.0)
        slow = {k: limit for k, r in per.items() if "limit" in r.get("problem", "")}
        row["CPU s"] = _mean({k: r["cpu"] for k, r in done.items()} | slow)
        row["wall s"] = _mean({k: r["wall"] for k, r in done.items()} | slow)
    else:
        row["remark"] = f"{len(per)} of {len(empty)} series so far"
    row["series"] = len(done)
    row["VUS-PR where done"] = _mean({k: r["VUS-PR"] for k, r in done.items()})
    row["default there"] = _mean({k: default[k]["VUS-PR"] for k in done if "VUS-PR" in default.get(k, {})})
    return row


def _by_set(rows: list[dict], results: dict, empty: dict) -> list[dict[str, Any]]:
    groups = list(dict.fromkeys(map(_group, empty)))
    out = []
    for name in (r["method"] for r in rows if r.get("VUS-PR")):
        full = _full(results[name], empty, "VUS-PR")
        out.append(
            {"method": name} | {g: float(np.mean([v for k, v in full.items() if _group(k) == g])) for g in groups}
        )
    return out


def _by_half(rows: list[dict], results: dict, empty: dict) -> list[dict[str, Any]]:
    out = []
    for name in (r["method"] for r in rows if r.get("VUS-PR")):
        full = _full(results[name], empty, "VUS-PR")
        halves: tuple[dict, dict] = ({}, {})
        for key, value in full.items():
            group, _, series = key.removesuffix(" (part)").partition("/")
            halves[not chosen_half(group, series)][key] = value
        out.append({"method": name, "chosen on": _mean(halves[0]), "the rest": _mean(halves[1])})
    return out


def _alarms(results: dict) -> list[dict[str, Any]]:
    out = []
    for name, per in results.items():
        done = {k: r for k, r in per.items() if "flagged" in r}
        for group in dict.fromkeys(map(_group, done)) if name == DEFAULT else ():
            part = [r for k, r in done.items() if _group(k) == group]
            alarms = sum(r["alarms"] for r in part)
            out.append({
                "method": name, "set": group, "series": len(part),
                "steps flagged": float(np.mean([r["flagged"] for r in part])),
                "anomalies found": float(np.mean([r["found"] for r in part])),
                "alarms a series": alarms / len(part),
                "true alarms": sum(r["true"] for r in part) / alarms if alarms else float("nan"),
            })  # fmt: skip
    return out


def _speed(quick: bool, seed: int) -> list[dict[str, Any]]:
    """Fit and score one series with the default, on all cores."""
    from skerry.detect.series.ensemble import Ensemble

    rng = np.random.RandomState(seed)
    out = []
    for channels, steps in [(38, 2_500)] if quick else [(1, 25_000), (38, 25_000)]:
        X = np.sin(np.arange(steps)[:, None] / rng.uniform(3, 60, channels)) + 0.1 * rng.normal(size=(steps, channels))
        Ensemble(random_state=seed).fit_score(X[:300])
        cpu, wall = time.process_time(), time.perf_counter()
        Ensemble(random_state=seed).fit_score(X)
        out.append({"channels": channels, "steps": steps, "CPU s": time.process_time() - cpu,
                    "wall s": time.perf_counter() - wall, "cores": _cores()})  # fmt: skip
    return out


def _problems(results: dict, absent: dict[str, str]) -> list[str]:
    out = []
    for name, per in results.items():
        told: dict[str, list[str]] = {}
        for key, r in per.items():
            if name not in absent and "problem" in r:
                told.setdefault(r["problem"], []).append(key)
            if r.get("not finite"):
                told.setdefault("scores that are not finite (NaN counts as the lowest)", []).append(key)
        out += [f"{name}: {problem}: {len(keys)} series, such as {keys[0]}." for problem, keys in told.items()]
    return out


def _claim(rows: list[dict[str, Any]], n: int) -> str:
    by = {r["method"]: r for r in rows if r["series"]}
    ours = by[DEFAULT]
    others = [r for name, r in by.items() if not name.startswith(("skerry", "baseline"))]
    peers = [r for r in others if r["VUS-PR"]]
    text = f"Over {n} series the default reaches mean VUS-PR {ours['VUS-PR']:.3f} at {ours['CPU s']:.2f} CPU s a series"
    if not peers:
        return text + "; no peer was there."
    best = max(peers, key=lambda r: r["VUS-PR"])
    median = float(np.median([r["CPU s"] for r in peers]))
    ahead = sum(ours["VUS-PR"] > r["VUS-PR"] for r in peers)
    waiting = sum("run yet" in r.get("remark", "") or "so far" in r.get("remark", "") for r in rows)
    there = sum(r["default there"] > r["VUS-PR where done"] for r in others)
    return (
        f"{text}; the best of {len(peers)} peers is {best['method']} with {best['VUS-PR']:.3f} at {best['CPU s']:.2f} "
        f"CPU s. The default is ahead of {ahead} of {len(peers)} peers over all series, and of {there} of "
        f"{len(others)} on the series that the peer has a result for. Median time of the peers: {median:.2f} CPU s a "
        "series." + (f" {waiting} methods have not been run on all series yet." if waiting else "")
    )


def _versions(methods: list[Method]) -> list[str]:
    of = {m.name.split()[0]: m.version for m in methods if m.version and not m.name.startswith(("skerry", "baseline"))}
    of["aeon"] = of.get("aeon", "").replace(" ", " (with pyod ", 1) + ")" if "aeon" in of else "not installed"
    return ["Peers: " + ", ".join(f"{name} {version}" for name, version in of.items()) + "."]


def _notes(cases: list[Case], one_class: int, quick: bool) -> list[str]:
    counts: dict[str, int] = {}
    for case in cases:
        counts[_group(case.key)] = counts.get(_group(case.key), 0) + 1
    return [
        "Series: " + ", ".join(f"{n} of {g}" for g, n in counts.items()) + f"; {one_class} without both classes left "
        "out." + (" Quick: a piece of the first of each set." if quick else ""),
        "Figures are means over the series of a set, then over the sets. VUS-PR takes buffers of 0 to 100 steps. "
        "Delay: steps to the first of the highest 1 % of the scores, the whole anomaly where none falls in it.",
        "Fit on the train part, score the test part. Methods that only score what they were given get both parts in "
        "one piece: PyOD's MatrixProfile, stumpy, aeon's DWT_MLEAD, LeftSTAMPi, MADRID, MERLIN, STOMP and STRAY. Peers "
        "have their own defaults and get channels standardised by the train part; ours get them raw. MERLIN and STRAY "
        "give labels, no scores.",
        "Methods for one channel score each channel; PyOD's take the maximum of the standardised scores (their "
        "default), for aeon's and stumpy their mean is taken.",
        f"One thread for each process; {LIMIT:.0f} CPU seconds for fitting and scoring a series, imports and a first "
        "call outside the clock. A series over the limit counts as if all its steps were alike, and with the limit in "
        "the time, which is then a lower bound; after two such series a method is not tried on larger ones. 'VUS-PR "
        "where done' leaves these out, and 'default there' is the default on the same series.",
        "Every result is kept as it comes; SKERRY_BENCH_SECONDS ends a run, and the next one goes on. Methods that "
        "have not seen all series yet are compared on those they have.",
        f"aeon runs under the interpreter named by {AEON_PYTHON}, else under the current one.",
        "The half that the default was chosen on is drawn by the last bit of the SHA-256 of 'set/name'.",
    ]
