"""Muon: golden values of the Newton-Schulz steps, scale, groups, states, and what must not change the result."""

import copy
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torch", reason="needs the extra 'deep'")

import torch
from torch import nn

from skerry.core.errors import ModelError, ParameterError
from skerry.train.optim import Muon, newton_schulz, split_params
from skerry.train.optim.orthogonalize import _by_gram, _gram_is_cheaper, _iterate


def gaussian(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def orthogonal(n, seed):
    return torch.linalg.qr(gaussian(n, n, seed=seed, dtype=torch.float64))[0]


def naive(matrix, coefficients=(3.4445, -4.7750, 2.0315), steps=5):
    """Return the same by a singular value decomposition."""
    u, s, v = np.linalg.svd(matrix, full_matrices=False)
    s = s / np.sqrt((s**2).sum())
    a, b, c = coefficients
    for _ in range(steps):
        s = a * s + b * s**3 + c * s**5
    return u @ np.diag(s) @ v


def test_golden_values():
    values = torch.tensor([1.0, 0.5, 0.1], dtype=torch.float64)
    assert torch.allclose(
        newton_schulz(torch.diag(values)).diagonal(), torch.tensor([0.698839, 1.118739, 0.711959]).double(), atol=1e-6
    )
    g = torch.tensor([[1.0, 2, 3], [4, 5, 6]], dtype=torch.float64)
    want = torch.tensor([[-0.568290, 0.057742, 0.683774], [0.563355, 0.405613, 0.247871]]).double()
    assert torch.allclose(newton_schulz(g), want, atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 3), st.integers(0, 99), st.integers(0, 7))
def test_a_stack_equals_the_naive_twin(rows, cols, depth, seed, steps):
    g = gaussian(depth, rows, cols, seed=seed, dtype=torch.float64)
    got = newton_schulz(g, steps=steps)
    for one, x in zip(got, g, strict=True):
        assert np.allclose(one.numpy(), naive(x.numpy(), steps=steps), atol=1e-8)


@pytest.mark.parametrize("kind", ["Gaussian", "low rank", "rank one", "tiny"])
@pytest.mark.parametrize("triple", [(3.4445, -4.7750, 2.0315), (2.52, -2.44, 0.92)])
def test_the_way_over_the_gram_matrix_is_the_same_step(kind, triple):
    g = gaussian(2, 24, 96)
    if kind == "low rank":
        g = gaussian(2, 24, 3, seed=1) @ gaussian(2, 3, 96, seed=2) + 1e-3 * g
    elif kind == "rank one":
        g = gaussian(2, 24, 1, seed=1) @ gaussian(2, 1, 96, seed=2)
    elif kind == "tiny":
        g = 1e-20 * g
    wide = g / torch.linalg.vector_norm(g, dim=(-2, -1), keepdim=True)
    assert _gram_is_cheaper(wide, triple[0], 5)
    exact = _iterate(wide.double(), triple, 5)
    assert (_by_gram(wide, triple, 5) - exact).norm() < 1e-3 * exact.norm()
    assert torch.allclose(newton_schulz(g, triple), exact.float(), atol=1e-3)


def test_the_gram_matrix_is_used_only_where_it_saves_and_is_safe():
    assert not _gram_is_cheaper(gaussian(1, 64, 64), 3.4445, 5)
    assert _gram_is_cheaper(gaussian(1, 64, 128), 3.4445, 5)
    assert not _gram_is_cheaper(gaussian(1, 64, 256).bfloat16(), 3.4445, 5)
    assert not _gram_is_cheaper(gaussian(1, 64, 256), 3.4445, 10)
    assert _gram_is_cheaper(gaussian(1, 64, 256, dtype=torch.float64), 3.4445, 10)
    assert not _gram_is_cheaper(gaussian(1, 64, 256), 3.4445, 1)


def test_singular_values_and_vectors():
    u, v = orthogonal(8, 1), orthogonal(8, 2)
    g = u @ torch.diag(torch.linspace(1, 0.2, 8).double()) @ v.T
    inner = u.T @ newton_schulz(g) @ v
    assert (inner - torch.diag(inner.diagonal())).abs().max() < 1e-9
    assert ((inner.diagonal() >= 0.65) & (inner.diagonal() <= 1.25)).all()


def test_rotations_signs_scales_and_transposes():
    g, q1, q2 = gaussian(16, 24, dtype=torch.float64), orthogonal(16, 3), orthogonal(24, 4)
    done = newton_schulz(g)
    assert torch.allclose(newton_schulz(q1 @ g @ q2), q1 @ done @ q2, atol=1e-9)
    assert torch.allclose(newton_schulz(1e-30 * g), done, atol=1e-9)
    assert torch.equal(newton_schulz(-g), -done)
    assert torch.allclose(newton_schulz(g.T), done.T, atol=1e-12)
    assert torch.equal(newton_schulz(torch.zeros(3, 5)), torch.zeros(3, 5))


def test_adamw_is_not_equivariant_under_rotation():
    g, q = gaussian(16, 16, dtype=torch.float64), orthogonal(16, 3)

    def update(kind, g):
        w = nn.Parameter(torch.zeros_like(g))
        w.grad = g
        Muon([{"params": [w], "kind": kind}], lr=1.0).step()
        return w.detach()

    assert torch.allclose(update("muon", q @ g), q @ update("muon", g), atol=1e-8)
    assert not torch.allclose(update("adamw", q @ g), q @ update("adamw", g), atol=0.1)


def test_lower_precision_only_where_it_is_safe():
    g = gaussian(8, 12)
    assert newton_schulz(g, dtype=torch.bfloat16).dtype == torch.float32
    assert torch.allclose(newton_schulz(g, dtype=torch.bfloat16), newton_schulz(g), atol=0.1)
    assert newton_schulz(g.bfloat16()).dtype == torch.bfloat16
    with pytest.raises(ParameterError, match="float16"):
        newton_schulz(g, dtype=torch.float16)
    with pytest.raises(ParameterError, match="1 axes"):
        newton_schulz(torch.ones(4))


def stepped(shape, n=1, grad=None, **options):
    w = nn.Parameter(torch.zeros(shape))
    optimizer = Muon([w], **{"lr": 0.1, "weight_decay": 0.0} | options)
    for k in range(n):
        w.grad = gaussian(*shape, seed=k) if grad is None else grad
        optimizer.step()
    return w.detach()


def test_the_scale_of_an_update():
    assert stepped((64, 128)).square().mean().sqrt().item() == pytest.approx(0.2 * 0.1, rel=0.2)
    unit = newton_schulz(gaussian(128, 512))
    assert torch.allclose(stepped((128, 512)), -0.1 * 4.525483 * unit, atol=1e-6)
    assert torch.allclose(stepped((512, 128)), stepped((128, 512), grad=gaussian(512, 128).T.clone()).T, atol=1e-6)
    spectral = stepped((512, 128), scale="spectral")
    assert torch.allclose(spectral, -0.1 * 2 * newton_schulz(gaussian(512, 128)), atol=1e-6)


@pytest.mark.parametrize("nesterov", [True, False])
def test_three_steps_equal_the_formula(nesterov):
    w, m = np.ones((6, 4)), np.zeros((6, 4))
    p = nn.Parameter(torch.ones(6, 4, dtype=torch.float64))
    optimizer = Muon([p], lr=0.1, weight_decay=0.3, nesterov=nesterov, ns_steps=4)
    for k in range(3):
        p.grad = gaussian(6, 4, seed=k, dtype=torch.float64)
        g = p.grad.numpy()
        m = 0.95 * m + g
        u = g + 0.95 * m if nesterov else m
        w = w * (1 - 0.1 * 0.3) - 0.1 * 0.2 * np.sqrt(6) * naive(u, steps=4)
        optimizer.step()
    assert np.allclose(p.detach().numpy(), w, atol=1e-10)


def test_stacks_kernels_and_many_shapes_at_once(monkeypatch):
    shapes = [(4, 6), (6, 4), (4, 6), (3, 4, 6), (5, 2, 3, 3), (4, 6)]

    def all_at_once(bound):
        monkeypatch.setitem(__import__("sys").modules["skerry.train.optim.muon"]._STACK_NUMBERS, "cpu", bound)
        params = [nn.Parameter(torch.zeros(s)) for s in shapes]
        for k, p in enumerate(params):
            p.grad = gaussian(*p.shape, seed=k)
        Muon(params, lr=0.1).step()
        return [p.detach() for p in params]

    def one(matrix):
        return -0.1 * 0.2 * max(matrix.shape) ** 0.5 * newton_schulz(matrix)

    for got in (all_at_once(1 << 20), all_at_once(30)):
        for k, (w, shape) in enumerate(zip(got, shapes, strict=True)):
            g = gaussian(*shape, seed=k)
            want = torch.stack([one(x) for x in g]) if g.ndim == 3 else one(g.flatten(1)).reshape(shape)
            assert torch.allclose(w, want, atol=1e-6)
    kernel = nn.Parameter(torch.zeros(3, 4, 6))
    kernel.grad = gaussian(3, 4, 6)
    Muon([{"params": [kernel], "stacked": False}], lr=0.1).step()
    assert torch.allclose(kernel.detach(), one(gaussian(3, 4, 6).flatten(1)).reshape(3, 4, 6), atol=1e-6)


def test_the_adamw_part_is_adamw():
    ours = [nn.Parameter(gaussian(5, 3)), nn.Parameter(gaussian(7))]
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]
    optimizer = Muon([], adamw_params=ours, lr=0.01, weight_decay=0.1)
    groups = [{"params": theirs[:1], "weight_decay": 0.1}, {"params": theirs[1:], "weight_decay": 0.0}]
    peer = torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.95), eps=1e-8)
    for k in range(5):
        for i, (p, q) in enumerate(zip(ours, theirs, strict=True)):
            p.grad = q.grad = gaussian(*p.shape, seed=10 * k + i)
        optimizer.step()
        peer.step()
    for p, q in zip(ours, theirs, strict=True):
        assert torch.allclose(p, q, atol=1e-6)


def test_vectors_normalised_and_never_decayed():
    gain, bias = nn.Parameter(torch.ones(())), nn.Parameter(torch.zeros(16))
    gain.grad, bias.grad = torch.tensor(-3.0), gaussian(16)
    Muon([gain, bias], lr=0.1, weight_decay=0.5, vectors="normalize").step()
    assert gain.item() == pytest.approx(1 + 0.1 * 0.2)
    assert bias.norm().item() == pytest.approx(0.1 * 0.2 * 4, rel=1e-5)
    frozen = nn.Parameter(torch.ones(4))
    for options in ({}, {"vectors": "normalize"}):
        frozen.grad = torch.zeros(4)
        Muon([frozen], lr=0.1, weight_decay=0.5, **options).step()
        assert torch.equal(frozen, torch.ones(4))
    Muon([frozen], lr=0.1, weight_decay=0.5, decay_1d=True).step()
    assert torch.allclose(frozen, torch.full((4,), 0.95))


def small_model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Embedding(9, 6), nn.Linear(6, 12), nn.GELU(), nn.Linear(12, 6), nn.Linear(6, 9))


def train(model, optimizer, steps, start=0):
    for k in range(start, start + steps):
        tokens = torch.randint(9, (16,), generator=torch.Generator().manual_seed(k))
        loss = nn.functional.cross_entropy(model(tokens), (tokens * 2 + 1) % 9)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


def build(model, **options):
    matrices, rest = split_params(model)
    return Muon(matrices, adamw_params=rest, lr=0.02, **options)


def test_it_learns_and_repeats_itself():
    first, second = small_model(), small_model()
    loss = train(first, build(first), 60)
    assert loss < 0.2
    assert train(second, build(second), 60) == loss
    assert all(torch.equal(p, q) for p, q in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize("way", ["state_dict", "file", "pickle"])
def test_round_trip_resumes_exactly(way, tmp_path):
    model = small_model()
    optimizer = build(model, vectors="normalize")
    train(model, optimizer, 3)
    twin = copy.deepcopy(model)
    state = copy.deepcopy(optimizer.state_dict())
    if way == "file":
        torch.save(state, tmp_path / "optimizer.pt")
        state = torch.load(tmp_path / "optimizer.pt", weights_only=True)
    elif way == "pickle":
        state = pickle.loads(pickle.dumps(optimizer)).state_dict()
    fresh = build(twin)
    fresh.load_state_dict(state)
    assert fresh.param_groups[0]["vectors"] == "normalize"
    train(model, optimizer, 3, start=3)
    train(twin, fresh, 3, start=3)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True))


def test_parameters_without_gradient_and_schedules():
    w, idle = nn.Parameter(torch.ones(3, 4)), nn.Parameter(torch.ones(3, 4))
    optimizer = Muon([w, idle], lr=0.1, weight_decay=0.5)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: 0.0 if k else 1.0)
    w.grad = gaussian(3, 4)
    optimizer.step()
    assert torch.equal(idle, torch.ones(3, 4)) and not torch.equal(w, torch.ones(3, 4))
    schedule.step()
    before = w.detach().clone()
    assert optimizer.step(lambda: 7.0) == 7.0
    assert torch.equal(w, before)


def test_wrong_arguments_are_refused():
    w = nn.Parameter(torch.zeros(2, 2))
    for bad, match in (
        ({"lr": -1}, "lr is -1"),
        ({"momentum": 1.0}, "momentum is 1.0"),
        ({"betas": (0.9, 1.2)}, "betas"),
        ({"ns_steps": 0}, "ns_steps"),
        ({"scale": "none"}, "'rms', 'spectral'"),
        ({"vectors": "sgd"}, "vectors is 'sgd'"),
    ):
        with pytest.raises(ParameterError, match=match):
            Muon([w], **bad)
    with pytest.raises(ParameterError, match="kind is 'adam'"):
        Muon([{"params": [w], "kind": "adam"}])
    table = nn.Embedding(4, 2, sparse=True)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(ModelError, match=r"\(4, 2\) has a sparse gradient"):
        Muon(table.parameters()).step()
