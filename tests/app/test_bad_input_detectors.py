"""Each detector on tables that are too small, too equal, too large or of another type: finite scores or one line."""

import warnings

import numpy as np
import pytest

from skerry.core.errors import DataError, SkerryWarning
from skerry.detect.tabular.registry import DETECTORS, make_detector

SMALL = {
    "autoencoder": {"epochs": 3, "n_models": 1},
    "autood": {"n_children": 2, "child_epochs": 2, "final_epochs": 2, "ensemble": 1},
}
RNG = np.random.default_rng(0)
X = RNG.normal(size=(80, 4))
FRESH = RNG.normal(size=(9, 4))


@pytest.fixture(params=sorted(DETECTORS))
def make(request):
    if request.param in SMALL:
        pytest.importorskip("torch", reason="needs the extra 'deep'")
    return lambda **options: make_detector(request.param, random_state=0, **SMALL.get(request.param, {}), **options)


def sound(detector, table, fresh=None):
    """Scores, threshold, decisions and explanations are finite, of the right shape, and the same again."""
    for rows in (table, table[:1]) if fresh is None else (table, table[:1], fresh):
        scores = detector.anomaly_score(rows)
        assert scores.shape == (len(rows),)
        assert np.isfinite(scores).all()
        assert detector.is_outlier(rows).dtype == bool
        p = detector.p_value(rows)
        assert ((p > 0) & (p <= 1)).all()
        np.testing.assert_array_equal(detector.anomaly_score(rows), scores)
    assert not np.isnan(detector.threshold_)
    assert np.isfinite(detector.explain(table[:3])).all()


def fit_or_say_why(detector, table, fresh=None):
    """Fit and check, or refuse in one line that names what is too little."""
    error = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SkerryWarning)
        try:
            detector.fit(table)
        except DataError as caught:
            error = str(caught)
        if error is None:
            return sound(detector, table, fresh)
    assert "\n" not in error
    return error


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_few_rows(make, rows):
    error = fit_or_say_why(make(), X[:rows], FRESH)
    assert error is None or (rows == 1 and "sample" in error), error


@pytest.mark.parametrize("rule", ["contamination:0.1", "extreme:1e-3", "conformal:0.05"])
@pytest.mark.parametrize("rows", [1, 2])
def test_every_threshold_on_few_rows(make, rule, rows):
    error = fit_or_say_why(make(threshold=rule), X[:rows])
    assert error is None or "needs at least 2 rows" in error or ("sample" in error and rows == 1), error


def test_one_column(make):
    assert fit_or_say_why(make(), X[:, :1], FRESH[:, :1]) is None


@pytest.mark.parametrize("value", [0.0, -1e300])
def test_all_equal(make, value):
    assert fit_or_say_why(make(), np.full((50, 3), value), np.full((4, 3), value)) is None


def test_two_rows_repeated(make):
    table = np.repeat(X[:2], 30, axis=0)
    assert fit_or_say_why(make(), table, FRESH) is None


def test_more_columns_than_rows(make):
    assert fit_or_say_why(make(), RNG.normal(size=(8, 60)), RNG.normal(size=(3, 60))) is None


@pytest.mark.parametrize("huge", [-1.7e308, np.finfo(np.float64).tiny])
def test_numbers_at_the_ends_of_the_range(make, huge):
    table = X.copy()
    table[3, 1] = huge
    assert fit_or_say_why(make(), table, FRESH) is None
    table[:, 2] = np.tanh(table[:, 2]) * huge
    assert fit_or_say_why(make(), table, FRESH) is None


def test_huge_numbers_at_score_time(make):
    detector = make().fit(X)
    wild = FRESH.copy()
    wild[0, 0], wild[1] = 1e308, -1e308
    with pytest.warns(SkerryWarning, match="were clipped"):
        scores = detector.anomaly_score(wild)
    assert np.isfinite(scores).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int64, np.uint8, bool])
def test_any_type_of_number(make, dtype):
    table, fresh = (np.abs(10 * a).astype(dtype) if dtype is not bool else a > 0 for a in (X, FRESH))
    kept = table.copy()
    detector = make().fit(table)
    sound(detector, table, fresh)
    np.testing.assert_array_equal(table, kept)
    np.testing.assert_allclose(
        detector.anomaly_score(fresh), detector.anomaly_score(fresh.astype(np.float64)), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (np.empty((0, 4)), "0 sample"),
        (np.empty((4, 0)), "0 feature"),
        (np.zeros(4), "2D array"),
        (np.zeros((2, 3, 4)), "dim 3|3D|dimension"),
        (np.array([["a", "b"], ["c", "d"]]), "could not convert|numeric"),
        (np.array([[1.0, "x"], [2.0, None]], dtype=object), "could not convert|float"),
        (np.zeros((4, 2), complex), "[Cc]omplex"),
        (np.array([[1.0, np.nan], [2.0, 3.0]]), "NaN .* row 0, column 1"),
        (np.array([[1.0, 0.0], [-np.inf, 3.0]]), "infinity .* row 1, column 0"),
    ],
)
def test_what_is_no_table_of_numbers(make, table, message):
    with pytest.raises(DataError, match=message):
        make().fit(table)


@pytest.mark.parametrize("width", [1, 3, 5])
def test_another_width_at_score_time(make, width):
    detector = make().fit(X)
    for call in (detector.anomaly_score, detector.is_outlier, detector.predict, detector.explain, detector.p_value):
        with pytest.raises(DataError, match=f"X has {width} features, but .* is expecting 4 features"):
            call(np.zeros((5, width)))
