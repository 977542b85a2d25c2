"""The check-up of the study finds what it planted, and takes it out again."""

import os
from pathlib import Path

import pytest
import torch

from skerry.bench import systematic_outliers as study
from skerry.bench import train_tables

DATA = Path(os.environ.get("SKERRY_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))


@pytest.fixture
def texts():
    """The folder of data sets."""
    if not (DATA / "text" / "tinyshakespeare.txt.gz").is_file():
        pytest.skip(f"no text at {DATA}: set SKERRY_DATA")
    return DATA


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SKERRY_CACHE", str(tmp_path))


def test_the_check_up_finds_what_was_planted(texts):
    rows, expectations = study._check_up(True, texts, lambda text: None, train_tables)
    assert [r["model"] for r in rows] == ["as trained", "planted"]
    assert rows[0]["outliers (1000 x)"] == 0 < rows[1]["outliers (1000 x)"]
    assert [met for _, _, met in expectations[1:4]] == [True, True, True]


def test_planting_is_undone(texts):
    from skerry.bench.quant_models import CharModel, trained_char_model

    model = trained_char_model(texts, CharModel(width=32, blocks=3, heads=2, context=16, steps=1, batch=2))
    tokens = torch.arange(16)[None]
    with torch.no_grad():
        before = model(input_ids=tokens).logits
        undo = study._plant(model, end=3)
        assert not torch.allclose(model(input_ids=tokens).logits, before)
        undo()
        torch.testing.assert_close(model(input_ids=tokens).logits, before, rtol=0, atol=0)


def test_the_first_evaluation_at_the_mark_counts():
    history = [{"step": 250, "loss": 1.9}, {"step": 500, "loss": 1.69}, {"step": 750, "loss": 1.6}, {"step": 800}]
    assert study._reached({"history": history}) == 500
    assert study._reached({"history": history[:1]}) != study._reached({"history": history[:1]})
