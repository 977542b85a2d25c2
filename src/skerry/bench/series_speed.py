"""Seconds and memory on series: the matrix profile beside stumpy, the default, streams, and a month of seconds.

Every case runs in a process of its own. The matrix profiles of both libraries are compared number by number, so that
no time is told of a wrong one. Rates of streams are those of one core.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

WINDOW = 100
PROFILES, QUICK_PROFILES = (10_000, 100_000), (3_000,)
WHOLE, QUICK_WHOLE = ((1, 25_000), (38, 25_000)), ((3, 2_000),)
STREAMED, QUICK_STREAMED = (1, 38), (1,)
FOLLOWERS = ("forecast", "channel-components", "half-space-trees", "ensemble", "windowed:hbos", "windowed")
QUICK_FOLLOWERS = ("forecast",)
PEER = "stumpy stumpi"
WARMUP, BLOCK = 2_000, 4_096
MONTH, QUICK_MONTH = (200_000, 2_600_000), (3_000,)
COMMANDS = {  # of the month; FILE is its path
    "--follow, forecast": ("detect", "-", "--kind", "series", "--follow", "--json"),
    "--follow, ensemble": ("detect", "-", "--kind", "series", "--follow", "--json", "--detector", "ensemble"),
    "whole file, ensemble": ("detect", "FILE", "--kind", "series", "--json", "--top", "5"),
}
CASE = "import json, sys; from skerry.bench.series_speed import case; print(json.dumps(case(*json.loads(sys.argv[1]))))"
COMMAND = """
import atexit, sys, time
from skerry.bench.series_speed import high_water
atexit.register(lambda: sys.stderr.write(f"\\n{time.process_time()} {high_water()}\\n"))
from skerry.app.cli import main
main()
"""


def waves(n: int, channels: int, seed: int) -> NDArray[np.float64]:
    """Return (n, channels) waves of many lengths with noise, and a burst in the last quarter."""
    rng = np.random.default_rng(seed)
    t = np.arange(n)[:, None]
    X = np.sin(t / rng.uniform(4, 40, channels)) + 0.3 * rng.normal(size=(n, channels))
    X[int(0.77 * n) : int(0.77 * n) + 40] += 4.0
    return X


def high_water() -> float:
    """Return the largest resident size of this process so far, in MiB."""
    return _status("VmHWM")


def _status(key: str) -> float:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(key)) / 1024


def _clocked(work: Callable[[], Any]) -> tuple[dict[str, float], Any]:
    """Return CPU and wall seconds of ``work`` and what it added to the memory, with its result."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass
    before = _status("VmRSS")
    wall, cpu = time.perf_counter(), time.process_time()
    found = work()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return {"cpu": cpu, "wall": wall, "mib": max(0.0, high_water() - before)}, found


# ---- what runs in the processes


def case(kind: str, *arguments: Any) -> dict[str, float]:
    """Run one case in this process: "profile", "whole" or "rates"."""
    return {"profile": _profile, "whole": _whole, "rates": _rates}[kind](*arguments)


def _profile(library: str, n: int, seed: int, out: str) -> dict[str, float]:
    """Matrix profile of ``n`` steps, written to ``out``; a call on 400 steps comes first, its time apart."""
    away = math.ceil(WINDOW / 4)  # stumpy's own exclusion zone
    if library == "skerry":
        from skerry.kernels.matrix_profile import self_profile

        def work(x):
            return np.sqrt(2 * WINDOW * np.maximum(1.0 - self_profile(x, WINDOW, away)[0], 0.0))
    else:
        import stumpy

        def work(x):
            return stumpy.stump(x, WINDOW)[:, 0].astype(np.float64)

    x = waves(n, 1, seed)[:, 0]
    started = time.perf_counter()
    work(x[:400])
    first = time.perf_counter() - started
    found, distance = _clocked(lambda: work(x))
    np.save(out, distance)
    return found | {"first": first}


def _whole(method: str, channels: int, n: int, seed: int) -> dict[str, float]:
    """Fit and score ``n`` steps; a call on 400 steps comes first."""
    if method == "skerry Ensemble":
        from skerry.detect.series import Ensemble

        def work(X):
            return Ensemble(random_state=seed).fit_score(X)
    else:
        from pyod.models.ts_od import TimeSeriesOD

        def work(X):
            return TimeSeriesOD("IForest").fit(X).decision_scores_

    X = waves(n, channels, seed)
    work(X[:400])
    return _clocked(lambda: work(X))[0]


def _rates(name: str, channels: int, steps: int, singles: int, seed: int) -> dict[str, float]:
    """Steps a second after a warm-up: in blocks by the detector, by ``LiveDetector``, and one by one."""
    X = waves(WARMUP + steps, channels, seed)
    past, rest = X[:WARMUP], X[WARMUP:]
    if name == PEER:
        import stumpy

        stream = stumpy.stumpi(past[:, 0], WINDOW, egress=False)
        return {
            "single": _rate(lambda: [stream.update(v) for v in rest[:singles, 0]], singles, lambda: stream.update(0.0))
        }
    from skerry.detect.series.live import LiveDetector
    from skerry.detect.series.registry import make_series_detector

    blocks = [rest[i : i + BLOCK] for i in range(0, len(rest), BLOCK)]
    detector = make_series_detector(name, random_state=seed).fit(past)
    live = LiveDetector(name, warmup=WARMUP, random_state=seed)
    live.feed(past)
    return {
        "blocks": _rate(
            lambda: [detector.update_many(b) for b in blocks], len(rest), lambda: detector.update_many(past)
        ),
        "live": _rate(lambda: [live.feed(b) for b in blocks], len(rest), lambda: live.feed(past[:100])),
        "single": _rate(
            lambda: [detector.update(x) for x in rest[:singles]], singles, lambda: detector.update(past[0])
        ),
    }


def _rate(work: Callable[[], Any], steps: int, before: Callable[[], Any]) -> float:
    before()  # compiles what is not yet
    return steps / max(_clocked(work)[0]["cpu"], 1e-9)


# ---- what runs them


def measured(spec: list[Any], threads: int) -> dict[str, float] | str:
    """Run a case in a process of its own on that many threads; return its figures, or why there are none."""
    done = subprocess.run(
        [sys.executable, "-c", CASE, json.dumps(spec)], capture_output=True, text=True, env=_environment(threads),
        check=False,
    )  # fmt: skip
    if done.returncode == 0:
        return json.loads(done.stdout.strip().splitlines()[-1])
    last = (done.stderr.strip().splitlines() or ["failed"])[-1]
    return "not installed" if "ModuleNotFoundError" in last else last[:80]


def _environment(threads: int) -> dict[str, str]:
    names = ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    path = os.pathsep.join(p for p in sys.path if p)
    return os.environ | dict.fromkeys(names, str(threads)) | {"PYTHONPATH": path}


def cores() -> int:
    """Return the cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _profile_row(n: int, seed: int, progress: Callable[[str], None]) -> dict[str, Any]:
    row: dict[str, Any] = {"steps": n, "window": WINDOW, "threads": cores()}
    with tempfile.TemporaryDirectory() as folder:
        for library in ("skerry", "stumpy"):
            progress(f"matrix profile, {library}, {n:,} steps")
            found = measured(["profile", library, n, seed, f"{folder}/{library}.npy"], cores())
            if isinstance(found, str):
                row[f"{library} CPU s"] = found
                continue
            row |= {f"{library} CPU s": found["cpu"], f"{library} wall s": found["wall"]}
            row |= {f"{library} MiB": found["mib"], f"{library} first call s": found["first"]}
        both = [Path(folder) / f"{library}.npy" for library in ("skerry", "stumpy")]
        if all(p.exists() for p in both):
            ours, theirs = (np.load(p) for p in both)
            row["largest difference of the distances"] = float(np.abs(ours - theirs).max())
    return row


def _whole_rows(channels: int, n: int, seed: int, progress: Callable[[str], None]) -> list[dict[str, Any]]:
    rows = []
    for method in ("skerry Ensemble", "pyod TimeSeriesOD(IForest)"):
        progress(f"fit and score, {method}, {channels} x {n:,}")
        found = measured(["whole", method, channels, n, seed], cores())
        row: dict[str, Any] = {"method": method, "channels": channels, "steps": n, "threads": cores()}
        if isinstance(found, str):
            found = {"cpu": found}
        rows.append(row | {"CPU s": found["cpu"], "wall s": found.get("wall"), "MiB": found.get("mib")})
    return rows


def _rate_rows(channels: int, quick: bool, seed: int, progress: Callable[[str], None]) -> list[dict[str, Any]]:
    rows = []
    steps, singles = (2_000, 200) if quick else (8 * BLOCK if channels > 1 else 40 * BLOCK, 5_000)
    for name in QUICK_FOLLOWERS if quick else (*FOLLOWERS, *((PEER,) if channels == 1 else ())):
        progress(f"stream, {name}, {channels} channels")
        found = measured(["rates", name, channels, steps, 500 if name == PEER else singles, seed], 1)
        row: dict[str, Any] = {"detector": name, "channels": channels}
        if isinstance(found, str):
            rows.append(row | {"remark": found})
            continue
        words = {"blocks": f"steps a second in blocks of {BLOCK:,}", "live": "with threshold and events",
                 "single": "one by one"}  # fmt: skip
        rows.append(row | {word: round(found[key]) if key in found else None for key, word in words.items()})
    return rows


def write_month(path: Path, n: int, seed: int) -> None:
    """Write a CSV of ``n`` seconds, one channel, piece by piece."""
    import polars as pl

    x = waves(n, 1, seed)[:, 0]
    with path.open("wb") as file:
        for start in range(0, n, 200_000):
            part = x[start : start + 200_000]
            frame = pl.DataFrame({"time": np.arange(start, start + len(part)) + 1_780_000_000, "value": part})
            frame.write_csv(file, include_header=start == 0, float_precision=4)


def _month_rows(n: int, seed: int, progress: Callable[[str], None]) -> list[dict[str, Any]]:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "month.csv"
        write_month(path, n, seed)
        for what, arguments in COMMANDS.items():
            progress(f"{n:,} seconds: {what}")
            command = [str(path) if a == "FILE" else a for a in arguments]
            with path.open("rb") as source:
                wall = time.perf_counter()
                done = subprocess.run(
                    [sys.executable, "-c", COMMAND, *command, "--seed", str(seed)], stdin=source, capture_output=True,
                    text=True, env=_environment(1), check=False,
                )  # fmt: skip
                wall = time.perf_counter() - wall
            if done.returncode:
                raise RuntimeError(f"{what} failed: {done.stderr[-300:]}")
            cpu, peak = map(float, done.stderr.strip().splitlines()[-1].split())
            lines = [json.loads(line) for line in done.stdout.splitlines()]
            events = lines[0]["n_events"] if "FILE" in arguments else sum(e["kind"] == "alarm" for e in lines)
            rows.append({
                "command": what, "steps": n, "file MiB": path.stat().st_size / 2**20, "CPU s": cpu, "wall s": wall,
                "steps a CPU second": round(n / cpu), "peak MiB": peak, "events": events,
            })  # fmt: skip
    return rows


def run(quick: bool, data: Path, seed: int, progress: Callable[[str], None]) -> dict[str, Any]:
    """Run the study; it makes its own series."""
    profiles = [_profile_row(n, seed, progress) for n in (QUICK_PROFILES if quick else PROFILES)]
    whole = [r for c, n in (QUICK_WHOLE if quick else WHOLE) for r in _whole_rows(c, n, seed, progress)]
    rates = [r for c in (QUICK_STREAMED if quick else STREAMED) for r in _rate_rows(c, quick, seed, progress)]
    month = [r for n in (QUICK_MONTH if quick else MONTH) for r in _month_rows(n, seed, progress)]
    return {
        "title": "Speed and memory on series",
        "claim": _claim(profiles[-1], whole, rates, month),
        "table": profiles,
        "tables": {
            "Fit and score of a whole series": whole,
            "Streams, one core": rates,
            "A month of seconds through the command, one core": month,
        },
        "notes": [
            "Waves of many lengths with noise. Each case is one run in a fresh process. CPU seconds are user + system "
            "over all threads; seconds and rates are those after a first call on a short piece, whose wall time is in "
            "'first call s' (import, compilation or its cache). MiB: what the call added, the input not counted.",
            f"Matrix profile: {WINDOW} steps, the exclusion zone of stumpy. Rates: after {WARMUP:,} steps to learn "
            f"from, in CPU time. {PEER} is the incremental matrix profile, whose cost a step grows with the past.",
            "The month is read as CSV by 'skerry detect' in a process of its own, from start to end; its peak is that "
            "of the whole process, interpreter and libraries included.",
        ],
    }  # fmt: skip


def _claim(profile: dict[str, Any], whole: list[dict], rates: list[dict], month: list[dict]) -> str:
    words = []
    if isinstance(theirs := profile.get("stumpy CPU s"), float):
        ours = profile["skerry CPU s"]
        words.append(
            f"The matrix profile of {profile['steps']:,} steps takes {ours:.3g} CPU s "
            f"({profile['skerry wall s']:.3g} wall), stumpy {theirs:.3g} ({profile['stumpy wall s']:.3g})."
        )
    widest = max((r for r in whole if r["method"].startswith("skerry")), key=lambda r: r["channels"] * r["steps"])
    words.append(
        f"The default fits and scores {widest['channels']} x {widest['steps']:,} in {widest['CPU s']:.3g} CPU s, "
        f"{widest['wall s']:.3g} s wall."
    )
    live = [r for r in rates if r["channels"] == 1 and r.get("with threshold and events")]
    if live:
        slowest, single = (min(live, key=lambda r: r[k]) for k in ("with threshold and events", "one by one"))
        words.append(
            f"A stream of one channel is followed at {slowest['with threshold and events']:,} steps a second and core "
            f"or more in blocks ({slowest['detector']}), at {single['one by one']:,} or more one by one "
            f"({single['detector']})."
        )
    longest = [r for r in month if r["steps"] == max(m["steps"] for m in month)]
    followed = longest[0]
    words.append(
        f"{followed['steps']:,} rows through the command: {followed['CPU s']:.0f} CPU s and {followed['peak MiB']:.0f} "
        f"MiB followed, {longest[-1]['CPU s']:.0f} and {longest[-1]['peak MiB']:.0f} as a whole file."
    )
    return " ".join(words)
