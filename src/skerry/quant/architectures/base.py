"""What the engine must know of a model class, as data: where its blocks are and which layers share an input.

One small file a family holds an :class:`Architecture`; :func:`architecture_of` finds it by the ``model_type`` of the
configuration. A model that no file describes still quantizes layer by layer: its groups are single linear layers
without a producer, which every method without folding can use.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from skerry.core.errors import ModelError
from skerry.quant.groups import Group
from skerry.quant.linear import PreparedLinear

__all__ = ["Architecture", "GroupSpec", "architecture_of"]

FAMILIES = ("llama", "opt", "gpt2", "bert", "vit", "dit", "mamba", "vim")  # files of this folder


@dataclass(frozen=True)
class GroupSpec:
    """Linear layers of a block that read one tensor; all names are relative to the block.

    Attributes
    ----------
    readers : tuple of str
    producer : str, optional
    kind : {"norm", "rows", "none"}
        See :class:`~skerry.quant.groups.Group`.
    parent : str, optional
    grouped_heads : bool
        The readers' input are attention heads, several for each head of the producer (grouped-query attention).
    """

    readers: tuple[str, ...]
    producer: str | None = None
    kind: str = "none"
    parent: str | None = None
    grouped_heads: bool = False


@dataclass(frozen=True)
class Architecture:
    """A family of models.

    Attributes
    ----------
    name : str
    model_types : tuple of str
        ``config.model_type`` values it describes.
    blocks : str
        Name of the ``ModuleList`` of blocks; alternatives separated by "|", the first that exists is taken.
    groups : tuple of GroupSpec
        Of one block. Readers that a block lacks are left out.
    embeddings, positions, head, final_norm : str
        Names (with "|" alternatives) for rotations of the residual stream; empty if it cannot be rotated.
    writers : tuple of str
        Linear layers of a block whose output is added to the residual stream.
    keep : tuple of str
        Patterns of full layer names that every recipe leaves in floating point (a DiT's modulation).
    prepare : callable, optional
        Changes the model in place into the form described, keeping its function (for example ``Conv1D`` to
        ``nn.Linear``).
    restore : callable, optional
        Returns a copy in the form that other programs know, where ``prepare`` left it.
    check : callable, optional
        Returns a reason why THIS configuration is not as described (post-norm OPT), or None.
    """

    name: str
    model_types: tuple[str, ...]
    blocks: str
    groups: tuple[GroupSpec, ...]
    embeddings: str = ""
    positions: str = ""
    head: str = ""
    final_norm: str = ""
    writers: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    prepare: Callable[[nn.Module], None] | None = None
    restore: Callable[[nn.Module], nn.Module] | None = None
    check: Callable[[nn.Module], str | None] | None = None

    def block_names(self, model: nn.Module) -> list[str]:
        """Return the blocks' full names, in order.

        Raises
        ------
        ModelError
            If the model has no such list of blocks.
        """
        root = self.resolve(model, self.blocks)
        if root is None:
            raise ModelError(f"this {self.name} model has no blocks at {self.blocks.replace('|', ' or ')}")
        return [f"{root}.{i}" for i in range(len(model.get_submodule(root)))]  # type: ignore[arg-type]

    def block_groups(self, model: nn.Module, block: str) -> list[Group]:
        """Return the groups of one block; their linear layers must be :class:`PreparedLinear`.

        Linear layers that no spec names form groups of their own.
        """
        found: list[Group] = []
        seen: set[str] = set()
        specs = () if self.check is not None and self.check(model) else self.groups
        for spec in specs:
            readers = {f"{block}.{r}": _get(model, f"{block}.{r}") for r in spec.readers}
            prepared = {n: m for n, m in readers.items() if isinstance(m, PreparedLinear)}
            if not prepared:
                continue
            seen |= prepared.keys()
            producer = None if spec.producer is None else f"{block}.{spec.producer}"
            complete = len(prepared) == len([m for m in readers.values() if m is not None])
            kind = spec.kind if complete and producer and _get(model, producer) is not None else "none"
            repeats, head_size = _heads(model) if spec.grouped_heads else (1, 0)
            parent = None if spec.parent is None else f"{block}.{spec.parent}"
            first, *others = (r.removeprefix(f"{block}.") for r in prepared)
            name = "+".join([f"{block}.{first}", *(other.rsplit(".", 1)[-1] for other in others)])
            found.append(Group(name, prepared, producer, kind, parent, repeats, head_size))
        for name, module in model.get_submodule(block).named_modules(prefix=block):
            if isinstance(module, PreparedLinear) and name not in seen:
                found.append(Group(name, {name: module}))
        return found

    def resolve(self, model: nn.Module, names: str) -> str | None:
        """Return the first of the "|"-separated names that the model has."""
        return next((n for n in names.split("|") if n and _get(model, n) is not None), None)


def architecture_of(model: nn.Module) -> Architecture:
    """Return the description of ``model``, or a fallback that finds its longest list of blocks.

    Raises
    ------
    ModelError
        If the model has no linear layer.
    """
    config = getattr(model, "config", None)
    model_type = getattr(config, "model_type", None) or type(model).__name__
    for family in FAMILIES:
        described = importlib.import_module(f"skerry.quant.architectures.{family}").ARCHITECTURE
        if model_type in described.model_types:
            return described
    if not any(isinstance(m, nn.Linear) for m in model.modules()):
        raise ModelError(f"{type(model).__name__} has no linear layer to quantize")
    lists = [(len(m), n) for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) > 1]
    lists = [(size, n) for size, n in lists if any(isinstance(m, nn.Linear) for m in model.get_submodule(n).modules())]
    blocks = max(lists, key=lambda pair: (pair[0], -len(pair[1])))[1] if lists else ""
    return Architecture(f"unknown ({model_type})", (), blocks, ())


def _get(model: nn.Module, name: str) -> nn.Module | None:
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None


def _heads(model: nn.Module) -> tuple[int, int]:
    """Return how many query heads share a key-value head, and the channels of a head."""
    config = model.config
    heads = config.num_attention_heads
    pairs = getattr(config, "num_key_value_heads", None) or heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    return heads // pairs, size
