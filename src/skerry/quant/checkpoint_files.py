"""Folders of safetensors shards: written whole or not at all, read with distrust.

A folder is built beside its place and renamed when everything in it has been read back. Files of others are never
unpickled, never make code run, and an error names the file and the tensor.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from skerry.core.errors import DataError, MissingExtra, ModelError
from skerry.core.files import atomic_write

__all__ = ["COMPANIONS", "ShardReader", "ShardWriter", "copy_companions", "new_folder", "read_json"]

JSON_LIMIT = 64 * 2**20
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
COMPANIONS = (  # what programs look for beside a model's weights; none of it is code
    "added_tokens.json", "chat_template.jinja", "chat_template.json", "generation_config.json", "merges.txt",
    "preprocessor_config.json", "processor_config.json", "sentencepiece.bpe.model", "special_tokens_map.json",
    "spiece.model", "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt",
)  # fmt: skip
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


def _safetensors() -> Any:
    try:
        import safetensors
        import safetensors.torch
    except ImportError:
        raise MissingExtra("safetensors", "deep") from None
    return safetensors


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield a folder beside ``folder`` that takes its place only if the block ends well.

    Raises
    ------
    DataError
        If ``folder`` exists and is not empty, or cannot be written.
    """
    folder = Path(os.path.abspath(folder))
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder}: exists already; give an empty or a new folder")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{folder.name[:100]}.", suffix=".part", dir=folder.parent))
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({error.strerror}); choose another place") from None
    try:
        yield beside
        umask = os.umask(0)
        os.umask(umask)
        beside.chmod(0o777 & ~umask)
        os.replace(beside, folder)  # an empty folder may be there
    except BaseException as error:
        shutil.rmtree(beside, ignore_errors=True)
        if isinstance(error, DataError) and str(beside) in str(error):  # a file of the folder that nobody has seen
            raise DataError(str(error).replace(str(beside), str(folder))) from None
        if isinstance(error, OSError):
            raise DataError(f"{folder}: cannot be written ({error.strerror or error}); nothing was changed") from None
        raise


def copy_companions(source: Path, folder: Path) -> list[str]:
    """Copy what :data:`COMPANIONS` names from one model folder to another; return the names copied."""
    found = [name for name in COMPANIONS if (source / name).is_file()]
    for name in found:
        shutil.copyfile(source / name, folder / name)
    return found


class ShardWriter:
    """Writes named tensors to shards of at most ``limit`` bytes (or one tensor); holds one shard in memory."""

    def __init__(self, folder: Path, limit: int = 2**31) -> None:
        self.folder, self.limit = folder, limit
        self.total = 0
        self._pending: dict[str, Tensor] = {}
        self._bytes = 0
        self._shards: list[list[str]] = []

    def add(self, name: str, tensor: Tensor) -> None:
        """Take a tensor; a full shard is written first.

        Raises
        ------
        ModelError
            If the name was given before.
        """
        if name in self._pending or any(name in shard for shard in self._shards):
            raise ModelError(f"two tensors are called {name!r}")
        size = tensor.numel() * tensor.element_size()
        if self._pending and self._bytes + size > self.limit:
            self._flush()
        self._pending[name] = tensor.detach().cpu().contiguous().clone()
        self._bytes += size
        self.total += size

    def finish(self) -> None:
        """Write the last shard, give the files their names, write the index."""
        if self._pending or not self._shards:
            self._flush()
        count = len(self._shards)
        if count == 1:
            os.replace(self.folder / _part(1), self.folder / SINGLE)
            return
        where = {}
        for i, names in enumerate(self._shards, 1):
            final = f"model-{i:05d}-of-{count:05d}.safetensors"
            os.replace(self.folder / _part(i), self.folder / final)
            where |= dict.fromkeys(names, final)
        index = {"metadata": {"total_size": self.total}, "weight_map": where}
        with atomic_write(self.folder / INDEX) as file:
            file.write(json.dumps(index, indent=1, sort_keys=True).encode())

    def _flush(self) -> None:
        data = _safetensors().torch.save(self._pending, metadata={"format": "pt"})
        self._shards.append(list(self._pending))
        self._pending, self._bytes = {}, 0
        with atomic_write(self.folder / _part(len(self._shards))) as file:
            file.write(data)


def _part(i: int) -> str:
    return f"shard-{i:05d}.safetensors"


class ShardReader:
    """Reads tensors of a folder one by one; use as a context manager.

    Raises
    ------
    DataError
        If the folder is missing.
    ModelError
        If it holds no safetensors, a damaged file, an index that does not fit, or pickles only.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise DataError(f"{self.folder}: there is no such folder")
        self._stack = ExitStack()
        self._files: dict[str, Any] = {}
        self._where: dict[str, str] = {}
        self._shared: dict[str, Tensor] = {}
        try:
            self._open()
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> ShardReader:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def names(self) -> list[str]:
        """Return the names of all tensors."""
        return list(self._where)

    def __contains__(self, name: str) -> bool:
        return name in self._where

    def file_of(self, name: str) -> Path:
        """Return the file that holds a tensor (the folder, if none does)."""
        return self.folder / self._where.get(name, "")

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape without reading it."""
        return tuple(self._files[self._found(name)].get_slice(name).get_shape())

    def get(self, name: str, *, dtype: torch.dtype | None = None, shape: tuple[int, ...] | None = None) -> Tensor:
        """Return a tensor.

        Raises
        ------
        ModelError
            If it is missing or not of this dtype or shape; the message names file and tensor.
        """
        file = self._found(name)
        if shape is not None and self.shape(name) != tuple(shape):
            raise ModelError(
                f"{self.folder / file}: {name} has shape {self.shape(name)} where {tuple(shape)} is needed; the file "
                "is damaged or of another model"
            )
        try:
            found = self._files[file].get_tensor(name)
        except Exception as error:  # safetensors raises its own kinds for damaged files
            raise ModelError(f"{self.folder / file}: {name} cannot be read ({error}); fetch the file again") from None
        if dtype is not None and found.dtype != dtype:
            raise ModelError(f"{self.folder / file}: {name} holds {found.dtype} where {dtype} is needed")
        return found

    def shared(self, name: str, *, shape: tuple[int, ...]) -> Tensor:
        """Return a tensor that several layers hold: the same object every time; errors as for :meth:`get`."""
        if name not in self._shared or tuple(self._shared[name].shape) != tuple(shape):
            self._shared[name] = self.get(name, shape=shape)
        return self._shared[name]

    def _found(self, name: str) -> str:
        if name not in self._where:
            raise ModelError(f"{self.folder}: tensor {name} is missing; the folder is incomplete or of another model")
        return self._where[name]

    def _open(self) -> None:
        index = self.folder / INDEX
        if index.is_file():
            where = read_json(index).get("weight_map")
            if not isinstance(where, dict) or not all(isinstance(v, str) for v in where.values()):
                raise ModelError(f"{index}: has no 'weight_map' of tensors to files")
            for file in sorted(set(where.values())):
                if not re.fullmatch(r"[\w.\-]+\.safetensors", file):
                    raise ModelError(f"{index}: names {file!r}, which is no safetensors file of this folder")
                self._open_file(file)
            for name, file in where.items():
                if name not in self._files[file].keys():
                    raise ModelError(f"{self.folder / file}: tensor {name} is missing, which the index promises")
            self._where = dict(where)
            return
        files = sorted(f.name for f in self.folder.glob("*.safetensors"))
        if not files:
            pickles = sorted(f.name for f in self.folder.iterdir() if f.suffix in _PICKLES)
            if pickles:
                raise ModelError(
                    f"{self.folder / pickles[0]}: weights in a pickle, which can run code, are not read; save the "
                    "model as safetensors"
                )
            raise ModelError(f"{self.folder}: holds no weights (*.safetensors)")
        for file in files:
            self._open_file(file)
            for name in self._files[file].keys():
                if name in self._where:
                    raise ModelError(f"{self.folder / file}: tensor {name} is also in {self._where[name]}")
                self._where[name] = file

    def _open_file(self, file: str) -> None:
        path = self.folder / file
        if not path.is_file():
            raise ModelError(f"{path}: is missing, which the index names")
        try:
            self._files[file] = self._stack.enter_context(_safetensors().safe_open(path, framework="pt"))
        except Exception as error:
            raise ModelError(f"{path}: is damaged or no safetensors file ({error}); fetch it again") from None


def read_json(path: Path) -> Mapping[str, Any]:
    """Return a JSON object from a file of someone else.

    Raises
    ------
    ModelError
        If the file is missing, too large, or holds no JSON object.
    """
    try:
        if path.stat().st_size > JSON_LIMIT:
            raise ModelError(
                f"{path}: {path.stat().st_size} bytes are too many for a description; is it the right file?"
            )
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: is not JSON ({error})") from None
    if not isinstance(found, dict):
        raise ModelError(f"{path}: holds no JSON object")
    return found
