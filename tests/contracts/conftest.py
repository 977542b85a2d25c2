"""The instances that the contract checks run on: every public table detector, with small budgets."""

import pytest

from skerry.detect.tabular.registry import DETECTORS, make_detector

SMALL = {
    "AutoEncoder": {"epochs": 15, "n_models": 1},
    "AutoOD": {"n_children": 2, "child_epochs": 2, "final_epochs": 3, "ensemble": 1},
}
TORCH = {"AutoEncoder", "AutoOD"}


def small(name, **parameters):
    cls_name = DETECTORS[name]
    if cls_name in TORCH:
        pytest.importorskip("torch", reason="needs the extra 'deep'")
    return make_detector(name, random_state=0, **SMALL.get(cls_name, {}), **parameters)


@pytest.fixture(params=sorted(DETECTORS))
def make(request):
    """A factory of fresh detectors of one kind."""

    def build(**parameters):
        return small(request.param, **parameters)

    build.name = request.param
    return build
