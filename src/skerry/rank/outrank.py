"""OutRank: which columns of a wide categorical table tell about a target, corrected for what chance would tell.

Škrlj & Mramor, "OutRank: Speeding up AutoML-based model search for large sparse data sets with cardinality-aware
feature ranking", RecSys 2023. Mutual information grows with cardinality even for noise; the mean of it that the same
value counts reach on shuffled rows is subtracted.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from numbers import Integral
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.feature_selection import SelectorMixin
from sklearn.utils import column_or_1d
from sklearn.utils._param_validation import (
    Interval,
    InvalidParameterError,
    Options,
    StrOptions,
    validate_parameter_constraints,
)
from sklearn.utils.validation import check_is_fitted, validate_data

from skerry.core.errors import DataError, ParameterError
from skerry.rank.redundancy import order_3mr, unit_scale
from skerry.rank.surrogates import HEURISTICS, SURROGATES
from skerry.rank.transforms import parse_operator

__all__ = ["OutRank"]


class OutRank(SelectorMixin, BaseEstimator):
    """Rank columns by cardinality-corrected mutual information with a target.

    Parameters
    ----------
    heuristic : str, default "information"
        How a column is scored. "information": by ``correction``. The published tool's names: "MI",
        "MI-numba-randomized" (correction "shift" over mini-batches), "MI-numba-3mr" (with pairs, crosses and the 3MR
        order), "AMI", "correlation-Pearson", "max-value-coverage", "surrogate-SGD", "surrogate-SVM",
        "surrogate-SGD-RP", "surrogate-SGD-SVD", "Constant"; see :mod:`skerry.rank.surrogates`. Only information has
        z, p and q.
    correction : {"permutation", "expected", "shift", "none"}, default "permutation"
        What is subtracted from the plug-in information: the mean over random permutations, the exact expectation
        with both margins fixed, the published estimator's single misaligned copy, or nothing.
    n_permutations : int, default 3
    mode : {"auto", "cumulative", "batch-median"}, default "auto"
        Count over all rows, or score mini-batches and take the median. Past 1 GiB of codes, "cumulative" and "auto"
        keep counts with the target only; where those do not do (pairs, crosses, derived columns), "auto" turns to
        mini-batches.
    batch_rows : int, default 16384
        Rows of a mini-batch.
    normalize : {"min-max", "target-entropy"} or None, default None
        Divide by the entropy of the target (1 = determines it), or scale to [0, 1].
    interaction_order : int, default 1
        2 also ranks all crossed pairs ``A AND B``, 3 triples, and so on; their p-values test the gain over every
        parent.
    max_combinations : int, default 32768
        Crosses per mini-batch (or in all, counted over all rows); those evaluated least often go first.
    pairwise : bool, default False
        Score all pairs of columns as well, the target among them.
    controls : bool, default True
        Rank columns of pure noise along; ``above_control`` tells which features beat them all.
    transforms : {"default", "fw"} or None, default None
        Also rank transforms of numeric columns (:mod:`skerry.rank.transforms`).
    sub_features : sequence of str, default ()
        ``"A->B"``: A where B is one value, a column for each value. ``"A<->B"``: an indicator of each pair of values.
    multi_value : sequence of str, default ()
        Columns of lists (``x,y,z``): an indicator of each value.
    reference : path, sequence of str or None, default None
        Features a model already has: a surrogate heuristic then ranks each candidate jointly with them.
    missing : sequence of str, default ("", "{}")
        Symbols that count as no value for the coverage; null does always. They are ordinary values for the score.
    rare : int, default 1
        Values seen at most so often are rare.
    row_quality : bool, default False
        Also report on rows (``rows_``).
    subsampling : int, default 1
        Read every k-th row.
    k : int or None, default None
        Features that ``transform`` keeps; None keeps those above every control with ``q_value`` <= 0.05.
    random_state : int or None, default 0
        None is 0: rankings of two days must be comparable.
    n_jobs : int, default -1
        Threads; -1 for all. The result does not depend on it.

    Attributes
    ----------
    ranking_ : polars.DataFrame
        ``feature``, ``score`` (nats), ``z``, ``p_value``, ``q_value``, ``cardinality``, ``coverage`` (percent),
        ``bytes`` (mean per value), ``above_control``, and for crosses ``gain`` (over the better parent, corrected)
        and ``synergy`` (score minus those of its columns); best first.
    controls_ : polars.DataFrame
        The same for the control columns, with their ``kind``: "noise", or "reference" (the target, the row's hash).
    pairs_ : polars.DataFrame
        ``a``, ``b``, ``score``; the diagonal is the entropy.
    quality_, rare_values_, rows_ : polars.DataFrame
        Of columns; values seen at most ``rare`` times; of the first 2^20 rows.
    anomalies_ : list of str
        Constant, duplicate, drifting, leaking and broken columns, one sentence each.
    steps_3mr_ : list of dict
        Of the last ``rank_3mr``.
    scores_ : ndarray of shape (n_features_in_,)
    target_entropy_ : float
    n_rows_ : int
    mode_, target_ : str

    Notes
    -----
    z and p compare the plug-in information with a gamma law of the null's mean m and variance m/n, exact for large
    counts (2n·MI is then chi-squared) and conservative for sparse columns.

    Examples
    --------
    >>> import polars as pl
    >>> frame = pl.DataFrame({"id": range(200), "sign": [0, 1] * 100, "y": ["no", "yes"] * 100})
    >>> OutRank().fit(frame, target="y").ranking_["feature"].to_list()
    ['sign', 'id']
    """

    _parameter_constraints = {
        "heuristic": [StrOptions(set(HEURISTICS))],
        "correction": [StrOptions({"permutation", "expected", "shift", "none"})],
        "n_permutations": [Interval(Integral, 1, None, closed="left")],
        "mode": [StrOptions({"auto", "cumulative", "batch-median"})],
        "batch_rows": [Interval(Integral, 1, None, closed="left")],
        "normalize": [StrOptions({"min-max", "target-entropy"}), None],
        "interaction_order": [Interval(Integral, 1, 6, closed="both")],
        "max_combinations": [Interval(Integral, 1, None, closed="left")],
        "pairwise": ["boolean"],
        "controls": ["boolean"],
        "transforms": [StrOptions({"default", "fw"}), None],
        "sub_features": ["array-like"],
        "multi_value": ["array-like"],
        "reference": [str, Path, "array-like", None],
        "missing": ["array-like", set, frozenset],
        "rare": [Interval(Integral, 0, None, closed="left")],
        "row_quality": ["boolean"],
        "subsampling": [Interval(Integral, 1, None, closed="left")],
        "k": [Interval(Integral, 1, None, closed="left"), None],
        "random_state": [Interval(Integral, 0, None, closed="left"), None],
        "n_jobs": [Interval(Integral, 1, None, closed="left"), Options(Integral, {-1})],
    }

    def __init__(
        self,
        heuristic: str = "information",
        correction: str = "permutation",
        n_permutations: int = 3,
        mode: str = "auto",
        batch_rows: int = 16_384,
        normalize: str | None = None,
        interaction_order: int = 1,
        max_combinations: int = 32_768,
        pairwise: bool = False,
        controls: bool = True,
        transforms: str | None = None,
        sub_features: tuple[str, ...] = (),
        multi_value: tuple[str, ...] = (),
        reference: Any = None,
        missing: tuple[str, ...] = ("", "{}"),
        rare: int = 1,
        row_quality: bool = False,
        subsampling: int = 1,
        k: int | None = None,
        random_state: int | None = 0,
        n_jobs: int = -1,
    ) -> None:
        self.heuristic = heuristic
        self.correction = correction
        self.n_permutations = n_permutations
        self.mode = mode
        self.batch_rows = batch_rows
        self.normalize = normalize
        self.interaction_order = interaction_order
        self.max_combinations = max_combinations
        self.pairwise = pairwise
        self.controls = controls
        self.transforms = transforms
        self.sub_features = sub_features
        self.multi_value = multi_value
        self.reference = reference
        self.missing = missing
        self.rare = rare
        self.row_quality = row_quality
        self.subsampling = subsampling
        self.k = k
        self.random_state = random_state
        self.n_jobs = n_jobs

    # ---- fit -----------------------------------------------------------------------------------------------
    def fit(
        self,
        X: Any,
        y: Any = None,
        *,
        target: str = "label",
        engine: str = "local",
        on_progress: Callable[[int, int | None], None] | None = None,
    ) -> Self:
        """Rank the columns of ``X`` against its column ``target``, or against ``y`` of shape (n,) if given.

        Parameters
        ----------
        X : path, pandas / polars / pyarrow table, array of shape (n, p), or iterator of frames
        y : array of shape (n,), optional
        target : str, default "label"
        engine : {"local", "ray"}, default "local"
            Where columns are read and encoded: here, or by Ray Data (extra ``scale``) on the cluster that RAY_ADDRESS
            names, else on this machine; their counts are joined here. The ranking is the same, bit for bit, as long as
            no column has more than 2^18 values.
        on_progress : callable (rows read, rows in all or None), optional

        Raises
        ------
        DataError
            If the target is not a column or has one value, or there is no row.
        ParameterError
            If an argument is out of range, or ``engine="ray"`` meets a source that is no single table.
        MissingExtra
            If ``engine="ray"`` and Ray Data is not installed.
        """
        import numba

        from skerry.data.engine import check_engine
        from skerry.rank.fitting import Fit
        from skerry.rank.formats import is_outrank_folder

        check_engine(engine)
        if engine != "local" and (y is not None or hasattr(X, "__next__") or is_outrank_folder(X)):
            raise ParameterError(
                f"engine={engine!r} takes one table with its target in it, not y, a stream or a folder"
            )

        try:
            validate_parameter_constraints(self._parameter_constraints, self.get_params(deep=False), "OutRank")
        except InvalidParameterError as error:
            raise ParameterError(str(error)) from None
        if self.reference is not None and self.heuristic not in SURROGATES:
            raise ParameterError(f"a reference model needs a surrogate heuristic: {', '.join(SURROGATES)}")
        for text in self.sub_features:
            parse_operator(text)
        named = not isinstance(X, (list, np.ndarray))
        X, y = self._input(X, y)
        before = numba.get_num_threads()
        if self.n_jobs > 0:
            numba.set_num_threads(min(self.n_jobs, before))
        try:
            Fit(self, X, y, target, engine, on_progress).run()
            if named:
                self.feature_names_in_ = np.array(self._names, dtype=object)
            if self.heuristic == "MI-numba-3mr":
                self.rank_3mr()
        finally:
            numba.set_num_threads(before)
        return self

    def _input(self, X: Any, y: Any) -> tuple[Any, Any]:
        """Check arrays as scikit-learn does; paths, frames and streams are checked as they are read."""
        self.__dict__.pop("feature_names_in_", None)
        if isinstance(X, (list, np.ndarray)) or hasattr(X, "tocsr"):
            X = validate_data(self, X, dtype=None, ensure_all_finite="allow-nan", ensure_min_samples=2)
            if y is None:
                raise DataError("an array requires y to be passed, but the target y is None: give y, or a named table")
            X = _texts(X) if X.dtype.kind in "OUS" else X
        if y is not None:
            y = column_or_1d(y, warn=True)
        return X, y

    # ---- redundancy ----------------------------------------------------------------------------------------
    def rank_3mr(self, alpha: float = 1.0, beta: float = 1.0, aggregate: str = "median") -> list[dict[str, object]]:
        """Order the features by relevance - alpha * redundancy + beta * relation, each scaled to [0, 1].

        Redundancy is the score of a pair of features, relation that of their cross. Those not counted by ``fit`` are
        counted now if the codes are held (``mode_`` "cumulative", under 1 GiB); else they are 0, as in the published
        tool.

        Parameters
        ----------
        alpha, beta : float, default 1
        aggregate : {"median", "mean", "sum"}, default "median"
            Over the features chosen so far.

        Returns
        -------
        list of dict
            ``feature``, ``step``, ``score``, ``relevance``, ``redundancy``, ``relation``, in the order chosen.

        Examples
        --------
        >>> import polars as pl
        >>> x, z = np.arange(400) % 2, np.arange(400) // 2 % 2
        >>> frame = pl.DataFrame({"x": x, "copy": x, "z": z, "y": 2 * x + z})
        >>> [s["feature"] for s in OutRank(correction="expected").fit(frame, target="y").rank_3mr()]
        ['x', 'z', 'copy']
        """
        check_is_fitted(self)
        names, block = self._singles, self._block
        place = {name: j for j, name in enumerate(names)}
        p = len(names)
        red, syn = np.zeros((p, p)), np.zeros((p, p))
        if block is not None and not self._pairs.blocks:
            self._pairs.add([*block.names, self.target_], self._scorer.pairs(block))
        if block is not None and p > 1:
            given = self.n_features_in_
            todo = [c for c in itertools.combinations(range(given), 2) if self._cross_key(c) not in self.cross_scores_]
            scores = self._scorer.crosses(block, todo, given) if todo else []
            self.cross_scores_ |= {self._cross_key(c): s[0] for c, s in zip(todo, scores, strict=True)}
        if self._pairs.blocks:
            paired, matrix = self._pairs.median()
            at = np.array([place[n] for n in paired[:-1]])
            i, j = np.triu_indices(at.size, 1)
            red[at[i], at[j]] = unit_scale(matrix[i, j])
        pairs = {k: v for k, v in self.cross_scores_.items() if len(k) == 2}
        for (a, b), value in zip(pairs, unit_scale(list(pairs.values())), strict=True):
            syn[place[a], place[b]] = value
        self.steps_3mr_ = order_3mr(
            names, unit_scale(self._relevance), red + red.T, syn + syn.T, alpha=alpha, beta=beta, aggregate=aggregate
        )
        return self.steps_3mr_

    def _cross_key(self, combo: tuple[int, ...]) -> tuple[str, ...]:
        return tuple(self._names[j] for j in combo)

    def write(self, folder: str | Path) -> None:
        """Write all tables to ``folder``, in the names of the published tool where it has one.

        See :func:`skerry.rank.outputs.write_results` for the list.
        """
        from skerry.rank.outputs import write_results

        check_is_fitted(self)
        write_results(self, folder)

    # ---- selection -----------------------------------------------------------------------------------------
    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.string = True
        tags.input_tags.categorical = True
        tags.target_tags.required = True
        return tags

    def _get_support_mask(self) -> NDArray[np.bool_]:
        check_is_fitted(self)
        return (self._q <= 0.05) & self._above if self.k is None else self._top(self.k)

    def _top(self, k: int) -> NDArray[np.bool_]:
        mask = np.zeros(self.n_features_in_, dtype=bool)
        mask[np.argsort(-self.scores_, kind="stable")[:k]] = True
        return mask

    def transform(self, X: Any, k: int | None = None) -> Any:
        """Return the selected columns of ``X``, best ``k`` if given; a frame stays a frame of its kind.

        Raises
        ------
        DataError
            If a frame lacks a column, or an array has another number of columns, than ``fit`` saw.
        """
        check_is_fitted(self)
        mask = self.get_support() if k is None else self._top(k)
        if hasattr(X, "columns"):
            kept = set(X.column_names if hasattr(X, "column_names") else X.columns)
            lost = [n for n in self._names if n not in kept]
            if lost:
                raise DataError(f"X lacks the column {lost[0]!r} that the ranking was fitted on")
            chosen = [n for n, m in zip(self._names, mask, strict=True) if m]
            return X.select(chosen) if hasattr(X, "column_names") else X[chosen]
        X = validate_data(self, X, dtype=None, ensure_all_finite="allow-nan", reset=False)
        return X[:, mask]


def _texts(X: NDArray) -> Any:
    """Return an array of objects as a polars frame of text; None and NaN are null."""
    import polars as pl

    columns = ([None if v is None or v != v else str(v) for v in column] for column in X.T)
    return pl.DataFrame({f"x{j}": pl.Series(c, dtype=pl.String) for j, c in enumerate(columns)})
