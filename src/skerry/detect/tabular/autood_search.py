"""AutoOD's search loop: which design to try next, what it was worth, and when to stop.

The loop stops at a number of children or at a time limit, whichever comes first, survives children that fail, and
keeps its state in one file of plain arrays, so that an interrupted search goes on where it was.
"""

from __future__ import annotations

import hashlib
import io
import json
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from skerry.core.errors import ModelError
from skerry.core.files import atomic_write
from skerry.detect.tabular.autood_child import WeightPool, train_child
from skerry.detect.tabular.autood_network import score
from skerry.detect.tabular.autood_space import SearchSpace

__all__ = ["Search"]

ITERATION = 5  # children between two updates of the controller
FORMAT = 1


class Search:
    """The loop.

    Parameters
    ----------
    space : SearchSpace
    z : array of shape (n, d)
        The standardised table that children train on.
    reward : LabelledReward or UnlabelledReward
    seed, n_children, child_epochs : int
    time_limit : float or None
        Seconds after which no child is started.
    strategy : {"controller", "random"}
    curiosity, self_imitation
        As in :class:`skerry.deep.controller.Controller`.
    share_weights : bool
    device : str
    checkpoint : path or None
        Written after every child; a search with the same question goes on from it.
    question : str
        What identifies the search, beside the table and the reward's rows.
    clock : callable, default time.monotonic

    Attributes
    ----------
    history : list of dict
        One a child: ``string``, ``reward``, ``measures`` (None if it failed), ``gain`` (None until the controller has
        learned from it) and ``seconds``.
    """

    def __init__(self, space: SearchSpace, z, reward, *, seed, n_children, child_epochs, time_limit=None,
                 strategy="controller", curiosity=0.05, self_imitation="advantage", share_weights=True, device="cpu",
                 checkpoint=None, question="", clock=time.monotonic):  # fmt: skip
        self.space, self.z, self.reward, self.seed = space, z, reward, int(seed)
        self.n_children, self.child_epochs, self.time_limit, self.clock = n_children, child_epochs, time_limit, clock
        self.device, self.checkpoint = device, None if checkpoint is None else Path(checkpoint)
        self.pool = WeightPool(self.seed, share_weights)
        self.controller = None
        if strategy == "controller":
            from skerry.deep.controller import Controller

            self.controller = Controller(space, self.seed, curiosity, self_imitation)
        self.history: list[dict[str, Any]] = []
        digest = hashlib.sha256(repr((question, type(reward).__name__, child_epochs, strategy, curiosity)).encode())
        digest.update(repr((self_imitation, share_weights, sorted(space.options.items()), self.seed)).encode())
        if space.image_shape is not None:
            digest.update(repr(space.image_shape).encode())
        for array in (z, reward.z, getattr(reward, "y", np.empty(0))):
            digest.update(repr(array.shape).encode() + np.ascontiguousarray(array).tobytes())
        self.fingerprint = digest.hexdigest()

    def run(self) -> list[dict[str, Any]]:
        """Try children until the budget is spent; return the history."""
        import torch

        if self.checkpoint is not None and self.checkpoint.exists():
            self._load()
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        started = self.clock()
        try:
            while len(self.history) < self.n_children:
                spent = self.clock() - started
                if self.time_limit is not None and self.history and spent >= self.time_limit:
                    break
                self._try_one()
                if self.controller is not None and len(self.history) % ITERATION == 0:
                    share = len(self.history) / self.n_children
                    if self.time_limit:
                        share = max(share, (self.clock() - started) / self.time_limit)
                    last = self.history[-ITERATION:]
                    gains = self.controller.update(
                        [tuple(h["string"]) for h in last], [h["reward"] for h in last], min(1.0, share)
                    )
                    for h, gain in zip(last, gains, strict=True):
                        h["gain"] = gain
                if self.checkpoint is not None:
                    self._save()
        finally:
            torch.set_num_threads(threads)
        return self.history

    def _try_one(self) -> None:
        number, began = len(self.history), time.perf_counter()
        if self.controller is None:
            string = self.space.sample(np.random.default_rng([self.seed, 8, number]))
        else:
            string = self.controller.sample(number)
        net = train_child(
            self.space.decode(string), self.z, self.pool, self.child_epochs, self.seed + number, self.device
        )
        measures = None
        if net is not None:
            with np.errstate(all="ignore"):
                measures = self.reward.measures(lambda rows: score(net, rows))
        if measures is None:  # it failed: the worst seen, and the search goes on
            reward = min((h["reward"] for h in self.history), default=self.reward.floor)
        else:
            known = [h["measures"] for h in self.history if h["measures"] is not None]
            reward = float(self.reward.rewards([*known, measures])[-1])
        self.history.append(
            {
                "string": [int(c) for c in string],
                "reward": reward,
                "measures": measures,
                "gain": None,
                "seconds": time.perf_counter() - began,
            }
        )

    def best_strings(self, k: int) -> list[tuple[int, ...]]:
        """Return the best distinct strings, best first, by rewards recomputed from all children's measures."""
        good = [h for h in self.history if h["measures"] is not None]
        if not good:
            return []
        found: dict[tuple[int, ...], float] = {}
        for h, r in zip(good, self.reward.rewards([h["measures"] for h in good]), strict=True):
            string = tuple(h["string"])
            found[string] = max(float(r), found.get(string, -np.inf))
        return sorted(found, key=lambda s: -found[s])[:k]

    # ---- the checkpoint -----------------------------------------------------------------------------------------
    def _save(self) -> None:
        arrays = {f"pool/{k}": v for k, v in self.pool.arrays.items()}
        plain = {"format": FORMAT, "fingerprint": self.fingerprint, "history": self.history}
        if self.controller is not None:
            learned, plain["controller"] = self.controller.state()
            arrays |= {f"controller/{k}": v for k, v in learned.items()}
        names = sorted(arrays)
        plain["arrays"] = names
        with atomic_write(self.checkpoint) as file, zipfile.ZipFile(file, "w") as archive:
            archive.writestr("search.json", json.dumps(plain))
            for i, name in enumerate(names):
                buffer = io.BytesIO()
                np.save(buffer, arrays[name], allow_pickle=False)
                archive.writestr(f"{i}.npy", buffer.getvalue())

    def _load(self) -> None:
        try:
            with zipfile.ZipFile(self.checkpoint) as archive:
                plain = json.loads(archive.read("search.json"))
                if plain["format"] != FORMAT:
                    raise ModelError(f"{self.checkpoint}: a search of format {plain['format']}, not {FORMAT}")
                if plain["fingerprint"] != self.fingerprint:
                    raise ModelError(
                        f"{self.checkpoint}: belongs to a search on other rows or with other parameters; "
                        "give another path or remove it"
                    )
                arrays = {
                    name: np.load(io.BytesIO(archive.read(f"{i}.npy")), allow_pickle=False)
                    for i, name in enumerate(plain["arrays"])
                }
            self.history = list(plain["history"])
            self.pool.arrays = {k[5:]: v for k, v in arrays.items() if k.startswith("pool/")}
            if self.controller is not None:
                learned = {k[11:]: v for k, v in arrays.items() if k.startswith("controller/")}
                self.controller.load_state(learned, plain["controller"])
        except ModelError:
            raise
        except (OSError, zipfile.BadZipFile, ValueError, LookupError, TypeError, EOFError, RuntimeError) as error:
            raise ModelError(f"{self.checkpoint}: not a whole checkpoint of a search ({error}); remove it") from None
