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


def test_a_study_without_data_runs_without_a_folder(tmp_path, monkeypatch):
    found = {"title": "T", "claim": "C", "table": [{"a": 1}]}
    for name, wanted in (("quant_speed", 0), ("conformal", 1)):
        monkeypatch.setattr(f"skerry.bench.{name}.run", lambda quick, data, seed, progress: found)
        result = invoke(name.replace("_", "-"), "--data", tmp_path / "absent")
        assert (result.exit_code != 0) == bool(wanted)


def test_kernel_costs_are_measured_and_kept(tmp_path, monkeypatch):
    import json

    import pytest

    pytest.importorskip("torch")
    from skerry.quant.runtime.choose import CostTable

    monkeypatch.setenv("SKERRY_CACHE", str(tmp_path))
    given = ["bench", "kernels", "--size", "64", "--seconds", "0.001"]
    shown = CliRunner().invoke(app, given)
    assert shown.exit_code == 0, shown.output
    lines = shown.stdout.splitlines()
    assert lines[0].split()[-6:] == ["1", "tokens", "32", "tokens", "512", "tokens"]
    kinds = {tuple(line.split()[:2]) for line in lines[1:-1]}  # every kind of layer has a fastest at every size
    assert len(kinds) >= 3 and sum(line.count("*") for line in lines[1:-1]) >= 3 * len(kinds)
    told = json.loads(CliRunner().invoke(app, [*given, "--json"]).stdout)
    assert CostTable.load().entries == told["milliseconds"] and told["path"] == str(tmp_path / "quant-costs.json")
    assert CliRunner().invoke(app, ["bench", "kernels", "--size", "10"]).exit_code == 2
