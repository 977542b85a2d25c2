"""The chain does what it is told: bigrams elsewhere, copies after triggers."""

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra 'deep'")

import torch

from skerry.core.errors import DataError, ParameterError
from skerry.train.backcopy import Backcopy

TEXT = "the cat sat on the mat and the hat was that of the cat that ate the rat "


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def test_after_a_trigger_the_token_before_it_comes_again():
    task = Backcopy(TEXT, n_triggers=2)
    x, y = task.batch(300, 20, draw())
    assert (x[:, 0] == task.vocabulary - 1).all() and not (x[:, 1:] == task.vocabulary - 1).any()
    assert torch.equal(x[:, 1:], y[:, :-1])
    on = torch.isin(x, task.triggers)
    on[:, :2] = False  # what stands before is the begin-of-sequence token
    before = torch.roll(x, 1, dims=1)
    assert torch.equal(y[on], before[on]) and on.sum() > 500
    assert set(task.triggers.tolist()) == {task.alphabet.index(c) for c in " t"}


def test_elsewhere_it_follows_the_bigrams():
    task = Backcopy(TEXT, n_triggers=2)
    x, y = task.batch(4000, 20, draw())
    free = ~torch.isin(x, task.triggers)
    h = task.alphabet.index("h")
    seen = y[free & (x == h)]
    counts = np.bincount(seen, minlength=task.vocabulary - 1) / len(seen)
    assert counts == pytest.approx(task.table[h].numpy(), abs=0.05)  # a thousand draws
    first = np.bincount(x[:, 1], minlength=task.vocabulary - 1) / len(x)
    frequency = np.array([TEXT.count(c) for c in task.alphabet]) / len(TEXT)
    assert first == pytest.approx(frequency, abs=0.03)


def naive(task, n, length, seed):
    u = torch.rand(length + 1, n, 1, generator=draw(seed), dtype=torch.float64).numpy()[..., 0]
    table = np.vstack([task.table.numpy(), task._cumulated[-1].diff(prepend=torch.zeros(1)).numpy()])
    out = np.zeros((n, length + 1), dtype=int)
    for i in range(n):
        out[i, 0] = task.vocabulary - 1
        for t in range(1, length + 1):
            current = out[i, t - 1]
            if t >= 2 and current in task.triggers.tolist() and out[i, t - 2] != task.vocabulary - 1:
                out[i, t] = out[i, t - 2]
            else:
                out[i, t] = int(np.searchsorted(np.cumsum(table[current]), u[t, i]))
    return out


def test_naive_twin():
    task = Backcopy(TEXT)
    assert torch.equal(task.batch(20, 15, draw(3))[0], torch.tensor(naive(task, 20, 15, 3))[:, :-1])


def test_without_a_first_token_and_without_triggers():
    task = Backcopy(TEXT, n_triggers=0, bos=False)
    x, _ = task.batch(50, 10, draw())
    assert not (x == task.vocabulary - 1).any() and len(task.triggers) == 0


def test_equal_generators_give_equal_batches():
    task = Backcopy(TEXT)
    assert torch.equal(task.batch(4, 9, draw(1))[1], task.batch(4, 9, draw(1))[1])
    assert not torch.equal(task.batch(4, 9, draw(1))[1], task.batch(4, 9, draw(2))[1])


def test_poor_texts_are_refused():
    with pytest.raises(DataError, match="1 distinct"):
        Backcopy("aaaa")
    with pytest.raises(ParameterError, match="n_triggers"):
        Backcopy(TEXT, n_triggers=-1)
