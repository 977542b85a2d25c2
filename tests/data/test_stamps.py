import datetime as dt

import numpy as np
import polars as pl
import pytest

from skerry.core.errors import DataError, ParameterError
from skerry.data.stamps import MISSING_STAMP, localise, recognise, stamp_columns

START = dt.datetime(2024, 1, 30, 22, 15)
MOMENTS = [START + dt.timedelta(minutes=15 * i) for i in range(200)]
MICRO = np.array(MOMENTS, dtype="datetime64[us]").astype(np.int64)


def column(values, name="when"):
    return pl.Series(name, values)


@pytest.mark.parametrize(
    "fmt",
    [
        "%Y-%m-%d %H:%M:%S",
        "%Y-%m-%dT%H:%M:%S",
        "%Y-%m-%d %H:%M:%S.%f",
        "%Y-%m-%dT%H:%M",
        "%Y/%m/%d %H:%M",
        "%d.%m.%Y %H:%M",
        "%d/%m/%Y %H:%M:%S",
        "%m/%d/%Y %H:%M",
        "%m/%d/%Y %I:%M %p",
    ],
)
def test_text_stamps_are_read_whatever_their_format(fmt):
    s = column([f" {m.strftime(fmt)} " for m in MOMENTS])
    form = recognise(s, named=False)
    assert form.kind == "text" and form.calendar
    np.testing.assert_array_equal(form.read(s), MICRO)


def test_offsets_give_utc():
    s = column(
        ["2024-03-31T01:30:00+01:00", "2024-03-31T03:00:00+02:00", "2024-03-31 01:30:00Z", "2024-03-31 01:45:00.5Z"]
    )
    form = recognise(s, named=False)
    assert form.time_zone == "UTC"
    utc = form.read(s).astype("datetime64[us]")
    assert utc[:3].tolist() == [
        dt.datetime(2024, 3, 31, 0, 30),
        dt.datetime(2024, 3, 31, 1),
        dt.datetime(2024, 3, 31, 1, 30),
    ]


@pytest.mark.parametrize(("unit", "per_s"), [("s", 1), ("ms", 10**3), ("us", 10**6), ("ns", 10**9)])
@pytest.mark.parametrize("kind", [np.int64, np.float64])
def test_counts_since_1970_are_told_by_their_size(unit, per_s, kind):
    s = column((MICRO // 10**6 * per_s).astype(kind), "Time_Stamp")
    form = recognise(s, named=False)
    assert (form.kind, form.unit, form.time_zone) == ("epoch", unit, "UTC")
    assert np.abs(form.read(s) - MICRO).max() <= 1


def test_numbers_are_time_only_if_named_so():
    s = np.arange(50.0)
    assert recognise(column(s, "pressure"), named=False) is None
    assert recognise(column(s, "t"), named=False).kind == "number"
    assert recognise(column(s[::-1].copy(), "t"), named=False) is None
    form = recognise(column([0.0, None, np.inf, 3.0], "pressure"), named=True)
    np.testing.assert_array_equal(form.read(column([0.0, None, np.inf, 3.0])), [0, np.nan, np.nan, 3])


def test_temporal_types_keep_their_zone():
    aware = pl.Series("t", MOMENTS).dt.replace_time_zone("Europe/Ljubljana")
    form = recognise(aware, named=False)
    assert form.time_zone == "Europe/Ljubljana"
    np.testing.assert_array_equal(form.read(aware), MICRO - 3_600_000_000)
    days = pl.Series("t", [dt.date(2024, 1, 1), None])
    assert recognise(days, named=False).read(days).tolist() == [1_704_067_200_000_000, MISSING_STAMP]


def test_day_and_month_are_told_by_the_order_or_not_at_all():
    days = [dt.date(2024, 1, 1) + dt.timedelta(days=i) for i in range(10)]
    european = recognise(column([d.strftime("%d/%m/%Y") for d in days]), named=False)
    american = recognise(column([d.strftime("%m/%d/%Y") for d in days]), named=False)
    assert (european.text, american.text) == ("%d/%m/%Y", "%m/%d/%Y")
    assert "better order" in american.words
    with pytest.raises(DataError, match="day/month or month/day"):
        recognise(column(["01/01/2024", "02/02/2024"]), named=False)
    assert recognise(column(["01/01/2024"]), named=False, time_format="%d/%m/%Y").text == "%d/%m/%Y"


def test_a_few_bad_cells_are_missing_and_many_are_no_time():
    text = [m.isoformat() for m in MOMENTS]
    form = recognise(column([*text, "n/a", None, ""]), named=False)
    assert form.read(column(["n/a", None, "", text[0]])).tolist() == [MISSING_STAMP] * 3 + [MICRO[0]]
    assert recognise(column([*text[:10], *["n/a"] * 5]), named=False) is None
    assert recognise(column(["alpha", "beta"]), named=False) is None
    assert recognise(column(["1.2.3", "4.5.6"]), named=False) is None  # versions
    assert recognise(column([None, None]).cast(pl.String), named=False) is None


def test_dates_come_before_numbers_that_are_only_called_time():
    frame = pl.DataFrame({"t": range(200), "logged": MOMENTS, "x": np.zeros(200)})
    assert list(stamp_columns(frame)) == ["logged"]
    assert list(stamp_columns(frame.drop("logged"))) == ["t"]
    assert stamp_columns(frame.select("x")) == {}


# ---- daylight saving -----------------------------------------------------------------------------------------


def walk(first, n, minutes, zone="Europe/Ljubljana"):
    """UTC moments and what a local clock shows at them."""
    utc = pl.Series([first + dt.timedelta(minutes=minutes * i) for i in range(n)]).dt.replace_time_zone("UTC")
    shown = utc.dt.convert_time_zone(zone).dt.replace_time_zone(None)
    return utc.cast(pl.Int64).to_numpy(), shown.cast(pl.Int64).to_numpy()


@pytest.mark.parametrize("minutes", [1, 15, 60])
@pytest.mark.parametrize("first", [dt.datetime(2024, 10, 26, 20), dt.datetime(2024, 3, 30, 20)])
def test_a_local_clock_is_undone_through_both_jumps(first, minutes):
    utc, shown = walk(first, 900 // minutes, minutes)
    back, notes = localise(shown, "Europe/Ljubljana")
    np.testing.assert_array_equal(back, utc)
    assert len(notes) == (first.month == 10)
    assert not notes or "show twice" in notes[0]


def test_stamps_that_no_clock_showed_and_missing_ones():
    shown = np.array(["2024-03-31T01:45", "2024-03-31T02:15", "2024-03-31T03:45"], dtype="datetime64[us]").astype(
        np.int64
    )
    back, notes = localise(np.r_[shown, MISSING_STAMP], "Europe/Ljubljana")
    assert back[:3].astype("datetime64[us]").astype("datetime64[m]").astype(str).tolist() == [
        "2024-03-31T00:45",
        "2024-03-31T01:15",
        "2024-03-31T01:45",
    ]
    assert back[3] == MISSING_STAMP
    assert "skip" in notes[0] and "row 1" in notes[0]


def test_unknown_zones_and_units_say_what_is_known():
    with pytest.raises(ParameterError, match="did you mean 'Europe/Ljubljana'"):
        localise(MICRO, "Europe/Ljublana")
    with pytest.raises(ParameterError, match="one of s, ms, us, ns"):
        recognise(column([1.0, 2.0]), named=True, time_format="%Y")


def test_counts_too_large_for_a_moment_are_missing():
    s = column([1_700_000_000, 2**62, -(2**63), None], "ts")
    form = recognise(column([1_700_000_000], "ts"), named=False)
    assert form.read(s).tolist() == [1_700_000_000_000_000, *[MISSING_STAMP] * 3]
