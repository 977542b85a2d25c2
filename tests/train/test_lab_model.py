"""The laboratory's networks: causal in every variant, started as they should be, refusing what does not exist."""

import math

import pytest

pytest.importorskip("torch", reason="needs the extra 'deep'")

import torch

from skerry.core.errors import DataError, ParameterError
from skerry.train.lab_model import ATTENTIONS, FEED_FORWARDS, NORMS, SmallGPT, SmallViT
from skerry.train.nn import absorb_embedding_projection
from skerry.train.optim import parameter_roles


def gpt(**parts):
    torch.manual_seed(0)
    return SmallGPT(20, dim=32, n_layers=2, n_heads=2, seq_len=12, **parts).double()


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("explicit", [False, True])
def test_no_attention_sees_what_is_to_come(attention, explicit):
    model = gpt(attention=attention)
    with torch.no_grad():
        for p in model.parameters():  # so large that a leak could not hide
            p.mul_(10) if p.ndim == 2 else None
    for block in model.blocks:
        block.attention.explicit |= explicit
    model.eval()
    a = torch.randint(20, (2, 12), generator=torch.Generator().manual_seed(0))
    b = a.clone()
    b[:, 7:] = (a[:, 7:] + 5) % 20
    assert torch.equal(model(a)[:, :7], model(b)[:, :7])
    assert not torch.allclose(model(a)[:, 7:], model(b)[:, 7:])
    x = torch.randn(1, 12, 32, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(model.blocks[0](x)[:, 6].sum(), x)
    assert not grad[:, 7:].any() and grad[:, :7].any()


def test_a_masked_model_sees_both_sides():
    model = gpt(causal=False)
    a = torch.randint(20, (1, 12), generator=torch.Generator().manual_seed(0))
    b = a.clone()
    b[:, -1] = (a[:, -1] + 5) % 20
    assert not torch.equal(model(a)[:, 0], model(b)[:, 0])


@pytest.mark.parametrize("part", [*({"norm": n} for n in NORMS), *({"ffn": f} for f in FEED_FORWARDS)], ids=str)
def test_every_part_trains(part):
    model = gpt(**part).float().train()
    x = torch.randint(20, (2, 12), generator=torch.Generator().manual_seed(0))
    torch.nn.functional.cross_entropy(model(x).flatten(0, 1), x.flatten()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_the_start_of_the_weights():
    torch.manual_seed(0)
    model = SmallGPT(66, dim=64, n_layers=4, norm="gated", attention="gate")
    std = {n: float(p.detach().std()) for n, p in model.named_parameters() if p.ndim == 2}
    assert std["embedding.weight"] == pytest.approx(0.02, rel=0.05)
    assert std["blocks.0.attention.q_proj.weight"] == pytest.approx(0.02, rel=0.05)
    for name in ("attention.o_proj", "ffn.down"):
        assert std[f"blocks.1.{name}.weight"] == pytest.approx(0.02 / math.sqrt(8), rel=0.05)
    assert not model.blocks[0].norm_1.gate.up.weight.any()  # the gate's own start is left alone
    x = torch.zeros(1, 5, dtype=torch.long)
    gate = model.blocks[0].attention.gate
    assert gate(model.embedding(x)).detach().numpy() == pytest.approx(0.5, abs=0.05)


def test_the_projections_merge():
    model = gpt(norm="single", embedding_projection=True)
    with torch.no_grad():
        model.embedding.projection.weight.add_(0.1)
    x = torch.randint(20, (2, 12), generator=torch.Generator().manual_seed(0))
    before = model(x)
    assert torch.allclose(absorb_embedding_projection(model)(x), before, atol=1e-10)
    assert type(model.embedding) is torch.nn.Embedding


def test_roles_of_parameters():
    roles = parameter_roles(gpt(embedding_projection=True, attention="gate", norm="gated"))
    assert roles["embedding.embedding.weight"] == roles["position.weight"] == "embedding"
    assert roles["head.head.weight"] == "head"
    assert roles["embedding.projection.weight"] == roles["head.projection.weight"] == "matrix"
    assert roles["blocks.0.ffn.up.weight"] == "matrix"


def test_vit():
    torch.manual_seed(0)
    model = SmallViT(10, image_size=16, patch_size=4, dim=32, n_layers=2, norm="unified").eval()
    x = torch.randn(3, 3, 16, 16)
    assert model(x).shape == (3, 10) and model.position.weight.shape == (17, 32)
    patches = torch.nn.functional.unfold(x, 4, stride=4).mT
    assert torch.equal(patches[0, 1].view(3, 4, 4), x[0, :, :4, 4:8])
    assert parameter_roles(model)["class_token.weight"] in ("embedding", "vector")


@pytest.mark.parametrize("wrong", [{"norm": "rsm"}, {"attention": "gates"}, {"ffn": "geglu"}, {"n_layers": 0}])
def test_unknown_parts_are_named(wrong):
    with pytest.raises(ParameterError, match=next(iter(wrong))):
        SmallGPT(20, **wrong)
    with pytest.raises(ParameterError, match="patches"):
        SmallViT(10, image_size=30, patch_size=4)


def test_sequences_that_are_too_long_are_refused():
    with pytest.raises(DataError, match="positions for 12"):
        gpt()(torch.zeros(1, 13, dtype=torch.long))
