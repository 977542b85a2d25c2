"""Shared by all tests: where the data sets lie, and the command as a subprocess."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings

# The same examples on every run and machine: a gate that fails by luck teaches nobody.
settings.register_profile("fixed", derandomize=True, deadline=None, database=None)
settings.load_profile("fixed")

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("SKERRY_DATA", ROOT.parent / "shared" / "data"))


@pytest.fixture(autouse=True)
def fresh_compiler():
    """Forget what torch compiled: it refuses the ninth form of one function, whichever tests made the others."""
    yield
    if "torch._dynamo" in sys.modules:
        sys.modules["torch._dynamo"].reset()


@pytest.fixture(scope="session")
def adbench():
    """The folder of labelled tables."""
    if not (DATA / "adbench").is_dir():
        pytest.skip(f"no data at {DATA}: set SKERRY_DATA")
    return DATA / "adbench"


@pytest.fixture
def skerry(tmp_path):
    """Run ``skerry ARGS`` in a temporary folder."""

    def run(*args, stdin=None, cwd=tmp_path, timeout=240):
        return subprocess.run(
            [sys.executable, "-c", "from skerry.app.cli import main; main()", *map(str, args)],
            capture_output=True,
            text=not isinstance(stdin, bytes),
            input=stdin,
            cwd=cwd,
            timeout=timeout,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def payments():
    return ROOT / "examples" / "payments.csv"


@pytest.fixture(scope="session")
def chronos_folder(tmp_path_factory):
    """Write a tiny Chronos folder of a kind, "t5" or "bolt", with random weights and the layout of the real ones."""
    torch = pytest.importorskip("torch", reason="needs the extra 'deep'")
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    safetensors = pytest.importorskip("safetensors.torch", reason="needs the extra 'deep'")
    written = {}

    def write(kind):
        if kind in written:
            return written[kind]
        torch.manual_seed(0)
        config = {"d_model": 32, "num_layers": 1, "num_heads": 2, "d_kv": 8, "d_ff": 64, "model_type": "t5"}
        config["vocab_size"] = 2 if kind == "bolt" else 4096
        model = transformers.T5EncoderModel(transformers.T5Config(**config))
        weights = {k: v.clone() for k, v in model.state_dict().items()}
        settings = {
            "n_tokens": 4096,
            "n_special_tokens": 2,
            "tokenizer_kwargs": {"low_limit": -15.0, "high_limit": 15.0},
        }
        if kind == "bolt":
            settings = {"input_patch_size": 16, "input_patch_stride": 16, "use_reg_token": True}
            sizes = {"hidden_layer": (64, 32), "output_layer": (32, 64), "residual_layer": (32, 32)}
            for layer, (rows, columns) in sizes.items():
                weights[f"input_patch_embedding.{layer}.weight"] = 0.3 * torch.randn(rows, columns)
                weights[f"input_patch_embedding.{layer}.bias"] = 0.1 * torch.randn(rows)
        weights["decoder.unused"] = torch.zeros(3)
        folder = tmp_path_factory.mktemp("chronos") / kind
        folder.mkdir()
        safetensors.save_file(weights, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(config | {"chronos_config": settings}))
        written[kind] = folder
        return folder

    return write
