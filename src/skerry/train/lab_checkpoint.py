"""Checkpoints of a laboratory run: tensors in safetensors, the rest in JSON, no pickle, whole or not there.

The JSON file names the tensors' file and is written last; a run that dies in between resumes from the one before.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from skerry.core.errors import ModelError
from skerry.core.files import atomic_write

__all__ = ["load_checkpoint", "save_checkpoint"]

_INDEX = "checkpoint.json"


def save_checkpoint(folder: Path, step: int, model: nn.Module, optimizer: Optimizer, config: dict[str, Any]) -> None:
    """Write model and optimizer after ``step`` steps into ``folder``, in place of an earlier checkpoint.

    Parameters
    ----------
    folder : Path
        Made if absent.
    step : int
    model : torch.nn.Module
    optimizer : torch.optim.Optimizer
        Over parameters of ``model``.
    config : dict
        What the run was started with, JSON-ready; :func:`load_checkpoint` refuses another.
    """
    from safetensors.torch import save

    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"model/{k}": v for k, v in model.state_dict().items()}
    plain: dict[str, Any] = {}
    for name, p in model.named_parameters():
        for key, value in optimizer.state.get(p, {}).items():
            if isinstance(value, torch.Tensor):
                tensors[f"optimizer/{name}/{key}"] = value
            else:
                plain[f"{name}/{key}"] = value
    weights = f"step-{step:07d}.safetensors"
    with atomic_write(folder / weights) as file:
        file.write(save({k: v.detach().contiguous().clone() for k, v in tensors.items()}))
    index = {"format": 1, "step": step, "weights": weights, "config": config, "optimizer": plain}
    with atomic_write(folder / _INDEX) as file:
        file.write(json.dumps(index, indent=1).encode())
    for old in folder.glob("step-*.safetensors"):
        if old.name != weights:
            old.unlink(missing_ok=True)


def load_checkpoint(
    folder: Path, model: nn.Module, optimizer: Optimizer | None = None, config: dict[str, Any] | None = None
) -> int:
    """Load what :func:`save_checkpoint` wrote into model and optimizer; return the step, 0 if nothing is there.

    Parameters
    ----------
    folder : Path
    model : torch.nn.Module
    optimizer : torch.optim.Optimizer, optional
        Without it only the model is loaded.
    config : dict, optional
        If given, it must equal the checkpoint's.

    Raises
    ------
    ModelError
        If the files are damaged, or belong to another configuration.
    """
    from safetensors.torch import load

    path = folder / _INDEX
    if not path.exists():
        return 0
    try:
        index = json.loads(path.read_text())
        step, weights, plain = int(index["step"]), Path(index["weights"]).name, index["optimizer"]
        tensors = load((folder / weights).read_bytes())
    except Exception as error:  # JSON, keys and safetensors each have errors of their own
        raise ModelError(f"{path}: the checkpoint is damaged ({error}); delete the folder to start again") from None
    if config is not None and index.get("config") != json.loads(json.dumps(config)):
        raise ModelError(f"{path}: the checkpoint belongs to another configuration; choose another folder")
    try:
        model.load_state_dict({k.removeprefix("model/"): v for k, v in tensors.items() if k.startswith("model/")})
    except RuntimeError as error:
        raise ModelError(f"{folder / weights}: does not fit the model: {error}") from None
    if optimizer is not None:
        for name, p in model.named_parameters():
            prefix = f"optimizer/{name}/"
            found = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            state = {k: v if k == "step" else v.to(p.device) for k, v in found.items()}
            state |= {k.rpartition("/")[2]: v for k, v in plain.items() if k.rpartition("/")[0] == name}
            if state:
                optimizer.state[p] = state
    return step
