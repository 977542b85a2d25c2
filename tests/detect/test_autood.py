"""AutoOD: the four definitions, the search's bookkeeping, and the detector that comes out."""

import json
import warnings
import zipfile

import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import multivariate_normal
from sklearn.metrics import roc_auc_score
from sklearn.utils.estimator_checks import check_estimator

torch = pytest.importorskip("torch", reason="needs the extra 'deep'")

from skerry.core.errors import DataError, ModelError, ParameterError  # noqa: E402
from skerry.core.persistence import load, save  # noqa: E402
from skerry.detect.tabular import autood_search  # noqa: E402
from skerry.detect.tabular.autood import AutoOD  # noqa: E402
from skerry.detect.tabular.autood_child import (  # noqa: E402
    WeightPool,
    _Trainer,
    soft_assignment,
    target_assignment,
    train_child,
)
from skerry.detect.tabular.autood_network import energy, latent, score  # noqa: E402
from skerry.detect.tabular.autood_report import SearchReport  # noqa: E402
from skerry.detect.tabular.autood_reward import (  # noqa: E402
    LabelledReward,
    UnlabelledReward,
    excess_mass,
    synthetic_outliers,
)
from skerry.detect.tabular.autood_search import Search  # noqa: E402
from skerry.detect.tabular.autood_space import ACTIVATIONS, DEFINITIONS, SearchSpace  # noqa: E402

TINY = {"n_children": 2, "child_epochs": 2, "final_epochs": 3, "ensemble": 1, "random_state": 0}


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(0)
    latent_rows = rng.normal(size=(180, 2))
    X = latent_rows @ rng.normal(size=(2, 6)) + 0.1 * rng.normal(size=(180, 6))
    return np.r_[X, rng.normal(scale=3, size=(12, 6))], np.r_[np.zeros(180), np.ones(12)]


def a_design(definition, **layer):
    base = {"width": 4, "norm": "none", "activation": "relu", "dropout": 0.0, "skip": False} | layer
    distance = None if definition == "centroid" else "l2"
    return {"definition": definition, "distance": distance, "latent": 2, "layers": [base]}


def search(table, labelled=True, **parameters):
    X, y = table
    reward = LabelledReward(X, y, "auroc") if labelled else UnlabelledReward(X, X, 0)
    given = {"seed": 0, "n_children": 7, "child_epochs": 1, **parameters}
    return Search(SearchSpace(X.shape[1]), X, reward, **given)


# ---- children -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("d", [1, 2, 7])
def test_every_legal_string_trains_and_scores(d):
    rng = np.random.default_rng(d)
    z, space, pool = rng.normal(size=(70, d)), SearchSpace(d), WeightPool(0)
    for k in range(60):
        net = train_child(space.decode(space.sample(rng)), z, pool, 1, k)
        s = score(net, z)
        assert s.shape == (70,) and np.isfinite(s).all()


@pytest.mark.parametrize("definition", DEFINITIONS)
@pytest.mark.parametrize("norm", ["none", "batch", "layer"])
def test_numpy_scores_are_those_of_the_trained_network(definition, norm, table):
    names = ACTIVATIONS if definition != "centroid" else ("relu", "linear", "leaky_relu")
    for name in names:
        design = a_design(definition, norm=norm, activation=name, width=6, skip=True)
        design["layers"].append({**design["layers"][0], "dropout": 0.1})
        trainer = _Trainer(design, table[0], WeightPool(0), 0, "cpu")
        torch.manual_seed(0)
        net = trainer.run(2)
        with torch.no_grad():
            f = trainer.forward(trainer.encoder, trainer.table, False)
            np.testing.assert_allclose(latent(net, table[0]), f.numpy(), rtol=1e-3, atol=1e-4)
            if definition == "reconstruction":
                s = ((trainer.table - trainer.forward(trainer.decoder, f, False)) ** 2).sum(1)
                np.testing.assert_allclose(score(net, table[0]), s.numpy(), rtol=1e-3, atol=1e-4)


def test_an_identity_network_rebuilds_without_error():
    block = {"norm": "none", "activation": "linear", "skip": False, "bias": None, "scale": None, "shift": None}
    net = {
        "definition": "reconstruction",
        "encoder": [block | {"weight": np.eye(3)}],
        "decoder": [block | {"weight": np.eye(3)}],
    }
    z = np.random.default_rng(0).normal(size=(40, 3))
    for distance in ("l1", "l2", "l21"):
        np.testing.assert_array_equal(score(net | {"distance": distance}, z), 0.0)
        shifted = net | {"distance": distance, "decoder": [block | {"weight": np.eye(3), "bias": np.ones(3)}]}
        expected = {"l1": 3.0, "l2": 3.0, "l21": np.sqrt(3)}[distance]
        np.testing.assert_allclose(score(shifted, z), expected)


def test_centroid_and_cluster_scores_are_squared_distances(table):
    for definition in ("centroid", "cluster"):
        net = train_child(a_design(definition), table[0], WeightPool(0), 4, 0)
        f = latent(net, table[0])
        expected = ((f[:, None, :] - net["centres"]) ** 2).sum(2).min(1)
        np.testing.assert_allclose(score(net, table[0]), expected, rtol=1e-10)
        assert len(net["centres"]) == (1 if definition == "centroid" else 4)


def test_density_score_is_the_mixture_of_scipy(table):
    net = train_child(a_design("density"), table[0], WeightPool(0), 4, 0)
    f = latent(net, table[0])
    logs = [
        np.log(p) + multivariate_normal(m, L @ L.T).logpdf(f)
        for p, m, L in zip(net["shares"], net["means"], net["factors"], strict=True)
    ]
    np.testing.assert_allclose(score(net, table[0]), -logsumexp(logs, axis=0), rtol=1e-4, atol=1e-4)
    assert net["shares"].sum() == pytest.approx(1)


def test_a_flat_latent_space_has_a_regular_mixture_and_clusters_that_are_not_empty():
    z = np.zeros((50, 6))
    z[0] = 1e-9
    assert np.isfinite(score(train_child(a_design("density"), z, WeightPool(0), 2, 0), z)).all()
    net = train_child(a_design("cluster"), z, WeightPool(0), 3, 0)
    assert 1 <= len(net["centres"]) <= 4 and np.isfinite(score(net, z)).all()
    assert np.isfinite(energy(np.zeros((3, 2)), np.ones(1), np.zeros((1, 2)), 1e-3 * np.eye(2)[None])).all()


def test_cluster_assignments_are_distributions():
    rng = np.random.default_rng(0)
    q = soft_assignment(torch.from_numpy(rng.normal(size=(30, 2))), torch.from_numpy(rng.normal(size=(4, 2))))
    p = target_assignment(q)
    np.testing.assert_allclose(q.sum(1).numpy(), 1.0)
    np.testing.assert_allclose(p.sum(1).numpy(), 1.0)
    assert (p.max(1).values >= q.max(1).values - 0.2).all()


def test_a_centroid_network_has_no_offset_and_no_centre_at_zero(table):
    net = train_child(a_design("centroid", norm="batch"), table[0], WeightPool(0), 30, 0)
    assert all(b["bias"] is None and b["shift"] is None for b in net["encoder"])
    assert np.abs(net["centres"]).min() >= 0.1 - 1e-6
    assert np.ptp(score(net, table[0])) > 1e-6


def test_first_weights_do_not_depend_on_the_order_of_asking():
    a, b = WeightPool(3), WeightPool(3)
    first = a.take("encoder", 0, 4, 2)[1]
    b.take("decoder", 1, 2, 4)
    np.testing.assert_array_equal(first, b.take("encoder", 0, 4, 2)[1])
    assert (first.ravel() != a.take("decoder", 0, 4, 2)[1].ravel()).any()
    a.give({"encoder 0 4 2": np.full((4, 2), np.nan)})
    assert np.isfinite(a.take("encoder", 0, 4, 2)[1]).all()


# ---- the reward without labels ----------------------------------------------------------------------------------
def test_synthetic_outliers_are_of_four_kinds():
    rng = np.random.default_rng(0)
    x = rng.normal(size=400)
    fake = synthetic_outliers(np.c_[x, x], 400, np.random.default_rng(1))
    assert fake.shape == (400, 2)
    assert (np.abs(fake[:100]) <= 1.1 * np.abs(x).max() * 1.05).all()
    assert abs(np.corrcoef(fake[100:200].T)[0, 1]) < 0.4  # the dependency is gone
    assert set(fake[100:200, 0]) <= set(x)


def test_excess_mass_is_higher_for_a_score_that_follows_the_density():
    rng = np.random.default_rng(0)
    rows, box = rng.normal(size=(800, 2)), rng.uniform(-4, 4, (800, 2))
    good = excess_mass((rows**2).sum(1), (box**2).sum(1))
    bad = excess_mass(rows[:, 0], box[:, 0])
    assert 0 <= bad < good <= 1


def test_the_reward_is_the_mean_rank_of_both_measures():
    got = UnlabelledReward.rewards([[0.1, 9.0], [0.2, 8.0], [0.3, 7.5]])
    np.testing.assert_allclose(got, [0.5, 0.5, 0.5])
    np.testing.assert_allclose(UnlabelledReward.rewards([[0.1, 1.0], [0.2, 2.0]]), [0.25, 0.75])


# ---- the search -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("strategy", ["controller", "random"])
def test_the_number_of_children_is_exact_and_the_best_never_falls(table, strategy):
    run = search(table, strategy=strategy)
    assert len(run.run()) == 7
    report = SearchReport(run.space, run.history)
    assert (np.diff(report.best_so_far) >= 0).all()
    assert len(report.to_frame()) == len(report) == 7
    assert report.best_so_far[-1] == max(h["reward"] for h in run.history)


def test_the_time_limit_is_kept_within_one_child(table):
    now = iter(range(1000))
    run = search(table, n_children=500, time_limit=4.5, strategy="random", clock=lambda: next(now))
    # the clock ticks once at the start and once before each child: those at 1, 2, 3, 4 start
    assert len(run.run()) == 4
    run = search(table, n_children=500, time_limit=1e-9, strategy="random")
    assert len(run.run()) == 1


def test_a_failed_child_gets_the_worst_reward_and_the_search_goes_on(table, monkeypatch):
    train, calls = autood_search.train_child, iter(range(99))
    monkeypatch.setattr(autood_search, "train_child", lambda *a: None if next(calls) in (0, 3) else train(*a))
    run = search(table)
    history = run.run()
    assert len(history) == 7
    assert history[0]["measures"] is None and history[0]["reward"] == 0.5
    assert history[3]["reward"] == min(h["reward"] for h in history[:3])
    failed = SearchReport(run.space, history).to_frame()["failed"].to_list()
    assert [i for i, f in enumerate(failed) if f] == [0, 3]


def test_a_constant_score_counts_as_failed(table):
    reward = LabelledReward(*table, "auroc")
    assert reward.measures(lambda rows: np.ones(len(rows))) is None
    assert reward.measures(lambda rows: np.full(len(rows), np.nan)) is None


@pytest.mark.parametrize("labelled", [True, False])
def test_an_interrupted_search_ends_as_if_it_had_not_been(table, tmp_path, monkeypatch, labelled):
    whole = search(table, labelled, n_children=12).run()
    train, calls = autood_search.train_child, iter(range(99))

    def broken(*a):
        if next(calls) == 8:
            raise KeyboardInterrupt
        return train(*a)

    path = tmp_path / "search.skerry"
    monkeypatch.setattr(autood_search, "train_child", broken)
    with pytest.raises(KeyboardInterrupt):
        search(table, labelled, n_children=12, checkpoint=path).run()
    resumed = search(table, labelled, n_children=12, checkpoint=path).run()
    assert len(resumed) == 12
    for a, b in zip(whole, resumed, strict=True):
        assert {k: v for k, v in a.items() if k != "seconds"} == {k: v for k, v in b.items() if k != "seconds"}
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        assert all(n.endswith((".npy", ".json")) for n in names)
        assert len(json.loads(archive.read("search.json"))["history"]) == 12


def test_a_foreign_or_damaged_checkpoint_is_refused(table, tmp_path):
    path = tmp_path / "search.skerry"
    search(table, n_children=2, checkpoint=path).run()
    with pytest.raises(ModelError, match="other rows or with other parameters"):
        search((table[0] + 1, table[1]), n_children=2, checkpoint=path).run()
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ModelError, match="not a whole checkpoint"):
        search(table, n_children=2, checkpoint=path).run()


def test_effects_name_the_choice_that_matters(table):
    space, rng = SearchSpace(6), np.random.default_rng(0)
    history = []
    for _ in range(120):
        string = space.sample(rng)
        good = space.decode(string)["definition"] == "density"
        reward = 0.6 + 0.3 * good + 0.02 * rng.normal()
        history.append({"string": list(string), "reward": reward, "measures": [reward], "gain": None, "seconds": 0.0})
    effects = SearchReport(space, history).effects()
    top = effects.row(0, named=True)
    assert (top["decision"], top["choice"]) == ("definition", "density")
    assert top["low"] < 0.3 < top["high"] + 0.05 and top["importance"] > 0.8


# ---- the detector -------------------------------------------------------------------------------------------------
def test_it_finds_planted_outliers_with_and_without_labels(table):
    X, y = table
    for given in ({}, {"X_val": X[::2], "y_val": y[::2]}):
        det = AutoOD(n_children=8, child_epochs=10, final_epochs=40, random_state=0).fit(X, **given)
        assert roc_auc_score(y, det.anomaly_score(X)) > 0.9
        assert det.best_ == det.members_[0] and len(det.members_) == 3
        np.testing.assert_allclose(det.explain(X).sum(1), det.anomaly_score(X), rtol=1e-9)


def test_no_label_is_read_without_y_val(table):
    class Untouchable:
        def __array__(self, *a, **k):
            raise AssertionError("y was read")

    X, y = table
    one = AutoOD(**TINY).fit(X).anomaly_score(X)
    np.testing.assert_array_equal(AutoOD(**TINY).fit(X, np.full(len(X), np.nan)).anomaly_score(X), one)
    np.testing.assert_array_equal(AutoOD(**TINY).fit(X, Untouchable()).anomaly_score(X), one)


def test_same_seed_same_answer_on_any_number_of_threads(table):
    X, y = table
    found, kept = [], torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        det = AutoOD(**TINY | {"n_children": 6}).fit(X, X_val=X, y_val=y)
        assert torch.get_num_threads() == threads
        found.append((det.best_, det.anomaly_score(X).tolist()))
    torch.set_num_threads(kept)
    assert found[0] == found[1]


def test_rows_beyond_all_training_rows_keep_their_order(table):
    det = AutoOD(**TINY | {"definitions": ("reconstruction",)}).fit(table[0])
    far = np.outer([10.0, 100.0, 1000.0], [1, -1, 1, -1, 1, -1])
    s = det.anomaly_score(far)
    assert (np.diff(s) > 0).all() and s[0] > det.anomaly_score(table[0]).max() - 1e-9
    assert det.is_outlier(far).all()


def test_the_search_travels_with_the_model(table, tmp_path):
    det = AutoOD(**TINY | {"strategy": "random"}).fit(table[0])
    save(det, tmp_path / "m.skerry")
    again = load(tmp_path / "m.skerry")
    np.testing.assert_allclose(again.anomaly_score(table[0]), det.anomaly_score(table[0]), rtol=1e-12)
    assert again.search_.to_frame().equals(det.search_report_.to_frame())
    assert again.best_ == det.best_


def test_when_every_design_fails_the_fixed_autoencoder_stands_in(table, monkeypatch):
    monkeypatch.setattr(autood_search, "train_child", lambda *a: None)
    det = AutoOD(**TINY).fit(table[0])
    assert det.best_ == SearchSpace(6).default()
    assert np.ptp(det.anomaly_score(table[0])) > 0


def test_a_checkpoint_is_found_again_without_a_seed(table, tmp_path):
    parameters = TINY | {"random_state": None, "checkpoint": tmp_path / "search.skerry"}
    first = AutoOD(**parameters).fit(table[0])
    second = AutoOD(**parameters | {"n_children": 4}).fit(table[0])
    assert second.history_[:2] == first.history_ and len(second.history_) == 4


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_an_absent_device_is_named(table):
    with pytest.raises(ParameterError, match="no CUDA device"):
        AutoOD(**TINY, device="cuda").fit(table[0])


def test_wrong_arguments_are_named(table):
    X, y = table
    for given, message in (
        ({"y_val": y}, "give X_val"),
        ({"X_val": X, "y_val": y[:5]}, "5 labels for 192 rows"),
        ({"X_val": X, "y_val": 0 * y}, "both 0"),
        ({"X_val": X, "y_val": y + np.nan}, "both 0"),
        ({"X_val": X[:, :3]}, "3 features"),
    ):
        with pytest.raises(DataError, match=message):
            AutoOD(**TINY).fit(X, **given)
    for wrong in ({"n_children": 0}, {"metric": "f1"}, {"definitions": ("kernel",)}, {"self_imitation": "yes"}):
        with pytest.raises(ParameterError):
            AutoOD(**TINY | wrong).fit(X)


def test_it_is_a_scikit_learn_estimator():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = check_estimator(AutoOD(threshold="contamination:0.1", **TINY), on_skip=None, on_fail=None)
    assert not {r["check_name"]: repr(r["exception"])[:300] for r in results if r["status"] == "failed"}
