"""UnifiedNorm against a twin written from the pseudo-code, and the invariants and golden values of its brief."""

import math

import pytest

pytest.importorskip("torch", reason="needs the extra 'deep'")

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from skerry.train.nn import UnifiedNorm

F64 = torch.float64


def rand(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


class Twin:
    """The pseudo-code of the brief, one channel at a time, in plain numbers."""

    def __init__(self, channels, window, warmup, ratio_warmup, filtration, momentum, eps, protect=False):
        self.c, (self.mf, self.mb) = channels, window
        self.warmup, self.ratio_warmup, self.filtration = warmup, ratio_warmup, filtration
        self.rho, self.eps, self.protect = momentum, eps, protect
        self.v, self.e = [1.0] * channels, [0.0] * channels
        self.F = [[0.0] * channels for _ in range(self.mf)]
        self.G = [[0.0] * channels for _ in range(self.mb)]
        self.it = self.skips = 0

    def forward(self, x, w, b):  # x: list of tokens, each a list of channels
        self.it += 1
        n = len(x)
        x2 = [sum(row[c] ** 2 for row in x) / n for c in range(self.c)]
        roots = [math.sqrt(f) for row in self.F for f in row]
        mean = sum(roots) / len(roots)
        thr = sum((q - mean) ** 2 for q in roots) / (len(roots) - 1)
        slot = self.it % self.mf
        self.F[slot] = list(x2)
        skip = self.mf == 1
        gm = None
        if self.it >= self.warmup or self.it > self.mf:
            gm = [math.exp(sum(math.log(row[c]) for row in self.F) / self.mf) for c in range(self.c)]
        if self.it >= self.warmup and self.filtration:
            am = [sum(row[c] for row in self.F) / self.mf for c in range(self.c)]
            if any(am[c] - gm[c] > self.mf * thr for c in range(self.c)):
                self.F[slot] = list(self.v)
                skip = True
                self.skips += 1
        var = x2 if self.it <= self.mf or self.it < self.warmup or skip else gm
        r = [1.0] * self.c
        if not (self.it <= self.ratio_warmup or skip):
            r = [
                min(5.0, max(0.2, math.sqrt(var[c] + self.eps) / math.sqrt(self.v[c] + self.eps)))
                for c in range(self.c)
            ]
        z = [[row[c] / math.sqrt(var[c] + self.eps) for c in range(self.c)] for row in x]
        self.saved = z, var, r, skip, w
        if not (skip and self.protect and self.mf > 1):  # protection is from outliers
            self.v = [self.rho * self.v[c] + (1 - self.rho) * var[c] for c in range(self.c)]
        return [[w[c] * row[c] + b[c] for c in range(self.c)] for row in z]

    def backward(self, gy):
        z, var, r, skip, w = self.saved
        n = len(z)
        dx, dw, db = [[0.0] * self.c for _ in z], [0.0] * self.c, [0.0] * self.c
        gz = [sum(gy[i][c] * w[c] * r[c] * z[i][c] for i in range(n)) / n for c in range(self.c)]
        self.G[self.it % self.mb] = list(self.e) if skip else list(gz)
        for c in range(self.c):
            plain = self.it <= self.mb or self.it < self.warmup or skip
            m = gz[c] if plain else sum(row[c] for row in self.G) / self.mb
            self.e[c] = self.rho * self.e[c] + (1 - self.rho) * m
            stat = m if skip else self.e[c]
            for i in range(n):
                dx[i][c] = (gy[i][c] * w[c] * r[c] - stat * z[i][c]) / math.sqrt(var[c] + self.eps)
            dw[c] = sum(gy[i][c] * r[c] * z[i][c] for i in range(n))
            db[c] = sum(gy[i][c] for i in range(n))
        return dx, dw, db


@pytest.mark.parametrize("window", [(3, 3), (4, 2), (1, 1), (2, 5)])
@pytest.mark.parametrize(("filtration", "protect"), [(False, False), (True, False), (True, True)])
def test_the_twin_agrees_at_every_step(window, filtration, protect):
    c = 3
    settings = {"ratio_warmup": 9, "outlier_filtration": filtration, "protect_running": protect, "momentum": 0.8}
    norm = UnifiedNorm(c, window, 6, **settings).double()
    with torch.no_grad():
        norm.weight.copy_(rand(c, seed=90))
        norm.bias.copy_(rand(c, seed=91))
    twin = Twin(c, window, 6, 9, filtration, 0.8, 1e-5, protect)
    for step in range(20):
        x = (rand(2, 4, c, seed=step) * (1 + 0.4 * rand(c, seed=50 + step).abs())).requires_grad_()
        if step in (12, 16):
            x = (40 * x).detach().requires_grad_()
        y, gy = norm(x), rand(2, 4, c, seed=100 + step)
        for p in norm.parameters():
            p.grad = None
        y.backward(gy)
        expected = twin.forward(x.reshape(-1, c).tolist(), norm.weight.tolist(), norm.bias.tolist())
        dx, dw, db = twin.backward(gy.reshape(-1, c).tolist())
        for got, wanted in ((y, expected), (x.grad, dx), (norm.weight.grad, dw), (norm.bias.grad, db)):
            torch.testing.assert_close(
                got.reshape(-1, c).squeeze(0), torch.tensor(wanted, dtype=F64), rtol=1e-9, atol=1e-9
            )
        torch.testing.assert_close(norm.running_var, torch.tensor(twin.v, dtype=F64))
        torch.testing.assert_close(norm.gradient_ema, torch.tensor(twin.e, dtype=F64))
        torch.testing.assert_close(norm.forward_buffer, torch.tensor(twin.F, dtype=F64))
        torch.testing.assert_close(norm.gradient_buffer, torch.tensor(twin.G, dtype=F64))
    assert norm.iteration == 20 and norm.skip_counter == twin.skips
    assert (twin.skips > 0) == (filtration and window[0] > 1)


def golden(**settings):
    norm = UnifiedNorm(2, 2, 3, outlier_filtration=True, **settings).double()
    norm.forward_buffer.copy_(torch.tensor([[1, 4], [1.21, 3.61]], dtype=F64))
    norm.running_var.copy_(torch.tensor([1.1, 3.8], dtype=F64))
    norm.iteration.fill_(100)  # the next step writes the second row
    return norm


def test_golden_values_of_the_bound():
    norm = golden()
    torch.testing.assert_close(norm.forward_buffer.log().mean(0).exp(), torch.tensor([1.1, 3.8], dtype=F64))
    assert norm.forward_buffer.sqrt().var().item() == pytest.approx(0.273333, abs=5e-7)
    row = torch.tensor([100, 3.8], dtype=F64)
    x = row.sqrt() * torch.tensor([[1], [-1]], dtype=F64)
    y = norm(x)
    assert norm.skip_counter == 1
    torch.testing.assert_close(norm.forward_buffer[1], torch.tensor([1.1, 3.8], dtype=F64))
    torch.testing.assert_close(y, x / (row + 1e-5).sqrt())  # smoothed by nothing
    torch.testing.assert_close(norm.running_var, 0.9 * torch.tensor([1.1, 3.8], dtype=F64) + 0.1 * row)
    # the two differences that the bound of 0.546667 is held against
    rows = torch.tensor([[1, 4], [100, 3.8]], dtype=F64)
    difference = rows.mean(0) - rows.log().mean(0).exp()
    assert difference.tolist() == pytest.approx([40.5, 0.00128], abs=5e-6)
    calm = golden()
    calm(torch.tensor([1.2, 3.8], dtype=F64).sqrt() * torch.tensor([[1], [-1]], dtype=F64))
    assert calm.skip_counter == 0


def test_the_bound_for_each_channel_is_stricter():
    row = torch.tensor([2.0, 3.8], dtype=F64).sqrt() * torch.tensor([[1], [-1]], dtype=F64)
    loose, strict = golden(), golden(threshold="channel")
    loose(row), strict(row)
    # AM - GM of (1, 2) is 0.0858: within the global 0.546667, beyond 2 Var(1, 1.1) = 0.01
    assert loose.skip_counter == 0 and strict.skip_counter == 1


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=8))
@settings(max_examples=200, deadline=None)
def test_the_inequality_that_the_filter_rests_on(values):
    x = torch.tensor(values, dtype=F64)
    gap = x.mean() - x.log().mean().exp()
    spread = x.sqrt().var(correction=0)
    rounding = 1e-12 * x.max()
    assert spread - rounding <= gap <= len(x) * spread + rounding


def test_golden_value_of_inference():
    norm = UnifiedNorm(1, eps=0.0).eval()
    norm.running_var.fill_(4.0)
    nn.init.constant_(norm.weight, 2.0)
    nn.init.constant_(norm.bias, 1.0)
    assert norm(torch.tensor([[3.0]])).item() == 4


@pytest.mark.parametrize("window", [1, 4])
def test_before_the_end_of_the_warm_up_it_is_the_plain_second_moment(window):
    norm = UnifiedNorm(5, window, 100).double()
    for step in range(8):
        x = 3 * rand(2, 7, 5, seed=step)
        torch.testing.assert_close(norm(x), x / (x.square().mean((0, 1)) + 1e-5).sqrt(), rtol=1e-12, atol=1e-12)


def test_with_a_window_of_one_it_stays_the_plain_second_moment():
    norm = UnifiedNorm(5, 1, 3, ratio_warmup=3, outlier_filtration=True).double()
    for step in range(12):
        x = (1 + step) * rand(2, 7, 5, seed=step)
        torch.testing.assert_close(norm(x), x / (x.square().mean((0, 1)) + 1e-5).sqrt(), rtol=1e-12, atol=1e-12)
    assert norm.skip_counter == 0


def test_smoothing_sets_in_with_the_end_of_the_warm_up():
    norm = UnifiedNorm(3, 4, 6, ratio_warmup=100).double()
    moments = []
    for step in range(1, 9):
        x = step * rand(5, 3, seed=step)
        moments.append(x.square().mean(0))
        var = moments[-1] if step < 6 else torch.stack(moments[-4:]).log().mean(0).exp()
        torch.testing.assert_close(norm(x), x / (var + 1e-5).sqrt(), rtol=1e-12, atol=1e-12)


def test_the_ratio_is_clamped_and_waits_for_its_own_warm_up():
    norm = UnifiedNorm(3, 2, 3, ratio_warmup=6).double()
    for step in range(1, 9):
        sizes = torch.tensor([1.0, 1.0, 1.0] if step < 7 else [100.0, 1.0, 1e-4], dtype=F64)
        y = norm((rand(64, 3, seed=3) * sizes).requires_grad_())
        ratio = y.grad_fn.saved_tensors[3]
        if step <= 6:
            assert (ratio == 1).all()
    assert ratio[0] == 5 and ratio[2] == 0.2 and 0.5 < ratio[1] < 2


def test_the_mean_is_not_subtracted():
    x = 5 + rand(2, 7, 3)
    assert (UnifiedNorm(3).double()(x).mean((0, 1)) > 0.9).all()


def test_a_constant_stream_is_never_skipped_and_its_ratio_goes_to_one():
    for threshold in ("global", "channel"):
        norm = UnifiedNorm(4, 3, 5, ratio_warmup=5, outlier_filtration=True, threshold=threshold)
        x = rand(2, 8, 4, dtype=torch.float32) * torch.tensor([1.0, 3.0, 0.1, 20.0])
        for _ in range(200):
            y = norm(x.requires_grad_())
        assert norm.skip_counter == 0
        x2 = x.square().mean((0, 1))
        torch.testing.assert_close(norm.forward_buffer, x2.expand(3, 4))
        torch.testing.assert_close(norm.running_var, x2, rtol=2e-5, atol=0)
        torch.testing.assert_close(y.grad_fn.saved_tensors[3], torch.ones(4), rtol=2e-5, atol=0)
        torch.testing.assert_close(norm.eval()(x), y, rtol=1e-4, atol=1e-5)


def test_the_geometric_mean_never_exceeds_the_arithmetic_one():
    norm = UnifiedNorm(4, 4, 5).double()
    for step in range(12):
        norm(rand(3, 4, seed=step))
        assert (norm.forward_buffer.clamp_min(1e-12).log().mean(0).exp() <= norm.forward_buffer.mean(0) + 1e-15).all()


def test_finite_differences_where_the_gradient_is_exact():
    norm = UnifiedNorm(3, 1, 2).double()  # window 1: nothing is smoothed

    def run(x, weight, bias):
        return torch.func.functional_call(norm, {"weight": weight, "bias": bias}, (x,))

    inputs = [t.requires_grad_() for t in (2 * rand(2, 4, 3), rand(3, seed=1), rand(3, seed=2))]
    assert torch.autograd.gradcheck(run, inputs)
    norm.freeze_stats()  # a constant scale
    norm.running_var.copy_(rand(3, seed=3).abs())
    assert torch.autograd.gradcheck(run, inputs)
    norm.freeze_stats(False)
    assert torch.autograd.gradcheck(run, inputs)
    norm.eval()
    assert torch.autograd.gradcheck(run, inputs)


def test_the_exact_gradient_is_orthogonal_to_the_normalised_input():
    norm, x = UnifiedNorm(3, 1, 2).double(), rand(5, 4, 3).requires_grad_()
    y = norm(x)
    y.backward(rand(5, 4, 3, seed=1))
    torch.testing.assert_close((x.grad * y).sum((0, 1)), torch.zeros(3, dtype=F64), atol=1e-4, rtol=0)
    tight = UnifiedNorm(3, 1, 2, eps=1e-12).double()
    x.grad = None
    y = tight(x)
    y.backward(rand(5, 4, 3, seed=1))
    torch.testing.assert_close((x.grad * y).sum((0, 1)), torch.zeros(3, dtype=F64), atol=1e-10, rtol=0)


def test_the_scale_of_the_input_is_forgotten():
    a, b = (UnifiedNorm(4, 4, 5, ratio_warmup=5, eps=1e-12).double() for _ in range(2))
    for step in range(160):
        x = rand(16, 4, seed=step)
        ya, yb = a(x), b(30 * x if step >= 10 else x)
        if step >= 10 + 4:
            torch.testing.assert_close(ya, yb, rtol=1e-3, atol=1e-3)
    x = rand(16, 4, seed=999)
    torch.testing.assert_close(a.eval()(x), b.eval()(30 * x), rtol=1e-3, atol=1e-3)


def bad_batch(filtration, protect=False, bad=True):
    """Training outputs around one batch of a hundredfold size at step 30."""
    norm = UnifiedNorm(6, 4, 8, ratio_warmup=8, outlier_filtration=filtration, protect_running=protect).double()
    scales, outputs, skips = torch.linspace(0.5, 2.0, 6, dtype=F64), [], []
    for step in range(60):
        x = rand(4096, 6, seed=step) * scales
        outputs.append(norm(100 * x if bad and step == 30 else x))
        skips.append(norm.skip_counter.item())
        if step == 30:
            slot, running = norm.forward_buffer[(step + 1) % 4].clone(), norm.running_var.clone()
    return norm, outputs, skips, slot, running


def change(a, b):
    return ((a - b).abs().max() / b.abs().max()).item()


@pytest.mark.parametrize("protect", [False, True])
def test_the_filter_takes_a_bad_batch_out(protect):
    calm, good, skips, _, _ = bad_batch(True, protect, bad=False)
    assert skips[-1] == 0
    norm, outputs, skips, slot, running = bad_batch(True, protect)
    assert skips[29] == 0 and skips[30] == 1
    assert (slot < 5).all()  # the running statistic stands where the bad row would
    assert change(outputs[31], good[31]) < 0.05
    if protect:
        assert skips[-1] == 1
        assert (running < 5).all()
        x = rand(64, 6, seed=77)
        assert change(norm.eval()(x), calm.eval()(x)) < 0.01


def test_a_protected_statistic_forgets_a_bad_batch_in_a_stream_that_repeats():
    x = rand(64, 6, seed=5) * torch.linspace(0.5, 2.0, 6, dtype=F64)
    outputs = []
    for bad in (False, True):
        norm = UnifiedNorm(6, 4, 8, outlier_filtration=True, protect_running=True).double()
        for step in range(200):
            y = norm(100 * x if bad and step == 190 else x)
        assert norm.skip_counter == bad
        outputs += [y, norm.eval()(x)]
    assert change(outputs[2], outputs[0]) < 1e-3 and change(outputs[3], outputs[1]) < 1e-3


def test_without_the_filter_a_bad_batch_stays_for_the_window():
    _, good, _, _, _ = bad_batch(False, bad=False)
    _, outputs, _, _, _ = bad_batch(False)
    changes = [change(a, b) for a, b in zip(outputs, good, strict=True)]
    assert max(changes[:30]) == 0
    assert min(changes[31:34]) > 0.5
    assert max(changes[34:]) < 1e-9
