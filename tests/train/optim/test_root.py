"""ROOT: the outlier part, its limits (Muon), robustness in numbers, fitted coefficients, states."""

import copy
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torch", reason="needs the extra 'deep'")

import torch
from torch import nn

from skerry.core.errors import ParameterError, SkerryWarning
from skerry.train.optim import ROOT, Muon, newton_schulz, soft_threshold
from skerry.train.optim.root import OFFICIAL_COEFFICIENTS, _quantile

MUON = {"coefficients": "muon", "weight_decay": 0.0}


def gaussian(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def update(optimizer, grad, n=1, **options):
    w = nn.Parameter(torch.zeros_like(grad))
    o = optimizer([w], lr=1.0, **options)
    for k in range(n):
        w.grad = grad if n == 1 else grad + gaussian(*grad.shape, seed=k)
        o.step()
    return w.detach()


def test_golden_outlier_part():
    u = torch.tensor([[1.0, -2, 3, -4, 5], [-6, 7, -8, 9, -100]])
    inliers, outliers, eps = soft_threshold(u, 0.9)
    assert eps.item() == pytest.approx(18.1)
    want = u.clone()
    want[1, 4] = -18.1
    assert torch.allclose(inliers, want)
    assert torch.allclose(outliers, torch.where(u == -100, -81.9, 0.0))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 99), st.sampled_from([0.1, 0.5, 0.8, 0.9, 0.95, 0.99, 1.0]))
def test_parts_add_up_and_the_threshold_is_the_quantile(rows, cols, seed, q):
    u = torch.as_tensor(np.random.default_rng(seed).standard_t(1.5, size=(2, rows, cols)))
    inliers, outliers, eps = soft_threshold(u, q)
    assert torch.allclose(inliers + outliers, u, rtol=1e-12)
    assert torch.allclose(eps, torch.quantile(u.abs().flatten(1), q, dim=1), rtol=1e-5)
    soft = u.sign() * (u.abs() - eps[:, None, None]).relu()
    assert torch.allclose(outliers, soft, atol=1e-9)
    assert (inliers.abs() <= eps[:, None, None]).all()


def test_the_threshold_is_per_matrix_and_a_tenth_is_clipped():
    u = gaussian(3, 40, 50) * torch.tensor([1.0, 10, 100])[:, None, None]
    _, outliers, eps = soft_threshold(u)
    assert ((outliers != 0).sum((1, 2)) - 200).abs().max() <= 1
    assert (eps[1] / eps[0]).item() == pytest.approx(10, rel=0.1)


def test_the_quantile_and_the_share_above_it():
    sizes = gaussian(3, 1000).abs()
    host, share = _quantile(sizes, 0.9)
    low = sizes.kthvalue(900, 1, keepdim=True).values
    assert torch.allclose(host, torch.quantile(sizes, 0.9, dim=1, keepdim=True))
    assert (host >= low).all()
    assert torch.equal(share, (sizes > host).float().mean(1))


def test_a_mostly_zero_gradient_keeps_its_signs():
    g = torch.zeros(20, 30)
    g[3, 4], g[10, 20] = 5.0, -2.0
    step = update(ROOT, g, **MUON)
    assert step[3, 4] < 0 < step[10, 20]
    assert torch.isfinite(step).all()
    assert torch.equal(update(ROOT, torch.zeros(4, 5), **MUON), torch.zeros(4, 5))


@pytest.mark.parametrize("nesterov", [True, False])
def test_without_clipping_it_is_muon_bit_for_bit(nesterov):
    g = gaussian(24, 40)
    ours = update(ROOT, g, n=4, quantile=1.0, nesterov=nesterov, weight_decay=0.1, coefficients="muon")
    assert torch.equal(ours, update(Muon, g, n=4, nesterov=nesterov, weight_decay=0.1))


def test_a_step_equals_the_formula():
    g = gaussian(10, 14, dtype=torch.float64)
    u = 1.95 * g
    want = -0.2 * 14**0.5 * newton_schulz(soft_threshold(u, 0.8).inliers, (2.4, -2.3, 0.9))
    got = update(ROOT, g, quantile=0.8, coefficients={(10, 14): (2.4, -2.3, 0.9)}, weight_decay=0.0)
    assert torch.allclose(got, want, atol=1e-9)
    assert torch.allclose(update(ROOT, g.T, quantile=0.8, coefficients={(10, 14): (2.4, -2.3, 0.9)}), want.T, atol=1e-9)
    fixed = update(ROOT, g, threshold=0.5, nesterov=False, **MUON)
    assert torch.allclose(fixed, -0.2 * 14**0.5 * newton_schulz(g.clamp(-0.5, 0.5)), atol=1e-9)


def test_the_momentum_stays_unclipped():
    w = nn.Parameter(torch.zeros(8, 8))
    optimizer = ROOT([w], **MUON)
    w.grad = gaussian(8, 8)
    w.grad[0, 0] = 1e4
    optimizer.step()
    assert torch.equal(optimizer.state[w]["momentum_buffer"], w.grad)
    assert optimizer.outlier_fraction_[w].item() == pytest.approx(0.1, abs=1 / 64 + 1e-6)


def test_a_scaled_gradient_gives_the_same_update():
    g = gaussian(16, 24, dtype=torch.float64)
    for c in (1e-12, 3.7, 1e9):
        assert torch.allclose(update(ROOT, c * g, **MUON), update(ROOT, g, **MUON), atol=1e-9)


def test_rotations_pass_through_the_orthogonalization_but_not_through_the_clamp():
    g = gaussian(32, 32, dtype=torch.float64)
    q = torch.linalg.qr(gaussian(32, 32, seed=1, dtype=torch.float64))[0]
    assert torch.allclose(
        update(ROOT, q @ g, quantile=1.0, **MUON), q @ update(ROOT, g, quantile=1.0, **MUON), atol=1e-8
    )
    difference = update(ROOT, q @ g, **MUON) - q @ update(ROOT, g, **MUON)
    assert difference.norm() > 0.05 * update(ROOT, g, **MUON).norm()


@pytest.mark.parametrize(("factor", "muon_moves"), [(1e4, 0.5), (100.0, 0.2)])
def test_one_huge_entry_moves_muon_and_not_root(factor, muon_moves):
    clean = gaussian(64, 128)
    hit = clean.clone().flatten()
    hit[(clean.flatten() - 1).abs().argmin()] *= factor  # an entry of ordinary size
    hit = hit.reshape(64, 128)

    def moved(optimizer, **options):
        before = update(optimizer, clean, weight_decay=0.0, **options)
        return ((update(optimizer, hit, weight_decay=0.0, **options) - before).norm() / before.norm()).item()

    assert moved(Muon) > muon_moves
    assert moved(ROOT, coefficients="muon") < 0.02


def test_the_size_of_an_update():
    step = update(ROOT, gaussian(64, 128), **MUON)
    assert step.square().mean().sqrt().item() == pytest.approx(0.2, rel=0.2)


def quadratics(optimizer, outliers, **options):
    """Mean of (W - W*)^2 / 2 after 300 noisy steps, for ten draws that are trained as one stack."""
    draw = torch.Generator().manual_seed(0)
    target = torch.randn(10, 32, 64, generator=draw)
    w = nn.Parameter(torch.zeros(10, 32, 64))
    o = optimizer([w], lr=0.03, weight_decay=0.0, **options)
    schedule = torch.optim.lr_scheduler.LambdaLR(o, lambda k: 1 - k / 300)
    for _ in range(300):
        w.grad = w.detach() - target + 0.3 * torch.randn(10, 32, 64, generator=draw)
        if outliers:
            where = torch.rand(10, 32, 64, generator=draw) < 0.01
            w.grad += where * 30 * torch.randn(10, 32, 64, generator=draw)
        o.step()
        schedule.step()
    return 0.5 * (w.detach() - target).square().mean((1, 2))


def test_heavy_tails_turn_the_order_around():
    muon, root = (quadratics(o, False, **kw) for o, kw in ((Muon, {}), (ROOT, {"coefficients": "muon"})))
    assert root.mean().item() == pytest.approx(muon.mean().item(), rel=0.2)
    assert muon.mean().item() == pytest.approx(0.0674, rel=0.15)
    muon, root = (quadratics(o, True, **kw) for o, kw in ((Muon, {}), (ROOT, {"coefficients": "muon"})))
    assert (root < muon).sum() >= 9


def test_coefficients_by_shape():
    wide, tall, square = (nn.Parameter(torch.zeros(s)) for s in ((8, 16), (16, 8), (8, 8)))
    for p in (wide, tall, square):
        p.grad = gaussian(*p.shape)
    optimizer = ROOT([wide, tall, square], cache=None)
    optimizer.step()
    assert set(optimizer.coefficients_) == {(8, 16), (8, 8)}
    values = torch.linalg.svdvals(wide.detach() / (1e-3 * 0.2 * 4))
    assert (values - 1).abs().max() < 0.02  # Muon's triple misses by up to 0.3
    assert (8192, 2048)[::-1] in OFFICIAL_COEFFICIENTS


def test_unknown_shapes_take_muons_triple_and_say_so():
    p = nn.Parameter(torch.zeros(3, 4))
    p.grad = gaussian(3, 4)
    optimizer = ROOT([p], coefficients="official")
    with pytest.warns(SkerryWarning, match="no coefficients for matrices of 3 x 4"):
        optimizer.step()
    optimizer.step()  # said once
    assert optimizer.coefficients_ == {(3, 4): (3.4445, -4.7750, 2.0315)}


def trained(optimizer, w, start, steps):
    for k in range(start, start + steps):
        low_rank = gaussian(12, 2, seed=k) @ gaussian(2, 20, seed=k + 1)
        w.grad = low_rank + 0.01 * gaussian(12, 20, seed=k + 2)
        optimizer.step()


def test_refreshed_coefficients_follow_the_momenta():
    w = nn.Parameter(torch.zeros(12, 20))
    optimizer = ROOT([w], refresh_every=3, cache=None)
    trained(optimizer, w, 0, 1)
    first = optimizer.coefficients_
    trained(optimizer, w, 1, 2)
    assert optimizer.coefficients_ == first
    trained(optimizer, w, 3, 1)
    assert optimizer.coefficients_ != first


@pytest.mark.parametrize("way", ["state_dict", "file", "pickle", "deepcopy"])
def test_round_trip_resumes_exactly_even_between_refreshes(way, tmp_path):
    w = nn.Parameter(torch.zeros(12, 20))
    optimizer = ROOT([w], refresh_every=3, quantile=0.8, cache=None, lr=0.1)
    trained(optimizer, w, 0, 5)
    twin = nn.Parameter(w.detach().clone())
    if way in ("pickle", "deepcopy"):
        other = pickle.loads(pickle.dumps(optimizer)) if way == "pickle" else copy.deepcopy(optimizer)
        twin = other.param_groups[0]["params"][0]
    else:
        state = copy.deepcopy(optimizer.state_dict())
        if way == "file":
            torch.save(state, tmp_path / "optimizer.pt")
            state = torch.load(tmp_path / "optimizer.pt", weights_only=True)
        other = ROOT([twin])
        other.load_state_dict(state)
    assert other.coefficients_ == optimizer.coefficients_
    trained(optimizer, w, 5, 5)
    trained(other, twin, 5, 5)
    assert torch.equal(w, twin)


def test_wrong_arguments_are_refused():
    w = nn.Parameter(torch.zeros(2, 2))
    for bad, match in (
        ({"quantile": 0.0}, "quantile is 0.0"),
        ({"quantile": 1.1}, "quantile is 1.1"),
        ({"threshold": -1.0}, "threshold is -1.0"),
        ({"coefficients": "best"}, "coefficients is 'best'"),
        ({"objective": "l1"}, "objective is 'l1'"),
        ({"refresh_every": 0}, "refresh_every is 0"),
        ({"refresh_every": 5, "coefficients": "muon"}, "coefficients='fit'"),
        ({"momentum": -0.1}, "momentum"),
    ):
        with pytest.raises(ParameterError, match=match):
            ROOT([w], **bad)
    with pytest.raises(ParameterError, match="1 axes"):
        soft_threshold(torch.ones(3))
