"""Interrupted runs: what goes on, what starts anew, and that nobody can tell from the result."""

import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import dataclass, replace

import pytest

import skerry.quant as quant
from skerry.core.errors import DataError, SkerryError, SkerryWarning
from skerry.quant.checkpoint import save
from skerry.quant.engine import quantize_model
from skerry.quant.recipe import Recipe
from skerry.quant.recipes import RECIPES, make_recipe
from skerry.quant.resume import WorkFolder, discard, run_key

SMALL = {"os-plus": {"n_grid": 5}, "svdquant": {"rank": 2, "n_grid": 4}, "outliertune": {}}
BITS = {"splitquant": "w6a8", "llm-int8": "w8a8", "olive": "w4a4"}


class Stop(Exception):
    """An interruption."""


def stopping(at):
    """Return a progress callback that stops the run before block ``at``."""

    def progress(what, done, total):
        if done == at:
            raise Stop

    return progress


def started_at(seen):
    """Return a progress callback that notes the blocks worked on."""
    return lambda what, done, total: seen.append(done)


def assert_same(a, b, folder, name):
    """Compare two quantized models by the files they are saved to, byte by byte."""
    for model, where in ((a, folder / f"{name}-a"), (b, folder / f"{name}-b")):
        save(model, where, layout="skerry-v1")
    for file in sorted((folder / f"{name}-a").iterdir()):
        assert file.read_bytes() == (folder / f"{name}-b" / file.name).read_bytes(), file.name


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_recipe_goes_on_where_it_was(name, tiny, inputs, tmp_path):
    model, batches = tiny("opt", blocks=3), inputs("opt")
    try:
        recipe = make_recipe(name, BITS.get(name, "w4a8"), **SMALL.get(name, {}))
        whole, report = quantize_model(model, recipe, calibration=batches)
    except SkerryError as error:
        pytest.skip(f"does not fit: {error}")
    work = tmp_path / "work"
    with pytest.raises(Stop):
        quantize_model(model, recipe, calibration=batches, work_dir=work, progress=stopping(2))
    seen = []
    again, told = quantize_model(model, recipe, calibration=batches, work_dir=work, progress=started_at(seen))
    assert seen == [2, 3] and any("resumed: 2 of 3" in note for note in told.notes)
    assert_same(whole, again, tmp_path, name)
    assert [layer.name for layer in told.layers] == [layer.name for layer in report.layers]
    assert [layer.objective for layer in told.layers] == pytest.approx(
        [layer.objective for layer in report.layers], nan_ok=True
    )
    assert told.transforms == report.transforms


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "vit", "plain"])
def test_every_family_goes_on_where_it_was(family, tiny, inputs, tmp_path):
    model, batches = tiny(family), inputs(family)
    recipe = make_recipe("outliertune", "w4a8")  # shifts norms, makes biases, changes inputs
    whole, _ = quantize_model(model, recipe, calibration=batches)
    work = tmp_path / "work"
    with pytest.raises(Stop):
        quantize_model(model, recipe, calibration=batches, work_dir=work, progress=stopping(1))
    again, told = quantize_model(model, recipe, calibration=batches, work_dir=work)
    assert any("resumed: 1" in note for note in told.notes)
    assert_same(whole, again, tmp_path, family)


@pytest.mark.parametrize("propagate", ["quantized", "float", "mixed"])
def test_the_folder_is_gone_at_the_end(propagate, tiny, inputs, tmp_path):
    model, batches = tiny("llama", blocks=3), inputs("llama")
    recipe = replace(make_recipe("gptq", "w4a16"), propagate=propagate)
    work = tmp_path / "work"
    with pytest.raises(Stop):
        quant.quantize(model, recipe, calibration=batches, work_dir=work, progress=stopping(1))
    assert sorted(p.name for p in work.iterdir()) == ["block-00000", "lock", "states-00001", "work.json"]
    again = quant.quantize(model, recipe, calibration=batches, work_dir=work)
    assert not work.exists()
    assert_same(quant.quantize(model, recipe, calibration=batches), again, tmp_path, propagate)


def test_another_run_starts_anew_and_says_why(tiny, inputs, tmp_path):
    model, batches = tiny("opt"), inputs("opt")
    work = tmp_path / "work"
    changes = {
        "recipe": (model, make_recipe("gptq", "w3a16"), batches),
        "calibration": (model, make_recipe("gptq", "w4a16"), inputs("opt", seed=9)),
        "model": (tiny("opt", seed=5), make_recipe("gptq", "w4a16"), batches),
    }
    for what, (changed, recipe, data) in changes.items():
        with pytest.raises(Stop):
            quantize_model(
                model, make_recipe("gptq", "w4a16"), calibration=batches, work_dir=work, progress=stopping(1)
            )
        seen = []
        with pytest.warns(SkerryWarning, match=f"starting anew, {what} is not the same"):
            found, report = quantize_model(changed, recipe, calibration=data, work_dir=work, progress=started_at(seen))
        assert seen == [0, 1, 2] and any(what in note for note in report.notes)
        assert_same(quantize_model(changed, recipe, calibration=data)[0], found, tmp_path, what)
        discard(work)


def test_a_folder_of_someone_else_is_left_alone(tiny, tmp_path):
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(DataError, match="thesis"):
        quant.quantize(tiny("plain"), "rtn", work_dir=tmp_path)
    with pytest.raises(DataError, match="thesis"):
        discard(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "x"


def test_a_run_that_fails_at_once_leaves_no_folder(tiny, tmp_path):
    with pytest.raises(SkerryError):
        quantize_model(tiny("plain"), Recipe("x", skip=("*",)), work_dir=tmp_path / "w")
    assert not (tmp_path / "w").exists()


def test_one_run_at_a_time(tiny, tmp_path):
    key = run_key(tiny("plain"), make_recipe("rtn"), [])
    with WorkFolder(tmp_path / "work", key), pytest.raises(DataError, match="another run"):
        WorkFolder(tmp_path / "work", key)
    WorkFolder(tmp_path / "work", key).remove()
    assert not (tmp_path / "work").exists()


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from skerry.quant.checkpoint import save
from skerry.quant.engine import quantize_model
from skerry.quant.recipes import make_recipe
from transformers import OPTConfig, OPTForCausalLM

torch.manual_seed(0)
model = OPTForCausalLM(OPTConfig(vocab_size=64, hidden_size=32, word_embed_proj_dim=32, num_hidden_layers=4,
                                 num_attention_heads=2, ffn_dim=64, max_position_embeddings=64))
batches = [torch.randint(0, 64, (2, 12)) for _ in range(3)]
work, out, at, how = sys.argv[1:]


def progress(what, done, total):
    print("block", done, flush=True)
    if done == int(at):
        os.kill(os.getpid(), getattr(signal, how))


found, _ = quantize_model(model, make_recipe("gptq", "w4a16"), calibration=batches, work_dir=work or None,
                          progress=progress)
save(found, out)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system cannot kill a process at once")
def test_a_killed_process_goes_on_bit_for_bit(tmp_path):
    def run(work, out, at, how):
        return subprocess.run(
            [sys.executable, "-c", textwrap.dedent(KILLED), str(work), str(tmp_path / out), str(at), how],
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )

    work = tmp_path / "work"
    assert run(work, "none", 1, "SIGKILL").returncode == -signal.SIGKILL
    (work / ".block-00001.half.part").mkdir()  # what a kill in the middle of writing leaves
    second = run(work, "none", 3, "SIGTERM")
    assert second.returncode == -signal.SIGTERM and second.stdout.split() == "block 1 block 2 block 3".split()
    third = run(work, "resumed", 99, "SIGTERM")
    assert third.returncode == 0 and third.stdout.split() == "block 3 block 4".split(), third.stderr
    assert run("", "whole", 99, "SIGTERM").returncode == 0
    assert not list(work.glob(".*.part")) and not (tmp_path / "none").exists()
    for file in sorted((tmp_path / "whole").iterdir()):
        assert file.read_bytes() == (tmp_path / "resumed" / file.name).read_bytes()


def test_a_damaged_folder_is_told(tiny, inputs, tmp_path):
    model, batches = tiny("opt"), inputs("opt")
    recipe = make_recipe("gptq", "w4a16")
    with pytest.raises(Stop):
        quantize_model(model, recipe, calibration=batches, work_dir=tmp_path / "w", progress=stopping(1))
    file = next((tmp_path / "w" / "block-00000").glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(ValueError, match="block-00000.*damaged"):
        quantize_model(model, recipe, calibration=batches, work_dir=tmp_path / "w")


def test_what_cannot_be_rebuilt_is_not_kept(tiny, inputs, tmp_path):
    @dataclass(frozen=True)
    class Marks:
        needs = frozenset()

        def apply(self, group, statistics, context):
            context.model.model.decoder.layers[context.block].fc1_scale = 2.0
            return {"done": True}

    recipe = Recipe("marks", make_recipe("rtn", "w8a16").weight, transforms=(Marks(),))
    _, report = quantize_model(tiny("opt"), recipe, calibration=inputs("opt"), work_dir=tmp_path / "w")
    assert any("interruption would lose this run" in note for note in report.notes)
    assert not list((tmp_path / "w").glob("block-*"))
