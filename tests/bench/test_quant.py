"""The study of every recipe: cells are kept and resumed, items are paired, refusals say why, orderings are told."""

import math

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from torch import nn

from skerry.bench import quant
from skerry.bench.quant_cases import BITS, CASES, CLAIMS, verdict
from skerry.bench.quant_cells import Cells, Judged, Subject, digest_of, float_cell, measured
from skerry.core.errors import ParameterError
from skerry.quant.recipes import RECIPES, make_recipe


@pytest.fixture
def subject():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 8)).eval()
    X = torch.randn(24, 16)
    exact = model(X).detach()

    def judge(found):
        with torch.no_grad():
            items = ((found(X.to(next(iter(found.parameters()), X).dtype)).float() - exact) ** 2).mean(1)
        return Judged(items.tolist(), {"mean change": float(items.mean())})

    return Subject("toy", model, [X], judge, X, len(X), digest_of(model, [X]))


def test_a_cell_says_what_was_lost_and_what_was_saved(subject):
    whole = float_cell(subject, torch.float32)
    small = measured(subject, make_recipe("rtn", "w8a16"))
    smaller = measured(subject, make_recipe("rtn", "w3a16"))
    assert max(whole["items"]) < 1e-10
    assert smaller["bytes"] < small["bytes"] < whole["bytes"]
    assert 0 < sum(small["items"]) < sum(smaller["items"])
    assert small["speed"] > 0 and len(small["decibels"]) == 2


def test_a_recipe_that_does_not_apply_says_why(subject):
    told = measured(subject, make_recipe("quarot", "w4a4"))["refused"]
    assert told and "Traceback" not in told


def test_cells_survive_an_interruption(subject, tmp_path):
    recipe = make_recipe("rtn", "w8a8")
    first = Cells("x", tmp_path).of(subject, "RTN|w8a8", recipe)
    with (tmp_path / "x.jsonl").open("a") as file:
        file.write('{"key": "half a li')
    again = Cells("x", tmp_path)
    again.get = lambda key, stamp, make: again.known[key, stamp]  # nothing may be made anew
    assert again.of(subject, "RTN|w8a8", recipe) == first
    with pytest.raises(KeyError):
        again.of(subject, "RTN|w8a8", make_recipe("rtn", "w4a16"))


def outcome(make, bits):
    try:
        return make(bits)
    except ParameterError as error:
        return str(error)


def test_every_case_makes_a_recipe_or_says_why():
    told = [outcome(make, bits) for make in CASES.values() for bits in BITS]
    assert all(told)
    assert sum(not isinstance(t, str) for t in told) > 50
    assert all(claim.better in CASES and claim.worse in CASES and set(claim.bits) <= set(BITS) for claim in CLAIMS)


def test_every_recipe_stands_in_the_study():
    made = [outcome(make, bits) for make in CASES.values() for bits in BITS]
    assert {t.name for t in made if not isinstance(t, str)} >= RECIPES.keys()


def test_after_its_minutes_only_known_cells_are_shown(subject, tmp_path):
    cells = Cells("x", tmp_path)
    assert quant._cell(cells, subject, "RTN", "w8a8", -math.inf) == {"refused": quant.UNTRIED}
    made = quant._cell(cells, subject, "RTN", "w8a8", math.inf)
    assert quant._cell(Cells("x", tmp_path), subject, "RTN", "w8a8", -math.inf) == made
    assert "beside SplitQuant" in quant._cell(cells, subject, "RTN, one scale a tensor", "w8a8", -math.inf)["refused"]


def test_verdicts_are_paired():
    noise = [math.sin(i) for i in range(50)]
    assert verdict(noise, [x + 0.01 + 0.001 * math.cos(7 * i) for i, x in enumerate(noise)])[0] == "yes"
    assert verdict([x + 0.01 + 0.001 * math.cos(7 * i) for i, x in enumerate(noise)], noise)[0] == "no"
    assert verdict(noise, noise) == ("tie", 0.0)


def test_orderings_say_why_not():
    def cell(p, items):
        return {"figures": {"perplexity": p}, "items": items}

    found = {("natural", "float32", ""): cell(5.0, [1.0, 1.0]), ("natural", "bfloat16", ""): cell(5.001, [1.0, 1.0])}
    found |= {("planted", n, ""): c for (_, n, _), c in list(found.items())}
    found |= {
        ("planted", "SmoothQuant", "w8a8"): cell(5.01, [1.0, 1.01, 1.02]),
        ("planted", "RTN", "w8a8"): cell(7.3, [2.0, 2.02, 2.01]),
        ("natural", "SmoothQuant", "w8a8"): cell(5.001, [1.0, 1.01, 1.02]),
        ("natural", "RTN", "w8a8"): cell(5.001, [1.0, 1.01, 1.02]),
    }
    rows = quant.orderings(found, {"natural": 4.0, "planted": 300.0}, ("w8a8",))
    assert [row["appears"] for row in rows] == ["tie", "yes"]
    assert "4 times the median" in rows[0]["why not"] and "bfloat16" in rows[0]["why not"]
    assert "SmoothQuant beats RTN at W8A8, planted: yes, 0.01 vs 2.3" in quant._claim(rows)
