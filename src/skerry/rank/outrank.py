"""OutRank: which columns of a wide categorical table tell about a target, corrected for what chance would
tell.

Škrlj & Mramor, "OutRank: Speeding up AutoML-based model search for large sparse data sets with
cardinality-aware
feature ranking", RecSys 2023. Mutual information grows with cardinality even for noise; the mean of it
that the
same value counts reach on shuffled rows is subtracted.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from numbers import Integral
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.feature_selection import SelectorMixin
from sklearn.utils._param_validation import (
    Interval,
    InvalidParameterError,
    StrOptions,
    validate_parameter_constraints,
)
from sklearn.utils.validation import check_is_fitted

from skerry.core.errors import DataError, ParameterError, nearest
from skerry.kernels import contingency as kernel
from skerry.rank.formats import is_outrank_folder, read_outrank_folder, write_results
from skerry.rank.quality import ColumnStats, control_columns
from skerry.rank.redundancy import order_3mr, unit_scale

__all__ = ["OutRank"]

LAST_BATCH = 1_024  # a shorter last mini-batch does not vote
MEMORY = 2 << 30  # bytes of codes that mode="auto" holds before it turns to mini-batches


class OutRank(SelectorMixin, BaseEstimator):
    """Rank columns by cardinality-corrected mutual information with a target.

    Parameters
    ----------
    correction : {"permutation", "expected", "shift", "none"}, default "permutation"
        What is subtracted: the mean over random permutations, the exact expectation with both margins
        fixed, the
        published estimator's single misaligned copy, or nothing.
    n_permutations : int, default 3
    mode : {"auto", "cumulative", "batch-median"}, default "auto"
        Count over all rows, or score mini-batches and take the median; "auto" counts over all rows while
        the codes
        fit in 2 GiB, then turns to mini-batches, so that memory is bounded.
    batch_rows : int, default 16384
        Rows of a mini-batch.
    normalize : {"min-max", "target-entropy"} or None, default None
        Divide by the entropy of the target (1 = determines it), or scale to [0, 1].
    interaction_order : int, default 1
        2 also ranks all crossed pairs ``A AND B``, 3 triples, and so on.
    max_combinations : int, default 32768
        Crosses per mini-batch (or in all, counted over all rows); those evaluated least often go first.
    pairwise : bool, default False
        Score all pairs of columns as well, the target among them.
    controls : bool, default True
        Rank columns of pure noise along; ``above_control`` tells which features beat them all.
    missing : sequence of str, default ("", "{}")
        Symbols that count as no value for the coverage; null does always. They are ordinary values for the
        score.
    subsampling : int, default 1
        Read every k-th row.
    k : int or None, default None
        Features that ``transform`` keeps; None keeps those above every control with ``q_value`` <= 0.05.
    random_state : int or None, default 0
        None is 0: rankings of two days must be comparable.

    Attributes
    ----------
    ranking_ : polars.DataFrame
        ``feature``, ``score`` (nats), ``z``, ``p_value``, ``q_value``, ``cardinality``, ``coverage``
        (percent),
        ``bytes`` (mean per value), ``above_control``; best first.
    controls_ : polars.DataFrame
        The same for the control columns.
    pairs_ : polars.DataFrame
        ``a``, ``b``, ``score``; the diagonal is the entropy.
    quality_ : polars.DataFrame
    anomalies_ : list of str
        Constant, duplicate, drifting, leaking and broken columns, one sentence each.
    target_entropy_ : float
    n_rows_ : int
    mode_ : str

    Notes
    -----
    z and p compare the plug-in information with a gamma law of the null's mean m and variance m/n, exact for
    large counts (2n·MI is then chi-squared) and conservative for sparse columns.

    Examples
    --------
    >>> import polars as pl
    >>> frame = pl.DataFrame({"id": range(200), "sign": [0, 1] * 100, "y": ["no", "yes"] * 100})
    >>> OutRank().fit(frame, target="y").ranking_["feature"].to_list()
    ['sign', 'id']
    """

    _parameter_constraints = {
        "correction": [StrOptions({"permutation", "expected", "shift", "none"})],
        "n_permutations": [Interval(Integral, 1, None, closed="left")],
        "mode": [StrOptions({"auto", "cumulative", "batch-median"})],
        "batch_rows": [Interval(Integral, 1, None, closed="left")],
        "normalize": [StrOptions({"min-max", "target-entropy"}), None],
        "interaction_order": [Interval(Integral, 1, 6, closed="both")],
        "max_combinations": [Interval(Integral, 1, None, closed="left")],
        "pairwise": ["boolean"],
        "controls": ["boolean"],
        "missing": ["array-like", set, frozenset],
        "subsampling": [Interval(Integral, 1, None, closed="left")],
        "k": [Interval(Integral, 1, None, closed="left"), None],
        "random_state": [Interval(Integral, 0, None, closed="left"), None],
    }

    def __init__(
        self,
        correction: str = "permutation",
        n_permutations: int = 3,
        mode: str = "auto",
        batch_rows: int = 16_384,
        normalize: str | None = None,
        interaction_order: int = 1,
        max_combinations: int = 32_768,
        pairwise: bool = False,
        controls: bool = True,
        missing: tuple[str, ...] = ("", "{}"),
        subsampling: int = 1,
        k: int | None = None,
        random_state: int | None = 0,
    ) -> None:
        self.correction = correction
        self.n_permutations = n_permutations
        self.mode = mode
        self.batch_rows = batch_rows
        self.normalize = normalize
        self.interaction_order = interaction_order
        self.max_combinations = max_combinations
        self.pairwise = pairwise
        self.controls = controls
        self.missing = missing
        self.subsampling = subsampling
        self.k = k
        self.random_state = random_state

    # ---- fit -----------------------------------------------------------------------------------------------
    def fit(self, X: Any, y: Any = None, *, target: str = "label") -> Self:
        """Rank the columns of ``X`` against its column ``target``, or against ``y`` of shape (n,) if given.

        Parameters
        ----------
        X : path, pandas / polars / pyarrow table, array, or iterator of frames
        y : array of shape (n,), optional
        target : str, default "label"

        Raises
        ------
        DataError
            If the target is not a column or has one value, or there is no row.
        ParameterError
            If an argument is out of range.
        """
        try:
            validate_parameter_constraints(self._parameter_constraints, self.get_params(deep=False), "OutRank")
        except InvalidParameterError as error:
            raise ParameterError(str(error)) from None
        self._seed = self.random_state or 0
        self._tallies: list[tuple] = []
        self._pair_scores: list[NDArray] = []
        self._evaluated: dict[tuple[int, ...], int] = {}
        held: list[list[NDArray]] = []
        stats: list[ColumnStats] = []
        names: list[str] = []
        rows = 0
        self.mode_ = "cumulative" if self.mode == "auto" else self.mode
        for frame in self._frames(X, y, target):
            if not names:
                names = [c for c in frame.columns if c != target] + [target]
                if len(names) != frame.width:
                    raise DataError(f"target {target!r} is not a column: {nearest(target, frame.columns)}")
                stats = [ColumnStats(self.missing) for _ in names]
                held = [[] for _ in names]
                self._names, self.target_ = names[:-1], target
            for j, name in enumerate(names):
                held[j].append(_narrow(stats[j].add(frame[name])))
            rows += frame.height
            full = sum(c.nbytes for c in itertools.chain.from_iterable(held)) > MEMORY
            if full and self.mode == "auto":
                self.mode_ = "batch-median"
            elif full and self.mode == "cumulative":
                raise DataError("the codes of the table pass 2 GiB: use mode='auto' or subsampling")
            if self.mode_ == "batch-median":
                held = self._score_batches(held, last=False)
        if rows == 0:
            raise DataError("the table has no rows")
        if stats[-1].cardinality < 2:
            raise DataError(f"target {target!r} has one value only: there is nothing to rank against")
        self.n_rows_ = rows
        self._stats = stats
        if self.mode_ == "batch-median":
            self._score_batches(held, last=True)
            self._held = None
        else:
            codes, cards = kernel.pack([np.concatenate(c) for c in held])
            self._held = (codes, cards)
            self._score(codes, cards, 0)
        self._finish()
        return self

    def _frames(self, X: Any, y: Any, target: str) -> Iterator[Any]:
        import polars as pl

        from skerry.data.tables import open_table

        rows = self.batch_rows if self.mode == "batch-median" else 1 << 17
        if is_outrank_folder(X):
            frames = read_outrank_folder(X, rows)
        elif isinstance(X, Iterator):
            frames = itertools.chain.from_iterable(open_table(part).batches(rows) for part in X)
        else:
            frames = open_table(X).batches(rows)
        start = 0
        for frame in frames:
            if y is not None:
                labels = np.asarray(y)[start : start + frame.height]
                if labels.shape[0] != frame.height:
                    raise DataError("y has fewer rows than X")
                frame = frame.with_columns(pl.Series(target, labels.astype(str)))
            first = -start % self.subsampling
            start += frame.height
            if self.subsampling > 1:
                frame = frame.gather_every(self.subsampling, first) if first < frame.height else frame.clear()
            if frame.height:
                yield frame
        if y is not None and start != len(y):
            raise DataError(f"X has {start} rows, y has {len(y)}")

    def _score_batches(self, held: list[list[NDArray]], last: bool) -> list[list[NDArray]]:
        """Score every whole mini-batch and return what is left over."""
        columns = [np.concatenate(c) if c else np.zeros(0, np.int32) for c in held]
        n, at = columns[0].size, 0
        while n - at >= self.batch_rows or (last and n > at and (n - at > LAST_BATCH or not self._tallies)):
            part = [kernel.encode(c[at : at + self.batch_rows])[0] for c in columns]
            codes, cards = kernel.pack(part)
            self._score(codes, cards, at)
            at += self.batch_rows
        return [[c[at:]] for c in columns]

    def _score(self, codes: NDArray, cards: NDArray[np.int64], start: int) -> None:
        """Score one block of rows; the last row of ``codes`` is the target."""
        n = codes.shape[1]
        sums = kernel.Sums(n)
        p = len(self._names)
        y, card_y = codes[-1], int(cards[-1])
        self._joint_margin_y = int(sums.margins(codes[-1:], cards[-1:])[0])
        self.control_names_: list[str] = []
        columns, sizes = codes[:-1], cards[:-1]
        singles = self._against(columns, sizes, y, card_y, sums, np.arange(p))
        parts = [singles]
        combos = self._combinations(p)
        two = np.array(sorted(c for c in combos if len(c) == 2), dtype=np.int64).reshape(-1, 2)
        labels: list[tuple[int, ...]] = [(j,) for j in range(p)]
        if two.size:
            parts.append(self._crossed(columns, sizes, two, y, card_y, sums))
            labels += [tuple(int(v) for v in pair) for pair in two]
        for combo in sorted(c for c in combos if len(c) > 2):
            crossed = columns[combo[0]].astype(np.int64)
            for j in combo[1:]:
                crossed = kernel.encode(crossed * int(sizes[j]) + columns[j])[0].astype(np.int64)
            one, size = kernel.pack([crossed.astype(np.int32)])
            parts.append(
                self._against(
                    one,
                    size,
                    y,
                    card_y,
                    sums,
                    np.array([10_007 + sum(v * 8_191**i for i, v in enumerate(combo)) % (1 << 40)]),
                )
            )
            labels.append(combo)
        if self.controls:
            noise = control_columns(n, self._seed, start)
            self.control_names_ = list(noise)
            extra, size = kernel.pack([kernel.encode(v)[0] for v in noise.values()])
            parts.append(self._against(extra, size, y, card_y, sums, 1_000_000_007 + np.arange(len(noise))))
        score, mi, null, cells = (np.concatenate(v) for v in zip(*parts, strict=True))
        self._tallies.append((labels, score, mi, null, cells, n))
        if self.pairwise:
            self._pair_scores.append(self._all_pairs(codes, cards, sums))
        entropy = math.log(n) - float(sums.value(self._joint_margin_y))
        self.target_entropy_ = entropy

    def _combinations(self, p: int) -> list[tuple[int, ...]]:
        """Return the crosses of this block, those evaluated least often first, and note them as evaluated."""
        if self.interaction_order < 2:
            return []
        orders = range(2, min(self.interaction_order, p) + 1)
        total = sum(math.comb(p, r) for r in orders)
        rng = np.random.default_rng([self._seed, len(self._tallies)])
        if total <= self.max_combinations:
            chosen = [c for r in orders for c in itertools.combinations(range(p), r)]
        elif total <= 2_000_000:
            every = [c for r in orders for c in itertools.combinations(range(p), r)]
            age = np.array([self._evaluated.get(c, 0) for c in every]) + rng.random(total)
            chosen = [every[i] for i in np.argsort(age)[: self.max_combinations]]
        else:  # too many to list: draw until enough are new
            drawn: dict[tuple[int, ...], None] = {}
            weights = np.array([math.comb(p, r) for r in orders], dtype=np.float64)
            while len(drawn) < self.max_combinations:
                r = int(rng.choice(list(orders), p=weights / weights.sum()))
                drawn[tuple(sorted(int(v) for v in rng.choice(p, r, replace=False)))] = None
            chosen = list(drawn)
        for c in chosen:
            self._evaluated[c] = self._evaluated.get(c, 0) + 1
        return chosen

    def _against(self, columns, sizes, y, card_y, sums, keys):
        """Return score, plug-in information, null mean and cardinality of each column against y."""
        draws = self.n_permutations if self.correction == "permutation" else 0
        joint, null = kernel.target_sums(
            columns,
            sizes,
            y,
            card_y,
            sums,
            draws=draws,
            seed=self._seed,
            keys=np.asarray(keys, dtype=np.int64),
        )
        margin = sums.margins(columns, sizes)
        mi = self._information(sums, joint, margin)
        counts = [np.bincount(c) for c in columns]
        cells = np.array([np.count_nonzero(c) for c in counts])
        # the exact mean serves z and p whatever the correction: a mean of three draws is too noisy for a test
        own = np.bincount(y, minlength=card_y)
        table = _log_factorial(sums.n)
        chance = np.array([kernel.expected_mutual_information(c, own, table) for c in counts])
        drawn = self._information(sums, null, margin[:, None]).mean(axis=1) if draws else chance
        score = mi if self.correction == "none" else mi - drawn
        if self.correction == "shift":
            here, moved = kernel.shift_sums(columns, sizes, y, card_y, sums)
            score = sums.value(here - moved)
        score = np.where(cells > 1, score, 0.0)
        return score, mi, chance, cells

    def _information(self, sums, joint, margin):
        return math.log(sums.n) + sums.value(np.asarray(joint) - margin - self._joint_margin_y)

    def _crossed(self, columns, sizes, pairs, y, card_y, sums):
        draws = self.n_permutations if self.correction != "none" else 1
        joint, margin, cells, null = kernel.cross_sums(
            columns, sizes, pairs, y, card_y, sums, draws=draws, seed=self._seed
        )
        mi = self._information(sums, joint, margin)
        chance = self._information(sums, null, margin[:, None]).mean(axis=1)
        score = mi if self.correction == "none" else mi - chance
        dense = sums.n > 5 * cells * card_y  # Miller-Madow's term is then less noisy than a few draws
        return score, mi, np.where(dense, (cells - 1) * (card_y - 1) / (2 * sums.n), chance), cells

    def _all_pairs(self, codes, cards, sums) -> NDArray[np.float64]:
        draws = self.n_permutations if self.correction == "permutation" else 0
        joint, null = kernel.pair_sums(codes, cards, sums, draws=draws, seed=self._seed)
        margin = sums.margins(codes, cards)
        entropy = math.log(sums.n) - sums.value(margin)
        if self.correction == "permutation":
            score = sums.value(joint * draws - null) / draws
        elif self.correction == "shift":
            score = np.zeros(joint.shape)
            for j in range(len(cards)):
                here, moved = kernel.shift_sums(codes, cards, codes[j], int(cards[j]), sums)
                score[:, j] = sums.value(here - moved)
        else:
            score = math.log(sums.n) + sums.value(joint - margin[:, None] - margin[None, :])
            if self.correction == "expected":
                table, counts = _log_factorial(sums.n), [np.bincount(c) for c in codes]
                for i, j in itertools.combinations(range(len(cards)), 2):
                    score[i, j] -= kernel.expected_mutual_information(counts[i], counts[j], table)
        score = np.triu(score, 1)
        score[(entropy[:, None] <= 0) | (entropy[None, :] <= 0)] = 0.0
        score += score.T
        np.fill_diagonal(score, entropy)
        return score

    # ---- results -------------------------------------------------------------------------------------------
    def _finish(self) -> None:
        import polars as pl
        from scipy.stats import gamma, norm

        votes: dict[Any, list[tuple[float, float, float, int]]] = {}
        for labels, score, mi, null, cells, n in self._tallies:
            keys = [*labels, *self.control_names_]
            variance = np.maximum(null, 1e-12) / n
            z = (mi - null) / np.sqrt(variance)
            p = gamma.sf(mi, np.maximum(null, 1e-12) ** 2 / variance, scale=variance / np.maximum(null, 1e-12))
            p = np.where(cells > 1, p, 1.0)
            for i, key in enumerate(keys):
                votes.setdefault(key, []).append((score[i], z[i] if cells[i] > 1 else 0.0, p[i], int(cells[i])))
        rows = []
        for key, seen in votes.items():
            s, z, p, c = (np.array(v, dtype=np.float64) for v in zip(*seen, strict=True))
            combined = float(z.sum() / math.sqrt(z.size))
            row = {
                "feature": key if isinstance(key, str) else " AND ".join(self._names[j] for j in key),
                "score": float(np.median(s)),
                "z": combined,
                "p_value": float(p[0]) if p.size == 1 else float(norm.sf(combined)),
                "cardinality": int(c.max()),
                "coverage": 100.0,
                "bytes": 0.0,
            }
            if not isinstance(key, str):
                own = [self._stats[j] for j in key]
                row["coverage"] = min(o.coverage for o in own)
                row["bytes"] = sum(o.bytes for o in own) / self.n_rows_
                if len(key) == 1:
                    row["cardinality"] = own[0].cardinality
            rows.append((isinstance(key, str), row))
        frame = pl.DataFrame([r for noise, r in rows if not noise])
        noise = [r for is_noise, r in rows if is_noise]
        q = _benjamini_hochberg(frame["p_value"].to_numpy())
        best = max((r["score"] for r in noise), default=-math.inf)
        score = frame["score"].to_numpy()
        above = score > best if noise else None
        if self.normalize == "target-entropy":
            scaled = score / max(self.target_entropy_, 1e-300)
        else:
            scaled = unit_scale(score) if self.normalize == "min-max" else score
        frame = frame.with_columns(
            pl.Series("score", scaled),
            pl.Series("q_value", q),
            pl.Series("above_control", above if above is not None else [None] * frame.height, dtype=pl.Boolean),
        )
        order = [
            "feature",
            "score",
            "z",
            "p_value",
            "q_value",
            "cardinality",
            "coverage",
            "bytes",
            "above_control",
        ]
        self.scores_ = frame["score"].to_numpy()[: len(self._names)].copy()
        self._single_q = q[: len(self._names)]
        self._single_above = np.ones(len(self._names), bool) if above is None else above[: len(self._names)]
        self.cross_scores_ = {
            k: float(np.median([v[0] for v in votes[k]])) for k in votes if len(k) == 2 and not isinstance(k, str)
        }
        self.ranking_ = frame.select(order).sort("score", descending=True, maintain_order=True)
        self.controls_ = pl.DataFrame(noise).sort("score", descending=True) if noise else pl.DataFrame()
        self.feature_names_in_ = np.array(self._names, dtype=object)
        self.n_features_in_ = len(self._names)
        self.quality_ = pl.DataFrame(
            [s.summary(n) for n, s in zip([*self._names, self.target_], self._stats, strict=True)]
        )
        self._tallies = []
        if self.pairwise:
            self._pair_matrix = np.median(self._pair_scores, axis=0)
            self._pair_scores = []
            names = [*self._names, self.target_]
            i, j = np.triu_indices(len(names))
            self.pairs_ = pl.DataFrame(
                {"a": [names[v] for v in i], "b": [names[v] for v in j], "score": self._pair_matrix[i, j]}
            )
        self.anomalies_ = self._find_anomalies()

    def _find_anomalies(self) -> list[str]:
        found = [line for n, s in zip(self._names, self._stats, strict=False) for line in s.anomalies(n)]
        if self._held is None:
            return found
        codes, cards = self._held
        n = codes.shape[1]
        sums = kernel.Sums(n)
        margins = sums.margins(codes, cards)
        entropy = math.log(n) - sums.value(margins)
        seen: dict[bytes, str] = {}
        import hashlib

        for name, row, card in zip(self._names, codes, cards, strict=False):
            if card > 1:  # codes follow first appearance, so equal codes are equal columns up to renaming
                digest = hashlib.blake2b(row.tobytes(), digest_size=16).digest()
                if digest in seen:
                    found.append(f"{name} duplicates {seen[digest]} (one determines the other, value by value)")
                seen.setdefault(digest, name)
        limit = 0.99 * entropy[-1]
        raw = self.scores_ * (self.target_entropy_ if self.normalize == "target-entropy" else 1.0)
        for name, score in zip(self._names, raw, strict=True):
            if self.normalize != "min-max" and score > limit:
                found.append(f"{name} leaks {self.target_}: it alone determines it")
        if n >= 1000:
            block = (np.arange(n) * 10 // n).astype(np.int32)
            joint, null = kernel.target_sums(codes[:-1], cards[:-1], block, 10, sums, draws=3, seed=self._seed)
            moved = sums.value(joint - null.mean(axis=1))
            room = np.minimum(entropy[:-1], math.log(10))
            for name, m, r in zip(self._names, moved, room, strict=True):
                if r > 0 and m > 0.1 * r:
                    found.append(f"{name} drifts: its values change with the row number ({m / r:.0%} of it is told)")
        return found

    def rank_3mr(self, alpha: float = 1.0, beta: float = 1.0, aggregate: str = "median") -> list[dict[str, object]]:
        """Order the features by relevance - alpha * redundancy + beta * relation (each scaled to [0, 1]).

        Pairs and crosses not counted by ``fit`` are counted now if the codes are held (``mode_``
        cumulative), else
        they count as 0, as in the published tool.
        """
        check_is_fitted(self)
        p = len(self._names)
        upper = np.triu_indices(p, 1)
        red, syn = np.zeros((p, p)), np.zeros((p, p))
        crosses = self.cross_scores_
        if self._held is not None:
            codes, cards = self._held
            sums = kernel.Sums(codes.shape[1])
            if not hasattr(self, "_pair_matrix"):
                self._pair_matrix = self._all_pairs(codes, cards, sums)
            if len(crosses) < upper[0].size and p > 1:
                pairs = np.stack(upper, axis=1)
                values = self._crossed(codes[:-1], cards[:-1], pairs, codes[-1], int(cards[-1]), sums)[0]
                crosses = {tuple(int(v) for v in k): float(s) for k, s in zip(pairs, values, strict=True)}
                self.cross_scores_ = crosses
        if hasattr(self, "_pair_matrix"):
            red[upper] = unit_scale(self._pair_matrix[:p, :p][upper])
        if crosses:
            keys = np.array(list(crosses))
            syn[keys[:, 0], keys[:, 1]] = unit_scale(list(crosses.values()))
        return order_3mr(
            self._names,
            unit_scale(self.scores_),
            red + red.T,
            syn + syn.T,
            alpha=alpha,
            beta=beta,
            aggregate=aggregate,
        )

    def write(self, folder: str | Path) -> None:
        """Write the tables to ``folder``, in the names of the published tool where it has one."""
        check_is_fitted(self)
        write_results(self, folder)

    # ---- selection -----------------------------------------------------------------------------------------
    def _get_support_mask(self) -> NDArray[np.bool_]:
        check_is_fitted(self)
        if self.k is None:
            return (self._single_q <= 0.05) & self._single_above
        return self._top(self.k)

    def _top(self, k: int) -> NDArray[np.bool_]:
        mask = np.zeros(self.n_features_in_, dtype=bool)
        mask[np.argsort(-self.scores_, kind="stable")[:k]] = True
        return mask

    def transform(self, X: Any, k: int | None = None) -> Any:
        """Return the selected columns of ``X``, best ``k`` if given; a frame stays a frame of its kind."""
        check_is_fitted(self)
        mask = self.get_support() if k is None else self._top(k)
        if hasattr(X, "columns") and not hasattr(X, "column_names"):
            lost = [n for n in self._names if n not in set(X.columns)]
            if lost:
                raise DataError(f"X lacks the column {lost[0]!r} that the ranking was fitted on")
            return X[[n for n, m in zip(self._names, mask, strict=True) if m]]
        if hasattr(X, "column_names"):
            return X.select([n for n, m in zip(self._names, mask, strict=True) if m])
        X = np.asarray(X)
        if X.ndim != 2 or X.shape[1] != self.n_features_in_:
            raise DataError(f"X has shape {X.shape}, the ranking was fitted on {self.n_features_in_} columns")
        return X[:, mask]


def _narrow(codes: NDArray[np.int32]) -> NDArray:
    top = int(codes.max(initial=0))
    return codes.astype(np.uint8 if top < 1 << 8 else np.uint16 if top < 1 << 16 else np.int32)


def _log_factorial(n: int) -> NDArray[np.float64]:
    from scipy.special import gammaln

    return gammaln(np.arange(n + 1) + 1.0)


def _benjamini_hochberg(p: NDArray[np.float64]) -> NDArray[np.float64]:
    order = np.argsort(p)[::-1]
    q = np.empty_like(p)
    q[order] = np.minimum.accumulate(np.minimum(p[order] * p.size / np.arange(p.size, 0, -1), 1.0))
    return q
