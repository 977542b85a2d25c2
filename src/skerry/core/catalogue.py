"""The catalogue: ``papers.toml`` as objects. What each paper claims, where it lives, and what our study measured."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, fields
from functools import cache
from importlib.resources import files

from skerry.core.errors import ParameterError, SkerryError, nearest

__all__ = ["Paper", "paper", "papers"]

VERBS = ("find", "rank", "refuse", "resist", "absorb", "prevent")


@dataclass(frozen=True)
class Paper:
    """One published system.

    Attributes
    ----------
    slug, title, reference : str
    year : int
    verb : str
        The question it answers: find, rank, refuse, resist, absorb or prevent.
    claim : str
        The paper's claim, in our words.
    home : str
        Where the code is, or will be.
    replica : str
        The command of our study.
    peer : str
        What the study is run beside.
    status : {"planned", "works"}
        ``works`` only if the study ran and its result is committed.
    figure, date : str
        What the study reached, and when.
    """

    slug: str
    title: str
    year: int
    reference: str
    verb: str
    claim: str
    home: str
    replica: str
    peer: str
    status: str
    figure: str
    date: str


@cache
def papers() -> tuple[Paper, ...]:
    """Return all papers, by slug.

    >>> len(papers())
    51
    """
    raw = tomllib.loads((files("skerry.core") / "papers.toml").read_text(encoding="utf-8"))["paper"]
    names = {f.name for f in fields(Paper)}
    found = []
    for row in raw:
        if row.keys() != names:
            raise SkerryError(f"papers.toml, {row.get('slug')}: fields differ from {sorted(names)}")
        one = Paper(**row)
        if one.verb not in VERBS or one.status not in ("planned", "works"):
            raise SkerryError(f"papers.toml, {one.slug}: unknown verb or status")
        if one.status == "works" and not (one.figure and one.date):
            raise SkerryError(f"papers.toml, {one.slug}: works needs a figure and a date")
        found.append(one)
    return tuple(sorted(found, key=lambda p: p.slug))


def paper(slug: str) -> Paper:
    """Return one paper.

    Raises
    ------
    ParameterError
        For an unknown slug; the message lists the nearest ones.

    >>> paper("outrank").verb
    'rank'
    """
    for one in papers():
        if one.slug == slug:
            return one
    raise ParameterError(f"unknown paper {slug!r}: {nearest(slug, [p.slug for p in papers()])}")
