"""3MR against a naive twin, and what it promises of copies."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry.core.errors import ParameterError
from skerry.rank.redundancy import order_3mr, unit_scale


def naive(rel, red, syn, alpha, beta, aggregate):
    together = {"median": np.median, "mean": np.mean, "sum": np.sum}[aggregate]
    order = [int(np.argmax(rel))]
    while len(order) < len(rel):
        best, score = None, -np.inf
        for f in range(len(rel)):
            if f in order:
                continue
            s = rel[f] - alpha * together([red[g][f] for g in order]) + beta * together([syn[g][f] for g in order])
            if s > score + 1e-12:
                best, score = f, s
        order.append(best)
    return order


@given(
    st.integers(1, 7),
    st.integers(0, 10_000),
    st.sampled_from(["median", "mean", "sum"]),
    st.floats(0, 2),
    st.floats(0, 2),
)
def test_order_equals_naive(p, seed, aggregate, alpha, beta):
    rng = np.random.default_rng(seed)
    rel, red, syn = rng.random(p), rng.random((p, p)), rng.random((p, p))
    red, syn = (red + red.T) / 2, (syn + syn.T) / 2
    steps = order_3mr([str(j) for j in range(p)], rel, red, syn, alpha=alpha, beta=beta, aggregate=aggregate)
    assert [int(s["feature"]) for s in steps] == naive(rel, red, syn, alpha, beta, aggregate)
    assert [s["step"] for s in steps] == list(range(1, p + 1))
    for s in steps:
        assert s["score"] == pytest.approx(s["relevance"] - alpha * s["redundancy"] + beta * s["relation"])


@given(st.integers(0, 10_000), st.integers(3, 8))
def test_a_copy_is_not_second_if_another_is_worth_more(seed, p):
    rng = np.random.default_rng(seed)
    rel = rng.random(p)
    top = int(np.argmax(rel))
    rel = np.append(rel, rel[top])  # the last is a copy of the best
    red, syn = rng.random((p + 1, p + 1)) * 0.5, np.zeros((p + 1, p + 1))
    red = (red + red.T) / 2
    red[top, p] = red[p, top] = 1.0
    second = int(order_3mr([str(j) for j in range(p + 1)], rel, red, syn)[1]["feature"])
    others = [rel[f] - red[top, f] for f in range(p) if f != top]
    assert (second == p) == (rel[p] - 1.0 > max(others))


def test_scale():
    assert unit_scale([3.0, 1.0, 2.0]).tolist() == [1.0, 0.0, 0.5]
    assert unit_scale([2.0, 2.0]).tolist() == [0.0, 0.0]
    assert unit_scale([]).size == 0


def test_unknown_aggregate():
    with pytest.raises(ParameterError, match="aggregate='max'"):
        order_3mr(["a"], [1], [[0]], [[0]], aggregate="max")
