"""Batches by number: the same whenever asked, never from the part held out."""

import pytest

pytest.importorskip("torch", reason="needs the extra 'deep'")

import torch

from skerry.core.errors import DataError
from skerry.train.lab_data import IGNORE, BackcopyTask, ByteWindows, Images, MaskedWindows

TEXT = bytes(range(97, 123)) * 40


def images(n=40):
    draw = torch.Generator().manual_seed(0)
    x = torch.randint(256, (n, 3, 8, 8), generator=draw, dtype=torch.uint8)
    return Images((x[:30], torch.arange(30) % 4), (x[30:], torch.arange(n - 30) % 4), 4)


TASKS = [
    BackcopyTask(TEXT.decode(), seq_len=10),
    ByteWindows(TEXT, seq_len=10),
    MaskedWindows(TEXT, seq_len=10),
    images(),
]


@pytest.mark.parametrize("task", TASKS, ids=lambda t: type(t).__name__)
def test_batches_by_number(task):
    x, y = task.batch(7, 4, seed=1)
    again = task.batch(7, 4, seed=1)
    assert torch.equal(x, again[0]) and torch.equal(y, again[1]) and len(x) == len(y) == 4
    assert not torch.equal(x, task.batch(8, 4, seed=1)[0])
    assert not torch.equal(x, task.batch(7, 4, seed=2)[0])
    held = task.validation(2, 4)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(held, task.validation(2, 4), strict=True))
    assert not torch.equal(held[0][0], held[1][0])


def test_held_out_text_is_never_trained_on():
    text = b"a" * 900 + b"b" * 100
    task = ByteWindows(text, seq_len=10, held_out=0.1)
    for k in range(50):
        x, y = task.batch(k, 8, seed=0)
        assert (x[:, 1:] == 97).all() and (y == 97).all() and (x[:, 0] == 256).all()
    assert all((y == 98).all() for _, y in task.validation(5, 8))
    assert (ByteWindows(text, seq_len=10, bos=False).batch(0, 8, 0)[0] == 97).all()


def test_masking_as_in_bert():
    task = MaskedWindows(TEXT * 4, seq_len=50)
    x, y = task.batch(0, 400, seed=0)
    plain, _ = ByteWindows(TEXT * 4, seq_len=50).batch(0, 400, seed=0)
    chosen = y != IGNORE
    assert chosen.float().mean() == pytest.approx(0.147, abs=0.01)  # 15 % of 49 in 50
    assert torch.equal(y[chosen], plain[chosen]) and torch.equal(x[~chosen], plain[~chosen])
    assert (x[chosen] == 257).float().mean() == pytest.approx(0.8, abs=0.03)
    assert (x[chosen] == y[chosen]).float().mean() == pytest.approx(0.1, abs=0.03)
    assert not chosen[:, 0].any()


def test_images_are_scaled_and_mirrored_in_training_only():
    task = images()
    x, _ = task.batch(0, 64, seed=0)
    assert x.dtype == torch.float32 and x.min() >= -1 and x.max() <= 1
    original = task._train[0].float() / 127.5 - 1
    plain = [(image == original).flatten(1).all(1).any() for image in x]
    mirrored = [(image.flip(-1) == original).flatten(1).all(1).any() for image in x]
    assert all(p or m for p, m in zip(plain, mirrored, strict=True)) and 10 < sum(map(int, mirrored)) < 54
    held = torch.cat([x for x, _ in task.validation(9, 4)])
    assert torch.equal(held, task._held[0].float() / 127.5 - 1)


def test_short_texts_and_odd_images_are_refused():
    with pytest.raises(DataError, match="20 bytes"):
        ByteWindows(b"a" * 20, seq_len=10)
    with pytest.raises(DataError, match="0 bytes"):
        ByteWindows(b"", seq_len=10)
    with pytest.raises(DataError, match="labels"):
        Images((torch.zeros(3, 3, 8, 8), torch.zeros(2)), (torch.zeros(1, 3, 8, 8), torch.zeros(1)), 4)
