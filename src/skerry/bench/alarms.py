"""How often do the thresholds of series alarm where nothing happens? Measured on noise and on labelled series.

Four tables. Rules, warm-ups and merging of streams on labelled series: what the defaults were chosen by. Streams of
plain noise, followed as ``--follow`` does: events told for each 100,000 steps, beside the flags that the rule aims at.
Labelled series, followed likewise after a warm-up on the end of their training part: events beside any label for each
100,000 quiet steps, and labelled events met. The same series with the rules that are set once: the share of quiet steps
flagged and of quiet blocks of 30 with a flag, beside the promise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skerry.core.errors import DataError
from skerry.core.events import AlarmRule, flag_runs
from skerry.detect.series.live import LiveDetector
from skerry.detect.series.registry import MERGE_GAP, make_series_detector

STREAM_RULES = {"extreme:1e-4": 10, "extreme:1e-3": 100, "drift:1e-4": 10, "adaptive:0.01": 1000}
FITTED = {  # those of a row are fitted once
    "auto": {"auto": None, "extreme:1e-3": 0.001, "adaptive:0.05": 0.05},
    "conformal:0.05": {"conformal:0.05": 0.05, "block-conformal:0.05:30": 0.05},
}
FOLLOWED = {
    "forecast": tuple(STREAM_RULES),
    "half-space-trees": ("extreme:1e-4", "adaptive:0.01"),
    "ensemble": ("extreme:1e-4",),
}
SET_ONCE = ("forecast", "ensemble")
GROUPS = ("asd", "smd", "msl", "smap")
CHOICE_RULES = ("extreme:1e-4", "extreme:3e-4", "extreme:1e-3", "extreme:3e-3", "drift:1e-3", "adaptive:0.01")
CHOICE_WARMUPS = (500, 2000)
WARMUP, TEST, BLOCK, PER_GROUP = 2000, 4000, 30, 6
AFTER = 32  # steps after a labelled event in which a detector that looks back so far may still flag


def run(quick: bool, data: Path, seed: int, progress: Callable[[str], None]) -> dict[str, Any]:
    noise = _noise_table(20_000 if quick else 50_000, 1 if quick else 3, seed, progress)
    sets = list(_sets(data, quick))
    live = _live_table(sets, seed, progress)
    batch = _batch_table(sets, seed, progress)
    choice = _choice_table(sets, quick, seed, progress)
    default = next(r for r in choice if (r["rule"], r["merge gap"]) == ("extreme:1e-3", MERGE_GAP))

    def share(rule: str, figure: str) -> str:
        found = [r[figure] for r in batch if r["rule"] == rule]
        return f"{min(found):.1%} to {max(found):.1%}"

    return {
        "title": "Alarms where nothing happens: what the thresholds of series promise, and what was measured",
        "claim": (
            f"The default of a stream (forecast, extreme:1e-3, warm-up {default['warm-up']}) met "
            f"{default['labelled events met']} labelled events of {len(sets)} series and told "
            f"{default['false events per 100,000']:.0f} false ones per 100,000 quiet steps. Set once and promised 5 %: "
            f"block-conformal flagged {share('block-conformal:0.05:30', 'quiet blocks with a flag')} of the quiet "
            f"blocks by group and detector, conformal {share('conformal:0.05', 'quiet steps flagged')} of the quiet "
            f"steps, adaptive {share('adaptive:0.05', 'quiet steps flagged')}."
        ),
        "table": live,
        "tables": {
            "What the defaults of a stream were chosen by": choice,
            "Plain noise, followed after 500 steps": noise,
            "Rules set once, on the same series": batch,
        },
        "notes": [
            f"Series: at most {PER_GROUP} a group and {TEST:,} steps of each test part, fitted to the last {WARMUP:,} "
            "steps of the training part.",
            f"Quiet: without a label, and not among the {AFTER} steps after one. Groups weigh alike in the claim.",
            f"'aimed' counts flags; flags up to {MERGE_GAP} steps apart are one event where no gap is named, so events "
            "may be fewer. Event F1: 2 met / (met + false + labelled).",
            "Conformal rules promise a share for steps, or blocks, exchangeable with the reference; these machines "
            "change between training and test. The adaptive rule holds for any sequence, and anomalies use up "
            "its share too.",
        ],
    }


def _noise(kind: str, n: int, rng: np.random.Generator) -> NDArray[np.float64]:
    e = rng.normal(size=n)
    if kind == "white":
        return e
    if kind == "autoregressive":
        from scipy.signal import lfilter

        return lfilter([1.0], [1.0, -0.9], e)
    if kind == "wave":
        return 2.0 * np.sin(2 * np.pi * np.arange(n) / 50) + 0.2 * e
    return rng.standard_t(4, size=n)


def _noise_table(n: int, streams: int, seed: int, progress: Callable[[str], None]) -> list[dict[str, Any]]:
    rows = []
    for kind in ("white", "autoregressive", "wave", "heavy tails"):
        for rule, aimed in STREAM_RULES.items():
            progress(f"noise: {kind}, {rule}")
            counts = []
            for k in range(streams):
                x = _noise(kind, n + 500, np.random.default_rng(seed + k))
                told = LiveDetector("forecast", rule, warmup=500, random_state=seed).feed(x)
                counts.append(sum(e.kind == "alarm" for e in told) * 100_000 / n)
            rows.append({
                "noise": kind, "rule": rule, "aimed flags per 100,000": aimed,
                "events per 100,000": float(np.mean(counts)), "worst stream": float(np.max(counts)),
            })  # fmt: skip
    return rows


def _sets(data: Path, quick: bool) -> Iterator[tuple[str, NDArray, NDArray, NDArray[np.bool_]]]:
    for group in GROUPS:
        paths = sorted((data / "series" / group).glob("*.npz"))
        if not paths:
            raise DataError(f"{data / 'series' / group}: no series there")
        for path in paths[: 2 if quick else PER_GROUP]:
            z = np.load(path)
            train, test, y = (np.asarray(z[k], dtype=np.float64) for k in ("train", "test", "label"))
            if len(train) >= WARMUP:
                yield group, train[-WARMUP:], test[:TEST], y[:TEST] > 0


def _quiet(y: NDArray[np.bool_]) -> NDArray[np.bool_]:
    out = ~y
    for stop in flag_runs(y)[1]:
        out[stop : stop + AFTER] = False
    return out


def _judge(spans: list[tuple[int, int]], y: NDArray[np.bool_]) -> tuple[int, int, int]:
    """Return labelled events met, labelled events, and events that meet none."""
    starts, stops = flag_runs(y)
    met = [any(a < stop + AFTER and b > start for a, b in spans) for start, stop in zip(starts, stops, strict=True)]
    false = [not ((starts < b) & (stops + AFTER > a)).any() for a, b in spans]
    return sum(met), len(starts), sum(false)


def _live_table(sets: list, seed: int, progress: Callable[[str], None]) -> list[dict[str, Any]]:
    rows = []
    for detector, rules in FOLLOWED.items():
        for rule in rules:
            total = {group: np.zeros(4) for group in GROUPS}
            for group, train, test, y in sets:
                progress(f"followed: {detector}, {rule}, {group}")
                live = LiveDetector(detector, rule, warmup=WARMUP, random_state=seed)
                told = live.feed(np.concatenate([train, test])) + live.leave()
                last = {e.number: (int(float(e.start)) - WARMUP, int(float(e.last)) - WARMUP + 1) for e in told}
                total[group] += (*_judge(list(last.values()), y), _quiet(y).sum())
            for group, (met, labelled, false, quiet) in total.items():
                rows.append({
                    "detector": detector, "rule": rule, "series": group,
                    "aimed flags per 100,000": STREAM_RULES[rule], "false events per 100,000": 1e5 * false / quiet,
                    "labelled events met": f"{met:.0f} of {labelled:.0f}", "quiet steps": int(quiet),
                })  # fmt: skip
    return rows


def _choice_table(sets: list, quick: bool, seed: int, progress: Callable[[str], None]) -> list[dict[str, Any]]:
    """Follow every series with each rule, warm-up and gap; all groups together."""
    rows = []
    for warmup in CHOICE_WARMUPS[:1] if quick else CHOICE_WARMUPS:
        for rule in CHOICE_RULES:
            for gap in (10, MERGE_GAP):
                progress(f"choice: {rule}, warm-up {warmup}, gap {gap}")
                total = np.zeros(3)
                for _, train, test, y in sets:
                    warm = min(warmup, len(train))
                    alarm = AlarmRule(merge_gap=gap)
                    live = LiveDetector("forecast", rule, alarm=alarm, warmup=warm, random_state=seed)
                    told = live.feed(np.concatenate([train[-warm:], test])) + live.leave()
                    last = {e.number: (int(float(e.start)) - warm, int(float(e.last)) - warm + 1) for e in told}
                    total += _judge(list(last.values()), y)
                met, labelled, false = total
                f1 = 2.0 * met / max(met + false + labelled, 1.0)
                rows.append({
                    "rule": rule, "warm-up": warmup, "merge gap": gap, "event F1": f1,
                    "labelled events met": f"{met:.0f} of {labelled:.0f}", "false events": int(false),
                    "false events per 100,000": 1e5 * false / sum(_quiet(y).sum() for *_, y in sets),
                })  # fmt: skip
    return rows


def _batch_table(sets: list, seed: int, progress: Callable[[str], None]) -> list[dict[str, Any]]:
    rows = []
    for name in SET_ONCE:
        for fitted, promises in FITTED.items():
            total = {(rule, group): [] for rule in promises for group in GROUPS}
            for group, train, test, y in sets:
                progress(f"set once: {name}, {fitted}, {group}")
                detector = make_series_detector(name, threshold=fitted, random_state=seed).fit(train)
                scores = detector.anomaly_score(np.concatenate([train, test]))
                quiet, m = _quiet(y), len(y) // BLOCK * BLOCK
                whole = quiet[:m].reshape(-1, BLOCK).all(axis=1)
                for rule in promises:
                    flags = detector.set_threshold(rule).decide(scores)[0][WARMUP:]
                    blocks = flags[:m].reshape(-1, BLOCK).any(axis=1)[whole]
                    spans = [(e.start, e.stop) for e in AlarmRule(merge_gap=MERGE_GAP).events(flags)]
                    counts = (flags[quiet].sum(), quiet.sum(), blocks.sum(), blocks.size, *_judge(spans, y))
                    total[rule, group].append(counts)
            for (rule, group), found in total.items():
                flagged, quiet, with_flag, n_blocks, met, labelled, false = np.sum(found, axis=0)
                rows.append({
                    "detector": name, "rule": rule, "series": group, "promised": promises[rule] or "none",
                    "quiet steps flagged": flagged / quiet, "quiet blocks with a flag": with_flag / max(n_blocks, 1),
                    "false events per 100,000": 1e5 * false / quiet, "labelled events met": f"{met} of {labelled}",
                })  # fmt: skip
    return rows
