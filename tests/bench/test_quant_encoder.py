"""The sentence encoder of the quantization study: its sentences, its vectors, and how change is counted."""

import gzip

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch

from skerry.bench import sentence_encoder as encoder
from skerry.core.errors import DataError


def write(folder, count):
    (folder / "text").mkdir()
    lines = [f"Number {i} is a sentence that is long enough to be taken for one of them ." for i in range(count)]
    with gzip.open(folder / "text" / "wikitext2_valid.txt.gz", "wt", encoding="utf-8") as file:
        file.write("\n".join(lines))


def test_halves_do_not_meet(tmp_path):
    write(tmp_path, 20)
    first = encoder.sentences(tmp_path, 8, part="calibration")
    second = encoder.sentences(tmp_path, 10, part="held")
    assert len(first) == 8 and len(second) == 10 and not set(first) & set(second)
    with pytest.raises(DataError, match="10 sentences, wanted 11"):
        encoder.sentences(tmp_path, 11, part="held")


def test_absent_text_and_encoder_are_said(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="SKERRY_DATA"):
        encoder.sentences(tmp_path, 1, part="held")
    monkeypatch.setenv(encoder.ENCODER, str(tmp_path))
    assert encoder.encoder_folder() is None
    monkeypatch.delenv(encoder.ENCODER)
    assert encoder.encoder_folder() is None


def test_padding_does_not_count():
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = BertModel(BertConfig(vocab_size=20, max_position_embeddings=16, **sizes)).eval()
    ids = torch.tensor([[3, 4, 5, 0, 0]])
    padded = {"input_ids": ids, "attention_mask": (ids > 0).long()}
    short = {"input_ids": ids[:, :3], "attention_mask": torch.ones(1, 3, dtype=torch.long)}
    a, b = (encoder.sentence_vectors(model, [batch]) for batch in (padded, short))
    assert torch.allclose(a, b, atol=1e-5) and float(a.norm()) == pytest.approx(1.0, abs=1e-5)


def test_change_is_counted_over_the_others():
    exact = torch.nn.functional.normalize(torch.randn(30, 6, generator=torch.Generator().manual_seed(0)), dim=1)
    noise = torch.randn(30, 6, generator=torch.Generator().manual_seed(1))
    told = [encoder.strayed(exact, torch.nn.functional.normalize(exact + s * noise, dim=1)) for s in (0.01, 0.3)]
    assert told[0].figures["mean change"] < told[1].figures["mean change"]
    assert told[0].figures["Spearman"] > told[1].figures["Spearman"]
    assert sum(told[1].items) / 30 == pytest.approx(told[1].figures["mean change"])


def test_the_real_one(tmp_path):
    folder = encoder.encoder_folder()
    if folder is None:
        pytest.skip(f"no sentence encoder: set {encoder.ENCODER} to its folder")
    write(tmp_path, 200)
    subject = encoder.encoder_subject(tmp_path, folder, quick=True)
    assert subject.judge(subject.model).figures["top-1 agreement"] == 1.0


def test_a_stretched_tail_is_found():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(100, 200), torch.nn.Linear(200, 150))
    model[1].weight.data[3, 7] = 2.0  # of 0.07 at most; not so far that it gets a part of its own
    first, second = encoder.split_tails(model)
    assert first["layer"] == "1" and first["largest weight"] == 2.0
    assert first["squared error, SplitQuant"] < first["squared error, one scale"]
    assert first["mean error of a row, SplitQuant"] > 5 * second["mean error of a row, SplitQuant"]
