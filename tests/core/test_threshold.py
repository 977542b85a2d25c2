import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats
from statsmodels.stats.stattools import medcouple as reference_medcouple

from skerry.core.errors import DataError, ParameterError
from skerry.core.threshold import (
    Auto,
    Conformal,
    Contamination,
    ExtremeValue,
    benjamini_hochberg,
    conformal_p_value,
    medcouple,
    parse_threshold,
)

SCORES = arrays(np.float64, st.integers(1, 60), elements=st.floats(-1e6, 1e6))


@given(SCORES, st.floats(0, 0.5))
def test_contamination_never_flags_more_than_its_share(s, fraction):
    assert (s > Contamination(fraction).cutoff(s)).sum() <= fraction * s.size + 1e-6


def test_contamination_flags_exactly_its_share_without_ties():
    s = np.random.default_rng(0).permutation(1000.0 + np.arange(1000))
    for fraction in (0, 0.01, 0.25, 0.5):
        assert (s > Contamination(fraction).cutoff(s)).sum() == round(1000 * fraction)


@given(SCORES)
def test_every_rule_gives_a_number_on_any_scores(s):
    for rule in (Auto(), Contamination(0.1), ExtremeValue(1e-3)):
        assert np.isfinite(rule.cutoff(s))
    assert Conformal(0.1).cutoff(s) > -np.inf


@pytest.mark.parametrize("law", [stats.norm(), stats.expon(), stats.t(4)])
def test_extreme_value_holds_its_risk_within_a_factor_of_two(law):
    s = law.rvs(size=100_000, random_state=3)
    assert 5e-4 < law.sf(ExtremeValue(1e-3).cutoff(s)) < 2e-3


def test_auto_flags_few_of_a_clean_sample_and_all_of_a_far_cluster():
    rng = np.random.default_rng(0)
    for clean in (rng.normal(size=5000), rng.exponential(size=5000)):
        assert (clean > Auto().cutoff(clean)).mean() < 0.02
        dirty = np.r_[clean, np.full(500, 60.0)]
        assert (dirty > Auto().cutoff(dirty))[-500:].all()


def test_auto_stays_within_reach_where_there_are_two_regimes():
    rng = np.random.default_rng(0)
    s = np.r_[rng.normal(0.0, 0.1, 700), rng.uniform(0.2, 2.0, 300)]  # a quiet and a busy half
    q1, q3 = np.quantile(s, [0.25, 0.75])
    assert q3 + 1.5 * np.exp(3 * medcouple(s)) * (q3 - q1) > s.max() + 1.5 * (q3 - q1)  # what the boxplot says
    assert Auto().cutoff(s) == pytest.approx(s.max() + (q3 - q1))


@pytest.mark.parametrize("seed", range(5))
def test_medcouple_equals_the_brute_force_one(seed):
    x = np.random.default_rng(seed).gamma(2, size=151)
    assert medcouple(x) == pytest.approx(float(reference_medcouple(x)), abs=1e-10)


def test_conformal_p_value_counts_by_hand():
    reference, s = np.array([1.0, 2, 2, 5]), np.array([0.0, 2, 3, 5, 6])
    expected = [(1 + sum(r >= v for r in reference)) / 5 for v in s]
    np.testing.assert_allclose(conformal_p_value(reference, s), expected)


@given(arrays(np.float64, st.integers(1, 40), elements=st.floats(0, 1)), st.floats(0.01, 0.4))
def test_benjamini_hochberg_equals_scipy(p, alpha):
    adjusted = stats.false_discovery_control(p)
    expected = adjusted <= alpha
    close = np.isclose(adjusted, alpha, rtol=1e-9)
    np.testing.assert_array_equal(benjamini_hochberg(p, alpha)[~close], expected[~close])


def test_conformal_controls_the_false_discovery_rate():
    rng = np.random.default_rng(0)
    fdp = []
    for _ in range(200):
        p = conformal_p_value(rng.normal(size=500), np.r_[rng.normal(size=90), rng.normal(4, 1, size=10)])
        flagged = benjamini_hochberg(p, 0.1)
        fdp.append(flagged[:90].sum() / max(1, flagged.sum()))
    assert np.mean(fdp) < 0.1 + 3 * np.std(fdp) / np.sqrt(200)
    assert np.mean(fdp) > 0.02  # the check can fail: power is there


def test_cutoff_of_conformal_is_the_single_row_rule():
    reference = np.random.default_rng(0).normal(size=199)
    s = np.random.default_rng(1).normal(size=1000)
    cut = Conformal(0.05).cutoff(reference)
    np.testing.assert_array_equal(s > cut, conformal_p_value(reference, s) <= 0.05)
    assert Conformal(0.05).cutoff(reference[:5]) == np.inf


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("contamination:0.9", "contamination must lie in"),
        ("extreme:2", "risk must lie"),
        ("conformal:x", "is not a number"),
        ("maybe", "unknown threshold"),
    ],
)
def test_bad_rules_say_what_is_allowed(text, message):
    with pytest.raises(ParameterError, match=message):
        parse_threshold(text)


@pytest.mark.parametrize("rule", ["auto", "contamination:0.01", "extreme:0.001", "conformal:0.05"])
def test_rules_print_as_they_are_written(rule):
    assert str(parse_threshold(rule)) == rule


def test_bad_scores_are_refused():
    with pytest.raises(DataError, match="at least one score"):
        Auto().cutoff([])
    with pytest.raises(DataError, match="finite"):
        Auto().cutoff([1.0, np.nan])
