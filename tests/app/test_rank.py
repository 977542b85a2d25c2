"""``skerry rank`` as a person runs it."""

import json

import numpy as np
import polars as pl
import pytest


@pytest.fixture(scope="module")
def clicks(tmp_path_factory):
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 3_000)
    frame = pl.DataFrame(
        {
            "site": np.where(rng.random(3_000) < 0.75, y, rng.integers(0, 4, 3_000)),
            "user": rng.integers(0, 2_500, 3_000),
            "price": rng.gamma(2, 20, 3_000).round(1),
            "tags": rng.choice(["a,b", "b", "a"], 3_000),
            "label": y,
        }
    )
    path = tmp_path_factory.mktemp("clicks") / "clicks.csv"
    frame.write_csv(path)
    return path


def test_prints_and_writes(skerry, clicks, tmp_path):
    result = skerry("rank", clicks, "--target", "label", "--3mr", "--out", "tables", "--row-quality")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == "3,000 rows, 4 columns ranked against label"
    assert lines[2].startswith("site")
    assert any(line.startswith("3MR order: site") for line in lines)
    assert any("below the best column of pure noise" in line for line in lines)
    assert {"ranking.csv", "3mr_ranks.tsv", "row_quality.csv"} <= {p.name for p in (tmp_path / "tables").iterdir()}


def test_json_with_everything(skerry, clicks):
    result = skerry(
        "rank", clicks, "--target", "label", "--json", "--pairwise", "--interaction-order", "2", "--max-combinations",
        "3", "--transforms", "default", "--sub-feature", "tags<->site", "--multi-value", "tags", "--permutations", "2",
        "--normalize", "target-entropy", "--missing", ",NA", "--subsample", "2", "--seed", "4", "--threads", "1",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["rows"] == 1_500
    assert found["mode"] == "cumulative"
    names = [r["feature"] for r in found["ranking"]]
    assert names.index("site") < names.index("user")
    assert sum(" AND " in n for n in names) == 3
    assert {"tags~a", "price_tr_sqrt"} <= set(names)
    assert any(c["feature"] == "random-100" for c in found["controls"])
    assert len(found["pairs"]) > 10
    assert {q["feature"] for q in found["quality"]} == {"site", "user", "price", "tags", "label"}


def test_heuristics_of_the_tool(skerry, clicks, tmp_path):
    model = tmp_path / "model.json"
    model.write_text('{"desc": {"features": ["site"]}}')
    result = skerry(
        "rank", clicks, "--target", "label", "--heuristic", "surrogate-SGD", "--reference", model, "--no-controls",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "q_value" not in result.stdout
    assert skerry("rank", clicks, "--target", "label", "--heuristic", "guess").returncode == 2
    assert skerry("rank", clicks, "--target", "label", "--transforms", "all").returncode == 2


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--target", "lable"), "did you mean 'label'"),
        (("--target", "label", "--sub-feature", "site"), "write A->B"),
        (("--target", "label", "--multi-value", "tag"), "did you mean 'tags'"),
        (("--target", "label", "--reference", "none.json"), "needs a surrogate heuristic"),
    ],
)
def test_mistakes_end_in_one_line(skerry, clicks, options, told):
    result = skerry("rank", clicks, *options)
    assert result.returncode == 1
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("skerry: error: ")
    assert told in lines[0]


def test_bad_tables(skerry, tmp_path):
    for text, told in (
        ("", "is empty"),
        ("a,label\n", "no rows"),
        ("a,label\n1,0\n2,0\n", "one value only"),
        ("label\n0\n1\n", "no column beside the target"),
    ):
        (tmp_path / "t.csv").write_text(text)
        result = skerry("rank", "t.csv", "--target", "label")
        assert result.returncode == 1
        assert told in result.stderr, (text, result.stderr)
        assert len(result.stderr.strip().splitlines()) == 1
