"""Mixed propagation: each layer is solved for the float model's output on the inputs that really arrive."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import skerry.quant as quant
from skerry.core.errors import DataError
from skerry.quant.engine import quantize_model
from skerry.quant.mixed import towards_float
from skerry.quant.numerics import AffineGrid
from skerry.quant.parts import Solved
from skerry.quant.recipe import Recipe
from skerry.quant.recipes import make_recipe


class Spy:
    """Rounds to nearest and notes what it was given."""

    needs = frozenset()

    def __init__(self):
        self.targets, self.weights = {}, {}

    def solve_in(self, W, statistics, grid, *, group, layer, context):
        self.targets[layer] = [output for *_, output, _ in context.probe.calls]
        self.weights[layer] = W.clone()
        return Solved(grid.quantize(W))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), channels=st.integers(1, 6), tokens=st.integers(8, 40))
def test_no_weight_is_nearer_to_the_float_output(seed, channels, tokens):
    g = torch.Generator().manual_seed(seed)
    X = torch.randn(tokens, channels, generator=g, dtype=torch.float64)
    X_f = X + 0.3 * torch.randn(tokens, channels, generator=g, dtype=torch.float64)
    W = torch.randn(3, channels, generator=g, dtype=torch.float64)
    found = towards_float(W, X.T @ X, (X_f - X).T @ X, damp=0.0)
    left = X @ found.T - X_f @ W.T
    torch.testing.assert_close(X.T @ left, torch.zeros(channels, 3, dtype=torch.float64), atol=1e-6, rtol=0)
    held = towards_float(W, X.T @ X, (X_f - X).T @ X, damp=0.5)
    errors = [float((X @ V.T - X_f @ W.T).norm()) for V in (found, held, W)]
    assert errors[0] <= errors[1] + 1e-9 and errors[1] <= errors[2] + 1e-9
    assert torch.equal(towards_float(W, X.T @ X, torch.zeros(channels, channels, dtype=torch.float64)), W)


def test_inputs_that_say_nothing_change_nothing():
    W, nothing = torch.randn(2, 4), torch.zeros(4, 4, dtype=torch.float64)
    assert torch.equal(towards_float(W, nothing, nothing), W)


@pytest.mark.parametrize("sequential", ["block", "group"])
@pytest.mark.parametrize("family", ["llama", "opt", "bert"])
def test_targets_are_those_of_the_float_model(family, sequential, tiny, inputs):
    model, batches, spy = tiny(family), inputs(family), Spy()
    path = {
        "llama": "model.layers.1.mlp",
        "opt": "model.decoder.layers.1.fc1",
        "bert": "encoder.layer.1.intermediate.dense",
    }
    wanted = []
    handle = model.get_submodule(path[family]).register_forward_hook(lambda m, a, y: wanted.append(y.clone()))
    with torch.no_grad():
        for batch in batches:
            model(batch)
    handle.remove()
    recipe = Recipe("x", AffineGrid(3), spy, propagate="mixed", sequential=sequential)
    quantize_model(model, recipe, calibration=batches)
    layer = {"llama": f"{path['llama']}.up_proj"}.get(family, path[family])
    for found, exact in zip(spy.targets[layer], wanted, strict=True):
        torch.testing.assert_close(found, exact, atol=1e-4, rtol=1e-4)
    state = model.state_dict()
    assert not torch.allclose(spy.weights[layer], state[f"{layer}.weight"], atol=1e-3)
    first = next(iter(spy.weights))
    torch.testing.assert_close(spy.weights[first], state[f"{first}.weight"])  # nothing was lost before it


def test_one_block_is_as_ever_and_a_model_without_blocks_says_so(tiny, inputs):
    model, batches = tiny("opt", blocks=1), inputs("opt")
    recipe = Recipe("x", AffineGrid(4), make_recipe("gptq", "w4a16").solver)
    one, two = (
        quant.quantize(model, replace(recipe, propagate=p), calibration=batches) for p in ("quantized", "mixed")
    )
    with torch.no_grad():
        torch.testing.assert_close(two(batches[0]).logits, one(batches[0]).logits, atol=1e-4, rtol=1e-4)
    found = quant.quantize(tiny("plain"), "gptq", "w4a16", inputs("plain"), propagate="mixed")
    assert any("without blocks" in note for note in quant.report_of(found).notes)
    with pytest.raises(DataError, match="needs calibration"):
        quant.quantize(model, replace(make_recipe("rtn", "w4a16"), propagate="mixed"))


def test_less_is_lost_through_many_blocks(tiny):
    g = torch.Generator().manual_seed(0)
    batches = [torch.randint(0, 64, (8, 24), generator=g) for _ in range(5)]
    model = tiny("opt", blocks=4)
    lost = {}
    for propagate in ("quantized", "mixed"):
        found = quant.quantize(model, "gptq", "w3a16", batches[:4], propagate=propagate)
        lost[propagate] = quant.compare(model, found, batches[4:], repetitions=1).signal_to_noise
    assert lost["mixed"] > lost["quantized"] + 0.5
