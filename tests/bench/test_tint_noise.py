"""The study of noisy traces at a tiny size, and the training that it stands on."""

from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs the extra 'deep'")

import torch

from skerry.bench import tint_noise as study
from skerry.bench.traced_integer import TraceTask, evaluate
from skerry.bench.traced_integer_training import (
    END,
    Decoder,
    WordTokenizer,
    _batch,
    _encoded,
    fine_tune,
    generator,
    response_losses,
)
from skerry.core.errors import DataError

TINY = {"digits": 1, "documents": 40, "test": 5, "steps": 2, "dim": 16, "layers": 1, "seeds": 1}


@pytest.fixture(scope="module")
def documents():
    return TraceTask("add", max_size=1).generate(60, seed=3)


@pytest.fixture(scope="module")
def words(documents):
    return WordTokenizer([d.text for d in documents])


def test_quick_path_and_its_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setitem(study.SIZES, "quick", TINY)
    result = study.run(True, Path(), 0, lambda text: None)
    names = [r["training set"] for r in result["table"]]
    assert names[:2] == [study.ANSWER, study.CLEAN]
    assert len(names) == len(study.ARMS) + 2 * len(study.FILTERED)
    assert all(0 <= r["accuracy"] <= 1 for r in result["table"])
    dropped = {(r["training set"], r["filter"]): r for r in result["tables"]["What the filters drop"]}
    assert len(dropped) == 2 * len(study.HALVES)
    assert all(r["of clean documents"] == 0 for (_, f), r in dropped.items() if f == study.CONSISTENCY)
    damage = {r["training set"]: r for r in result["tables"]["Realised damage"]}
    assert damage[study.CLEAN]["inconsistent_lines"] == 0 < damage["dynamic 0.3, all"]["inconsistent_lines"]
    monkeypatch.setattr(study, "_train", None)  # nothing is trained a second time
    again = study.run(True, Path(), 0, lambda text: None)
    assert again["table"] == result["table"] and again["tables"] == result["tables"]


def test_test_questions_are_in_no_training_set():
    size = study.SIZES["full"] | {"documents": 300, "test": 100}
    prompts = {d.prompt for d in study._test(size, 0)}
    for arm in ("clean trace", "answer only", "dynamic 0.3, all"):
        assert not prompts & {d.prompt for d in study._documents(arm, size, 0)}


def test_tokens_round_trip_and_split_digits(documents, words):
    for d in documents[:10]:
        assert words.decode(words.encode(d.text)) == d.text
    assert len(words.encode("1 2 3")) == 3
    with pytest.raises(DataError, match="'quux' did not occur"):
        words.encode("quux = 1")


def test_loss_only_on_the_response_and_the_end(documents, words):
    rows = _encoded(documents[:3], words, END)
    x, y = _batch(rows, torch.device("cpu"), END)
    for i, d in enumerate(documents[:3]):
        learnt = y[i][y[i] >= 0].tolist()
        assert words.decode(learnt[:-1]) == d.response and learnt[-1] == END
        assert words.decode(x[i, : rows[i][1]].tolist()).rstrip("\n") == d.prompt


def test_the_decoder_is_causal_and_its_cache_changes_nothing(words):
    torch.manual_seed(0)
    model = Decoder(len(words), dim=32, n_layers=2).eval()
    tokens = torch.randint(len(words), (2, 9))
    whole = model(tokens)
    other = tokens.clone()
    other[:, 6:] = (other[:, 6:] + 1) % len(words)
    assert torch.allclose(model(other)[:, :6], whole[:, :6], atol=1e-6)
    caches = [[], []]
    parts = [model(tokens[:, :4], caches), *(model(tokens[:, k : k + 1], caches) for k in range(4, 9))]
    assert torch.allclose(torch.cat(parts, 1), whole, atol=1e-5)


def test_a_model_learns_a_few_traces_by_heart_and_greedy_decoding_returns_them(documents, words):
    few = documents[:6]
    torch.manual_seed(0)
    model = Decoder(len(words), dim=32, n_layers=1)
    losses = fine_tune(model, words, few, steps=150, batch_size=6, lr=1e-2, warmup=5)
    assert losses[-1] < 0.05 < losses[0]
    room = max(len(words.encode(d.response)) for d in few) + 25
    assert evaluate(generator(model, words, room, batch_size=4), few)["accuracy"] == 1.0
    assert response_losses(model, words, few).max() < 0.1
    unseen = [d for d in documents[6:] if d.prompt not in {f.prompt for f in few}]
    assert response_losses(model, words, unseen).mean() > response_losses(model, words, few).mean()


def test_any_model_with_logits_fits(documents, words):
    class Wrapped(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Decoder(len(words), dim=16, n_layers=1)

        def forward(self, tokens):
            return type("Output", (), {"logits": self.inner(tokens)})()

    torch.manual_seed(0)
    model = Wrapped()
    fine_tune(model, words, documents[:8], steps=2, batch_size=4)
    prompts = [f"{d.prompt}\n" for d in documents[:4]]
    assert generator(model, words, 5)(prompts) == generator(model.inner, words, 5)(prompts)


def test_the_same_seed_trains_the_same_model(documents, words):
    def losses():
        torch.manual_seed(1)
        return fine_tune(Decoder(len(words), dim=16, n_layers=1), words, documents, steps=4, batch_size=8, seed=2)

    assert losses() == losses()
    with pytest.raises(DataError, match="no documents"):
        fine_tune(Decoder(4, dim=16, n_layers=1), words, [], steps=1)
