"""Models larger than memory or device: blocks stay in their safetensors files and come in one at a time.

The placing is accelerate's: a device map sends blocks to "disk" (or to another device than computes them), and its
hooks know where every weight lies. What is quantized stays in the work folder and is read when it is wanted.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from skerry.core.errors import DataError, MissingExtra, ModelError
from skerry.deep.model_folder import _check_shard as check_shard
from skerry.deep.model_folder import quiet_loading, read_config
from skerry.quant.checkpoint_files import ShardReader
from skerry.quant.linear import QuantizedLinear
from skerry.quant.parts import Solved

__all__ = ["StoredLinear", "bring_in", "is_offloaded", "load_offloaded", "read_tensor", "settle", "weight_bytes"]


def load_offloaded(folder: str | Path, device_map: dict[str, Any] | None = None) -> nn.Module:
    """Return the float model of a folder with its blocks left on disk.

    Parameters
    ----------
    folder : path
        With config.json of a class of transformers and ``*.safetensors``.
    device_map : dict of str to device, optional
        In accelerate's form; by default blocks are on "disk" and all else on "cpu".

    Returns
    -------
    Module
        In evaluation mode. It computes, slowly; :func:`skerry.quant.quantize` takes it with ``inplace=True`` and a
        ``work_dir``.

    Raises
    ------
    DataError
        If something is absent.
    ModelError
        If a file is damaged, or the model has no blocks.
    MissingExtra
        Without transformers and accelerate.
    """
    try:
        import accelerate
        import transformers
    except ImportError:
        raise MissingExtra("accelerate", "deep") from None
    from skerry.quant.architectures.base import architecture_of

    folder = Path(folder)
    config = read_config(folder)
    shards = sorted(folder.glob("*.safetensors"))
    if not shards:
        raise DataError(f"{folder}: has no safetensors weights")
    for shard in shards:
        check_shard(shard)
    name = next((n for n in config.get("architectures") or [] if isinstance(n, str)), "")
    kind = getattr(transformers, name, None)
    if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
        raise ModelError(f"{folder / 'config.json'}: {name or 'architectures'!r} names no model class of transformers")
    try:
        with quiet_loading():
            if device_map is None:
                with accelerate.init_empty_weights():
                    empty = kind(kind.config_class.from_pretrained(folder, local_files_only=True))
                architecture = architecture_of(empty)
                if not architecture.blocks:
                    raise ModelError(f"{folder}: {name} has no list of blocks that could come in one at a time")
                device_map = _map(empty, architecture.block_names(empty))
            model, info = kind.from_pretrained(
                folder, device_map=device_map, local_files_only=True, trust_remote_code=False, use_safetensors=True,
                output_loading_info=True,
            )  # fmt: skip
    except (DataError, ModelError):
        raise
    except Exception as error:  # whatever a damaged folder makes the libraries raise
        raise ModelError(f"{folder}: could not be loaded as {name}: {str(error).splitlines()[0]}") from None
    for what, words in (("mismatched_keys", "has not the shape that config.json says"), ("missing_keys", "is missing")):
        if wrong := sorted(map(str, info.get(what) or ())):
            raise ModelError(f"{folder}: {wrong[0]} {words}")
    return model.eval()


def weight_bytes(folder: str | Path) -> int:
    """Return the bytes of a folder's safetensors files."""
    return sum(path.stat().st_size for path in Path(folder).glob("*.safetensors"))


def is_offloaded(module: nn.Module) -> bool:
    """Return whether some weights are not in memory but where accelerate's hooks find them."""
    return any(hook.offload for m in module.modules() for hook in _hooks(m))


def read_tensor(model: nn.Module, name: str) -> Tensor:
    """Return a tensor of the model's state that is on the meta device, from where it lies.

    Raises
    ------
    ModelError
        If it lies nowhere.
    """
    parent, _, key = name.rpartition(".")
    for hook in _hooks(model.get_submodule(parent)):
        if hook.weights_map is not None:
            return hook.weights_map[key]
    raise ModelError(f"{name} is on the meta device and no hook of accelerate knows where it lies")


def bring_in(block: nn.Module) -> None:
    """Put the weights of an offloaded block on the device that computes it, and take its hooks off."""
    from accelerate.hooks import remove_hook_from_module

    found: list[tuple[nn.Module, str, Tensor]] = []
    device: Any = None
    for module in block.modules():
        for hook in _hooks(module):
            device = hook.execution_device if device is None else device
            if hook.weights_map is not None:
                found += [
                    (module, key, hook.weights_map[key]) for key, p in module._parameters.items() if p is not None
                ]
                found += [(module, key, hook.weights_map[key]) for key, b in module._buffers.items() if _away(b)]
    remove_hook_from_module(block, recurse=True)
    for module in block.modules():  # the way back that was kept for each is a cycle, which would hold its weights
        if getattr(vars(module).get("forward"), "__func__", None) is type(module).forward:
            del module.forward
    for module, key, value in found:
        value = value.clone()  # in memory of its own: products may round by where a tensor begins
        if key in module._parameters:
            module._parameters[key] = nn.Parameter(value, requires_grad=False)
        else:
            module._buffers[key] = value
    block.to("cpu" if device is None else torch.device(device))


def settle(model: nn.Module) -> None:
    """Take accelerate's hooks off a model whose weights are all there, and move it to the processor's memory."""
    from accelerate.hooks import remove_hook_from_module

    remove_hook_from_module(model, recurse=True)
    if hasattr(model, "hf_device_map"):
        del model.hf_device_map
    model.to("cpu")


class StoredLinear(QuantizedLinear):
    """A quantized layer whose weight is read from a work folder each time it is used."""

    def __init__(self, layer: QuantizedLinear, folder: Path, name: str, entry: dict[str, Any]) -> None:
        bias = None if layer.bias is None else layer.bias.cpu()
        super().__init__(layer.solved, layer.activation, bias, layer.before)
        self._read = partial(_read, folder, name, entry)
        self._solved = None  # type: ignore[assignment]
        self.train(False)

    @property
    def solved(self) -> Solved:
        """Stored weight and what is added to it."""
        return self._read() if self.kernel is None else super().solved


def _read(folder: Path, name: str, entry: dict[str, Any]) -> Solved:
    from skerry.quant.checkpoint_load import read_part

    with ShardReader(folder) as reader:
        return read_part(reader, name, entry).solved


def _map(model: nn.Module, blocks: list[str]) -> dict[str, str]:
    """Return a device map with the blocks on disk and every other module or tensor in memory."""
    found: dict[str, str] = {}

    def walk(name: str, module: nn.Module) -> None:
        if name in blocks:
            found[name] = "disk"
        elif not any(b.startswith(f"{name}." if name else "") for b in blocks):
            found[name] = "cpu"
        else:
            start = f"{name}." if name else ""
            found.update({f"{start}{n}": "cpu" for n, _ in module.named_parameters(recurse=False)})
            found.update({f"{start}{n}": "cpu" for n, _ in module.named_buffers(recurse=False)})
            for child, inner in module.named_children():
                walk(f"{start}{child}", inner)

    walk("", model)
    return found


def _hooks(module: nn.Module) -> list[Any]:
    hook = getattr(module, "_hf_hook", None)
    return [h for h in getattr(hook, "hooks", [hook]) if hasattr(h, "weights_map")]


def _away(tensor: Tensor | None) -> bool:
    return tensor is not None and tensor.is_meta
