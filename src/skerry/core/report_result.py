"""What every result that a person reads can do: count, become JSON, become a page."""

from __future__ import annotations

import importlib
import json
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

__all__ = ["ReportResult", "as_plain", "finite_or_none", "joined"]


def finite_or_none(value: float) -> float | None:
    """Return the number, or None for infinity and NaN, which JSON has not.

    >>> finite_or_none(1.5), finite_or_none(float("inf"))
    (1.5, None)
    """
    return value if np.isfinite(value) else None


def joined(items: list[Any]) -> list[str]:
    """Return the reasons of each item as one text."""
    return ["; ".join(item.reasons) for item in items]


def as_plain(item: Any, leave_out: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the fields of a dataclass but those left out, in their order, tuples as lists.

    >>> from dataclasses import dataclass
    >>> @dataclass
    ... class Pair:
    ...     a: int
    ...     b: tuple[str, ...]
    >>> as_plain(Pair(1, ("x", "y")))
    {'a': 1, 'b': ['x', 'y']}
    """
    return {k: list(v) if isinstance(v, tuple) else v for k, v in vars(item).items() if k not in leave_out}


class ReportResult(ABC):
    """Base of the results: a subclass is a dataclass with ``metrics``, and says how it becomes plain data.

    Attributes
    ----------
    report : (str, str)
        Of the class: module and function that write its page. It is loaded only if a person asks for the page, since
        the report stands above this floor.
    """

    report: ClassVar[tuple[str, str]]
    metrics: dict[str, float]

    @abstractmethod
    def __len__(self) -> int:
        """Return how many were found in all."""

    @abstractmethod
    def _plain(self) -> dict[str, Any]:
        """Return all that belongs into JSON but the metrics."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, ready for JSON."""
        return self._plain() | ({"metrics": self.metrics} if self.metrics else {})

    def to_json(self) -> str:
        """Return :meth:`to_dict` as one line of strict JSON."""
        return json.dumps(self.to_dict(), allow_nan=False, default=str)

    def to_html(self, path: str | Path) -> Path:
        """Write a self-contained HTML report and return its path."""
        module, function = self.report
        return getattr(importlib.import_module(module), function)(self, path)
