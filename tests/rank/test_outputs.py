"""The tables of a ranking and the files of the published tool."""

import json

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry.core.errors import DataError
from skerry.rank.outputs import PairVotes, Votes, benjamini_hochberg
from skerry.rank.outrank import OutRank


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_q_values_equal_scipy(p):
    from scipy.stats import false_discovery_control

    assert benjamini_hochberg(np.array(p)) == pytest.approx(false_discovery_control(p))


def test_q_values_pass_over_what_was_not_tested():
    got = benjamini_hochberg(np.array([np.nan, 0.01, 0.5]))
    assert np.isnan(got[0])
    assert got[1:].tolist() == [0.02, 0.5]


def test_votes_take_the_median():
    votes = Votes()
    votes.parents = {"a": (0,)}
    for score in (1.0, 5.0, 2.0):
        votes.add(("a",), (score, 1.0, 0.1, 3, np.nan))
    assert votes.score(("a",)) == 2.0
    row = votes.rows(lambda name: (50.0, 2.0, None))[0][0]
    assert (row["coverage"], row["cardinality"]) == (50.0, 3)
    assert row["z"] == pytest.approx(3 / np.sqrt(3))


def test_pairs_of_blocks_with_other_columns():
    votes = PairVotes()
    votes.add(["a", "b", "y"], np.array([[1, 0.1, 0.2], [0.1, 1, 0.3], [0.2, 0.3, 1]]))
    votes.add(["a", "c", "y"], np.array([[3, 0.5, 0.4], [0.5, 1, -0.6], [0.4, -0.6, 1]]))
    names, middle = votes.median()
    assert names == ["a", "b", "c", "y"]
    assert middle[0].tolist() == pytest.approx([2, 0.1, 0.5, 0.3])
    assert middle[1, 2] == 0  # in no block together
    assert (middle == middle.T).all()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 2_000)
    frame = pl.DataFrame(
        {
            "good": np.where(rng.random(2_000) < 0.8, y, 1 - y),
            "noise": rng.integers(0, 500, 2_000),
            "gaps": np.where(rng.random(2_000) < 0.5, "", "x"),
            "label": y,
        }
    )
    folder = tmp_path_factory.mktemp("out") / "new" / "folder"
    ranker = OutRank(pairwise=True, interaction_order=2, row_quality=True).fit(frame)
    ranker.rank_3mr()
    ranker.write(folder)
    return ranker, folder


def test_every_file_of_the_tool_is_there(written):
    _, folder = written
    assert {p.name for p in folder.iterdir()} == {
        "pairwise_ranks.tsv", "feature_singles.tsv", "feature_singles_aggregated.tsv", "3mr_ranks.tsv", "memory.tsv",
        "value_repetitions.json", "combination_estimation_counts.json", "timings.json", "arguments.json",
        "rare_values.tsv", "feature_sparsity_summary.tsv", "ranking.csv", "controls.csv", "quality.csv",
        "row_quality.csv", "anomalies.txt",
    }  # fmt: skip


def test_pairs_in_both_orders(written):
    ranker, folder = written
    table = pl.read_csv(folder / "pairwise_ranks.tsv", separator="\t")
    assert table.columns == ["FeatureA", "FeatureB", "Score"]
    scores = {(a, b): s for a, b, s in table.iter_rows()}
    assert all(scores[b, a] == s for (a, b), s in scores.items())
    assert len(scores) == 16
    good = next(a for a, _ in scores if a.startswith("good"))
    assert good == "good-(2; 100)"
    assert any(a.startswith("gaps-(2; ") and not a.endswith("; 100)") for a, _ in scores)
    assert scores[good, good] == pytest.approx(np.log(2), rel=1e-2)


def test_the_other_tables(written):
    ranker, folder = written
    singles = pl.read_csv(folder / "feature_singles.tsv", separator="\t")
    assert (singles["Score"].max(), singles["Score"].min()) == (1.0, 0.0)
    assert singles.height == ranker.ranking_.height
    steps = pl.read_csv(folder / "3mr_ranks.tsv", separator="\t")
    assert steps["3MR_Ranking"].to_list() == [1, 2, 3]
    joined = pl.read_csv(folder / "feature_singles_aggregated.tsv", separator="\t")
    assert set(joined["Feature"]) == {"good", "noise", "gaps"}
    counts = json.loads((folder / "combination_estimation_counts.json").read_text())
    assert list(counts.values()) == [1, 1, 1]
    assert json.loads((folder / "arguments.json").read_text())["target"] == "label"
    assert "score" in json.loads((folder / "timings.json").read_text())
    repeated = json.loads((folder / "value_repetitions.json").read_text())
    assert repeated["label"]["1000"] in (0, 1)
    rare = pl.read_csv(folder / "rare_values.tsv", separator="\t")
    assert set(rare["Namespace"]) <= {"noise"}
    assert pl.read_csv(folder / "ranking.csv")["feature"].to_list() == ranker.ranking_["feature"].to_list()
    assert pl.read_csv(folder / "row_quality.csv").height == 2_000


def test_target_alone_is_written_without_pairs(written, tmp_path):
    frame = pl.DataFrame({"a": [0, 1] * 20, "b": [0, 0, 1, 1] * 10, "label": [0, 1] * 20})
    OutRank(controls=False).fit(frame).write(tmp_path)
    table = pl.read_csv(tmp_path / "pairwise_ranks.tsv", separator="\t")
    assert table.height == 4
    assert not (tmp_path / "controls.csv").exists()


def test_a_file_in_the_way(written, tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(DataError, match="cannot make the folder"):
        written[0].write(tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"
