"""AutoOD's space: strings and designs are one thing, and no illegal one is ever written."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry.core.errors import ParameterError
from skerry.detect.tabular.autood_space import DEFINITIONS, SearchSpace


@pytest.mark.parametrize("d", [1, 2, 5, 21, 166])
def test_strings_and_designs_are_inverse(d):
    space, rng = SearchSpace(d), np.random.default_rng(d)
    for _ in range(2_000):  # 10,000 over the five widths of table
        string = space.sample(rng)
        design = space.decode(string)
        assert space.illegal(design) is None
        assert space.encode(design) == string


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(0, 2**32 - 1))
def test_a_mutation_is_legal_and_differs(d, seed):
    space, rng = SearchSpace(d), np.random.default_rng(seed)
    string = space.sample(rng)
    other = space.mutate(string, rng)
    assert other != string
    assert space.encode(space.decode(other)) == other


def test_size_counts_every_string():
    space = SearchSpace(3, definitions=("centroid",))
    space.options["width"] = (3, 16)  # few enough to count one by one, up to two layers

    def count(prefix):
        step = space.next(prefix)
        if step is None:
            return 1
        kind, legal = step
        if kind == "depth":
            legal = legal & (np.arange(4) < 2)
        return sum(count((*prefix, int(i))) for i in np.flatnonzero(legal))

    per = 3 * 3 * 3  # norms, safe activations, dropouts
    one = per * 2 + per
    two = per * 2 * one + per * (per * 1 + per * 2)
    assert count(()) == len(space.options["latent"]) * (one + two)
    from skerry.detect.tabular import autood_space

    kept = autood_space.DEPTHS
    try:
        autood_space.DEPTHS = (1, 2)
        assert space.size == count(())
    finally:
        autood_space.DEPTHS = kept


def test_illegal_designs_say_why():
    space = SearchSpace(8)
    layer = {"width": 4, "norm": "none", "activation": "relu", "dropout": 0.0, "skip": False}
    good = {"definition": "centroid", "distance": None, "latent": 4, "layers": [layer]}
    assert space.illegal(good) is None
    cases = {
        "collapse": good | {"layers": [layer | {"activation": "sigmoid"}]},
        "not below the 8 columns": good | {"latent": 8},
        "skips from width 8 to 4": good | {"layers": [layer | {"skip": True}]},
        "no distance": good | {"distance": "l2"},
        "is not one of": good | {"definition": "reconstruction"},
        "depth 5": good | {"layers": [layer] * 5},
        "at least one layer": good | {"layers": []},
    }
    for message, design in cases.items():
        with pytest.raises(ParameterError, match=message):
            space.encode(design)


@pytest.mark.parametrize("string", [(0,), (9,), (0, 0, 0, 0, 0, 0, 0, 0, 1, 0)])
def test_broken_strings_are_refused(string):
    with pytest.raises(ParameterError):
        SearchSpace(9).decode(string)


@pytest.mark.parametrize("definitions", [(), ("kernel",), ("density", "density")])
def test_definitions_are_checked(definitions):
    with pytest.raises(ParameterError, match="definitions"):
        SearchSpace(4, definitions=definitions)


def test_the_default_design_and_the_kinds():
    for d in (1, 2, 6, 100):
        space = SearchSpace(d)
        assert space.illegal(space.default()) is None
    assert SearchSpace(20).kinds["definition"] == len(DEFINITIONS)
    assert len(SearchSpace(20, definitions=("density",)).options["definition"]) == 1
