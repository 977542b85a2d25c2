"""The other heuristics: equal to their definitions, and ranking conditional on a reference model."""

import json

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import adjusted_mutual_info_score, mutual_info_score

from skerry.core.errors import DataError, ParameterError
from skerry.rank.outrank import OutRank
from skerry.rank.surrogates import HEURISTICS, SURROGATES, heuristic_scores, reference_columns

UNCORRECTED = ("MI", "MI-numba-3mr", "max-value-coverage", "Constant")  # these put noise of many values first


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 1500)
    flip = [np.where(rng.random(1500) < share, y, 1 - y) for share in (0.9, 0.7)]
    return pl.DataFrame({"noise": rng.integers(0, 300, 1500), "weak": flip[1], "strong": flip[0], "label": y})


def scored(ranker):
    return dict(zip(ranker.ranking_["feature"], ranker.ranking_["score"], strict=True))


@pytest.mark.parametrize("heuristic", [h for h in HEURISTICS if h not in UNCORRECTED])
def test_signal_comes_first(table, heuristic):
    ranker = OutRank(heuristic=heuristic, controls=False).fit(table)
    assert ranker.ranking_["feature"][0] == "strong"
    got = scored(ranker)
    assert got["weak"] > got["noise"]


def test_equal_to_their_definitions(table):
    y = table["label"].to_numpy()
    for name, wanted in (
        ("MI", lambda x: mutual_info_score(x, y)),
        ("AMI", lambda x: adjusted_mutual_info_score(x, y)),
        ("correlation-Pearson", lambda x: abs(np.corrcoef(x, y)[0, 1])),
        ("max-value-coverage", lambda x: np.unique(np.stack([x, y]), axis=1, return_counts=True)[1].max() / y.size),
        ("Constant", lambda x: 0.0),
    ):
        got = scored(OutRank(heuristic=name, controls=False).fit(table))
        for column in table.columns[:-1]:
            assert got[column] == pytest.approx(wanted(table[column].to_numpy()), abs=1e-9), name


def test_only_information_has_a_test(table):
    ranking = OutRank(heuristic="AMI").fit(table).ranking_
    assert ranking["z"].null_count() == ranking["q_value"].null_count() == 3
    assert OutRank(heuristic="AMI", k=1).fit(table).get_support().tolist() == [False, False, True]


def test_coverage_does_not_overflow_narrow_codes():
    codes = np.full((1, 300), 255, dtype=np.uint8)
    assert heuristic_scores("max-value-coverage", codes, np.full(300, 200, dtype=np.uint8))[0] == 1.0


@pytest.mark.parametrize("heuristic", SURROGATES)
def test_surrogates_take_crosses_and_pairs(heuristic):
    rng = np.random.default_rng(1)
    a, b = rng.integers(0, 2, (2, 400))
    frame = pl.DataFrame({"a": a, "b": b, "label": a ^ b})
    ranker = OutRank(heuristic=heuristic, interaction_order=2, controls=False, n_jobs=1).fit(frame)
    assert ranker.ranking_["feature"][0] == "a AND b"


def test_candidates_are_judged_beside_the_reference():
    rng = np.random.default_rng(2)
    first, second = rng.integers(0, 2, (2, 3000))
    y = (rng.random(3000) < 1 / (1 + np.exp(-(3 * first + 2 * second - 2.5)))).astype(int)
    frame = pl.DataFrame({"first": first, "copy": first, "second": second, "label": y})
    alone = scored(OutRank(heuristic="surrogate-SGD", controls=False).fit(frame))
    assert alone["copy"] > alone["second"]
    beside = scored(OutRank(heuristic="surrogate-SGD", reference=["first"], controls=False).fit(frame))
    assert beside["second"] > beside["copy"] + 0.02


def test_reference_files(tmp_path):
    path = tmp_path / "model.json"
    path.write_text(json.dumps({"desc": {"features": ["a", "b,c"], "fields": ["d", "a"]}}))
    assert reference_columns(path) == (("a",), ("b", "c"), ("d",))
    assert reference_columns(["b AND c"]) == (("b", "c"),)
    path.write_text("[]")
    with pytest.raises(DataError, match=r"model\.json"):
        reference_columns(path)
    with pytest.raises(DataError, match="names no feature"):
        reference_columns([])


def test_errors(table):
    with pytest.raises(ParameterError, match="needs a surrogate heuristic"):
        OutRank(reference=["weak"]).fit(table)
    with pytest.raises(DataError, match="'week' is not in the table"):
        OutRank(heuristic="surrogate-SGD", reference=["week"]).fit(table)


def test_the_same_on_any_number_of_threads(table):
    one, two = (OutRank(heuristic="surrogate-SGD", n_jobs=n).fit(table) for n in (1, 2))
    assert one.ranking_.equals(two.ranking_)


def test_triple_heuristic_orders(table):
    ranker = OutRank(heuristic="MI-numba-3mr", controls=False).fit(table)
    assert ranker.steps_3mr_[0]["feature"] == ranker.ranking_.filter(pl.col("gain").is_null())["feature"][0]
    assert ranker.pairs_.height == 10
    assert len(ranker.cross_scores_) == 3
