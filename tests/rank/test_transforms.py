"""Derived columns: the formulas, what is kept, sub-features and lists."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry.core.errors import DataError, ParameterError, SkerryWarning
from skerry.rank import transforms
from skerry.rank.outrank import OutRank

X = np.array([0.0, 0.25, 1.0, 2.0, 5.0, 40.0, 100.0, -3.0])
NAIVE = {
    "sqrt": lambda v: v**0.5,
    "log(x+1)": lambda v: np.log(v + 1),
    "sqrt(abs(x))": lambda v: abs(v) ** 0.5,
    "log(abs(x)+1)": lambda v: np.log(abs(v) + 1),
    "sign*log(abs(x))": lambda v: np.sign(v) * np.log(abs(v)),
    "asinh": lambda v: np.log(v + np.sqrt(v * v + 1)),
    "log*sqrt": lambda v: np.log(v + 1) * v**0.5,
    "log*100": lambda v: np.round(100 * np.log(v + 1)),
    "nonzero": lambda v: float(v != 0),
    "round(x/max)": lambda v: np.round(v / 100.0),
}


def binned(v, f, g, r):
    return v if v < g else (0.0 if v == g else np.round(f(v - g) * r))


def test_formulas():
    got = {name: values for name, _, values in transforms.transformed(X, np.ones(8, int))}
    for name, function in NAIVE.items():
        if name in got:
            for v, result in zip(X, got[name], strict=True):
                with np.errstate(all="ignore"):
                    wanted = function(np.float64(v))
                if np.isfinite(wanted):
                    assert result == pytest.approx(wanted, abs=1e-12), (name, v)
    assert set(got) <= set(NAIVE)
    assert {"sqrt", "asinh", "log*100"} <= set(got)


def test_binned_family():
    got = {name: values for name, _, values in transforms.transformed(X, np.ones(8, int), "fw")}
    assert len(transforms.TRANSFORMS["fw"]) == 10 + 2 * 2 * 4 * 8
    for name, f, g, r in (
        ("fw_sqrt_res_10_gt_4", np.sqrt, 4, 10),
        ("fw_log_res_50_gt_1", np.log, 1, 50),
        ("fw_prob_sqrt_res_100_gt_0.02", np.sqrt, 0.02, 100),
    ):
        assert got[name] == pytest.approx([binned(v, f, g, r) for v in X])


@settings(max_examples=60)
@given(
    st.lists(st.one_of(st.integers(-50, 200).map(float), st.just(float("nan"))), min_size=1, max_size=12, unique=True),
    st.data(),
)
def test_what_is_kept(levels, data):
    counts = np.array(data.draw(st.lists(st.integers(1, 30), min_size=len(levels), max_size=len(levels))))
    for _, lookup, values in transforms.transformed(np.array(levels), counts, "fw"):
        tally = np.bincount(lookup, weights=counts)
        assert np.count_nonzero(tally) > 1
        assert tally.max() < 0.8 * counts.sum()
        assert counts[np.isnan(values)].sum() < 0.75 * counts.sum()
        for i in range(len(levels)):  # equal results share a code
            same = (values == values[i]) | (np.isnan(values) & np.isnan(values[i]))
            assert (lookup[same] == lookup[i]).all()


def test_sub_features_equal_naive():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 3, 200).astype(np.int32), rng.integers(0, 2, 200).astype(np.int32)
    given_b = dict(transforms.sub_features("A->B", a, b, ["x", "y", "z"], ["u", "v"]))
    assert set(given_b) == {"A->B=u", "A->B=v"}
    assert (given_b["A->B=v"] == np.where(b == 1, a + 1, 0)).all()
    both = dict(transforms.sub_features("A<->B", a, b, ["x", "y", "z"], ["u", "v"]))
    assert len(both) == 6
    assert (both["A=y<->B=u"] == ((a == 1) & (b == 0))).all()


def test_lists_become_indicators():
    values = ["red,blue", "blue", "", "green , red"]
    codes = np.array([0, 1, 2, 3, 0], dtype=np.int32)
    got = dict(transforms.multi_values("c", codes, values, frozenset({""})))
    assert list(got) == ["c~blue", "c~red", "c~green"]
    assert got["c~red"].tolist() == [1, 0, 0, 1, 1]
    dashes = dict(transforms.multi_values("c", np.array([0, 1], np.int32), ["a-b", "b"], frozenset()))
    assert dashes["c~a"].tolist() == [1, 0]


def test_too_many_columns_are_told(monkeypatch):
    monkeypatch.setattr(transforms, "MAX_COLUMNS", 3)
    codes = np.repeat(np.arange(9, dtype=np.int32), np.arange(9, 0, -1))
    with pytest.warns(SkerryWarning, match="the 3 most frequent are kept"):
        got = list(transforms.sub_features("A->B", codes, codes, list("abcdefghi"), list("abcdefghi")))
    assert [name for name, _ in got] == ["A->B=a", "A->B=b", "A->B=c"]


def test_ranked_with_the_rest():
    rng = np.random.default_rng(3)
    x = rng.integers(0, 1000, 3000)
    site, hour = rng.integers(0, 3, 3000), rng.integers(0, 4, 3000)
    tags = np.where(rng.random(3000) < 0.5, "a,b", "b,c")
    y = (x > 500) | ((site == 1) & (hour == 2))
    frame = pl.DataFrame({"x": x, "site": site, "hour": hour, "tags": tags, "label": y.astype(int)})
    ranker = OutRank(
        correction="expected", transforms="default", sub_features=("site<->hour", "hour->site"), multi_value=("tags",)
    ).fit(frame)
    names = ranker.ranking_["feature"].to_list()
    assert "x_tr_round(x/max)" in names[:2]
    rank = {n: i for i, n in enumerate(names)}
    assert rank["site=1<->hour=2"] < rank["site=0<->hour=2"]
    assert {"hour->site=0", "tags~a", "tags~c"} <= set(names)
    assert "tags~b" in names  # constant, and so at 0
    assert ranker.scores_.shape == (4,)
    row = ranker.ranking_.filter(pl.col("feature") == "site=1<->hour=2").to_dicts()[0]
    assert row["cardinality"] == 2


def test_errors():
    frame = pl.DataFrame({"a": [1, 2], "label": [0, 1]})
    with pytest.raises(ParameterError, match="write A->B"):
        OutRank(sub_features=("a",)).fit(frame)
    with pytest.raises(DataError, match="no column 'b'"):
        OutRank(sub_features=("a->b",)).fit(frame)
    with pytest.raises(DataError, match="no column 'tags'"):
        OutRank(multi_value=("tags",)).fit(frame)
    with pytest.raises(ParameterError, match="default"):
        list(transforms.transformed(X, np.ones(8, int), "defalt"))


def test_a_derived_column_does_not_take_a_given_name():
    x = np.arange(300) % 10
    frame = pl.DataFrame({"x": x, "x_tr_sqrt": np.arange(300) % 7, "label": x > 4})
    names = OutRank(transforms="default").fit(frame).ranking_["feature"].to_list()
    assert len(set(names)) == len(names)
    assert {"x_tr_sqrt", "x_tr_sqrt (derived)"} <= set(names)
