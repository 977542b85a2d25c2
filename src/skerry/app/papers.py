"""``skerry papers``: the catalogue of the fifty-one systems."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

__all__ = ["papers"]


def papers(
    slug: Annotated[str | None, typer.Argument(help="One paper in full.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
) -> None:
    """List the papers Skerry follows, with what works and the figure measured.

    Example: `skerry papers outrank`
    """
    from dataclasses import asdict

    from skerry.core.catalogue import paper
    from skerry.core.catalogue import papers as catalogue

    if slug is not None:
        one = asdict(paper(slug))
        if as_json:
            sys.stdout.write(json.dumps(one) + "\n")
            return
        for key, value in one.items():
            if value:
                typer.echo(f"{key:>10}  {value}")
        return
    rows = catalogue()
    if as_json:
        sys.stdout.write(json.dumps([asdict(p) for p in rows]) + "\n")
        return
    for p in rows:
        typer.echo(f"{p.slug:<28} {p.verb:<8} {p.status:<8} {p.title} ({p.year})")
    n = sum(p.status == "works" for p in rows)
    typer.echo(f"{len(rows)} papers, {n} work; `skerry papers SLUG` tells more")
