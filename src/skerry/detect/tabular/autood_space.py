"""The designs that AutoOD searches among on tables, as strings of choices (Li et al., 2020, "AutoOD").

A design is a dictionary that people read; a *string* is the same thing as a tuple of option numbers, one per decision,
which is what the controller writes. The next decision depends on those before it, so strings differ in length.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skerry.core.errors import ParameterError

__all__ = ["ACTIVATIONS", "DEFINITIONS", "SearchSpace"]

DEFINITIONS = ("reconstruction", "centroid", "density", "cluster")
DISTANCES = ("l1", "l2", "l21")
ACTIVATIONS = ("sigmoid", "tanh", "relu", "linear", "softplus", "leaky_relu", "relu6", "elu")
NORMS = ("none", "batch", "layer")
DROPOUTS = (0.0, 0.1, 0.2)
DEPTHS = (1, 2, 3, 4)
# A bounded unit can saturate at a non-zero constant, and softplus(0) is not 0: both act as a bias, with which the
# network can send every row to the centre. Only these keep zero at zero and have no bound other than zero.
SAFE_FOR_CENTROID = ("relu", "linear", "leaky_relu")
_HEAD = ("definition", "distance", "latent", "depth")
_LAYER = ("width", "norm", "activation", "dropout", "skip")


class SearchSpace:
    """Strings of choices for a table of ``n_features`` columns.

    The decisions are, in order: definition; distance (not for "centroid", which rebuilds nothing); latent; depth; then
    for each encoder layer width, norm, activation, dropout and skip. The decoder mirrors the encoder.

    Parameters
    ----------
    n_features : int >= 1
    definitions : sequence of str, default all four
        Which of "reconstruction", "centroid", "density" and "cluster" may be chosen.

    Attributes
    ----------
    options : dict of str to tuple
        The choices of each kind of decision. Widths are d, d/2, d/4, 16, 32, 64 and 128 (unique, at least 2) and
        latents 2, 4, 8, 16, d/4 and d/2 (unique, below d; of one column, 1).

    Notes
    -----
    Definitions and distances are the paper's as remembered; the choices of a layer are ours, as the paper searches
    convolutions. Illegal, and never written: a "centroid" with an activation other than ReLU, linear or leaky ReLU;
    a latent of d or more; a skip connection between layers of different width.

    Raises
    ------
    ParameterError
        For an unknown or empty list of definitions.

    Examples
    --------
    >>> space = SearchSpace(8, definitions=("reconstruction",))
    >>> string = space.sample(np.random.default_rng(0))
    >>> space.encode(space.decode(string)) == string
    True
    """

    def __init__(self, n_features: int, definitions=DEFINITIONS) -> None:
        d = int(n_features)
        definitions = tuple(definitions)
        unknown = [x for x in definitions if x not in DEFINITIONS]
        if unknown or not definitions or len(set(definitions)) < len(definitions):
            raise ParameterError(f"definitions must be distinct names among {DEFINITIONS}, got {definitions!r}")
        self.n_features = d
        widths = dict.fromkeys(w for w in (d, d // 2, d // 4, 16, 32, 64, 128) if w >= 2)
        latents = sorted({z for z in (2, 4, 8, 16, d // 4, d // 2) if 1 <= z < d} or {1})
        self.options: dict[str, tuple] = {
            "definition": tuple(x for x in DEFINITIONS if x in definitions),
            "distance": DISTANCES,
            "latent": tuple(latents),
            "depth": DEPTHS,
            "width": tuple(widths),
            "norm": NORMS,
            "activation": ACTIVATIONS,
            "dropout": DROPOUTS,
            "skip": (False, True),
        }

    layer_kinds = _LAYER
    image_shape: tuple[int, int, int] | None = None

    @property
    def kinds(self) -> dict[str, int]:
        """Return the number of options of every kind of decision."""
        return {kind: len(values) for kind, values in self.options.items()}

    @property
    def size(self) -> int:
        """Return the number of legal strings, exactly."""
        widths = self.options["width"]

        @cache
        def layers(depth: int, before: int, activations: int) -> int:
            if depth == 0:
                return 1
            per = len(NORMS) * activations * len(DROPOUTS)
            return sum(per * (2 if w == before else 1) * layers(depth - 1, w, activations) for w in widths)

        total = 0
        for definition in self.options["definition"]:
            centroid = definition == "centroid"
            n_act = len(SAFE_FOR_CENTROID) if centroid else len(ACTIVATIONS)
            stacks = sum(layers(depth, self.n_features, n_act) for depth in DEPTHS)
            total += (1 if centroid else len(DISTANCES)) * len(self.options["latent"]) * stacks
        return total

    def next(self, prefix: tuple[int, ...]) -> tuple[str, NDArray[np.bool_]] | None:
        """Return the decision after ``prefix`` and which of its options are legal; None if the string is complete."""
        made, _ = self._walk(tuple(prefix))
        return made

    def decode(self, string) -> dict[str, Any]:
        """Return the design of a string.

        Returns
        -------
        dict
            ``definition``, ``distance`` (None for "centroid"), ``latent`` and ``layers``, a list of dictionaries with
            ``width``, ``norm``, ``activation``, ``dropout`` and ``skip``.

        Raises
        ------
        ParameterError
            If the string is incomplete, too long or illegal.
        """
        left, design = self._walk(tuple(string))
        if left is not None:
            raise ParameterError(f"the string ends before its {left[0]}")
        return design

    def encode(self, design: dict[str, Any]) -> tuple[int, ...]:
        """Return the string of a design; the inverse of :meth:`decode`.

        Raises
        ------
        ParameterError
            If the design is illegal; the message says why.
        """
        reason = self.illegal(design)
        if reason:
            raise ParameterError(f"illegal design: {reason}")
        return self._string(design)

    def illegal(self, design: dict[str, Any]) -> str | None:
        """Return why a design cannot be built on this table, or None."""
        if "definition" not in design or "latent" not in design or not design.get("layers"):
            return "it needs a definition, a latent and at least one layer"
        if len(design["layers"]) not in DEPTHS:
            return f"depth {len(design['layers'])} is not one of {DEPTHS}"
        if design["latent"] >= self.n_features > 1:
            return f"latent {design['latent']} is not below the {self.n_features} columns"
        centroid = design["definition"] == "centroid"
        if centroid and design.get("distance") is not None:
            return "a centroid rebuilds nothing and has no distance"
        head = [("definition", design["definition"]), ("latent", design["latent"])]
        if not centroid:
            head.append(("distance", design.get("distance")))
        for kind, value in head:
            if value not in self.options[kind]:
                return f"{kind} {value!r} is not one of {self.options[kind]}"
        before = self._begin()
        for i, layer in enumerate(design["layers"]):
            for kind in self.layer_kinds:
                if layer.get(kind) not in self.options[kind]:
                    return f"{kind} {layer.get(kind)!r} of layer {i} is not one of {self.options[kind]}"
                legal = self._legal(kind, design["definition"], layer, before)
                if not legal[self.options[kind].index(layer[kind])]:
                    return self._reason(kind, i, layer, before)
            before = self._after(layer, before)
        return None

    def sample(self, rng: np.random.Generator) -> tuple[int, ...]:
        """Return a string whose every decision is uniform among its legal options."""
        return self._complete((), rng)

    def mutate(self, string, rng: np.random.Generator) -> tuple[int, ...]:
        """Return a legal string in which one decision differs; later ones are kept where they remain legal."""
        string = tuple(string)
        self.decode(string)
        places = [i for i in range(len(string)) if self.next(string[:i])[1].sum() > 1]
        if not places:
            return string
        at = int(rng.choice(places))
        legal = self.next(string[:at])[1].copy()
        legal[string[at]] = False
        return self._complete((*string[:at], int(rng.choice(np.flatnonzero(legal)))), rng, string)

    def default(self) -> dict[str, Any]:
        """Return the fixed autoencoder that a search is compared with: ReLU, squared error, d/2 to d/4, no extras."""
        d = self.n_features
        wide = [w for w in self.options["width"] if w <= d] or [min(self.options["width"])]
        layer = {"norm": "none", "activation": "relu", "dropout": 0.0, "skip": False}
        latent = min(self.options["latent"], key=lambda z: (abs(z - d / 4), z))
        return {
            "definition": "reconstruction",
            "distance": "l2",
            "latent": latent,
            "layers": [{"width": min(wide, key=lambda w: (abs(w - d / 2), w)), **layer}],
        }

    # ---- what a space of other layers says anew ---------------------------------------------------------------
    def _begin(self) -> Any:
        """Return the size of what enters the first layer."""
        return self.n_features

    def _after(self, layer: dict[str, Any], before: Any) -> Any:
        """Return the size of what leaves a layer."""
        return layer["width"]

    def _legal(self, kind: str, definition: str, layer: dict[str, Any], before: Any) -> NDArray[np.bool_]:
        """Return which options of a layer are legal after its earlier choices."""
        legal = np.ones(len(self.options[kind]), dtype=bool)
        if kind == "activation" and definition == "centroid":
            legal = np.array([a in SAFE_FOR_CENTROID for a in ACTIVATIONS])
        elif kind == "skip":
            legal[1] = layer["width"] == before
        return legal

    def _reason(self, kind: str, i: int, layer: dict[str, Any], before: Any) -> str:
        """Return why an option of layer ``i`` is not legal there."""
        if kind == "activation":
            return f"activation {layer[kind]!r} of layer {i} lets a centroid collapse"
        return f"layer {i} skips from width {before} to {layer['width']}"

    # ---- how it is done ---------------------------------------------------------------------------------------
    def _complete(self, prefix, rng, like=()) -> tuple[int, ...]:
        names = [kind for kind, _ in self._named(like)] if like else []
        string = list(prefix)
        while (step := self.next(tuple(string))) is not None:
            kind, legal = step
            at = len(string)
            same = at < len(like) and names[at] == kind and legal[like[at]]
            string.append(int(like[at]) if same else int(rng.choice(np.flatnonzero(legal))))
        return tuple(string)

    def _named(self, string) -> list[tuple[str, int]]:
        return [(self.next(tuple(string[:i]))[0], int(choice)) for i, choice in enumerate(string)]

    def _string(self, design) -> tuple[int, ...]:
        string = [self.options["definition"].index(design["definition"])]
        if design["distance"] is not None:
            string.append(self.options["distance"].index(design["distance"]))
        string += [self.options["latent"].index(design["latent"]), DEPTHS.index(len(design["layers"]))]
        for layer in design["layers"]:
            string += [self.options[kind].index(layer[kind]) for kind in self.layer_kinds]
        return tuple(string)

    def _walk(self, string: tuple[int, ...]):
        """Read a string; return the decision that comes next (None at the end) and the design so far."""
        at, design = 0, {}

        def take(kind: str, legal: NDArray[np.bool_]):
            nonlocal at
            if at == len(string):
                return kind, legal
            choice = string[at]
            if not (0 <= choice < len(legal)) or not legal[choice]:
                raise ParameterError(f"option {choice} of {kind}, at place {at}, is not legal there")
            at += 1
            return None

        for kind in _HEAD:
            if kind == "distance" and design["definition"] == "centroid":
                design["distance"] = None
                continue
            stop = take(kind, np.ones(len(self.options[kind]), dtype=bool))
            if stop is not None:
                return stop, design
            design[kind] = self.options[kind][string[at - 1]]
        design["layers"] = []
        before = self._begin()
        for _ in range(design.pop("depth")):
            layer: dict[str, Any] = {}
            for kind in self.layer_kinds:
                stop = take(kind, self._legal(kind, design["definition"], layer, before))
                if stop is not None:
                    return stop, design
                layer[kind] = self.options[kind][string[at - 1]]
            before = self._after(layer, before)
            design["layers"].append(layer)
        if at < len(string):
            raise ParameterError(f"the string has {len(string) - at} choices too many")
        return None, design
