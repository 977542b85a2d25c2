import datetime as dt
import json

import numpy as np
import polars as pl
import pytest

from skerry.core.errors import DataError
from skerry.core.persistence import load, save
from skerry.data.encoder import TableEncoder
from skerry.data.encoder_words import show

N = 200
RNG = np.random.default_rng(0)
MIXED = pl.DataFrame(
    {
        "row": np.arange(N),
        "amount": [None if i % 20 == 0 else float(v) for i, v in enumerate(RNG.normal(10, 2, N))],
        "wild": [np.inf, 1e308, *RNG.normal(size=N - 2)],
        "price": [f"${v:,.2f}" for v in RNG.uniform(500, 5000, N)],
        "flag": [bool(i % 3) for i in range(N)],
        "shop": [["a", "b", "c"][i % 3] for i in range(N)],
        "city": [f"city {i % 40}" for i in range(N)],
        "token": [f"{i:x}-{i * i:x}" for i in range(N)],
        "day": [str(dt.date(2024, 1, 1) + dt.timedelta(days=i)) for i in range(N)],
        "same": ["k"] * N,
        "void": pl.Series([None] * N, dtype=pl.Float64),
        "list": [[i] for i in range(N)],
    }
).with_columns(twin=pl.col("amount"))


def test_each_column_becomes_what_the_report_says():
    encoder = TableEncoder().fit(MIXED)
    kinds = {r.column: r.kind for r in encoder.report_}
    out = {"row": "identifier", "token": "identifier", "same": "constant", "void": "all missing"}
    assert out.items() <= kinds.items()
    assert kinds["list"] == "nested"
    assert kinds["twin"] == "duplicate"
    X = encoder.transform(MIXED)
    assert X.shape == (N, len(encoder.get_feature_names_out()))
    assert X.dtype == np.float64
    assert X.flags.c_contiguous
    assert np.isfinite(X).all()
    assert np.abs(X).max() <= 1e100
    assert "amount is missing" in encoder.feature_column_
    assert set(encoder.feature_column_.values()) == {"amount", "wild", "price", "flag", "shop", "city", "day"}
    assert encoder.to_frame().height == MIXED.width


def test_batches_give_what_the_whole_gives_and_the_state_survives(tmp_path):
    encoder = TableEncoder().fit(MIXED)
    whole = encoder.transform(MIXED)
    np.testing.assert_array_equal(np.vstack([encoder.transform(MIXED[i : i + 7]) for i in range(0, N, 7)]), whole)
    back = TableEncoder.from_dict(json.loads(json.dumps(encoder.to_dict())))
    np.testing.assert_array_equal(back.transform(MIXED), whole)
    assert back.report_ == encoder.report_
    np.testing.assert_array_equal(load(save(encoder, tmp_path / "e")).transform(MIXED), whole)


def test_columns_absent_or_extra_and_levels_never_seen():
    encoder = TableEncoder().fit(MIXED)
    with pytest.raises(DataError, match="column 'shop' is missing"):
        encoder.transform(MIXED.drop("shop"))
    more = MIXED.with_columns(other=pl.lit(1))
    np.testing.assert_array_equal(encoder.transform(more), encoder.transform(MIXED))
    strange = encoder.transform(MIXED.with_columns(city=pl.lit("nowhere"), shop=pl.lit("z"), price=pl.lit("?")))
    assert np.isfinite(strange).all()
    j = encoder.get_feature_names_out().tolist().index("rarity of city")
    assert strange[0, j] > encoder.transform(MIXED)[:, j].max()


def test_reasons_speak_of_the_data():
    encoder = TableEncoder().fit(MIXED)
    assert encoder.reason("amount", 9300.0).startswith("`amount` 9,300 is above all rows")
    assert encoder.reason("amount", None) == "`amount` is missing (so in 5.0 % of rows)"
    assert encoder.reason("shop", "XX") == "`shop` 'XX' was never seen"
    assert encoder.reason("shop", "a") == "`shop` 'a' occurs in 34 % of rows"
    assert "later than all rows" in encoder.reason("day", "2030-01-02")
    assert encoder.reason("same", "k") == "`same` is left out (constant)"


@pytest.mark.parametrize("values", [[1.0, 1.0], [None, None], [np.inf, np.inf]])
def test_nothing_left_is_told(values):
    with pytest.raises(DataError, match="no column is left to work with"):
        TableEncoder().fit(pl.DataFrame({"a": pl.Series(values, dtype=pl.Float64)}))


def test_a_row_counter_is_left_out_of_a_sample_too():
    import numpy as np
    import polars as pl

    rng = np.random.default_rng(0)
    rows = np.sort(rng.choice(10_000, 500, replace=False))
    frame = pl.DataFrame({"id": rows + 7, "back": 20_000 - rows, "value": rng.normal(size=500)})
    encoder = TableEncoder().fit(frame, positions=rows)
    assert [r.kind for r in encoder.report_] == ["identifier", "identifier", "numeric"]
    assert TableEncoder().fit(frame).report_[0].kind == "numeric"  # where the places are not known, it stays


def test_a_date_means_the_same_typed_as_text_and_in_its_time_zone():
    stamps = [dt.datetime(2024, 1, 1, 9) + dt.timedelta(days=i, hours=i % 5) for i in range(60)]
    typed = pl.DataFrame({"t": stamps})
    text = pl.DataFrame({"t": [s.strftime("%Y-%m-%d %H:%M:%S") for s in stamps]})
    zoned = typed.with_columns(pl.col("t").dt.replace_time_zone("America/New_York"))
    encoder = TableEncoder().fit(typed)
    for other in (text, zoned, typed.cast(pl.Datetime("ns"))):
        np.testing.assert_array_equal(encoder.transform(other), encoder.transform(typed))
        np.testing.assert_array_equal(TableEncoder().fit(other).transform(typed), encoder.transform(typed))
    # the hour of the reason is the hour that was counted
    late = dt.datetime(2024, 1, 20, 23, tzinfo=dt.timezone(dt.timedelta(hours=-5)))
    assert "the hour 23 occurs in less than" in TableEncoder().fit(zoned).reason("t", late)


def test_types_that_change_between_fitting_and_scoring():
    encoder = TableEncoder().fit(pl.DataFrame({"n": [1.5, 2.0, 4.0], "b": [True, False, True]}))
    same = pl.DataFrame({"n": ["1.5", "2.0", " 4,0.0"], "b": [1, 0, 1]})
    np.testing.assert_array_equal(
        encoder.transform(same), encoder.transform(pl.DataFrame({"n": [1.5, 2.0, 40.0], "b": [True, False, True]}))
    )
    assert encoder.reason("b", 1) == encoder.reason("b", True)
    dates = pl.DataFrame({"n": [dt.date(2024, 1, 1)], "b": [True]})
    with pytest.raises(DataError, match="column 'n' holds Date where numbers were in fitting"):
        encoder.transform(dates)


def test_names_that_collide_are_told_apart():
    frame = pl.DataFrame({"a": [1.0, None, 3.0], "a is missing": [5.0, 6.0, 8.0], "c": ["(missing)", None, "x"]})
    encoder = TableEncoder().fit(frame)
    assert encoder.get_feature_names_out().tolist() == [
        "a", "a is missing", "a is missing'", "c=(missing)", "c=(missing)'", "c=x",
    ]  # fmt: skip
    assert [r.features for r in encoder.report_][1] == ("a is missing'",)
    assert encoder.weighted_.tolist() == [False, True, False, True, True, True]


@pytest.mark.parametrize(
    ("texts", "numbers"),
    [
        (["1,5", "2,25", "-3", "1.234,5", "0,125"], [1.5, 2.25, -3.0, 1234.5, 0.125]),
        (["1,234", "5,678", "1,234,567", "12"], [1234.0, 5678.0, 1234567.0, 12.0]),
        (["$1,234.50", "€ 5", "7 %", "8_000", "9"], [1234.5, 5.0, 7.0, 8000.0, 9.0]),
        (["1,234", "2,345", "3,456"], [1234.0, 2345.0, 3456.0]),  # could be either: thousands
        (["1 234,5 €", "2 000,25 €", "7,5 €"], [1234.5, 2000.25, 7.5]),
    ],
)
def test_numbers_as_text_in_the_ways_people_write_them(texts, numbers):
    frame = pl.DataFrame({"x": texts})
    encoder = TableEncoder().fit(frame)
    np.testing.assert_array_equal(encoder.transform(frame)[:, 0], numbers)
    assert "numbers as text" in encoder.report_[0].note
    assert ("decimal commas" in encoder.report_[0].note) == (numbers[0] in (1.5, 1234.5) and "," in texts[-1])
    for text, number in zip(texts, numbers, strict=True):
        assert encoder.reason("x", text).startswith(f"`x` {show(number)} is ")
