"""What happens to the output that matters when a group of layers is rounded: the error searches minimise.

For query, key and value that output is the attention's, for gate and up the gated MLP's, else the layer's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from skerry.quant.calibration import live
from skerry.quant.groups import Group
from skerry.quant.linear import PreparedLinear, played
from skerry.quant.parts import ActivationQuantizer, Format

__all__ = ["GroupContext", "Probe"]

PROBE_BATCHES, PROBE_TOKENS = 4, 4096


@dataclass
class Probe:
    """Calls of the modules whose output counts, as they came by, and what they returned.

    Attributes
    ----------
    modules : list of Module
    calls : list of (module, arguments, keywords, output, mask)
    mask : Tensor of shape (sequences, tokens), optional
        Of the batch that runs while the probe listens: padding counts neither as a token nor in an error.
    """

    modules: list[nn.Module]
    calls: list[tuple[nn.Module, tuple, dict[str, Any], Tensor, Tensor | None]] = field(default_factory=list)
    mask: Tensor | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Record the first calls of the modules while a block runs: at most four, until they have 4096 tokens."""
        with ExitStack() as stack:
            for module in self.modules:
                handle = module.register_forward_hook(self._record, with_kwargs=True)
                stack.callback(handle.remove)
            yield

    def _record(self, module: nn.Module, arguments: tuple, keywords: dict[str, Any], output: Any) -> None:
        known = [live(y, mask) for m, _, _, y, mask in self.calls if m is module]
        if len(known) < PROBE_BATCHES and sum(y[..., 0].numel() for y in known) < PROBE_TOKENS:
            self.calls.append((module, arguments, dict(keywords), _tensor(output).detach().clone(), self.mask))

    @torch.no_grad()
    def error(self, reference: list[Tensor] | None = None) -> float:
        """Return the mean squared difference between the modules' outputs now and those recorded, padding left out.

        Parameters
        ----------
        reference : list of Tensor, optional
            Outputs to compare with instead (see :meth:`outputs`).
        """
        total = count = 0.0
        for i, (module, arguments, keywords, output, mask) in enumerate(self.calls):
            wanted = output if reference is None else reference[i]
            found = _tensor(module(*arguments, **keywords))
            difference = live(found, mask).float() - live(wanted, mask).float()
            total += float((difference * difference).sum(dtype=torch.float64))
            count += difference.numel()
        return total / max(count, 1.0)

    @torch.no_grad()
    def outputs(self) -> list[Tensor]:
        """Return what the modules return now for the recorded calls."""
        return [_tensor(m(*arguments, **keywords)).detach() for m, arguments, keywords, *_ in self.calls]


@dataclass
class GroupContext:
    """What a transform or solver may know beside statistics: the model, the target quantizers, the probe.

    Attributes
    ----------
    model : Module
    weight : Format or None
    activation : ActivationQuantizer or None
        What the group's weights and inputs will be rounded to (of its first layer).
    probe : Probe
    block : int
        Index of the block.
    random_state : int
    memo : dict
        For what layers of one group share (a common low-rank branch).
    """

    model: nn.Module
    weight: Format | None
    activation: ActivationQuantizer | None
    probe: Probe
    block: int = 0
    random_state: int = 0
    memo: dict[str, Any] = field(default_factory=dict)

    def error(
        self,
        group: Group,
        weights: dict[str, Tensor] | None = None,
        activation: ActivationQuantizer | None = None,
        biases: dict[str, Tensor] | None = None,
        branches: dict[str, Tensor] | None = None,
    ) -> float:
        """Return the probe's error with other weights in the group's layers and their input rounded.

        Parameters
        ----------
        group : Group
        weights : dict of layer name to Tensor of shape (out, in), optional
        activation : ActivationQuantizer, optional
        biases : dict of layer name to Tensor of shape (out,), optional
            Added to the layers' outputs.
        branches : dict of layer name to Tensor of shape (out, in), optional
            Second weights, for the inputs before rounding.
        """
        parts = (weights or {}, biases or {}, branches or {})
        with ExitStack() as stack:
            for name, layer in group.consumers.items():
                weight, bias, branch = (part.get(name) for part in parts)
                stack.enter_context(played(layer, weight, activation, bias, branch))
            return self.probe.error()


def probe_of(model: nn.Module, group: Group) -> Probe:
    """Return the probe of a group: its parent, or the layers themselves."""
    if group.parent is not None:
        return Probe([model.get_submodule(group.parent)])
    modules: list[PreparedLinear] = list(group.consumers.values())
    return Probe(list(modules))


def _tensor(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output
