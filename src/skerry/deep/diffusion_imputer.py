"""Train and sample ImDiffusion's imputer (Chen et al., PVLDB 17(3), 2023) on windows of a scaled series.

A mask is 1 where a cell is *shown*. Every epoch starts from its own seed, so that a training that was interrupted goes
on from its checkpoint as if nothing had happened; checkpoints are safetensors with JSON in the header.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as pack
from torch import Tensor

from skerry.core.errors import ModelError
from skerry.core.files import atomic_write
from skerry.deep.diffusion import DiffusionSchedule
from skerry.deep.imputation_net import ImputationNet

__all__ = ["DiffusionImputer", "grating"]

MARGIN = 0.5  # of the scale, beyond which no imputation reaches
SPREAD = 0.25  # of the scale: about the deviation of windows within it
HIDDEN_RATIO = 0.7  # of the random point mask
VALIDATION_SEED = 1 << 20  # far from the number of any epoch


def grating(window: int, split: int) -> Tensor:
    """Return the two masks (2, window) of 0 and 1: policy 0 shows the even segments, policy 1 the odd ones.

    >>> grating(6, 3).int().tolist()
    [[1, 1, 0, 0, 1, 1], [0, 0, 1, 1, 0, 0]]
    """
    even = (torch.arange(window) * split // window) % 2 == 0
    return torch.stack([even, ~even]).float()


class DiffusionImputer:
    """Noise predictor, schedule and masks.

    Parameters
    ----------
    net : ImputationNet
    split : int
        Segments of the grating.
    n_steps : int
    conditional : bool
    device : str, default "cpu"
    scale : float, default 20
        Windows lie mostly in [0, scale].

    Attributes
    ----------
    schedule : DiffusionSchedule
    gratings : Tensor of shape (2, L)
    limits : (float, float)
        Imputed values lie between them at every step.
    """

    def __init__(
        self,
        net: ImputationNet,
        split: int,
        n_steps: int,
        conditional: bool,
        device: str = "cpu",
        scale: float = 20.0,
    ) -> None:
        self.net, self.conditional, self.device = net.to(device), conditional, device
        self.schedule, self.scale = DiffusionSchedule(n_steps, device=device), scale
        self.limits = (-MARGIN * scale, (1.0 + MARGIN) * scale)
        self.gratings = grating(len(net.time), split).to(device)

    def _draw(self, generator: torch.Generator):
        # noise is drawn on the processor, so that the device changes rounding only
        return lambda x: torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)

    def _usual(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and deviation of windows that were noised to the steps t."""
        abar = self.schedule.abar[t]
        return abar.sqrt() * 0.5 * self.scale, (abar * (SPREAD * self.scale) ** 2 + 1.0 - abar).sqrt()

    def predict(self, x: Tensor, clean: Tensor, shown: Tensor, t: Tensor, policy: Tensor) -> Tensor:
        """Return the predicted noise; ``x`` (B, K, L) is noised everywhere, ``clean`` counts if conditional.

        The network sees both about 0 with deviation about 1 whatever the step: at values up to the scale its attention
        would see little else than who is large.
        """
        mean, spread = self._usual(t)
        x = (x - mean[:, None, None]) / spread[:, None, None]
        if self.conditional:
            clean = (clean / self.scale - 0.5) / SPREAD
            return self.net(torch.stack([shown * clean, (1.0 - shown) * x], dim=-1), t, policy, shown)
        return self.net(x[..., None], t, policy)

    def loss(self, x: Tensor, seen: Tensor, shown: Tensor, t: Tensor, policy: Tensor, noise: Tensor) -> Tensor:
        """Return the mean squared error of the noise over the cells that are hidden and have a value."""
        shown = shown * seen
        error = noise - self.predict(self.schedule.noised(x, t, noise), x, shown, t, policy)
        target = (1.0 - shown) * seen
        return (target * error**2).sum() / target.sum().clamp(min=1.0)

    def _masks(self, kind: str, shape: torch.Size, policy: Tensor, generator: torch.Generator) -> Tensor:
        masks = self.gratings[policy][:, None].expand(shape)
        if kind == "grating":
            return masks
        points = (torch.rand(shape, generator=generator) >= HIDDEN_RATIO).float().to(self.device)
        if kind == "random":
            return points
        which = torch.rand(shape[0], generator=generator).to(self.device) < 0.5
        return torch.where(which[:, None, None], masks, points)

    @torch.no_grad()
    def sample(self, x: Tensor, seen: Tensor, keep: list[int], seed: int) -> Iterator[tuple[int, Tensor]]:
        """Yield (t, imputation (B, K, L)) for each t of ``keep``, highest first; every cell is imputed once.

        Both policies are sampled in one batch, each with noise of its own; cells without a value are hidden in both.
        """
        self.net.eval()
        b = len(x)
        draw = self._draw(torch.Generator().manual_seed(seed))
        both, policy = torch.cat([x, x]), torch.arange(2, device=x.device).repeat_interleave(b)
        hides = self.gratings[:, None, None]  # (policy, window, channel, step)
        shown = self.gratings[policy][:, None] * torch.cat([seen, seen])
        truth = self.schedule.chain(both, draw)
        # noise about the mean of what is left of the data in the last step: about 0, imputations are drawn towards 0
        mean, spread = self._usual(torch.tensor(len(self.schedule) - 1))
        y = mean + spread * draw(both)
        for t in range(len(self.schedule) - 1, -1, -1):
            inputs = shown * truth[t] + (1.0 - shown) * y
            steps = torch.full((2 * b,), t, device=x.device)
            noise = self.schedule.bounded(y, self.predict(inputs, both, shown, steps, policy), t, *self.limits)
            y = self.schedule.reverse(y, noise, t, draw)
            truth.pop()
            if t in keep:
                parts = y.reshape(2, b, *y.shape[1:])
                yield t, ((1.0 - hides) * parts).sum(dim=0)

    def train(
        self,
        windows: tuple[NDArray[np.float32], NDArray[np.float32]],
        *,
        train_mask: str,
        batch_size: int,
        learning_rate: float,
        max_epochs: int,
        patience: int | None,
        seed: int,
        checkpoint: Path | None = None,
        settings: dict[str, Any] | None = None,
    ) -> int:
        """Fit to windows: values (n, K, L), filled, and 1 where they were observed; return the epochs run.

        The last 5 % of the windows are held out for early stopping; the best network of those epochs is kept.
        """
        filled, seen = windows
        n_held = round(0.05 * len(filled)) if patience is not None else 0
        n = len(filled) - n_held
        x, s = torch.from_numpy(filled), torch.from_numpy(seen)
        optimizer = torch.optim.Adam(self.net.parameters(), lr=learning_rate, weight_decay=1e-6)
        state = {"epoch": 0, "best": None, "bad": 0, "done": False}
        best: dict[str, Tensor] = {}
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
        digest.update(filled.tobytes() + seen.tobytes())
        state["digest"] = digest.hexdigest()
        if checkpoint is not None and checkpoint.exists():
            state, best = self._resume(checkpoint, optimizer, state["digest"])
        while not state["done"] and state["epoch"] < max_epochs:
            epoch = state["epoch"]
            generator = torch.Generator().manual_seed(seed + epoch)
            torch.manual_seed(seed + epoch)  # dropout
            factor = 0.1 ** sum(epoch >= round(share * max_epochs) for share in (0.75, 0.9))
            optimizer.param_groups[0]["lr"] = learning_rate * factor
            self.net.train()
            order = torch.randperm(n, generator=generator)
            for rows in order.split(batch_size):
                self._step(x[rows].to(self.device), s[rows].to(self.device), train_mask, optimizer, generator)
            state["epoch"] += 1
            if n_held:
                error = self._held_out_error(x[n:], s[n:], batch_size, seed + VALIDATION_SEED)
                better = state["best"] is None or error < state["best"]
                state["bad"] = 0 if better else state["bad"] + 1
                if better:
                    state["best"] = error
                    best = {k: v.detach().clone() for k, v in self.net.state_dict().items()}
                state["done"] = state["bad"] >= patience
            state["done"] = state["done"] or state["epoch"] >= max_epochs
            if checkpoint is not None:
                self._store(checkpoint, optimizer, state, best)
        if best:
            self.net.load_state_dict(best)
        return state["epoch"]

    def _step(self, x: Tensor, seen: Tensor, train_mask: str, optimizer, generator: torch.Generator) -> None:
        policy = torch.randint(2, (len(x),), generator=generator).to(self.device)
        t = torch.randint(len(self.schedule), (len(x),), generator=generator).to(self.device)
        shown = self._masks(train_mask, x.shape, policy, generator)
        optimizer.zero_grad()
        self.loss(x, seen, shown, t, policy, self._draw(generator)(x)).backward()
        optimizer.step()

    def _held_out_error(self, x: Tensor, seen: Tensor, batch_size: int, seed: int) -> float:
        total = 0.0
        for start in range(0, len(x), batch_size):
            part = slice(start, start + batch_size)
            rows, known = x[part].to(self.device), seen[part].to(self.device)
            ((_, imputed),) = self.sample(rows, known, [0], seed + start)
            total += float((known * (imputed - rows) ** 2).sum())
        return total / max(float(seen.sum()), 1.0)

    # ---- checkpoints
    def _store(self, path: Path, optimizer, state: dict[str, Any], best: dict[str, Tensor]) -> None:
        tensors = {f"net.{k}": v for k, v in self.net.state_dict().items()}
        tensors |= {f"best.{k}": v for k, v in best.items()}
        for i, moments in optimizer.state_dict()["state"].items():
            tensors |= {f"adam.{i}.{k}": v for k, v in moments.items()}
        data = pack({k: v.cpu().contiguous() for k, v in tensors.items()}, {"state": json.dumps(state)})
        with atomic_write(path) as file:
            file.write(data)

    def _resume(self, path: Path, optimizer, digest: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
        try:
            with safe_open(str(path), "pt") as file:
                state = json.loads(file.metadata()["state"])
                if state["digest"] != digest:
                    raise ModelError(
                        f"{path}: checkpoint of other data or parameters; give another path, or delete it to start anew"
                    )
                parts: dict[str, dict[str, Tensor]] = {"net": {}, "best": {}, "adam": {}}
                for key in file.keys():
                    kind, _, name = key.partition(".")
                    parts[kind][name] = file.get_tensor(key)
            self.net.load_state_dict(parts["net"])
            adam = optimizer.state_dict()
            for key, value in parts["adam"].items():
                i, _, name = key.partition(".")
                adam["state"].setdefault(int(i), {})[name] = value
            optimizer.load_state_dict(adam)
        except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
            if isinstance(error, ModelError):
                raise
            raise ModelError(f"{path}: not a whole checkpoint of this detector ({error}); delete it") from None
        return state, {k: v.to(self.device) for k, v in parts["best"].items()}
