"""UnifiedNorm: a norm whose inference form is a constant scale per channel, so that it disappears into the next layer.

Yang et al., "Unified Normalization for Accelerating and Stabilizing Transformers", ACM MM 2022 (arXiv 2208.01313).
Statistics are second moments over all tokens of the batch, as in batch norm but without a mean. What makes them fit for
transformers: they are smoothed over the last steps (geometric mean forward, arithmetic mean and a moving average
backward), and a step whose statistics break a bound between the two means is treated as an outlier and smoothed by
nothing. :mod:`skerry.train.nn.fusion` merges a trained norm into its readers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from skerry.core.errors import DataError, ParameterError

__all__ = ["UnifiedNorm"]

_SMALLEST = 1e-12  # of a second moment under the logarithm: a dead channel has zero


def _affine(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Return ``scale * x + shift`` in the dtype of x, computed in the wider one, in one pass where they agree."""
    if x.dtype == scale.dtype == shift.dtype:
        return torch.addcmul(shift, x, scale)
    return (x * scale + shift).to(x.dtype)


class _Normalize(torch.autograd.Function):
    """``y = weight * x / sqrt(var + eps) + bias`` with the paper's gradient, which smooths its own statistic.

    With z = x / sqrt(var + eps), g = dL/dy * weight * ratio and gz = mean over tokens of g z, the derivative of the
    norm is (g - gz z) / sqrt(var + eps); in place of gz stands a moving average of its mean over the last steps, unless
    the step was skipped. The buffers of these averages are written in the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        inverse: Tensor,
        ratio: Tensor,
        skip: Tensor,
        plain: Tensor,
        slot: Tensor,
        gradient_buffer: Tensor,
        gradient_ema: Tensor,
        momentum: float,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, inverse, ratio, skip, plain, slot)
        # not saved: several forward passes may precede the backward passes, each of which writes the two
        ctx.gradient_buffer, ctx.gradient_ema, ctx.momentum = gradient_buffer, gradient_ema, momentum
        return _affine(x, weight * inverse, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, inverse, ratio, skip, plain, slot = ctx.saved_tensors
        buffer, ema = ctx.gradient_buffer, ctx.gradient_ema
        wide_x, wide_grad = x.to(inverse.dtype), grad.to(inverse.dtype)
        tokens = tuple(range(x.dim() - 1))
        dot = (wide_grad * wide_x).sum(tokens) * inverse * ratio  # = sum over tokens of grad * ratio * z
        gz = dot * weight * (x.shape[-1] / x.numel())
        with torch.no_grad():
            buffer.index_copy_(0, slot, torch.where(skip, ema, gz).to(buffer.dtype)[None])
            mean = torch.where(plain, gz, buffer.mean(0))
            ema.mul_(ctx.momentum).add_(mean, alpha=1 - ctx.momentum)
            statistic = torch.where(skip, mean, ema)
        dx = (wide_grad * (weight * ratio * inverse)).addcmul_(wide_x, statistic * inverse.square(), value=-1)
        return dx.to(x.dtype), dot.to(weight.dtype), wide_grad.sum(tokens).to(weight.dtype), *[None] * 8


def _take_in(
    x2: Tensor,
    running: Tensor,
    buffer: Tensor,
    iteration: Tensor,
    skip_counter: Tensor,
    warmup: int,
    ratio_warmup: int,
    filtration: bool,
    per_channel: bool,
    protect: bool,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Take the second moments of one step into the buffers; return (variance, ratio, skip, step).

    Written without a look at any value, so that it never waits for a device.
    """
    window = len(buffer)
    iteration += 1
    step = iteration.clone()
    slot = (step % window)[None]
    spread = buffer.sqrt()  # before the new row is written: it must not vouch for itself
    spread = spread.var(0) if per_channel else spread.var()
    buffer.index_copy_(0, slot, x2[None])
    geometric = buffer.clamp_min(_SMALLEST).log().mean(0).exp()
    skip = torch.full_like(step, window == 1, dtype=torch.bool)
    if filtration and window > 1:
        # for x >= 0 of length M: AM - GM <= M Var(sqrt x); a row that breaks it is not the recorded fluctuation
        mean = buffer.mean(0)
        rounding = 16 * torch.finfo(buffer.dtype).eps * mean  # equal rows have means that differ by this
        skip = (step >= warmup) & (mean - geometric > window * spread + rounding).any()
        buffer.index_copy_(0, slot, torch.where(skip, running, x2)[None])
        skip_counter += skip
    variance = torch.where((step < warmup) | skip, x2, geometric)  # the warm-up is longer than the window
    ratio = ((variance + eps) / (running + eps)).sqrt().clamp(0.2, 5.0)
    ratio = torch.where((step <= ratio_warmup) | skip, 1.0, ratio)
    updated = momentum * running + (1 - momentum) * variance
    running.copy_(torch.where(skip, running, updated) if protect and window > 1 else updated)
    return variance, ratio, skip, step


# One opaque operation for compilers: what the backward pass needs must not be computed again from buffers that the
# forward pass has meanwhile moved on, as the partitioner of torch.compile would.
_take_in_compiled = torch.library.custom_op(
    "skerry::unified_norm_take_in",
    _take_in,
    mutates_args=("running", "buffer", "iteration", "skip_counter"),
)


@_take_in_compiled.register_fake
def _(x2, running, buffer, iteration, *settings):
    skip = torch.empty_like(iteration, dtype=torch.bool)
    return torch.empty_like(x2), torch.empty_like(x2), skip, torch.empty_like(iteration)


class UnifiedNorm(nn.Module):
    """In place of LayerNorm: a norm by smoothed second moments of the channels, a constant scale once in ``eval()``.

    When not to use it: statistics are taken over all tokens of the batch, so that in training a causal model sees a
    little of the tokens to come (as with every batch norm; ``eval()`` does not), and batches of less than some 512
    tokens are noisy: raise ``window`` to 8 or 16. Each forward pass in training counts as a step, micro-batches of
    gradient accumulation included (recomputations of activation checkpointing are not, where the norm is called once
    per step); on several devices each takes its own statistics (``DistributedDataParallel`` with its default
    ``broadcast_buffers=True`` hands those of the first process to all at the start of each step).

    Parameters
    ----------
    dim : int
        Channels: the last axis.
    window : int or (int, int), default 4
        Steps that are smoothed over, forward and backward. At 1 nothing is: the exact batch statistic.
    warmup : int, default 4000
        Steps with plain statistics before smoothing begins, more than ``window``. For a short training take a tenth of
        its steps, as :meth:`for_steps` does.
    ratio_warmup : int, optional
        Steps (at least ``warmup``) in which the ratio of current to running scale, by which the gradient is corrected
        within [1/5, 5], stays 1. Default: 1000.
    outlier_filtration : bool, default False
        Smooth nothing in a step whose statistics do not fit the window. The paper uses it for vision.
    threshold : {"global", "channel"}, default "global"
        Take the variance in the bound over window and channels, as the paper's code does, or for each channel.
    protect_running : bool, default False
        Keep a skipped step out of the running statistic; the paper's code lets it in.
    momentum : float, default 0.9
        Of the running statistic and of the gradient's.
    eps : float, default 1e-5

    Attributes
    ----------
    running_var : Tensor of shape (dim,)
        What ``eval()`` divides by: smoothed second moments.
    skip_counter, iteration : Tensor
        Steps that the filter set aside, and steps in all.
    frozen : bool
        See :meth:`freeze_stats`.
    pad_mask : Tensor of bool or None
        Used where a call gives none: for networks that hand no mask to their norms.

    Raises
    ------
    ParameterError
        If an argument is out of its range.

    Examples
    --------
    >>> import torch
    >>> norm = UnifiedNorm(4, window=1, warmup=2)
    >>> x = torch.randn(8, 16, 4) * torch.tensor([1.0, 10.0, 100.0, 1000.0])
    >>> norm(x).square().mean((0, 1)).round(decimals=3).tolist()
    [1.0, 1.0, 1.0, 1.0]
    """

    running_var: Tensor
    gradient_ema: Tensor
    forward_buffer: Tensor
    gradient_buffer: Tensor
    iteration: Tensor
    skip_counter: Tensor

    def __init__(
        self,
        dim: int,
        window: int | tuple[int, int] = 4,
        warmup: int = 4000,
        *,
        ratio_warmup: int = 1000,
        outlier_filtration: bool = False,
        threshold: str = "global",
        protect_running: bool = False,
        momentum: float = 0.9,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        forward, backward = (window, window) if isinstance(window, int) else window
        if dim < 1 or min(forward, backward) < 1:
            raise ParameterError(f"dim and window must be 1 or more, not {dim} and {window}")
        if warmup <= forward:
            raise ParameterError(f"warmup is {warmup}: the window of {forward} steps must be full before it ends")
        if threshold not in ("global", "channel"):
            raise ParameterError(f"unknown threshold {threshold!r}: 'global' or 'channel'")
        if not 0 <= momentum < 1:
            raise ParameterError(f"momentum is {momentum}: give a number from 0 to below 1")
        self.dim, self.warmup, self.ratio_warmup = dim, warmup, max(ratio_warmup, warmup)
        self.outlier_filtration, self.threshold, self.protect_running = outlier_filtration, threshold, protect_running
        self.momentum, self.eps, self.frozen = momentum, eps, False
        self.pad_mask: Tensor | None = None
        self._last: tuple[Tensor, ...] | None = None
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))
        self.register_buffer("running_var", torch.ones(dim))
        self.register_buffer("gradient_ema", torch.zeros(dim))
        self.register_buffer("forward_buffer", torch.zeros(forward, dim))
        self.register_buffer("gradient_buffer", torch.zeros(backward, dim))
        self.register_buffer("iteration", torch.zeros((), dtype=torch.long))
        self.register_buffer("skip_counter", torch.zeros((), dtype=torch.long))

    @classmethod
    def for_steps(cls, dim: int, steps: int, tokens: int | None = None, **settings: Any) -> UnifiedNorm:
        """Return a norm for a training of ``steps`` steps.

        Below 10 000 steps the warm-up of statistics and ratio is a tenth of them, 20 at least; batches of less than 512
        tokens get a window of 8, of less than 256 one of 16. Otherwise the paper's settings.

        Parameters
        ----------
        dim : int
        steps : int
        tokens : int, optional
            Of a batch, in one process.
        **settings
            Any argument of the class, in place of what is chosen here.

        Raises
        ------
        ParameterError
            If ``steps`` or ``tokens`` is below 1, or a setting is out of its range.

        Examples
        --------
        >>> UnifiedNorm.for_steps(64, 1000)
        UnifiedNorm(64, window=(4, 4), warmup=100, outlier_filtration=False, momentum=0.9, eps=1e-05)
        """
        if steps < 1 or (tokens is not None and tokens < 1):
            raise ParameterError(f"steps={steps} and tokens={tokens}: give 1 or more")
        chosen: dict[str, Any] = {}
        if steps < 10_000:
            chosen["warmup"] = chosen["ratio_warmup"] = max(20, steps // 10)
        if tokens is not None and tokens < 512:
            chosen["window"] = 8 if tokens >= 256 else 16
        return cls(dim, **{**chosen, **settings})

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> UnifiedNorm:
        """Move or convert, but keep statistics at float32 at least: bfloat16 would round their averages away."""
        before = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)
        for name, old in before.items():
            new = getattr(self, name)
            if new.is_floating_point() and new.dtype.itemsize < 4:
                setattr(self, name, old.to(new.device))
        return self

    def freeze_stats(self, frozen: bool = True) -> None:
        """Divide by the running statistic in training too, and differentiate it as the constant it then is.

        For fine-tuning on batches too small to take statistics from.
        """
        self.frozen = frozen

    def inference_scale(self) -> tuple[Tensor, Tensor]:
        """Return (scale, shift), each (dim,): in ``eval()`` the module is ``scale * x + shift``."""
        return self.weight * torch.rsqrt(self.running_var + self.eps), self.bias

    def _second_moment(self, x: Tensor, pad_mask: Tensor | None) -> Tensor:
        """Return the mean square of each channel over the tokens that are not padding."""
        x = x.detach().to(self.running_var.dtype).reshape(-1, self.dim)
        if pad_mask is None:
            return x.square().mean(0)
        real = ~pad_mask.reshape(-1)
        if len(real) != len(x):
            raise DataError(f"pad_mask has {len(real)} tokens and x has {len(x)}: give one bool for each token")
        x = torch.where(real[:, None], x, 0.0)
        return x.square().sum(0) / real.sum().clamp_min(1)

    def _statistics(self, x2: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Take the second moments of one step in; return (variance, ratio, skip, step)."""
        if not torch.compiler.is_compiling() and self._last is not None and torch._C._current_graph_task_id() != -1:
            return self._last  # a forward pass inside a backward pass: activation checkpointing repeats its step
        settings = (
            x2,
            self.running_var,
            self.forward_buffer,
            self.iteration,
            self.skip_counter,
            self.warmup,
            self.ratio_warmup,
            self.outlier_filtration,
            self.threshold == "channel",
            self.protect_running,
            self.momentum,
            self.eps,
        )
        if torch.compiler.is_compiling():
            return _take_in_compiled(*settings)
        self._last = _take_in(*settings)
        return self._last

    def forward(self, x: Tensor, pad_mask: Tensor | None = None) -> Tensor:
        """Normalise ``x``.

        Parameters
        ----------
        x : Tensor of shape (..., dim)
            Statistics are float32 (float64 for a float64 module) whatever its dtype.
        pad_mask : Tensor of bool of shape (...), optional
            True at padding, which is normalised but kept out of the forward statistics.

        Returns
        -------
        Tensor of the shape and dtype of ``x``.
        """
        if not self.training or self.frozen:
            return _affine(x, *self.inference_scale())
        pad_mask = self.pad_mask if pad_mask is None else pad_mask
        variance, ratio, skip, step = self._statistics(self._second_moment(x, pad_mask))
        inverse = torch.rsqrt(variance + self.eps)
        window = len(self.gradient_buffer)
        plain = (step <= window) | (step < self.warmup) | skip
        slot = (step % window)[None]
        return _Normalize.apply(
            x,
            self.weight,
            self.bias,
            inverse,
            ratio,
            skip,
            plain,
            slot,
            self.gradient_buffer,
            self.gradient_ema,
            self.momentum,
        )

    def extra_repr(self) -> str:
        """Return the arguments that differ between models."""
        window = (len(self.forward_buffer), len(self.gradient_buffer))
        return (
            f"{self.dim}, window={window}, warmup={self.warmup}, outlier_filtration={self.outlier_filtration}, "
            f"momentum={self.momentum}, eps={self.eps}"
        )
