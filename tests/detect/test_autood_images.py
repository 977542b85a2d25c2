"""AutoOD on images: the space of convolutions, the layers, and the detector with its maps."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

torch = pytest.importorskip("torch", reason="needs the extra 'deep'")

from skerry.core.errors import DataError, ParameterError  # noqa: E402
from skerry.core.persistence import load, save  # noqa: E402
from skerry.detect.tabular.autood import AutoOD  # noqa: E402
from skerry.detect.tabular.autood_blocks import apply_block, ssim_terms  # noqa: E402
from skerry.detect.tabular.autood_child import WeightPool, _Trainer, train_child  # noqa: E402
from skerry.detect.tabular.autood_image_space import ImageSpace  # noqa: E402
from skerry.detect.tabular.autood_network import column_terms, latent, score  # noqa: E402
from skerry.detect.tabular.autood_space import ACTIVATIONS, DEFINITIONS  # noqa: E402

TINY = {"n_children": 2, "child_epochs": 2, "final_epochs": 3, "ensemble": 2, "random_state": 0}


@pytest.fixture(scope="module")
def images():
    """Smooth 8 x 8 images of two channels; the last eight have a bright square."""
    rng = np.random.default_rng(0)
    r, c = np.mgrid[:8, :8] / 8.0
    phase = rng.uniform(0, 1, size=(72, 1, 1, 2))
    X = np.sin(2 * np.pi * (np.stack([r, c], axis=-1) + phase)) + 0.05 * rng.normal(size=(72, 8, 8, 2))
    X[64:, 2:5, 4:7, 0] += 6.0
    return X.reshape(72, -1), np.r_[np.zeros(64), np.ones(8)]


def a_design(definition, distance="l2", shape=(8, 8, 2), **layer):
    base = {"channels": 4, "kernel": 3, "pool_size": 3, "pool": "max", "norm": "none", "activation": "relu"}
    layers = [base | {"skip": False} | layer]
    distance = None if definition == "centroid" else distance
    return {"definition": definition, "distance": distance, "latent": 4, "layers": layers, "image_shape": shape}


# ---- the space ----------------------------------------------------------------------------------------------------
@settings(max_examples=60, deadline=None)
@given(st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(1, 3)), st.integers(0, 2**32 - 1))
def test_every_string_is_its_design_and_mutates(shape, seed):
    space, rng = ImageSpace(shape), np.random.default_rng(seed)
    for _ in range(20):
        string = space.sample(rng)
        design = space.decode(string)
        assert space.illegal(design) is None and design["image_shape"] == shape
        assert space.encode(design) == string
    other = space.mutate(string, rng)
    assert other != string and space.encode(space.decode(other)) == other
    assert space.illegal(space.default()) is None


def test_ten_thousand_strings_come_back():
    space, rng = ImageSpace((28, 28)), np.random.default_rng(0)
    for _ in range(2_000):  # 10,000 with the shapes above
        string = space.sample(rng)
        assert space.encode(space.decode(string)) == string


def test_size_counts_every_string(monkeypatch):
    from skerry.detect.tabular import autood_image_space, autood_space

    monkeypatch.setattr(autood_image_space, "DEPTHS", (1, 2))
    monkeypatch.setattr(autood_space, "DEPTHS", (1, 2))
    monkeypatch.setattr(autood_image_space, "SIZES", (1, 3))
    monkeypatch.setattr(autood_image_space, "CHANNELS", (2, 4))
    monkeypatch.setattr(autood_image_space, "LATENTS", (4,))
    monkeypatch.setattr(autood_image_space, "NORMS", ("none", "batch"))
    space = ImageSpace((4, 5, 2), definitions=("centroid",))

    def count(prefix):
        step = space.next(prefix)
        return 1 if step is None else sum(count((*prefix, int(i))) for i in np.flatnonzero(step[1]))

    assert space.size == count(())


def test_illegal_designs_say_why():
    space = ImageSpace((8, 8, 2))
    cases = {
        "collapse": a_design("centroid", activation="sigmoid"),
        "pools one pixel": a_design("reconstruction", pool_size=1, pool="max"),
        "skips from": a_design("reconstruction", skip=True),
        "is not one of": a_design("reconstruction", kernel=4),
    }
    for message, design in cases.items():
        with pytest.raises(ParameterError, match=message):
            space.encode(design)
    with pytest.raises(ParameterError, match="sides of 3"):
        ImageSpace((3, 3)).encode(a_design("reconstruction"))
    for shape in ((8,), (8, 0), (8.5, 8), (1, 2, 3, 4)):
        with pytest.raises(ParameterError, match="image_shape"):
            ImageSpace(shape)


# ---- layers -------------------------------------------------------------------------------------------------------
def test_a_convolution_is_that_of_torch():
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(2, 3, 5, padding=2)
    x = torch.randn(6, 2, 7, 6)
    b = {"weight": conv.weight.detach().reshape(3, -1).T, "bias": conv.bias.detach(), "norm": "instance"}
    b |= {"activation": "elu", "dropout": 0.0, "skip": False, "kernel": 5, "before": (2, 7, 6), "after": (3, 4, 3)}
    for pool, layer in (("max", torch.nn.MaxPool2d(3, 2, 1)), ("mean", torch.nn.AvgPool2d(3, 2, 1, False, False))):
        with torch.no_grad():
            want = layer(torch.nn.functional.elu(torch.nn.InstanceNorm2d(3)(conv(x))))
            got = apply_block(b | {"pool": pool, "pool_size": 3}, x.flatten(1), False)
        torch.testing.assert_close(got, want.flatten(1))


def test_structural_similarity():
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.uniform(size=(5, 2 * 9 * 8)))
    same = ssim_terms(x, x, (2, 9, 8))
    assert same.shape == x.shape and float(same.abs().max()) < 1e-12
    # one window that is the whole image: the formula itself
    a, b = rng.uniform(size=(2, 1, 9))
    got = float(ssim_terms(torch.from_numpy(a), torch.from_numpy(b), (1, 3, 3))[0, 4])
    cov = np.mean(a * b) - a.mean() * b.mean()
    want = (2 * a.mean() * b.mean() + 1e-4) * (2 * cov + 9e-4)
    want /= (a.mean() ** 2 + b.mean() ** 2 + 1e-4) * (a.var() + b.var() + 9e-4)
    assert got == pytest.approx((1 - want) / 9)


@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 4, 1), (8, 8, 2)])
def test_every_legal_string_trains_and_scores(shape):
    space, rng, pool = ImageSpace(shape), np.random.default_rng(0), WeightPool(0)
    z = rng.normal(size=(20, space.n_features))
    for k in range(9):
        net = train_child(space.decode(space.sample(rng)), z, pool, 1, k)
        assert net is not None
        s = score(net, z)
        assert s.shape == (20,) and np.isfinite(s).all()
        np.testing.assert_array_equal(score(net, z[3:5]), s[3:5])


@pytest.mark.parametrize("definition", DEFINITIONS)
@pytest.mark.parametrize("norm", ["none", "batch", "instance"])
def test_scores_are_those_of_the_trained_network(definition, norm, images):
    design = a_design(definition, "ssim", norm=norm)
    design["layers"].append({**design["layers"][0], "pool_size": 1, "pool": "mean", "skip": True, "kernel": 5})
    trainer = _Trainer(design, images[0], WeightPool(0), 0, "cpu")
    torch.manual_seed(0)
    net = trainer.run(2)
    with torch.no_grad():
        f = trainer.forward(trainer.encoder, trainer.table, False)
        np.testing.assert_allclose(latent(net, images[0]), f.numpy(), rtol=1e-3, atol=1e-4)
    s = score(net, images[0])
    if definition == "reconstruction":
        np.testing.assert_allclose(column_terms(net, images[0]).sum(1), s)
        assert (s > 0).all() and (s < 2).all()
    if definition == "centroid":
        assert all(b["bias"] is None and b["shift"] is None for b in net["encoder"])


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_decoders_mirror_any_size(activation):
    z = np.random.default_rng(0).normal(size=(12, 7 * 9))
    design = a_design("reconstruction", shape=(7, 9, 1), activation=activation, pool="mean", pool_size=5)
    design["layers"].append({**design["layers"][0], "channels": 8})
    assert column_terms(train_child(design, z, WeightPool(0), 1, 0), z).shape == z.shape


# ---- the detector ---------------------------------------------------------------------------------------------------
def test_it_finds_the_square_and_shows_where_it_is(images):
    X, y = images
    model = AutoOD(**TINY | {"definitions": ("reconstruction",), "final_epochs": 20}, image_shape=(8, 8, 2))
    model.fit(X, X_val=X[32:], y_val=y[32:])
    assert model.best_["image_shape"] == (8, 8, 2)
    s = model.anomaly_score(X)
    assert roc_auc_score(y, s) > 0.9
    parts = model.explain(X)
    np.testing.assert_allclose(parts.sum(1), s, rtol=1e-9)
    shown = parts[64:].reshape(8, 8, 8, 2)
    assert shown[:, 2:5, 4:7].sum() / shown.sum() > 3 * 9 / 64  # of an image, more than three times its share


@pytest.mark.parametrize("definition", ["centroid", "density", "cluster"])
def test_tiles_share_the_score_where_nothing_is_rebuilt(definition, images):
    model = AutoOD(**TINY, definitions=(definition,), image_shape=(8, 8, 2)).fit(images[0])
    parts = model.explain(images[0][:5])
    np.testing.assert_allclose(parts.sum(1), model.anomaly_score(images[0][:5]), rtol=1e-9)
    tile = parts.reshape(5, 8, 8, 2)[:, :4, :4]
    np.testing.assert_allclose(tile, tile[:, :1, :1, :1] * np.ones(tile.shape), rtol=1e-9)


def test_same_seed_same_answer_and_saved_with_its_search(images, tmp_path):
    X, kept = images[0], torch.get_num_threads()
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        model = AutoOD(**TINY, image_shape=(8, 8, 2)).fit(X)
        found.append(model.anomaly_score(X))
    torch.set_num_threads(kept)
    np.testing.assert_array_equal(*found)
    save(model, tmp_path / "m.skerry")
    again = load(tmp_path / "m.skerry")
    np.testing.assert_array_equal(again.anomaly_score(X), found[0])
    frame = again.search_.to_frame()
    assert {"channels_0", "kernel_0", "pool_0", "pool_size_3"} <= set(frame.columns) and "width_0" not in frame.columns
    assert frame.equals(model.search_report_.to_frame())


def test_shapes_are_checked_and_blank_images_are_taken(images):
    with pytest.raises(DataError, match="128 values"):
        AutoOD(**TINY, image_shape=(8, 8)).fit(images[0])
    blank = AutoOD(**TINY, image_shape=(4, 4)).fit(np.ones((9, 16)))
    np.testing.assert_array_equal(blank.anomaly_score(np.ones((2, 16))), 0.0)
    X = images[0].copy().reshape(-1, 2)
    X[:, 1] = 0.3  # a channel that says nothing
    assert np.isfinite(AutoOD(**TINY, image_shape=(8, 8, 2)).fit(X.reshape(72, -1)).anomaly_score(images[0])).all()
