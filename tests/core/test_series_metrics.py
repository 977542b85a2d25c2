import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry.core.errors import DataError, ParameterError
from skerry.core.metrics import best_f1
from skerry.core.series_metrics import (
    average_detection_delay,
    detection_delays,
    nab_score,
    point_adjust,
    point_adjusted_f1,
    range_f1,
    range_precision,
    range_recall,
    ucr_hit,
)

PAIRS = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=40)
SCORED = st.lists(
    st.tuples(st.integers(0, 1), st.sampled_from([-np.inf, 0.0, 0.5, 1.0, 2.0])), min_size=2, max_size=30
).filter(lambda rows: len({y for y, _ in rows}) == 2)


def runs(flags):
    out, start = [], None
    for t, f in enumerate([*flags, 0]):
        if f and start is None:
            start = t
        if not f and start is not None:
            out.append((start, t))
            start = None
    return out


# ---- ranges --------------------------------------------------------------------------------------------------


def bias_weight(bias, i, n):
    if bias == "flat":
        return 1
    if bias == "front":
        return n - i + 1
    if bias == "back":
        return i
    return i if i <= n / 2 else n - i + 1


def reward(run, others, flags, alpha, bias, cardinality):
    a, b = run
    touching = sum(c < b and d > a for c, d in others)
    weights = [bias_weight(bias, i + 1, b - a) for i in range(b - a)]
    share = sum(w for w, f in zip(weights, flags[a:b], strict=True) if f) / sum(weights)
    if cardinality == "reciprocal" and touching > 1:
        share /= touching
    return alpha * (touching > 0) + (1 - alpha) * share


@settings(max_examples=200)
@given(
    PAIRS,
    st.sampled_from([0.0, 0.3, 1.0]),
    st.sampled_from(["flat", "front", "middle", "back"]),
    st.sampled_from(["reciprocal", "one"]),
)
def test_range_measures_equal_the_paper_step_by_step(rows, alpha, bias, cardinality):
    y, flags = zip(*rows, strict=True)
    real, found = runs(y), runs(flags)
    options = {"bias": bias, "cardinality": cardinality}
    p = np.mean([reward(f, real, y, 0, bias, cardinality) for f in found]) if found else 0.0
    assert range_precision(y, flags, **options) == pytest.approx(p)
    if not real:
        with pytest.raises(DataError, match="no anomaly"):
            range_recall(y, flags, **options)
        return
    r = np.mean([reward(a, found, flags, alpha, bias, cardinality) for a in real])
    assert range_recall(y, flags, alpha=alpha, **options) == pytest.approx(r)
    assert range_f1(y, flags, alpha=alpha, **options) == pytest.approx(2 * p * r / (p + r) if p + r else 0.0)


def test_ranges_of_one_step_are_the_plain_measures():
    y, flags = np.tile([1, 0], 50), np.tile([1, 0, 0, 0], 25)
    assert range_recall(y, flags) == 0.5
    assert range_precision(y, flags) == 1.0


# ---- delay ---------------------------------------------------------------------------------------------------


@given(PAIRS.filter(lambda rows: any(y for y, _ in rows)))
def test_delays_equal_counting(rows):
    y, flags = zip(*rows, strict=True)
    expected = [next((t - a for t in range(a, b) if flags[t]), b - a) for a, b in runs(y)]
    assert detection_delays(y, flags).tolist() == expected
    assert average_detection_delay(y, flags) == pytest.approx(np.mean(expected))


# ---- NAB -----------------------------------------------------------------------------------------------------


def nab_twin(y, flags, weights, probation):
    """Walk through the series as the benchmark does."""

    def sigma(p):
        return 2 / (1 + math.exp(5 * p)) - 1

    hit, false, miss = weights
    n, best, fp, last = len(y), {}, 0.0, None
    windows = runs(y)
    for t in range(n):
        if t < min(math.floor(probation * n), probation * 5000):
            last = max([last, *[w for w in windows if w[1] <= t + 1]], key=lambda w: w or (-1, -1))
            continue
        inside = next((w for w in windows if w[0] <= t < w[1]), None)
        if inside:
            best.setdefault(inside, -miss)
            if flags[t]:
                best[inside] = max(best[inside], hit * sigma(-(inside[1] - t) / (inside[1] - inside[0])) / sigma(-1))
            last = inside if t == inside[1] - 1 else last
        elif flags[t]:
            p = 3.0 if last is None else (t - last[1] + 1) / max(last[1] - last[0] - 1, 1)
            fp += false * (-1.0 if p >= 3 else sigma(p))
    return fp + sum(best.values()), len(best)


@settings(max_examples=200)
@given(PAIRS, st.sampled_from(["standard", "reward_low_fp", "reward_low_fn"]), st.sampled_from([0.0, 0.15, 0.5]))
def test_nab_equals_a_walk_through_the_series(rows, profile, probation):
    y, flags = zip(*rows, strict=True)
    weights = {"standard": (1, 0.11, 1), "reward_low_fp": (1, 0.22, 1), "reward_low_fn": (1, 0.11, 2)}[profile]
    raw, n_windows = nab_twin(y, flags, weights, probation)
    options = {"profile": profile, "probation": probation}
    assert nab_score(y, flags, normalize=False, **options) == pytest.approx(raw, abs=1e-9)
    if n_windows:
        expected = 100 * (raw + weights[2] * n_windows) / ((weights[0] + weights[2]) * n_windows)
        assert nab_score(y, flags, **options) == pytest.approx(expected, abs=1e-9)
    else:
        with pytest.raises(DataError, match="no anomaly window"):
            nab_score(y, flags, **options)


def test_nab_rewards_early_flags_and_charges_false_ones():
    y = np.zeros(200, dtype=int)
    y[100:120] = 1
    at = np.eye(200, dtype=bool)
    with np.errstate(all="raise"):
        assert nab_score(np.r_[1, 1, np.zeros(9000)], np.ones(9002), probation=0) < 0
    early, late, false = nab_score(y, at[101]), nab_score(y, at[118]), nab_score(y, at[60] | at[100])
    assert 100 > early > late > 0
    assert false == pytest.approx(100 * (1 - 0.11 + 1) / 2)
    assert nab_score(y, at[10] | at[100]) == pytest.approx(100)  # in the probation


# ---- UCR and point adjustment --------------------------------------------------------------------------------


@settings(max_examples=200)
@given(SCORED, st.integers(0, 5))
def test_ucr_hit_is_the_share_of_tops_near_an_anomaly(rows, tolerance):
    y, s = zip(*rows, strict=True)
    top = [t for t, v in enumerate(s) if v == max(s)]
    near = [any(a - tolerance <= t <= b - 1 + tolerance for a, b in runs(y)) for t in top]
    assert ucr_hit(y, s, tolerance) == pytest.approx(np.mean(near))


@given(SCORED)
def test_point_adjusted_f1_is_the_best_over_thresholds(rows):
    y, s = zip(*rows, strict=True)

    def f1(flags):
        adjusted = list(flags)
        for a, b in runs(y):
            if any(flags[a:b]):
                adjusted[a:b] = [True] * (b - a)
        assert point_adjust(y, flags).tolist() == adjusted
        true = sum(f and label for f, label in zip(adjusted, y, strict=True))
        return 2 * true / (sum(adjusted) + sum(y))

    assert point_adjusted_f1(y, s) == pytest.approx(max(f1([v >= cut for v in s]) for cut in set(s)))
    assert point_adjusted_f1(y, s) >= best_f1(y, s) - 1e-12


def test_point_adjustment_flatters_random_scores():
    y = np.zeros(10_000, dtype=int)
    y[3000:4000] = 1
    noise = np.random.default_rng(0).normal(size=y.size)
    assert point_adjusted_f1(y, noise) > 0.9 > 0.3 > best_f1(y, noise)


# ---- bad input -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("measure", [range_recall, range_precision, detection_delays, nab_score, point_adjust])
def test_bad_flags_name_the_row(measure):
    with pytest.raises(DataError, match="row 2"):
        measure([0, 1, 1], [0, 1, np.nan])
    with pytest.raises(DataError, match="labels must be 0 or 1, got 7"):
        measure([0, 7, 1], [0, 1, 0])
    with pytest.raises(DataError, match="differ in shape"):
        measure([0, 1, 1], [0, 1])


@pytest.mark.parametrize("measure", [ucr_hit, point_adjusted_f1])
def test_bad_scores_name_the_row(measure):
    with pytest.raises(DataError, match="row 1"):
        measure([0, 1, 1], [0, np.nan, 1])
    for y in ([0, 0], [1, 1]):
        with pytest.raises(DataError, match="one class"):
            measure(y, [1.0, 2.0])


@pytest.mark.parametrize(
    ("measure", "options", "message"),
    [
        (range_recall, {"alpha": 2}, "alpha"),
        (range_recall, {"bias": "frontal"}, "did you mean 'front'"),
        (range_recall, {"cardinality": "two"}, "cardinality"),
        (nab_score, {"profile": "standart"}, "did you mean 'standard'"),
        (nab_score, {"probation": 1.0}, "probation"),
        (ucr_hit, {"tolerance": -1}, "tolerance"),
    ],
)
def test_bad_options_say_what_is_allowed(measure, options, message):
    with pytest.raises(ParameterError, match=message):
        measure([0, 1], [0, 1], **options)


def test_all_anomaly_and_one_step():
    assert range_recall([1], [1]) == range_precision([1], [1]) == 1.0
    assert average_detection_delay([1, 1, 1], [0, 0, 1]) == 2.0
    assert range_precision([0], [0]) == 0.0
