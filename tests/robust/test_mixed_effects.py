"""The q-Gaussian mixed model: density, monotone EM, robustness, and what the joint model does not do."""

import numpy as np
import pytest
from scipy.stats import multivariate_normal, multivariate_t
from sklearn.utils.estimator_checks import check_estimator

from skerry.core.errors import DataError
from skerry.robust.mixed_effects import QGaussianMixedModel, q_gaussian_logpdf


def _data(seed=0, p=20, shift=0.0):
    rng = np.random.default_rng(seed)
    g = np.repeat(np.arange(40), 4)
    X = rng.normal(size=(160, p))
    y = X[:, :3] @ [2.0, -2.0, 1.5] + rng.normal(size=160) + 0.7 * rng.normal(size=40)[g]
    y[g < 4] += shift
    return X, y, g


@pytest.mark.parametrize("df", [1.0, 3.7, 40.0])
def test_density_is_the_multivariate_student(df):
    rng = np.random.default_rng(0)
    B = rng.normal(size=(3, 3))
    S, x = B @ B.T + np.eye(3), rng.normal(size=(5, 3))
    distance = np.einsum("ij,jk,ik->i", x, np.linalg.inv(S), x)
    ours = q_gaussian_logpdf(distance, np.linalg.slogdet(S)[1], 3, df)
    assert ours == pytest.approx(multivariate_t(shape=S, df=df).logpdf(x), abs=1e-8)
    nearly = q_gaussian_logpdf(distance, np.linalg.slogdet(S)[1], 3, 1e6)
    assert nearly == pytest.approx(multivariate_normal(cov=S).logpdf(x), abs=1e-4)


@pytest.mark.parametrize("shift", [0.0, 12.0])
def test_objective_never_rises(shift):
    X, y, g = _data(shift=shift)
    history = QGaussianMixedModel().fit(X, y, groups=g).objective_
    assert len(history) > 1 and np.diff(history).max() <= 1e-9


def test_gaussian_limit_is_generalised_least_squares():
    X, y, g = _data(p=5)
    model = QGaussianMixedModel(df=np.inf, alpha=0.0).fit(X, y, groups=g)
    psi = np.eye(160) + model.ratio_ * (g[:, None] == g)
    A = np.column_stack([np.ones(160), X])
    W = np.linalg.inv(psi)
    expected = np.linalg.solve(A.T @ W @ A, A.T @ W @ y)
    assert np.r_[model.intercept_, model.coef_] == pytest.approx(expected, abs=1e-5)
    close = QGaussianMixedModel(df=1e6, alpha=0.0).fit(X, y, groups=g)
    assert close.coef_ == pytest.approx(model.coef_, abs=1e-3)


def test_a_tenth_of_the_clusters_moves_the_effects_little():
    X, y, g = _data()
    clean = QGaussianMixedModel().fit(X, y, groups=g)
    for size in (50.0, 1e4):
        X, y, g = _data(shift=size)
        model = QGaussianMixedModel().fit(X, y, groups=g)
        assert np.linalg.norm(model.coef_ - clean.coef_) < 0.5
        assert model.weights_[g < 4].max() < 0.1 < np.median(model.weights_)


def test_joint_model_ignores_df_and_says_gaussian():
    X, y, g = _data()
    fits = [QGaussianMixedModel(likelihood="joint", df=df).fit(X, y, groups=g) for df in (None, 1.0, 30.0)]
    for other in fits[1:]:
        np.testing.assert_array_equal(other.coef_, fits[0].coef_)
    assert np.isinf(fits[0].df_)


def test_prediction_uses_the_groups_it_knows():
    X, y, g = _data()
    model = QGaussianMixedModel().fit(X, y, groups=g)
    known = np.mean((y - model.predict(X, groups=g)) ** 2)
    assert known < np.mean((y - model.predict(X)) ** 2)
    np.testing.assert_array_equal(model.predict(X, groups=g + 100), model.predict(X))
    with pytest.raises(DataError, match="groups of shape"):
        model.fit(X, y, groups=g[:3])


@pytest.mark.filterwarnings("ignore")
def test_scikit_learn_contract():
    check_estimator(QGaussianMixedModel(max_iter=20))
