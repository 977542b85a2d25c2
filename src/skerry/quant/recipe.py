"""A recipe: which parts, in which order, with which settings; pure data that goes into the checkpoint."""

from __future__ import annotations

import fnmatch
import importlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

from skerry.core.errors import ModelError, ParameterError, nearest

__all__ = ["Bits", "Recipe", "from_plain", "parse_bits", "to_plain"]

# Where the parts live: a class name in a checkpoint is looked up here and nowhere else (no code from a file).
PARTS: dict[str, str] = {
    "AWQ": "skerry.quant.solvers.awq",
    "AdaDim": "skerry.quant.solvers.adadim",
    "AdaptiveRotation": "skerry.quant.transforms.adaptive_rotation",
    "AffineGrid": "skerry.quant.numerics",
    "BranchSmooth": "skerry.quant.transforms.low_rank",
    "ClippedRTN": "skerry.quant.solvers.clipped",
    "Float4": "skerry.quant.formats.float4",
    "Float4Group": "skerry.quant.formats.float4",
    "Float8": "skerry.quant.formats.float8",
    "Float8Token": "skerry.quant.formats.float8",
    "GPTQ": "skerry.quant.solvers.gptq",
    "GroupDynamic": "skerry.quant.activation",
    "KLTResidual": "skerry.quant.transforms.klt_rotation",
    "KLTSteps": "skerry.quant.transforms.klt_rotation",
    "LiftedInput": "skerry.quant.transforms.low_rank",
    "LowRankAbsorb": "skerry.quant.transforms.low_rank",
    "MixedInt8": "skerry.quant.formats.mixed_decomposition",
    "OnlineHadamard": "skerry.quant.transforms.rotation",
    "OutlierSplit": "skerry.quant.formats.mixed_decomposition",
    "OutlierVictim": "skerry.quant.formats.outlier_victim",
    "PairCodec": "skerry.quant.formats.victim_codec",
    "PercentileStatic": "skerry.quant.scan_operands",
    "PreDequant": "skerry.quant.transforms.symmetrize",
    "QuantEase": "skerry.quant.solvers.quantease",
    "QuantileRotation": "skerry.quant.transforms.adaptive_rotation",
    "RTN": "skerry.quant.solvers.rtn",
    "ResidualRotation": "skerry.quant.transforms.rotation",
    "RoundClamp": "skerry.quant.activation",
    "RoundedInputs": "skerry.quant.solvers.rounded_inputs",
    "ScanOperands": "skerry.quant.scan_operands",
    "ShiftScale": "skerry.quant.transforms.shift_scale",
    "Smooth": "skerry.quant.transforms.smooth",
    "SmoothFused": "skerry.quant.transforms.smooth_fused",
    "SpQR": "skerry.quant.solvers.spqr",
    "SplitGrid": "skerry.quant.formats.split",
    "StateHadamard": "skerry.quant.transforms.smooth_fused",
    "StaticColumns": "skerry.quant.solvers.static_columns",
    "Symmetrize": "skerry.quant.transforms.symmetrize",
    "TensorDynamic": "skerry.quant.activation",
    "TensorStatic": "skerry.quant.activation",
    "TokenClip": "skerry.quant.activation",
    "TokenDynamic": "skerry.quant.activation",
    "TokenRatio": "skerry.quant.activation",
    "TwinLog": "skerry.quant.formats.twin_log",
    "TwinLogSearch": "skerry.quant.solvers.twin_log_search",
    "Recipe": "skerry.quant.recipe",
    "VictimStatic": "skerry.quant.formats.outlier_victim",
}
_BITS = re.compile(r"w(\d+)a(\d+)(?:g(\d+))?")


@dataclass(frozen=True)
class Bits:
    """Bit widths of weights and activations (16 and above: floating point) and the weights' group size.

    ``form`` is "int", or the name of a floating-point format: "fp8" (e4m3 weights and inputs), "nvfp4" or "mxfp4" (e2m1
    weights with block scales, float inputs; the recipe ``svdquant`` rounds its inputs so, too).
    """

    weight: int
    activation: int
    group_size: int | None = None
    form: str = "int"

    def __str__(self) -> str:
        if self.form != "int":
            return self.form
        return f"w{self.weight}a{self.activation}" + ("" if self.group_size is None else f"g{self.group_size}")


FORMS = {"fp8": Bits(8, 8, form="fp8"), "nvfp4": Bits(4, 16, form="nvfp4"), "mxfp4": Bits(4, 16, form="mxfp4")}


def parse_bits(text: str | Bits) -> Bits:
    """Return ``"w4a16"`` or ``"w4a16g128"`` as numbers; ``"fp8"``, ``"nvfp4"`` and ``"mxfp4"`` name formats.

    Raises
    ------
    ParameterError
        For another form, or widths outside 2 to 8 (or 16, floating point).

    Examples
    --------
    >>> parse_bits("w4a16g128")
    Bits(weight=4, activation=16, group_size=128, form='int')
    """
    if isinstance(text, Bits):
        return text
    text = text.strip().lower()
    if text in FORMS:
        return FORMS[text]
    found = _BITS.fullmatch(text)
    if found is None:
        raise ParameterError(f"bits must look like w4a16, w8a8 or w4a16g128, or be {', '.join(FORMS)}, got {text!r}")
    weight, activation = int(found[1]), int(found[2])
    for what, width in (("weight", weight), ("activation", activation)):
        if width != 16 and not 2 <= width <= 8:
            raise ParameterError(f"{what} bits must be 2 to 8, or 16 for floating point, got {width} in {text!r}")
    return Bits(weight, activation, None if found[3] is None else int(found[3]))


@dataclass(frozen=True)
class Recipe:
    """The parts that turn a float model into a quantized one.

    Parameters
    ----------
    name : str
        The paper's or baseline's name, for the report.
    weight : Format or None
        Storage format; None leaves weights in floating point (with ``activation`` only inputs are rounded).
    solver : Solver, optional
        Default: round to nearest.
    activation : ActivationQuantizer, optional
        For layers fed by a norm and all others alike, unless ``overrides`` say otherwise.
    transforms : tuple of Transform
        Applied in order; each is fitted on the model as the earlier ones left it.
    skip : tuple of str
        Patterns of layer names that stay in floating point.
    propagate : {"quantized", "float", "mixed"}
        What later blocks are calibrated on: outputs of the quantized blocks, or of the float ones; "mixed" solves every
        layer for the float model's output on the inputs that the quantized blocks give (:mod:`skerry.quant.mixed`), and
        holds both.
    sequential : {"block", "group"}
        Whether the layers of a block share one calibration pass, or each group is solved on inputs that have
        passed through the already quantized groups before it.
    overrides : tuple of (pattern, mapping)
        Settings (``weight``, ``solver``, ``activation``) for layers whose name matches; the last match counts. The
        pattern "@norm" matches layers fed by a norm that changes can be folded into.
    strict_groups : bool, default False
        Refuse a layer whose inputs the weights' group size does not divide; else it gets one scale a row and a note.
    operands : ScanOperands, optional
        Rounds what blocks multiply beside linear layers (the states of a Mamba block).

    Raises
    ------
    ParameterError
        For an unknown ``propagate``, ``sequential`` or override.
    """

    name: str
    weight: Any = None
    solver: Any = None
    activation: Any = None
    transforms: tuple[Any, ...] = ()
    skip: tuple[str, ...] = ("lm_head", "*.lm_head", "classifier", "*router*")
    propagate: str = "quantized"
    sequential: str = "block"
    overrides: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    strict_groups: bool = False
    operands: Any = None

    def __post_init__(self) -> None:
        if self.propagate not in ("quantized", "float", "mixed"):
            raise ParameterError(f"propagate must be 'quantized', 'float' or 'mixed', got {self.propagate!r}")
        if self.sequential not in ("block", "group"):
            raise ParameterError(f"sequential must be 'block' or 'group', got {self.sequential!r}")
        for pattern, settings in self.overrides:
            if unknown := settings.keys() - {"weight", "solver", "activation"}:
                raise ParameterError(f"override of {pattern!r} has unknown settings {', '.join(sorted(unknown))}")

    @property
    def needs_calibration(self) -> bool:
        """Whether any part wants to see inputs."""
        parts = [self.solver, self.activation, self.operands, *self.transforms]
        parts += [part for _, settings in self.overrides for part in settings.values()]
        return self.propagate == "mixed" or any(getattr(part, "needs", None) for part in parts)

    @property
    def looks_at_inputs(self) -> bool:
        """Whether any part might: transforms and solvers may without being in need of them."""
        solvers = [self.solver, *(settings.get("solver") for _, settings in self.overrides)]
        return self.needs_calibration or bool(self.transforms) or any(s is not None for s in solvers)

    def skips(self, layer: str) -> bool:
        """Return whether ``layer`` stays in floating point."""
        return any(fnmatch.fnmatchcase(layer, pattern) for pattern in self.skip)

    def parts_for(self, layer: str, role: str = "") -> tuple[Any, Any, Any]:
        """Return (weight format, solver, activation quantizer) of a layer; ``role`` is "norm" behind a norm."""
        chosen = {"weight": self.weight, "solver": self.solver, "activation": self.activation}
        for pattern, settings in self.overrides:
            if pattern == f"@{role}" or fnmatch.fnmatchcase(layer, pattern):
                chosen |= settings
        return chosen["weight"], chosen["solver"], chosen["activation"]

    def with_skip(self, *patterns: str) -> Recipe:
        """Return the recipe with more layers left alone."""
        return replace(self, skip=self.skip + patterns)

    def to_json(self) -> str:
        """Return the recipe as JSON."""
        return json.dumps(to_plain(self), indent=1, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        """Rebuild a recipe.

        Raises
        ------
        ModelError
            If the text is no recipe, or names an unknown part or setting.
        """
        try:
            found = from_plain(json.loads(text))
        except (ValueError, TypeError) as error:
            raise ModelError(f"this is not a recipe: {error}") from None
        if not isinstance(found, cls):
            raise ModelError("this is not a recipe: it describes another part")
        return found


def to_plain(part: Any) -> Any:
    """Return a part as JSON-ready data: ``{"part": class name, settings ...}``."""
    if is_dataclass(part) and not isinstance(part, type):
        return {"part": type(part).__name__} | {f.name: to_plain(getattr(part, f.name)) for f in fields(part)}
    if isinstance(part, Mapping):
        return {"mapping": {str(k): to_plain(v) for k, v in part.items()}}
    if isinstance(part, (list, tuple)):
        return [to_plain(p) for p in part]
    return part


def from_plain(data: Any) -> Any:
    """Rebuild what :func:`to_plain` wrote; only classes listed here are made.

    Raises
    ------
    ModelError
        For an unknown part or setting.
    """
    if isinstance(data, list):
        return tuple(from_plain(d) for d in data)
    if not isinstance(data, dict):
        return data
    if "mapping" in data:
        return {k: from_plain(v) for k, v in data["mapping"].items()}
    name = data.get("part")
    if name not in PARTS:
        raise ModelError(f"unknown part {name!r}: {nearest(str(name), PARTS)}")
    kind = getattr(importlib.import_module(PARTS[name]), name)
    settings = {k: from_plain(v) for k, v in data.items() if k != "part"}
    if unknown := settings.keys() - {f.name for f in fields(kind)}:
        raise ModelError(f"{name} has no setting {', '.join(sorted(unknown))}")
    return kind(**settings)
