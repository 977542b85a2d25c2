"""OliVe (arXiv 2304.07493): outlier-victim pairs for weights and static inputs, at exactly 4 (or 8) bits."""

from skerry.core.errors import ParameterError
from skerry.quant.formats import OutlierVictim, VictimStatic
from skerry.quant.recipe import Bits, Recipe

__all__ = ["build"]

BLOCKS = ("*layers.{}.*", "*layer.{}.*", "*blocks.{}.*", "*.h.{}.*")  # as transformers and diffusers call them


def build(
    bits: Bits,
    *,
    types: tuple[str, ...] = ("int", "flint"),
    tie: str = "larger",
    search: tuple[int, int, int] = (75, 250, 2),
    first_n_8bit: int = 0,
) -> Recipe:
    """Return the recipe; ``types`` are the normal codes that compete, ``tie`` is what two outliers in a pair do.

    ``search`` is (first, last, step) in percent of the three-sigma threshold; the first ``first_n_8bit`` blocks get 8
    bits on both sides.
    """
    if bits.weight not in (4, 8) or bits.activation not in (4, 8, 16):
        raise ParameterError(f"olive stores 4 or 8 bits (or activations in floating point, a16), got {bits}")
    if first_n_8bit < 0:
        raise ParameterError(f"first_n_8bit counts blocks, got {first_n_8bit}")
    types, search = tuple(types), tuple(search)  # type: ignore[assignment]

    def stored(width: int) -> OutlierVictim:
        return OutlierVictim(width, types if width == 4 else ("int",), tie, search)

    def rounded(width: int) -> VictimStatic | None:
        return None if width == 16 else VictimStatic(width, types if width == 4 else ("int",), tie, search)

    wide = {"weight": stored(8), "activation": rounded(max(8, bits.activation))}
    return Recipe(
        "olive",
        stored(bits.weight),
        activation=rounded(bits.activation),
        overrides=tuple((p.format(i), wide) for i in range(first_n_8bit) for p in BLOCKS),
    )
