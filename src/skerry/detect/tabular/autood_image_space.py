"""The designs that AutoOD searches among on images: convolutions, as the paper does (Li et al., 2020, "AutoOD").

As remembered from the paper: for each layer of the encoder the channels, the kernel, the kind and the size of pooling,
the normalisation, the activation and whether a skip connection goes round it. Ours: the numbers of channels, the latent
sizes, and that pooling of more than one pixel halves the sides.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skerry.core.errors import ParameterError
from skerry.detect.tabular.autood_space import ACTIVATIONS, DEFINITIONS, DEPTHS, SAFE_FOR_CENTROID, SearchSpace

__all__ = ["ImageSpace"]

DISTANCES = ("l1", "l2", "l21", "ssim")
CHANNELS = (4, 8, 16, 32)
SIZES = (1, 3, 5, 7)  # of kernels and of pooling
NORMS = ("none", "batch", "instance")
LATENTS = (4, 8, 16, 32)
SMALLEST = 4  # side below which pooling may not halve


class ImageSpace(SearchSpace):
    """Strings of choices for images of one shape.

    The decisions are, in order: definition; distance (not for "centroid"); latent; depth; then for each layer channels,
    kernel, pool_size, pool ("mean" or "max"; of one pixel only "mean", which does nothing), norm, activation and skip.
    A linear layer leads to the latent vector; the decoder mirrors the encoder.

    Parameters
    ----------
    image_shape : (height, width) or (height, width, channels)
    definitions : sequence of str, default all four

    Notes
    -----
    Illegal, and never written: a "centroid" with an activation other than ReLU, linear or leaky ReLU; pooling of sides
    under 4 pixels; a skip connection round a layer that changes the size or the number of channels.

    Raises
    ------
    ParameterError
        For a shape that is none, and for an unknown or empty list of definitions.

    Examples
    --------
    >>> space = ImageSpace((8, 8), definitions=("centroid",))
    >>> string = space.sample(np.random.default_rng(0))
    >>> space.encode(space.decode(string)) == string
    True
    """

    layer_kinds = ("channels", "kernel", "pool_size", "pool", "norm", "activation", "skip")

    def __init__(self, image_shape, definitions=DEFINITIONS) -> None:
        shape = tuple(image_shape)
        if len(shape) not in (2, 3) or not all(isinstance(n, (int, np.integer)) and n >= 1 for n in shape):
            raise ParameterError(
                f"image_shape must be (height, width) or (height, width, channels), got {image_shape!r}"
            )
        self.image_shape = (int(shape[0]), int(shape[1]), int(shape[2]) if len(shape) == 3 else 1)
        super().__init__(int(np.prod(self.image_shape)), definitions)
        self.options = {
            "definition": self.options["definition"],
            "distance": DISTANCES,
            "latent": tuple(z for z in LATENTS if z < self.n_features) or (1,),
            "depth": DEPTHS,
            "channels": CHANNELS,
            "kernel": SIZES,
            "pool_size": SIZES,
            "pool": ("mean", "max"),
            "norm": NORMS,
            "activation": ACTIVATIONS,
            "skip": (False, True),
        }

    @property
    def size(self) -> int:
        """Return the number of legal strings, exactly."""

        @cache
        def layers(depth: int, before: tuple[int, int, int], activations: int) -> int:
            if depth == 0:
                return 1
            per, total = len(SIZES) * len(NORMS) * activations, 0  # kernels, norms, activations
            for channels in CHANNELS:
                skips = 2 if channels == before[0] else 1
                total += per * skips * layers(depth - 1, (channels, *before[1:]), activations)
                if min(before[1:]) >= SMALLEST:
                    half = self._after({"channels": channels, "pool_size": 3}, before)
                    total += per * 2 * (len(SIZES) - 1) * layers(depth - 1, half, activations)
            return total

        total = 0
        for definition in self.options["definition"]:
            centroid = definition == "centroid"
            n_act = len(SAFE_FOR_CENTROID) if centroid else len(ACTIVATIONS)
            stacks = sum(layers(depth, self._begin(), n_act) for depth in DEPTHS)
            total += (1 if centroid else len(DISTANCES)) * len(self.options["latent"]) * stacks
        return total

    def decode(self, string) -> dict[str, Any]:
        """Return the design of a string: as of a table, with ``image_shape`` and layers of this space's choices."""
        return {**super().decode(string), "image_shape": self.image_shape}

    def default(self) -> dict[str, Any]:
        """Return the fixed autoencoder that a search is compared with: two layers of 3 x 3, ReLU, squared error."""
        layers, before = [], self._begin()
        for channels in (8, 16):
            size = 3 if min(before[1:]) >= SMALLEST else 1
            layer = {"channels": channels, "kernel": 3, "pool_size": size, "pool": "max" if size > 1 else "mean"}
            layers.append(layer | {"norm": "none", "activation": "relu", "skip": False})
            before = self._after(layer, before)
        latent = self.options["latent"][-1]
        head = {"definition": "reconstruction", "distance": "l2", "latent": latent}
        return {**head, "layers": layers, "image_shape": self.image_shape}

    # ---- sizes are (channels, height, width) ----------------------------------------------------------------------
    def _begin(self) -> tuple[int, int, int]:
        height, width, channels = self.image_shape
        return channels, height, width

    def _after(self, layer: dict[str, Any], before: tuple[int, int, int]) -> tuple[int, int, int]:
        halved = layer["pool_size"] > 1
        return (layer["channels"], *((side + 1) // 2 if halved else side for side in before[1:]))

    def _legal(self, kind: str, definition: str, layer: dict[str, Any], before: Any) -> NDArray[np.bool_]:
        legal = np.ones(len(self.options[kind]), dtype=bool)
        if kind == "pool_size":
            legal[1:] = min(before[1:]) >= SMALLEST
        elif kind == "pool":
            legal[1] = layer["pool_size"] > 1
        elif kind == "activation" and definition == "centroid":
            legal = np.array([a in SAFE_FOR_CENTROID for a in ACTIVATIONS])
        elif kind == "skip":
            legal[1] = self._after(layer, before) == before
        return legal

    def _reason(self, kind: str, i: int, layer: dict[str, Any], before: Any) -> str:
        if kind == "activation":
            return f"activation {layer[kind]!r} of layer {i} lets a centroid collapse"
        if kind == "pool_size":
            return f"layer {i} pools sides of {before[1]} and {before[2]} pixels; at least {SMALLEST} are needed"
        if kind == "pool":
            return f"layer {i} pools one pixel, for which only 'mean' is written"
        return f"layer {i} skips from {before} to {self._after(layer, before)}"
