"""The cache of few bits: error bounds, bytes, the same whatever the chunks, and transformers' own generation."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from skerry.core.errors import ModelError, ParameterError
from skerry.quant.comparison import language_loss
from skerry.quant.runtime.kv_cache import KVQuantizer, QuantizedKVCache


def states(tokens, channels=16, seed=0, heads=2):
    x = torch.randn(2, heads, tokens, channels, generator=torch.Generator().manual_seed(seed))
    x[..., 3] += 40.0  # a channel that is always large, as keys have
    return x


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize(("per", "group"), [("token", -1), ("token", 8), ("channel", 8)])
def test_half_a_step(bits, per, group):
    x = states(24)
    quantizer = KVQuantizer(bits, per, group)
    packed = quantizer.quantize(x)
    error = (quantizer.dequantize(packed) - x).abs()
    scale = packed.scale.float()
    scale = (
        scale.repeat_interleave(8, 2)
        if per == "channel"
        else scale.repeat_interleave(error.shape[-1] // scale.shape[-1], -1)
    )
    # codes reach half a step; the top may fall short by what float16 rounds from scale and lowest value
    slack = (2**bits - 1) * scale * 2**-11 + packed.low.float().abs().max() * 2**-11
    assert (error <= 0.5 * scale + slack + 1e-6).all()
    assert packed.codes.shape[-1] == 16 * bits // 8 and packed.codes.dtype == torch.uint8


def test_channels_keep_keys_with_a_loud_channel():
    x = states(64)
    quiet = [i for i in range(16) if i != 3]

    def error(quantizer):
        return float(((quantizer.fake(x) - x)[..., quiet] ** 2).mean())

    assert error(KVQuantizer(4, "channel", 32)) < 0.05 * error(KVQuantizer(4, "token"))


def test_rounding_again_changes_nothing():
    for quantizer in (KVQuantizer(4), KVQuantizer(8, "channel", 8)):
        once = quantizer.fake(states(16, seed=3) - 40.0 * torch.eye(16)[3])
        assert (quantizer.fake(once) - once).abs().max() < 4e-3


def test_constant_and_huge_states():
    for value in (0.0, -7.5, 1e5):
        x = torch.full((1, 1, 8, 4), value)
        out = KVQuantizer(4, "channel", 4).fake(x)
        assert torch.isfinite(out).all()
        assert out.equal(x) if abs(value) < 6e4 else bool((out >= 6e4).all())


@pytest.fixture
def llama(tiny):
    return tiny("llama")


@given(cuts=st.lists(st.integers(1, 13), min_size=1, max_size=8), window=st.integers(0, 5), per=st.booleans())
def test_what_is_held_depends_on_the_tokens_only(cuts, window, per):
    from transformers import LlamaConfig

    config = LlamaConfig(num_hidden_layers=1)
    x = states(sum(cuts))
    made = [
        QuantizedKVCache(config, bits=4, keys="channel" if per else "token", group_size=4, window=window) for _ in "ab"
    ]
    whole = made[0].update(x, -x, 0)
    for part in x.split(cuts, 2):
        last = made[1].update(part, -part, 0)
    assert torch.equal(whole[0], last[0]) and torch.equal(whole[1], last[1])
    rounded = max(sum(cuts) - window, 0) // (4 if per else 1) * (4 if per else 1)
    keys = KVQuantizer(4, "channel", 4) if per else KVQuantizer(4)
    wanted = torch.cat([keys.fake(x[:, :, :rounded]), x[:, :, rounded:]], 2)
    assert torch.equal(last[0], wanted)
    assert made[1].get_seq_length() == sum(cuts) and made[0].nbytes == made[1].nbytes


@pytest.mark.parametrize(("bits", "share"), [(8, 0.60), (4, 0.35), (2, 0.23)])
def test_memory(bits, share):
    from transformers import LlamaConfig

    cache = QuantizedKVCache(LlamaConfig(num_hidden_layers=1), bits=bits)
    x = states(256, channels=64).bfloat16()
    cache.update(x, x, 0)
    assert cache.nbytes < share * 2 * x.numel() * 2


@pytest.mark.parametrize("bits", [8, 4])
def test_transformers_generates_with_it(bits, llama, inputs):
    ids = inputs("llama", 1)[0]
    settings = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    exact = llama.generate(ids, **settings, output_logits=True, return_dict_in_generate=True)
    cache = QuantizedKVCache(llama.config, bits=bits, group_size=4)
    found = llama.generate(ids, **settings, past_key_values=cache, output_logits=True, return_dict_in_generate=True)
    assert found.sequences.shape == exact.sequences.shape and cache.get_seq_length() == 19
    a, b = exact.logits[0], found.logits[0]
    assert (a - b).norm() / a.norm() < (0.01 if bits == 8 else 0.2)
    beams = llama.generate(ids, num_beams=2, past_key_values=QuantizedKVCache(llama.config, bits=8), **settings)
    assert torch.equal(beams[:, :12], ids)


def test_eight_bits_keep_the_loss(llama, inputs):
    ids = inputs("llama", 1)[0]
    exact = language_loss(llama, ids)
    with torch.no_grad():
        cache = QuantizedKVCache(llama.config)
        logits = llama(ids, past_key_values=cache, use_cache=True).logits
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert abs(float(loss) - exact) < 0.02


@pytest.mark.parametrize("keep", [0, 3, 8, 10, 13])
def test_cropping(keep, llama):
    cache = QuantizedKVCache(llama.config, bits=4, group_size=4)
    x = states(14)
    before = cache.update(x, x, 0)[0]
    cache.crop(keep - 14)
    assert cache.get_seq_length() == keep
    after = cache.update(x[:, :, :1], x[:, :, :1], 0)[0]
    assert after.shape[2] == keep + 1
    kept = keep // 4 * 4  # a group that was cut is rounded again
    assert torch.equal(after[:, :, :kept], before[:, :, :kept])


def test_rows_and_reset(llama):
    cache = QuantizedKVCache(llama.config, bits=4, group_size=4)
    x = states(10)
    kept = cache.update(x, x, 0)[0]
    cache.batch_repeat_interleave(2)
    cache.batch_select_indices(torch.tensor([3, 0]))
    assert torch.equal(cache.layers[0]._states[0].all(), kept[[1, 0]])
    cache.reorder_cache(torch.tensor([1, 0]))
    assert torch.equal(cache.layers[0]._states[0].all(), kept)
    cache.reset()
    assert cache.get_seq_length() == 0 and cache.nbytes == 0


def test_settings_out_of_range(llama):
    for wrong in ({"bits": 3}, {"keys": "head"}, {"bits": 4, "group_size": 0}, {"window": -1}):
        with pytest.raises(ParameterError):
            QuantizedKVCache(llama.config, **wrong)
    with pytest.raises(ModelError, match="packed"):
        KVQuantizer(4).quantize(states(4, channels=15))
    with pytest.raises(ModelError, match="divide"):
        KVQuantizer(8, group_size=5).quantize(states(4))
    from transformers import Gemma2Config

    with pytest.raises(ModelError, match="sliding_attention"):
        QuantizedKVCache(Gemma2Config(num_hidden_layers=2))
