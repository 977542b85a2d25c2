"""Two streams: a block's inputs as the quantized blocks before it give them, and as the float model would.

With ``Recipe(propagate="mixed")`` every layer is solved for the float model's output on the inputs that really arrive:
``min ||X W^T - X_f W_f^T||^2``, X_f the float inputs. Whatever the solver, it is given the weight that does this best
before rounding: ``W = W_f + W_f (X_f - X)^T X (X^T X + lambda I)^-1``, a ridge towards the float weight.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from skerry.quant.calibration import live
from skerry.quant.groups import Group
from skerry.quant.linear import PreparedLinear
from skerry.quant.probe import GroupContext, Probe

__all__ = ["FloatTwin", "towards_float"]

DAMP = 0.01  # of the mean square of an input channel, as in GPTQ


def towards_float(W: Tensor, gram: Tensor, drift: Tensor, *, damp: float = DAMP) -> Tensor:
    """Return the weight that gives, on the inputs that arrive, what ``W`` gives on the float inputs.

    Parameters
    ----------
    W : Tensor of shape (out, in)
    gram : Tensor of shape (in, in), float64
        ``X^T X`` of the inputs that arrive.
    drift : Tensor of shape (in, in), float64
        ``(X_f - X)^T X``.
    damp : float, default 0.01
        Of the mean of gram's diagonal: how strongly ``W`` is held where inputs say little.

    Examples
    --------
    >>> X = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]], dtype=torch.float64)
    >>> float_inputs = 1.5 * X  # the blocks before lost a third
    >>> towards_float(torch.ones(1, 2), X.T @ X, (float_inputs - X).T @ X, damp=0.0)
    tensor([[1.5000, 1.5000]])
    """
    diagonal = gram.diagonal()
    held = gram + torch.diag_embed(torch.full_like(diagonal, max(damp * float(diagonal.mean()), 1e-12)))
    factor, failed = torch.linalg.cholesky_ex(held)
    if int(failed):
        return W
    change = torch.cholesky_solve(drift.T.contiguous(), factor).T
    return (W.double() + W.double() @ change).to(W.dtype)


class FloatTwin:
    """A float copy of a block beside the one that is being quantized.

    Parameters
    ----------
    module : Module
        The block, its transforms applied; a copy is kept.
    name : str
        Its name in the model.
    runner : callable
        Gets a module and returns a function that runs it on the float inputs of batch ``b``.
    """

    def __init__(self, module: nn.Module, name: str, runner: Callable[[nn.Module], Callable[[int], Tensor]]) -> None:
        self.module, self.name = copy.deepcopy(module), name
        self.run = runner(self.module)
        self._inputs: dict[str, Tensor] = {}
        self._sums: dict[str, tuple[Tensor, Tensor]] = {}
        self._probes: list[tuple[Probe, Probe]] = []

    @contextmanager
    def watching(self, model: nn.Module, groups: list[Group], contexts: list[GroupContext]) -> Iterator[None]:
        """Listen while :meth:`run` and the block run in turns; afterwards the probes hold the float outputs."""
        self._inputs, self._sums, self._probes = {}, {}, []
        names = {id(module): name for name, module in model.get_submodule(self.name).named_modules()}
        with ExitStack() as stack:
            for group, context in zip(groups, contexts, strict=True):
                layer = self._twin(next(iter(group.consumers)))
                stack.callback(layer.register_forward_pre_hook(partial(self._keep, group.name)).remove)
                probe = Probe([self.module.get_submodule(names[id(m)]) for m in context.probe.modules])
                stack.enter_context(probe.listening())
                self._probes.append((context.probe, probe))
            yield
        for probe, twin in self._probes:
            calls = zip(probe.calls, twin.calls, strict=True)
            probe.calls = [
                (module, given, named, exact, mask) for (module, given, named, _, mask), (*_, exact, _) in calls
            ]

    def give(self, b: int, mask: Tensor | None) -> None:
        """Run batch ``b``: what its layers get is kept for :meth:`meet`."""
        for _, probe in self._probes:
            probe.mask = mask
        self.run(b)

    def meet(self, group: str, x: Tensor, mask: Tensor | None) -> None:
        """Take in what really arrives at a group, in the batch that was given last."""
        exact = self._inputs.pop(group, None)
        if exact is None or exact.shape != x.shape:
            return
        X, X_f = (live(t.detach().float(), mask).flatten(0, -2).double() for t in (x, exact))
        sums = X.T @ X, (X_f - X).T @ X
        if group in self._sums:
            sums = self._sums[group][0] + sums[0], self._sums[group][1] + sums[1]
        self._sums[group] = sums

    def correct(self, group: Group) -> None:
        """Give the group's layers the weights to round."""
        if group.name in self._sums:
            with torch.no_grad():
                for layer in group.consumers.values():
                    layer.weight.copy_(towards_float(layer.weight.float(), *self._sums[group.name]))
            del self._sums[group.name]

    def _twin(self, name: str) -> Any:
        return self.module.get_submodule(name.removeprefix(f"{self.name}."))

    def _keep(self, group: str, layer: PreparedLinear, arguments: tuple) -> None:
        self._inputs[group] = layer.changed(arguments[0]).detach()
