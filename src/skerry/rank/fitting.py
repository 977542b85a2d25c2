"""One fit of OutRank: frames in, columns encoded, scored in one block or in many, and the tables joined.

Follows the stream of OutRank (Škrlj & Mramor, RecSys 2023), which scores mini-batches and takes the median. Here the
codes are held as long as they fit in memory and counted as one block; past that, counts with the target are added up,
or mini-batches scored.
"""

from __future__ import annotations

import itertools
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from skerry.core.errors import DataError, nearest
from skerry.rank.accumulate import Block, TargetCounts, build_block, joined, narrow, read_frames
from skerry.rank.anomalies import Watch
from skerry.rank.crosses import CrossPlan, gamma_test
from skerry.rank.formats import declared_numbers
from skerry.rank.outputs import CONTROL, PairVotes, Votes
from skerry.rank.packing import Pack, Packed
from skerry.rank.quality import ColumnStats, control_columns
from skerry.rank.scoring import Scorer
from skerry.rank.surrogates import CORRECTIONS, reference_columns

if TYPE_CHECKING:
    from skerry.rank.outrank import OutRank

__all__ = ["Fit"]

MEMORY = 1 << 30  # bytes of codes, as they are scored, that are held before only counts, or mini-batches, are
CHUNK = 1 << 17  # rows read, and added to counts, at a time
LAST_BATCH = 1_024  # a shorter last mini-batch does not vote
ROWS_KEPT = 1 << 20  # of the row report
CODES = 1 << 19  # a control column with more values is folded to so many where only counts are kept


class Fit:
    """Reads one source for one ranker and sets the ranker's attributes."""

    def __init__(
        self,
        ranker: OutRank,
        X: Any,
        y: Any,
        target: str,
        engine: str = "local",
        on_progress: Callable[[int, int | None], None] | None = None,
    ) -> None:
        self.ranker, self.source, self.y, self.target, self.engine = ranker, X, y, target, engine
        self.on_progress = on_progress
        self.seed = ranker.random_state or 0
        triple = ranker.heuristic == "MI-numba-3mr"
        self.pairwise = ranker.pairwise or triple
        self.order = max(ranker.interaction_order, 2 if triple else 1)
        self.scorer = Scorer(
            ranker.heuristic,
            CORRECTIONS.get(ranker.heuristic, ranker.correction),
            ranker.n_permutations,
            self.seed,
            ranker.n_jobs,
            () if ranker.reference is None else reference_columns(ranker.reference),
        )
        self.derives = bool(ranker.transforms or len(ranker.sub_features) or len(ranker.multi_value))
        self.mode = ranker.mode
        if self.mode == "auto":
            self.mode = "batch-median" if ranker.heuristic == "MI-numba-randomized" else "cumulative"
        self.plan = CrossPlan(self.order, ranker.max_combinations, self.seed)
        self.votes, self.pair_votes = Votes(), PairVotes()
        self.names: list[str] = []
        self.stats: list[ColumnStats] = []
        self.held: list[list[NDArray]] = []
        self.counts: list[TargetCounts] = []
        self.noise: dict[str, TargetCounts] = {}
        self.streaming = False
        self.rows = self.done = 0
        self.block: Block | None = None
        self.report: list[Any] = []
        self.numeric = declared_numbers(X)
        self.timings: dict[str, float] = {}

    def run(self) -> None:
        """Read, score, and set the attributes of the ranker."""
        with self._timed("read and encode"):
            for batch in self._batches():
                self._add(batch)
                if self.on_progress:
                    self.on_progress(self.rows, None)
        if self.rows == 0:
            raise DataError("the table has no rows")
        if self.stats[-1].cardinality < 2:
            raise DataError(f"target {self.target!r} has one value only: there is nothing to rank against")
        if self.streaming:
            self._drain(last=True)
            if self.mode == "cumulative":
                with self._timed("score"):
                    self._score_counts()
        else:
            columns = [np.concatenate(c) for c in self.held]
            self.held = []
            with self._timed("quality"):
                seen = [s.counts[: len(s.places)].tobytes() for s in self.stats[:-1]]  # twins have the same counts
                often = Counter(seen)
                self.watch = Watch(len(seen), max(-(-self.rows // 10), 1), [often[v] > 1 for v in seen])
                self.watch.add(columns[:-1])
            if self.mode == "batch-median":
                self._mini_batches(columns, last=True)
            else:
                dense = all(s.sketch is None for s in self.stats)
                self.block = self._block(columns, 0, dense)
                self._score(self.block)
        self._finish()

    # ---- reading -------------------------------------------------------------------------------------------
    def _batches(self) -> Iterator[Packed]:
        pack = Pack(self.target, self.ranker.subsampling, self.ranker.row_quality)
        if self.engine == "local":
            frames = read_frames(self.source, self.y, self.target, CHUNK, self.ranker.subsampling)
            return (pack.whole(frame) for frame in joined(frames))
        from skerry.data.engine import map_batches
        from skerry.data.tables import open_table

        return map_batches(open_table(self.source, text=True), pack, CHUNK, self.engine)

    def _add(self, batch: Packed) -> None:
        if not self.names:
            self._start(batch.names)
        elif set(batch.names) != set(self.names):
            odd = sorted(set(batch.names) ^ set(self.names))[0]
            raise DataError(f"row {self.rows}: column {odd!r} is not in every batch")
        held = dict(zip(batch.names, batch.columns, strict=True))
        codes = [narrow(s.add_packed(*held[name])) for s, name in zip(self.stats, self.names, strict=True)]
        if batch.report and self.rows < ROWS_KEPT:
            self.report.append({k: v[: ROWS_KEPT - self.rows] for k, v in batch.report.items()})
        self.rows += batch.rows
        for parts, part in zip(self.held, codes, strict=True):
            parts.append(part)
        wide = 4 if any(c.itemsize > 2 for c in codes) else 2
        if not self.streaming and self.rows * len(self.names) * wide > MEMORY:
            self._stream()
        if self.streaming:
            self._drain(last=False)

    def _start(self, columns: list[str]) -> None:
        self.names = [c for c in columns if c != self.target] + [self.target]
        if len(self.names) != len(columns):
            raise DataError(f"target {self.target!r} is not a column: {nearest(self.target, columns)}")
        if len(self.names) < 2:
            raise DataError(f"the table has no column beside the target {self.target!r}")
        self.stats = [ColumnStats(self.ranker.missing) for _ in self.names]
        self.held = [[] for _ in self.names]

    def _stream(self) -> None:
        """Stop holding all codes: what needs more than counts with the target is scored in mini-batches."""
        self.streaming = True
        if self.mode == "cumulative":
            scorer = self.scorer
            rows = self.pairwise or self.order > 1 or self.derives or not scorer.informative
            rows = rows or scorer.correction == "shift"
            if rows and self.ranker.mode == "cumulative":
                raise DataError(
                    "the codes of the table pass 1 GiB, and pairs, crosses, derived columns, correction='shift' and "
                    "the other heuristics need its rows: use mode='auto' or subsampling"
                )
            self.mode = "batch-median" if rows else "cumulative"
        self.watch = Watch(len(self.names) - 1, CHUNK)
        self.counts = [TargetCounts() for _ in self.names[:-1]]

    def _drain(self, last: bool) -> None:
        columns = [np.concatenate(c) if c else np.zeros(0, np.int32) for c in self.held]
        if self.mode == "batch-median":
            rest = self._mini_batches(columns, last)
            seen = columns[0].size - rest[0].size
            if seen:
                self.watch.add([c[:seen] for c in columns[:-1]])
        else:
            at, n = 0, columns[0].size
            while n - at >= CHUNK or (last and n > at):
                part = [c[at : at + CHUNK] for c in columns]
                self._count(part)
                self.watch.add(part[:-1])
                at += CHUNK
            rest = [c[at:] for c in columns]
        self.held = [[c.copy()] for c in rest]

    def _count(self, part: list[NDArray]) -> None:
        y = part[-1].astype(np.int64)
        for counts, codes in zip(self.counts, part[:-1], strict=True):
            counts.add(codes, y)
        if self.ranker.controls:
            features = np.stack([c.astype(np.int64) for c in part[:-1]])
            for name, codes in control_columns(y.size, self.seed, self.done, features, y).items():
                self.noise.setdefault(name, TargetCounts()).add(codes % CODES, y)
        self.done += y.size

    def _mini_batches(self, columns: list[NDArray], last: bool) -> list[NDArray]:
        """Score every whole mini-batch and return what is left over."""
        n, at, size = columns[0].size, 0, self.ranker.batch_rows
        while n - at >= size or (last and n > at and (n - at > LAST_BATCH or not self.votes.of)):
            part = [c[at : at + size] for c in columns]
            self._score(self._block(part, self.done, dense=False))
            self.done += part[0].size
            at += size
        return [c[at:] for c in columns]

    def _block(self, columns: list[NDArray], start: int, dense: bool) -> Block:
        ranker = self.ranker
        with self._timed("derive"):
            return build_block(
                self.names[:-1], columns, self.stats, start, dense=dense,
                numbers=ranker.heuristic == "correlation-Pearson", numeric=self.numeric,
                transforms=ranker.transforms, operators=tuple(ranker.sub_features), lists=tuple(ranker.multi_value),
            )  # fmt: skip

    # ---- scoring -------------------------------------------------------------------------------------------
    def _score(self, block: Block) -> None:
        given, votes = len(self.names) - 1, self.votes
        with self._timed("score"):
            votes.parents.update(zip(block.names, block.parents, strict=True))
            for name, score in zip(block.names, self.scorer.features(block, given), strict=True):
                votes.add((name,), score)
            if self.ranker.controls:
                y = block.target[0].astype(np.int64)
                noise = control_columns(y.size, self.seed, block.start, block.codes[:given], y)
                for key, score in self.scorer.controls(block, noise).items():
                    votes.add(key, score)
        if self.order > 1:
            with self._timed("cross"):
                combos = self.plan.choose(block.names[:given])
                for combo, score in zip(combos, self.scorer.crosses(block, combos, given), strict=True):
                    votes.add(tuple(block.names[j] for j in combo), score)
        if self.pairwise:
            with self._timed("pairs"):
                self.pair_votes.add([*block.names, self.target], self.scorer.pairs(block))

    def _score_counts(self) -> None:
        keys = [(name,) for name in self.names[:-1]] + [(CONTROL, name) for name in self.noise]
        tables = [*self.counts, *self.noise.values()]
        scorer = self.scorer
        got = [
            t.score(correction=scorer.correction, draws=scorer.draws, seed=self.seed, key=j)
            for j, t in enumerate(tables)
        ]
        score, mi, chance, cells = (np.array(v, dtype=np.float64) for v in zip(*got, strict=True))
        z, p = gamma_test(mi, chance, self.rows)
        for j, key in enumerate(keys):
            told = (float(z[j]), float(p[j])) if cells[j] > 1 else (0.0, 1.0)
            self.votes.add(key, (float(score[j]), *told, int(cells[j]), np.nan))
        self.votes.parents.update((name, (j,)) for j, name in enumerate(self.names[:-1]))

    # ---- results -------------------------------------------------------------------------------------------
    def _about(self, name: str) -> tuple[float, float, int | None]:
        own = [self.stats[j] for j in self.votes.parents[name]]
        given = len(own) == 1 and name == self.names[self.votes.parents[name][0]]
        return (
            min(s.coverage for s in own),
            sum(s.bytes for s in own) / self.rows,
            own[0].cardinality if given else None,
        )

    def _finish(self) -> None:
        import polars as pl

        ranker, given = self.ranker, self.names[:-1]
        ranker.n_rows_, ranker.mode_, ranker.target_ = self.rows, self.mode, self.target
        shares = self.stats[-1].counts[self.stats[-1].counts > 0] / self.rows
        ranker.target_entropy_ = float(-(shares * np.log(shares)).sum())
        frame, ranker.controls_ = self.votes.table(self._about, ranker.normalize, ranker.target_entropy_)
        ranker.ranking_ = frame.sort("score", descending=True, maintain_order=True)
        rows = {r["feature"]: r for r in frame.head(len(given)).to_dicts()}  # the table's columns voted first
        ranker.scores_ = np.array([rows[n]["score"] for n in given])
        ranker._q = np.array([rows[n]["q_value"] for n in given], dtype=np.float64)
        ranker._above = np.array([rows[n]["above_control"] is not False for n in given])
        ranker._names, ranker.n_features_in_ = given, len(given)
        ranker.cross_scores_, ranker.evaluated_ = self.votes.crosses(), self.plan.evaluated
        self._tables(pl)
        with self._timed("quality"):
            raw = np.array([self.votes.score((n,)) for n in given])
            sure = np.array([(rows[n]["p_value"] or 0.0) < 0.01 for n in given])
            ranker.anomalies_ = self._anomalies(np.where(sure, raw, 0.0))
        ranker._singles = [k[0] for k in self.votes.of if len(k) == 1]
        ranker._relevance = np.array([self.votes.score((n,)) for n in ranker._singles])
        ranker._scorer, ranker._block, ranker._pairs = self.scorer, self.block, self.pair_votes
        ranker.timings_ = {k: round(v, 6) for k, v in self.timings.items()}

    def _tables(self, pl: Any) -> None:
        ranker = self.ranker
        both = list(zip(self.names, self.stats, strict=True))
        ranker.quality_ = pl.DataFrame([s.summary(n, ranker.rare) for n, s in both], infer_schema_length=None)
        rare = [(n, v, c) for n, s in both for v, c in s.rare(ranker.rare)]
        schema = {"feature": pl.String, "value": pl.String, "count": pl.Int64}
        ranker.rare_values_ = pl.DataFrame(rare, schema=schema, orient="row")
        ranker.__dict__.pop("pairs_", None)
        ranker.__dict__.pop("rows_", None)
        ranker.__dict__.pop("steps_3mr_", None)
        if self.pairwise:
            names, matrix = self.pair_votes.median()
            i, j = np.triu_indices(len(names))
            ranker.pairs_ = pl.DataFrame({"a": np.array(names)[i], "b": np.array(names)[j], "score": matrix[i, j]})
        if ranker.row_quality:
            keys = self.report[0]
            ranker.rows_ = pl.DataFrame({k: np.concatenate([part[k] for part in self.report]) for k in keys})
            ranker.rows_ = ranker.rows_.with_row_index("row")

    def _anomalies(self, raw: NDArray[np.float64]) -> list[str]:
        given, stats = self.names[:-1], self.stats[:-1]
        alone = itertools.chain.from_iterable(s.anomalies(n) for n, s in zip(given, stats, strict=True))
        found = [*alone, *self.watch.duplicates(given, stats)]
        if self.scorer.informative:
            found += Watch.leaking(given, raw, self.target, self.ranker.target_entropy_)
        return found + self.watch.drifting(given, [_entropy(s.counts, self.rows) for s in stats])

    def _timed(self, what: str) -> _Clock:
        return _Clock(self.timings, what)


class _Clock:
    """Adds the seconds of a ``with`` block to an entry of a dict."""

    def __init__(self, timings: dict[str, float], what: str) -> None:
        self.timings, self.what = timings, what

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        self.timings[self.what] = self.timings.get(self.what, 0.0) + time.perf_counter() - self.start


def _entropy(counts: NDArray[np.int64], n: int) -> float:
    counts = counts[counts > 0]
    return math.log(n) - float((counts * np.log(counts)).sum()) / n
