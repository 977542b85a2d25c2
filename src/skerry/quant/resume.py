"""A work folder: the quantized parts of finished blocks, so that an interrupted run goes on where it was.

One folder a block with safetensors and a description, one with the hidden states that enter the next block; each
appears whole or not at all. ``work.json`` holds what the run depends on (weights, recipe, calibration, versions);
a run that depends on anything else starts anew. The resumed result is that of an uninterrupted run, bit for bit.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from skerry.core.errors import DataError, ModelError
from skerry.core.files import atomic_write
from skerry.quant.checkpoint import _describe as describe_layer
from skerry.quant.checkpoint import _parts as layer_tensors
from skerry.quant.checkpoint_files import ShardReader, ShardWriter, new_folder, read_json
from skerry.quant.checkpoint_load import MAP, read_part
from skerry.quant.groups import ShiftedNorm
from skerry.quant.linear import PreparedLinear, QuantizedLinear
from skerry.quant.offload import StoredLinear, read_tensor
from skerry.quant.recipe import Recipe
from skerry.quant.report import LayerReport, QuantizationReport

__all__ = ["Start", "WorkFolder", "discard", "run_key"]

NOTE = "work.json"
FORMAT = "skerry-work-1"
SHARD = 2**28


def run_key(
    model: nn.Module, recipe: Recipe, batches: Iterable[Any], *, random_state: int = 0, check: bool = True
) -> dict[str, str]:
    """Return what the result of a run depends on: digests, versions, threads.

    Parameters
    ----------
    model : Module
        Before anything was changed.
    recipe : Recipe
    batches : iterable
        Calibration batches.
    random_state : int, default 0
    check : bool, default True

    Examples
    --------
    >>> a = run_key(nn.Linear(2, 2, bias=False), Recipe("rtn"), [])
    >>> b = run_key(nn.Linear(2, 2, bias=False), Recipe("rtn"), [])
    >>> [what for what in a if a[what] != b[what]]
    ['model']
    """
    weights, data = hashlib.sha256(), hashlib.sha256()
    config = getattr(model, "config", None)
    settings = config.to_diff_dict() if hasattr(config, "to_diff_dict") else {}
    settings.pop("_name_or_path", None)
    weights.update(f"{type(model).__name__} {model!r} {json.dumps(settings, sort_keys=True, default=str)}".encode())
    for name, tensor in model.state_dict().items():
        _digest(weights, name, read_tensor(model, name) if tensor.is_meta else tensor)
    for i, batch in enumerate(batches):
        parts = (
            batch.items() if isinstance(batch, Mapping) else enumerate(batch if isinstance(batch, tuple) else [batch])
        )
        for name, value in parts:
            _digest(data, f"{i} {name}", value)
    return {
        "model": weights.hexdigest(),
        "recipe": recipe.to_json(),
        "calibration": data.hexdigest(),
        "random state": str(random_state),
        "check": str(check),
        "versions": ", ".join(f"{p} {_version(p)}" for p in ("skerry", "torch", "transformers")),
        "threads": str(torch.get_num_threads()),
    }


def _digest(digest: Any, name: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        digest.update(f"{name} {value!r}".encode())
        return
    digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
    digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


class WorkFolder:
    """The finished blocks of one run; a context manager that holds a lock on the folder.

    Parameters
    ----------
    path : Path
        New, empty, or of an earlier run.
    key : dict of str
        See :func:`run_key`.

    Attributes
    ----------
    done : int
        Blocks finished by earlier runs with this key.
    anew : str
        Why an earlier run was thrown away; empty if none was.

    Raises
    ------
    DataError
        If the folder holds files of someone else, is used by another run, or cannot be written.
    """

    def __init__(self, path: Path, key: Mapping[str, str]) -> None:
        self.path = Path(path)
        self.done, self.anew = 0, ""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            _ours(self.path)
            self._lock = _locked(self.path / "lock")
        except OSError as error:
            raise DataError(f"{self.path}: cannot be written ({error.strerror}); choose another work folder") from None
        try:
            self._begin(dict(key))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> WorkFolder:
        return self

    def __exit__(self, *error: object) -> None:
        if error[0] is not None and not any(self.path.glob("block-*")):
            self.remove()  # nothing worth keeping
        self.close()

    def close(self) -> None:
        """Let other runs use the folder."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def remove(self) -> None:
        """Delete the folder: the result is safe elsewhere."""
        self.close()
        discard(self.path)

    def save_states(self, index: int, states: Iterable[Tensor]) -> None:
        """Keep the hidden states that enter block ``index``."""
        place = self._states(index)
        shutil.rmtree(place, ignore_errors=True)
        with new_folder(place) as folder:
            writer = ShardWriter(folder, SHARD)
            for i, tensor in enumerate(states):
                writer.add(str(i), tensor)
            writer.finish()

    def read_states(self, index: int) -> Iterable[Tensor]:
        """Yield the hidden states that enter block ``index``, batch by batch."""
        with ShardReader(self._states(index)) as reader:
            for i in range(len(reader.names())):
                yield reader.get(str(i)).clone()

    def save_block(self, index: int, model: nn.Module, name: str, report: QuantizationReport, start: Start) -> None:
        """Keep a finished block and its lines of the report; from now on it counts as done."""
        block = model.get_submodule(name)
        layers = {n: m for n, m in block.named_modules(prefix=name) if isinstance(m, QuantizedLinear)}
        tensors = _floats(block, name, layers)
        shifted = [n for n, m in block.named_modules(prefix=name) if isinstance(m, ShiftedNorm)]
        described = {n: describe_layer(m) for n, m in layers.items()}
        text = {"layers": described, "shifted_norms": shifted, "floats": list(tensors), "report": start.lines(report)}
        with new_folder(self._block(index)) as folder:
            writer = ShardWriter(folder, SHARD)
            for n, layer in layers.items():
                for key, tensor in layer_tensors(layer.solved, layer).items():
                    writer.add(f"{n}.{key}", tensor)
                if layer.bias is not None:
                    writer.add(f"{n}.bias", layer.bias)
            for key, tensor in tensors.items():
                writer.add(key, tensor)
            writer.finish()
            with atomic_write(folder / MAP) as file:
                file.write(json.dumps(text).encode())
        shutil.rmtree(self._states(index), ignore_errors=True)

    def restore_block(self, index: int, model: nn.Module, name: str, report: QuantizationReport) -> None:
        """Put the finished block in place of the prepared one, and its lines into the report.

        Raises
        ------
        ModelError
            If the folder is damaged; deleting it makes the run start anew.
        """
        folder = self._block(index)
        block = model.get_submodule(name)
        with _PlacedReader(folder, next(block.parameters()).device) as reader:
            found = read_json(folder / MAP)
            for n, module in list(block.named_modules(prefix=name)):
                if n in found["layers"]:
                    model.set_submodule(n, read_part(reader, n, found["layers"][n]).train(False))
                elif isinstance(module, PreparedLinear):
                    plain = module.plain()
                    if plain.bias is None and f"{n}.bias" in reader:
                        plain.bias = nn.Parameter(reader.get(f"{n}.bias"), requires_grad=False)
                    model.set_submodule(n, plain)
            for n in found["shifted_norms"]:
                norm = model.get_submodule(n)
                model.set_submodule(n, ShiftedNorm(norm, torch.zeros_like(norm.weight)))  # type: ignore[arg-type]
            own = block if name else model
            state = own.state_dict(prefix=f"{name}." if name else "")
            for key in found["floats"]:
                if key not in state:
                    raise ModelError(f"{folder}: {key} is not part of the model; delete {self.path} to start anew")
                state[key].copy_(reader.get(key, shape=tuple(state[key].shape)))
        lines = found["report"]
        report.layers += [LayerReport(**layer | {"shape": tuple(layer["shape"])}) for layer in lines["layers"]]
        report.transforms += lines["transforms"]
        report.notes += lines["notes"]
        report.seconds += lines["seconds"]

    def let_go(self, index: int, model: nn.Module, name: str) -> None:
        """Free the memory of a finished block: its weights are read from here when they are wanted."""
        folder = self._block(index)
        with ShardReader(folder) as reader:
            for n, entry in read_json(folder / MAP)["layers"].items():
                model.set_submodule(n, StoredLinear(read_part(reader, n, entry), folder, n, entry))
        model.get_submodule(name).to("cpu")
        gc.collect()  # hooks hold modules in cycles

    def _begin(self, key: dict[str, str]) -> None:
        for left in self.path.glob(".*.part"):
            shutil.rmtree(left, ignore_errors=True)
            left.unlink(missing_ok=True)
        if (self.path / NOTE).is_file():
            known = read_json(self.path / NOTE).get("key")
            known = known if isinstance(known, dict) else {}
            if known == key:
                while self._block(self.done).is_dir():
                    self.done += 1
                return
            others = [what for what in key if known.get(what) != key[what]]
            self.anew = f"{', '.join(others)} {'is' if len(others) == 1 else 'are'} not the same"
        for kept in [*self.path.glob("block-*"), *self.path.glob("states-*")]:
            shutil.rmtree(kept, ignore_errors=True)
        with atomic_write(self.path / NOTE) as file:
            file.write(json.dumps({"format": FORMAT, "key": key}, indent=1).encode())

    def _block(self, index: int) -> Path:
        return self.path / f"block-{index:05d}"

    def _states(self, index: int) -> Path:
        return self.path / f"states-{index:05d}"


class Start:
    """How a block and the report looked before the block was touched."""

    def __init__(self, block: nn.Module, report: QuantizationReport) -> None:
        self._modules = {n: (type(m), _settings(m)) for n, m in block.named_modules()}
        self._lines = len(report.layers), len(report.transforms), len(report.notes)
        self._clock = time.perf_counter()

    def changed(self, block: nn.Module) -> str:
        """Return what a restored block would lack, or nothing."""
        inside = tuple(f"{n}." for n, m in block.named_modules() if isinstance(m, ShiftedNorm))
        for name, module in block.named_modules():
            kind, settings = self._modules.get(name, (None, {}))
            if isinstance(module, (QuantizedLinear, ShiftedNorm)) or name.startswith(inside or ("\0",)):
                continue
            if kind is PreparedLinear and type(module) is nn.Linear:
                continue
            if kind is not type(module):
                return f"{name} became {type(module).__name__}, which a work folder cannot hold"
            for key, value in _settings(module).items():
                if settings.get(key, _Absent) is not value:
                    return f"{name}.{key} was changed, which a work folder cannot hold"
        return ""

    def lines(self, report: QuantizationReport) -> dict[str, Any]:
        """Return what the report gained, as plain data."""
        layers, transforms, notes = self._lines
        return {
            "layers": [asdict(layer) for layer in report.layers[layers:]],
            "transforms": report.transforms[transforms:],
            "notes": report.notes[notes:],
            "seconds": time.perf_counter() - self._clock,
        }


class _PlacedReader(ShardReader):
    """Reads tensors to a device."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.device = device
        super().__init__(folder)

    def get(self, name: str, **wanted: Any) -> Tensor:
        # a copy: products may round by where a tensor begins in memory, and a file's tensors begin anywhere
        return super().get(name, **wanted).to(self.device, copy=True)


class _Absent:
    """Stands for an attribute that was not there."""


def _settings(module: nn.Module) -> dict[str, Any]:
    """Return a module's own attributes, and which of its tensors are there."""
    own = {k: v for k, v in vars(module).items() if not k.startswith("_") and k != "training"}
    if isinstance(module, PreparedLinear):
        own = {}
    return own | {k: t is None for k, t in (module._buffers | module._parameters).items() if k != "bias"}


def _floats(block: nn.Module, name: str, layers: Mapping[str, QuantizedLinear]) -> dict[str, Tensor]:
    prefixes = tuple(f"{n}." for n in layers)
    state = block.state_dict(prefix=f"{name}." if name else "")
    return {k: t for k, t in state.items() if not k.startswith(prefixes or ("\0",))}


def discard(path: Path) -> None:
    """Delete a work folder; one of someone else is refused.

    Raises
    ------
    DataError
        If the folder is no work folder.
    """
    if path.is_dir():
        _ours(path)
        shutil.rmtree(path)


def _ours(path: Path) -> None:
    names = {p.name for p in path.iterdir()}
    if NOTE in names and read_json(path / NOTE).get("format") == FORMAT:
        return
    if foreign := sorted(n for n in names if n != "lock" and not n.endswith(".part")):
        raise DataError(f"{path}: holds {foreign[0]}, which is no part of a work folder; choose a new one")


def _locked(path: Path) -> int | None:
    """Return the handle of a lock that ends with the process; None where the system has none."""
    try:
        import fcntl
    except ImportError:
        return None
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise DataError(f"{path.parent}: another run is using this work folder; wait for it") from None
    return handle
