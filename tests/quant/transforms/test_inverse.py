"""What a transform did is undone by the inverse of its steps: the weights come back to 1e-6, and so do the inputs."""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from skerry.deep.hadamard import rotation_matrix
from skerry.quant.activation import TokenDynamic
from skerry.quant.architectures.base import architecture_of
from skerry.quant.engine import _make_ready, quantize_model
from skerry.quant.groups import Group
from skerry.quant.linear import BlockRotation, PreparedLinear
from skerry.quant.numerics import AffineGrid
from skerry.quant.recipe import PARTS, Recipe
from skerry.quant.transforms.adaptive_rotation import AdaptiveRotation, QuantileRotation
from skerry.quant.transforms.low_rank import BranchSmooth, LiftedInput
from skerry.quant.transforms.rotation import OnlineHadamard, plain_norms, rotate_stream
from skerry.quant.transforms.shift_scale import ShiftScale
from skerry.quant.transforms.smooth import Smooth
from skerry.quant.transforms.symmetrize import PreDequant, Symmetrize

TRANSFORMS = {
    "AdaptiveRotation": AdaptiveRotation(0.0, 16, 8),
    "BranchSmooth": BranchSmooth(rank=2, n_grid=3),
    "BranchSmooth at run time": BranchSmooth(rank=2, n_grid=3, fold=False),
    "LiftedInput": LiftedInput(0.2),
    "OnlineHadamard": OnlineHadamard(),
    "PreDequant": PreDequant(8),
    "QuantileRotation": QuantileRotation(0.5, 16, 8),
    "ShiftScale": ShiftScale(n_grid=4, floor=0.1, rms="bias"),
    "Smooth": Smooth(),
    "Smooth at run time": Smooth(folded_only=False),
    "Symmetrize": Symmetrize(),
}
ELSEWHERE = {
    "ResidualRotation": "rotate_stream, below",
    "KLTResidual": "rotate_stream, below",
    "KLTSteps": "changes two layers of a Mamba mixer at once; its own tests compare the mixer's output",
    "SmoothFused": "as KLTSteps",
    "StateHadamard": "leaves its rotation at run time",
    "LowRankAbsorb": "a solver",
}


@dataclass(frozen=True)
class ThereAndBack:
    """Applies a transform, takes its steps back in reverse order, and compares everything with what was there."""

    inner: Any
    steps: list = field(default_factory=list)
    errors: list = field(default_factory=list)

    @property
    def needs(self):
        return self.inner.needs

    def apply(self, group, statistics, context):
        return self._compared(context.model, lambda: self.inner.apply(group, statistics, context))

    def _compared(self, model, apply):
        before = snapshot(model)
        with pytest.MonkeyPatch.context() as patch:
            record(patch, self.steps)
            facts = apply()
        moved = max_error(before, snapshot(model))
        for inverse in reversed(self.steps):
            inverse()
        self.errors.append((moved, max_error(before, snapshot(model))))
        for layer in model.modules():
            if isinstance(layer, PreparedLinear) and layer.before:
                x = y = torch.randn(4, layer.in_features, generator=torch.Generator().manual_seed(1))
                for change in layer.before:
                    y = change(y)
                torch.testing.assert_close(y, x, atol=1e-5, rtol=1e-5)
                layer.before.clear()
        self.steps.clear()
        return facts


@dataclass(frozen=True)
class WholeThereAndBack(ThereAndBack):
    """The same for a transform of the whole model."""

    def apply_model(self, model, architecture, batches):
        return self._compared(model, lambda: self.inner.apply_model(model, architecture, batches))


def record(patch, steps):
    """Let the two ways to change a group note their inverse."""
    rescale, transform_input = Group.rescale, Group.transform_input

    def noted_rescale(group, model, scale, shift=None, *, fold=True):
        shared = group._shared(scale) if group.repeats > 1 and group.folds and fold else scale
        rescale(group, model, scale, shift, fold=fold)
        back = None if shift is None else -shift / shared
        steps.append(lambda: rescale(group, model, 1.0 / shared, back, fold=fold))

    def noted_rotation(group, change, weights):
        width, eye = group.width, torch.eye(group.width, dtype=torch.float64)
        matrix = change(eye)  # orthogonal: rows are where each channel goes
        transform_input(group, change, weights)
        back = BlockRotation(width, matrix.T)
        steps.append(
            lambda: transform_input(group, back, {n: back(r.weight.double()) for n, r in group.consumers.items()})
        )

    patch.setattr(Group, "rescale", noted_rescale)
    patch.setattr(Group, "transform_input", noted_rotation)


def snapshot(model):
    """All parameters, by names that a norm keeps when it gets a bias; a bias that is not there is zero."""
    return {n.replace(".norm.weight", ".weight"): p.detach().clone() for n, p in model.named_parameters()}


def max_error(before, after):
    """The largest difference of a tensor, in units of its largest value (biases: of 1 at least)."""
    worst = 0.0
    for name, now in after.items():
        was = before.get(name, torch.zeros_like(now))
        size = float(was.abs().max()) if was.ndim > 1 else max(float(was.abs().max()), 1.0)
        worst = max(worst, float((now - was).abs().max()) / size)
    return worst


@pytest.mark.parametrize("family", ["llama", "opt", "gpt2", "bert", "vit"])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_there_and_back(name, family, tiny, inputs):
    inner = TRANSFORMS[name]
    kind = WholeThereAndBack if hasattr(inner, "apply_model") else ThereAndBack
    tried = kind(inner)
    recipe = Recipe("x", AffineGrid(4), activation=TokenDynamic(4), transforms=(tried,))
    quantize_model(tiny(family, blocks=1), recipe, calibration=inputs(family, 1))
    assert tried.errors and max(back for _, back in tried.errors) < 1e-6
    done = name == "LiftedInput" and family in ("gpt2", "bert")  # GELU
    if done or name in ("Smooth at run time", "AdaptiveRotation", "QuantileRotation", "BranchSmooth", "ShiftScale"):
        assert max(there for there, _ in tried.errors) > 1e-3  # something was done


@pytest.mark.parametrize("family", ["llama", "opt", "gpt2"])
def test_a_turned_stream_turns_back(family, tiny):
    model = tiny(family).requires_grad_(False)
    architecture = architecture_of(model)
    if architecture.prepare is not None:
        architecture.prepare(model)
    for block in architecture.block_names(model):
        _make_ready(model, block, Recipe("x"))
    plain_norms(model, architecture)
    before, Q = snapshot(model), rotation_matrix(32, random_state=2, dtype=torch.float64)
    rotate_stream(model, architecture, Q)
    assert max_error(before, snapshot(model)) > 0.1
    rotate_stream(model, architecture, Q.T)
    assert max_error(before, snapshot(model)) < 1e-6


def test_no_transform_is_forgotten():
    known = {n for n, place in PARTS.items() if place.startswith("skerry.quant.transforms.")}
    assert known == {name.split(" ")[0] for name in TRANSFORMS} | ELSEWHERE.keys()
