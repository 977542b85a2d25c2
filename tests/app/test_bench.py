"""Options of `skerry bench run` reach the studies that take them, and no other."""

from typer.testing import CliRunner

from skerry.app.cli import app
from skerry.bench import conformal, runner


def invoke(*args):
    return CliRunner().invoke(app, ["bench", "run", *map(str, args)])


def test_options_that_are_given_reach_the_study(tmp_path, monkeypatch):
    seen = {}

    def study(quick, data, seed, progress, seeds=3, variants=None):
        seen.update(quick=quick, seed=seed, seeds=seeds, variants=variants)
        return {"title": "T", "claim": "C", "table": [{"a": 1}], "pictures": {"curve": "<svg/>"}}

    monkeypatch.setattr(conformal, "run", study)
    result = invoke("conformal", "--data", tmp_path, "--seeds", 2, "--variants", "a; b", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert seen == {"quick": False, "seed": 0, "seeds": 2, "variants": "a; b"}
    assert (tmp_path / "out" / "conformal-curve.svg").read_text() == "<svg/>"
    assert "--variants 'a; b' --seeds 2" in (tmp_path / "out" / "conformal.md").read_text()


def test_options_of_other_studies_are_refused_by_name(tmp_path):
    result = invoke("conformal", "--data", tmp_path, "--preset", "cpu")
    assert result.exit_code != 0
    assert "takes no --preset" in str(result.exception) + result.output
    assert "train" in runner.STUDIES
