"""What a trained laboratory model loses at low bits: in sum, per family of linear layers, with an FFN Hadamard or not.

The definition of the laboratory note: weights rounded per output channel (symmetric, absmax), activations symmetric
absmax with one dynamic scale for a tensor or for each token, loss(quantized) - loss(full) in nats on fixed batches.
Embeddings, head, gates and attention probabilities stay as they are. Grids are those of :mod:`skerry.quant`; kept here
because the laboratory is in another wing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from scipy.linalg import hadamard
from torch import Tensor, nn

from skerry.core.errors import ModelError, ParameterError, nearest
from skerry.quant.activation import TensorDynamic, TensorStatic, TokenDynamic
from skerry.quant.numerics import AffineGrid
from skerry.train.metrics import token_loss

__all__ = ["SITES", "mean_loss", "quantization_gap", "quantized"]

SITES = {
    "in": ("q_proj", "k_proj", "v_proj", "up", "gate"),  # what the norms feed
    "ao": ("o_proj",),
    "ffn": ("down",),
}
BITS_16 = 16


def _layers(model: nn.Module, sites: Collection[str]) -> dict[str, tuple[nn.Linear, str]]:
    """Return the linear layers of the blocks, name to (layer, site)."""
    found = {}
    for name, module in model.named_modules():
        own = name.rpartition(".")[2]
        site = next((s for s, names in SITES.items() if own in names), None)
        if isinstance(module, nn.Linear) and name.startswith("blocks.") and ".norm" not in name and site in sites:
            found[name] = (module, site)
    if not found:
        raise ModelError(f"{type(model).__name__} has no linear layer of {', '.join(sites)} in its blocks")
    return found


def block_hadamard(d: int) -> Tensor:
    """Return an orthogonal (d, d) matrix of Hadamard blocks, each of the largest power of two that divides d."""
    size = d & -d
    return torch.from_numpy(np.kron(np.eye(d // size), hadamard(size) / np.sqrt(size))).float()


class _Range:
    """Running minimum and maximum over calibration batches, momentum 0.9 (Quantizable Transformers)."""

    def __init__(self, bits: int) -> None:
        self.bits, self.ends = bits, None

    def see(self, x: Tensor) -> None:
        new = torch.stack([x.min(), x.max()])
        self.ends = new if self.ends is None else 0.9 * self.ends + 0.1 * new

    def grid(self) -> TensorStatic:
        return TensorStatic(self.bits, symmetric=False, low=float(self.ends[0]), high=float(self.ends[1]))


@contextmanager
def quantized(
    model: nn.Module,
    *,
    weight_bits: int = 4,
    activation_bits: int = 4,
    per: str = "token",
    sites: Collection[str] = tuple(SITES),
    ffn_hadamard: bool = False,
    calibration: Sequence[Tensor] = (),
) -> Iterator[None]:
    """Simulate a quantized model for the time of the block.

    Parameters
    ----------
    model : torch.nn.Module
        A :class:`skerry.train.lab_model.SmallGPT` or ``SmallViT``, its embedding projection merged.
    weight_bits, activation_bits : int, default 4
        2 to 8; 16 leaves them as they are.
    per : {"token", "tensor", "static"}, default "token"
        Who shares a scale of activations; ``"static"`` is one asymmetric scale a layer, from ``calibration``.
    sites : collection of {"in", "ao", "ffn"}
        Families that are quantized: what norms feed, the attention's output projection, the second FFN layer.
    ffn_hadamard : bool, default False
        Turn the hidden activations of the FFN by a Hadamard matrix, and the weight that reads them back.
    calibration : sequence of Tensor
        Inputs of the model for ``per="static"``.

    Raises
    ------
    ParameterError
        For an unknown ``per`` or site, or a static grid without calibration.
    """
    if per not in ("token", "tensor", "static"):
        raise ParameterError(f"per is {per!r}: give 'token', 'tensor' or 'static'")
    for site in sites:
        if site not in SITES:
            raise ParameterError(f"unknown site {site!r}: {nearest(site, SITES)}")
    if per == "static" and not len(calibration):
        raise ParameterError("a static grid needs calibration batches")
    layers = _layers(model, sites)
    hooks, weights = [], {}

    def turn(name: str) -> Tensor | None:
        layer, site = layers[name]
        return block_hadamard(layer.in_features).to(layer.weight) if ffn_hadamard and site == "ffn" else None

    grids: dict[str, object] = {}
    if activation_bits < BITS_16:
        kind = {"token": TokenDynamic, "tensor": TensorDynamic, "static": _Range}[per]
        grids = {name: kind(bits=activation_bits) for name in layers}
        if per == "static":
            _calibrate(model, layers, grids, {n: turn(n) for n in layers}, calibration)
            grids = {name: found.grid() for name, found in grids.items()}
    try:
        for name, (layer, _) in layers.items():
            rotation = turn(name)
            weights[name] = layer.weight.data
            w = layer.weight.data if rotation is None else layer.weight.data @ rotation
            layer.weight.data = AffineGrid(weight_bits).round(w).to(w.dtype) if weight_bits < BITS_16 else w
            hooks.append(layer.register_forward_pre_hook(_round_input(grids.get(name), rotation)))
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for name, weight in weights.items():
            layers[name][0].weight.data = weight


def _round_input(grid: object | None, rotation: Tensor | None):
    def hook(module: nn.Module, inputs: tuple) -> tuple:
        x = inputs[0] if rotation is None else inputs[0] @ rotation
        return (x if grid is None else grid.fake(x), *inputs[1:])

    return hook


@torch.no_grad()
def _calibrate(model, layers, grids, rotations, calibration) -> None:
    def see(name: str):
        def hook(module: nn.Module, inputs: tuple) -> None:
            grids[name].see(inputs[0] if rotations[name] is None else inputs[0] @ rotations[name])

        return hook

    hooks = [layer.register_forward_pre_hook(see(name)) for name, (layer, _) in layers.items()]
    try:
        for x in calibration:
            model(x)
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def mean_loss(model: nn.Module, batches: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Return the mean loss over batches of equal size, in nats."""
    return sum(float(token_loss(model(x), y)) for x, y in batches) / len(batches)


def quantization_gap(
    model: nn.Module,
    batches: Sequence[tuple[Tensor, Tensor]],
    *,
    full: float | None = None,
    **how: object,
) -> float:
    """Return loss(quantized) - loss(full) in nats on ``batches``.

    Parameters
    ----------
    model : torch.nn.Module
    batches : sequence of (inputs, targets)
    full : float, optional
        The loss of the model as it is, if known.
    **how
        As for :func:`quantized`.

    Examples
    --------
    >>> from skerry.train.lab_model import SmallGPT
    >>> x = torch.randint(66, (4, 12), generator=torch.Generator().manual_seed(0))
    >>> model = SmallGPT(66)
    >>> abs(quantization_gap(model, [(x, x)], weight_bits=8, activation_bits=8)) < 1e-3
    True
    """
    full = mean_loss(model, batches) if full is None else full
    with quantized(model, **how):
        return mean_loss(model, batches) - full
