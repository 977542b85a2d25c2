"""SplitQuant on a whole model: every layer becomes the sum of three of its kind, for quantizers of other runtimes.

Song and Lin (2025), "SplitQuant" (arXiv 2501.12428). The model stays in floating point and computes what it did; a
quantizer with one scale a tensor then finds three narrow ranges in place of a wide one, at three times the layers. To
quantize here, use the recipe ``splitquant``: it stores the parts merged and multiplies once.
"""

from __future__ import annotations

import copy
import warnings

import torch
from torch import Tensor, nn

from skerry.core.errors import ModelError, ParameterError, SkerryWarning
from skerry.quant.formats.split import split_module

__all__ = ["SplitActivation", "split_model"]

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)  # exactly these: subclasses may be called past their forward
ELEMENTWISE = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.ELU, nn.Hardswish, nn.Mish)
CALLS_WEIGHTS = (nn.MultiheadAttention, nn.RNNBase)


class SplitActivation(nn.Module):
    """An elementwise activation, applied to equal chunks of the channels, so that each can get a scale of its own.

    Parameters
    ----------
    activation : Module
    parts : int, default 3
    axis : int, optional
        Of the channels: by default 1 for images (N, C, H, W) and the last axis for all else.

    Raises
    ------
    ModelError
        For an activation that looks at several channels at once, such as a softmax.
    ParameterError
        If there is no part.

    Examples
    --------
    >>> SplitActivation(nn.ReLU())(torch.tensor([[-1.0, 2.0, -3.0, 4.0]])).tolist()
    [[0.0, 2.0, 0.0, 4.0]]
    """

    def __init__(self, activation: nn.Module, parts: int = 3, axis: int | None = None) -> None:
        super().__init__()
        if not isinstance(activation, ELEMENTWISE):
            raise ModelError(f"a {type(activation).__name__} does not work element by element: it cannot be split")
        if parts < 1:
            raise ParameterError(f"parts must be at least 1, got {parts}")
        self.layers = nn.ModuleList(copy.deepcopy(activation) for _ in range(parts))
        self.axis = axis

    def forward(self, x: Tensor) -> Tensor:
        """Return the activation of ``x``."""
        axis = (1 if x.ndim == 4 else -1) if self.axis is None else self.axis
        chunks = x.tensor_split(min(len(self.layers), x.shape[axis]), axis)
        return torch.cat([layer(chunk) for layer, chunk in zip(self.layers, chunks, strict=False)], axis)


def split_model(
    model: nn.Module,
    *,
    clusters: int = 3,
    granularity: str = "auto",
    bias: bool = True,
    activations: bool = False,
) -> nn.Module:
    """Return a copy of the model whose linear and convolution layers are sums of layers; the function stays.

    Parameters
    ----------
    model : Module
        Fold its batch norms first: afterwards they cannot be.
    clusters, granularity, bias
        See :func:`~skerry.quant.formats.split.split_module`.
    activations : bool, default False
        Split the channels of elementwise activations, too.

    Returns
    -------
    Module
        Norms and embeddings are as they were; so are, with a warning that names them, layers whose weight is tied to
        another one's, those inside ``nn.MultiheadAttention`` and recurrent layers, and subclasses of the layers.

    Raises
    ------
    ModelError
        If nothing could be split.

    Examples
    --------
    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    >>> parts, x = split_model(model), torch.randn(2, 8)
    >>> len(parts[0].layers), torch.allclose(parts(x), model(x), atol=1e-6)
    (3, True)
    """
    model = copy.deepcopy(model)
    owners: dict[int, set[int]] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), set()).add(id(module))
    named = dict(model.named_modules(remove_duplicate=False))
    made: dict[int, nn.Module] = {}
    left: list[str] = []
    for name, module in named.items():
        if id(module) in made:  # the same layer at a second place
            model.set_submodule(name, made[id(module)])
        elif isinstance(module, LAYERS):
            if reason := _kept(name, module, named, owners):
                left.append(f"{name} ({reason})")
            elif name and (split := split_module(module, clusters=clusters, granularity=granularity, bias=bias)):
                made[id(module)] = split
                model.set_submodule(name, split)
        elif activations and name and isinstance(module, ELEMENTWISE):
            made[id(module)] = SplitActivation(module, clusters)
            model.set_submodule(name, made[id(module)])
    if isinstance(model, LAYERS):
        return split_module(model, clusters=clusters, granularity=granularity, bias=bias)
    if left:
        warnings.warn(
            f"left whole: {', '.join(left[:6])}{' ...' if len(left) > 6 else ''}", SkerryWarning, stacklevel=2
        )
    if not any(isinstance(m, LAYERS) for m in named.values()):
        raise ModelError(f"{type(model).__name__} has no linear or convolution layer to split")
    return model


def _kept(name: str, layer: nn.Module, named: dict[str, nn.Module], owners: dict[int, set[int]]) -> str:
    """Return why a layer must stay whole, or nothing."""
    if type(layer) not in LAYERS:
        return f"a {type(layer).__name__}"
    if len(owners[id(layer.weight)]) > 1:
        return "its weight is tied"
    above = name.split(".")[:-1]
    if any(isinstance(named[".".join(above[: i + 1])], CALLS_WEIGHTS) for i in range(len(above))):
        return "called past its forward"
    return ""
