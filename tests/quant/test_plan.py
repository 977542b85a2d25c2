"""What the plan promises against what a run takes: its peak of memory, and the bytes it stores."""

import pytest
import torch

import skerry.quant as quant
from skerry.quant.engine import quantize_model
from skerry.quant.plan import PEAK, plan
from skerry.quant.recipes import make_recipe


def peak_of(call):
    """Return the most that torch had handed out at any time of a call, MiB, beyond what was held before."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    total = top = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        total += event.nbytes()
        top = max(top, total)
    return top / 2**20


@pytest.mark.parametrize(
    ("name", "bits", "width", "samples"),
    [("rtn", "w8a8", 96, 16), ("smoothquant", "w8a8", 96, 16), ("gptq", "w4a16", 160, 4)],
)
def test_a_run_stays_below_its_plan(name, bits, width, samples):
    """By torch's own account, which no other process and no allocator's habits disturb."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2, num_attention_heads=4
    )
    model = transformers.LlamaForCausalLM(config).eval()
    batches = list(torch.randint(0, 64, (samples, 64)).split(4))
    recipe = make_recipe(name, bits)
    rows = {row["what"]: row["MiB"] for row in plan(model, recipe, batches)}
    before = sum(t.numel() * t.element_size() for t in model.parameters()) / 2**20
    taken = before + peak_of(lambda: quantize_model(model, recipe, calibration=batches, inplace=True))
    assert rows["weights as loaded"] == pytest.approx(before, rel=0.01)
    assert taken <= 1.15 * rows[PEAK]
    assert rows[PEAK] <= 3 * taken  # nor does it cry wolf


@pytest.mark.parametrize("family", ["llama", "opt", "gpt2", "bert", "vit", "plain"])
@pytest.mark.parametrize(("name", "bits"), [("rtn", "w8a8"), ("gptq", "w4a16g32"), ("rtn", "mxfp4")])
def test_the_stored_bytes_are_those_of_the_run(family, name, bits, tiny, inputs):
    if family == "plain" and bits == "mxfp4":
        pytest.skip("its widths are no multiples of a block")
    model, batches = tiny(family), inputs(family)
    rows = {row["what"]: row for row in plan(model, make_recipe(name, bits), batches)}
    report = quant.report_of(quant.quantize(model, name, bits, batches))
    weights = sum(layer.shape[0] * layer.shape[1] for layer in report.layers)
    stored = sum(layer.bits_per_weight * layer.shape[0] * layer.shape[1] for layer in report.layers) / 8 / 2**20
    assert rows["the same, stored"]["MiB"] == pytest.approx(stored, abs=2e-3)
    assert rows["weights to quantize"]["MiB"] == pytest.approx(weights * 4 / 2**20, abs=1e-3)
    assert f"{len(report.layers)} layers" in rows["weights to quantize"]["note"]


def test_tokens_and_patches_are_counted(tiny, inputs):
    for family, tokens in (("llama", 3 * 24), ("vit", 3 * 2 * 5), ("bert", 3 * 24)):
        rows = plan(tiny(family), make_recipe("gptq", "w8a8"), inputs(family))
        assert f"{tokens:,} tokens of width 32" in rows[1]["note"]
        assert rows[1]["MiB"] == pytest.approx(tokens * 32 * 4 / 2**20, abs=1e-3)


def test_a_recipe_that_looks_at_no_input_runs_few_tokens(tiny, inputs):
    assert "24 tokens of width 32" in plan(tiny("llama"), make_recipe("rtn"), inputs("llama"))[1]["note"]


def test_more_of_anything_is_never_less(tiny, inputs):
    model, batches = tiny("llama"), inputs("llama")
    peaks = []
    for recipe, given in (("rtn", []), ("rtn", batches), ("gptq", batches), ("gptq", [*batches, *batches])):
        peaks.append(plan(model, make_recipe(recipe, "w4a16"), given)[-1])
    assert all(row["what"] == PEAK for row in peaks)
    assert [row["MiB"] for row in peaks] == sorted(row["MiB"] for row in peaks)
    mapped = plan(model, make_recipe("gptq", "w4a16"), batches, memory=0)
    assert mapped[-1]["MiB"] < peaks[2]["MiB"] and "scratch" in mapped[1]["note"]
    assert torch.is_tensor(batches[0])


def test_without_calibration_no_tokens_are_counted(tiny):
    rows = {row["what"]: row for row in plan(tiny("plain"), make_recipe("gptq", "w4a16"), [])}
    assert rows["hidden states between blocks"]["note"] == "none: no calibration given"
    assert rows["hidden states between blocks"]["MiB"] == 0
