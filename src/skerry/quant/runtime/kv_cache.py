"""Keys and values of attention kept in 8, 4 or 2 bits while a model generates: a ``Cache`` of transformers.

Keys have channels that are always large, values have none (KIVI, arXiv 2402.02750), so few bits want one scale for
each channel over a group of tokens for keys, and one for each token for values. Tokens are rounded once, when their
group is complete, and never again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from skerry.core.errors import MissingExtra, ModelError, ParameterError

try:
    from transformers.cache_utils import Cache, DynamicLayer
except ImportError:
    raise MissingExtra("transformers", "deep") from None

__all__ = ["KVQuantizer", "Packed", "QuantizedKVCache"]

HALF = torch.finfo(torch.float16)


@dataclass(frozen=True)
class Packed:
    """Rounded states: all have (batch, heads, tokens or groups of them, ...).

    Attributes
    ----------
    codes : Tensor of uint8
        The head's channels packed, the first in the lowest bits.
    scale, low : Tensor of float16
        Values are ``low + code * scale``.
    """

    codes: Tensor
    scale: Tensor
    low: Tensor

    @property
    def nbytes(self) -> int:
        """Bytes of all three."""
        return sum(t.numel() * t.element_size() for t in (self.codes, self.scale, self.low))

    def each(self, change: Callable[[Tensor], Tensor]) -> Packed:
        """Return the states with every tensor changed."""
        return Packed(change(self.codes), change(self.scale), change(self.low))

    def before(self, tokens: int, groups: int) -> Packed:
        """Return the first tokens."""
        return Packed(self.codes[:, :, :tokens], self.scale[:, :, :groups], self.low[:, :, :groups])

    def followed_by(self, other: Packed) -> Packed:
        """Return these states and, behind them, those of later tokens."""
        pairs = ((self.codes, other.codes), (self.scale, other.scale), (self.low, other.low))
        return Packed(*(torch.cat(pair, 2) for pair in pairs))


@dataclass(frozen=True)
class KVQuantizer:
    """How keys, or values, are rounded.

    Parameters
    ----------
    bits : {8, 4, 2}, default 8
    per : {"token", "channel"}, default "token"
        What has a scale of its own.
    group_size : int, default -1
        "token": channels of a head that share it, -1 for all. "channel": tokens that share it.

    Raises
    ------
    ParameterError
        For other bits, or groups that no tensor can have.

    Examples
    --------
    >>> x = torch.tensor([[0.0, 1.0], [2.0, 5.0], [4.0, 3.0], [15.0, 15.0]])[None, None]
    >>> KVQuantizer(4, "channel", 4).fake(x).equal(KVQuantizer(8, "channel", 4).fake(x))
    False
    >>> KVQuantizer(4, "channel", 4).fake(x)[..., 0]
    tensor([[[ 0.,  2.,  4., 15.]]])
    """

    bits: int = 8
    per: str = "token"
    group_size: int = -1

    def __post_init__(self) -> None:
        if self.bits not in (2, 4, 8):
            raise ParameterError(f"the bits of a cache must be 8, 4 or 2, got {self.bits}")
        if self.per not in ("token", "channel"):
            raise ParameterError(f"per must be 'token' or 'channel', got {self.per!r}")
        if self.group_size < 1 and (self.group_size != -1 or self.per == "channel"):
            raise ParameterError(f"group_size must be positive (for tokens also -1), got {self.group_size}")

    @property
    def step(self) -> int:
        """Tokens that are rounded together."""
        return self.group_size if self.per == "channel" else 1

    def quantize(self, x: Tensor) -> Packed:
        """Round states (batch, heads, tokens, channels); the tokens must be a multiple of :attr:`step`.

        Raises
        ------
        ModelError
            If the head's channels cannot be packed or grouped, or the tokens not be grouped.
        """
        y = self._grouped(x.float())
        low, high = y.amin(self._axis, keepdim=True), y.amax(self._axis, keepdim=True)
        low = low.clamp(HALF.min, HALF.max).half().float()  # as stored: what is rounded must know it
        scale = ((high - low) / (2**self.bits - 1)).clamp(HALF.tiny, HALF.max).half().float()
        codes = torch.round((y - low) / scale).clamp(0, 2**self.bits - 1).to(torch.uint8)
        codes = codes.reshape(x.shape)
        per_byte = 8 // self.bits
        packed = codes[..., ::per_byte].clone()
        for i in range(1, per_byte):
            packed |= codes[..., i::per_byte] << (i * self.bits)
        return Packed(packed, scale.squeeze(self._axis).half(), low.squeeze(self._axis).half())

    def dequantize(self, packed: Packed) -> Tensor:
        """Return float32 states."""
        per_byte = 8 // self.bits
        parts = [(packed.codes >> (i * self.bits)) & (2**self.bits - 1) for i in range(per_byte)]
        codes = torch.stack(parts, -1).flatten(-2).float()
        scale, low = (t.float().unsqueeze(self._axis) for t in (packed.scale, packed.low))
        return (self._grouped(codes) * scale + low).reshape(codes.shape)

    def fake(self, x: Tensor) -> Tensor:
        """Return states as they come back from the cache; tokens of an unfinished group are not rounded."""
        whole = x.shape[2] // self.step * self.step
        if not whole:
            return x
        return torch.cat([self.dequantize(self.quantize(x[:, :, :whole])).to(x.dtype), x[:, :, whole:]], 2)

    @property
    def _axis(self) -> int:
        """Axis of a group in grouped states."""
        return 3 if self.per == "channel" else -1

    def _grouped(self, x: Tensor) -> Tensor:
        channels, tokens = x.shape[-1], x.shape[2]
        if channels % (8 // self.bits):
            raise ModelError(f"heads of {channels} channels cannot be packed in {self.bits} bits")
        if self.per == "channel":
            if tokens % self.group_size:
                raise ModelError(f"{tokens} tokens are no whole groups of {self.group_size}")
            return x.unflatten(2, (-1, self.group_size))
        size = channels if self.group_size == -1 else self.group_size
        if channels % size:
            raise ModelError(f"groups of {size} do not divide heads of {channels} channels")
        return x.unflatten(-1, (-1, size))


class _States:
    """Keys or values of one layer: rounded ones, and the newest in floating point behind them."""

    def __init__(self, quantizer: KVQuantizer, window: int) -> None:
        self.quantizer, self.window = quantizer, window
        self.packed: Packed | None = None
        self.recent: Tensor | None = None

    @property
    def rounded(self) -> int:
        return 0 if self.packed is None else self.packed.codes.shape[2]

    @property
    def tokens(self) -> int:
        return self.rounded + (0 if self.recent is None else self.recent.shape[2])

    @property
    def nbytes(self) -> int:
        recent = 0 if self.recent is None else self.recent.numel() * self.recent.element_size()
        return recent + (0 if self.packed is None else self.packed.nbytes)

    def append(self, x: Tensor) -> Tensor:
        """Take in new tokens and return all."""
        recent = x if self.recent is None else torch.cat([self.recent, x], 2)
        step = self.quantizer.step
        ready = max(recent.shape[2] - self.window, 0) // step * step
        if ready:
            new = self.quantizer.quantize(recent[:, :, :ready])
            self.packed = new if self.packed is None else self.packed.followed_by(new)
        self.recent = recent[:, :, ready:].clone()
        return self.all()

    def all(self) -> Tensor:
        """Return the states as attention sees them."""
        assert self.recent is not None
        if self.packed is None:
            return self.recent
        return torch.cat([self.quantizer.dequantize(self.packed).to(self.recent.dtype), self.recent], 2)

    def each(self, change: Callable[[Tensor], Tensor]) -> None:
        if self.packed is not None:
            self.packed = self.packed.each(change)
        if self.recent is not None:
            self.recent = change(self.recent)

    def keep(self, tokens: int) -> None:
        """Drop the newest tokens; those of a group that is cut in two go back to floating point."""
        if self.packed is None or self.recent is None or tokens >= self.rounded:
            self.recent = None if self.recent is None else self.recent[:, :, : max(tokens - self.rounded, 0)]
            return
        step = self.quantizer.step
        whole = tokens // step
        rest = self.quantizer.dequantize(self.packed)[:, :, whole * step : tokens].to(self.recent.dtype)
        self.packed = self.packed.before(whole * step, whole) if whole else None
        self.recent = rest


class _Layer(DynamicLayer):
    """One layer's cache, in the words of transformers."""

    is_compileable = False

    def __init__(self, keys: KVQuantizer, values: KVQuantizer, window: int) -> None:
        super().__init__()
        self._quantizers, self._window = (keys, values), window
        self._states = self._new()

    def _new(self) -> list[_States]:
        return [_States(quantizer, self._window) for quantizer in self._quantizers]

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Take in new tokens and return all of them, as they were rounded."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        keys, values = self._states
        return keys.append(key_states), values.append(value_states)

    def get_seq_length(self) -> int:
        """Return the tokens held."""
        return self._states[0].tokens

    def crop(self, tokens_to_remove: int) -> None:
        """Drop the ``-tokens_to_remove`` newest tokens."""
        if tokens_to_remove > 0:
            raise ValueError("crop wants a negative number: the tokens to remove")
        for states in self._states:
            states.keep(max(states.tokens + tokens_to_remove, 0))

    def reset(self) -> None:
        """Forget everything."""
        self._states, self.is_initialized = self._new(), False

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Take other rows of the batch, for beam search."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row of the batch."""
        for states in self._states:
            states.each(lambda t: t.repeat_interleave(repeats, 0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some rows of the batch."""
        for states in self._states:
            states.each(lambda t: t[indices.to(t.device)])

    def offload(self) -> None:
        """Move to the processor's memory."""
        for states in self._states:
            states.each(lambda t: t.to("cpu", non_blocking=True))

    def prefetch(self) -> None:
        """Move back to the layer's device."""
        for states in self._states:
            states.each(lambda t: t.to(self.device, non_blocking=True))

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(states.nbytes for states in self._states)


class QuantizedKVCache(Cache):
    """A cache of few bits for ``model.generate(..., past_key_values=cache)``.

    Parameters
    ----------
    config : PreTrainedConfig
        The model's.
    bits : {8, 4, 2}, default 8
    keys : {"token", "channel"}, optional
        What has a scale among the keys; default "token" at 8 bits, "channel" below.
    group_size : int, default 32
        Tokens that share a channel's scale; one unfinished group stays in floating point.
    window : int, default 0
        Newest tokens that stay in floating point beside it.

    Raises
    ------
    ParameterError
        For settings out of range.
    ModelError
        For a model whose layers do not all attend to all tokens; when used, for heads that cannot be packed.

    Examples
    --------
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> config = LlamaConfig(vocab_size=32, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
    ...                      num_attention_heads=2)
    >>> model, cache = LlamaForCausalLM(config), QuantizedKVCache(config, bits=4, group_size=8)
    >>> ids = model.generate(torch.ones(1, 20, dtype=torch.long), past_key_values=cache, max_new_tokens=3,
    ...                      do_sample=False, pad_token_id=0)
    >>> cache.get_seq_length(), cache.nbytes < 22 * 2 * 32 * 2  # 16-bit states
    (22, True)
    """

    def __init__(
        self, config: Any, *, bits: int = 8, keys: str | None = None, group_size: int = 32, window: int = 0
    ) -> None:
        if window < 0:
            raise ParameterError(f"window must not be negative, got {window}")
        text = config.get_text_config(decoder=True)
        kinds = set(getattr(text, "layer_types", None) or ["full_attention"])
        if others := sorted(kinds - {"full_attention"}):
            raise ModelError(f"{text.model_type} has layers of {others[0]}, whose cache is of another kind")
        per = keys or ("token" if bits == 8 else "channel")
        key = KVQuantizer(bits, per, group_size if per == "channel" else -1)
        super().__init__(layer_class_to_replicate=partial(_Layer, key, KVQuantizer(bits), window))  # type: ignore[arg-type]

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values held."""
        return sum(layer.nbytes for layer in self.layers)  # type: ignore[union-attr]
