"""How every report becomes one file: the templates, what they share, and a write that is whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from skerry import __version__
from skerry.core.files import atomic_write

__all__ = ["render_page", "write_page"]


def render_page(template: str, **values: Any) -> str:
    """Return a template of ``report/templates`` filled in; every text is escaped unless the template says otherwise.

    A name that the template uses and ``values`` lacks is an error, not an empty place.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("skerry.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(version=__version__, **values)


def write_page(path: str | Path, page: str) -> Path:
    """Write a page to ``path`` (beside it first, then renamed) and return the path.

    Raises
    ------
    DataError
        If the file cannot be written.
    """
    path = Path(path)
    with atomic_write(path) as file:
        file.write(page.encode())
    return path
