"""The scores of one block of rows: columns, crosses, controls and pairs, by information or by another heuristic.

Follows OutRank (Škrlj & Mramor, RecSys 2023); see :class:`skerry.rank.OutRank` for what the options mean.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skerry.core.errors import DataError, nearest
from skerry.kernels import contingency as kernel
from skerry.kernels.contingency_pairs import cross_codes
from skerry.rank.accumulate import Block, all_pairs, score_columns
from skerry.rank.crosses import gamma_test, score_crosses
from skerry.rank.outputs import CONTROL, Score
from skerry.rank.quality import appearance_codes
from skerry.rank.surrogates import CORRECTIONS, heuristic_scores

__all__ = ["Scorer"]

AT_ONCE = 64  # crosses that are built as columns at a time


@dataclass
class Scorer:
    """Scores columns against a target in one way.

    Attributes
    ----------
    heuristic, correction : str
    draws : int
        Permutations of each null.
    seed, n_jobs : int
    reference : tuple of tuple of str
        Columns that a model already has, for the surrogates.
    """

    heuristic: str = "information"
    correction: str = "permutation"
    draws: int = 3
    seed: int = 0
    n_jobs: int = 1
    reference: tuple[tuple[str, ...], ...] = field(default=())

    @property
    def informative(self) -> bool:
        """Whether scores are information, with a null and a test."""
        return self.heuristic == "information" or self.heuristic in CORRECTIONS

    def keys(self, names: list[str], given: int) -> NDArray[np.int64]:
        """Return what identifies each column's draws: its place in the table, or for a derived one its name."""
        later = [zlib.crc32(n.encode("utf-8", "surrogatepass")) + (1 << 33) for n in names[given:]]
        return np.array([*range(given), *later], dtype=np.int64)

    def columns(
        self, block: Block, codes: NDArray, cards: NDArray[np.int64], keys: NDArray, values: Any = None
    ) -> list[Score]:
        """Score columns of codes (m, n) against the block's target."""
        y, card_y = block.target
        if not self.informative:
            y_values = None if block.values is None else block.values[-1]
            score = heuristic_scores(
                self.heuristic, codes, y.astype(np.int64), values=values, y_values=y_values,
                reference=self._given(block), seed=self.seed, n_jobs=self.n_jobs,
            )  # fmt: skip
            return [
                (float(s), np.nan, np.nan, int(np.unique(c).size), np.nan) for s, c in zip(score, codes, strict=True)
            ]
        score, mi, chance, cells = score_columns(
            codes, cards, y, card_y, block.sums, keys, correction=self.correction, draws=self.draws, seed=self.seed
        )
        z, p = gamma_test(mi, chance, block.sums.n)
        z, p = np.where(cells > 1, z, 0.0), np.where(cells > 1, p, 1.0)
        return [(float(a), float(b), float(c), int(d), np.nan) for a, b, c, d in zip(score, z, p, cells, strict=True)]

    def features(self, block: Block, given: int) -> list[Score]:
        """Score every feature of the block; the first ``given`` are columns of the table."""
        codes, cards = block.features
        values = None if block.values is None else block.values[:-1]
        return self.columns(block, codes, cards, self.keys(block.names, given), values)

    def crosses(self, block: Block, combos: list[tuple[int, ...]], given: int) -> list[Score]:
        """Score crosses; p tests the gain over every parent."""
        codes, cards = block.features
        y, card_y = block.target
        keys = self.keys(block.names, given)
        built: list[Score] = []
        if not self.informative or self.correction in ("expected", "shift"):
            for at in range(0, len(combos), AT_ONCE):
                part = [crossed(block, combo)[0] for combo in combos[at : at + AT_ONCE]]
                one, sizes = kernel.pack(part)
                built += self.columns(block, one, sizes, np.arange(len(part)))
        if not self.informative:
            return built
        got = score_crosses(codes, cards, combos, y, card_y, block.sums, draws=self.draws, seed=self.seed, keys=keys)
        if built:
            score = np.array([s[0] for s in built])
        else:
            score = got.mi if self.correction == "none" else got.mi - got.chance
        score = np.where(got.cells > 1, score, 0.0)
        return [
            (float(a), float(b), float(c), int(d), float(e))
            for a, b, c, d, e in zip(score, got.z, got.p, got.cells, got.gain, strict=True)
        ]

    def controls(self, block: Block, columns: dict[str, NDArray]) -> dict[tuple[str, str], Score]:
        """Score control columns."""
        codes, cards = kernel.pack([appearance_codes(v) for v in columns.values()])
        values = np.stack([v.astype(np.float64) for v in columns.values()])
        scores = self.columns(block, codes, cards, 1_000_000_007 + np.arange(len(columns)), values)
        return {(CONTROL, name): s for name, s in zip(columns, scores, strict=True)}

    def pairs(self, block: Block) -> NDArray[np.float64]:
        """Return the scores of all pairs, the target last: (p + 1, p + 1)."""
        if self.informative:
            return all_pairs(block, correction=self.correction, draws=self.draws, seed=self.seed)
        m = len(block.cards)
        out = np.zeros((m, m))
        for j in range(m):
            values = None if block.values is None else block.values[: j + 1]
            y_values = None if block.values is None else block.values[j]
            out[: j + 1, j] = heuristic_scores(
                self.heuristic, block.codes[: j + 1], block.codes[j].astype(np.int64), values=values,
                y_values=y_values, seed=self.seed, n_jobs=self.n_jobs,
            )  # fmt: skip
        return np.triu(out) + np.triu(out, 1).T

    def _given(self, block: Block) -> list[NDArray]:
        place = {name: j for j, name in enumerate(block.names)}
        for name in (n for feature in self.reference for n in feature):
            if name not in place:
                raise DataError(f"the reference model's column {name!r} is not in the table; {nearest(name, place)}")
        return [crossed(block, tuple(place[n] for n in feature))[0] for feature in self.reference]


def crossed(block: Block, combo: tuple[int, ...]) -> tuple[NDArray, int]:
    """Return the codes of a cross of features, and how many there are."""
    codes, card = block.codes[combo[0]], int(block.cards[combo[0]])
    for j in combo[1:]:
        codes, card = cross_codes(codes, card, block.codes[j], int(block.cards[j]))
    return codes, card
