"""The study of Unified Normalization runs at a tiny size, and its parts measure what they say."""

import gzip

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra 'deep'")

import torch
from torch import nn

from skerry.bench import unified_normalization as study
from skerry.bench import unified_normalization_runs as parts
from skerry.core.errors import ParameterError
from skerry.train.lab_data import Images
from skerry.train.nn import UnifiedNorm

TINY = {
    "seeds": 1,
    "steps": 24,
    "dim": 8,
    "n_layers": 1,
    "text": ("LayerNorm", "UnifiedNorm"),
    "causal": ("UnifiedNorm",),
    "inference": {"batch": 1, "tokens": 4, "dim": 8, "n_layers": 1, "repeats": 2},
    "pair": {"batch": 1, "tokens": 4, "dim": 8, "repeats": 2},
}


@pytest.fixture
def data(tmp_path, monkeypatch):
    (tmp_path / "text").mkdir()
    with gzip.open(tmp_path / "text" / "wikitext2_valid.txt.gz", "wb") as file:
        file.write(b"It was the best of times, it was the worst of times. " * 60)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(rng.integers(0, 256, (96, 3, 32, 32), dtype=np.uint8))
    labels = torch.from_numpy(rng.integers(0, 10, 96))
    images = Images((pixels[:64], labels[:64]), (pixels[64:], labels[64:]), 10)
    load = parts.load_task
    monkeypatch.setattr(parts, "load_task", lambda d, t: images if ("task", "images") in t else load(d, t))
    monkeypatch.setattr(parts, "TASKS", {k: {**v, "batch": 8} for k, v in parts.TASKS.items()})
    return tmp_path


def test_quick_path_and_its_cache(monkeypatch, data):
    monkeypatch.setitem(study.SIZES, "quick", TINY)
    result = study.run(True, data, 0, lambda text: None, workers=1)
    assert {r["norm"] for r in result["table"]} == set(parts.NORMS)
    assert all(0 <= r["bad batches: accuracy"] <= 1 for r in result["table"])
    checks = {r["expected"]: r for r in result["tables"]["Expectations"]}
    assert checks["fused logits equal the unfused to 1e-5 (float32)"]["met"] == "yes"
    assert checks["fused logits equal the unfused to 1e-10 (float64)"]["met"] == "yes"
    assert "<polyline" in result["pictures"]["moments"]
    times = next(t for name, t in result["tables"].items() if name.startswith("A whole"))
    assert [r["norm"] for r in times][0] == "LayerNorm" and all(r["peak MiB"] > 0 for r in times)
    monkeypatch.setattr(parts, "train", None)  # nothing is trained a second time
    again = study.run(True, data, 0, lambda text: None, workers=1)
    assert again["table"] == result["table"]
    with pytest.raises(ParameterError, match="seeds=-1"):
        study.run(True, data, 0, lambda text: None, seeds=-1)


def test_rows_differ_in_their_norms_alone(data):
    a, b = (parts.train("text", "LayerNorm", 3, False, data, steps=3, dim=8, n_layers=1) for _ in range(2))
    assert a["loss"] == b["loss"] == a["train mode loss"]
    unified = parts.train("text", "UnifiedNorm", 3, False, data, steps=3, dim=8, n_layers=1)
    assert unified["loss"] != unified["train mode loss"]
    assert unified["fused"][0] < 1e-5 and unified["fused"][1] < 1e-12


def test_bad_batches_reach_the_norms(data):
    found = parts.train("images", "UnifiedNorm", 0, True, data, steps=40, dim=8, n_layers=1, trace=True)
    bad = parts.bad_steps(40, 0)
    assert len(bad) == 2 and all(18 <= b < 40 for b in bad)
    first = next(iter(found["moments"].values()))
    assert len(first) == 40
    for b in bad:
        assert first[b][1] > 50 * first[b - 1][1]
    assert found["skips"]["blocks.0.norm_1"] >= 1
    calm = parts.train("images", "UnifiedNorm", 0, False, data, steps=40, dim=8, n_layers=1)
    assert calm["just after"] is None and calm["shock"] is None


def test_batch_norm_over_tokens():
    norm, x = parts.TokenBatchNorm(4), 3 + 2 * torch.randn(5, 6, 4, generator=torch.Generator().manual_seed(0))
    y = norm(x)
    assert y.shape == x.shape
    torch.testing.assert_close(y.mean((0, 1)), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(y.square().mean((0, 1)), torch.ones(4), atol=1e-3, rtol=0)


def test_the_ablations_are_what_their_names_say():
    norms = {name: make(4, 20) for name, make in parts.NORMS.items()}
    assert isinstance(norms["LayerNorm"], nn.LayerNorm) and isinstance(norms["RMSNorm"], nn.RMSNorm)
    unified = {name: n for name, n in norms.items() if isinstance(n, UnifiedNorm)}
    assert [n for n, m in unified.items() if not m.outlier_filtration] == ["UnifiedNorm, no filter"]
    assert [n for n, m in unified.items() if len(m.forward_buffer) == 1] == ["UnifiedNorm, no smoothing"]
    assert [n for n, m in unified.items() if m.threshold == "channel"] == ["UnifiedNorm, bound per channel"]
    assert [n for n, m in unified.items() if m.protect_running] == ["UnifiedNorm, running kept"]


def test_the_fused_network_holds_no_norm_and_takes_less():
    rows = {r["norm"]: r for r in parts.inference(2, 16, 16, 1, 1)}
    assert rows["UnifiedNorm, fused"]["peak MiB"] <= rows["LayerNorm"]["peak MiB"]
    assert parts.peak_bytes(lambda: torch.ones(1000).add(1)) >= 8000
