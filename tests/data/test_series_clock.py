import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry.core.errors import DataError
from skerry.data.series_clock import Clock, duration_words, order_rows, set_grid, unique_stamps

MINUTE = 60_000_000


def clock(t):
    t = np.asarray(t)
    return Clock(t, np.arange(t.size), [])


def ordered(t, order="auto"):
    return order_rows(clock(t), order, "s")


# ---- order ---------------------------------------------------------------------------------------------------


def test_rows_in_order_stay_and_nothing_is_said():
    out = ordered([0, 1, 1, 5])
    assert out.time.tolist() == [0, 1, 1, 5] and out.notes == []


def test_newest_first_is_turned_round():
    out = ordered([9, 5, 2, 0])
    assert out.time.tolist() == [0, 2, 5, 9] and out.rows.tolist() == [3, 2, 1, 0]
    assert "newest first" in out.notes[0]


@given(st.permutations(list(range(0, 60, 2))))
def test_shuffled_rows_are_sorted_with_their_rows(t):
    if all(a > b for a, b in zip(t, t[1:], strict=False)) or t == sorted(t):
        return
    try:
        out = ordered(t, "sort")
    except DataError:
        raise AssertionError("sorting never fails") from None
    assert out.time.tolist() == sorted(t)
    assert [t[r] for r in out.rows] == sorted(t)


def test_many_steps_back_are_a_shuffle():
    t = np.random.default_rng(0).permutation(1000)
    out = ordered(t)
    assert out.time.tolist() == list(range(1000))
    assert "not in order" in out.notes[0]


def test_blocks_in_the_wrong_order_are_sorted():
    t = np.r_[500:1000, 0:500, 1000:1500]
    out = ordered(t)
    assert out.time.tolist() == list(range(1500)) and "sorted" in out.notes[0]


def test_late_rows_are_sorted_in():
    t = np.r_[0:400, 398.5, 400:1000]
    out = ordered(t)
    assert (np.diff(out.time) >= 0).all() and out.rows[399:401].tolist() == [400, 399]


def test_a_clock_set_back_keeps_the_order_of_the_file():
    t = np.r_[0:1000, 900:2000] * MINUTE
    out = ordered(t)
    assert out.rows.tolist() == list(range(2100))
    np.testing.assert_array_equal(out.time, np.arange(2100) * MINUTE)
    assert "row 1000" in out.notes[0] and "1.65 h" in out.notes[0]


def test_a_later_gap_takes_the_shift_back():
    # an hour twice in autumn, an hour skipped in spring
    t = np.r_[0:1000, 940:2000, 2060:3000] * MINUTE
    out = ordered(t)
    assert out.time[0] == 0 and out.time[-1] == 2999 * MINUTE
    assert (np.diff(out.time) == MINUTE).all()
    assert "daylight saving" in out.notes[0]


def test_series_on_top_of_each_other_are_an_error():
    with pytest.raises(DataError, match="row 50.*"):
        ordered(np.tile(np.arange(50), 3))
    with pytest.raises(DataError, match="on top of each"):
        ordered(np.r_[0:1000, 300:1200])
    assert ordered(np.tile(np.arange(50), 3), "sort").time[:4].tolist() == [0, 0, 0, 1]


def test_a_user_may_forbid_steps_back():
    with pytest.raises(DataError, match="goes back at row 2"):
        ordered([0, 5, 3, 9], "error")


# ---- duplicates ----------------------------------------------------------------------------------------------


@settings(max_examples=150)
@given(
    st.lists(st.tuples(st.integers(0, 8), st.sampled_from([0.0, 1.0, 5.0, np.nan])), min_size=1, max_size=30),
    st.sampled_from(["mean", "first", "last"]),
)
def test_one_row_a_stamp_equals_a_dictionary(rows, rule):
    rows = sorted(rows, key=lambda r: r[0])
    t, v = np.array([r[0] for r in rows]), np.array([[r[1]] for r in rows])
    out, values = unique_stamps(clock(t), v, rule, "s")
    groups = {}
    for stamp, value in rows:
        kept = groups.setdefault(stamp, [])
        if not kept or not (value == kept[-1] or (np.isnan(value) and np.isnan(kept[-1]))):
            kept.append(value)  # a row that repeats the one before is dropped first

    def pick(g):
        if rule != "mean":
            return g[0] if rule == "first" else g[-1]
        return np.nanmean(g) if not np.isnan(g).all() else np.nan

    assert out.time.tolist() == sorted(groups)
    np.testing.assert_allclose(values[:, 0], [pick(groups[k]) for k in sorted(groups)])


def test_duplicates_are_told_and_too_many_are_an_error():
    t = np.r_[0:10, 9, 10:20]
    out, values = unique_stamps(clock(t), np.arange(21.0)[:, None], "auto", "s")
    assert values[9, 0] == 9.5 and "row 10; averaged" in out.notes[0]
    with pytest.raises(DataError, match="share their stamp"):
        unique_stamps(clock(np.repeat(np.arange(5), 3)), np.arange(15.0)[:, None], "auto", "s")
    with pytest.raises(DataError, match="share their stamp"):
        unique_stamps(clock(t), np.arange(21.0)[:, None], "error", "s")


def test_equal_rows_are_dropped_without_harm():
    t = np.repeat(np.arange(5), 2)
    out, values = unique_stamps(clock(t), np.repeat(np.arange(5.0), 2)[:, None], "auto", "s")
    assert values[:, 0].tolist() == [0, 1, 2, 3, 4] and "dropped" in out.notes[0]


# ---- gaps ----------------------------------------------------------------------------------------------------


@settings(max_examples=100)
@given(st.lists(st.integers(1, 4), min_size=30, max_size=60), st.booleans())
def test_gaps_become_rows_of_nan(counts, calendar):
    counts = [*counts, *[1] * len(counts)]  # the median step is 1
    place = np.r_[0, np.cumsum(counts)]
    t = place * MINUTE if calendar else place * 0.5
    grid = set_grid(clock(t), place[:, None].astype(float), 100)
    assert grid.regular and len(grid.parts) == 1
    out, values = grid.parts[0]
    expected = np.full(place[-1] + 1, np.nan)
    expected[place] = place
    np.testing.assert_array_equal(values[:, 0], expected)
    np.testing.assert_allclose(out.time, np.arange(place[-1] + 1) * (MINUTE if calendar else 0.5))
    assert (out.rows[place] == np.arange(place.size)).all() and (out.rows >= 0).sum() == place.size


def test_jitter_within_a_tenth_of_a_step_is_regular_and_beyond_it_is_not():
    rng = np.random.default_rng(0)
    t = np.arange(500) * MINUTE + rng.integers(-MINUTE // 25, MINUTE // 25, 500)
    grid = set_grid(clock(t), np.zeros((500, 1)), 100)
    assert grid.regular
    np.testing.assert_array_equal(grid.parts[0][0].time, t)  # stamps stay as they were
    wild = set_grid(clock(np.cumsum(rng.integers(1, 10**9, 500))), np.zeros((500, 1)), 100)
    assert not wild.regular and "irregular" in wild.parts[0][0].notes[0]


def test_a_gap_too_long_cuts_the_series():
    t = np.r_[0:50, 5000:5050] * MINUTE
    grid = set_grid(clock(t), np.arange(100.0)[:, None], 100)
    assert [p[0].time.size for p in grid.parts] == [50, 50]
    assert grid.parts[1][0].rows[0] == 50
    assert "cut there" in grid.parts[0][0].notes[-1]


def test_filling_never_outgrows_the_data():
    t = np.cumsum(np.tile([1, 1, 1, 1, 1, 900], 50))
    grid = set_grid(clock(t), np.zeros((t.size, 1)), 10_000)
    assert sum(p[0].time.size for p in grid.parts) <= 5 * t.size + 1


@pytest.mark.parametrize("t", [[], [3], [3, 4], [3, 3, 3]])
def test_short_and_constant_clocks(t):
    grid = set_grid(clock(np.array(t, dtype=float)), np.zeros((len(t), 1)), 10)
    assert len(grid.parts) == 1 and grid.parts[0][0].time.size == len(t)


def test_durations_in_words():
    assert [duration_words(d, True) for d in (86_400e6, 90 * 60e6, 1e6, 250_000, 3)] == [
        "1 d",
        "1.5 h",
        "1 s",
        "250 ms",
        "3 us",
    ]
    assert duration_words(0.25, False) == "0.25"
