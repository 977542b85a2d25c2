"""Muon: momentum, orthogonalized (Jordan et al., 2024), scaled as in Outlier-Safe Pre-Training (Park et al., 2025).

For a matrix: ``m = mu m + g``, ``u = g + mu m``, ``w = w (1 - lr wd) - lr 0.2 sqrt(max(rows, cols)) NS(u)``. The factor
gives updates the size of AdamW's, so that one learning rate serves both. Embeddings, the head and vectors take AdamW
steps in the same optimizer. Matrices of equal shape are orthogonalized as one stack.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.adamw import adamw

from skerry.core.errors import ModelError, ParameterError
from skerry.train.optim.orthogonalize import MUON_COEFFICIENTS, compute_dtype, newton_schulz

__all__ = ["Muon"]

# Numbers in one stack: more would not be faster and costs four times as much memory in copies.
_STACK_NUMBERS = {"cpu": 1 << 22, "cuda": 1 << 27}


class Muon(Optimizer):
    """Muon for matrices, AdamW for the rest, in one optimizer.

    Parameters
    ----------
    params : iterable of Tensor or dict
        Matrices; see :func:`skerry.train.optim.split_params`. A parameter of three axes is a stack of matrices, one of
        more axes a kernel that is flattened to ``(out, rest)``; ``stacked=False`` in a group flattens all of its
        parameters. A group with ``kind="adamw"`` takes AdamW steps.
    lr : float, default 5e-4
    momentum : float, default 0.95
    weight_decay : float, default 1e-2
        Decoupled; also that of the AdamW part, on parameters of two axes or more.
    adamw_params : iterable of Tensor or dict, optional
        Parameters for AdamW: embeddings, the head, vectors.
    nesterov : bool, default True
    ns_steps : int, default 5
    ns_coefficients : (float, float, float), default (3.4445, -4.7750, 2.0315)
    scale : {"rms", "spectral"}, default "rms"
        ``0.2 sqrt(max(rows, cols))``, or Jordan's ``sqrt(max(1, rows / cols))``, which needs a learning rate near 0.02.
    vectors : {"adamw", "normalize"}, default "adamw"
        For vectors among ``params``: AdamW, or ``u / ||u||`` times ``0.2 sqrt(length)`` as the paper does.
    betas : (float, float), default (0.9, 0.95)
        Of AdamW.
    eps : float, default 1e-8
        Of AdamW.
    decay_1d : bool, default False
        Also decay vectors and scalars.
    ns_dtype : torch.dtype, optional
        Type of the Newton-Schulz steps: by default bfloat16 on CUDA devices, else float32.
    distribute : bool, default False
        Under ``torch.distributed``, orthogonalize every matrix in one process only and send it to the others, in place
        of all in every process. All processes must then have gradients of the same parameters, as under DDP.

    Raises
    ------
    ParameterError
        For a value out of range or an unknown choice, among the groups too.
    ModelError
        From ``step``: a gradient is sparse, or a parameter is sharded over devices (FSDP).

    Notes
    -----
    Under DDP every process holds the same averaged gradients and takes the same step. Parameters without a gradient are
    left alone. Any value above but
    ``adamw_params`` may differ per group.

    Examples
    --------
    >>> import torch
    >>> w = torch.nn.Parameter(torch.zeros(64, 128))
    >>> optimizer = Muon([w], lr=0.1)
    >>> (w * torch.randn(64, 128, generator=torch.Generator().manual_seed(0))).sum().backward()
    >>> optimizer.step()
    >>> f"{w.detach().square().mean().sqrt():.3f}"  # about 0.2 lr
    '0.017'
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 5e-4,
        momentum: float = 0.95,
        weight_decay: float = 1e-2,
        *,
        adamw_params: Iterable[Tensor] | Iterable[dict[str, Any]] | None = None,
        nesterov: bool = True,
        ns_steps: int = 5,
        ns_coefficients: tuple[float, float, float] = MUON_COEFFICIENTS,
        scale: Literal["rms", "spectral"] = "rms",
        vectors: Literal["adamw", "normalize"] = "adamw",
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        decay_1d: bool = False,
        ns_dtype: torch.dtype | None = None,
        distribute: bool = False,
    ) -> None:
        groups = list(params) + _adamw_groups(adamw_params)
        if groups and any(isinstance(g, dict) for g in groups):
            groups = [g if isinstance(g, dict) else {"params": [g]} for g in groups]
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "ns_steps": ns_steps,
            "ns_coefficients": tuple(ns_coefficients),
            "scale": scale,
            "vectors": vectors,
            "betas": tuple(betas),
            "eps": eps,
            "decay_1d": decay_1d,
            "kind": "muon",
            "stacked": True,
            "ns_dtype": ns_dtype,
            "distribute": distribute,
        }
        super().__init__(groups, defaults | self._more_defaults())

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; its values are checked."""
        super().add_param_group(param_group)
        _check(self.param_groups[-1])

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; return the loss of ``closure`` if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            for p in params:
                _refuse(p)
            is_vector = [p.ndim < 2 for p in params]
            if group["kind"] == "adamw":
                self._adamw(group, [p for p, v in zip(params, is_vector, strict=True) if not v], decay=True)
            else:
                self._orthogonalized(group, [p for p, v in zip(params, is_vector, strict=True) if not v])
            rest = [p for p, v in zip(params, is_vector, strict=True) if v]
            if group["kind"] == "muon" and group["vectors"] == "normalize":
                self._normalized(group, rest)
            else:
                self._adamw(group, rest, decay=group["decay_1d"])
        return loss

    # What ROOT changes -------------------------------------------------------------------------------------------

    def _more_defaults(self) -> dict[str, Any]:
        """Return values of a group beside Muon's."""
        return {}

    def _suppress(self, group: dict[str, Any], params: list[Tensor], stack: Tensor) -> Tensor:
        """Return the directions to orthogonalize; ``stack`` may be changed in place."""
        return stack

    def _coefficients(self, group: dict[str, Any], stack: Tensor) -> tuple[float, float, float]:
        """Return the triple for these matrices."""
        return group["ns_coefficients"]

    # The steps ---------------------------------------------------------------------------------------------------

    def _orthogonalized(self, group: dict[str, Any], params: list[Tensor]) -> None:
        if not params:
            return
        self._accumulate(group, params)
        if group["weight_decay"]:
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        rank, world = _processes(group)
        dealt = sorted(params, key=lambda p: -p.numel()) if world > 1 else params  # so that shares cost alike
        shares = [list(self._stacks(group, dealt[r::world])) for r in range(world)]
        own: Iterable[Tensor] = (self._update(group, members) for members in shares[rank])
        if world > 1:
            own = list(own)  # before anyone waits for another
        own = iter(own)
        for r, share in enumerate(shares):
            for members in share:
                if r == rank:
                    update = next(own)
                else:
                    like = _as_matrices(members[0], group)
                    update = like.new_empty(sum(_depths(members, group)), *like.shape[-2:])
                if world > 1:
                    torch.distributed.broadcast(update, r)
                parts = update.split(_depths(members, group))
                size = -group["lr"] * _scale(group["scale"], *update.shape[-2:])
                torch._foreach_add_(
                    members, [u.reshape(p.shape) for u, p in zip(parts, members, strict=True)], alpha=size
                )

    def _update(self, group: dict[str, Any], members: list[Tensor]) -> Tensor:
        """Return the orthogonalized momenta of parameters of one shape as one stack."""
        stack = self._suppress(group, members, self._directions(group, members))
        dtype = compute_dtype(stack, group["ns_dtype"])
        return newton_schulz(stack, self._coefficients(group, stack), group["ns_steps"], dtype).contiguous()

    def _directions(self, group: dict[str, Any], members: list[Tensor]) -> Tensor:
        """Return the momentum matrices (with Nesterov's look ahead) of parameters of one shape as one new stack."""
        stack = torch.cat([_as_matrices(self.state[p]["momentum_buffer"], group) for p in members])
        if group["nesterov"]:
            stack.mul_(group["momentum"])
            for part, p in zip(stack.split(_depths(members, group)), members, strict=True):
                part.add_(_as_matrices(p.grad, group))
        return stack

    def _normalized(self, group: dict[str, Any], params: list[Tensor]) -> None:
        self._accumulate(group, params)
        if group["decay_1d"] and params:
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        for p in params:
            u = self.state[p]["momentum_buffer"]
            if group["nesterov"]:
                u = p.grad + group["momentum"] * u
            norm = torch.linalg.vector_norm(u).clamp_min(torch.finfo(u.dtype).tiny)
            p.sub_(u / norm, alpha=group["lr"] * 0.2 * math.sqrt(p.numel()))

    def _accumulate(self, group: dict[str, Any], params: list[Tensor]) -> None:
        """``m = mu m + g`` for every parameter."""
        if not params:
            return
        for p in params:
            if not self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p, memory_format=torch.contiguous_format)
        buffers = [self.state[p]["momentum_buffer"] for p in params]
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_add_(buffers, [p.grad for p in params])

    def _adamw(self, group: dict[str, Any], params: list[Tensor], decay: bool) -> None:
        if not params:
            return
        for p in params:
            if not self.state[p]:
                self.state[p] |= {
                    "step": torch.zeros((), dtype=torch.float32, device=p.device),
                    "exp_avg": torch.zeros_like(p),
                    "exp_avg_sq": torch.zeros_like(p),
                }
        states = [self.state[p] for p in params]
        for p, s in zip(params, states, strict=True):
            s["step"] = s["step"].to(p.device)  # a checkpoint may have left it on the host
        adamw(
            params,
            [p.grad for p in params],
            [s["exp_avg"] for s in states],
            [s["exp_avg_sq"] for s in states],
            [],
            [s["step"] for s in states],
            fused=all(p.device.type in ("cpu", "cuda") for p in params),
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"] if decay else 0.0,
            eps=group["eps"],
            maximize=False,
        )

    def _stacks(self, group: dict[str, Any], params: list[Tensor]) -> Iterator[list[Tensor]]:
        """Yield the parameters by equal matrix shape, device and type, no more numbers at once than a stack holds."""
        alike = defaultdict(list)
        for p in params:
            alike[_as_matrices(p, group).shape[-2:], p.device, p.dtype].append(p)
        for (_, device, _), members in alike.items():
            bound = _STACK_NUMBERS.get(device.type, 1 << 24)
            part: list[Tensor] = []
            for p in members:
                if part and sum(q.numel() for q in part) + p.numel() > bound:
                    yield part
                    part = []
                part.append(p)
            yield part


def _adamw_groups(params: Iterable[Tensor] | Iterable[dict[str, Any]] | None) -> list[dict[str, Any]]:
    found = list(params or [])
    if not found:
        return []
    if isinstance(found[0], dict):
        return [{**g, "kind": "adamw"} for g in found]
    return [{"params": found, "kind": "adamw"}]


def _processes(group: dict[str, Any]) -> tuple[int, int]:
    """Return this process's number, and among how many the matrices are dealt out."""
    d = torch.distributed
    if group["distribute"] and d.is_available() and d.is_initialized():
        return d.get_rank(), d.get_world_size()
    return 0, 1


def _as_matrices(p: Tensor, group: dict[str, Any]) -> Tensor:
    """Return a parameter, gradient or momentum as a stack of matrices ``(k, rows, cols)``."""
    if p.ndim == 3 and group["stacked"]:
        return p
    return p.reshape(1, p.shape[0], -1)


def _depths(members: list[Tensor], group: dict[str, Any]) -> list[int]:
    return [_as_matrices(p, group).shape[0] for p in members]


def _scale(rule: str, rows: int, cols: int) -> float:
    return 0.2 * math.sqrt(max(rows, cols)) if rule == "rms" else math.sqrt(max(1.0, rows / cols))


def _refuse(p: Tensor) -> None:
    if p.grad.is_sparse:
        raise ModelError(
            f"a parameter of shape {tuple(p.shape)} has a sparse gradient: build its module without sparse"
        )
    if hasattr(p, "to_local"):
        raise ModelError(
            f"a parameter of shape {tuple(p.shape)} is sharded (DTensor): its matrix is needed whole; use DDP"
        )


def _check(group: dict[str, Any]) -> None:
    for key in ("lr", "weight_decay", "eps"):
        if not group[key] >= 0:
            raise ParameterError(f"{key} is {group[key]}: give 0 or more")
    for key, values in (("momentum", [group["momentum"]]), ("betas", group["betas"])):
        if not all(0 <= v < 1 for v in values):
            raise ParameterError(f"{key} is {group[key]}: give values from 0 to below 1")
    if group["ns_steps"] < 1:
        raise ParameterError(f"ns_steps is {group['ns_steps']}: give 1 or more")
    choices = {"kind": ("muon", "adamw"), "scale": ("rms", "spectral"), "vectors": ("adamw", "normalize")}
    for key, allowed in choices.items():
        if group[key] not in allowed:
            raise ParameterError(f"{key} is {group[key]!r}: give one of {', '.join(map(repr, allowed))}")
