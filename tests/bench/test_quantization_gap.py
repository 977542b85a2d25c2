"""The simulation rounds what it says, where it says, and leaves no trace."""

import pytest

pytest.importorskip("torch", reason="needs the extra 'deep'")

import torch

from skerry.bench.quantization_gap import block_hadamard, mean_loss, quantization_gap, quantized
from skerry.core.errors import ModelError, ParameterError
from skerry.train.lab_model import SmallGPT


@pytest.fixture
def model():
    torch.manual_seed(0)
    net = SmallGPT(20, dim=32, n_layers=2, n_heads=2, seq_len=16)
    with torch.no_grad():
        for p in net.parameters():  # losses that move
            p.mul_(6 if p.ndim == 2 else 1)
    return net.eval()


def batches(n=2):
    draw = torch.Generator().manual_seed(0)
    return [tuple(torch.randint(20, (4, 16), generator=draw) for _ in range(2)) for _ in range(n)]


def test_weights_and_inputs_are_rounded_as_a_hand_does_it(model):
    layer = model.blocks[1].ffn.down
    seen = []
    hook = layer.register_forward_hook(lambda m, i, o: seen.append((i[0].clone(), o.clone())))
    x = batches()[0][0]
    with torch.no_grad():
        model(x)
        with quantized(model, weight_bits=4, activation_bits=4, per="token", sites=("ffn",)):
            # blocks before it are changed too: give the layer what it had
            layer(seen[0][0])
    hook.remove()
    given = seen[0][0]
    scale = given.abs().amax(-1, keepdim=True) / 7
    a = torch.round(given / scale).clamp(-7, 7) * scale
    s = layer.weight.detach().abs().amax(1, keepdim=True) / 7
    w = torch.round(layer.weight.detach() / s).clamp(-7, 7) * s
    assert torch.allclose(seen[-1][1], a @ w.T, atol=1e-5)


def test_nothing_is_left_behind(model):
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(RuntimeError), quantized(model, ffn_hadamard=True):
        raise RuntimeError
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_sixteen_bits_change_nothing_and_fewer_bits_change_more(model):
    data = batches()
    assert quantization_gap(model, data, weight_bits=16, activation_bits=16) == 0
    assert quantization_gap(model, data, weight_bits=16, activation_bits=16, ffn_hadamard=True) == pytest.approx(
        0, abs=1e-5
    )
    full = mean_loss(model, data)
    moved = [abs(quantization_gap(model, data, full=full, weight_bits=b, activation_bits=b)) for b in (8, 4, 2)]
    assert moved[0] < moved[1] < moved[2]


def test_sites_are_their_own(model):
    x = batches()[0][0]
    touched = {}
    for site in ("in", "ao", "ffn"):
        with quantized(model, sites=(site,)):
            touched[site] = {n for n, m in model.named_modules() if m._forward_pre_hooks}
            model(x)
    assert {n.rpartition(".")[2] for n in touched["in"]} == {"q_proj", "k_proj", "v_proj", "up"}
    assert len(touched["in"]) == 8 and len(touched["ao"]) == 2 and len(touched["ffn"]) == 2
    assert not any("head" in n for s in touched.values() for n in s)


def test_an_outlier_hurts_one_scale_for_all_and_its_clip_heals(model):
    """A planted value of a thousand spreads costs 8 bits per tensor much, per token less, and clipped nothing."""
    plain = quantization_gap(model, batches(), weight_bits=16, activation_bits=8, per="tensor", sites=("ffn",))
    layer = model.blocks[0].ffn.down
    size = {"at": 1000.0}

    def plant(module, inputs):
        x = inputs[0].clone()
        x[:, 0, 0] = size["at"] * x.std()
        return (x,)

    with torch.no_grad():
        layer.weight[:, 0] = 0  # nothing reads the channel
    handle = layer.register_forward_pre_hook(plant)
    gap = {
        per: abs(quantization_gap(model, batches(), weight_bits=16, activation_bits=8, per=per, sites=("ffn",)))
        for per in ("tensor", "token")
    }
    size["at"] = 3.0
    clipped = abs(quantization_gap(model, batches(), weight_bits=16, activation_bits=8, per="tensor", sites=("ffn",)))
    handle.remove()
    assert gap["tensor"] > 2 * gap["token"] and gap["tensor"] > 20 * max(clipped, abs(plain))


def test_hadamard_is_orthogonal_in_blocks_and_spreads_a_spike():
    for d in (32, 96, 7):
        h = block_hadamard(d)
        assert torch.allclose(h @ h.T, torch.eye(d), atol=1e-5)
    spike = torch.zeros(32)
    spike[3] = 1
    assert (spike @ block_hadamard(32)).abs().max().item() == pytest.approx(32**-0.5)


def test_static_grids_come_from_calibration(model):
    data = batches()
    calibration = [x for x, _ in data]
    close = quantization_gap(model, data, weight_bits=8, activation_bits=8, per="static", calibration=calibration)
    assert abs(close) < 0.05
    with pytest.raises(ParameterError, match="calibration"):
        quantization_gap(model, data, per="static")
    with pytest.raises(ParameterError, match="per is"):
        quantization_gap(model, data, per="row")
    with pytest.raises(ParameterError, match="ffn"):
        quantization_gap(model, data, sites=("fnn",))
    with pytest.raises(ModelError, match="no linear layer"):
        quantization_gap(torch.nn.Linear(2, 2), [], full=0.0)


@pytest.mark.parametrize("bits", [8, 4])
def test_it_is_what_the_public_engine_computes(model, bits):
    from skerry.quant import quantize

    data = batches()
    public = mean_loss(quantize(model, "rtn", f"w{bits}a{bits}"), data) - mean_loss(model, data)
    here = quantization_gap(model, data, weight_bits=bits, activation_bits=bits, per="token")
    assert here == pytest.approx(public, abs=1e-6)
