"""UnifiedNorm in use: saving, masks, precision, compilation, activation checkpointing, a small training."""

import copy

import pytest

pytest.importorskip("torch", reason="needs the extra 'deep'")

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from skerry.core.errors import DataError, ParameterError
from skerry.train.nn import UnifiedNorm

F64 = torch.float64


def rand(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def test_a_step_after_loading_is_the_same_bit_by_bit():
    settings = {"window": 3, "warmup": 5, "ratio_warmup": 6, "outlier_filtration": True}
    norm = UnifiedNorm(4, **settings)

    def step(module, seed):
        x = rand(8, 4, seed=seed, dtype=torch.float32).requires_grad_()
        y = module(x)
        y.square().sum().backward()
        return y, x.grad

    for seed in range(10):
        step(norm, seed)
    again = UnifiedNorm(4, **settings)
    again.load_state_dict(norm.state_dict())
    twin = copy.deepcopy(norm)
    for seed in range(10, 14):
        y, grad = step(norm, seed)
        for other in (again, twin):
            assert all(torch.equal(a, b) for a, b in zip(step(other, seed), (y, grad), strict=True))
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in norm.state_dict().items())


def test_padding_is_left_out_of_the_forward_statistics():
    x = rand(2, 6, 3)
    pad = torch.zeros(2, 6, dtype=torch.bool)
    pad[1, 3:] = True
    x[pad] = 1e3
    a, b = UnifiedNorm(3).double(), UnifiedNorm(3).double()
    y = a(x, pad)
    torch.testing.assert_close(y[~pad], b(x[~pad]))
    torch.testing.assert_close(a.running_var, b.running_var)
    assert torch.isfinite(UnifiedNorm(3).double()(x, torch.ones_like(pad))).all()
    with pytest.raises(DataError, match="pad_mask has 6 tokens and x has 12"):
        a(x, pad[0])


def test_padding_takes_part_in_the_gradient_statistic():
    x, pad, gy = rand(2, 6, 3), torch.zeros(2, 6, dtype=torch.bool), rand(2, 6, 3, seed=1)
    pad[1, 3:] = True
    norm = UnifiedNorm(3, eps=1e-12).double()
    y = norm(x.requires_grad_(), pad)
    y.backward(gy)
    gz = (gy * y.detach()).mean((0, 1))  # over all twelve tokens, as the paper's code has it
    torch.testing.assert_close(norm.gradient_ema, 0.1 * gz)
    assert (norm.gradient_ema - 0.1 * (gy * y.detach())[~pad].mean(0)).abs().max() > 1e-3


def test_micro_batches_count_as_steps_and_frozen_ones_do_not():
    norm = UnifiedNorm(3, 2, 4).double()
    for seed in range(3):
        norm(rand(4, 3, seed=seed).requires_grad_()).sum().backward()
    assert norm.iteration == 3
    norm.freeze_stats()
    before = {k: v.clone() for k, v in norm.state_dict().items()}
    x = rand(4, 3, seed=9).requires_grad_()
    y = norm(x)
    y.sum().backward()
    assert all(torch.equal(v, before[k]) for k, v in norm.state_dict().items())
    scale, shift = norm.inference_scale()
    torch.testing.assert_close(y, x * scale + shift)
    torch.testing.assert_close(x.grad, scale.expand(4, 3))  # a constant scale, and its plain derivative


def test_a_large_gradient_does_not_touch_the_forward_statistics():
    a, b = UnifiedNorm(3, 2, 4).double(), UnifiedNorm(3, 2, 4).double()
    for step in range(8):
        x = rand(16, 3, seed=step)
        for norm, size in ((a, 1.0), (b, 1e6)):
            norm(x.clone().requires_grad_()).backward(size * rand(16, 3, seed=50 + step))
    torch.testing.assert_close(a.running_var, b.running_var, rtol=0, atol=0)
    torch.testing.assert_close(1e6 * a.gradient_ema, b.gradient_ema)


def test_settings_for_a_short_training():
    short, long, noisy = (UnifiedNorm.for_steps(4, s, t) for s, t in ((50, None), (40_000, 4096), (3000, 300)))
    assert (short.warmup, short.ratio_warmup, len(short.forward_buffer)) == (20, 20, 4)
    assert (long.warmup, long.ratio_warmup, len(long.forward_buffer)) == (4000, 4000, 4)
    assert (noisy.warmup, len(noisy.forward_buffer), len(noisy.gradient_buffer)) == (300, 8, 8)
    chosen = UnifiedNorm.for_steps(4, 100, 64, window=2, outlier_filtration=True, momentum=0.5)
    assert len(chosen.forward_buffer) == 2 and chosen.outlier_filtration and chosen.momentum == 0.5
    assert len(UnifiedNorm.for_steps(4, 100, 64).forward_buffer) == 16
    for steps, tokens in ((0, None), (10, 0)):
        with pytest.raises(ParameterError, match="give 1 or more"):
            UnifiedNorm.for_steps(4, steps, tokens)


def test_before_training_evaluation_is_the_identity_and_it_changes_no_statistic():
    norm = UnifiedNorm(3, eps=0.0).eval()
    x = rand(4, 3, dtype=torch.float32)
    assert torch.equal(norm(x), x)
    assert norm.iteration == 0 and (norm.running_var == 1).all()


def test_evaluation_is_causal_and_training_is_not():
    norm, x = UnifiedNorm(3).double(), rand(1, 5, 3).requires_grad_()
    (grad,) = torch.autograd.grad(norm(x)[0, 0].sum(), x)
    y = norm.eval()(x)
    (calm,) = torch.autograd.grad(y[0, 0].sum(), x)
    assert (calm[0, 1:] == 0).all()
    train = UnifiedNorm(3, 1, 2).double()
    (grad,) = torch.autograd.grad(train(x)[0, 0].sum(), x)
    assert (grad[0, 1:] != 0).any()  # the statistic of the batch holds the tokens to come


def test_dead_channels_stay_finite():
    norm = UnifiedNorm(3, 2, 4, ratio_warmup=4, outlier_filtration=True)
    for step in range(10):
        x = rand(8, 3, seed=step, dtype=torch.float32)
        x[:, 1] = 0
        x.requires_grad_()
        y = norm(x)
        y.square().sum().backward()
        assert torch.isfinite(y).all() and torch.isfinite(x.grad).all() and (y[:, 1] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_wide_statistics(dtype):
    norm = UnifiedNorm(3, 2, 4).to(dtype)
    assert norm.weight.dtype == dtype and norm.running_var.dtype == norm.gradient_ema.dtype == torch.float32
    x = torch.full((4, 3), 1000.0, dtype=dtype, requires_grad=True)  # its square is beyond float16
    y = norm(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y, torch.ones_like(y))
    y.sum().backward()
    assert x.grad.dtype == norm.weight.grad.dtype == dtype and torch.isfinite(x.grad).all()
    assert norm.eval()(x).dtype == dtype


def test_autocast_changes_no_statistic():
    a, b = UnifiedNorm(3), UnifiedNorm(3)
    x = rand(16, 3, dtype=torch.float32)
    y = a(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(b(x), y)
        half = UnifiedNorm(3)(x.bfloat16())
    assert half.dtype == torch.bfloat16 and torch.equal(a.running_var, b.running_var)
    torch.testing.assert_close(half.float(), y, atol=2e-2, rtol=2e-2)


def test_two_forward_passes_may_precede_their_backward_passes():
    norm = UnifiedNorm(3, 2, 4).double()
    x1, x2 = (rand(4, 3, seed=s).requires_grad_() for s in (1, 2))
    (norm(x1).square().sum() + norm(x2).square().sum()).backward()
    assert torch.isfinite(x1.grad).all() and torch.isfinite(x2.grad).all() and norm.iteration == 2


def test_a_second_derivative_is_refused_not_wrong():
    x = rand(4, 3).requires_grad_()
    (grad,) = torch.autograd.grad(UnifiedNorm(3).double()(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_repeats_a_step_without_counting_it(reentrant):
    plain = nn.Sequential(nn.Linear(4, 4), UnifiedNorm(4, 3, 4, ratio_warmup=4, outlier_filtration=True), nn.ReLU())
    plain, again = plain.double(), copy.deepcopy(plain).double()
    for step in range(10):
        x, grads = rand(8, 4, seed=step), []
        for net in (plain, again):
            leaf = x.clone().requires_grad_()
            net.zero_grad()
            y = checkpoint(net, leaf, use_reentrant=reentrant) if net is again else net(leaf)
            y.square().sum().backward()
            grads.append((leaf.grad, *[p.grad for p in net.parameters()]))
        torch.testing.assert_close(grads[1], grads[0])
    assert again[1].iteration == 10
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(again.state_dict()[key], value)


def test_a_mask_may_be_set_beforehand():
    x, pad = rand(2, 6, 3), torch.zeros(2, 6, dtype=torch.bool)
    pad[0, 2:] = True
    a, b = UnifiedNorm(3).double(), UnifiedNorm(3).double()
    a.pad_mask = pad
    assert torch.equal(a(x), b(x, pad))
    assert torch.equal(a(x, torch.zeros_like(pad)), b(x))


def test_a_small_network_learns_and_evaluates_as_it_trained():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 32), UnifiedNorm(32, 4, 20, ratio_warmup=20), nn.ReLU(), nn.Linear(32, 3))
    centres, optimizer = 2 * rand(3, 8, seed=1, dtype=torch.float32), torch.optim.Adam(net.parameters(), lr=1e-2)
    for step in range(150):
        y = torch.arange(96) % 3
        x = centres[y] + rand(96, 8, seed=step, dtype=torch.float32)
        loss = nn.functional.cross_entropy(net(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x = centres[y] + rand(96, 8, seed=999, dtype=torch.float32)
    with torch.no_grad():
        train, evaluated = net(x), net.eval()(x)
    assert (evaluated.argmax(1) == y).float().mean() > 0.95
    gap = nn.functional.cross_entropy(evaluated, y) - nn.functional.cross_entropy(train, y)
    assert gap.abs() < 0.05


def test_compiled_training_is_the_same_and_one_graph():
    a = UnifiedNorm(6, 3, 5, ratio_warmup=6, outlier_filtration=True)
    b = copy.deepcopy(a)
    compiled = torch.compile(b, backend="aot_eager", fullgraph=True)
    for step in range(12):
        x = rand(4, 5, 6, seed=step, dtype=torch.float32) * (30 if step == 9 else 1)
        g = rand(4, 5, 6, seed=100 + step, dtype=torch.float32)
        outputs = []
        for module in (a, compiled):
            leaf = x.clone().requires_grad_()
            y = module(leaf)
            y.backward(g)
            outputs.append((y, leaf.grad))
        torch.testing.assert_close(outputs[1], outputs[0])
    assert a.skip_counter == b.skip_counter > 0
    for key, value in a.state_dict().items():
        torch.testing.assert_close(b.state_dict()[key], value)
    a.eval(), b.eval()
    torch.testing.assert_close(compiled(x), a(x))


@pytest.mark.parametrize(
    "wrong",
    [{"dim": 0}, {"window": 0}, {"window": 5, "warmup": 5}, {"threshold": "token"}, {"momentum": 1.0}],
)
def test_wrong_arguments_are_refused(wrong):
    with pytest.raises(ParameterError):
        UnifiedNorm(**{"dim": 4, **wrong})
