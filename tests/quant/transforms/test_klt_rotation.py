"""Behind K H all variances are one, on any width; the function stays; the golden values of the brief."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry.bench.mamba_models import MambaChar, new_mamba, plant_gates
from skerry.core.errors import DataError, ModelError
from skerry.deep.hadamard import hadamard_matrix, has_hadamard
from skerry.quant.architectures.base import architecture_of
from skerry.quant.engine import quantize_model
from skerry.quant.linear import PreparedLinear
from skerry.quant.recipe import Recipe
from skerry.quant.recipes import make_recipe
from skerry.quant.transforms.klt_rotation import (
    KLTResidual,
    KLTSteps,
    eigenvectors,
    equalising_rotation,
    klt_rotation,
    spread,
)
from skerry.quant.transforms.rotation import ResidualRotation

GOLDEN = torch.tensor([[9, 2, 0, 0], [2, 4, 1, 0], [0, 1, 1, 0.2], [0, 0, 0.2, 0.25]], dtype=torch.float64)
SMALL = MambaChar(width=16, blocks=2, states=4, rank=4)


def variances(C, R):
    return (R.T @ C @ R).diagonal()


def test_golden_values():
    H, K = hadamard_matrix(4, torch.float64), eigenvectors(GOLDEN)
    want = torch.tensor([5.1625, 1.9625, 4.1625, 2.9625], dtype=torch.float64)
    torch.testing.assert_close(variances(GOLDEN, H), want)
    torch.testing.assert_close(variances(GOLDEN, K @ H), torch.full((4,), 3.5625, dtype=torch.float64))
    wrong = variances(GOLDEN, (K @ H).T)  # Hadamard before KLT, as one published script has it
    assert spread(torch.diag(wrong)) > 2


def test_hadamard_alone_can_be_the_worst_case():
    C = torch.tensor([[2.5, 1.5], [1.5, 2.5]], dtype=torch.float64)
    assert sorted(variances(C, hadamard_matrix(2, torch.float64)).tolist()) == pytest.approx([1.0, 4.0])
    assert variances(C, klt_rotation(C)).tolist() == pytest.approx([2.5, 2.5])


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 24), st.integers(0, 2**31), st.floats(0, 8))
def test_behind_klt_all_variances_are_one(m, seed, decades):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((4 * m + 8, m)) * 10.0 ** rng.uniform(-decades / 2, decades / 2, m)
    X = torch.from_numpy(X @ rng.standard_normal((m, m)) + rng.standard_normal(m))
    C = torch.cov(X.T).reshape(m, m)
    R = klt_rotation(C, random_state=seed % 7)
    torch.testing.assert_close(R.T @ R, torch.eye(m, dtype=torch.float64), atol=1e-10, rtol=0)
    turned = torch.cov((X @ R).T).reshape(m, m).diagonal()
    assert float(turned.max() / turned.min()) - 1 < 1e-6
    assert torch.equal(R, klt_rotation(C, random_state=seed % 7))


def test_the_columns_are_eigenvectors():
    K = eigenvectors(GOLDEN)
    inside = K.T @ GOLDEN @ K
    torch.testing.assert_close(inside, torch.diag(torch.linalg.eigvalsh(GOLDEN)), atol=1e-12, rtol=0)
    H = klt_rotation(GOLDEN, klt=False, random_state=3)
    torch.testing.assert_close(klt_rotation(GOLDEN, random_state=3), K @ H)
    assert torch.allclose(H.abs(), torch.full((4, 4), 0.5, dtype=torch.float64))


def test_badly_scaled_covariances_give_orthogonal_vectors():
    scales = torch.logspace(-9, 9, 24, dtype=torch.float64)
    C = torch.outer(scales, scales) * 0.5 + torch.diag(scales**2)
    K = eigenvectors(C.float())
    torch.testing.assert_close(K.T @ K, torch.eye(24, dtype=torch.float64), atol=1e-10, rtol=0)


@pytest.mark.parametrize("m", [3, 10, 33])
def test_widths_without_a_hadamard_matrix(m):
    assert not has_hadamard(m)
    C = torch.diag(torch.arange(1.0, m + 1, dtype=torch.float64) ** 3)
    G = equalising_rotation(C)
    torch.testing.assert_close(G.T @ G, torch.eye(m, dtype=torch.float64), atol=1e-10, rtol=0)
    assert spread(G.T @ C @ G) - 1 < 1e-9


def test_equal_variances_are_left_alone():
    assert torch.equal(equalising_rotation(torch.eye(5)), torch.eye(5, dtype=torch.float64))
    assert torch.equal(equalising_rotation(torch.zeros(3, 3)), torch.eye(3, dtype=torch.float64))


@pytest.mark.parametrize("C", [torch.ones(2, 3), torch.tensor([[float("nan")]]), torch.ones(3)])
def test_other_things_are_refused(C):
    with pytest.raises(DataError, match="covariance"):
        klt_rotation(C)


def tiny(**others):
    model = new_mamba(dataclasses.replace(SMALL, **others), 32).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data *= 2.0
        else:
            parameter.data += 0.3 * torch.rand(parameter.shape, generator=torch.Generator().manual_seed(1))
    return model


def tokens(count=3):
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 32, (4, 16), generator=generator) for _ in range(count)]


def seen_by(model, layer, batches):
    """Return the covariance of a layer's inputs."""
    rows = []
    handle = model.get_submodule(layer).register_forward_pre_hook(lambda m, a: rows.append(a[0].flatten(0, -2)))
    with torch.no_grad():
        for batch in batches:
            model(batch, use_cache=False)
    handle.remove()
    return torch.cov(torch.cat(rows).double().T)


@torch.no_grad()
def difference(a, b, batch):
    x, y = (m(batch, use_cache=False).logits for m in (a, b))
    return float((x - y).norm() / y.norm())


@pytest.mark.parametrize(
    "others", [{}, {"width": 12, "rank": 3}, {"width": 10, "rank": 5, "states": 6}], ids=["16", "12", "10"]
)
@pytest.mark.parametrize("centre", [False, True])
def test_the_function_stays_and_the_variances_meet(others, centre):
    model, batches = plant_gates(tiny(**others), steps=2), tokens()
    recipe = Recipe("x", transforms=(KLTResidual(), KLTSteps(centre=centre)))
    found, report = quantize_model(model, recipe, calibration=batches)
    assert all(difference(found, model, batch) < 1e-5 for batch in batches)
    # the first block's input, and the input of every block's last low-rank layer; float32 weights
    first = "backbone.layers.0.mixer"
    places = [f"{first}.gate_proj", f"{first}.dt_proj", "backbone.layers.1.mixer.dt_proj"]
    for place in places:
        assert spread(seen_by(found, place, batches)) - 1 < 2e-4
    assert all(t["variance_ratio"] - 1 < 1e-6 < t["variance_ratio_before"] - 1 for t in report.transforms)
    if centre:
        middle = []
        found.get_submodule(places[1]).register_forward_pre_hook(lambda m, a: middle.append(a[0]))
        found(batches[0], use_cache=False)
        assert float(middle[0].abs().max()) > 0 and report.transforms[1]["largest_shift"] > 0


def test_each_block_has_a_rotation_of_its_own():
    model, batches = tiny(), tokens()
    found, _ = quantize_model(model, Recipe("x", transforms=(KLTSteps(),)), calibration=batches)
    turns = []
    for old, new in zip(model.backbone.layers, found.backbone.layers, strict=True):
        before, after = old.mixer.dt_proj.weight.detach().double(), new.mixer.dt_proj.weight.detach().double()
        R = torch.linalg.lstsq(before, after).solution
        torch.testing.assert_close(R.T @ R, torch.eye(4, dtype=torch.float64), atol=1e-4, rtol=0)
        turns.append(R)
    assert float((turns[0] - turns[1]).abs().max()) > 0.1


def test_without_klt_the_stream_is_that_of_quarot():
    batches = tokens()
    ours, _ = quantize_model(tiny(), Recipe("x", transforms=(KLTResidual(klt=False),)), calibration=batches)
    theirs, _ = quantize_model(tiny(), Recipe("x", transforms=(ResidualRotation(),)), calibration=batches)
    assert all(torch.equal(t, theirs.state_dict()[k]) for k, t in ours.state_dict().items())


def test_without_rotations_and_scales_the_recipe_is_round_to_nearest():
    batches = tokens()
    bare = make_recipe("mambaquant", "w8a8", smooth=(), rotate=())
    assert bare.transforms == ()
    ours, _ = quantize_model(tiny(), bare, calibration=batches)
    rtn = dataclasses.replace(make_recipe("rtn", "w8a8"), weight=bare.weight, activation=bare.activation)
    theirs, _ = quantize_model(tiny(), dataclasses.replace(rtn, operands=bare.operands), calibration=batches)
    assert difference(ours, theirs, batches[0]) == 0.0


def test_calibration_is_asked_for():
    assert make_recipe("mambaquant", "w4a16").needs_calibration
    model = tiny()
    architecture = architecture_of(model)
    architecture.prepare(model)
    for name, module in list(model.backbone.named_modules(prefix="backbone")):
        if type(module) is torch.nn.Linear:
            model.set_submodule(name, PreparedLinear(module))
    with pytest.raises(ModelError, match="calibration"):
        KLTResidual().apply_model(model, architecture, [])
