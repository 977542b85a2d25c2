import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry.core.block_conformal import BlockConformal, block_conformal_p_value
from skerry.core.errors import DataError, ParameterError
from skerry.core.threshold import Conformal, conformal_p_value


def correlated(n, rho, seed, scale=1.0):
    """A stationary AR(1) series of standard normals."""
    noise = np.random.default_rng(seed).normal(size=n) * np.sqrt(1 - rho**2)
    out, state = np.empty(n), 0.0
    for i, e in enumerate(noise):
        state = rho * state + e
        out[i] = state
    return out * scale


def test_a_block_of_dependent_scores_raises_a_false_alarm_with_probability_alpha():
    alpha, block, any_flag, plain = 0.1, 100, [], []
    for seed in range(60):
        s = correlated(8000, 0.9, 100 + seed)
        reference, new = s[:6000], s[6100:8000]
        for cut, out in (
            (BlockConformal(alpha, block).cutoff(reference), any_flag),
            (Conformal(alpha).cutoff(reference), plain),
        ):
            out.append((new.reshape(-1, block) > cut).any(axis=1).mean())
    error = 3 * np.std(any_flag) / np.sqrt(60)
    assert np.mean(any_flag) < alpha + error
    assert np.mean(any_flag) > alpha / 3  # not by being blind
    assert np.mean(plain) > 0.7  # a rule for single steps floods


@settings(max_examples=100)
@given(
    st.lists(st.floats(-5, 5), min_size=6, max_size=40),
    st.lists(st.floats(-5, 5) | st.just(np.nan), max_size=40),
    st.integers(1, 6),
)
def test_block_p_values_equal_the_naive_ones(reference, scores, block):
    skip = len(reference) % block
    maxima = [max(reference[i : i + block]) for i in range(skip, len(reference), block)]
    expected = []
    for t in range(len(scores)):
        seen = [v for v in scores[max(0, t - block + 1) : t + 1] if not np.isnan(v)]
        expected.append((1 + sum(m >= max(seen, default=-np.inf) for m in maxima)) / (1 + len(maxima)))
    np.testing.assert_allclose(block_conformal_p_value(reference, scores, block), expected)


def test_blocks_of_one_step_are_the_plain_rule_and_the_cut_fits_the_p_values():
    rng = np.random.default_rng(7)
    reference, new = rng.normal(size=1000), rng.normal(size=500)
    assert BlockConformal(0.05, 1).cutoff(reference) == Conformal(0.05).cutoff(reference)
    np.testing.assert_array_equal(block_conformal_p_value(reference, new, 1), conformal_p_value(reference, new))
    flagged = (new > BlockConformal(0.1, 10).cutoff(reference)).reshape(-1, 10).any(axis=1)
    np.testing.assert_array_equal(flagged, block_conformal_p_value(reference, new, 10)[9::10] <= 0.1)


def test_too_few_blocks_flag_nothing_and_missing_steps_are_left_out():
    assert BlockConformal(0.05, 10).cutoff(np.arange(100.0)) == np.inf
    s = np.arange(40.0)
    s[20:30] = np.nan
    assert BlockConformal(0.3, 10).cutoff(s) == 39.0
    assert str(BlockConformal(0.1, 5)) == "block-conformal:0.1"


def test_a_reference_shorter_than_a_block_is_refused():
    with pytest.raises(DataError, match="at least one block of 50"):
        BlockConformal(0.1, 50).cutoff(np.zeros(49))
    with pytest.raises(DataError, match="row 1 is infinite"):
        BlockConformal(0.1, 2).cutoff([0, np.inf])


@pytest.mark.parametrize(
    ("bad", "message"), [({"block": 0}, "block"), ({"alpha": 0}, "alpha"), ({"block": 2.5}, "block")]
)
def test_bad_parameters_say_what_is_allowed(bad, message):
    with pytest.raises(ParameterError, match=message):
        BlockConformal(**bad)
