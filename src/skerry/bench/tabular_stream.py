"""Tables larger than memory: ``skerry detect`` on Parquet of 10 million rows, beside the bare time of reading it.

The command runs as a user runs it, in a process of its own: it fits on a sample, scores the stream batch by batch
and writes the score of every row. Its peak memory is the high-water mark that the kernel kept for that process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

DETECTORS = ("ensemble", "isolation-forest", "hbos", "ecod")
SIZES, QUICK_SIZES = (1_000_000, 10_000_000), (30_000,)
WIDTH, CHUNK = 10, 500_000
COMMAND = "from skerry.app.cli import main; main()"
READ = """
import sys, pyarrow.parquet as pq
with pq.ParquetFile(sys.argv[1], buffer_size=1 << 20) as file:
    print(sum(batch.num_rows for batch in file.iter_batches(65536)))
"""


def write_table(path: Path, n: int, seed: int) -> None:
    """Write ``n`` rows of five Gaussian blobs with 1 % uniform outliers, float64, without holding them all."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(seed)
    centres = rng.uniform(-10, 10, size=(5, WIDTH))
    writer = None
    for start in range(0, n, CHUNK):
        m = min(CHUNK, n - start)
        X = centres[rng.integers(0, 5, m)] + rng.normal(size=(m, WIDTH))
        odd = rng.random(m) < 0.01
        X[odd] = rng.uniform(-15, 15, size=(int(odd.sum()), WIDTH))
        table = pa.table({f"x{j}": X[:, j] for j in range(WIDTH)})
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
    assert writer is not None
    writer.close()


def measured(command: list[str]) -> dict[str, Any]:
    """Run ``command`` and return its wall and CPU seconds, peak MiB and what it told; its failure is ours."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    started = time.perf_counter()
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        told, complaint = process.stdout.read(), process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{command[-6:]} failed: {complaint.decode(errors='replace')[-300:]}")
    return {
        "wall s": time.perf_counter() - started,
        "CPU s": usage.ru_utime + usage.ru_stime,
        "peak MiB": usage.ru_maxrss / 1024,
        "told": json.loads(told),
    }


def run(quick: bool, data: Path, seed: int, progress: Callable[[str], None]) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        table, scores = Path(folder) / "table.parquet", Path(folder) / "scores.parquet"
        for n in QUICK_SIZES if quick else SIZES:
            progress(f"writing {n:,} rows")
            write_table(table, n, seed)
            bare = measured([sys.executable, "-c", READ, str(table)])
            rows.append(_row("bare read", n, table, bare, bare))
            for detector in DETECTORS:
                progress(f"{detector}: {n:,} rows")
                options = ["--detector", detector, "--out", str(scores), "--json", "--top", "0", "--seed", str(seed)]
                found = measured([sys.executable, "-c", COMMAND, "detect", str(table), *options])
                if found["told"]["rows"] != n:
                    raise RuntimeError(f"{detector} told of {found['told']['rows']} rows, not {n}")
                rows.append(_row(detector, n, table, found, bare))
    largest = next(r for r in rows if r["what"] == DETECTORS[0] and r["rows"] == max(r["rows"] for r in rows))
    return {
        "title": "Tables larger than memory",
        "claim": (
            f"The default scores and writes {largest['rows']:,} rows x {WIDTH} columns in {largest['wall s']:.0f} s "
            f"wall with a peak of {largest['peak MiB']:,.0f} MiB; the file has {largest['file MiB']:,.0f} MiB and is "
            f"read in {largest['wall s'] / largest['times the bare read']:.1f} s."
        ),
        "table": rows,
        "notes": [
            "The bare read decodes the same file batch by batch in a fresh process and does nothing with it.",
            "Peak MiB is of the whole process, interpreter and libraries included.",
            "Each figure is one run, end to end: start, sample, fit, score, explain the flagged rows, write.",
        ],
    }


def _row(what: str, n: int, table: Path, found: dict[str, Any], bare: dict[str, Any]) -> dict[str, Any]:
    return {
        "what": what,
        "rows": n,
        "file MiB": table.stat().st_size / 2**20,
        "wall s": found["wall s"],
        "CPU s": found["CPU s"],
        "peak MiB": found["peak MiB"],
        "rows a second": n / found["wall s"],
        "times the bare read": found["wall s"] / bare["wall s"],
    }
