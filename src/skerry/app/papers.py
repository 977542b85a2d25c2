"""``skerry papers``: the catalogue of the fifty-one systems, on the terminal and as the tables of README and site."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from skerry.core.catalogue import Paper

__all__ = ["gallery", "papers", "verb_table"]

QUESTIONS = {
    "find": "which rows, moments, pixels, frames do not belong, and why?",
    "rank": "which features carry the signal, which are noise or broken?",
    "refuse": "is this input outside what my model knows?",
    "resist": "what is the answer once outliers, occlusion and noise are set aside?",
    "absorb": "how do I run this network in few bits although its outliers break low-bit formats?",
    "prevent": "how do I train so that such outliers never form?",
}


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


def verb_table(rows: tuple[Paper, ...]) -> str:
    """Return the README's table: for each verb its question, and which papers work and which are planned.

    What works is linked to its committed result.
    """
    lines = ["| verb | question | works | planned |", "|---|---|---|---|"]
    for verb, question in QUESTIONS.items():
        mine = [p for p in rows if p.verb == verb]
        works = ", ".join(f"[{p.slug}](benchmarks/{p.slug}.md)" for p in mine if p.status == "works")
        planned = ", ".join(p.slug for p in mine if p.status != "works")
        lines.append(f"| **{verb}** | {question} | {works} | {planned} |")
    return "\n".join(lines) + "\n"


def gallery(rows: tuple[Paper, ...]) -> str:
    """Return the gallery page as Markdown: every paper by verb, what works first, with what was measured."""
    done = sum(p.status == "works" for p in rows)
    lines = [
        "# The papers",
        "",
        f"{len(rows)} published systems say what Skerry must be able to do; {done} of them work: their study ran here "
        "beside its peers, and the result is committed. The figure is what the study measured, also where it does not "
        "bear the paper out. This page is made from the catalogue; `skerry papers SLUG` tells the same.",
    ]
    for verb, question in QUESTIONS.items():
        mine = sorted((p for p in rows if p.verb == verb), key=lambda p: (p.status != "works", p.slug))
        lines += ["", f"## {verb.capitalize()}: {question}", ""]
        lines += ["| paper | claim | verb | home | replica | status | figure |", "|---|---|---|---|---|---|---|"]
        for p in mine:
            works = p.status == "works"
            homes = " ".join(f"`{h}`" for h in p.home.split(", "))
            status = f"[works](../benchmarks/{p.slug}.md), {p.date}" if works else "planned"
            cells = [
                f"**{p.slug}**: {p.title} ({p.year}; {p.reference})", p.claim, p.verb, homes, f"`{p.replica}`", status,
                p.figure,
            ]  # fmt: skip
            lines.append("| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |")
    return "\n".join(lines) + "\n"
