"""``skerry quantize`` and ``skerry diagnose`` on a folder with a Mamba model, as people run them."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny Mamba in a folder, and token ids."""
    from skerry.bench.mamba_models import MambaChar, new_mamba

    path = tmp_path_factory.mktemp("mamba")
    new_mamba(MambaChar(width=16, blocks=2, states=4, rank=4), 32).save_pretrained(path)
    np.save(path / "ids.npy", np.random.default_rng(0).integers(0, 32, (8, 24)))
    return path


def test_quantize(skerry, folder, tmp_path):
    out = tmp_path / "small"
    done = skerry(
        "quantize", folder, "--recipe", "mambaquant", "--bits", "w8a8", "--calibration", folder / "ids.npy",
        "--context", 24, "--out", out, "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["saved"]["layout"] == "skerry-v1" and len(found["report"]["layers"]) == 14
    assert found["report"]["architecture"] == "Mamba"
    from skerry.deep.model_folder import load_model_folder
    from skerry.quant.checkpoint import load

    tokens = torch.from_numpy(np.load(folder / "ids.npy"))
    with torch.no_grad():
        exact, given = (m(tokens, use_cache=False).logits for m in (load_model_folder(folder), load(out)))
    assert float((given - exact).norm() / exact.norm()) < 0.1


def test_diagnose(skerry, folder):
    done = skerry("diagnose", folder, "--text", folder / "ids.npy", "--context", 24, "--intervene", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found["activation"]["layers"]) == 2 and found["attention"]["layers"] == []
    assert found["intervention"]["baseline_loss"] > 0
