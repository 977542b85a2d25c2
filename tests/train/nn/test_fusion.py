"""Fusing UnifiedNorm into its readers: the outputs stay, the norms go, and what cannot go is told."""

import copy

import pytest

pytest.importorskip("torch", reason="needs the extra 'deep'")

import torch
from torch import nn

from skerry.core.errors import ModelError, ParameterError
from skerry.train.nn import (
    ClippedSoftmax,
    FixedScale,
    GatedAttention,
    UnifiedNorm,
    fuse_unified_norm,
    replace_norms,
)
from skerry.train.nn.gates import GATES

D = 8


def rand(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def trained(model, x, dtype=torch.float32, steps=12):
    """Run some training steps, so that scales, shifts and statistics are away from their start."""
    model = model.to(dtype)
    for m in model.modules():
        if isinstance(m, UnifiedNorm):
            nn.init.normal_(m.weight, 1.0, 0.5)
            nn.init.normal_(m.bias, 0.0, 0.5)
    model.train()
    for _ in range(steps):
        model(x.to(dtype) * torch.linspace(0.3, 4, x.shape[-1], dtype=dtype))
    return model.eval()


class Block(nn.Module):
    """A pre-norm block with any attention."""

    def __init__(self, attention, post_norm=False):
        super().__init__()
        self.norm1, self.norm2 = UnifiedNorm(D, 2, 4), UnifiedNorm(D, 2, 4)
        self.attention, self.post_norm = attention, post_norm
        self.up, self.down = nn.Linear(D, 2 * D), nn.Linear(2 * D, D)

    def forward(self, x, mask=None):
        if self.post_norm:
            x = self.norm1(x + self.attention(x, mask))
            return self.norm2(x + self.down(torch.relu(self.up(x))))
        x = x + self.attention(self.norm1(x), mask)
        return x + self.down(torch.relu(self.up(self.norm2(x))))


class DeclaredBlock(Block):
    def norm_consumers(self):
        parts = ("q_proj", "k_proj", "v_proj") + (("gate",) if self.attention.gate is not None else ())
        return {"norm1": [f"attention.{p}" for p in parts], "norm2": ["up"]}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("gate", [None, *GATES])
@pytest.mark.parametrize("bias", [True, False])
def test_a_gated_block_fuses_whole(dtype, tolerance, gate, bias):
    torch.manual_seed(0)
    net = nn.ModuleList([DeclaredBlock(GatedAttention(D, 2, gate=gate, causal=True, bias=bias)) for _ in range(2)])
    net = nn.Sequential(*net)
    x = rand(2, 5, D)
    net = trained(net, x, dtype)
    x = x.to(dtype)
    traced, declared, before = copy.deepcopy(net), copy.deepcopy(net), net(x)
    report = fuse_unified_norm(traced, x)
    readers = {"0.attention.q_proj", "0.attention.k_proj", "0.attention.v_proj"} | (
        {"0.attention.gate"} if gate else set()
    )
    assert set(report.fused["0.norm1"]) == readers and report.fused["1.norm2"] == ("1.up",)
    assert not report.kept and not report.untied and report.error < tolerance
    assert fuse_unified_norm(declared).error is None
    for fused in (traced, declared):
        torch.testing.assert_close(fused(x), before, rtol=tolerance, atol=tolerance)
        assert not any(isinstance(m, UnifiedNorm | FixedScale) for m in fused.modules())
        assert [tuple(p.shape) for p in fused[0].attention.q_proj.parameters()][0] == (D, D)
    assert "0.norm1 -> 0.attention.q_proj" in str(report)


def test_only_the_readers_change_and_a_mask_still_masks():
    torch.manual_seed(0)
    net = trained(Block(GatedAttention(D, 2, gate=None)), rand(2, 5, D))
    x, mask = rand(2, 5, D), torch.rand(5, 5) > 0.4
    mask.fill_diagonal_(True)
    before, old = net(x, mask), {k: v.clone() for k, v in net.state_dict().items()}
    fuse_unified_norm(net, (x, mask))
    torch.testing.assert_close(net(x, mask), before, rtol=1e-5, atol=1e-5)
    changed = {k for k, v in net.state_dict().items() if not torch.equal(v, old[k])}
    parts = ("attention.q_proj", "attention.k_proj", "attention.v_proj", "up")
    assert changed == {f"{p}.{kind}" for p in parts for kind in ("weight", "bias")}
    assert all(v.shape == old[k].shape for k, v in net.state_dict().items())


def test_golden_values():
    net = nn.Sequential(UnifiedNorm(1, eps=0.0), nn.Linear(1, 1)).eval()
    net[0].running_var.fill_(4.0)
    for p, value in zip([net[0].weight, net[0].bias, net[1].weight, net[1].bias], [2, 1, 5, 7], strict=True):
        nn.init.constant_(p, value)
    x = torch.tensor([[3.0]])
    assert net(x).item() == 27
    fuse_unified_norm(net, consumers={"0": "1"})
    assert (net[1].weight.item(), net[1].bias.item(), net(x).item()) == (5, 12, 27)


def test_a_bias_appears_only_where_it_is_needed():
    net = nn.Sequential(UnifiedNorm(3), nn.Linear(3, 2, bias=False)).eval()
    plain = copy.deepcopy(net)
    fuse_unified_norm(plain, rand(2, 3))
    assert plain[1].bias is None
    nn.init.ones_(net[0].bias)
    before = net(rand(2, 3))
    fuse_unified_norm(net, rand(2, 3))
    torch.testing.assert_close(net[1].bias, net[1].weight.sum(1) * 0 + plain[1].weight.sum(1) * (1 + 1e-5) ** 0.5)
    torch.testing.assert_close(net(rand(2, 3)), before)


def test_a_post_norm_block_keeps_a_multiplication_and_no_reduction():
    torch.manual_seed(0)
    net, x = trained(Block(GatedAttention(D, 2), post_norm=True), rand(2, 5, D)), rand(2, 5, D)
    before = net(x)
    report = fuse_unified_norm(net, x)
    assert not report.fused
    assert "also read by add" in report.kept["norm1"] and "outputs of the model" in report.kept["norm2"]
    assert isinstance(net.norm1, FixedScale)
    torch.testing.assert_close(net(x), before, rtol=1e-5, atol=1e-5)
    assert "kept as a fixed scale" in str(report)


@pytest.mark.parametrize("norm_first", [True, False])
def test_the_encoder_of_torch_itself(norm_first):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(D, 2, 16, dropout=0.0, batch_first=True, norm_first=norm_first)
    net = nn.Sequential(nn.TransformerEncoder(layer, 2, enable_nested_tensor=not norm_first), nn.Linear(D, 3))
    replace_norms(net, lambda d: UnifiedNorm(d, 2, 4))
    x = rand(2, 5, D)
    trained(net, x)
    with torch.no_grad():
        before = net(x)  # torch's fused kernel would compute LayerNorm here
    torch.testing.assert_close(net(x), before)
    report = fuse_unified_norm(net, x)
    with torch.no_grad():
        torch.testing.assert_close(net(x), before, rtol=1e-5, atol=1e-5)
    if norm_first:
        assert report.fused["0.layers.0.norm1"] == ("0.layers.0.self_attn",)
        assert report.fused["0.layers.1.norm2"] == ("0.layers.1.linear1",) and not report.kept
    else:
        assert report.fused == {"0.layers.1.norm2": ("1",)} and len(report.kept) == 3


class Pooled(nn.Module):
    """The last norm is read through a choice of tokens, and one head is tied to the embedding."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, D)
        self.norm, self.head, self.cls = UnifiedNorm(D, 2, 4), nn.Linear(D, 7, bias=False), nn.Linear(D, 2)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        y = self.norm(self.embed(tokens))
        return self.head(y[:, -2:, :].contiguous()), self.cls(y[:, 0])


def test_reading_some_tokens_is_followed_and_tied_weights_part():
    torch.manual_seed(0)
    net, tokens = Pooled(), torch.randint(7, (2, 5))
    nn.init.normal_(net.norm.weight)
    for _ in range(6):
        net(tokens)
    net.eval()
    before, table = net(tokens), net.embed.weight.clone()
    report = fuse_unified_norm(net, tokens)
    assert report.fused == {"norm": ("head", "cls")} and report.untied == ("head",)
    assert torch.equal(net.embed.weight, table) and net.head.weight is not net.embed.weight
    for a, b in zip(net(tokens), before, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.unused = UnifiedNorm(D), UnifiedNorm(D), UnifiedNorm(D)
        self.linear, self.own = nn.Linear(D, D), nn.Linear(D, D)

    def forward(self, x):
        return self.linear(self.a(x)) + self.linear(self.b(x)) + self.own(self.b(x))


def test_a_layer_that_reads_two_norms_takes_in_neither():
    net, x = Shared().eval(), rand(2, D)
    nn.init.constant_(net.a.weight, 2.0)
    before = net(x)
    report = fuse_unified_norm(net, x)
    assert not report.fused and report.kept["unused"] == "not run by the example"
    assert "linear also reads something else" in report.kept["a"]
    torch.testing.assert_close(net(x), before)


class Scrambled(nn.Module):
    """Reads the norm through a permutation of channels that looks like a choice of tokens."""

    def __init__(self):
        super().__init__()
        self.norm, self.linear = UnifiedNorm(D), nn.Linear(D, D)

    def forward(self, x):
        return self.linear(self.norm(x)[..., torch.arange(D - 1, -1, -1)])


def test_a_fusion_that_changes_the_outputs_is_taken_back():
    net, x = Scrambled().eval(), rand(2, D)
    nn.init.normal_(net.norm.weight)
    before, state = net(x), copy.deepcopy(net.state_dict())
    with pytest.raises(ModelError, match="name the consumers"):
        fuse_unified_norm(net, x)
    assert torch.equal(net(x), before)
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    assert isinstance(net.norm, UnifiedNorm)


def test_named_inputs_and_half_precision():
    torch.manual_seed(0)
    net = trained(Block(GatedAttention(D, 2, softmax=ClippedSoftmax(alpha=1, seq_len=5))), rand(2, 5, D))
    net.bfloat16()
    x = rand(2, 5, D).bfloat16()
    before = net(x).float()
    report = fuse_unified_norm(net, {"x": x, "mask": None}, tolerance=0.05)
    assert len(report.fused) == 2
    torch.testing.assert_close(net(x).float(), before, rtol=0.05, atol=0.05)


def test_a_fused_model_compiles_whole():
    net, x = trained(Block(GatedAttention(D, 2, causal=True)), rand(2, 5, D)), rand(2, 5, D)
    before = net(x)
    torch.testing.assert_close(torch.compile(net, backend="eager", fullgraph=True)(x), before)
    fuse_unified_norm(net, x)
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), before, rtol=1e-5, atol=1e-5)


def test_mistakes_are_refused_before_anything_changes():
    net = nn.Sequential(UnifiedNorm(D), nn.Linear(D, D), nn.ReLU(), UnifiedNorm(D), nn.Linear(D, 3)).eval()
    state = copy.deepcopy(net.state_dict())
    for consumers, match in (
        (None, "nobody knows"),
        ({"1": "4"}, "'1' is no UnifiedNorm"),
        ({"0": "2"}, "a ReLU, not a linear"),
        ({"0": "attention"}, "no module of the model"),
        ({"0": "4", "3": "4"}, "reads both"),
    ):
        with pytest.raises(ModelError, match=match):
            fuse_unified_norm(net, consumers=consumers)
    with pytest.raises(ModelError, match=r"call model\.eval"):
        fuse_unified_norm(copy.deepcopy(net).train(), rand(1, D))
    with pytest.raises(ModelError, match="nothing to fuse"):
        fuse_unified_norm(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(ParameterError):
        fuse_unified_norm(net, rand(1, D), tolerance=0)
    wide = nn.Sequential(UnifiedNorm(D), nn.Linear(D + 1, 2)).eval()
    with pytest.raises(ModelError, match="reads 9 channels"):
        fuse_unified_norm(wide, consumers={"0": "1"})
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    report = fuse_unified_norm(net, consumers={"3": ["4"]})  # the other stays, as a scale
    assert report.kept == {"0": "no readers were given"} and isinstance(net[0], FixedScale)
