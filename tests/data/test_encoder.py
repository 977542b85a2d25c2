import datetime as dt
import json

import numpy as np
import polars as pl
import pytest

from skerry.core.errors import DataError
from skerry.core.persistence import load, save
from skerry.data.encoder import TableEncoder

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
