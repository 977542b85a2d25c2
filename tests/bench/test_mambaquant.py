"""The study of MambaQuant: its methods differ only in what stands before the quantizers, and its tables are whole."""

import math
from pathlib import Path

import pytest
import torch

from skerry.bench import mambaquant
from skerry.bench.mamba_models import MambaChar, new_mamba, plant_gates, trained_mamba
from skerry.bench.quant_models import loss_of
from skerry.bench.quant_rows import Lab
from skerry.bench.vim_models import VimLab, VimSettings, judged, make_vim_lab, trained_vim, vim_rows
from skerry.deep.vision_mamba import VisionMamba


@pytest.fixture(scope="module")
def sight():
    torch.manual_seed(0)
    model = VisionMamba(8, 4, 1, width=8, blocks=1, states=4, rank=4).eval()
    models = {"natural": model, "planted": plant_gates(model, steps=2)}
    images, labels = torch.randn(12, 1, 8, 8), torch.arange(12) % 10
    return VimLab(models, [images[:8]], images, labels, {n: judged(m, images, labels) for n, m in models.items()})


@pytest.fixture(scope="module")
def lab():
    torch.set_num_threads(1)
    model = new_mamba(MambaChar(width=8, blocks=1, states=4, rank=4), 16).eval()
    generator = torch.Generator().manual_seed(0)
    tokens = [torch.randint(0, 16, (2, 10), generator=generator) for _ in range(3)]
    models = {"natural": model, "planted": plant_gates(model, steps=2)}
    return Lab(models, tokens[:2], tokens[2], {name: loss_of(m, tokens[2]) for name, m in models.items()})


def test_the_methods_share_their_quantizers():
    mine = mambaquant.mine("w4a8")
    for name in ("rtn", "gptq", "smoothquant", "quarot"):
        other = mambaquant.alike(name, "w4a8")
        assert (other.weight, other.activation, other.operands) == (mine.weight, mine.activation, mine.operands)
        assert other.name == name


def test_rows_of_the_study(lab):
    cases = [("RTN", lambda bits: mambaquant.alike("rtn", bits)), ("MambaQuant", mambaquant.mine)]
    rows = mambaquant.rows_of(lab, cases, ("w8a8",), lambda text: None, models=("planted",), check=False)
    assert [row["method"] for row in rows] == ["RTN", "MambaQuant"]
    assert all(abs(row["planted w8a8"]) < 0.1 for row in rows)
    noise = mambaquant._noise(lab, cases[:1], lambda text: None)[0]
    layers = {"states_proj", "gate_proj", "step_proj", "B_proj", "C_proj", "dt_proj", "out_proj"}
    assert noise.keys() == layers | {"method"} and all(math.isfinite(noise[k]) for k in layers)


def test_rows_of_images(sight):
    cases = [("RTN", lambda b: mambaquant.alike("rtn", b)), ("M", lambda b: mambaquant.mine(b, **mambaquant.VISION))]
    rows = vim_rows(sight, cases, ("w8a8",), lambda text: None)
    assert [row["method"] for row in rows] == ["RTN", "M"]
    for row in rows:
        assert row.keys() == {"method"} | {f"{m} w8a8{u}" for m in ("natural", "planted") for u in ("", " points")}
        assert all(abs(row[f"{m} w8a8"]) < 0.2 for m in ("natural", "planted"))
    assert rows[1]["planted w8a8"] != rows[0]["planted w8a8"]
    (loss, share), planted = sight.float["natural"], sight.float["planted"]
    assert planted == (pytest.approx(loss, abs=1e-5), share)


def test_the_tables(lab, sight, monkeypatch):
    def rows_of(lab, cases, bits, progress, *, models=("natural", "planted"), check):
        for _, make in cases:  # every recipe can be made, at every width
            assert all(make(width).transforms is not None for width in bits)
        columns = {f"{which} {width}": 0.5 for which in models for width in bits}
        return [{"method": label} | columns for label, _ in cases]

    monkeypatch.setattr(mambaquant, "make_mamba_lab", lambda *a, **k: lab)
    monkeypatch.setattr(mambaquant, "rows_of", rows_of)
    monkeypatch.setattr(mambaquant, "_noise", lambda lab, cases, progress: [{"method": label} for label, _ in cases])
    monkeypatch.setattr(mambaquant, "make_vim_lab", lambda *a, **k: sight)
    found = mambaquant.run(False, Path(), 0, lambda text: None)
    assert len(found["table"]) == 5
    assert [len(rows) for rows in found["tables"].values()] == [5, 6, 6, 5]
    for rows in list(found["tables"].values())[:2]:
        assert {tuple(row)[:3] for row in rows} == {("method", "planted w8a8", "planted w4a8")}
    assert "W4A8" in found["claim"] and len(found["notes"]) == 7


def test_both_models_have_one_loss(lab):
    assert lab.loss["natural"] == pytest.approx(lab.loss["planted"], abs=1e-5)


def test_training_fills_the_cache(tmp_path, monkeypatch):
    import gzip

    monkeypatch.setenv("SKERRY_CACHE", str(tmp_path / "cache"))
    (tmp_path / "text").mkdir()
    with gzip.open(tmp_path / "text" / "tinyshakespeare.txt.gz", "wt") as file:
        file.write("to be or not to be, that is the question. " * 40)
    settings = MambaChar(width=8, blocks=1, states=4, rank=4, context=12, steps=12, batch=4)
    said = []
    first = trained_mamba(tmp_path, settings, said.append)
    again = trained_mamba(tmp_path, settings, said.append)
    assert len(said) == 1 and len(list((tmp_path / "cache").iterdir())) == 1
    assert all(torch.equal(t, again.state_dict()[k]) for k, t in first.state_dict().items())
    text = torch.arange(13)[None] % 10
    assert loss_of(first, text) != loss_of(new_mamba(settings, first.config.vocab_size), text)


def test_training_on_images_fills_the_cache(tmp_path, monkeypatch):
    import numpy as np

    monkeypatch.setenv("SKERRY_CACHE", str(tmp_path / "cache"))
    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, 150)
    images = (labels[:, None, None] * 25 + rng.integers(0, 5, (150, 28, 28))).astype(np.uint8)
    parts = {"x_train": images, "y_train": labels, "x_test": images, "y_test": labels}
    np.savez(tmp_path / "images" / "fashion_mnist.npz", **parts)
    settings = VimSettings(width=8, blocks=1, states=2, rank=2, steps=3, batch=8)
    first, again = (trained_vim(tmp_path, settings) for _ in range(2))
    assert all(torch.equal(t, again.state_dict()[k]) for k, t in first.state_dict().items())
    assert len(list((tmp_path / "cache").iterdir())) == 1
    monkeypatch.setattr("skerry.bench.vim_models.QUICK", settings)
    found = make_vim_lab(tmp_path, quick=True, progress=lambda text: None)
    assert len(found.labels) == 150 and [len(b) for b in found.calibration] == [32] * 4
