"""The invariants of the ranking."""

import pickle

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import mutual_info_score

from skerry.core.errors import DataError, ParameterError
from skerry.rank.outrank import OutRank


def bits(n=4000, seed=0):
    rng = np.random.default_rng(seed)
    x1, x2 = rng.permutation(np.arange(n) % 2), rng.integers(0, 2, n)
    return pl.DataFrame({"x1": x1, "x2": x2, "noise": rng.integers(0, 50, n), "label": x1 ^ x2})


def scores(ranker):
    return dict(zip(ranker.ranking_["feature"], ranker.ranking_["score"], strict=True))


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(4)
    y = rng.integers(0, 2, 3000)
    return pl.DataFrame(
        {
            "good": np.where(rng.random(3000) < 0.8, y, 1 - y),
            "weak": np.where(rng.random(3000) < 0.65, y, 1 - y),
            "id": np.arange(3000),
            "noise": rng.integers(0, 300, 3000),
            "one": np.zeros(3000, int),
            "label": y,
        }
    )


def test_none_is_plug_in(table):
    got = scores(OutRank(correction="none").fit(table))
    for name in table.columns[:-1]:
        assert got[name] == pytest.approx(mutual_info_score(table[name], table["label"]), abs=1e-10)


@pytest.mark.parametrize("correction", ["permutation", "expected"])
def test_signal_first_noise_zero(table, correction):
    ranker = OutRank(correction=correction).fit(table)
    assert ranker.ranking_["feature"].to_list()[:2] == ["good", "weak"]
    got = scores(ranker)
    assert got["one"] == 0
    assert abs(got["id"]) < 1e-9
    assert ranker.ranking_.filter(pl.col("q_value") <= 0.05)["feature"].to_list() == ["good", "weak"]
    assert list(ranker.get_support()) == [True, True, False, False, False]
    assert ranker.transform(table, k=1).columns == ["good"]


@pytest.mark.parametrize("correction", ["permutation", "expected"])
@pytest.mark.parametrize("card", [2, 10, 100, 1000, 10_000])
def test_independent_is_centred(card, correction):
    rng = np.random.default_rng(card)
    frame = pl.DataFrame({f"f{j}": rng.integers(0, card, 4000) for j in range(30)})
    frame = frame.with_columns(pl.Series("label", rng.integers(0, 3, 4000)))
    got = OutRank(correction=correction, controls=False).fit(frame).scores_
    assert abs(got.mean()) < 3 * got.std(ddof=1) / np.sqrt(30) + 1e-12


@pytest.mark.parametrize("correction", ["none", "expected"])
def test_relabelling_changes_nothing(table, correction):
    other = table.with_columns((7919 * (pl.col("noise") + 1) % 1009).alias("noise"))
    assert scores(OutRank(correction=correction).fit(table)) == scores(OutRank(correction=correction).fit(other))


def test_xor_is_found_by_its_cross():
    ranker = OutRank(interaction_order=2).fit(bits())
    got = scores(ranker)
    assert got["x1 AND x2"] == pytest.approx(np.log(2), rel=0.01)
    assert abs(got["x1"]) < 0.002
    assert ranker.ranking_["feature"][0] == "x1 AND x2"


def test_separator_does_not_collide():
    frame = pl.DataFrame({"a": ["1", "11"] * 50, "b": ["11", "1"] * 50, "label": ["u", "v"] * 50})
    got = scores(OutRank(interaction_order=2, correction="none").fit(frame))
    assert got["a AND b"] == pytest.approx(np.log(2))


def test_cumulative_does_not_depend_on_batches(table):
    whole = OutRank().fit(table)
    parts = OutRank().fit(iter([table.slice(s, 700) for s in range(0, 3000, 700)]))
    assert whole.ranking_.equals(parts.ranking_)


def test_one_mini_batch_is_plain(table):
    a = scores(OutRank(mode="batch-median", correction="shift").fit(table))
    b = scores(OutRank(mode="cumulative", correction="shift").fit(table))
    assert a == b


def test_batch_median_is_the_median(table):
    got = scores(OutRank(mode="batch-median", batch_rows=1000, correction="none").fit(table))
    each = [scores(OutRank(correction="none").fit(table.slice(s, 1000))) for s in (0, 1000, 2000)]
    for name, value in got.items():
        assert value == pytest.approx(np.median([e[name] for e in each]), abs=1e-12)


def test_diagonal_is_entropy_and_duplicate_is_not_second(table):
    frame = table.with_columns(pl.col("good").alias("again"))
    ranker = OutRank(pairwise=True).fit(frame)
    pair = {(r["a"], r["b"]): r["score"] for r in ranker.pairs_.to_dicts()}
    assert pair["good", "good"] == pytest.approx(mutual_info_score(frame["good"], frame["good"]), abs=1e-10)
    order = [s["feature"] for s in ranker.rank_3mr()]
    assert order[0] == "good"
    assert order[1] != "again"
    assert any("duplicates" in line for line in ranker.anomalies_)
    assert any("one is constant" in line for line in ranker.anomalies_)


def test_leak_and_drift_are_told():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 2000)
    frame = pl.DataFrame({"leak": y + 5, "day": np.arange(2000) // 100, "label": y})
    told = OutRank().fit(frame).anomalies_
    assert any(line.startswith("leak leaks") for line in told)
    assert any(line.startswith("day drifts") for line in told)


def test_threads_and_seed(table):
    import numba

    before = numba.get_num_threads()
    a = OutRank(interaction_order=2, pairwise=True).fit(table)
    numba.set_num_threads(1)
    try:
        b = OutRank(interaction_order=2, pairwise=True).fit(table)
    finally:
        numba.set_num_threads(before)
    assert a.ranking_.equals(b.ranking_)
    assert a.pairs_.equals(b.pairs_)
    assert pickle.loads(pickle.dumps(a)).ranking_.equals(a.ranking_)


def test_capped_crosses_take_turns():
    ranker = OutRank(interaction_order=2, max_combinations=2, mode="batch-median", batch_rows=1000)
    ranker.fit(bits(3000))
    assert set(ranker.evaluated_.values()) == {2}


def test_missing_is_counted_and_is_a_value():
    frame = pl.DataFrame({"a": ["x", "", None, "{}"] * 10, "label": ["1", "0", "0", "0"] * 10})
    row = OutRank().fit(frame).ranking_.to_dicts()[0]
    assert row["coverage"] == 25
    assert row["cardinality"] == 3
    assert row["score"] > 0.4


def test_files_are_written(table, tmp_path):
    OutRank(pairwise=True).fit(table).write(tmp_path / "out")
    lines = (tmp_path / "out" / "pairwise_ranks.tsv").read_text().splitlines()
    assert lines[0] == "FeatureA\tFeatureB\tScore"
    assert len(lines) == 1 + 36


def test_errors(table):
    with pytest.raises(DataError, match="'lable' is not a column"):
        OutRank().fit(table, target="lable")
    with pytest.raises(DataError, match="one value only"):
        OutRank().fit(table, target="one")
    with pytest.raises(ParameterError, match="correction"):
        OutRank(correction="some").fit(table)
    with pytest.raises(DataError, match="fewer rows"):
        OutRank().fit(table.drop("label"), y=[1, 2])


def test_expected_subtracts_the_mean_of_adjusted_information(table):
    from sklearn.metrics.cluster import contingency_matrix, expected_mutual_information

    got = scores(OutRank(correction="expected", controls=False).fit(table))
    for name in ("good", "noise", "id"):
        cells = contingency_matrix(table[name].to_numpy(), table["label"].to_numpy(), sparse=True).astype(np.int64)
        wanted = mutual_info_score(table[name], table["label"]) - expected_mutual_information(cells, table.height)
        assert got[name] == pytest.approx(wanted, abs=1e-8)


def test_p_values_of_noise_are_uniform():
    rng = np.random.default_rng(7)
    frame = pl.DataFrame({f"f{j}": rng.integers(0, 4, 2000) for j in range(200)})
    p = OutRank(controls=False).fit(frame, y=rng.integers(0, 2, 2000)).ranking_["p_value"].to_numpy()
    assert np.abs(np.sort(p) - (np.arange(200) + 0.5) / 200).max() < 0.1


def test_normalised_scores(table):
    plain = OutRank(correction="expected").fit(table)
    share = OutRank(correction="expected", normalize="target-entropy").fit(table)
    assert share.scores_ == pytest.approx(plain.scores_ / plain.target_entropy_)
    scaled = OutRank(correction="expected", normalize="min-max").fit(table)
    assert (scaled.ranking_["score"].max(), scaled.ranking_["score"].min()) == (1, 0)
    assert plain.ranking_["feature"].to_list() == scaled.ranking_["feature"].to_list()
    full = OutRank(correction="expected", normalize="target-entropy").fit(table.with_columns(again="label"))
    assert full.ranking_["score"][0] == pytest.approx(1, abs=1e-3)


def test_jobs_change_nothing(table):
    one, all_of_them = (OutRank(interaction_order=2, pairwise=True, n_jobs=n).fit(table) for n in (1, -1))
    assert one.ranking_.equals(all_of_them.ranking_)
    assert one.pairs_.equals(all_of_them.pairs_)


def test_a_short_last_batch_does_not_vote(table):
    frame = pl.concat([table, table[:500]])
    whole = OutRank(mode="batch-median", batch_rows=1500, controls=False).fit(table)
    longer = OutRank(mode="batch-median", batch_rows=1500, controls=False).fit(frame)
    assert whole.scores_.tolist() == longer.scores_.tolist()


def test_arrays_frames_and_selection(table):
    X, y = table.drop("label").to_numpy(), table["label"].to_numpy()
    ranker = OutRank(k=2).fit(X, y)
    assert ranker.transform(X).shape == (3000, 2)
    assert ranker.get_feature_names_out().tolist() == ["x0", "x1"]
    assert not hasattr(ranker, "feature_names_in_")
    texts = OutRank(k=2).fit(X.astype(object), y)
    assert texts.get_support().tolist() == ranker.get_support().tolist()
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(X, columns=table.columns[:-1])
    chosen = OutRank(k=2).fit(frame, y)
    assert chosen.transform(frame).columns.tolist() == ["good", "weak"]
    assert chosen.get_feature_names_out().tolist() == ["good", "weak"]
    arrow = table.to_arrow()
    assert OutRank(k=2).fit(arrow).transform(arrow).column_names == ["good", "weak"]
    with pytest.raises(DataError, match="lacks the column 'good'"):
        chosen.transform(frame.drop(columns="good"))
    with pytest.raises(DataError, match="requires y"):
        OutRank().fit(X)


def test_is_a_scikit_learn_estimator():
    import warnings

    from sklearn.utils.estimator_checks import check_estimator

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_estimator(OutRank())


def test_controls_are_the_bar(table):
    ranker = OutRank().fit(table)
    noise = ranker.controls_.filter(pl.col("kind") == "noise")
    assert set(ranker.controls_.filter(pl.col("kind") == "reference")["feature"]) == {"target", "row-hash"}
    bar = noise["score"].max()
    assert (ranker.ranking_["above_control"] == (ranker.ranking_["score"] > bar)).all()
    assert ranker.controls_["feature"][0] == "target"
    bare = OutRank(controls=False).fit(table)
    assert bare.controls_.is_empty()
    assert bare.ranking_["above_control"].null_count() == bare.ranking_.height


def test_refitting_forgets(table):
    ranker = OutRank(pairwise=True, row_quality=True).fit(table)
    ranker.rank_3mr()
    ranker.set_params(pairwise=False, row_quality=False).fit(table.drop("weak"))
    assert not any(hasattr(ranker, name) for name in ("pairs_", "rows_", "steps_3mr_"))
    assert ranker.n_features_in_ == 4
