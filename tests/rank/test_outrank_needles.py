"""The published tool's needles in haystacks: the column, the pair and the three columns that make the label come first.

Columns of 90 equally frequent values; smaller tables than the tool's, as its own checks read every tenth or hundredth
row. The label has up to 268 values, so plain information of the pairs is mostly noise.
"""

import numpy as np
import polars as pl
import pytest

from skerry.rank.outrank import OutRank


def haystack(rows, columns, made_of, seed=123):
    values = np.random.default_rng(seed).integers(10, 100, (rows, columns))
    label = values[:, made_of].sum(axis=1)
    label[label < 20 * len(made_of) // 2] = 0
    return pl.DataFrame({f"f{j}": values[:, j] for j in range(columns)} | {"label": label})


@pytest.mark.parametrize("mode", ["cumulative", "batch-median"])
def test_one_column_of_three_hundred(mode):
    ranking = OutRank(mode=mode).fit(haystack(20_000, 300, [30])).ranking_
    assert ranking["feature"][0] == "f30"
    assert ranking["score"][0] > 100 * ranking["score"][1]


@pytest.mark.parametrize("correction", ["permutation", "expected"])
def test_one_pair_of_hundreds(correction):
    ranker = OutRank(interaction_order=2, correction=correction, n_permutations=1)
    ranking = ranker.fit(haystack(10_000, 24, [10, 20])).ranking_
    assert ranking["feature"][0] == "f10 AND f20"
    row = ranking.row(0, named=True)
    assert row["q_value"] < 1e-6
    assert row["gain"] > 0.5


def test_three_columns_of_a_hundred():
    ranking = OutRank().fit(haystack(10_000, 100, [30, 50, 20])).ranking_
    assert set(ranking["feature"][:3]) == {"f30", "f50", "f20"}
    assert (ranking["q_value"][:3] < 1e-6).all()
    assert ranking["score"][2] > 5 * ranking["score"][3]
