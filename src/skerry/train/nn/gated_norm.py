"""GatedNorm: a norm followed by an explicit low-rank gate, so that no outlier is needed to rescale the other channels.

"A Unified View of Attention and Residual Sinks: Outlier-Driven Rescaling" (arXiv 2601.22966). A channel of the residual
stream that is huge on every token turns down all others through the division of RMSNorm; the gate does that openly.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from skerry.core.errors import ParameterError, nearest
from skerry.train.nn.replace import find_norms, set_module

__all__ = ["GatedNorm", "LowRankGate"]

_ACTIVATIONS = {"sigmoid": torch.sigmoid, "tanh": torch.tanh, "silu": nn.functional.silu, "identity": lambda x: x}
_INITS = ("half", "identity")
_GRANULARITIES = ("element", "tensor")


class LowRankGate(nn.Module):
    """``g(y) = act(W_up swish(W_down y))``: a gate of the normalised activations, 2 d r parameters, no bias.

    Parameters
    ----------
    dim : int
    rank : int, default 16
    init : {"half", "identity"}, default "half"
        ``W_up`` starts at zero. ``"half"`` is the plain sigmoid, 0.5 at first; ``"identity"`` doubles it and starts at
        exactly 1, so a trained network is unchanged (the same as doubling the gain of the norm).
    granularity : {"element", "tensor"}, default "element"
        A gate per channel, or one for each token (no loss gain in the paper).
    activation : {"sigmoid", "tanh", "silu", "identity"}, default "sigmoid"
        All but the sigmoid are negative controls, unstable in the paper; they start at 0 (``"half"``) or, added to 1,
        at 1 (``"identity"``).
    """

    def __init__(
        self,
        dim: int,
        rank: int = 16,
        *,
        init: str = "half",
        granularity: str = "element",
        activation: str = "sigmoid",
    ) -> None:
        super().__init__()
        for name, value, known in (
            ("init", init, _INITS),
            ("granularity", granularity, _GRANULARITIES),
            ("activation", activation, _ACTIVATIONS),
        ):
            if value not in known:
                raise ParameterError(f"unknown {name} {value!r}: {nearest(value, known)}")
        if dim < 1 or rank < 1:
            raise ParameterError(f"dim and rank must be 1 or more, not {dim} and {rank}")
        self.init, self.granularity, self.activation = init, granularity, activation
        self.down = nn.Linear(dim, rank, bias=False)
        self.up = nn.Linear(rank, dim if granularity == "element" else 1, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the start again: ``down`` from N(0, 0.02), ``up`` zero."""
        nn.init.normal_(self.down.weight, std=0.02)
        nn.init.zeros_(self.up.weight)

    def forward(self, y: Tensor) -> Tensor:
        """Return gates (..., dim) or (..., 1) of ``y`` (..., dim)."""
        gate = _ACTIVATIONS[self.activation](self.up(nn.functional.silu(self.down(y))))
        if self.init == "half":
            return gate
        return 2 * gate if self.activation == "sigmoid" else 1 + gate

    def extra_repr(self) -> str:
        """Return the arguments that differ between models."""
        return f"init={self.init!r}, granularity={self.granularity!r}, activation={self.activation!r}"


class GatedNorm(nn.Module):
    """``y = norm(x)``, then ``g(y) * y``: in place of every norm in front of attention, feed-forward and head.

    The data-dependent gate cannot be folded into the next linear layer and does not commute with rotations: quantize
    such a network with recipes that leave the norm's output as it is.

    Parameters
    ----------
    dim : int
    rank : int, default 16
        Costs 2 ``dim`` ``rank`` parameters.
    init, granularity, activation
        As in :class:`LowRankGate`.
    norm : Module, optional
        The norm before the gate. Default: ``torch.nn.RMSNorm(dim, eps)``.
    eps : float, default 1e-6

    Examples
    --------
    >>> import torch
    >>> norm = GatedNorm(8, rank=2, init="identity")
    >>> x = torch.randn(3, 8)
    >>> torch.equal(norm(x), norm.norm(x))
    True
    """

    def __init__(
        self,
        dim: int,
        rank: int = 16,
        *,
        init: str = "half",
        granularity: str = "element",
        activation: str = "sigmoid",
        norm: nn.Module | None = None,
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.gate = LowRankGate(dim, rank, init=init, granularity=granularity, activation=activation)
        self.norm = norm if norm is not None else nn.RMSNorm(dim, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """Return the gated norm of ``x`` (..., dim)."""
        y = self.norm(x)
        return self.gate(y) * y

    @classmethod
    def retrofit(
        cls,
        model: nn.Module,
        rank: int = 16,
        *,
        init: str = "identity",
        match: str | Callable[[str, nn.Module], bool] | None = None,
    ) -> nn.Module:
        """Put a gate behind every norm of a trained network, in place; with ``"identity"`` it computes what it did.

        Parameters
        ----------
        model : Module
        rank : int, default 16
        init : {"identity", "half"}, default "identity"
        match : str or callable, optional
            Which norms; see :func:`skerry.train.nn.find_norms`. Norms of queries and keys are left alone.

        Returns
        -------
        Module
            The same object.

        Raises
        ------
        ModelError
            If no norm is found.

        Examples
        --------
        >>> from torch import nn
        >>> net = GatedNorm.retrofit(nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 2)), rank=1)
        >>> type(net[0]).__name__, type(net[0].norm).__name__
        ('GatedNorm', 'LayerNorm')
        """
        wrapped: dict[int, nn.Module] = {}
        for name, (old, width) in find_norms(model, match).items():
            if isinstance(old, GatedNorm):
                continue
            place = next(old.parameters(), next(model.parameters()))
            if id(old) not in wrapped:
                wrapped[id(old)] = cls(width, rank, init=init, norm=old).to(device=place.device, dtype=place.dtype)
            set_module(model, name, wrapped[id(old)])
        return model
