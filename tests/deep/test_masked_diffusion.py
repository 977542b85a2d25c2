"""The model sees both sides, the loss weighs by 1/t, and Dream's head speaks of the next token."""

import math

import pytest
import torch

from skerry.core.errors import ParameterError
from skerry.deep.masked_diffusion import MaskedDiffusionLM, corrupt, diffusion_loss, next_token_loss


def small(**settings) -> MaskedDiffusionLM:
    torch.manual_seed(0)
    model = MaskedDiffusionLM(vocab_size=12, width=16, blocks=2, heads=2, **settings).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.mul_(10.0)  # attention that does something
    return model


TOKENS = torch.tensor([[1, 2, 3, 4, 5, 6]])


def test_no_causal_mask_is_hidden():
    changed = TOKENS.clone()
    changed[0, 5] = 9
    both, left = small(), small(causal=True)
    assert not torch.allclose(both(TOKENS)[0, 0], both(changed)[0, 0])
    torch.testing.assert_close(left(TOKENS)[0, :5], left(changed)[0, :5], rtol=0, atol=0)


def test_without_positions_a_shuffle_of_tokens_shuffles_logits(monkeypatch):
    monkeypatch.setattr("skerry.deep.masked_diffusion._turned", lambda x, turn: x)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    model = small()
    torch.testing.assert_close(model(TOKENS[:, order]), model(TOKENS)[:, order])
    twin = small(causal=True)
    assert not torch.allclose(twin(TOKENS[:, order]), twin(TOKENS)[:, order], atol=1e-3)


def test_positions_count():
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    model = small()
    assert not torch.allclose(model(TOKENS[:, order]), model(TOKENS)[:, order], atol=1e-3)


def test_it_is_the_llama_of_transformers_without_its_causal_mask():
    transformers = pytest.importorskip("transformers")
    model = small(causal=True, kv_heads=1)
    config = transformers.LlamaConfig(
        vocab_size=12, hidden_size=16, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, rms_norm_eps=1e-5, rope_theta=10_000.0, tie_word_embeddings=False,
    )  # fmt: skip
    other = transformers.LlamaForCausalLM(config).eval()
    names = {k if k.startswith("lm_head") else f"model.{k}": v for k, v in model.state_dict().items()}
    other.load_state_dict(names)
    with torch.no_grad():
        torch.testing.assert_close(model(TOKENS), other(TOKENS).logits, rtol=1e-4, atol=1e-5)


def test_the_shifted_head_speaks_of_the_next_token():
    plain, shifted = small(), small(shifted=True)
    torch.testing.assert_close(shifted(TOKENS)[:, 1:], plain(TOKENS)[:, :-1], rtol=0, atol=0)


def test_corruption_masks_with_its_probability_and_only_the_answer():
    x = torch.ones(400, 50, dtype=torch.int64)
    t = torch.linspace(0.0, 1.0, 400)
    answer = torch.arange(50) >= 20
    noisy, masked, probability = corrupt(x, 9, t, answer=answer.expand(x.shape), generator=torch.Generator())
    assert not masked[:, :20].any()
    assert torch.equal(noisy == 9, masked)
    assert not masked[0].any()
    assert masked[-1, 20:].all()
    assert abs(float(masked[:, 20:].double().mean()) - float(probability.mean())) < 0.01


def test_a_uniform_model_loses_log_v_a_token_on_average():
    model = small()
    model.lm_head.weight.zero_()
    x = torch.randint(0, 11, (2000, 6), generator=torch.Generator().manual_seed(0))
    loss = diffusion_loss(model, x, generator=torch.Generator().manual_seed(1))
    assert abs(float(loss) / math.log(12) - 1.0) < 0.1
    exact = float(diffusion_loss(model, x, 1.0))
    assert exact == pytest.approx(math.log(12), rel=1e-4)
    assert float(next_token_loss(model, x)) == pytest.approx(math.log(12), rel=1e-4)


def test_the_answers_length_divides():
    model = small()
    model.lm_head.weight.zero_()
    x = torch.zeros(3, 6, dtype=torch.int64)
    answer = (torch.arange(6) >= 4).expand(3, 6)
    assert float(diffusion_loss(model, x, 1.0, answer=answer)) == pytest.approx(math.log(12), rel=1e-4)


def test_odd_heads_are_refused():
    with pytest.raises(ParameterError, match="heads"):
        MaskedDiffusionLM(vocab_size=8, width=16, heads=3)
    with pytest.raises(ParameterError, match="key heads"):
        MaskedDiffusionLM(vocab_size=8, width=16, heads=4, kv_heads=3)
