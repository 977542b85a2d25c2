"""The study of an optimizer's step runs at a tiny size, and its two floors make the same number of steps."""

from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs the extra 'deep'")

from skerry.bench import optimizer_step as study
from skerry.bench import optimizers as parts
from skerry.core.errors import ParameterError


def test_quick_path(monkeypatch):
    monkeypatch.setitem(study.SIZES, "quick", {"dim": 32, "n_layers": 1, "vocabulary": 20})
    result = study.run(True, Path(), 0, lambda text: None, repeats=1)
    rows = {r["step"]: r for r in result["table"]}
    assert rows["Muon"]["to the fewest"] > 0 and rows["ROOT"]["to the products"] > 0
    assert rows["AdamW, fused"]["to AdamW, fused"] == 1
    assert len(result["tables"]["Expectations"]) == 4
    with pytest.raises(ParameterError, match="repeats is 0"):
        study.run(True, Path(), 0, lambda text: None, repeats=0)


def test_the_gram_matrix_is_taken_where_it_has_fewer_products():
    assert not parts._gram_is_fewer(768, 768)
    assert parts._gram_is_fewer(768, 2304) and parts._gram_is_fewer(768, 3072)
    parts._fewest_products([(4, 4), (4, 32)])()
