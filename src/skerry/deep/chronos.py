"""The frozen encoders of Chronos-T5 and Chronos-Bolt, read from a local folder (config.json and safetensors).

Ansari et al., "Chronos: learning the language of time series", TMLR 2024. Only the encoder is built, from the
checkpoint's own configuration; nothing is downloaded and no code of the folder is run.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skerry.core.errors import MissingExtra, ModelError

__all__ = ["ChronosEncoder", "MeanScaleTokenizer"]

SIZES, MOST, MOST_LAYERS = ("d_model", "num_layers", "num_heads", "d_kv", "d_ff"), 1_000_000, 1_000


class MeanScaleTokenizer:
    """Values over their mean absolute one, in uniform bins; the last token ends the sequence.

    Parameters
    ----------
    n_tokens, n_special : int, default 4096 and 2
        Size of the vocabulary and its special tokens (0 pads, 1 ends).
    low, high : float, default -15 and 15
        Centres of the first and last bin.

    Examples
    --------
    >>> tokens, mask = MeanScaleTokenizer()(np.array([[0.0, 1.0, -1.0, np.nan]]))
    >>> tokens.tolist(), mask.tolist()
    ([[2049, 2254, 1844, 0, 1]], [[True, True, True, False, True]])
    """

    def __init__(self, n_tokens: int = 4096, n_special: int = 2, low: float = -15.0, high: float = 15.0) -> None:
        self.n_tokens, self.n_special = n_tokens, n_special
        centres = np.linspace(low, high, n_tokens - n_special - 1)
        self.boundaries = np.concatenate([[-1e20], (centres[1:] + centres[:-1]) / 2, [1e20]])

    def __call__(self, windows: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return tokens and mask, both (B, L + 1), of windows (B, L) in which NaN is missing."""
        seen = ~np.isnan(windows)
        total = np.where(seen, np.abs(windows), 0.0).sum(axis=1, keepdims=True)
        scale = total / np.maximum(seen.sum(axis=1, keepdims=True), 1)
        scaled = np.where(seen, windows, 0.0) / np.where(scale > 0.0, scale, 1.0)
        tokens = np.searchsorted(self.boundaries, scaled, side="right") + self.n_special
        tokens = np.where(seen, np.clip(tokens, 0, self.n_tokens - 1), 0)
        end = np.ones((len(windows), 1), dtype=np.int64)
        return np.concatenate([tokens, end], axis=1), np.concatenate([seen, end.astype(bool)], axis=1)


class ChronosEncoder:
    """One vector per time step from the encoder of a Chronos checkpoint.

    Parameters
    ----------
    folder : path
        With ``config.json`` (its ``chronos_config`` block is needed) and one or more ``.safetensors`` files.
    device : str, default "auto"
        "cuda" if there is one, in bfloat16; else "cpu" in float32.

    Attributes
    ----------
    kind : {"t5", "bolt"}
    width : int

    Raises
    ------
    ModelError
        If a file or a key is missing; the message names it.
    MissingExtra
        Without torch, safetensors and transformers.
    """

    centers = True

    def __init__(self, folder: str | Path, device: str = "auto") -> None:
        try:
            import torch
            from safetensors.torch import load_file
            from transformers import T5Config, T5EncoderModel
        except ImportError as error:
            raise MissingExtra(error.name or "transformers", "deep") from None
        folder = Path(folder)
        config = _config(folder)
        self.settings: dict[str, Any] = config["chronos_config"]
        self.kind = "bolt" if "input_patch_size" in self.settings else "t5"
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise ModelError(_no_weights(folder))
        weights: dict[str, Any] = {}
        try:
            for file in files:
                weights |= load_file(file)
        except Exception as error:
            raise ModelError(
                f"{file}: cannot be read as safetensors ({error}); it is cut off or of another format"
            ) from None
        known = {
            k: v for k, v in config.items() if k not in ("chronos_config", "architectures", "torch_dtype", "dtype")
        }
        try:
            with torch.device(
                "meta"
            ):  # shapes alone: a stranger's sizes take no memory before the weights bear them out
                shapes = {k: tuple(v.shape) for k, v in T5EncoderModel(T5Config(**known)).state_dict().items()}
        except Exception as error:
            raise ModelError(f"{folder / 'config.json'}: describes no T5 encoder ({error})") from None
        names = shapes.keys()
        found = {k: weights[k] for k in names if k in weights}
        if "shared.weight" in found and "encoder.embed_tokens.weight" in names:
            found["encoder.embed_tokens.weight"] = found["shared.weight"]
        absent = sorted(set(names) - set(found))
        if absent:
            raise ModelError(f"{folder}: the weights lack {absent[0]!r} ({len(absent)} keys in all)")
        for name, shape in shapes.items():
            _fits(folder, name, found[name], shape)
        self.model = T5EncoderModel(T5Config(**known))
        self.model.load_state_dict(found)
        self.width = int(config["d_model"])
        cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
        self.device = "cuda" if cuda else "cpu" if device == "auto" else device
        self.dtype = torch.bfloat16 if self.device.startswith("cuda") else torch.float32
        self.model.to(self.device, self.dtype).eval().requires_grad_(False)
        tokens = int(self.settings["n_tokens"]) if self.kind == "t5" else 2 * bool(self.settings.get("use_reg_token"))
        if tokens > len(found["shared.weight"]):
            raise ModelError(
                f"{folder}: 'shared.weight' has {len(found['shared.weight'])} rows, "
                f"config.json asks for {tokens} tokens"
            )
        if self.kind == "t5":
            limits = self.settings.get("tokenizer_kwargs") or {}
            self.tokenizer = MeanScaleTokenizer(
                int(self.settings["n_tokens"]),
                int(self.settings["n_special_tokens"]),
                float(limits.get("low_limit", -15.0)),
                float(limits.get("high_limit", 15.0)),
            )
        else:
            self.patch = {}
            values, hidden = 2 * self.settings["input_patch_size"], config["d_ff"]
            sizes = {"hidden_layer": (hidden, values), "output_layer": (self.width, hidden)}
            for layer, shape in (sizes | {"residual_layer": (self.width, values)}).items():
                for part in ("weight", "bias"):
                    key = f"input_patch_embedding.{layer}.{part}"
                    if key not in weights:
                        raise ModelError(f"{folder}: the weights lack {key!r}")
                    _fits(folder, key, weights[key], shape if part == "weight" else shape[:1])
                    self.patch[f"{layer}.{part}"] = weights[key].to(self.device, self.dtype)

    def embed(self, windows: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return (B, L, width) for windows (B, L) in which NaN is missing."""
        import torch

        with torch.inference_mode():
            found = self._tokens(windows) if self.kind == "t5" else self._patches(windows)
            return found.float().cpu().numpy().astype(np.float64)

    def _tokens(self, windows: NDArray) -> Any:
        import torch

        tokens, mask = self.tokenizer(windows)
        found = self.model(
            input_ids=torch.from_numpy(tokens).to(self.device),
            attention_mask=torch.from_numpy(mask.astype(np.int64)).to(self.device),
        ).last_hidden_state
        return found[:, :-1]  # without the end token, which is nobody's moment

    def _patches(self, windows: NDArray) -> Any:
        import torch
        from torch.nn.functional import linear

        size = int(self.settings["input_patch_size"])
        x = torch.from_numpy(windows).to(self.device, torch.float32)
        mean = x.nanmean(dim=1, keepdim=True).nan_to_num(0.0)
        spread = ((x - mean) ** 2).nanmean(dim=1, keepdim=True).sqrt().nan_to_num(1.0)
        x = (x - mean) / torch.where(spread == 0.0, torch.full_like(spread, 1e-5), spread)
        short = -x.shape[1] % size
        x = torch.cat([x.new_full((len(x), short), float("nan")), x], dim=1)
        seen = ~x.isnan()
        x, seen = (v.reshape(len(v), -1, size) for v in (x.nan_to_num(0.0), seen.float()))
        both = torch.cat([x, seen], dim=2).to(self.dtype)
        p = self.patch
        hidden = linear(both, p["hidden_layer.weight"], p["hidden_layer.bias"]).relu()
        embedded = linear(hidden, p["output_layer.weight"], p["output_layer.bias"])
        embedded = embedded + linear(both, p["residual_layer.weight"], p["residual_layer.bias"])
        mask = seen.sum(dim=2) > 0
        if self.settings.get("use_reg_token"):
            register = self.model.shared.weight[1].expand(len(x), 1, -1)
            embedded = torch.cat([embedded, register], dim=1)
            mask = torch.cat([mask, mask.new_ones((len(x), 1))], dim=1)
        found = self.model(inputs_embeds=embedded, attention_mask=mask.to(self.dtype)).last_hidden_state
        patches = x.shape[1]
        return found[:, :patches].repeat_interleave(size, dim=1)[:, short:]


def _no_weights(folder: Path) -> str:
    """Return what to say of a folder without safetensors."""
    pickles = sorted(f.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl") for f in folder.glob(pattern))
    if not pickles:
        return f"{folder}: no .safetensors file; a Chronos folder has one beside its config.json"
    return (
        f"{folder}: {pickles[0]} is a pickle, which may run code when it is opened and is not read; get the model's "
        ".safetensors file, or save it anew with save_pretrained(folder, safe_serialization=True)"
    )


def _fits(folder: Path, name: str, value: Any, shape: tuple[int, ...]) -> None:
    if tuple(value.shape) != shape or not value.is_floating_point():
        raise ModelError(
            f"{folder}: {name!r} has shape {tuple(value.shape)} and type {value.dtype}, "
            f"config.json asks for numbers of shape {shape}; are config.json and weights of one model?"
        )


def _config(folder: Path) -> dict[str, Any]:
    """Return the checked configuration."""
    if not folder.is_dir():
        raise ModelError(f"{folder}: is not a folder; give that of a Chronos model, with config.json and .safetensors")
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"{file}: cannot be read ({error.strerror}); a Chronos folder has one") from None
    except ValueError:
        raise ModelError(f"{file}: is not valid JSON") from None
    if not isinstance(config, dict):
        raise ModelError(f"{file}: holds no table of settings; is this the folder of a Chronos model?")
    for key in ("chronos_config", *SIZES):
        if key not in config:
            raise ModelError(f"{file}: has no {key!r}; is this the folder of a Chronos model?")
    settings = config["chronos_config"]
    if not isinstance(settings, dict):
        raise ModelError(f"{file}: chronos_config holds no table of settings")
    needed = ("input_patch_size",) if "input_patch_size" in settings else ("n_tokens", "n_special_tokens")
    for key in needed:
        if key not in settings:
            raise ModelError(f"{file}: chronos_config has no {key!r}")
    for where, keys in ((config, SIZES), (settings, needed)):
        for key in keys:
            value, most = where[key], MOST_LAYERS if key == "num_layers" else MOST
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
                raise ModelError(f"{file}: {key} must be a whole number between 1 and {most:,}, is {value!r}")
    limits = settings.get("tokenizer_kwargs") or {}
    ends = (
        [limits.get(k, v) for k, v in (("low_limit", -15.0), ("high_limit", 15.0))] if hasattr(limits, "get") else [1]
    )
    if not all(isinstance(v, (int, float)) for v in ends) or not ends[0] < ends[-1]:
        raise ModelError(f"{file}: tokenizer_kwargs must hold low_limit below high_limit, holds {limits!r}")
    return config
