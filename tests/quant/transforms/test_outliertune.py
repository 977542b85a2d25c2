"""OutlierTune: the invariants of its brief, the newer release's options, and what live inputs lose at the ends."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import skerry.quant as quant
from skerry.core.errors import ModelError, ParameterError
from skerry.quant.activation import RoundClamp, TensorStatic, TokenDynamic, TokenRatio
from skerry.quant.comparison import clipped_shares
from skerry.quant.engine import output_of, quantize_model
from skerry.quant.groups import Group
from skerry.quant.linear import PreparedLinear, QuantizedLinear
from skerry.quant.numerics import AffineGrid
from skerry.quant.probe import GroupContext, Probe
from skerry.quant.recipe import Recipe
from skerry.quant.solvers import GPTQ, RTN, RoundedInputs
from skerry.quant.statistics import LayerStatistics
from skerry.quant.transforms.symmetrize import PreDequant, Symmetrize


def relative(a, b):
    return float((a - b).norm() / b.norm())


class Fed(nn.Module):
    """A norm without an average to take away (LayerNorm's own would spoil chosen channels), and a reader."""

    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.a = PreparedLinear(nn.Linear(width, 4))

    def forward(self, x):
        return self.a(self.norm(x))


def fed(offset, width_of, seed=0):
    """A model whose norm puts out channels of these offsets and widths."""
    torch.manual_seed(seed)
    model = Fed(len(offset)).requires_grad_(False)
    model.norm.weight.copy_(width_of)
    model.norm.bias.copy_(offset)
    return model, Group("a", {"a": model.a}, "norm", "norm"), GroupContext(model, None, None, Probe([model]))


def test_sixteen_bits_are_the_function(tiny, inputs):
    model, batches = tiny("opt"), inputs("opt")
    parts = (Symmetrize(), PreDequant(16))
    recipe = Recipe(
        "x", activation=TokenDynamic(16), transforms=parts, overrides=(("@norm", {"activation": RoundClamp(16)}),)
    )
    found, _ = quantize_model(model, recipe, calibration=batches)
    with torch.no_grad():
        for batch in batches:
            assert relative(output_of(found(batch)), output_of(model(batch))) < 1e-3


@pytest.mark.parametrize("family", ["opt", "llama"])
def test_the_integer_product_is_the_float_path(family, tiny, inputs):
    """Integers by integers, one scale a column, and the zero point's share of the row sum: what rounding stood for."""
    found = quant.quantize(tiny(family), "outliertune", "w8a8", inputs(family))
    layers = [m for m in found.modules() if isinstance(m, QuantizedLinear) and isinstance(m.activation, RoundClamp)]
    assert len(layers) == {"opt": 8, "llama": 10}[family]
    for layer in layers:
        x = torch.randn(9, layer.in_features, generator=torch.Generator().manual_seed(0)) * 40
        Xq = x.round().clamp(-128, 127).to(torch.int64)
        stored = layer.solved.weight
        accumulator = Xq @ stored.codes.to(torch.int64).T
        zero, scale = stored.zero.to(torch.int64)[:, 0], stored.scale.double()[:, 0]
        y = scale * (accumulator - zero * Xq.sum(1, keepdim=True)).double()
        if layer.bias is not None:
            y = y + layer.bias.double()
        assert relative(layer(x).double(), y) < 1e-5


def test_no_scale_of_activations_is_saved(tiny, inputs, tmp_path):
    found = quant.quantize(tiny("opt"), "outliertune", "w8a8", inputs("opt"))
    quant.save(found, tmp_path / "out")
    again = quant.load(tmp_path / "out", tiny("opt"))
    fed_by_norms = [
        m for m in again.modules() if isinstance(m, QuantizedLinear) and isinstance(m.activation, RoundClamp)
    ]
    assert len(fed_by_norms) == 8
    for layer in fed_by_norms:
        assert layer.settings() == {"kind": "round_clamp", "bits": 8} and not layer.before
        assert set(layer.solved.weight.tensors()) == {"packed", "scale", "zero"}


@given(seed=st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_one_sample_becomes_symmetric_and_a_symmetric_channel_stays(seed):
    g = torch.Generator().manual_seed(seed)
    model, group, context = fed(torch.randn(6, generator=g) * 20, torch.rand(6, generator=g) + 0.1, seed)
    x = torch.randn(40, 6, generator=g)
    before, exact = model.norm(x), model(x)
    Symmetrize().apply(group, LayerStatistics.of(before), context)
    y = model.norm(x)
    torch.testing.assert_close(y.amax(0), -y.amin(0), atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(model(x), exact, atol=1e-4, rtol=1e-4)
    kept = model.norm.bias.clone()
    Symmetrize().apply(group, LayerStatistics.of(y), context)
    torch.testing.assert_close(model.norm.bias, kept, atol=2e-5, rtol=0)


def test_pure_offsets_leave_the_ratio_of_the_widths():
    offset, width_of = torch.tensor([60.0, -97.0, 0.0, 0.0, 0.0]), torch.tensor([1.0, 2.0, 1.0, 1.0, 1.0])
    x = torch.randn(400, 5, generator=torch.Generator().manual_seed(0))
    model, group, context = fed(offset, width_of)

    def ratio(y):
        top = y.abs().amax(0)
        return float(top.max() / top.median())

    before = ratio(model.norm(x))
    Symmetrize().apply(group, LayerStatistics.of(model.norm(x)), context)
    assert before > 20.0
    assert ratio(model.norm(x)) == pytest.approx(2.0, rel=0.15)


@given(seed=st.integers(0, 10_000), bits=st.sampled_from([4, 6, 8]))
@settings(max_examples=30, deadline=None)
def test_every_channel_reaches_both_its_step_and_its_range(seed, bits):
    g = torch.Generator().manual_seed(seed)
    model, group, context = fed(torch.randn(6, generator=g) * 5, torch.rand(6, generator=g) * 9 + 0.01, seed)
    x = torch.randn(50, 6, generator=g)
    PreDequant(bits).apply(group, LayerStatistics.of(model.norm(x)), context)
    codes, top = RoundClamp(bits).fake(model.norm(x)), 2 ** (bits - 1) - 1
    assert torch.equal(codes, codes.round()) and bool((codes.abs() <= top).all())
    assert torch.equal(codes.abs().amax(0), torch.full((6,), float(top)))
    assert not RoundClamp(bits).clipped(model.norm(x)).any()


def test_gains_folded_beforehand_change_nothing(tiny, inputs):
    """The older release folds RMSNorm's gains into the weights and does not shift: here that is ``rms="drop"``."""
    batches, folded = inputs("llama"), tiny("llama")
    with torch.no_grad():
        for block in folded.model.layers:
            for norm, readers in (
                (block.input_layernorm, [getattr(block.self_attn, f"{n}_proj") for n in "qkv"]),
                (block.post_attention_layernorm, [block.mlp.gate_proj, block.mlp.up_proj]),
            ):
                for reader in readers:
                    reader.weight *= norm.weight
                norm.weight.fill_(1.0)
        ours = quant.quantize(tiny("llama"), "outliertune", "w6a6", batches, rms="drop")
        theirs = quant.quantize(folded, "outliertune", "w6a6", batches, rms="drop")
        assert relative(theirs(batches[0]).logits, ours(batches[0]).logits) < 0.02


def test_solved_on_the_integers_that_arrive(tiny, inputs):
    model, batches = tiny("opt"), inputs("opt")
    plain, solved = (quant.quantize(model, "outliertune", "w4a4", batches, weight_solver=s) for s in ("rtn", "gptq"))
    for name in ("model.decoder.layers.0.self_attn.q_proj", "model.decoder.layers.1.fc1"):
        assert solved.get_submodule(name).solved.info["damp"] == 0.01
        assert isinstance(solved.get_submodule(name).activation, RoundClamp)
    a, b = (quant.compare(model, m, batches, repetitions=1).signal_to_noise for m in (solved, plain))
    assert a > b
    recipe = quant.make_recipe("outliertune", "w4a4", weight_solver="gptq", token_ratio=True)
    assert Recipe.from_json(recipe.to_json()) == recipe
    assert isinstance(recipe.activation, TokenRatio)
    with pytest.raises(ParameterError, match="weight_solver"):
        quant.make_recipe("outliertune", "w4a4", weight_solver="awq")


def test_the_gram_matrix_of_rounded_inputs():
    X = torch.randn(6000, 12, generator=torch.Generator().manual_seed(0)) * torch.logspace(0, 1.5, 12)
    rounding = TensorStatic(4).calibrated(LayerStatistics.of(X, {"range"}))
    found = RoundedInputs().statistics(LayerStatistics.of(X), rounding)
    Y = rounding.fake(X).double()
    assert relative(found.gram, Y.T @ Y) < 0.01  # 4096 tokens speak for 6000
    assert RoundedInputs().statistics(LayerStatistics.of(X), None).gram is not None
    few = LayerStatistics.of(X[:500])
    rounding = TensorStatic(4).calibrated(few)
    Y = rounding.fake(X[:500]).double()
    assert relative(RoundedInputs().statistics(few, rounding).gram, Y.T @ Y) < 1e-6
    # channels that rounding drowns weigh less: the error on what arrives is at or under that of the float matrix
    W, grid = torch.randn(8, 12, generator=torch.Generator().manual_seed(1)), AffineGrid(3)
    E = [(W - GPTQ().solve(W, s, grid).dense()).double() for s in (few, RoundedInputs().statistics(few, rounding))]
    errors = [float(((e @ Y.T) ** 2).sum()) for e in E]
    assert errors[1] <= errors[0]
    with pytest.raises(ParameterError, match="RTN"):
        RoundedInputs(RTN())


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_the_searched_share_is_never_worse_than_the_whole_range(bits):
    X = torch.randn(300, 32, generator=torch.Generator().manual_seed(bits)) ** 3
    found = TokenRatio(bits).calibrated(LayerStatistics.of(X, {"sample"}))
    whole = TokenDynamic(bits)
    error, other = (float(((q.fake(X) - X) ** 2).sum()) for q in (found, whole))
    assert 0.5 < found.ratio <= 1.0 and error <= other
    with pytest.raises(ModelError, match="'sample'"):
        TokenRatio(bits).calibrated(LayerStatistics())
    with pytest.raises(ModelError, match="calibration"):
        TokenRatio(bits).fake(X)
    with pytest.raises(ParameterError):
        TokenRatio(1)


def test_clipped_values_are_counted(tiny, inputs):
    model, batches = tiny("opt"), inputs("opt")
    found = quant.quantize(model, "outliertune", "w6a6", batches)
    fed_by_norms = [n for n, m in found.named_modules() if isinstance(getattr(m, "activation", None), RoundClamp)]
    assert sorted(clipped_shares(found, batches)) == sorted(fed_by_norms)
    first = [n for n in fed_by_norms if ".0.self_attn." in n]
    assert all(clipped_shares(found, batches)[n] == 0.0 for n in first)  # the calibration data itself
    other = inputs("opt", seed=77)
    compared = quant.compare(model, found, other, repetitions=1)
    assert compared.clipped == clipped_shares(found, other)
    layer = found.get_submodule(first[0])
    seen = []
    handle = layer.register_forward_pre_hook(lambda module, x: seen.append(x[0]))
    with torch.no_grad():
        for batch in other:
            found(batch)
    handle.remove()
    x = torch.cat([s.flatten(0, -2) for s in seen])
    assert compared.clipped[first[0]] == pytest.approx(float(((x.round() > 31) | (x.round() < -32)).float().mean()))
    assert "clipped" in str(compared)
    assert clipped_shares(quant.quantize(model, "rtn", "w8a8"), other) == {}
    static = quant.quantize(model, "rtn", "w8a8", batches, static=True)
    assert set(clipped_shares(static, other)) > set(fed_by_norms)


def test_a_range_is_left_by_more_than_half_a_step():
    static = TensorStatic(4, low=-7.0, high=3.0)
    assert static.clipped(torch.tensor([-7.4, 7.4, 7.6, -7.6])).tolist() == [False, False, True, True]
    one_sided = TensorStatic(4, symmetric=False, low=0.0, high=15.0)
    assert one_sided.clipped(torch.tensor([-0.4, -0.6, 15.4, 15.6])).tolist() == [False, True, False, True]
    with pytest.raises(ModelError, match="calibration"):
        TensorStatic(4).clipped(torch.ones(2))
