"""Invariants of unmasking and of the likelihood bound (LLaDA), on a model that is not trained."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry.core.errors import ParameterError
from skerry.deep.masked_diffusion import MaskedDiffusionLM
from skerry.deep.masked_sampling import commit_schedule, generate, gumbel, loglikelihood, stratified_counts


@pytest.fixture(scope="module")
def model() -> MaskedDiffusionLM:
    torch.manual_seed(0)
    found = MaskedDiffusionLM(vocab_size=9, width=16, blocks=2, heads=2).eval().requires_grad_(False)
    for parameter in found.parameters():
        if parameter.ndim == 2:
            parameter.mul_(15.0)
    return found


class Spy(MaskedDiffusionLM):
    """Keeps every sequence that it was shown."""

    def forward(self, input_ids):
        self.seen.append(input_ids.clone())
        return super().forward(input_ids)


@given(masked=st.integers(0, 40), steps=st.integers(1, 40))
def test_the_schedule_is_even(masked, steps):
    found = commit_schedule(masked, steps)
    assert sum(found) == masked
    assert len(found) == steps
    assert max(found) - min(found) <= 1
    assert found == sorted(found, reverse=True)


@settings(max_examples=50)
@given(length=st.integers(1, 40), batch=st.integers(1, 40), data=st.data())
def test_counts_are_spread_over_one_to_length(length, batch, data):
    first = data.draw(st.integers(1, length))
    counts = stratified_counts(length, batch, first)
    assert len(counts) == batch
    assert 1 <= int(counts.min()) <= int(counts.max()) <= length
    if batch == length:
        assert sorted(counts.tolist()) == list(range(1, length + 1))


def test_commits_stay_and_blocks_come_in_turn(model):
    spy = Spy(vocab_size=9, width=16, blocks=2, heads=2)
    spy.load_state_dict(model.state_dict())
    spy.seen = []
    prompt = torch.tensor([[1, 2, 3], [4, 4, 4]])
    found = generate(spy, prompt, gen_length=6, steps=6, block_length=3)
    assert len(spy.seen) == 6
    states = [*spy.seen, found]
    for step, (before, after) in enumerate(zip(states[:-1], states[1:], strict=True)):
        settled = before != spy.mask_id
        assert torch.equal(before[settled], after[settled])
        assert torch.equal((after != spy.mask_id).sum(1), settled.sum(1) + 1)
        if step < 3:
            assert bool((after[:, 6:] == spy.mask_id).all())
    assert torch.equal(found[:, :3], prompt)
    assert not bool((found == spy.mask_id).any())
    assert torch.equal(found, generate(model, prompt, gen_length=6, steps=6, block_length=3))


def test_more_steps_than_tokens_and_both_orders(model):
    prompt = torch.tensor([[1, 2, 3]])
    slow = generate(model, prompt, gen_length=2, steps=8, block_length=2)
    assert torch.equal(slow, generate(model, prompt, gen_length=2, steps=2, block_length=2))
    for order in ("confidence", "entropy"):
        one = generate(model, prompt, gen_length=4, steps=1, block_length=4, order=order)
        assert torch.equal(one, generate(model, prompt, gen_length=4, steps=1, block_length=4))


def test_lengths_must_fit(model):
    prompt = torch.tensor([[1]])
    with pytest.raises(ParameterError, match="block_length"):
        generate(model, prompt, gen_length=5, steps=5, block_length=2)
    with pytest.raises(ParameterError, match="steps"):
        generate(model, prompt, gen_length=4, steps=3, block_length=2)
    with pytest.raises(ParameterError, match="order"):
        generate(model, prompt, gen_length=4, steps=4, block_length=4, order="random")


def test_gumbel_draws_from_the_softmax():
    logits = torch.log(torch.tensor([0.1, 0.2, 0.7]))
    assert gumbel(logits, 0.0) is logits
    draws = gumbel(logits.expand(20_000, 3), 1.0, torch.Generator().manual_seed(0)).argmax(-1)
    share = torch.bincount(draws, minlength=3).double() / 20_000
    assert share.sub(logits.exp()).abs().max() < 0.015


def test_one_token_is_exact_with_one_draw(model):
    prefix, target = torch.tensor([1, 2, 3]), torch.tensor([5])
    given_ids = torch.tensor([[1, 2, 3, model.mask_id]])
    exact = float(model(given_ids)[0, 3].double().log_softmax(-1)[5])
    assert float(loglikelihood(model, prefix, target, mc_num=1)) == pytest.approx(exact, rel=1e-5)


def test_a_uniform_model_scores_length_times_log_v_for_every_draw(model):
    torch.manual_seed(1)
    flat = MaskedDiffusionLM(vocab_size=9, width=16, blocks=2, heads=2).requires_grad_(False)
    flat.lm_head.weight.zero_()
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        found = loglikelihood(flat, torch.tensor([1]), torch.tensor([2, 3, 4, 5]), mc_num=3, generator=generator)
        assert float(found) == pytest.approx(-4 * math.log(9), rel=1e-5)


def test_masks_hold_their_number_and_spare_the_prefix():
    spy = Spy(vocab_size=9, width=16, blocks=2, heads=2)
    spy.seen = []
    prefix, target = torch.tensor([1, 2, 3]), torch.tensor([4, 5, 6, 7])
    loglikelihood(spy, prefix, target, mc_num=8, batch=4, generator=torch.Generator().manual_seed(0))
    rows = torch.cat(spy.seen)
    assert len(rows) == 8
    assert torch.equal(rows[:, :3], prefix.expand(8, 3))
    masked = (rows[:, 3:] == spy.mask_id).sum(1)
    for part in masked.split(4):
        assert sorted(part.tolist()) == [1, 2, 3, 4]


def test_the_estimate_is_unbiased_and_its_error_falls_with_the_root_of_the_draws(model):
    prefix, target = torch.tensor([1, 2]), torch.tensor([3, 4, 5])
    subsets = [[i for i in range(3) if k >> i & 1] for k in range(1, 8)]
    exact = 0.0
    for subset in subsets:  # the mean over m of the mean over subsets of m masked tokens
        ids = torch.cat((prefix, target))[None].clone()
        ids[0, [2 + i for i in subset]] = model.mask_id
        logp = model(ids)[0].double().log_softmax(-1)
        ways = math.comb(3, len(subset))
        exact += sum(float(logp[2 + i, target[i]]) for i in subset) * 3 / len(subset) / ways / 3
    generator = torch.Generator().manual_seed(0)

    def draws(mc_num: int) -> torch.Tensor:
        rows = [loglikelihood(model, prefix, target, mc_num=mc_num, batch=1, generator=generator) for _ in range(100)]
        return torch.stack(rows)

    few, many = draws(1), draws(16)
    assert abs(float(many.mean()) - exact) < 4 * float(many.std()) / 100**0.5
    assert 3.0 < float(few.std() / many.std()) < 5.3


def test_options_share_their_masks(model):
    prefix = torch.tensor([[1, 2], [1, 2]])
    target = torch.tensor([[3, 4, 5], [3, 4, 5]])
    found = loglikelihood(model, prefix, target, mc_num=2, batch=2, generator=torch.Generator().manual_seed(3))
    assert float(found[0]) == pytest.approx(float(found[1]), rel=1e-6)
    with pytest.raises(ParameterError, match="mc_num"):
        loglikelihood(model, prefix, target, mc_num=6, batch=4)
    with pytest.raises(ParameterError, match="empty"):
        loglikelihood(model, prefix, target[:, :0])
