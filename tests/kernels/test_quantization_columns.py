"""Compiled column loops of the weight solvers against plain NumPy twins."""

import numba
import numpy as np
import pytest
import torch

from skerry.kernels import quantization_columns as kernel
from skerry.quant.numerics import AffineGrid

F = np.float32
RULES = {
    kernel.SYMMETRIC: {"symmetric": True},
    kernel.FULL_RANGE: {"symmetric": True, "full_range": True},
    kernel.ASYMMETRIC: {"symmetric": False},
}


def naive_code(u, s, z, low, high):
    return np.clip(np.round(np.asarray(u, dtype=F) / s) + z, low, high).astype(F)


def problem(q=21, p=24, seed=0):
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((q, p)).astype(F).astype(np.float64)
    feedback = np.triu(rng.standard_normal((p, p)) * 0.3, 1) + np.eye(p)
    return weight, feedback


def empty(weight):
    return np.zeros_like(weight), np.zeros(weight.shape, dtype=np.int8)


def test_codes_are_those_of_the_grid():
    W = torch.randn(7, 40, generator=torch.Generator().manual_seed(0)) * 3
    W[0, :4] = torch.tensor([0.5, 1.5, -0.5, 1e9])
    for settings in RULES.values():
        grid = AffineGrid(bits=3, **settings)
        scale, zero = grid.fit(W)
        scale[0] = 1.0
        z = torch.zeros_like(scale) if zero is None else zero.float()
        found = [
            [kernel.grid_level(float(w), F(scale[i, 0]), F(z[i, 0]), F(grid.qmin), F(grid.qmax)) for w in W[i]]
            for i in range(len(W))
        ]
        assert np.array_equal(found, grid.codes(W, scale, zero).numpy())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("rule", RULES)
def test_grids_are_those_of_affine_grid(rule, dtype):
    grid = AffineGrid(bits=3, scale_dtype=dtype, **RULES[rule])
    W = torch.randn(60, 9, generator=torch.Generator().manual_seed(1)) * torch.logspace(-7, 3, 60)[:, None]
    W[3] = 0.0
    W[4] = W[4].abs()
    scale, zero = grid.fit(W)
    floor = F(max(float(W.abs().amax() * 1e-8), 1e-30))
    bits = {"float32": 24, "bfloat16": 8, "float16": 11}[dtype]
    for i, w in enumerate(W.numpy()):
        s, z = kernel.min_max_grid(w.min(), w.max(), rule, F(grid.qmin), F(grid.qmax), floor, bits)
        assert s == scale[i, 0].float().item(), i
        assert z == (0 if zero is None or not np.isfinite(s) or s == 0 else zero[i, 0].item()) or s == 0


def test_the_unextended_rule_is_adadims():
    s, z = kernel.min_max_grid(F(1.0), F(4.0), kernel.UNEXTENDED, F(-2), F(1), F(0), 24)
    assert s == 1.0
    assert z == -2.0  # zero clamps at the lowest code: a range above 0 is clipped


def naive_feedback(weight, feedback, scale, zero, rows, group, low, high):
    target, (error, codes) = weight.copy(), empty(weight)
    for j in range(weight.shape[1]):
        for i in range(weight.shape[0]):
            s, z = scale[i // rows, group[j]], zero[i // rows, group[j]]
            c = naive_code(target[i, j], s, z, low, high)
            error[i, j], codes[i, j] = weight[i, j] - np.float64((c - z) * s), c
            target[i, j + 1 :] += error[i, j] * feedback[j, j + 1 :]
    return error, codes


@pytest.mark.parametrize("rows", [1, 7])
def test_feedback_in_blocks_equals_column_by_column(rows):
    weight, feedback = problem()
    q, p = weight.shape
    group = np.arange(p) // 8
    rng = np.random.default_rng(2)
    scale = rng.uniform(0.2, 0.5, (q // rows, 3)).astype(F)
    zero = rng.integers(-2, 2, (q // rows, 3)).astype(F)
    expected = naive_feedback(weight, feedback, scale, zero, rows, group, -4, 3)
    error, codes = empty(weight)
    for start in range(0, p, 10):
        stop = min(start + 10, p)
        target = np.ascontiguousarray(weight[:, start:stop] + error[:, :start] @ feedback[:start, start:stop])
        block = np.ascontiguousarray(feedback[start:stop, start:stop])
        kernel.feedback_block(target, weight, error, codes, block, scale, zero, rows, group, start, F(-4), F(3))
    assert np.array_equal(codes, expected[1])
    np.testing.assert_allclose(error, expected[0], atol=1e-12)


def test_fresh_grids_follow_the_compensated_column():
    weight, feedback = problem()
    q, p = weight.shape
    rows, target = 7, weight.copy()
    error, codes = empty(weight)
    scale, zero = np.zeros((q // rows, p), F), np.zeros((q // rows, p), F)
    kernel.fresh_column_block(
        weight.copy(), weight, error, codes, feedback, scale, zero, rows, 0, kernel.ASYMMETRIC, F(-4), F(3), F(1e-9), 24
    )
    for j in range(p):
        for t in range(q // rows):
            part = target[t * rows : (t + 1) * rows, j].astype(F)
            low, high = min(part.min(), F(0)), max(part.max(), F(0))
            assert scale[t, j] == F((high - low) / F(7))
        values = (codes[:, j] - zero[:, j].repeat(rows)) * scale[:, j].repeat(rows)
        np.testing.assert_allclose(error[:, j], weight[:, j] - values, atol=1e-7)
        target[:, j + 1 :] += error[:, j : j + 1] * feedback[j, j + 1 :]


def test_fresh_groups_of_a_row():
    weight, feedback = problem()
    error, codes = empty(weight)
    scale, zero = np.zeros((21, 3), F), np.zeros((21, 3), F)
    kernel.fresh_group_block(
        weight.copy(), weight, error, codes, feedback, scale, zero, 8, 0, kernel.SYMMETRIC, F(-3), F(3), F(1e-9), 24
    )
    target = weight.copy()
    for j in range(24):
        if j % 8 == 0:
            np.testing.assert_array_equal(scale[:, j // 8], np.abs(target[:, j : j + 8]).max(1).astype(F) / F(3))
        target[:, j + 1 :] += error[:, j : j + 1] * feedback[j, j + 1 :]


def naive_descent(target, gram, value, scale, zero, rows, group, low, high, rounded, settled):
    value = value.copy()
    for j in range(value.shape[1]):
        for i in range(value.shape[0]):
            u = value[i, j] + (target[i] - value[i]) @ gram[:, j] / gram[j, j]
            new = u
            if rounded:
                s, z = scale[i // rows, group[j]], zero[i // rows, group[j]]
                new = np.float64((naive_code(u, s, z, low, high) - z) * s)
                if settled and (new - u) ** 2 >= (value[i, j] - u) ** 2:
                    new = value[i, j]
            value[i, j] = new
    return value


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize(("rounded", "settled"), [(True, False), (True, True), (False, False)])
def test_a_blocked_sweep_equals_the_plain_one(rounded, settled, sparse):
    weight, _ = problem()
    q, p = weight.shape
    X = np.random.default_rng(5).standard_normal((60, p)) @ np.random.default_rng(6).standard_normal((p, p))
    gram = X.T @ X
    group, scale, zero = np.arange(p) // 12, np.full((q, 2), 0.4, F), np.zeros((q, 2), F)
    value = naive_code(weight, F(0.4), F(0), -4, 3).astype(np.float64) * np.float64(F(0.4)) if settled else weight * 0.9
    expected = naive_descent(weight, gram, value, scale, zero, 1, group, -4, 3, rounded, settled)
    coupling = gram / np.diag(gram)
    residual, codes = (weight - value) @ coupling, np.zeros((q, p), np.int8)
    active, moved = np.ones(q, dtype=bool), np.zeros(q, dtype=np.int64)
    for start in range(0, p, 10):
        stop = min(start + 10, p)
        changes, own = np.empty((q, stop - start)), np.ascontiguousarray(coupling[start:stop, start:stop])
        kernel.coordinate_block(
            *(residual, value, codes, own, scale, zero, 1, group, start, F(-4), F(3), rounded, settled),
            *(active, changes, moved),
        )
        if sparse:
            kernel.spread_changes(residual, changes, np.ascontiguousarray(coupling[start:stop]), start, stop)
        else:
            residual[:, :start] -= changes @ coupling[start:stop, :start]
            residual[:, stop:] -= changes @ coupling[start:stop, stop:]
    np.testing.assert_allclose(value, expected, atol=1e-9)
    np.testing.assert_allclose(residual, (weight - value) @ coupling, atol=1e-9)
    E = weight - value
    found = kernel.descent_error(weight, value, residual, np.diag(gram).copy())
    np.testing.assert_allclose(found, np.sum((E @ gram) * E), rtol=1e-9)


def test_threads_change_nothing():
    weight, feedback = problem(q=64, p=64)
    found = []
    for n in (1, numba.config.NUMBA_NUM_THREADS):
        numba.set_num_threads(n)
        error, codes = empty(weight)
        scale, zero = np.full((64, 1), 0.3, F), np.zeros((64, 1), F)
        group = np.zeros(64, np.int64)
        kernel.feedback_block(
            *(weight.copy(), weight, error, codes, feedback, scale, zero, 1, group, 0, F(-4), F(3)),
        )
        found.append((error, codes))
    assert np.array_equal(found[0][0], found[1][0])
    assert np.array_equal(found[0][1], found[1][1])
