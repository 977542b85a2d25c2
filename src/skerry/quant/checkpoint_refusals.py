"""What layouts of other programs refuse alike: they have no place for what Skerry keeps beside a weight."""

from __future__ import annotations

from typing import Any

from skerry.quant.numerics import IntTensor
from skerry.quant.parts import Solved

__all__ = ["why_not_bare", "why_not_integers"]


def why_not_bare(solved: Solved, before: tuple[Any, ...]) -> str | None:
    """Return why a layer is more than its weight, or None if it is not."""
    if before:
        return "its input is transformed at run time"
    if solved.sparse is not None or solved.low_rank is not None:
        return "it has weights kept apart or a low-rank branch"
    return None


def why_not_integers(solved: Solved, activation: Any, before: tuple[Any, ...], layout: str) -> str | None:
    """Return why a layer is not integers along its inputs and nothing else, or None if it is."""
    if reason := why_not_bare(solved, before):
        return reason
    if activation is not None:
        return f"its inputs are rounded, of which {layout} says nothing; give bits such as w4a16 or w8a16"
    if not isinstance(solved.weight, IntTensor):
        return f"{solved.weight.kind} weights are unknown there"
    return None if solved.weight.grid.axis == 1 else "its groups run along the outputs"
