"""AutoEncoder: its losses against PyTorch, its sizes, its targets and hostile tables."""

import builtins
import pickle

import numpy as np
import pytest

from skerry.core.errors import DataError, MissingExtra, ParameterError
from skerry.detect.tabular.autoencoder import AutoEncoder, _encoder

torch = pytest.importorskip("torch", reason="needs the extra 'deep'")


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(0)
    latent = rng.normal(size=(150, 2))
    X = latent @ rng.normal(size=(2, 6)) + 0.1 * rng.normal(size=(150, 6))
    return np.r_[X, rng.normal(scale=3, size=(8, 6))]


def fast(**parameters):
    return AutoEncoder(**{"epochs": 40, "n_models": 2, "random_state": 0, **parameters})


def parts(model, X):
    """Standardised rows, and mean and variance of every network, by PyTorch."""
    z = (X[:, model.columns_] - model.mean_) / model.scale_
    found = []
    for layers in model.weights_:
        a = torch.from_numpy(z)
        for i, (w, b) in enumerate(layers):
            a = (a if i == 0 else torch.relu(a)) @ torch.from_numpy(w) + torch.from_numpy(b)
        d = z.shape[1]
        found.append((a[:, :d], torch.nn.functional.softplus(a[:, d:]) + 1e-5))
    return torch.from_numpy(z), found


def test_pre_is_twice_the_gaussian_likelihood_of_pytorch(table):
    model = fast().fit(table)
    z, found = parts(model, table)
    nll = torch.nn.GaussianNLLLoss(full=False, reduction="none", eps=1e-12)
    want = np.mean([2 * nll(mu, z, v).sum(dim=1).numpy() for mu, v in found], axis=0)
    np.testing.assert_allclose(model.anomaly_score(table), want, rtol=1e-5, atol=1e-8)


def test_gradient_of_pre_in_the_variance_is_zero_at_the_squared_error(table):
    model = fast(n_models=1).fit(table)
    z, [(mu, _)] = parts(model, table)
    v = ((mu - z) ** 2).clone().requires_grad_()
    keep = v.detach() > 1e-4
    loss = ((mu - z) ** 2 / v + v.log())[keep].sum()
    loss.backward()
    np.testing.assert_allclose((v.grad * v)[keep].detach().numpy(), 0, atol=1e-5)


def test_apre_weighs_the_parts_in_the_score_alone(table):
    pre = fast().fit(table)
    equal = fast(loss="apre", alpha=1, beta=1).fit(table)
    np.testing.assert_array_equal(equal.anomaly_score(table), pre.anomaly_score(table))
    error = fast(loss="apre", alpha=1, beta=0).fit(table).anomaly_score(table)
    log = fast(loss="apre", alpha=0, beta=1).fit(table).anomaly_score(table)
    mixed = fast(loss="apre", alpha=0.5, beta=2).fit(table).anomaly_score(table)
    np.testing.assert_allclose(mixed, 0.5 * error + 2 * log, rtol=1e-9, atol=1e-9)


def test_variance_one_gives_alpha_times_the_squared_error(table):
    model = fast(loss="apre", alpha=0.3).fit(table)
    squared = []
    for layers in model.weights_:
        w, b = layers[-1]
        w[:, 6:], b[6:] = 0, np.log(np.expm1(1 - 1e-5))
        squared.append([*layers[:-1], (w[:, :6], b[:6])])
    plain = fast(loss="mse").fit(table)
    plain.weights_ = squared
    np.testing.assert_allclose(model.anomaly_score(table), 0.3 * plain.anomaly_score(table), rtol=1e-9)


def test_parts_of_an_explanation_mean_what_they_say(table):
    model = AutoEncoder("apre", alpha=0.3, beta=4.0, epochs=5, n_models=2, random_state=0).fit(table)
    target = table + 0.5
    parts = model.explain_parts(table, target)
    np.testing.assert_allclose(sum(p.sum(axis=1) for p in parts.values()), model.score_against(table, target))
    assert (parts["reconstruction"] >= 0).all()
    plain = model.explain_parts(table)
    assert not plain["shift"].any()
    np.testing.assert_array_equal(plain["uncertainty"], parts["uncertainty"])
    model.set_params(beta=0.0)
    np.testing.assert_allclose(model.anomaly_score(table), plain["reconstruction"].sum(axis=1))
    assert not AutoEncoder("mse", epochs=2, n_models=1).fit(table).explain_parts(table)["uncertainty"].any()


@pytest.mark.parametrize("loss", ["mse", "pre", "apre"])
def test_explain_sums_to_the_score_and_the_target_counts(table, loss):
    model = fast(loss=loss).fit(table)
    s = model.anomaly_score(table)
    np.testing.assert_allclose(model.explain(table).sum(axis=1), s, rtol=1e-9)
    np.testing.assert_array_equal(model.score_against(table, table), s)
    target = table + 1.0
    np.testing.assert_allclose(
        model.explain_against(table, target).sum(axis=1), model.score_against(table, target), rtol=1e-9
    )
    assert not np.allclose(model.score_against(table, target), s)
    with pytest.raises(DataError, match="target has shape"):
        model.score_against(table, table[:3])


@pytest.mark.parametrize(
    ("d", "widths"),
    [
        (1, [1]),
        (6, [3]),
        (19, [10]),
        (20, [10, 5]),
        (64, [32, 16]),
        (100, [50, 25, 12]),
        (166, [83, 42, 21]),
        (200, [100, 50, 12]),
        (1555, [778, 389, 97]),
    ],
)
def test_sizes_follow_the_paper(d, widths):
    assert _encoder(d, "auto") == [max(1, round(d / p)) for p in (2, 4, 8 if d < 200 else 16)][: len(widths)]
    assert _encoder(d, "auto") == widths


@pytest.mark.parametrize(("loss", "factor"), [("mse", 1), ("pre", 2)])
@pytest.mark.parametrize("d", [6, 20, 200])
def test_output_has_a_mean_and_a_variance_for_each_column(loss, factor, d):
    X = np.random.default_rng(1).normal(size=(12, d))
    layers = fast(loss=loss, epochs=1, n_models=1).fit(X).weights_[0]
    encoder = _encoder(d, "auto")
    assert [b.size for _, b in layers] == [*encoder, *encoder[-2::-1], factor * d]


def test_widths_can_be_given(table):
    layers = fast(hidden=(4, 2), epochs=1).fit(table).weights_[0]
    assert [w.shape for w, _ in layers] == [(6, 4), (4, 2), (2, 4), (4, 12)]
    with pytest.raises(ParameterError, match="widths of at least 1"):
        fast(hidden=(4, 0)).fit(table)


def test_training_lowers_the_loss_and_ranks_broken_rows_high(table):
    short, long = fast(epochs=1).fit(table), fast(epochs=300).fit(table)
    assert long.anomaly_score(table).mean() < short.anomaly_score(table).mean() - 1
    assert (np.argsort(-long.anomaly_score(table))[:5] >= 150).all()


def test_same_seed_same_scores_on_any_number_of_threads(table):
    want = fast(batch_size=32, epochs=5).fit(table).anomaly_score(table)
    threads = torch.get_num_threads()
    state = torch.get_rng_state()
    try:
        torch.set_num_threads(2)
        got = fast(batch_size=32, epochs=5).fit(table).anomaly_score(table)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    np.testing.assert_array_equal(got, want)
    assert torch.equal(torch.get_rng_state(), state)  # the global generator is left alone
    assert not np.allclose(fast(batch_size=32, epochs=5, random_state=1).fit(table).anomaly_score(table), want)


def test_a_row_does_not_depend_on_its_batch(table):
    model = fast(epochs=5).fit(table)
    X = np.tile(table, (4, 1))
    whole = model.anomaly_score(X)
    for i in (0, 100, 300, 600):
        np.testing.assert_allclose(model.anomaly_score(X[i : i + 1]), whole[i], rtol=1e-12)


def test_constant_columns_are_left_out(table):
    wide = np.c_[table[:, :2], np.full(len(table), 7.0), table[:, 2:]]
    model, plain = fast().fit(wide), fast().fit(table)
    np.testing.assert_array_equal(model.columns_, [0, 1, 3, 4, 5, 6])
    np.testing.assert_array_equal(model.anomaly_score(wide), plain.anomaly_score(table))
    assert (model.explain(wide)[:, 2] == 0).all()
    assert (fast().fit(np.ones((5, 3))).anomaly_score(np.ones((2, 3))) == 0).all()


def test_huge_values_stay_finite_and_rank_first(table):
    model = fast().fit(table)
    X = table.copy()
    X[7, 2] = 1e95
    s = model.anomaly_score(X)
    assert np.isfinite(s).all() and s.argmax() == 7


def test_under_gradients_switched_off_it_still_trains(table):
    with torch.no_grad():
        s = fast(epochs=5).fit(table).anomaly_score(table)
    np.testing.assert_array_equal(s, fast(epochs=5).fit(table).anomaly_score(table))


def test_without_torch_fit_names_the_extra_and_scoring_works(table, monkeypatch):
    model = pickle.loads(pickle.dumps(fast(epochs=5).fit(table)))
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.split(".")[0] == "torch":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    assert np.isfinite(model.anomaly_score(table)).all()
    with pytest.raises(MissingExtra, match=r"skerry\[deep\]"):
        fast().fit(table)
