import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry.core.affiliation import affiliation
from skerry.core.errors import DataError
from skerry.core.events import flag_runs

FINE = 200  # moments a step is cut into by the twin


def twin(y, flags):
    """Both integrals as means over a fine grid of moments and of draws, one anomaly at a time."""
    starts, stops = flag_runs(y)
    t = (np.arange(len(y) * FINE) + 0.5) / FINE
    flagged = np.repeat(np.asarray(flags, dtype=bool), FINE)
    edges = np.r_[0.0, (stops[:-1] + starts[1:]) / 2, len(y)]
    precision, recall = [], []
    for a, b, e0, e1 in zip(starts, stops, edges[:-1], edges[1:], strict=True):
        zone = (t >= e0) & (t < e1)
        x = t[zone & flagged]
        if x.size == 0:
            precision.append(np.nan)
            recall.append(0.0)
            continue
        d = np.sort(np.maximum(np.maximum(a - t[zone], t[zone] - b), 0))
        mine = np.maximum(np.maximum(a - x, x - b), 0)
        precision.append(np.mean(1 - np.searchsorted(d, mine) / d.size))
        inside = t[(t >= a) & (t < b)]
        gap = np.array([np.abs(x - m).min() for m in inside])
        worth = np.maximum(inside - gap - e0, 0) + np.maximum(e1 - inside - gap, 0)
        recall.append(np.mean(np.where(gap < 0.5 / FINE, 1.0, worth / (e1 - e0))))
    return np.array(precision), np.array(recall)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=25).filter(lambda r: any(y for y, _ in r))
)
def test_closed_form_equals_the_fine_sum(rows):
    y, flags = (np.array(c) for c in zip(*rows, strict=True))
    result = affiliation(y, flags)
    precision, recall = twin(y, flags)
    np.testing.assert_allclose(result.event_precision, precision, atol=0.02)
    np.testing.assert_allclose(result.event_recall, recall, atol=0.02)
    assert result.recall == pytest.approx(result.event_recall.mean())
    assert 0 <= result.precision <= 1 and 0 <= result.recall <= 1


def test_the_example_of_the_paper():
    # three anomalies and seven detections in three hours, by the second
    y, flags = np.zeros(10_800, dtype=bool), np.zeros(10_800, dtype=bool)
    for a, b in ((0, 10), (50, 70), (170, 175)):
        y[a * 60 : b * 60] = True
    for a, b in ((5, 6), (7, 10), (11, 12), (40, 60), (115, 130), (135, 140), (165, 170)):
        flags[a * 60 : b * 60] = True
    result = affiliation(y, flags)
    assert result.event_precision[1] == pytest.approx(0.672222222)
    assert result.event_recall[1] == pytest.approx(0.944444444)


def test_perfect_nothing_and_everything():
    y = np.array([0, 1, 1, 0, 0, 0, 1, 0])
    best = affiliation(y, y)
    assert (best.precision, best.recall, best.f1) == (1.0, 1.0, 1.0)
    none = affiliation(y, np.zeros(8))
    assert (none.precision, none.recall, none.f1) == (0.0, 0.0, 0.0)
    assert np.isnan(none.event_precision).all()
    assert affiliation(y, np.ones(8)).recall == 1.0
    assert affiliation([1], [1]).f1 == 1.0
    assert affiliation([1, 1], [0, 1]).precision == 1.0


def test_one_zone_without_a_flag_costs_recall_and_no_precision():
    y = np.zeros(100, dtype=int)
    y[20:30] = y[70:80] = 1
    flags = np.zeros(100, dtype=int)
    flags[20:30] = 1
    result = affiliation(y, flags)
    assert (result.precision, result.recall) == (1.0, 0.5)
    assert np.isnan(result.event_precision[1])


def test_random_flags_are_worth_about_one_half():
    rng = np.random.default_rng(0)
    y = np.zeros(20_000, dtype=int)
    y[rng.integers(0, 20_000, 5)] = 1
    assert affiliation(y, rng.random(20_000) < 0.05).precision == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(
    ("y", "flags", "message"),
    [
        ([0, 0], [0, 1], "no anomaly"),
        ([0, 1], [1], "differ"),
        ([0, 1], [1, np.nan], "row 1"),
        ([0, 3], [0, 1], "row 1"),
    ],
)
def test_bad_input_is_refused(y, flags, message):
    with pytest.raises(DataError, match=message):
        affiliation(y, flags)
