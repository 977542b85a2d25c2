"""Train the small series encoder of Themis on synthetic series: ``python -m skerry.deep.pretrain_series FILE``.

Masked reconstruction: spans of 4 to 32 steps, 30 % of a window in all, are hidden and must be rebuilt from the rest.
No measured series is used. The same arguments give the same file on the same version of torch.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import save as pack

from skerry.core.errors import DataError, ParameterError, SkerryError
from skerry.core.files import atomic_write
from skerry.deep.series_encoder import FORMAT, SeriesTransformer, scaled
from skerry.deep.synthetic_series import disturbed, gaussian_paths
from skerry.deep.threads import one_thread

__all__ = ["pretrain", "span_masks"]

HIDDEN, SPANS = 0.3, (4, 32)  # share of a window, and the lengths of its hidden stretches
WARM_UP = 0.05  # share of the steps in which the learning rate rises
LEARNING_RATE, WEIGHT_DECAY, CLIP = 1e-3, 0.01, 1.0


def span_masks(shape: tuple[int, int], rng: np.random.RandomState) -> NDArray[np.float32]:
    """Return masks (B, L), 0 where a step is hidden: spans of 4 to 32 steps until 30 % of the row are.

    >>> m = span_masks((2, 200), np.random.RandomState(0))
    >>> bool((0.3 <= (m == 0).mean(axis=1)).all() and ((m == 0).mean(axis=1) < 0.5).all())
    True
    """
    shown = np.ones(shape, dtype=np.float32)
    for row in shown:
        while (row == 0.0).mean() < HIDDEN:
            start = rng.randint(-SPANS[0] + 1, shape[1])
            row[max(start, 0) : start + rng.randint(SPANS[0], SPANS[1] + 1)] = 0.0
    return shown


def pretrain(
    path: str | Path,
    *,
    steps: int = 20_000,
    seed: int = 0,
    batch_size: int = 8,
    length: int = 512,
    n_kernels: int = 1_000,
    width: int = 96,
    layers: int = 3,
    heads: int = 4,
    on_progress: Callable[[int, float], None] = lambda step, loss: None,
) -> str:
    """Train the encoder and write it to ``path``; return the SHA-256 of the file.

    Parameters
    ----------
    path : path
        A ``.safetensors`` file for :class:`~skerry.deep.series_encoder.SeriesEncoder`.
    steps : int, default 20000
    seed : int, default 0
    batch_size, length : int, default 8 and 512
        Windows in a step, each a random stretch of a synthetic series of 1,024 steps; at most that long.
    n_kernels : int, default 1000
        Kernels that the series are drawn from, four series each, all before training.
    width, layers, heads : int, default 96, 3 and 4
    on_progress : callable (step, loss), optional
        Told every hundredth of the way, with the mean loss since.

    Raises
    ------
    ParameterError
        For sizes that do not fit.
    DataError
        If ``path`` cannot be written.
    """
    if min(steps, batch_size, n_kernels, width, layers, heads) < 1 or not 8 <= length <= 1_024:
        raise ParameterError("steps and sizes must be at least 1, and length lie between 8 and 1024")
    if width % (2 * heads):
        raise ParameterError(f"width must be a multiple of 2 * heads, got {width} and {heads}")
    if not Path(path).absolute().parent.is_dir():  # better told now than after an hour
        raise DataError(f"{path}: its folder does not exist; make it first")
    rng = np.random.RandomState(seed)
    pool = gaussian_paths(n_kernels, random_state=seed)
    with one_thread():
        torch.manual_seed(seed)
        net = SeriesTransformer(width, layers, heads)
        optimizer = torch.optim.AdamW(net.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        warm = max(1, round(WARM_UP * steps))
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda i: min((i + 1) / warm, 0.5 * (1.0 + np.cos(np.pi * i / steps)))
        )
        total, every = 0.0, max(1, steps // 100)
        for step in range(1, steps + 1):
            rows, starts = rng.randint(len(pool), size=batch_size), rng.randint(1_025 - length, size=batch_size)
            x = disturbed(np.stack([pool[r, s : s + length] for r, s in zip(rows, starts, strict=True)]), rng)
            everything = torch.ones(x.shape)
            x, shown = scaled(torch.from_numpy(x), everything), torch.from_numpy(span_masks(x.shape, rng))
            guess = net.rebuild(x, shown)
            hidden = 1.0 - shown
            loss = (F.smooth_l1_loss(guess, x, reduction="none", beta=0.5) * hidden).sum() / hidden.sum()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), CLIP)
            optimizer.step()
            schedule.step()
            total += float(loss.detach())
            if step % every == 0:
                on_progress(step, total / every)
                total = 0.0
    training = {"steps": steps, "seed": seed, "batch_size": batch_size, "length": length, "n_kernels": n_kernels}
    header = json.dumps({"format": FORMAT, "sizes": net.sizes, "training": training})
    # one entry: several have no order of their own in the file
    data = pack({k: v.contiguous() for k, v in net.state_dict().items()}, {"encoder": header})
    with atomic_write(path) as file:
        file.write(data)
    return hashlib.sha256(data).hexdigest()


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m skerry.deep.pretrain_series", description=__doc__.splitlines()[0])
    parser.add_argument("path", help="where to write the .safetensors file")
    for name, default in (("steps", 20_000), ("seed", 0), ("batch-size", 8), ("length", 512), ("n-kernels", 1_000)):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    given = vars(parser.parse_args(arguments))
    started = time.perf_counter()

    def tell(step: int, loss: float) -> None:
        print(
            f"step {step} of {given['steps']}, loss {loss:.4f}, {time.perf_counter() - started:.0f} s", file=sys.stderr
        )

    try:
        digest = pretrain(**given, on_progress=tell)
    except SkerryError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{given['path']}: sha256 {digest}, {time.perf_counter() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
