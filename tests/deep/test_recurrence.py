"""The recurrence equals a plain loop, and its gradient equals autograd's through that loop."""

import torch

from skerry.deep.recurrence import linear_recurrence


def loop(a, b, initial):
    states = []
    for decay, step in zip(a, b, strict=True):
        initial = decay * initial + step
        states.append(initial)
    return torch.stack(states)


def data(seed, steps=7):
    generator = torch.Generator().manual_seed(seed)
    a = torch.rand(steps, 2, 3, generator=generator, dtype=torch.float64)
    b = torch.randn(steps, 2, 3, generator=generator, dtype=torch.float64)
    return a, b, torch.randn(2, 3, generator=generator, dtype=torch.float64)


def test_it_is_the_loop():
    a, b, h = data(0)
    torch.testing.assert_close(linear_recurrence(a, b, h), loop(a, b, h))
    torch.testing.assert_close(linear_recurrence(a, b), loop(a, b, torch.zeros_like(h)))


def test_its_gradient_is_the_loops():
    ours, theirs = ([x.clone().requires_grad_() for x in data(1)] for _ in range(2))
    weight = torch.randn(7, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    (linear_recurrence(*ours) * weight).sum().backward()
    (loop(*theirs) * weight).sum().backward()
    for x, y in zip(ours, theirs, strict=True):
        torch.testing.assert_close(x.grad, y.grad)


def test_inputs_stay():
    a, b, h = data(3)
    kept = [x.clone() for x in (a, b, h)]
    linear_recurrence(a, b, h)
    assert all(torch.equal(x, y) for x, y in zip((a, b, h), kept, strict=True))
