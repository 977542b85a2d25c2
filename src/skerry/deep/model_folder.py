"""A model of ``transformers`` from a local folder: config.json and safetensors, no code of the folder, no download."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from skerry.core.errors import DataError, MissingExtra, ModelError

__all__ = ["load_model_folder", "quiet_loading", "read_config"]

MOST_HEADER = 100 * 2**20


def read_config(folder: Path) -> dict[str, Any]:
    """Return config.json.

    Raises
    ------
    DataError
        If the folder or the file is absent.
    ModelError
        If it is no JSON object, or asks for code of its own.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give one with config.json and safetensors weights")
    path = folder / "config.json"
    if not path.is_file():
        raise DataError(f"{folder}: has no config.json; is it a model folder?")
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: is not readable JSON ({error})") from None
    if not isinstance(config, dict):
        raise ModelError(f"{path}: is not a JSON object")
    if config.get("auto_map") or config.get("trust_remote_code"):
        raise ModelError(f"{path}: asks for code of its own (auto_map); none is ever run")
    return config


def load_model_folder(folder: str | Path) -> nn.Module:
    """Return the float model of a folder, in evaluation mode, in the dtype it was saved in.

    Parameters
    ----------
    folder : path
        With config.json and one or more ``*.safetensors``.

    Raises
    ------
    DataError
        If something is absent.
    ModelError
        If a file is truncated or damaged, the class is unknown, or weights are missing or of a wrong shape.
    MissingExtra
        Without transformers.
    """
    folder = Path(folder)
    config = read_config(folder)
    shards = sorted(folder.glob("*.safetensors"))
    if not shards:
        other = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth") for p in folder.glob(pattern))
        found = f" ({other[0]} is a pickle, which is never opened: save it as safetensors)" if other else ""
        raise DataError(f"{folder}: has no safetensors weights{found}")
    for shard in shards:
        _check_shard(shard)
    try:
        import transformers
    except ImportError:
        raise MissingExtra("transformers", "deep") from None
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names and isinstance(names[0], str) else ""
    kind = getattr(transformers, name, None)
    if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
        raise ModelError(f"{folder / 'config.json'}: {name or 'architectures'!r} names no model class of transformers")
    try:
        with quiet_loading():
            model, info = kind.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False, use_safetensors=True, output_loading_info=True
            )
    except Exception as error:  # whatever a damaged folder makes the library raise
        raise ModelError(f"{folder}: could not be loaded as {name}: {str(error).splitlines()[0]}") from None
    if info.get("mismatched_keys"):
        wrong = sorted(map(str, info["mismatched_keys"]))[0]
        raise ModelError(f"{folder}: {wrong} has not the shape that config.json says")
    if info.get("missing_keys"):
        missing = sorted(map(str, info["missing_keys"]))
        others = f" and {len(missing) - 1} more are" if len(missing) > 1 else " is"
        raise ModelError(f"{folder}: {missing[0]}{others} missing; fetch the files again")
    return model.eval()


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Keep transformers' log lines and bars to itself for the length of a ``with`` block."""
    from transformers import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _check_shard(path: Path) -> None:
    """Refuse a file whose header does not fit its size, before any library reads it."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
        if not 2 <= length <= min(MOST_HEADER, size - 8):
            raise ModelError(f"{path}: is truncated or no safetensors file ({size} bytes)")
        try:
            header = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            raise ModelError(f"{path}: its safetensors header is damaged") from None
    if ends and max(ends) + length + 8 > size:
        raise ModelError(
            f"{path}: is truncated: {size} bytes, its header says {max(ends) + length + 8}; fetch it again"
        )
