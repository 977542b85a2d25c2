"""The q-Gaussian mixed model: robustness, monotone rounds, covariance, choice of strength, what "joint" does not do."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.estimator_checks import check_estimator

from skerry.core.errors import DataError, ParameterError
from skerry.robust.mixed_effects import QGaussianMixedModel


def _data(seed=0, p=8, shift=0.0):
    rng = np.random.default_rng(seed)
    g = np.repeat(np.arange(40), 4)
    X = rng.normal(size=(160, p))
    y = X[:, :3] @ [2.0, -2.0, 1.5] + rng.normal(size=160) + 0.7 * rng.normal(size=40)[g]
    y[g < 4] += shift
    return X, y, g


def _slopes(seed=0, groups=60, each=8):
    """Random intercepts (sd 1) and slopes (sd 0.8) of correlation -0.5, on a column in its own units."""
    rng = np.random.default_rng(seed)
    g = np.repeat(np.arange(groups), each)
    frame = pd.DataFrame({"dose": rng.normal(size=g.size), "time": 3.0 + 2.0 * rng.random(g.size)})
    D = np.array([[1.0, -0.4], [-0.4, 0.64]])
    b = rng.multivariate_normal([0, 0], D, size=groups)
    noise = 0.3 * rng.normal(size=g.size)
    y = 1.5 * frame["dose"].to_numpy() + b[g, 0] + b[g, 1] * frame["time"].to_numpy() + noise
    return frame, y, g, D, b


@pytest.mark.parametrize("random", [None, "intercept", "1 + x1"])
@pytest.mark.parametrize("penalty", ["scad", "mcp", "l1"])
@settings(max_examples=3, deadline=None)
@given(seed=st.integers(0, 1000), shift=st.sampled_from([0.0, 12.0, 1e3]), alpha=st.sampled_from([0.0, 0.05, 0.3]))
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_objective_never_rises(penalty, random, seed, shift, alpha):
    X, y, g = _data(seed=seed, p=4, shift=shift)
    model = QGaussianMixedModel(alpha=alpha, penalty=penalty, random=random, max_iter=8).fit(X, y, groups=g)
    assert len(model.objective_) > 1 and np.diff(model.objective_).max() <= 1e-9


@pytest.mark.parametrize(
    "options", [{}, {"random": "1 + x2"}, {"random": None, "correlation": "ar1"}, {"correlation": "ar1"}]
)
def test_gaussian_limit_is_generalised_least_squares(options):
    X, y, g = _data(p=5)
    model = QGaussianMixedModel(df=np.inf, alpha=0.0, **options).fit(X, y, groups=g)
    Z = np.column_stack([np.ones(160), X[:, 2]])[:, : len(model.random_names_)]
    psi = Z @ (model.random_covariance_ / model.scale_**2) @ Z.T
    lag = np.abs(np.subtract.outer(np.arange(160), np.arange(160)))
    psi = (psi + (model.correlation_**lag if "correlation" in options else lag == 0)) * (g[:, None] == g)
    A, W = np.column_stack([np.ones(160), X]), np.linalg.inv(psi)
    expected = np.linalg.solve(A.T @ W @ A, A.T @ W @ y)
    assert np.r_[model.intercept_, model.coef_] == pytest.approx(expected, abs=1e-4)
    r = y - A @ np.r_[model.intercept_, model.coef_]
    assert model.scale_**2 == pytest.approx(r @ W @ r / 160, rel=1e-3)
    close = QGaussianMixedModel(df=1e6, alpha=0.0, **options).fit(X, y, groups=g)
    assert close.coef_ == pytest.approx(model.coef_, abs=1e-3)


def test_likelihood_agrees_with_statsmodels():
    mixed = pytest.importorskip("statsmodels.regression.mixed_linear_model")
    frame, y, g, D, b = _slopes()
    A = np.column_stack([np.ones(len(y)), frame])
    theirs = mixed.MixedLM(y, A, g, exog_re=A[:, [0, 2]]).fit(reml=False)
    ours = QGaussianMixedModel(random="1 + time", alpha=0.0, df=np.inf).fit(frame, y, groups=g)
    assert ours.log_likelihood_ == pytest.approx(theirs.llf, abs=0.02)
    assert ours.coef_ == pytest.approx(np.asarray(theirs.fe_params)[1:], abs=5e-3)
    assert ours.random_covariance_ == pytest.approx(np.asarray(theirs.cov_re), abs=0.05 * np.abs(theirs.cov_re).max())


def test_random_slopes_come_back_in_the_columns_units():
    frame, y, g, D, b = _slopes()
    model = QGaussianMixedModel(random="1 + time", alpha=0.0).fit(frame, y, groups=g)
    assert model.random_names_ == ["intercept", "time"]
    assert model.random_effects_.shape == (60, 2)
    truth = b[:, 0] + 4 * b[:, 1]  # at the middle of time, where intercept and slope are not confounded
    found = model.intercept_ + model.random_effects_ @ [1.0, 4.0] + 4 * model.coef_[1]
    assert np.corrcoef(truth, found)[0, 1] > 0.98
    assert model.random_covariance_[1, 1] == pytest.approx(0.64, rel=0.5)
    fixed = QGaussianMixedModel(alpha=0.0).fit(frame, y, groups=g)
    assert model.log_likelihood_ > fixed.log_likelihood_ + 20
    assert np.mean((y - model.predict(frame, groups=g)) ** 2) < 0.5 * np.mean((y - fixed.predict(frame, groups=g)) ** 2)
    moved = frame.assign(time=100 + 7 * frame["time"])
    again = QGaussianMixedModel(random="1 + time", alpha=0.0).fit(moved, y, groups=g)
    assert again.log_likelihood_ == pytest.approx(model.log_likelihood_, abs=1e-3)
    with pytest.raises(ParameterError, match="no column 'tim'; did you mean 'time'"):
        QGaussianMixedModel(random="1 + tim").fit(frame, y, groups=g)


def test_correlation_of_neighbouring_rows_is_found():
    rng = np.random.default_rng(0)
    g, X = np.repeat(np.arange(50), 10), rng.normal(size=(500, 3))
    e = rng.normal(size=500)
    for t in range(1, 500):
        if g[t] == g[t - 1]:
            e[t] = 0.7 * e[t - 1] + np.sqrt(1 - 0.49) * e[t]
    y = X @ [1.0, 0.0, -1.0] + e
    serial = QGaussianMixedModel(random=None, correlation="ar1", alpha=0.0).fit(X, y, groups=g)
    assert serial.correlation_ == pytest.approx(0.7, abs=0.08)
    equal = QGaussianMixedModel(random=None, correlation="compound_symmetry", alpha=0.0).fit(X, y, groups=g)
    intercept = QGaussianMixedModel(alpha=0.0).fit(X, y, groups=g)
    assert serial.log_likelihood_ > equal.log_likelihood_ + 20
    assert equal.log_likelihood_ == pytest.approx(intercept.log_likelihood_, abs=0.05)  # the same model, rho >= 0
    within = intercept.random_covariance_[0, 0]
    assert equal.correlation_ == pytest.approx(within / (within + intercept.scale_**2), abs=0.02)
    with pytest.raises(ParameterError, match="contains the random intercept"):
        QGaussianMixedModel(correlation="compound_symmetry").fit(X, y, groups=g)


def test_rivals_within_a_cluster_have_negative_correlation():
    rng = np.random.default_rng(0)
    g, e = np.repeat(np.arange(60), 4), rng.normal(size=240)
    e -= 0.8 * (np.bincount(g, e) / 4)[g]
    X = rng.normal(size=(240, 2))
    model = QGaussianMixedModel(random=None, correlation="compound_symmetry", alpha=0.0).fit(X, X[:, 0] + e, groups=g)
    assert model.correlation_ < -0.2


def test_kinship_explains_families():
    rng = np.random.default_rng(0)
    families = np.repeat(np.arange(50), 6)
    K = 0.5 * (families[:, None] == families) + 0.5 * np.eye(300)
    X = rng.normal(size=(300, 3))
    genetic = np.linalg.cholesky(2.0 * K) @ rng.normal(size=300)
    y = X @ [1.0, 0.0, 0.0] + genetic + rng.normal(size=300)
    options = {"random": None, "correlation": "kinship", "alpha": 0.0}
    model = QGaussianMixedModel(**options).fit(X, y, groups=families, kinship=K)
    plain = QGaussianMixedModel(random=None, alpha=0.0).fit(X, y, groups=families)
    assert model.log_likelihood_ > plain.log_likelihood_ + 5
    assert 0.5 < model.correlation_ < 8.0
    whole = QGaussianMixedModel(df=np.inf, **options).fit(X, y, kinship=K)  # one cluster: everybody
    parts = QGaussianMixedModel(df=np.inf, **options).fit(X, y, groups=families, kinship=K)
    assert whole.coef_ == pytest.approx(parts.coef_, abs=1e-5)
    with pytest.raises(ParameterError, match="go together"):
        QGaussianMixedModel().fit(X, y, kinship=K)
    with pytest.raises(DataError, match="kinship must be finite and of shape"):
        QGaussianMixedModel(**options).fit(X, y, kinship=K[:3])


@pytest.mark.parametrize("scattered", [False, True])
@pytest.mark.parametrize("random", [None, "intercept"])
def test_a_tenth_of_the_clusters_moves_the_effects_little(random, scattered):
    X, y, g = _data()
    clean = QGaussianMixedModel(alpha=0.15, random=random).fit(X, y, groups=g)
    rng = np.random.default_rng(0)
    distances = []
    for size in (50.0, 1e4, 1e8):
        spoilt = y.copy()
        spoilt[g < 4] += size * (rng.normal(size=16) if scattered else 1.0)
        model = QGaussianMixedModel(alpha=0.15, random=random).fit(X, spoilt, groups=g)
        distances.append(np.linalg.norm(model.coef_ - clean.coef_))
        assert model.weights_[g < 4].max() < 0.1 < np.median(model.weights_)
        assert np.linalg.norm(model.coef_ - [2, -2, 1.5, 0, 0, 0, 0, 0]) < 0.6
    assert max(distances) < 0.5


def test_the_chosen_strength_finds_the_signals_by_either_rule():
    X, y, g = _data(p=60)
    y[g < 4] += np.random.default_rng(0).normal(size=16) * 30
    by_ebic = QGaussianMixedModel(n_alphas=12).fit(X, y, groups=g)  # more columns than clusters: "auto" is "ebic"
    assert set(np.flatnonzero(by_ebic.coef_)) == {0, 1, 2}
    assert by_ebic.alpha_ == by_ebic.alphas_[np.argmin(by_ebic.criterion_)]
    assert len(by_ebic.coef_path_) == len(by_ebic.alphas_) == len(by_ebic.criterion_)
    np.testing.assert_array_equal(
        QGaussianMixedModel(alpha="ebic", n_alphas=12).fit(X, y, groups=g).coef_, by_ebic.coef_
    )
    narrow = X[:, :10]
    crossed = QGaussianMixedModel(n_alphas=6, random=None).fit(narrow, y, groups=g)
    assert {0, 1, 2} <= set(np.flatnonzero(crossed.coef_))
    assert crossed.alpha_ >= crossed.alphas_[np.argmin(crossed.criterion_)]
    again = QGaussianMixedModel(n_alphas=6, random=None, alpha="cv").fit(narrow, y, groups=g)
    np.testing.assert_array_equal(again.coef_, crossed.coef_)


def test_the_strength_that_keeps_everything_out():
    X, y, g = _data(p=20)
    model = QGaussianMixedModel(alpha="ebic", n_alphas=5).fit(X, y, groups=g)
    top = model.alphas_[0]
    assert not QGaussianMixedModel(alpha=1.01 * top).fit(X, y, groups=g).coef_.any()
    assert QGaussianMixedModel(alpha=0.95 * top).fit(X, y, groups=g).coef_.any()


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_a_degenerate_fit_is_named_and_never_chosen():
    # 130 columns of noise, 160 rows: at few degrees of freedom the likelihood grows without bound
    rng = np.random.default_rng(0)
    g, X = np.repeat(np.arange(40), 4), rng.normal(size=(160, 130))
    y = 2 * X[:, 0] + rng.standard_t(1.5, size=160)
    with pytest.warns(ConvergenceWarning, match="no maximum"):
        bad = QGaussianMixedModel(alpha=0.01, df=1.0, max_iter=40).fit(X, y, groups=g)
    assert bad.degenerate_ and np.count_nonzero(bad.coef_) > 40
    chosen = QGaussianMixedModel(alpha="ebic", alpha_min_ratio=0.02, n_alphas=15, max_iter=40).fit(X, y, groups=g)
    assert not chosen.degenerate_
    assert len(chosen.alphas_) < 15  # the path ended where no maximum was left
    assert np.count_nonzero(chosen.coef_) < 10 and chosen.coef_[0] != 0


def test_joint_model_ignores_df_and_says_gaussian():
    X, y, g = _data()
    models = [QGaussianMixedModel(likelihood="joint", df=df, alpha=0.1) for df in (None, 1.0, 30.0)]
    fits = [m.fit(X, y, groups=g) for m in models]
    for other in fits[1:]:
        np.testing.assert_array_equal(other.coef_, fits[0].coef_)
    assert np.isinf(fits[0].df_) and fits[0].q_ == pytest.approx(1.0)
    assert fits[1].q_ == pytest.approx(1.0 + 2.0 / 161.0)
    # at scale^2 = Q / n the likelihood in the degrees of freedom only grows: its limit is the Gaussian
    assert fits[1].log_likelihood_ < fits[2].log_likelihood_ < fits[0].log_likelihood_
    gaussian = QGaussianMixedModel(df=np.inf, alpha=0.1).fit(X, y, groups=g)
    assert fits[0].coef_ == pytest.approx(gaussian.coef_, abs=1e-9)
    X, y, g = _data(shift=1e4)  # and its breakdown point is 0
    model = QGaussianMixedModel(likelihood="joint", random=None, alpha=0.1)
    assert np.linalg.norm(model.fit(X, y, groups=g).coef_ - gaussian.coef_) > 50.0


def test_prediction_uses_the_groups_it_knows():
    X, y, g = _data()
    model = QGaussianMixedModel(alpha=0.1).fit(X, y, groups=g)
    known = np.mean((y - model.predict(X, groups=g)) ** 2)
    assert known < np.mean((y - model.predict(X)) ** 2)
    np.testing.assert_array_equal(model.predict(X, groups=g + 100), model.predict(X))
    shuffled = np.random.default_rng(0).permutation(160)
    again = QGaussianMixedModel(alpha=0.1).fit(X[shuffled], y[shuffled], groups=g[shuffled])
    assert again.coef_ == pytest.approx(model.coef_, abs=1e-6)
    assert again.predict(X, groups=g) == pytest.approx(model.predict(X, groups=g), abs=1e-6)
    with pytest.raises(DataError, match="groups of shape"):
        model.fit(X, y, groups=g[:3])
    with pytest.raises(DataError, match="do not match X"):
        model.predict(X, groups=g[:3])


@pytest.mark.filterwarnings("ignore")
def test_scikit_learn_contract():
    check_estimator(QGaussianMixedModel(max_iter=10, alpha=0.1))


def test_one_cluster_is_gaussian():
    X, y, g = _data()
    model = QGaussianMixedModel(random=None, alpha=0.25).fit(X, y, groups=np.zeros(160))
    assert np.isinf(model.df_) and set(np.flatnonzero(model.coef_)) == {0, 1, 2}


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_odd_tables_are_fitted():
    X, y, g = _data(p=3)
    flat = np.column_stack([X, np.ones(160)])
    model = QGaussianMixedModel(random="1 + x3", alpha=0.1).fit(flat, y, groups=g)
    assert model.coef_[3] == 0.0 and np.isfinite(model.random_effects_).all()
    assert not QGaussianMixedModel(alpha=0.1).fit(X, np.ones(160), groups=g).coef_.any()
    exact = QGaussianMixedModel(n_alphas=5).fit(X, 2 * X[:, 0] + 1, groups=g)
    assert exact.coef_ == pytest.approx([2.0, 0.0, 0.0], abs=1e-4)
    large = QGaussianMixedModel(alpha=0.1).fit(1e6 * X, 1e9 * y, groups=g)
    assert large.coef_ == pytest.approx(1e3 * QGaussianMixedModel(alpha=0.1).fit(X, y, groups=g).coef_, rel=1e-4)
