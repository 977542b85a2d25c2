"""SVDQuant: golden values and invariants of the paper's brief."""

import itertools

import pytest
import torch
from torch import nn

import skerry.quant as quant
from skerry.core.errors import ParameterError
from skerry.quant.activation import GroupDynamic
from skerry.quant.engine import output_of, quantize_model
from skerry.quant.numerics import AffineGrid
from skerry.quant.parts import LowRank
from skerry.quant.recipe import Recipe
from skerry.quant.statistics import LayerStatistics
from skerry.quant.transforms.low_rank import (
    GELU_LIFT,
    BranchSmooth,
    LiftedInput,
    LowRankAbsorb,
    candidates,
    truncated,
)

GOLDEN = torch.tensor([[8.0, 8.0, 8.0], [0.5, -0.4, 0.1], [0.2, 0.3, -0.6]])


def test_golden_decomposition():
    product, up, down = truncated(GOLDEN, 1)
    residual = GOLDEN - product
    assert float(residual.abs().max()) == pytest.approx(0.566545, abs=2e-6)
    assert float(residual.norm()) == pytest.approx(0.945141, abs=2e-6)
    torch.testing.assert_close(up @ down, product)
    columns = AffineGrid(4, axis=0)  # one scale per column
    assert float((columns.round(GOLDEN) - GOLDEN).norm()) == pytest.approx(0.919072, abs=2e-6)
    assert float((columns.round(residual) - residual).norm()) == pytest.approx(0.036595, abs=2e-6)


@pytest.mark.parametrize("shape", [(8, 5), (5, 8), (6, 6)])
@pytest.mark.parametrize("rank", [0, 1, 3, 5])
def test_residual_is_the_tail_of_the_spectrum(shape, rank):
    W = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    product, up, down = truncated(W, rank)
    tail = torch.linalg.svdvals(W.double())[rank:]
    assert float((W - product).double().norm() ** 2) == pytest.approx(float((tail**2).sum()), rel=1e-5, abs=1e-8)
    assert up.shape == (shape[0], rank) and down.shape == (rank, shape[1])


def test_full_rank_leaves_nothing_to_round():
    W = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    solved = LowRankAbsorb(rank=4, dtype="float32").solve(W, LayerStatistics(), AffineGrid(2))
    torch.testing.assert_close(solved.dense(), W, atol=1e-5, rtol=0)


def test_a_planted_direction_goes_into_the_branch():
    generator = torch.Generator().manual_seed(3)
    clean = torch.randn(32, 32, generator=generator)
    spike = torch.outer(torch.randn(32, generator=generator), torch.randn(32, generator=generator))
    planted = clean + 100.0 * clean.norm() / spike.norm() * spike
    _, _, residual = LowRankAbsorb(rank=1).split(planted)
    assert float(residual.abs().max()) < 1.5 * float(clean.abs().max())


def test_candidates_and_the_lift():
    found = candidates(20)
    assert len(found) == 39 and found[0] == (0.0, 0.0) and len(set(found)) == 39
    x = torch.linspace(-3, 3, 10_001)
    assert float(nn.functional.gelu(x).min()) == pytest.approx(-0.16997, abs=1e-5)
    assert float(nn.functional.gelu(x).min()) + GELU_LIFT > 0


@pytest.mark.parametrize("family", ["llama", "opt", "gpt2", "bert", "vit"])
def test_without_quantizers_the_function_stays(family, tiny, inputs):
    model, batches = tiny(family), inputs(family)
    moves = Recipe("x", transforms=(LiftedInput(), BranchSmooth(rank=4, n_grid=4)))
    found, report = quantize_model(model, moves, calibration=batches)
    with torch.no_grad():
        for batch in batches:
            exact = output_of(model(batch))
            assert float((output_of(found(batch)) - exact).norm() / exact.norm()) < 1e-5
    lifted = [t["group"] for t in report.transforms if t["transform"] == "LiftedInput"]
    assert bool(lifted) == (family in ("gpt2", "bert", "vit"))  # the families with GELU


def test_rank_zero_is_smoothing_and_rounding(tiny, inputs):
    model, batches = tiny("llama"), inputs("llama")
    plain = Recipe("x", AffineGrid(4), activation=GroupDynamic(4, 16), transforms=(BranchSmooth(0, 4),))
    branch = Recipe("y", AffineGrid(4), LowRankAbsorb(0), GroupDynamic(4, 16), (BranchSmooth(0, 4),))
    a, _ = quantize_model(model, plain, calibration=batches)
    b, _ = quantize_model(model, branch, calibration=batches)
    with torch.no_grad():
        assert torch.equal(output_of(a(batches[0])), output_of(b(batches[0])))


def test_rounds_only_go_down_and_the_branch_is_shared(tiny, inputs):
    found = quant.quantize(tiny("llama"), "svdquant", "w4a4", inputs("llama"), rank=4, n_grid=4)
    attention = found.model.layers[0].self_attn
    q, k = attention.q_proj.solved, attention.k_proj.solved
    assert torch.equal(q.low_rank.down, k.low_rank.down) and q.info["shared_by"] == 3
    assert q.low_rank.shared_by == 3 and attention.o_proj.solved.low_rank.shared_by == 1
    for solved in (q, found.model.layers[1].mlp.down_proj.solved):
        assert list(solved.trace) == sorted(solved.trace, reverse=True)
    exact = quant.compare(tiny("llama"), found, inputs("llama", seed=9), repetitions=1)
    without = quant.quantize(tiny("llama"), "svdquant", "w4a4", inputs("llama"), rank=0, n_grid=4)
    assert exact.signal_to_noise > quant.compare(tiny("llama"), without, inputs("llama", seed=9)).signal_to_noise


def test_the_branch_sees_the_input_before_rounding(tiny, inputs):
    found = quant.quantize(tiny("opt"), "svdquant", "w4a4", inputs("opt"), rank=4, n_grid=2, iterations=1)
    layer = found.model.decoder.layers[0].fc1
    x = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    changed = x
    for change in layer.before:
        changed = change(changed)
    branch: LowRank = layer.solved.low_rank
    wanted = (
        layer.activation.fake(changed) @ layer.solved.weight.dequantize().T + changed @ branch.dense().T + layer.bias
    )
    torch.testing.assert_close(layer(x), wanted)


@pytest.mark.parametrize("family", ["llama", "opt", "gpt2"])
def test_a_division_kept_at_run_time_is_the_folded_one(family, tiny, inputs):
    model, batches = tiny(family), inputs(family)
    apart = Recipe("x", transforms=(BranchSmooth(rank=2, n_grid=4, fold=False),))
    found, report = quantize_model(model, apart, calibration=batches)
    layer = next(m for m in found.modules() if getattr(m, "before", ()))
    assert report.transforms and layer.before[0].kind == "affine"
    with torch.no_grad():
        exact = output_of(model(batches[0]))
        assert float((output_of(found(batches[0])) - exact).norm() / exact.norm()) < 1e-5
    for name, norm in model.named_modules():  # nothing was folded into a norm
        if "norm" in name or "ln_" in name:
            kept = zip(norm.parameters(), found.get_submodule(name).parameters(), strict=True)
            assert all(torch.equal(p, q) for p, q in kept)


def test_one_branch_for_three_layers_is_three_branches(tiny, inputs):
    """The shared first half gives what each layer's slice of the stacked decomposition gives alone."""
    model, batches = tiny("llama"), inputs("llama")
    recipe = Recipe("x", AffineGrid(4), LowRankAbsorb(4, 1, dtype="float32"))
    found, _ = quantize_model(model, recipe, calibration=batches)
    for i, block in enumerate(found.model.layers):
        attention, exact = block.self_attn, model.model.layers[i].self_attn
        layers = ("q_proj", "k_proj", "v_proj")
        whole = truncated(torch.cat([getattr(exact, n).weight for n in layers]), 4)[0]
        slices = whole.split([getattr(exact, n).out_features for n in layers])
        for name, part in zip(layers, slices, strict=True):
            torch.testing.assert_close(getattr(attention, name).solved.low_rank.dense(), part, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_the_rounds_end_at_or_under_no_branch_and_under_the_plain_one(seed):
    """On the calibration data, at the same smoothing: what the alternation keeps is never worse than its start."""
    g = torch.Generator().manual_seed(seed)
    W, X = torch.randn(24, 32, generator=g), torch.randn(200, 32, generator=g)
    X[:, :2] *= 20.0
    model = nn.Sequential(nn.Linear(32, 24, bias=False))
    model[0].weight.data = W

    def solved(rank, iterations):
        branch = LowRankAbsorb(rank, iterations, dtype="float32")
        recipe = Recipe("x", AffineGrid(4, group_size=16), branch, GroupDynamic(4, 16))
        found, _ = quantize_model(model, recipe, calibration=[X])
        return float((found(X) - X @ W.T).square().mean()), found[0].solved

    none, plain, (best, kept) = solved(0, 1)[0], solved(4, 1)[0], solved(4, 100)
    assert best <= plain * (1 + 1e-5) <= none
    assert len(kept.trace) > 1 and all(b < a for a, b in itertools.pairwise(kept.trace))
    assert best == pytest.approx(kept.trace[-1], rel=1e-4)


def test_lifted_and_unsigned_is_the_signed_function():
    """GELU outputs moved above zero, and the constant taken back by the bias: the same in floating point."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4))
    x = torch.randn(64, 8, generator=generator) * 3
    found, report = quantize_model(model, Recipe("x", transforms=(LiftedInput(),)), calibration=[x])
    assert [t["group"] for t in report.transforms] == ["2"]
    with torch.no_grad():
        torch.testing.assert_close(found(x), model(x), atol=1e-5, rtol=1e-5)
    lifted = quant.quantize(model, "svdquant", "w4a4g16", [x], rank=2, n_grid=2)
    assert lifted[2].activation.unsigned is True
    plain = quant.quantize(model, "svdquant", "w4a4g16", [x], rank=2, n_grid=2, shift_gelu=False)
    assert plain[2].activation.unsigned is False
    with torch.no_grad():
        errors = [float((m[2](m[1](m[0](x))) - model(x)).norm()) for m in (lifted, plain)]
    assert errors[0] < errors[1]


@pytest.mark.parametrize("settings", [{"rank": -1}, {"iterations": 0}, {"dtype": "int8"}])
def test_settings_out_of_range(settings):
    with pytest.raises(ParameterError):
        LowRankAbsorb(**settings)
