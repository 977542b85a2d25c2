"""The grid is fair (same questions, same masks), resumes where it stopped, and its report comes from its JSON."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from skerry.bench import dllm, dllm_grid, dllm_tasks
from skerry.bench.dllm_models import Settings, plant_massive, rows_of_step
from skerry.deep.masked_diffusion import MaskedDiffusionLM
from skerry.quant import quantize
from skerry.quant.block import TOLERANCE, rounding_error
from skerry.quant.diagnose import input_census
from skerry.quant.linear import QuantizedLinear

DATA = Path(os.environ.get("SKERRY_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
TEXT = torch.randint(0, 96, (4000,), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model() -> MaskedDiffusionLM:
    torch.manual_seed(0)
    return MaskedDiffusionLM(dllm_tasks.MASK + 1, width=32, blocks=2, heads=2, hidden=64).eval().requires_grad_(False)


def study(model, tmp_path, configs, **settings) -> dllm_grid.StudyGrid:
    settings = {"seeds": (0,), "sizes": dllm_grid.QUICK, "cache": tmp_path / "cells.jsonl"} | settings
    return dllm_grid.StudyGrid({"base": model}, TEXT, TEXT, configs, **settings)


def test_a_recipe_that_rounds_nothing_loses_nothing(model, tmp_path):
    plain = dllm_grid.Config("rtn", "w16a16")
    cells = study(model, tmp_path, (plain,)).run()
    assert len(cells) == 2 * 5
    assert all(c["drop_pct"] == 0.0 for c in cells if c["fp_score"])
    assert all(c["score"] == c["fp_score"] for c in cells)
    assert {c["task"] for c in cells} == {*dllm_tasks.TASKS, dllm_grid.BOUND}


def test_a_run_that_was_cut_goes_on(model, tmp_path):
    config = dllm_grid.Config("rtn", "w4a4")
    grid = study(model, tmp_path, (config,))
    first = grid.run()
    asked = []
    grid.progress = asked.append
    with grid.cache.open("a") as file:
        file.write('{"key": "cut he')
    assert grid.run() == first
    assert asked == []
    other = study(model, tmp_path, (config, dllm_grid.Config("rtn", "w8a8")), progress=asked.append)
    assert other.run()[: len(first)] == first
    assert asked == ["base, seed 0, rtn w8a8"]


@pytest.mark.parametrize("method", ["rtn", "smoothquant", "quarot", "duquant"])
def test_eight_bits_move_less_than_four(model, method):
    text = TEXT[:512].reshape(8, 64)
    moved = {}
    for bits in ("w8a8", "w4a4"):
        recipe = dllm_grid.recipe_of(dllm_grid.Config(method, bits), duquant_steps=4)
        found, _ = dllm_grid.quantize_model(model, recipe, calibration=text)
        moved[bits] = float((found(text) - model(text)).norm() / model(text).norm())
    assert 0.0 < 5 * moved["w8a8"] < moved["w4a4"]


def test_a_cell_tells_its_bits(model, tmp_path, monkeypatch):
    monkeypatch.setattr(dllm_tasks, "TASKS", ())
    cells = study(model, tmp_path, (dllm_grid.Config("rtn", "w3a16g16"),)).run()
    assert (cells[1]["w_bits"], cells[1]["a_bits"], cells[1]["group"]) == (3, 16, 16)
    assert 3.0 < cells[1]["bits_per_weight"] < cells[0]["bits_per_weight"] == 16.0


def test_masked_calibration_sees_masks(model, tmp_path, monkeypatch):
    seen = []
    exact = dllm_grid.quantize_model
    monkeypatch.setattr(dllm_tasks, "TASKS", ())

    def spy(model, recipe, *, calibration, **others):
        seen.append(torch.cat(calibration))
        return exact(model, recipe, calibration=calibration, **others)

    monkeypatch.setattr(dllm_grid, "quantize_model", spy)
    config = dllm_grid.Config("smoothquant", "w4a4", "masked")
    study(model, tmp_path, (config,)).run()
    share = (seen[1] == model.mask_id).double().mean()
    assert not (seen[0] == model.mask_id).any()
    assert 0.3 < share < 0.7


def test_drops_and_means():
    assert dllm_grid.drop(0.3, 0.4, "addition") == pytest.approx(25.0)
    assert dllm_grid.drop(2.2, 2.0, "bound") == pytest.approx(10.0)
    assert dllm_grid.drop(0.0, 0.0, "copy") != dllm_grid.drop(0.0, 0.0, "copy")
    common = {"model": "base", "method": "rtn", "bits": "w4a4", "calib": "clean"}
    cells = [
        common | {"task": "cloze", "seed": 0, "score": 0.4, "fp_score": 0.8},
        common | {"task": "cloze", "seed": 1, "score": 0.8, "fp_score": 0.8},
        common | {"task": "addition", "seed": 0, "score": 0.99, "fp_score": 1.0},
    ]
    row = dllm_grid.marginal(cells, "method")[0]
    assert row["mean drop, %"] == pytest.approx(13.0)
    assert row["usable cells"] == "1 of 2"
    assert {r["category"] for r in dllm_grid.marginal(cells, "category")} == {"general", "maths"}


@pytest.mark.parametrize("task", ["addition", "brackets", "copy"])
def test_questions_are_right_held_out_and_repeatable(task):
    found = dllm_tasks.questions(task, 20, 3)
    again = dllm_tasks.questions(task, 20, 3)
    assert torch.equal(found.prompts, again.prompts)
    for prompt, answer in zip(found.prompts, found.answers, strict=True):
        question = dllm_tasks.decode(prompt).split(";")[-1]
        told = dllm_tasks.decode(answer)
        if task == "addition":
            a, b = question.rstrip("=").split("+")
            assert told == f"{int(a) + int(b):03d};"
            assert dllm_tasks._is_held(int(a) * 100 + int(b))
        elif task == "brackets":
            assert told == "".join(dllm_tasks.PAIRS[c] for c in reversed(question[:-1])) + ";"
        else:
            assert told == question[:-1] + ";"
    rows, where = dllm_tasks.practice("addition", 40, np.random.default_rng(0))
    for row in rows:
        for solved in dllm_tasks.decode(row).split(";")[:-1]:
            a, b = solved.split("=")[0].split("+")
            assert not dllm_tasks._is_held(int(a) * 100 + int(b))
    assert int(where[0].sum()) >= 4 * 6


def test_right_characters_count_and_whole_answers_too(model, monkeypatch):
    asked = dllm_tasks.questions("addition", 4, 0)
    given = asked.answers.clone()
    given[0, 0], given[1, -1] = 94, 94  # one wrong digit, one wrong end
    monkeypatch.setattr(dllm_tasks, "generate", lambda model, prompt, **settings: torch.cat((prompt, given), 1))
    assert dllm_tasks.score_written(model, asked) == pytest.approx(11 / 12)
    assert dllm_tasks.score_written(model, asked, exact=True) == pytest.approx(3 / 4)


def test_the_cloze_hides_its_answer_evenly():
    found = dllm_tasks.cloze(TEXT, 40, 1)
    starts = TEXT.unfold(0, dllm_tasks.LENGTH, 1)
    for prefix, options, right in zip(found.prefixes, found.options, found.right, strict=True):
        whole = torch.cat((prefix, options[right]))
        assert bool((starts == whole).all(1).any())
    assert len(found.right.unique()) == 4


def test_tuning_never_masks_a_question():
    settings = Settings(batch=8)
    x, answer = rows_of_step(TEXT, settings, 0, tuning=True)
    assert x.shape == answer.shape == (8, dllm_tasks.LENGTH)
    for row, where in zip(x[3:], answer[3:], strict=True):
        hidden = dllm_tasks.decode(row[where])
        assert not set(hidden) & set("=+|:")
    assert not torch.equal(x, rows_of_step(TEXT, settings, 1, tuning=True)[0])


def test_planted_values_are_massive_on_line_ends_and_nearly_free(model):
    tokens = torch.where(TEXT[:512] < 90, TEXT[:512] % 16, dllm_tasks.MASK - 1).reshape(8, 64)
    twin = plant_massive(model, tokens)
    layers = [f"layers.{i}.mlp.down_proj" for i in range(2)]
    before, after = (input_census(m, [tokens], layers=layers) for m in (model, twin))
    for a, b in zip(before, after, strict=True):
        assert a.n_massive_tokens == 0
        assert a.token_ratio < 50 < b.token_ratio
        assert 0 < b.n_massive_tokens <= int((tokens == dllm_tasks.MASK - 1).sum())
    change = (twin(tokens) - model(tokens)).norm() / model(tokens).norm()
    assert change < 0.1


def test_values_that_cancel_are_no_reason_to_refuse_a_rotation(model):
    """What rounding leaves of them is far above the dtype's own error, and a change of the function is above that."""
    tokens = torch.where(TEXT[:512] < 90, TEXT[:512] % 16, dllm_tasks.MASK - 1).reshape(8, 64)
    massive = plant_massive(model, tokens, size=1e5)
    block, inputs = massive.layers[1].mlp, torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
    layers = {"quiet": model.layers[1].mlp, "massive": block}
    floor = {name: rounding_error(mlp, lambda mlp=mlp: mlp(10.0 * inputs)) for name, mlp in layers.items()}
    assert floor["quiet"] < TOLERANCE[torch.float32] < floor["massive"] < 0.1
    found = quantize(massive, "quarot", "w4a4", [tokens])
    assert sum(isinstance(m, QuantizedLinear) for m in found.modules()) >= 14


def test_the_report_comes_from_its_json(tmp_path, monkeypatch):
    if not (DATA / "text" / "tinyshakespeare.txt.gz").is_file():
        pytest.skip(f"no text at {DATA}: set SKERRY_DATA")
    monkeypatch.setenv("SKERRY_CACHE", str(tmp_path))
    monkeypatch.setattr(dllm_grid, "MASKED_CONFIGS", dllm_grid.MASKED_CONFIGS[1:2])
    result = dllm.run(quick=True, data=DATA, seed=0, progress=lambda text: None)
    again = json.loads(json.dumps({k: result[k] for k in ("cells", "census")}))
    cells, census = ([json.loads(line) for line in again[k]] for k in ("cells", "census"))
    rebuilt = dllm.tables(cells, census)
    for part in ("title", "claim"):
        assert rebuilt[part] == result[part]
    shown = {k: v for k, v in result["tables"].items() if k in rebuilt["tables"]}
    assert json.dumps(rebuilt["tables"]) == json.dumps(shown)
    assert {r["model"] for r in result["table"]} == {"base", "instruct", "massive"}
    assert {r["model"] for r in census} == {"base", "instruct", "massive", "causal"}
    assert {r["linear"] for r in census} == {"q_proj", "o_proj", "gate_proj", "down_proj"}
