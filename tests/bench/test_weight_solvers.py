"""The studies of weight solvers on made-up layers; what they count and how they are compared."""

import pytest
import torch

from skerry.bench import adadim, quantease
from skerry.bench.weight_solvers import SpQRAtShare, cpu_seconds, layers_of, made_up_layer, relative_errors, wide_layer
from skerry.quant.numerics import AffineGrid
from skerry.quant.solvers import GPTQ, RTN
from skerry.quant.statistics import LayerStatistics

ROW = AffineGrid(3, symmetric=False)


@pytest.fixture(scope="module")
def layers():
    return [made_up_layer(32, 48, 300, s, outliers=8) for s in range(3)]


def test_rows_count_wins(layers):
    rows = relative_errors(layers, {k: (s, ROW) for k, s in quantease.SOLVERS.items()}, lambda text: None)
    found = quantease.summary(rows)
    assert found["layers"] == found["from GPTQ at or under GPTQ"] == 3
    assert found["mean share of GPTQ's error"] <= 1.0
    assert found["descent monotone"] == "yes"
    assert all(0 < r["GPTQ"] < r["RTN"] < 1 for r in rows)


def test_a_weight_of_zero_has_error_one(layers):
    class Nothing:
        def solve(self, W, statistics, grid, *, name):
            solved = RTN().solve(W * 0, statistics, grid, name=name)
            E = W.double()
            return type(solved)(solved.weight, objective=float(((E @ statistics.gram) * E).sum()))

    assert relative_errors(layers, {"x": (Nothing(), ROW)}, lambda t: None)[0]["x"] == pytest.approx(1.0)


def test_the_share_is_met(layers):
    _, W, X = layers[0]
    found = SpQRAtShare(0.02).solve(W, LayerStatistics.of(X, {"gram"}), ROW)
    assert 0.01 <= found.info["outliers"] <= 0.02


def test_choices_are_the_better_direction(layers):
    rows = adadim.decisions(layers, AffineGrid(3, symmetric=False, group_size=16), lambda text: None)
    for row in rows:
        assert row["AdaDim"] == pytest.approx(min(row["per-OC"], row["per-IC"]))
        assert row["chosen"] == ("oc" if row["per-OC"] <= row["per-IC"] else "ic")
    assert adadim.by_kind(rows)[0]["chose ic"].endswith("of 1")


def test_seconds_and_shapes():
    layer = wide_layer(64, 96, 0)
    assert layer[2].shape == (192, 96)
    assert all(t > 0 for t in cpu_seconds(GPTQ(), layer, ROW, repeats=1))


def test_layers_of_a_model_come_with_their_inputs():
    pytest.importorskip("transformers")
    from transformers import OPTConfig, OPTForCausalLM

    sizes = {"hidden_size": 16, "word_embed_proj_dim": 16, "ffn_dim": 32, "num_hidden_layers": 1}
    config = OPTConfig(vocab_size=20, num_attention_heads=2, max_position_embeddings=12, pad_token_id=None, **sizes)
    model = OPTForCausalLM(config).eval()
    found = layers_of(model, [torch.zeros(2, 6, dtype=torch.long)])
    assert [n for n, *_ in found] == [f"0.{k}" for k in (
        "self_attn.k_proj", "self_attn.v_proj", "self_attn.q_proj", "self_attn.out_proj", "fc1", "fc2"
    )]  # fmt: skip
    assert found[-1][2].shape == (12, 32)
