"""The study of LLM.int8() judges perplexities, and its layer shows what the decomposition is for."""

import math

import pytest

from skerry.bench import llm_int8


def test_what_is_expected_is_judged_by_perplexity():
    def row(name, natural, planted):
        return {"method": name, "natural w8a8": natural, "planted w8a8": planted}

    rows = [
        row("static per tensor", 0.001, 0.3),
        row("dynamic per token", 0.0007, 0.005),
        row(llm_int8.OURS, math.log(1.0009), math.log(1.0011)),
    ]
    found = llm_int8.met(rows)
    assert [holds for *_, holds in found] == [True, False, False, True]
    assert found[0][1] == pytest.approx(0.09) and found[1][1] == pytest.approx(0.11)


def test_the_error_of_a_layer_does_not_grow_with_the_outlier():
    rows = llm_int8._layer(0)
    assert [row["outlier channel"] for row in rows] == ["x 1", "x 10", "x 40", "x 160"]
    assert max(row["LLM.int8"] for row in rows) < 1.2 * rows[0]["LLM.int8"]
    assert rows[-1]["per token"] > 4 * rows[-1]["LLM.int8"]
