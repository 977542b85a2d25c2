"""Crosses: the whole space is covered in turn, and a cross must beat its parents."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry.kernels import contingency as kernel
from skerry.rank.crosses import CrossPlan, gamma_test, score_crosses
from skerry.rank.outrank import OutRank


@settings(max_examples=40)
@given(st.integers(2, 9), st.integers(2, 3), st.integers(1, 12))
def test_every_cross_is_counted_before_one_is_counted_twice(p, order, limit):
    plan = CrossPlan(order, limit, seed=1)
    names = [f"f{j}" for j in range(p)]
    for _ in range(12):
        chosen = plan.choose(names)
        assert len(set(chosen)) == len(chosen)
        assert all(list(c) == sorted(set(c)) for c in chosen)
    from math import comb

    total = sum(comb(p, r) for r in range(2, min(order, p) + 1))
    counted = list(plan.evaluated.values()) + [0] * (total - len(plan.evaluated))
    assert max(counted) - min(counted) <= 1


def test_a_space_too_large_to_list_is_drawn():
    plan = CrossPlan(3, 50, seed=0)
    chosen = plan.choose([f"f{j}" for j in range(400)])
    assert len(set(chosen)) == 50
    assert CrossPlan(3, 50, seed=0).choose([f"f{j}" for j in range(400)]) == chosen


def crossed(columns, y, draws=5, seed=0, combos=((0, 1),)):
    parts = [kernel.encode(c)[0] for c in columns]
    codes, cards = kernel.pack(parts)
    target = kernel.encode(y)[0]
    sums = kernel.Sums(y.size)
    return score_crosses(
        codes, cards, list(combos), target, int(target.max()) + 1, sums, draws=draws, seed=seed,
        keys=np.arange(len(parts)),
    )  # fmt: skip


def test_scores_are_the_information_of_the_joined_column():
    rng = np.random.default_rng(0)
    a, b, d = rng.integers(0, 4, 900), rng.integers(0, 5, 900), rng.integers(0, 2, 900)
    y = rng.integers(0, 3, 900)
    got = crossed([a, b, d], y, combos=((0, 1), (0, 1, 2)))
    pairs = [a * 5 + b, (a * 5 + b) * 2 + d]
    for q, joined in enumerate(pairs):
        assert got.mi[q] == pytest.approx(kernel.mutual_information(kernel.encode(joined)[0], y), abs=1e-10)
        assert got.cells[q] == np.unique(joined).size


@pytest.mark.parametrize("cards", [(3, 4), (40, 300)])
def test_a_strong_parent_is_no_interaction(cards):
    # y follows a; b is noise: the cross tells much, but nothing beyond a. Of 200 such, few are significant
    rng = np.random.default_rng(5)
    p, gains = [], []
    for _ in range(40):
        a = rng.integers(0, cards[0], 1200)
        columns = [a, *(rng.integers(0, cards[1], 1200) for _ in range(5))]
        y = (rng.random(1200) < 0.2 + 0.6 * (a % 2)).astype(int)
        got = crossed(columns, y, combos=[(0, j) for j in range(1, 6)])
        assert (got.mi > 0.1).all()
        p += list(got.p)
        gains += list(got.gain)
    p = np.array(p)
    assert np.mean(p < 0.05) < 0.09
    assert p.min() > 1e-4
    assert abs(np.mean(gains)) < 4 * np.std(gains) / np.sqrt(len(gains)) + 0.002


def test_an_interaction_is_significant_and_a_third_column_adds_nothing():
    rng = np.random.default_rng(1)
    a, b, d = (rng.integers(0, 2, 3000) for _ in range(3))
    y = np.where(rng.random(3000) < 0.8, a ^ b, rng.integers(0, 2, 3000))
    got = crossed([a, b, d], y, combos=((0, 1), (0, 2), (0, 1, 2)))
    assert got.p[0] < 1e-20
    assert got.p[1] > 1e-3
    assert got.p[2] > 1e-3  # it tells as much as the pair, which is one of its parents
    assert got.gain[0] > 0.1 > 10 * abs(got.gain[2])


def test_a_parent_that_determines_the_target_leaves_nothing_to_gain():
    y = np.arange(60) % 2
    got = crossed([y, np.arange(60) % 3], y)
    assert (got.p[0], got.gain[0]) == (1.0, 0.0)


def test_gamma_law_is_chi_squared():
    from scipy.stats import chi2

    _, p = gamma_test(np.array([0.004]), np.array([6 / 4000]), 2000)
    assert p[0] == pytest.approx(chi2.sf(16, 6), rel=1e-9)


def test_triples_and_table():
    rng = np.random.default_rng(2)
    x = rng.integers(0, 2, (3, 4000))
    frame = pl.DataFrame({"a": x[0], "b": x[1], "c": x[2], "noise": rng.integers(0, 9, 4000), "label": x.sum(0) % 2})
    ranking = OutRank(interaction_order=3).fit(frame).ranking_
    assert ranking["feature"][0] == "a AND b AND c"
    row = ranking.to_dicts()[0]
    assert row["q_value"] < 1e-6
    assert row["gain"] == pytest.approx(np.log(2), rel=0.02)
    assert row["synergy"] == pytest.approx(np.log(2), rel=0.02)
    others = ranking.filter(pl.col("gain").is_not_null() & (pl.col("feature") != "a AND b AND c"))
    four = others.filter(~pl.col("feature").str.contains("a AND b AND c"))
    assert (four["q_value"] > 0.001).all()
