"""SVDQuant: golden values and invariants of the paper's brief."""

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


def test_another_branch_concatenates():
    """A low-rank update of the float weight joins the branch without a new quantization."""
    W = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
    update = LowRank(torch.randn(8, 2), torch.randn(2, 6))
    branch = LowRankAbsorb(2, dtype="float32").solve(W, LayerStatistics(), AffineGrid(4)).low_rank
    both = LowRank(torch.cat([branch.up, update.up], 1), torch.cat([branch.down, update.down]))
    torch.testing.assert_close(both.dense(), branch.dense() + update.dense())


@pytest.mark.parametrize("settings", [{"rank": -1}, {"iterations": 0}, {"dtype": "int8"}])
def test_settings_out_of_range(settings):
    with pytest.raises(ParameterError):
        LowRankAbsorb(**settings)
