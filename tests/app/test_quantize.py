"""``skerry quantize`` and ``skerry diagnose`` as people run them: a model folder in, a folder or a page out."""

import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny OPT in a folder, with a tokenizer of single characters, a text and token ids."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import OPTConfig, OPTForCausalLM, PreTrainedTokenizerFast

    path = tmp_path_factory.mktemp("model")
    alphabet = "abcdefghijklmnopqrstuvwxyz .\n"
    words = Tokenizer(models.WordLevel({c: i for i, c in enumerate(alphabet)}, unk_token=" "))
    words.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token=" ").save_pretrained(path)
    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=len(alphabet),
        hidden_size=64,
        word_embed_proj_dim=64,
        ffn_dim=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = OPTForCausalLM(config)
    for parameter in model.parameters():
        parameter.data *= 3.0
    model.save_pretrained(path)
    rng = np.random.default_rng(0)
    (path / "text.txt").write_text("".join(rng.choice(list(alphabet), 1200)))
    np.save(path / "ids.npy", rng.integers(0, len(alphabet), (20, 40)))
    return path


def test_a_folder_that_transformers_loads(skerry, folder, tmp_path):
    out = tmp_path / "small"
    done = skerry(
        "quantize", folder, "--recipe", "gptq", "--bits", "w4a16g32", "--calibration", folder / "text.txt",
        "--context", 32, "--out", out, "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["saved"]["layout"] == "compressed-tensors" and len(found["report"]["layers"]) == 12
    assert 4.0 < found["report"]["bits_per_weight"] < 5.5
    from skerry.quant.checkpoint import load

    loaded = load(out)
    with torch.no_grad():
        logits = loaded(torch.zeros(1, 4, dtype=torch.long)).logits
    assert torch.isfinite(logits).all()
    from skerry.quant import recipe_of

    assert recipe_of(loaded).name == "gptq"  # the command keeps it, too


def test_one_block_in_memory_at_a_time(skerry, folder, tmp_path):
    words = ["quantize", folder, "--recipe", "rtn", "--bits", "w4a16g32", "--threads", 1]
    assert skerry(*words, "--out", "whole").returncode == 0
    done = skerry(*words, "--out", "streamed", "--stream")
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["streamed", "whole"]
    for file in sorted((tmp_path / "whole").iterdir()):
        assert file.read_bytes() == (tmp_path / "streamed" / file.name).read_bytes()
    done = skerry("quantize", folder, "--stream", "--out", "auto")
    assert done.returncode == 2 and "one --recipe by name" in " ".join(done.stderr.replace("│", " ").split())


def test_auto_says_why(skerry, folder, tmp_path):
    done = skerry(
        "quantize", folder, "--bits", "w8a8", "--calibration", folder / "ids.npy", "--context", 32, "--samples", 12,
        "--batch", 4, "--out", tmp_path / "small", "--threads", 1,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "closest to the float model on held-out inputs" in done.stderr
    assert "12 layers" in done.stdout and (tmp_path / "small" / "config.json").is_file()


def test_plan_and_compare_write_nothing(skerry, folder, tmp_path):
    done = skerry(
        "quantize", folder, "--recipe", "gptq", "--bits", "w4a16", "--calibration", folder / "ids.npy", "--plan"
    )
    assert done.returncode == 0 and "Gram" in done.stdout and "bits per weight" in done.stdout, done.stderr
    done = skerry(
        "quantize", folder, "--compare", "rtn,smoothquant", "--bits", "w8a8", "--calibration", folder / "ids.npy",
        "--context", 32, "--batch", 8, "--json", "--threads", 1,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert [r["recipe"] for r in rows] == ["rtn", "smoothquant"] and all(abs(r["increase"]) < 0.5 for r in rows)
    assert list(tmp_path.iterdir()) == []


def quantize(*args):
    """The command in this process: its result, or the error that it would tell in one line."""
    from typer.testing import CliRunner

    from skerry.app.cli import app

    return CliRunner().invoke(app, ["quantize", *map(str, args)])


@pytest.mark.parametrize("args", [("--list",), ("anywhere", "--list")])
def test_recipes_are_listed(args):
    done = quantize(*args)
    assert done.exit_code == 0 and "svdquant" in done.stdout


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--recipe", "rtn", "--layout", "gguff"), "--layout must be one of auto"),
        (("--recipe", "rtn", "--layout", "gptq"), "rounded weights only"),
        (("--recipe", "rtn", "--layout", "gguf", "--bits", "fp8"), "rounded weights only"),
        (("--recipe", "rtn", "--bits", "w16a16"), "nothing to quantize"),
        (("--recipe", "gptq", "--bits", "w4a16"), "give --calibration"),
        ((), "--recipe auto needs --calibration"),
    ],
)
def test_what_cannot_end_well_is_told_before_a_model_is_loaded(args, said, tmp_path):
    done = quantize(tmp_path / "absent", *args, "--out", tmp_path / "out")
    assert done.exit_code == 1 and said in str(done.exception)
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_told_before_the_work(folder, tmp_path):
    (tmp_path / "file").write_text("x")
    done = quantize(folder, "--recipe", "rtn", "--out", tmp_path / "file" / "out")
    assert done.exit_code == 1 and "file/out: cannot be written" in str(done.exception)
    assert "choose another --out" in str(done.exception)


def test_missing_weights_are_named(folder, tmp_path):
    from safetensors.torch import load_file, save_file

    from skerry.core.errors import ModelError
    from skerry.deep.model_folder import load_model_folder

    shutil.copytree(folder, tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    tensors = load_file(path)
    for name in ("model.decoder.layers.1.fc1.weight", "model.decoder.layers.1.fc2.weight"):
        tensors.pop(name)
        save_file(tensors, path, metadata={"format": "pt"})
        told = "is" if name.endswith("fc1.weight") else "and 1 more are"
        with pytest.raises(ModelError, match=rf"layers\.1\.fc1\.weight {told} missing; fetch"):
            load_model_folder(tmp_path / "model")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda p: [f.unlink() for f in p.glob("*.safetensors")], "no safetensors weights"),
        (lambda p: _cut(p / "model.safetensors"), "truncated"),
        (lambda p: (p / "model.safetensors").write_bytes(b"\x00" * 64), "truncated or no safetensors"),
        (lambda p: _edit(p, auto_map={"AutoModel": "evil.Model"}), "code of its own"),
        (lambda p: _edit(p, architectures=["EvilModel"]), "names no model class"),
        (lambda p: _edit(p, hidden_size=48), "could not be loaded|has not the shape"),
        (lambda p: (p / "config.json").write_text("{"), "not readable JSON"),
        (lambda p: (p / "config.json").unlink(), "no config.json"),
    ],
)
def test_damaged_folders_end_in_one_line(change, said, skerry, folder, tmp_path):
    copy = tmp_path / "model"
    shutil.copytree(folder, copy)
    change(copy)
    out = tmp_path / "out"
    done = skerry("quantize", copy, "--recipe", "rtn", "--bits", "w8a16", "--out", out)
    assert done.returncode == 1 and re.search(said, done.stderr), done.stderr
    assert "Traceback" not in done.stderr and not out.exists()


def _cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def _edit(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (("--recipe", "rtm", "--out", "o"), 1, "unknown recipe"),
        (("--recipe", "rtn", "--bits", "w1a8", "--out", "o"), 1, "bits"),
        (("--recipe", "rtn"), 2, "--out"),
        (("--recipe", "smoothquant", "--out", "o"), 1, "needs calibration"),
        (("--recipe", "rtn", "--calibration", "none.txt", "--out", "o"), 1, "no such file"),
        (("--recipe", "rtn", "--calibration", "short.txt", "--out", "o"), 1, "fewer than one window"),
        (("--recipe", "rtn", "--calibration", "big.npy", "--context", "4", "--out", "o"), 1, "vocabulary"),
        (("--bits", "w8a8", "--out", "o"), 1, "two calibration batches|calibration"),
        (("--compare", "rtn,gptq"), 1, "two batches"),
    ],
)
def test_mistakes_are_told_in_words(args, code, said, skerry, folder, tmp_path):
    (tmp_path / "short.txt").write_text("too short")
    np.save(tmp_path / "big.npy", np.array([1, 2, 3, 400]))
    done = skerry("quantize", folder, *args)
    words = " ".join(done.stderr.replace("│", " ").split())
    assert done.returncode == code and re.search(said, words), done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "o").exists()


@pytest.mark.parametrize("command", ["quantize", "diagnose"])
def test_a_missing_file_is_told_before_torch_is_loaded(command, folder, tmp_path):
    option = "--calibration" if command == "quantize" else "--text"
    code = "import sys\nfrom skerry.app.cli import main\ntry:\n    main()\nfinally:\n    print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code, command, folder, option, "none.txt"],
        capture_output=True, text=True, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.returncode == 1 and "none.txt: no such file" in done.stderr, done.stderr
    assert done.stdout.split() == ["False"]


def test_threads_are_those_asked_for(folder, tmp_path):
    code = (
        "import sys\nfrom skerry.app.cli import main\ntry:\n    main()\nfinally:\n"
        "    import torch\n    print('threads', torch.get_num_threads())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "quantize", folder, "--recipe", "rtn", "--plan", "--threads", "2"],
        capture_output=True, text=True, cwd=tmp_path, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert "threads 2" in done.stdout


def test_an_output_folder_in_use_is_left_alone(skerry, folder, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    done = skerry("quantize", folder, "--recipe", "rtn", "--out", tmp_path / "mine")
    assert done.returncode == 2 and "in use" in " ".join(done.stderr.replace("│", " ").split()), done.stderr
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


INTERRUPTED = """
import os, signal, sys
from skerry.quant import resume

keep, how = resume.WorkFolder.save_block, sys.argv.pop(1)

def save_block(self, index, *rest):
    keep(self, index, *rest)
    if index == 0:
        os.kill(os.getpid(), getattr(signal, how))

resume.WorkFolder.save_block = save_block
from skerry.app.cli import main
main()
"""


def _interrupted(how, *args, cwd):
    return subprocess.run(
        [sys.executable, "-c", INTERRUPTED, how, *map(str, args)],
        capture_output=True, text=True, cwd=cwd, timeout=240, check=False,
    )  # fmt: skip


def test_an_interrupted_command_goes_on(skerry, folder, tmp_path):
    words = ["quantize", folder, "--recipe", "gptq", "--bits", "w4a16", "--calibration", folder / "ids.npy"]
    words += ["--context", 32, "--threads", 1, "--out"]
    assert skerry(*words, tmp_path / "whole").returncode == 0
    out = tmp_path / "out"
    done = _interrupted("SIGINT", *words, out, cwd=tmp_path)
    assert done.returncode == 130 and not out.exists() and "Traceback" not in done.stderr, done.stderr
    assert f"1 finished blocks are kept in {out}.work" in done.stderr, done.stderr
    (tmp_path / ".out.abcd_123.part").mkdir()  # what a kill while saving leaves
    again = skerry(*words, out)
    assert again.returncode == 0 and f"1 of 2 blocks are in {out}.work" in again.stderr, again.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "whole"]
    for file in sorted((tmp_path / "whole").iterdir()):
        assert file.read_bytes() == (out / file.name).read_bytes()


def test_other_settings_start_anew(skerry, folder, tmp_path):
    words = ["quantize", folder, "--calibration", folder / "ids.npy", "--context", 32, "--threads", 1]
    words += ["--out", "out", "--recipe", "gptq", "--bits"]
    assert _interrupted("SIGTERM", *words, "w4a16", cwd=tmp_path).returncode == 130
    done = skerry(*words, "w3a16")
    assert done.returncode == 0 and "starting anew, recipe is not the same" in done.stderr, done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


def test_diagnose_prints_writes_and_draws(skerry, folder, tmp_path):
    done = skerry(
        "diagnose", folder, "--text", folder / "text.txt", "--context", 32, "--samples", 6, "--ratio", 4,
        "--intervene", "--report", "page.html", "--out", "found.json", "--threads", 1,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "residual stream" in done.stdout and "attention" in done.stdout
    assert "emergent features" in done.stdout and "dB with smoothquant" in " ".join(done.stdout.split())
    found = json.loads((tmp_path / "found.json").read_text())
    assert {"baseline_loss", "zero_loss", "mean_loss"} == found["intervention"].keys()
    page = (tmp_path / "page.html").read_text()
    assert page.count("<svg") == 2 and "http" not in page.split("</style>")[1].replace("http://www.w3.org", "")
    assert "<script" not in page and len(page) < 500_000


def test_diagnose_refuses_what_it_cannot_read(skerry, folder, tmp_path):
    done = skerry("diagnose", tmp_path / "none", "--text", folder / "text.txt")
    assert done.returncode == 1 and "no such folder" in done.stderr
    (tmp_path / "odd.txt").write_bytes(b"\xff\xfe\x00")
    done = skerry("diagnose", folder, "--text", "odd.txt")
    assert done.returncode == 1 and "UTF-8" in done.stderr
