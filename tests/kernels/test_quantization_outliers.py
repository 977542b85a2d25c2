"""SpQR's compiled loop against a plain NumPy twin."""

import numpy as np
import pytest

from skerry.kernels.quantization_outliers import likely_outliers, spqr_block

F = np.float32
LOW, HIGH, FLOOR = F(-4), F(3), F(1e-9)


def naive_grid(u):
    low, high = min(u.min(), F(0)), max(u.max(), F(0))
    s = max((high - low) / (HIGH - LOW), FLOOR)
    return s, LOW - low / s


def naive_values(u, s, z):
    c = np.clip(np.rint(u.astype(F) / s + z), LOW, HIGH).astype(F)
    return c, (c - z) * s


def naive_likely(u, power, threshold):
    def error(v, p):
        return (((v - naive_values(v, *naive_grid(v))[1]).astype(np.float64)) ** 2 * p).sum()

    others = [np.delete(np.arange(len(u)), k) for k in range(len(u))]
    return np.array([error(u, power) - error(u[o], power[o]) > threshold for o in others])


def brain(x):
    """Round to bfloat16, half to even."""
    bits = np.asarray(x, F).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(F)


@pytest.mark.parametrize("threshold", [0.01, 0.2, np.inf])
def test_leave_one_out(threshold):
    rng = np.random.default_rng(0)
    for _ in range(40):
        u, power = rng.standard_normal(16).astype(F), rng.uniform(0.5, 2, 16)
        u[rng.integers(16)] *= 6
        likely, skip = np.zeros(16, bool), np.zeros(16, bool)
        likely_outliers(u, power, threshold, LOW, HIGH, FLOOR, skip, likely)
        assert np.array_equal(likely, naive_likely(u, power, threshold))
        assert not skip.any()


@pytest.mark.parametrize("bits", [3, 16])
def test_a_block_equals_the_plain_loop(bits):
    rng = np.random.default_rng(1)
    q, p, size, rows, threshold = 21, 32, 8, 16, 0.3
    weight = (rng.standard_normal((q, p)) * rng.choice([1, 5], (q, p), p=[0.95, 0.05])).astype(F).astype(np.float64)
    feedback, power = np.triu(rng.standard_normal((p, p)) * 0.2, 1) + np.eye(p), rng.uniform(0.5, 2, p)
    error, codes, extra = np.zeros((q, p)), np.zeros((q, p), np.int8), np.zeros((q, p), F)
    levels = [np.zeros((n, 4), t) for _ in range(2) for n, t in ((q, F), (q, np.uint8), (2, F), (2, F))]
    spqr_block(
        *(weight.copy(), weight, error, codes, extra, feedback, power, threshold, size, rows, 0, LOW, HIGH, FLOOR),
        *(bits, 11, *levels),
    )
    target = weight.copy()
    for j in range(p):
        g = j // size
        if j % size == 0:
            fitted = []
            for i in range(q):
                u = target[i, j : j + size].astype(F)
                likely = naive_likely(u, power[j : j + size], threshold)
                fitted.append(naive_grid(np.append(u[~likely], F(0))))
            grids = np.array(fitted, F).T
            for k, (first, last) in enumerate(((0, 16), (16, 21))):
                for level, values in zip((levels[:4], levels[4:]), grids, strict=True):
                    part = values[first:last]
                    if bits == 16:
                        np.testing.assert_array_equal(level[0][first:last, g], brain(part))
                        continue
                    low, step = brain(part.min()), brain((part.max() - part.min()) / F(7))
                    assert level[2][k, g] == low
                    assert level[3][k, g] == step
                    rounded = np.clip(np.rint((part - low) / step), 0, 7).astype(F)
                    np.testing.assert_array_equal(level[1][first:last, g], rounded)
                    np.testing.assert_array_equal(level[0][first:last, g], low + rounded * step)
        s, z = levels[0][:, g], levels[4][:, g]
        c, v = naive_values(target[:, j], s, z)
        e = target[:, j] - v
        d = np.where(e * e * power[j] > threshold, e.astype(np.float16).astype(np.float64), 0.0)
        np.testing.assert_array_equal(codes[:, j], c)
        np.testing.assert_allclose(extra[:, j], d, rtol=1e-3)
        target[:, j + 1 :] += np.outer(weight[:, j] - v - extra[:, j], feedback[j, j + 1 :])
    assert 0 < (extra != 0).mean() < 0.2
