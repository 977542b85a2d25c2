"""Tail kernels against counting loops."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from skerry.kernels import tails


def naive_terms(train, X):
    """-log P(X <= z), -log P(X >= z) by counting; beyond the range 1/n and the distance."""
    n = len(train)
    left, right = np.zeros(X.shape), np.zeros(X.shape)
    for j in range(X.shape[1]):
        column = train[:, j].astype(np.float64)
        wide = column.astype(np.longdouble)  # squares of the extremes leave float64
        scale = float(np.sqrt(((wide - wide.mean()) ** 2).mean())) or 1.0
        for i, z in enumerate(X[:, j].astype(np.float64)):
            left[i, j] = -np.log(max((column <= z).sum(), 1) / n)
            right[i, j] = -np.log(max((column >= z).sum(), 1) / n)
            if z < column.min():
                left[i, j] += np.log1p(min((column.min() - z) / scale, 1e300))
            if z > column.max():
                right[i, j] += np.log1p(min((z - column.max()) / scale, 1e300))
    return left, right


def cases():
    rng = np.random.default_rng(0)
    yield "random", rng.normal(size=(150, 4)), rng.normal(scale=3, size=(60, 4))
    yield "ties", rng.integers(0, 4, size=(90, 3)).astype(float), rng.integers(-2, 7, size=(50, 3)) / 2.0
    yield "one row", np.array([[2.0, -1.0]]), np.array([[2.0, -1.0], [3.0, -4.0], [1.0, 9.0]])
    yield "constant", np.full((30, 2), 5.0), np.array([[5.0, 5.0], [4.0, 7.0]])
    heavy = rng.standard_cauchy(size=(400, 2)) ** 3
    yield "heavy tails", heavy, np.vstack([heavy[:40], heavy[:20] * 1.5])
    f32 = rng.normal(size=(80, 2)).astype(np.float32)
    yield "float32", f32, np.vstack([f32[:20], f32[:20] * np.float32(1.01)])


@pytest.mark.parametrize(("train", "X"), [c[1:] for c in cases()], ids=[c[0] for c in cases()])
def test_small_tables_are_exact(train, X):
    table = tails.fit_tails(train)
    for got, want in zip(tails.tail_terms(X, table), naive_terms(train, X), strict=True):
        np.testing.assert_allclose(got, want, rtol=3e-7, atol=1e-7)


@pytest.mark.parametrize("kind", ["normal", "rounded", "spike"])
def test_large_tables_stay_within_the_promised_error(kind):
    rng = np.random.default_rng(1)
    n = 40_000
    column = rng.normal(size=n)
    if kind == "rounded":
        column = column.round(3)
    if kind == "spike":
        column[: n // 2] = 0.25
    table = tails.fit_tails(column[:, None])
    assert table.knots.size < 6_000
    X = np.r_[column[:3000], rng.normal(size=2000), np.sort(column)[[0, 1, 2, -3, -2, -1]]][:, None]
    X = np.clip(X, column.min(), column.max())
    left, right = tails.tail_terms(X, table)
    ordered = np.sort(column)
    for got, count in (
        (left, np.searchsorted(ordered, X[:, 0], side="right")),
        (right, n - np.searchsorted(ordered, X[:, 0], side="left")),
    ):
        exact = np.log(n / np.maximum(count, 1))
        assert np.abs(got[:, 0] - exact).max() < 1.001e-3 + 1e-6
        rare = count <= 400
        np.testing.assert_allclose(got[rare, 0], exact[rare], rtol=3e-7)


def test_terms_are_monotone():
    rng = np.random.default_rng(2)
    table = tails.fit_tails(rng.exponential(size=(30_000, 1)))
    left, right = tails.tail_terms(np.linspace(-3, 20, 5000)[:, None], table)
    assert (np.diff(left[:, 0]) <= 1e-7).all()
    assert (np.diff(right[:, 0]) >= -1e-7).all()


def test_extreme_magnitudes_stay_finite():
    train = np.array([[1e-300, -1e100], [2e-300, 1e100], [4e-300, 0.0]])
    table = tails.fit_tails(train)
    left, right = tails.tail_terms(np.array([[1e100, 1e100], [-1e100, -1e100], [3e-300, 5.0]]), table)
    assert np.isfinite(left).all()
    assert np.isfinite(right).all()
    assert np.isfinite(table.skewness).all()


@pytest.mark.parametrize("rule", [tails.TOTAL, tails.EITHER, tails.MEAN])
def test_score_joins_the_terms(rule):
    rng = np.random.default_rng(3)
    train, X = rng.exponential(size=(300, 5)), rng.exponential(size=(2100, 5)) - 0.2
    table = tails.fit_tails(train)
    use_right = np.array([True, False, True, True, False])
    left, right = tails.tail_terms(X, table)
    chosen = np.where(use_right, right, left)
    want = {
        tails.TOTAL: np.max([left.sum(1), right.sum(1), chosen.sum(1)], axis=0),
        tails.EITHER: np.maximum(left, right).sum(1),
        tails.MEAN: np.maximum((left + right) / 2, chosen).sum(1),
    }[rule]
    np.testing.assert_allclose(tails.score_tails(X, table, use_right, rule), want, rtol=1e-12)


@pytest.mark.parametrize("rule", [tails.TOTAL, tails.EITHER, tails.MEAN])
def test_explanations_are_the_terms_of_the_score(rule, monkeypatch):
    monkeypatch.setattr(tails, "EXPLAIN_VALUES", 400)  # several blocks
    rng = np.random.default_rng(4)
    train, X = rng.exponential(size=(200, 3)), rng.exponential(size=(500, 3)) - 0.2
    table, use_right = tails.fit_tails(train), np.array([True, False, True])
    parts = tails.explain_tails(X, table, use_right, rule)
    assert parts.shape == X.shape
    np.testing.assert_allclose(parts.sum(1), tails.score_tails(X, table, use_right, rule), rtol=1e-12)


@pytest.mark.parametrize(("dtype", "large"), [(np.float32, 1e37), (np.float64, 1e300)])
@given(data=st.data())
def test_hostile_values(data, dtype, large):
    known = np.array([0.0, -0.0, 1.0, -1.0, 0.1, 3.0, 1e-310, -1e-310, large, -large], dtype=dtype)
    values = st.sampled_from(known.tolist())
    d = data.draw(st.integers(1, 3))
    train, X = (data.draw(arrays(dtype, st.tuples(st.integers(1, 12), st.just(d)), elements=values)) for _ in range(2))
    table = tails.fit_tails(train)
    terms = tails.tail_terms(X, table)
    with np.errstate(over="ignore"):
        naive = naive_terms(train, X)
    for got, want in zip(terms, naive, strict=True):
        np.testing.assert_allclose(got, want, rtol=3e-7, atol=1e-6)
    got = tails.score_tails(X, table, table.skewness >= 0, tails.EITHER)
    np.testing.assert_allclose(got, np.maximum(*terms).sum(1), rtol=1e-12)
    assert np.isfinite(table.skewness).all()


def test_strided_tables_are_their_copies():
    wide = np.random.default_rng(5).normal(size=(300, 6))
    train, X = wide[::3, ::-2], wide[1::7, ::-2]
    table, same = tails.fit_tails(train), tails.fit_tails(train.copy())
    for a, b in zip(table.arrays(), same.arrays(), strict=True):
        np.testing.assert_array_equal(a, b)
    use_right = np.array([True, False, True])
    got = tails.score_tails(X, table, use_right, tails.TOTAL)
    np.testing.assert_array_equal(got, tails.score_tails(X.copy(), table, use_right, tails.TOTAL))
