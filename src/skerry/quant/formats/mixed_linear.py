"""A drop-in linear layer of LLM.int8(), with gradients: for use without the engine, and for training adapters."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from skerry.core.errors import ModelError
from skerry.quant.formats.mixed_decomposition import MixedInfo, MixedInt8, MixedInt8Tensor, OutlierSplit, mixed_product

__all__ = ["MixedInt8Linear"]


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, codes, scale, kept, split):
        weight = MixedInt8Tensor(MixedInt8("int8" if kept is None else "float"), codes, scale, kept)
        y, info = mixed_product(x, weight, split)
        index = torch.tensor(info.outlier_dims, dtype=torch.int64, device=x.device)
        ctx.save_for_backward(x, codes, scale, kept, index)
        ctx.split = split
        ctx.info = info
        return y.to(x.dtype), index

    @staticmethod
    def backward(ctx, grad, _):
        x, codes, scale, kept, outliers = ctx.saved_tensors
        g = grad.float()
        to_x = to_kept = None
        if ctx.needs_input_grad[0]:
            W = codes.float() * scale
            if kept is not None and len(outliers):
                W = W.index_copy(1, outliers, kept[:, outliers].float())
            to_x = (g @ W).to(x.dtype)
        if kept is not None and ctx.needs_input_grad[3]:
            # rounded inputs where the product was in 8 bits, exact ones in the outlier columns
            to_kept = (g.T @ ctx.split.fake(x.float())).to(kept.dtype)
        return to_x, None, None, to_kept, None


class MixedInt8Linear(nn.Module):
    """``x W^T + b`` with the outlier columns of ``x`` multiplied in floating point.

    Make one with :meth:`from_float`; ``state_dict`` holds codes, scales, bias and, with float outlier weights, the
    trainable bfloat16 ``weight``.

    Parameters
    ----------
    stored : MixedInt8Tensor
    split : OutlierSplit
    bias : Tensor of shape (out,), optional

    Attributes
    ----------
    calls, missed_calls : int
        Static mode: calls so far, and those with a value of at least the threshold outside the static columns.

    Examples
    --------
    >>> _ = torch.manual_seed(0)
    >>> layer = MixedInt8Linear.from_float(nn.Linear(8, 4))
    >>> x = torch.randn(2, 8)
    >>> x[:, 5] = 30.0
    >>> y, info = layer(x, return_info=True)
    >>> info.outlier_dims
    [5]
    """

    def __init__(self, stored: MixedInt8Tensor, split: OutlierSplit, bias: Tensor | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = stored.shape
        self.split = split
        self.register_buffer("codes", stored.codes)
        self.register_buffer("scale", stored.scale)
        self.register_buffer("bias", None if bias is None else bias.detach().clone())
        self.weight = None if stored.kept is None else nn.Parameter(stored.kept)
        self.calls = self.missed_calls = 0

    @classmethod
    def from_float(
        cls,
        linear: nn.Linear,
        threshold: float = 6.0,
        *,
        outlier_weights: str = "int8",
        symmetric: bool = True,
        scope: str = "columns",
        columns: tuple[int, ...] | None = None,
    ) -> MixedInt8Linear:
        """Convert a linear layer; ``columns`` makes them static (and always exact on the input's side).

        Raises
        ------
        ModelError
            If the weight holds NaN or infinite values.
        """
        W = linear.weight.detach()
        if not bool(torch.isfinite(W).all()):
            raise ModelError("the weight of this linear layer holds NaN or infinite values")
        mode = "dynamic" if columns is None else "static"
        split = OutlierSplit(threshold, symmetric=symmetric, scope=scope, mode=mode, columns=columns)
        return cls(MixedInt8(outlier_weights).quantize(W), split, linear.bias)

    def stored(self) -> MixedInt8Tensor:
        """Return the stored weight."""
        kept = None if self.weight is None else self.weight.detach()
        return MixedInt8Tensor(MixedInt8("int8" if kept is None else "float"), self.codes, self.scale, kept)

    def forward(self, x: Tensor, return_info: bool = False) -> Tensor | tuple[Tensor, MixedInfo]:
        """Return (..., out) in the dtype of ``x``, with :class:`MixedInfo` if asked for."""
        flat = x.reshape(-1, self.in_features)
        y, outliers = _Product.apply(flat, self.codes, self.scale, self.weight, self.split)
        if self.split.mode == "static":
            self.calls += 1
            top = flat.detach().abs().amax(0).index_fill(0, outliers, 0.0)
            self.missed_calls += int(bool((top >= self.split.threshold).any()))
        y = y.reshape(*x.shape[:-1], self.out_features)
        if self.bias is not None:
            y = y + self.bias.to(y.dtype)
        if not return_info:
            return y
        return y, MixedInfo(outliers.tolist(), 1.0 - len(outliers) / self.in_features)

    def extra_repr(self) -> str:
        """Return what ``print(model)`` shows."""
        return f"{self.in_features}, {self.out_features}, threshold {self.split.threshold}, {self.split.mode}"
