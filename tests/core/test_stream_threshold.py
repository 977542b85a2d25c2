import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone

from skerry.core.errors import DataError, ParameterError
from skerry.core.persistence import load, save
from skerry.core.spot import DSPOT, SPOT
from skerry.core.stream_threshold import AdaptiveConformal
from skerry.core.threshold import Conformal, ExtremeValue

ALL = [SPOT(warmup=100), DSPOT(warmup=100, depth=20), AdaptiveConformal(0.05, window=50)]
NAMES = [type(rule).__name__ for rule in ALL]


def correlated(n, rho, seed, scale=1.0):
    """A stationary AR(1) series of standard normals."""
    noise = np.random.default_rng(seed).normal(size=n) * np.sqrt(1 - rho**2)
    out, state = np.empty(n), 0.0
    for i, e in enumerate(noise):
        state = rho * state + e
        out[i] = state
    return out * scale


# ---- SPOT ----------------------------------------------------------------------------------------------------


def test_with_many_peaks_spot_starts_as_the_batch_rule():
    s = np.random.default_rng(0).exponential(size=200_000)
    assert SPOT(1e-3, max_peaks=20_000).fit(s).threshold_ == pytest.approx(ExtremeValue(1e-3).cutoff(s), rel=1e-3)


@settings(max_examples=50)
@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=300), st.sampled_from([1e-3, 0.05]))
def test_the_first_cut_is_a_number_for_any_scores(scores, risk):
    assert min(scores) <= SPOT(risk).fit(scores).threshold_ < np.inf


def spot_by_the_paper(first, rest, risk, tail):
    """Algorithm 2 with growing lists, and our rule for flagged scores."""
    ordered = sorted(first)
    n_peaks = int(tail * len(first))
    level = ordered[-n_peaks - 1]
    peaks, n, flags = [s - level for s in ordered[-n_peaks:]], len(first), []
    learned = counted = risk * n
    begun = -100

    def cut():
        y = np.sort(peaks)
        weight = 1 - (np.arange(len(y))) / (len(y) - 1)
        b0, b1 = y.mean(), (weight * y).mean()
        xi = np.clip(2 - b0 / (b0 - 2 * b1), -0.5, 0.9) * len(y) / (len(y) + 50)
        held = risk * (1 + risk * n) / (1 + max(counted, risk * n))
        return level + b0 * (1 - xi) / xi * ((held * n / len(peaks)) ** -xi - 1)

    z = cut()
    for s in rest:
        flags.append(s > z)
        few = counted < risk * n + 3 * (risk * n) ** 0.5 + 3
        if len(flags) - 1 - begun <= 64 and (few or flags[-1]):
            continue
        if s > z:
            begun = len(flags) - 1
            if few:
                counted += 1
                z = cut()
            if learned >= risk * n:
                continue
            learned += 1
            s = min(s, z)
        n += 1
        if s > level:
            peaks.append(s - level)
            z = cut()
    return flags, z


def test_spot_is_the_algorithm_step_by_step():
    rng = np.random.default_rng(0)
    s = rng.exponential(size=6000)
    s[3000::500] += 20
    rule = SPOT(1e-3, 0.05, max_peaks=10_000).fit(s[:2000])
    flags, thresholds = rule.run(s[2000:])
    expected, last = spot_by_the_paper(s[:2000], s[2000:], 1e-3, 0.05)
    np.testing.assert_array_equal(flags, expected)
    assert rule.threshold_ == pytest.approx(last)
    np.testing.assert_array_equal(flags, s[2000:] > thresholds)


@pytest.mark.parametrize("law", ["normal", "exponential", "student"])
def test_spot_holds_its_risk_within_a_factor_of_two(law):
    rng = np.random.default_rng(1)
    draw = {"normal": rng.standard_normal, "exponential": rng.standard_exponential}
    s = draw[law](100_000) if law in draw else rng.standard_t(4, 100_000)
    flags, _ = SPOT(1e-3).fit(s[:5000]).run(s[5000:])
    assert 5e-4 < flags.mean() < 2e-3


@pytest.mark.parametrize("law", ["normal", "chi", "exponential"])
def test_a_first_cut_that_is_too_low_by_chance_recovers(law):
    """Few scores to start from and a small risk: five flags are aimed at in each of eight streams."""
    told = []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        s = {
            "normal": rng.standard_normal,
            "chi": lambda n: np.sqrt(rng.chisquare(8, n)),  # noqa: B023
            "exponential": rng.standard_exponential,
        }[law](20_500)
        told.append(int(SPOT(2.5e-4).fit(s[:500]).run(s[500:])[0].sum()))
    assert np.mean(told) < 10
    assert max(told) <= 20


@pytest.mark.parametrize("gap", [1, 40])
def test_far_outliers_do_not_raise_the_cut_at_will(gap):
    rng = np.random.default_rng(3)
    rule = SPOT(1e-4).fit(np.abs(rng.normal(size=300)))
    before = rule.threshold_ - rule.peak_level_
    for _ in range(200):
        assert rule.update(1e9)
        rule.run(np.abs(rng.normal(size=gap)))
        assert rule.threshold_ - rule.peak_level_ < 5 * before


def test_anomalies_neither_blind_it_nor_pass_unseen():
    rng = np.random.default_rng(1)
    s, bad = rng.standard_normal(50_000), np.zeros(50_000, dtype=bool)
    for start in range(6000, 50_000, 10_000):
        bad[start : start + 100] = True
    s[bad] = 1e6
    flags, _ = SPOT(1e-3).fit(s[:5000]).run(s[5000:])
    assert flags[bad[5000:]].all()
    assert 3e-4 < flags[~bad[5000:]].mean() < 2e-3


def test_dspot_follows_a_drift_that_floods_spot():
    rng = np.random.default_rng(2)
    s = rng.normal(size=50_000) + 20 * np.sin(np.arange(50_000) / 2000)
    s[10_000::10_000] += 15
    drifting, _ = DSPOT(1e-3).fit(s[:2000]).run(s[2000:])
    fixed, _ = SPOT(1e-3).fit(s[:2000]).run(s[2000:])
    assert drifting[8000::10_000].all()
    assert 2e-4 < drifting.mean() < 3e-3
    assert fixed.mean() > 0.01 or not fixed[8000::10_000].all()


def test_dspot_equals_a_walk_with_a_list():
    s = correlated(3000, 0.5, 3)
    rule = DSPOT(0.01, 0.1, warmup=200, depth=30).fit(s[:500])
    window, inner = list(s[470:500]), SPOT(0.01, 0.1, warmup=10_000)
    inner.fit([s[i] - np.mean(s[i - 30 : i]) for i in range(30, 500)])
    for score in s[500:]:
        mean = np.mean(window)
        assert rule.threshold_ == pytest.approx(mean + inner.threshold_)
        flag = inner.update(score - mean)
        assert rule.update(score) == flag
        if not flag:
            window = [*window[1:], score]


@pytest.mark.parametrize("rule", [SPOT(warmup=200), DSPOT(warmup=200, depth=50)], ids=["SPOT", "DSPOT"])
def test_a_lasting_change_of_level_does_not_alarm_for_ever(rule):
    rng = np.random.default_rng(4)
    s = np.r_[rng.normal(size=1000), 50 + rng.normal(size=2000)]
    flags, _ = clone(rule).run(s)
    assert flags[1000:1100].all()  # a long anomaly is flagged for half the memory
    assert flags[1200:].mean() < 0.05
    calm = clone(rule).run(rng.normal(size=1500))[0]
    assert calm[:200].sum() == 0  # warming up
    assert calm.mean() < 0.02


def test_memory_is_bounded_and_the_latest_peaks_count():
    rng = np.random.default_rng(5)
    rule = SPOT(tail=0.5, warmup=100, max_peaks=50)
    rule.run(rng.exponential(size=5000))
    assert rule.peaks_.size == 50
    before = len(pickle.dumps(rule))
    rule.run(rng.exponential(size=5000))
    assert abs(len(pickle.dumps(rule)) - before) < 50


# ---- adaptive conformal --------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.sampled_from([-3.0, 0.0, 0.5, 1.0, 7.0, 1e6]), min_size=1, max_size=300),
    st.sampled_from([0.01, 0.1, 0.4]),
    st.sampled_from([0.01, 0.1, 0.5]),
    st.integers(2, 20),
)
def test_the_share_of_flags_is_bounded_for_any_sequence(scores, alpha, gamma, window):
    flags, _ = AdaptiveConformal(alpha, gamma, window).run(scores)
    assert abs(flags.mean() - alpha) <= (max(alpha, 1 - alpha) + gamma) / (gamma * len(scores)) + 1e-12


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([0.0, 1.0, 2.0, 3.0, 4.0]), min_size=1, max_size=120), st.integers(2, 15))
def test_adaptive_conformal_equals_the_p_value_rule(scores, window):
    rule, level = AdaptiveConformal(0.2, 0.05, window), 0.2
    for t, score in enumerate(scores):
        past = scores[max(0, t - window) : t]
        p = (1 + sum(v >= score for v in past)) / (1 + len(past))
        expected = p <= level + 1e-9 / (1 + len(past))
        assert rule.update(score) == expected
        level += 0.05 * (0.2 - expected)
        assert rule.level_ == pytest.approx(level)


def test_false_alarms_over_time_stay_near_alpha_where_a_fixed_cut_fails():
    s = correlated(40_000, 0.9, 6) * np.repeat([1.0, 2.0, 0.5, 4.0], 10_000)
    adaptive, _ = AdaptiveConformal(0.05, 0.01, 500).fit(s[:2000]).run(s[2000:])
    fixed = s[2000:] > Conformal(0.05).cutoff(s[:2000])
    rates = adaptive[: 38_000 // 2000 * 2000].reshape(-1, 2000).mean(axis=1)
    assert np.abs(rates - 0.05).max() < 0.03  # in every stretch of 2,000 steps
    assert np.abs(fixed.reshape(-1, 2000).mean(axis=1) - 0.05).max() > 0.15


# ---- what they share -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ALL, ids=NAMES)
def test_no_decision_looks_into_the_future_and_missing_scores_change_nothing(rule):
    s = correlated(400, 0.7, 8)
    flags, thresholds = clone(rule).run(s)
    short, _ = clone(rule).run(s[:250])
    np.testing.assert_array_equal(flags[:250], short)
    gaps = np.insert(s, [0, 150, 150, 300], np.nan)
    kept = ~np.isnan(gaps)
    flags_gaps, thresholds_gaps = clone(rule).run(gaps)
    np.testing.assert_array_equal(flags_gaps[kept], flags)
    np.testing.assert_array_equal(thresholds_gaps[kept], thresholds)
    assert not flags_gaps[~kept].any()


@pytest.mark.parametrize("rule", ALL, ids=NAMES)
def test_saved_in_mid_stream_it_goes_on_as_if_nothing_had_happened(rule, tmp_path):
    s = correlated(600, 0.7, 9)
    s[::97] += 6
    whole, _ = clone(rule).run(s)
    first = clone(rule)
    head, _ = first.run(s[:301])
    second = load(save(first, tmp_path / "rule.skerry"))
    tail, _ = second.run(s[301:])
    np.testing.assert_array_equal(np.r_[head, tail], whole)
    third = pickle.loads(pickle.dumps(first))
    np.testing.assert_array_equal(third.run(s[301:])[0], tail)


@pytest.mark.parametrize("rule", ALL, ids=NAMES)
def test_fit_forgets_and_bad_scores_are_refused(rule):
    s = correlated(500, 0.5, 10)
    rule = clone(rule)
    fresh = clone(rule).fit(s).threshold_
    rule.run(100 + s)
    assert rule.fit(s).threshold_ == fresh
    with pytest.raises(DataError, match="row 3 is infinite"):
        rule.fit([0, 1, 2, np.inf])
    with pytest.raises(DataError, match="at least"):
        rule.fit([1.0])
    with pytest.raises(DataError, match="shape"):
        rule.fit(np.zeros((3, 2)))


@pytest.mark.parametrize("rule", ALL, ids=NAMES)
def test_constant_scores_raise_no_flag(rule):
    flags, _ = clone(rule).run(np.zeros(500))
    assert not flags.any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SPOT(risk=0.5).fit([0, 1]), "risk"),
        (lambda: SPOT(warmup=5).fit([0, 1]), "warmup"),
        (lambda: DSPOT(depth=990).run([0, 1]), "warmup must be a whole number of at least 1010"),
        (lambda: AdaptiveConformal(alpha=0.7).run([0]), "alpha"),
        (lambda: AdaptiveConformal(gamma=0).run([0]), "gamma"),
    ],
)
def test_bad_parameters_say_what_is_allowed(make, message):
    with pytest.raises(ParameterError, match=message):
        make()


@pytest.mark.parametrize("rule", ALL, ids=NAMES)
def test_infinite_scores_are_flagged_and_break_nothing(rule):
    s = correlated(400, 0.5, 11)
    rule = clone(rule).fit(s)
    before = rule.threshold_
    assert rule.update(np.inf) is True and rule.update(-np.inf) is False
    assert rule.threshold_ == before or isinstance(rule, AdaptiveConformal)
    for _ in range(200):
        rule.update(np.inf)
    assert np.isfinite(rule.run(s)[1]).sum() > 200
