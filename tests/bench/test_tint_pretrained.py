"""The protocol of the paper on a model folder: a tiny random network stands in for the one a user has."""

import pytest

pytest.importorskip("torch", reason="needs the extra 'deep'")
pytest.importorskip("transformers", reason="needs transformers")

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from skerry.bench import runner, tint_pretrained
from skerry.bench.traced_integer import TraceTask
from skerry.bench.traced_integer_training import fine_tune, generator
from skerry.core.errors import DataError, ParameterError

TINY = {"documents": 12, "test": 3, "steps": 2, "batch": 4, "exemplars": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A GPT-NeoX (the class of Pythia) of a few thousand weights, and a tokenizer of words and line ends."""
    path = tmp_path_factory.mktemp("model") / "tiny-neox"
    texts = [d.text for op in ("add", "median") for d in TraceTask(op).generate(30, seed=1)]
    words = sorted({w for t in texts for w in t.split()} | set("0123456789"))
    vocabulary = {w: i for i, w in enumerate(["<end>", "<unknown>", "\n", *words])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unknown>"))
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(" ", "removed"), pre_tokenizers.Split("\n", "isolated")]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<end>", unk_token="<unknown>"
    ).save_pretrained(path)
    torch.manual_seed(0)
    config = transformers.GPTNeoXConfig(
        vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=1024, eos_token_id=0, bos_token_id=0,
    )  # fmt: skip
    transformers.GPTNeoXForCausalLM(config).save_pretrained(path)
    return path


def test_the_grid_of_the_paper():
    arms = tint_pretrained.grid_arms("paper")
    assert len(arms) == 1 + 4 * (3 + 3 + 2) and arms[tint_pretrained.CLEAN].contamination == 1
    assert arms["dynamic 0.4, 20%"].dynamic == 0.4 and arms["dynamic 0.4, 20%"].contamination == 0.2
    assert all(a.dynamic_mode == "constructions" and not a.noise_answer for a in list(arms.values())[1:])
    with pytest.raises(ParameterError, match="did you mean 'paper'"):
        tint_pretrained.grid_arms("papers")


def test_the_study_on_a_model_folder(folder, monkeypatch, tmp_path):
    monkeypatch.setitem(tint_pretrained.SIZES, "quick", TINY)
    monkeypatch.setattr(tint_pretrained, "_room", lambda tokens, documents: 6)
    rates = {"contamination": (1.0,), "char": (0.3,), "line": (0.3,), "dynamic": (0.3,)}
    monkeypatch.setitem(tint_pretrained.GRIDS, "short", rates)
    result = runner.run_study(
        "tint-noise", quick=True, data=tmp_path, out=tmp_path / "out",
        options={"model": str(folder), "variants": "add", "preset": "short"},
    )  # fmt: skip
    assert [r["training set"] for r in result["table"]] == list(tint_pretrained.grid_arms("short"))
    for row in result["table"]:
        assert row["operation"] == "add" and 0 <= row["least"] <= row["accuracy"] <= row["most"] <= 1
        assert 0 <= row["prompted accuracy"] <= 1 and 0 <= row["prompted, no answer"] <= 1
    assert (tmp_path / "out" / "tint-noise-tiny-neox.md").exists()


def test_the_cache_of_a_model_changes_no_text(folder):
    model = transformers.GPTNeoXForCausalLM.from_pretrained(folder).eval()
    tokens = tint_pretrained.ModelTokenizer(transformers.AutoTokenizer.from_pretrained(folder))
    prompts = [f"{d.prompt}\n" for d in TraceTask("add", max_size=4).generate(5, seed=2)]
    assert len({len(tokens.encode(p)) for p in prompts}) > 1  # rows start to write at different places
    cached = generator(model, tokens, 8, end=tokens.end)(prompts)

    class Bare(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, x):
            return self.inner(input_ids=x, use_cache=False).logits

    assert cached == generator(Bare(), tokens, 8, end=tokens.end)(prompts)


def test_fine_tuning_learns_and_tokens_are_the_models_own(folder):
    model = transformers.GPTNeoXForCausalLM.from_pretrained(folder)
    tokens = tint_pretrained.ModelTokenizer(transformers.AutoTokenizer.from_pretrained(folder))
    document = TraceTask("add", max_size=1).generate(4, seed=3)
    text = document[0].text
    assert tokens.decode(tokens.encode(text)).split() == text.split() and tokens.end == 0
    losses = fine_tune(model, tokens, document, steps=20, batch_size=4, lr=1e-2, warmup=2, end=tokens.end)
    assert losses[-1] < 0.7 * losses[0]


def test_mistakes_are_named(folder, tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        tint_pretrained.run_pretrained(tmp_path / "absent", ["add"])
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(DataError, match="has no tokenizer"):
        tint_pretrained.run_pretrained(tmp_path, ["add"])
    with pytest.raises(ParameterError, match="device"):
        tint_pretrained.run_pretrained(folder, ["add"], device="cuda:0")
    with pytest.raises(ParameterError, match="did you mean 'add'"):
        tint_pretrained.run_pretrained(folder, ["ad"], quick=True)
    with pytest.raises(ParameterError, match="--model"):
        runner.run_study("tint-noise", data=tmp_path, options={"preset": "short"})
    no_end = transformers.AutoTokenizer.from_pretrained(folder)
    no_end.eos_token = None
    with pytest.raises(DataError, match="end-of-text"):
        tint_pretrained.ModelTokenizer(no_end)
