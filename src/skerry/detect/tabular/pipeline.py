"""From a table of any kind and size to findings: sample, encode, fit, score batch by batch, word the reasons.

Memory is bounded by the sample (``sample_rows``), the batch and eight bytes a row for the scores.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from skerry.core.detector import Detector
from skerry.core.errors import DataError, ModelError
from skerry.core.findings import Finding, Findings
from skerry.core.threshold import Conformal, Threshold, conformal_p_value
from skerry.detect.tabular.label_column import label_metrics, read_labels
from skerry.detect.tabular.registry import make_detector
from skerry.detect.tabular.row_writer import RowWriter

if TYPE_CHECKING:
    import polars as pl

    from skerry.data.table import Table

__all__ = ["TableModel", "find_outliers"]

MAP_ROWS = 1500  # rows in the report's map and score plot
N_REASONS = 3


class TableModel(BaseEstimator):
    """An encoder, a scale and a detector: what is saved, and what scores raw frames.

    Parameters
    ----------
    detector : str or Detector, default "ensemble"
        A name of :func:`make_detector`, or an unfitted detector.
    threshold : str, float or Threshold, default "auto"
    random_state : int or None, default None

    Attributes
    ----------
    encoder_ : TableEncoder
    detector_ : Detector
        Fitted on encoded columns, each centred and (but for level indicators) divided by its standard deviation.

    Examples
    --------
    >>> import polars as pl
    >>> frame = pl.DataFrame({"amount": [i % 20 for i in range(60)] + [900]})
    >>> model = TableModel("pca").fit(frame)
    >>> int(model.anomaly_score(frame).argmax())
    60
    """

    def __init__(
        self,
        detector: str | Detector = "ensemble",
        threshold: str | float | Threshold = "auto",
        random_state: int | None = None,
    ) -> None:
        self.detector = detector
        self.threshold = threshold
        self.random_state = random_state

    def fit(self, frame: pl.DataFrame, y: Any = None, positions: NDArray[np.int64] | None = None) -> Self:
        """Learn encoding, scale and detector from ``frame``; ``y`` is ignored.

        ``positions`` are the rows' places in the table that ``frame`` was sampled from.
        """
        from sklearn.base import clone

        from skerry.data.encoder import TableEncoder

        self.encoder_ = TableEncoder().fit(frame, positions=positions)
        X = self.encoder_.transform(frame)
        self.location_ = X.mean(axis=0)
        scale = X.std(axis=0)
        self.scale_ = np.where((scale > 0) & ~self.encoder_.weighted_, scale, 1.0)
        detector = (
            clone(self.detector)
            if isinstance(self.detector, Detector)
            else make_detector(self.detector, threshold=self.threshold, random_state=self.random_state)
        )
        self.detector_ = detector.fit(self._scaled(X))
        return self

    def _scaled(self, X: NDArray[np.float64]) -> NDArray[np.float64]:
        X -= self.location_
        X /= self.scale_
        return X

    def encode(self, frame: pl.DataFrame) -> NDArray[np.float64]:
        """Return the encoded, scaled features of ``frame``, shape (n, d)."""
        check_is_fitted(self)
        return self._scaled(self.encoder_.transform(frame))

    def anomaly_score(self, frame: pl.DataFrame) -> NDArray[np.float64]:
        """Return one score per row, higher = more anomalous."""
        return self.detector_.anomaly_score(self.encode(frame))

    def contributions(self, X: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        """Return for each original column its contribution to the score of each row of encoded ``X``."""
        by_feature = self.detector_.explain(X)
        out: dict[str, NDArray[np.float64]] = {}
        for j, feature in enumerate(self.encoder_.get_feature_names_out()):
            column = self.encoder_.feature_column_[feature]
            out[column] = out[column] + by_feature[:, j] if column in out else by_feature[:, j]
        return out

    def reasons(self, frame: pl.DataFrame, X: NDArray[np.float64]) -> tuple[list[tuple[str, ...]], dict[str, float]]:
        """Return the reasons of each row, and the summed positive contribution of each column."""
        parts = self.contributions(X)
        columns = list(parts)
        matrix = np.column_stack([np.maximum(parts[c], 0.0) for c in columns])
        order = np.argsort(-matrix, axis=1, kind="stable")[:, :N_REASONS]
        values = {c: frame[c].to_list() for c in {columns[j] for j in np.unique(order)}}
        worded = []
        for i, best in enumerate(order):
            top = matrix[i, best[0]]
            worded.append(
                tuple(self.encoder_.reason(columns[j], values[columns[j]][i]) for j in best if matrix[i, j] > 0.1 * top)
            )
        share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), np.finfo(float).tiny)
        return worded, dict(zip(columns, share.sum(axis=0).tolist(), strict=True))


def find_outliers(
    source: Any,
    *,
    detector: str | Detector = "ensemble",
    threshold: str | float | Threshold = "auto",
    label: str | None = None,
    reference: Any = None,
    model: TableModel | None = None,
    explain: bool = True,
    top: int = 20,
    out: str | Path | None = None,
    sample_rows: int = 200_000,
    batch_rows: int = 65_536,
    engine: str = "local",
    random_state: int | None = 0,
    on_progress: Callable[[int, int | None], None] | None = None,
    on_fitted: Callable[[TableModel], None] | None = None,
) -> Findings:
    """Find the rows of a table that do not belong.

    Parameters
    ----------
    source : path, "-" or table
        Anything that :func:`skerry.data.open_table` reads.
    detector, threshold, random_state
        As in :class:`TableModel`.
    label : str, optional
        A 0/1 column kept out of the features; metrics against it are reported. The array ``y`` of an ``.npz`` is
        taken as one, and a note says why where it allows no metrics.
    reference : path or table, optional
        Rows known to be normal: the detector is fitted and calibrated on them instead of on ``source``.
    model : TableModel, optional
        A fitted model: nothing is fitted, ``source`` is only scored.
    explain : bool, default True
        Word the reasons of flagged rows.
    top : int, default 20
        Flagged rows kept in the findings.
    out : path, optional
        ``.parquet`` or ``.csv`` with ``row``, ``score``, ``p_value``, ``outlier`` and ``reasons`` of all rows.
    sample_rows : int, default 200,000
        Larger tables are fitted on a uniform sample of this many rows.
    batch_rows : int, default 65,536
    engine : {"local", "ray"}, default "local"
        Where rows are scored: here, or by Ray Data (extra ``scale``) on the cluster that RAY_ADDRESS names, else on
        this machine. The result is the same, bit for bit.
    on_progress : callable (rows done, rows in all or None), optional
    on_fitted : callable (TableModel), optional
        Receives the model before scoring, to keep or save it.

    Returns
    -------
    Findings

    Raises
    ------
    DataError
        If the source cannot be read or used, if ``label`` has another value than 0 and 1 or only one of them, or
        if ``out`` cannot be written or is the source itself. Nothing is then written.
    MissingExtra
        If ``engine="ray"`` and Ray Data is not installed.
    """
    from skerry.data.engine import check_engine
    from skerry.data.tables import open_table

    check_engine(engine)
    started = time.perf_counter()
    if model is not None and not isinstance(model, TableModel):
        raise ModelError(f"model must be a fitted TableModel, got {type(model).__name__}")
    writer = None if out is None else RowWriter(Path(out))
    table = open_table(source)
    fitted_on = table if reference is None else open_table(reference)
    if writer is not None:
        writer.spare([*table.files, *fitted_on.files])
    if label is not None and label not in table.columns:
        raise DataError(f"{table.name}: no label column {label!r}; columns are {', '.join(table.columns[:20])}")
    notes = list(table.notes)
    fresh = model is None and reference is None  # fitted on the very rows that it scores
    implied = label is None and table.name.endswith(".npz") and "y" in table.columns
    if implied:
        label = "y"
        notes.append("the array y was taken as the label and kept out of the features")
    if model is None:
        with _named(fitted_on):
            frame, positions = _fitting_sample(fitted_on, sample_rows, random_state, notes)
            frame = frame.drop(label) if label is not None and label in frame.columns else frame
            model = TableModel(detector, threshold, random_state).fit(frame, positions=positions)
    if on_fitted is not None:
        on_fitted(model)
    with _named(table, writer):
        scored = _score_stream(
            model, table, label, implied, explain, top, writer, batch_rows, engine, random_state, on_progress, notes
        )
    rule = model.detector_.threshold_rule_
    if isinstance(rule, Conformal) and reference is None and scored["n_flagged"] == 0:
        notes.append(
            "conformal: nothing stands out at this false discovery rate; a table that is its own reference "
            "leaves little power, give rows known to be normal as the reference"
        )
    if scored["n_flagged"] > scored["rows"] / 2 and scored["rows"] > 1 and not fresh:
        notes.append(
            "more than half of the rows are beyond the threshold: what the detector was fitted on may be another kind "
            "of table, or in other units"
        )
    return Findings(
        source=table.name,
        features=model.detector_.n_features_in_,
        detector=type(model.detector_).__name__,
        threshold_rule=str(rule),
        seconds=time.perf_counter() - started,
        columns=[_plain(c) for c in model.encoder_.report_],
        notes=notes,
        **scored,
    )


@contextmanager
def _named(table: Table, writer: RowWriter | None = None) -> Iterator[None]:
    """Put the table's name, and what was found out about it, into an error that knows only a column."""
    try:
        yield
    except DataError as error:
        if table.name in str(error) or (writer is not None and str(error).startswith(str(writer.path))):
            raise
        found = f" ({'; '.join(table.notes)})" if table.notes else ""
        raise DataError(f"{table.name}: {error}{found}") from None


def _plain(report: Any) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(report)


def _fitting_sample(
    table: Table, sample_rows: int, random_state: int | None, notes: list[str]
) -> tuple[pl.DataFrame, NDArray[np.int64] | None]:
    from skerry.data.tables import reservoir_sample

    if table.n_rows is not None and table.n_rows <= sample_rows:
        return table.read(), None
    frame, positions = reservoir_sample(table, sample_rows, random_state)
    if frame.height == sample_rows:
        notes.append(f"fitted on a uniform sample of {sample_rows:,} rows; every row was scored")
    return frame, positions


@dataclass(frozen=True)
class _Scorer:
    """What is done to each batch, wherever that is: scores, labels, and what is wrong with a label nobody asked for."""

    model: TableModel
    label: str | None
    implied: bool

    def __call__(self, start: int, frame: pl.DataFrame) -> tuple[NDArray[np.float64], NDArray | None, str]:
        y, told = None, ""
        if self.label is not None:
            try:
                y = read_labels(frame[self.label], self.label, start)
            except DataError as error:
                if not self.implied:  # nobody called y a label of outliers
                    raise
                told = str(error)
        return self.model.anomaly_score(frame), y, told


def _score_stream(
    model: TableModel,
    table: Table,
    label: str | None,
    implied: bool,
    explain: bool,
    top: int,
    writer: RowWriter | None,
    batch_rows: int,
    engine: str,
    random_state: int | None,
    on_progress: Callable[[int, int | None], None] | None,
    notes: list[str],
) -> dict[str, Any]:
    """Two passes at most: scores and the decision, then the rows that the decision concerns."""
    from skerry.data.engine import map_batches

    detector = model.detector_
    scores, labels = [], []
    done = 0
    for s, y, told in map_batches(table, _Scorer(model, label, implied), batch_rows, engine):
        if told and label is not None:
            notes.append(f"no metrics: {told}")
            label = None
        labels.append(y)
        scores.append(s)
        done += s.size
        if on_progress:
            on_progress(done, table.n_rows)
    if not scores:
        raise DataError(f"{table.name}: no rows to score")
    y = np.concatenate(labels) if label is not None else None
    if y is not None and y.min() == y.max():  # told before anything is written
        told = f"label column {label!r} holds only the class {int(y[0])}: metrics need both 0 and 1"
        if not implied:
            raise DataError(told)
        notes.append(f"no metrics: {told}")
        y = None
    s = np.concatenate(scores)
    p = conformal_p_value(detector.reference_scores_, s)
    flagged = detector.threshold_rule_.flag(s, detector.threshold_, p)
    cutoff = detector.threshold_
    if isinstance(detector.threshold_rule_, Conformal):
        cutoff = float(s[flagged].min()) if flagged.any() else np.inf

    flagged_rows = np.flatnonzero(flagged)
    if flagged_rows.size == 0 and not isinstance(detector.threshold_rule_, Conformal):
        notes.append(
            f"nothing is above the threshold; the highest score is {s.max():.4g}, of row {s.argmax()}, and the "
            "threshold contamination:0.01 would flag one row in a hundred"
        )
    ranked = flagged_rows[np.argsort(-s[flagged_rows], kind="stable")]
    wanted = flagged_rows if writer is not None else np.sort(ranked[:top])
    rng = np.random.default_rng(random_state)
    shown = np.arange(s.size) if s.size <= MAP_ROWS else np.sort(rng.choice(s.size, MAP_ROWS, replace=False))
    shown = np.union1d(shown, ranked[:top])

    found: dict[int, Finding] = {}
    importance: dict[str, float] = {}
    points: list[NDArray] = []
    keep = set(ranked[:top].tolist())
    start = 0
    with ExitStack() as stack:
        if writer is not None:
            stack.enter_context(writer)
        for frame in table.batches(batch_rows):
            stop = start + frame.height
            rows = wanted[(wanted >= start) & (wanted < stop)]
            text: dict[int, tuple[str, ...]] = {}
            if rows.size:
                part = frame[rows - start]
                if explain:
                    worded, share = model.reasons(part, model.encode(part))
                    text = dict(zip(rows.tolist(), worded, strict=True))
                    for column, value in share.items():
                        importance[column] = importance.get(column, 0.0) + value
                for i, row in enumerate(rows.tolist()):
                    if row in keep:
                        found[row] = Finding(
                            row, float(s[row]), float(p[row]), text.get(row, ()), part.row(i, named=True)
                        )
            mine = shown[(shown >= start) & (shown < stop)]
            if mine.size:
                points.append(model.encode(frame[mine - start]))
            if writer is not None:
                writer.write(start, s[start:stop], p[start:stop], flagged[start:stop], text)
            start = stop
    if start != s.size:
        raise DataError(f"{table.name}: the source changed while it was read ({s.size} rows, then {start})")

    total = sum(importance.values()) or 1.0
    return {
        "rows": int(s.size),
        "threshold": float(cutoff),
        "n_flagged": int(flagged_rows.size),
        "flagged": [found[r] for r in ranked[:top].tolist()],
        "score_sample": s if s.size <= 100_000 else s[np.sort(rng.choice(s.size, 100_000, replace=False))],
        "importance": dict(sorted(((c, v / total) for c, v in importance.items()), key=lambda kv: -kv[1])),
        "map_points": _map(np.concatenate(points), shown, s, flagged),
        "metrics": {} if y is None else label_metrics(y, s, flagged),
    }


def _map(X: NDArray, rows: NDArray, s: NDArray, flagged: NDArray) -> dict[str, list]:
    """Principal components of the tamed features: a map in which one wild value does not squash the rest."""
    Z = np.arcsinh(X)
    Z -= Z.mean(axis=0)
    if min(Z.shape) == 1:
        xy = np.column_stack([Z[:, 0], np.zeros(len(Z))])
    else:
        from scipy.linalg import eigh

        wide = Z.shape[1] > Z.shape[0]  # then the products of rows are fewer than those of columns
        gram = Z @ Z.T if wide else Z.T @ Z
        values, vectors = eigh(gram, subset_by_index=[len(gram) - 2, len(gram) - 1])
        values, vectors = values[::-1], vectors[:, ::-1]
        xy = vectors * np.sqrt(np.maximum(values, 0.0)) if wide else Z @ vectors
        weights = Z.T @ vectors if wide else vectors
        xy *= np.where(weights[np.abs(weights).argmax(axis=0), [0, 1]] < 0, -1.0, 1.0)
    return {
        "x": np.round(xy[:, 0], 4).tolist(),
        "y": np.round(xy[:, 1], 4).tolist(),
        "score": s[rows].tolist(),
        "row": rows.tolist(),
        "outlier": flagged[rows].tolist(),
    }
