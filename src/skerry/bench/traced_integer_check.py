"""Replay a written trace: which of its lines do not follow from the lines before?

The algorithm runs again, but every variable takes the value that the text gives it; a line that differs from what the
state so far implies is inconsistent. A wrong value that the algorithm went on with is therefore counted once; one that
was edited into the finished text is counted with every line that contradicts it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from skerry.bench.traced_integer_core import Level, TInt, Trace, TraceLimit, render

__all__ = ["Inconsistency", "replay"]

_AHEAD = 3  # lines that may be foreign before the replay gives a line up as missing


class Inconsistency(NamedTuple):
    """A line that does not follow.

    Attributes
    ----------
    line : int
        Its index; for a missing line that of the next one.
    expected : str
        What the state implied; empty for a line too many.
    found : str
        What is written; empty for a missing line.
    """

    line: int
    expected: str
    found: str


def replay(
    function: Callable[..., Any], args: tuple[Any, ...], levels: Mapping[str, Level], limit: int, lines: list[str]
) -> list[Inconsistency]:
    """Return the lines that do not follow from those before.

    Parameters
    ----------
    function : callable
        The traced function.
    args : tuple
    levels : mapping
    limit : int
        Of the lines.
    lines : list of str
        What was written, the answer last.

    Returns
    -------
    list of Inconsistency
        Empty for a clean trace.
    """
    # Equal lines in a row were written once, so a repeated assignment may or may not have a line of its own.
    found = _attempt(function, args, levels, limit, lines, False)
    if found:
        found = min(found, _attempt(function, args, levels, limit, lines, True), key=len)
    return found


def _attempt(function, args, levels, limit, lines, collapse_first) -> list[Inconsistency]:
    trace = _Replay(levels, limit, lines, collapse_first)
    try:
        answer = render(trace.run(function, *args))
    except (TraceLimit, ArithmeticError, LookupError, ValueError, TypeError):
        return [*trace.found, Inconsistency(trace.next, "an algorithm that ends", "")]
    plain = None if answer is None else plain_answer(answer)
    for i in range(trace.next, len(lines) - 1):
        trace.found.append(Inconsistency(i, "", lines[i]))
    if not lines or plain_answer(lines[-1]) != plain:
        trace.found.append(Inconsistency(max(0, len(lines) - 1), plain or "", lines[-1] if lines else ""))
    return trace.found


def plain_answer(text: str) -> str:
    """Return an answer without spaces; leading zeros of a number are dropped.

    >>> plain_answer("0 1 2"), plain_answer("[ 1 , 2 ]")
    ('12', '[1,2]')
    """
    text = "".join(text.split())
    return text.lstrip("0") or "0" if text.isdigit() else text


class _Replay(Trace):
    def __init__(self, levels: Mapping[str, Level], limit: int, text: list[str], collapse_first: bool) -> None:
        super().__init__(levels, 4 * limit)  # missing lines count here although they are not in the text
        self.text = text[:-1]
        self.next = 0
        self.collapse_first = collapse_first
        self.found: list[Inconsistency] = []
        self.forced: list[str] = []  # what the variables of the line to come should have been

    def assigned(self, name: str, value: Any) -> Any:
        computed = render(value)
        if computed is None or self.next >= len(self.text):
            return value
        if self.collapse_first and self.lines and self.lines[-1] == f"{name} = {computed}":
            return value
        head = re.match(rf"(?:.* , )?{re.escape(name)} = ([\d \[\],]+?)(?: , \w+ = .*)?$", self.text[self.next])
        if head is None or head[1] == computed:
            return value
        forced = _read(head[1], value)
        if forced is not value:
            self.forced.append(f"{name} = {computed}")
        return forced

    def write(self, names: tuple[str, ...], values: list[Any], text: str) -> None:
        repeated = bool(self.lines) and self.lines[-1] == text
        upcoming = self.text[self.next] if self.next < len(self.text) else None
        forced, self.forced = self.forced, []
        if upcoming == text and (forced or not (repeated and self.collapse_first)):
            if forced:
                self.found.append(Inconsistency(self.next, " , ".join(forced), text))
            self._take(text)
        elif repeated and (self.collapse_first or not _same_names(names, upcoming)):
            return
        elif _same_names(names, upcoming):
            self._disagree(names, values, upcoming)
        else:
            self._missing(text)

    def write_call(self, text: str) -> None:
        upcoming = self.text[self.next] if self.next < len(self.text) else None
        if upcoming == text:
            self._take(text)
        elif upcoming is not None and upcoming.count(" ( ") == text.count(" ( ") and _head(upcoming) == _head(text):
            self.found.append(Inconsistency(self.next, text, upcoming))
            self._take(upcoming)
        else:
            self._missing(text)

    def _take(self, text: str) -> None:
        self.add(text)
        self.next += 1

    def _disagree(self, names: tuple[str, ...], values: list[Any], upcoming: str) -> None:
        # The variables already hold what is written; only a list that grew in place must be told.
        self.found.append(Inconsistency(self.next, " , ".join(names) + " as implied", upcoming))
        for value, written in zip(values, _values(names, upcoming), strict=True):
            if isinstance(value, list) and render(value) != written:
                value[:] = _read(written, value)
        self._take(upcoming)

    def _missing(self, text: str) -> None:
        ahead = self.text[self.next : self.next + _AHEAD + 1]
        if text in ahead:
            for _ in range(ahead.index(text)):
                self.found.append(Inconsistency(self.next, "", self.text[self.next]))
                self.next += 1
            self._take(text)
        else:
            self.found.append(Inconsistency(self.next, text, ""))
            self.add(text)


def _head(text: str) -> str:
    return text.partition(" = ")[0]


def _values(names: tuple[str, ...], text: str) -> list[str] | None:
    match = re.fullmatch(" , ".join(rf"{re.escape(n)} = ([\d \[\],]+)" for n in names), text)
    return None if match is None else list(match.groups())


def _same_names(names: tuple[str, ...], text: str | None) -> bool:
    return text is not None and _values(names, text) is not None


def _read(text: str, like: Any) -> Any:
    """Return a written value as one of the kind of ``like``; ``like`` itself if it cannot be."""
    if isinstance(like, (list, tuple)):
        inside = text.strip("[] ")
        parts = [p.replace(" ", "") for p in inside.split(",")] if inside else []
        if not all(p.isdigit() for p in parts):
            return like
        return [TInt(p) for p in parts]
    digits = text.replace(" ", "")
    if not digits.isdigit():
        return like
    return TInt(digits) if isinstance(like, TInt) else int(digits)
