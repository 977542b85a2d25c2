"""The race of quantization libraries: our side through the worker, loading by transformers, absent peers."""

import sys

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch

from skerry.bench import quant_race
from skerry.bench import quant_race_worker as worker


@pytest.fixture(scope="module")
def model():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=40, num_key_value_heads=2, **sizes)).eval()


@pytest.fixture(scope="module")
def order(model, tmp_path_factory):
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    ids = torch.randint(0, 40, (12, 17), generator=torch.Generator().manual_seed(0))
    save_file({"calibration": ids[:8, :-1].contiguous(), "held": ids[8:].contiguous()}, folder / "rows.st")
    return {"model": str(folder), "rows": str(folder / "rows.st"), "group": 32, "family": "llama",
            "threads": torch.get_num_threads(), "library": "skerry"}  # fmt: skip


@pytest.mark.parametrize("scheme", quant_race.SCHEMES)
def test_our_side_of_every_scheme_is_loaded_by_transformers(order, scheme, tmp_path):
    told = worker.main(order | {"scheme": scheme, "out": str(tmp_path / "out")})
    assert 0.0 < told["error"] < 0.1 and told["bytes"] > 0 and told["cpu"] >= 0.0
    pytest.importorskip("compressed_tensors")
    client = worker.Transformers.load(order | {"model": str(tmp_path / "out")})
    assert abs(client["loss"] - told["loss"]) < 0.05


def test_error_does_not_see_a_rescaling_that_keeps_the_function(model):
    import copy

    ids = torch.arange(34).view(2, 17)
    names = [n for n, _ in model.named_modules() if n.endswith(worker.WRITERS)]
    twin = copy.deepcopy(model)
    mlp = twin.model.layers[0].mlp
    with torch.no_grad():
        mlp.up_proj.weight *= 4.0
        mlp.down_proj.weight /= 4.0
    exact = worker.outputs(model, names, ids)
    assert len(names) == 2
    assert worker.error(exact, worker.outputs(twin, names, ids)) < 1e-10
    with torch.no_grad():
        mlp.down_proj.weight *= 1.1
    last = names[-1]
    assert worker.error({last: exact[last]}, worker.outputs(twin, names, ids)) == pytest.approx(0.01, rel=1e-3)


def test_absent_peers_and_failures_are_said(order, monkeypatch, tmp_path):
    for variable, _ in quant_race.PYTHONS.values():
        monkeypatch.delenv(variable, raising=False)
    found, notes = quant_race._libraries()
    assert {quant_race.REPORTED, *quant_race.PYTHONS} < worker.LIBRARIES.keys()
    assert list(found) == ["skerry", quant_race.REPORTED] and any("set SKERRY_QUANTO" in note for note in notes)
    monkeypatch.setenv("SKERRY_QUANTO", str(tmp_path / "python"))
    assert any("names no Python that has optimum-quanto" in note for note in quant_race._libraries()[1])
    monkeypatch.setattr(quant_race, "WORKER", tmp_path / "worker.py")
    (tmp_path / "worker.py").write_text("raise SystemExit('nothing works')")
    assert "nothing works" in quant_race._ask(sys.executable, order)["problem"]
    assert quant_race._claim([]) == "No peer ran."


def test_the_claim_sets_ours_beside_theirs():
    mine = {"model": "m, wide", "scheme": "FP8", "library": "skerry", "processor s": 1.0, "layer error": 2.0}
    reported = mine | {"library": quant_race.REPORTED, "processor s": 3.0}
    told = quant_race._claim([mine, reported, mine | {"library": "torchao", "processor s": 4.0, "layer error": 1.0}])
    assert told == "FP8 on m, torchao: ours takes 0.25 times its seconds and has 2.00 times its layer error."
