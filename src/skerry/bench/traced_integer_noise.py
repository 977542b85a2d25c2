"""Two dials for bad reasoning: static noise edits the finished text, dynamic noise corrupts values while it is made."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from skerry.bench.traced_integer_core import Level, TInt, Trace
from skerry.core.errors import ParameterError

__all__ = ["Noise", "NoisyTrace", "edit"]

MODES = ("assignments", "constructions")


@dataclass(frozen=True)
class Noise:
    """How a set of traces is spoilt; by default not at all.

    Parameters
    ----------
    contamination : float, default 1
        Probability that a document gets the noise below.
    char : float, default 0
        Static: probability that a digit of the trace is replaced by a uniform digit (in 9 of 10 cases another one).
    line : float, default 0
        Static: probability that a line other than the last is deleted.
    dynamic : float, default 0
        Probability that a digit of a value, from its first digit other than 0 on, is replaced while the algorithm runs.
    dynamic_mode : {"assignments", "constructions"}, default "assignments"
        Where: when a visible variable is assigned, or whenever any number is made, the answer's copy among them.
    noise_answer : bool, default False
        Whether character noise also edits the last line, the answer.

    Raises
    ------
    ParameterError
        If a probability is not in [0, 1] or the mode is unknown.
    """

    contamination: float = 1.0
    char: float = 0.0
    line: float = 0.0
    dynamic: float = 0.0
    dynamic_mode: str = "assignments"
    noise_answer: bool = False

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type == "float" and not 0 <= value <= 1:
                raise ParameterError(f"{field.name} is {value}: give a probability from 0 to 1")
        if self.dynamic_mode not in MODES:
            raise ParameterError(f"dynamic_mode is {self.dynamic_mode!r}: give one of {', '.join(map(repr, MODES))}")


class NoisyTrace(Trace):
    """A trace whose values are corrupted while the algorithm runs, and which knows where.

    Attributes
    ----------
    noised : set of int
        Lines that hold, or were worked out from, a value changed since the line before.
    """

    def __init__(self, levels: Mapping[str, Level], limit: int, noise: Noise, rng: random.Random) -> None:
        super().__init__(levels, limit)
        self.rate = noise.dynamic
        self.inner_noise = noise.dynamic > 0 and noise.dynamic_mode == "constructions"
        self.rng = rng
        self.noised: set[int] = set()
        self._changed = False

    def constructed(self, digits: str) -> str:
        digits = super().constructed(digits)
        return self._corrupt(digits) if self.inner_noise else digits

    def assigned(self, name: str, value: Any) -> Any:
        if self.inner_noise or not self.rate or not isinstance(value, TInt):
            return value
        digits = self._corrupt(value.digits)
        return value if digits == value.digits else TInt(digits)

    def write(self, names: tuple[str, ...], values: list[Any], text: str) -> None:
        if self._changed:  # written even if it now equals the line before: a step must not vanish by chance
            self.noised.add(len(self.lines))
            self.add(text)
        else:
            super().write(names, values, text)
        self._changed = False

    def _corrupt(self, digits: str) -> str:
        first = next((i for i, d in enumerate(digits) if d != "0"), len(digits))
        new = digits[:first] + "".join(
            str(self.rng.randrange(10)) if self.rng.random() < self.rate else d for d in digits[first:]
        )
        self._changed |= new != digits
        return new


def edit(lines: list[str], noise: Noise, rng: random.Random) -> tuple[list[str], int, int]:
    """Apply static noise to the lines of a trace, the last of which is the answer.

    Returns
    -------
    lines : list of str
    changed, digits : int
        Digits that differ now, and digits that could have.
    """
    kept = [t for t in lines[:-1] if not (noise.line and rng.random() < noise.line)] + lines[-1:]
    changed = digits = 0

    def swap(match: re.Match[str]) -> str:
        nonlocal changed, digits
        digits += 1
        if rng.random() >= noise.char:
            return match.group()
        new = str(rng.randrange(10))
        changed += new != match.group()
        return new

    if noise.char:
        free = len(kept) if noise.noise_answer else len(kept) - 1
        # A digit inside of a name belongs to the name.
        kept = [re.sub(r"(?<!\w)\d(?!\w)", swap, t) if i < free else t for i, t in enumerate(kept)]
    return kept, changed, digits
