import datetime as dt

import numpy as np
import polars as pl
import pytest

from skerry.core.errors import DataError, ModelError, ParameterError
from skerry.core.persistence import load, save
from skerry.data.tables import open_table
from skerry.detect.tabular.pca import PCA
from skerry.detect.tabular.pipeline import TableModel, _map, find_outliers

RNG = np.random.default_rng(0)
N = 400
FRAME = pl.DataFrame(
    {
        "amount": np.r_[RNG.normal(50, 5, N - 1), 900.0],
        "shop": ["abc"[i % 3] for i in range(N)],
        "day": [dt.date(2024, 1, 1) + dt.timedelta(days=i % 60) for i in range(N)],
        "fraud": [0] * (N - 1) + [1],
    }
)


def plain(found):
    """What a person reads, without the time it took."""
    return {k: v for k, v in found.to_dict().items() if k != "seconds"} | {
        "map": found.map_points,
        "scores": found.score_sample.tolist(),
    }


def test_the_planted_row_is_found_worded_and_measured():
    found = find_outliers(FRAME, detector="pca", label="fraud", threshold="contamination:0.01")
    assert found.flagged[0].row == N - 1
    assert found.flagged[0].reasons[0].startswith("`amount` 900 is above 99.75 % of rows")
    assert found.flagged[0].values["shop"] == FRAME["shop"][-1]
    assert found.metrics["auroc"] == 1.0
    assert found.n_flagged == 4
    assert "fraud" not in [c["column"] for c in found.columns]
    assert set(found.importance) == {"amount", "shop", "day"}
    np.testing.assert_allclose(sum(found.importance.values()), 1.0)


@pytest.mark.parametrize("batch_rows", [7, 399, 400, 10_000])
def test_batches_change_nothing(batch_rows, tmp_path):
    one = find_outliers(FRAME, detector="hbos", label="fraud")
    out = tmp_path / "s.parquet"
    other = find_outliers(FRAME, detector="hbos", label="fraud", batch_rows=batch_rows, out=out)
    np.testing.assert_array_equal(other.score_sample, one.score_sample)
    assert [f.row for f in other.flagged] == [f.row for f in one.flagged]
    assert [f.reasons for f in other.flagged] == [f.reasons for f in one.flagged]
    assert other.metrics == one.metrics
    assert other.map_points["row"] == one.map_points["row"]
    np.testing.assert_allclose(other.map_points["x"], one.map_points["x"], atol=2e-4)
    scored = pl.read_parquet(out)
    np.testing.assert_array_equal(scored["score"].to_numpy(), one.score_sample)
    assert scored["row"].to_list() == list(range(N))


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_the_file_of_scores_holds_every_row_and_the_reasons_of_the_flagged(tmp_path, kind):
    out = tmp_path / f"s.{kind}"
    found = find_outliers(FRAME, detector="pca", threshold="contamination:0.02", out=out, top=2, batch_rows=64)
    scored = pl.read_csv(out) if kind == "csv" else pl.read_parquet(out)
    assert scored.columns == ["row", "score", "p_value", "outlier", "reasons"]
    assert scored.height == N
    flagged = scored.filter("outlier")
    assert flagged.height == found.n_flagged == 8
    assert flagged["reasons"].str.len_chars().min() > 0  # of all flagged rows, not of the two that are shown
    assert scored.filter(~pl.col("outlier"))["reasons"].fill_null("").str.len_chars().max() == 0
    shown = {f.row: f for f in found.flagged}
    assert len(shown) == 2
    for row, finding in shown.items():
        line = scored.row(row, named=True)
        assert (line["score"], line["p_value"]) == (finding.score, finding.p_value)
        assert line["reasons"] == "; ".join(finding.reasons)


def test_without_explanations_nothing_is_worded(tmp_path):
    found = find_outliers(FRAME, detector="pca", explain=False, out=tmp_path / "s.csv")
    assert all(f.reasons == () for f in found.flagged)
    assert found.importance == {}


def test_a_saved_model_scores_as_the_fitted_one(tmp_path):
    kept = []
    found = find_outliers(FRAME, detector="isolation-forest", random_state=3, on_fitted=kept.append)
    again = load(save(kept[0], tmp_path / "m.skerry"))
    assert plain(find_outliers(FRAME, model=again)) == plain(found)
    one = find_outliers(FRAME[:1], model=again)  # one row suffices where nothing is fitted
    np.testing.assert_array_equal(one.score_sample, found.score_sample[:1])
    with pytest.raises(DataError, match=r"<DataFrame>: column 'amount' is missing"):
        find_outliers(FRAME.drop("amount"), model=again)
    with pytest.raises(ModelError, match="must be a fitted TableModel, got PCA"):
        find_outliers(FRAME, model=PCA())


def test_larger_tables_are_fitted_on_a_sample_and_scored_in_full():
    big = pl.DataFrame({"id": np.arange(5000), "x": RNG.normal(size=5000), "y": RNG.normal(size=5000)})
    found = find_outliers(big, detector="pca", sample_rows=500)
    assert found.rows == 5000
    assert "fitted on a uniform sample of 500 rows; every row was scored" in found.notes
    assert {c["column"]: c["kind"] for c in found.columns}["id"] == "identifier"
    assert len(found.map_points["row"]) <= 1500 + 20
    assert plain(find_outliers(big, detector="pca", sample_rows=500)) == plain(found)


def test_a_reference_of_normal_rows_is_what_is_fitted():
    clean = FRAME[: N - 1].drop("fraud")
    found = find_outliers(FRAME, detector="knn", reference=clean, threshold="contamination:0", label="fraud")
    assert [f.row for f in found.flagged] == [N - 1]
    assert found.flagged[0].reasons[0].startswith("`amount` 900 is above all rows")
    with pytest.raises(DataError, match="column 'amount' is missing"):
        find_outliers(FRAME.drop("amount"), detector="pca", reference=clean)


def test_conformal_without_power_says_so():
    found = find_outliers(FRAME.drop("fraud")[: N - 1], detector="hbos", threshold="conformal:0.01")
    assert found.n_flagged == 0
    assert "give rows known to be normal as the reference" in found.notes[-1]


def test_progress_counts_every_row():
    seen = []
    find_outliers(FRAME, detector="pca", batch_rows=150, on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(150, N), (300, N), (N, N)]


def test_the_same_seed_gives_the_same_findings():
    table = open_table(FRAME)
    one = find_outliers(table, detector="isolation-forest", random_state=5)
    assert plain(find_outliers(table, detector="isolation-forest", random_state=5)) == plain(one)
    other = find_outliers(table, detector="isolation-forest", random_state=6)
    assert not np.array_equal(other.score_sample, one.score_sample)


def test_bad_sizes_and_detectors():
    with pytest.raises(ParameterError, match="batches need at least one row"):
        find_outliers(FRAME, detector="pca", batch_rows=0)
    with pytest.raises(ParameterError, match="at least one row"):
        find_outliers(FRAME, detector="pca", sample_rows=0)
    with pytest.raises(ParameterError, match="unknown detector"):
        find_outliers(FRAME, detector="pcaa")


def test_a_source_that_changes_between_the_passes_is_told():
    class Shrinking:
        left = [400, 400, 300]

        def __call__(self, rows):
            return iter([FRAME[: self.left.pop(0)]])

    table = open_table(FRAME)
    table._batches = Shrinking()
    with pytest.raises(DataError, match="the source changed while it was read"):
        find_outliers(table, detector="pca")


def test_a_table_model_takes_any_detector_and_leaves_it_unfitted():
    detector = PCA()
    model = TableModel(detector).fit(FRAME)
    assert not hasattr(detector, "threshold_")
    X = model.encode(FRAME)
    np.testing.assert_allclose(X.mean(axis=0), 0, atol=1e-9)
    numeric = ~model.encoder_.weighted_
    np.testing.assert_allclose(X.std(axis=0)[numeric], 1, atol=1e-9)
    parts = model.contributions(X)
    assert set(parts) == {"amount", "shop", "day", "fraud"}
    np.testing.assert_allclose(sum(parts.values()), model.detector_.explain(X).sum(axis=1))


@pytest.mark.parametrize(("n", "d"), [(1, 3), (2, 3), (3, 2), (40, 200), (200, 40), (50, 1)])
def test_the_map_is_that_of_principal_components_however_wide_the_table(n, d):
    X = np.random.default_rng(n).normal(size=(n, d)) * np.linspace(1, 3, d)
    kept = X.copy()
    points = _map(X, np.arange(n), np.zeros(n), np.zeros(n, bool))
    np.testing.assert_array_equal(X, kept)
    Z = np.arcsinh(X)
    Z -= Z.mean(axis=0)
    left, size, _ = np.linalg.svd(Z, full_matrices=False)
    for axis, j in (("x", 0), ("y", 1)):
        found = np.array(points[axis])
        expected = left[:, j] * size[j] if j < size.size else np.zeros(n)
        assert min(np.abs(found - expected).max(), np.abs(found + expected).max()) < 2e-4
