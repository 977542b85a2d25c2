"""Public packages whose names are imported on first use, so that an import costs nothing before it is needed."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["lazy_package"]


def lazy_package(
    package: str, names: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Return ``(__getattr__, __dir__, __all__)`` for a package (PEP 562).

    Parameters
    ----------
    package : str
        The package's ``__name__``.
    names : mapping of public name to the module that defines it
        An empty module name stands for the sub-package of the same name.
    """

    def get(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = names[name]
        if not module:
            return importlib.import_module(f"{package}.{name}")
        return getattr(importlib.import_module(module), name)

    public = sorted(names)
    return get, lambda: list(public), public
