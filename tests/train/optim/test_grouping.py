"""Every parameter lands in exactly one group, and embeddings and heads never in Muon's."""

import pytest

pytest.importorskip("torch", reason="needs the extra 'deep'")

import torch
from torch import nn

from skerry.core.errors import ModelError, ParameterError
from skerry.train.nn import EmbeddingProjection, ProjectedEmbedding, ProjectedHead
from skerry.train.optim import Muon, parameter_roles, split_params


class Block(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.norm = nn.LayerNorm(d)
        self.attention = nn.MultiheadAttention(d, 2)
        self.fc = nn.Linear(d, 4 * d)
        self.out = nn.Linear(4 * d, d)
        self.gain = nn.Parameter(torch.ones(()))


class GPT(nn.Module):
    """A byte model: its head and its feed-forward layers have the same sizes."""

    def __init__(self, d=64, vocabulary=256, head="lm_head", tied=False):
        super().__init__()
        setattr(self, head, nn.Linear(d, vocabulary, bias=False))  # registered first, on purpose
        self.wte = nn.Embedding(vocabulary, d)
        self.pos_embed = nn.Parameter(torch.zeros(1, 8, d))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, d))
        self.blocks = nn.ModuleList(Block(d) for _ in range(2))
        if tied:
            getattr(self, head).weight = self.wte.weight


def roles_of(model, role, **options):
    return {name for name, r in parameter_roles(model, **options).items() if r == role}


@pytest.mark.parametrize("head", ["lm_head", "words"])
def test_a_byte_gpt(head):
    model = GPT(head=head)
    assert roles_of(model, "head") == {f"{head}.weight"}
    assert roles_of(model, "embedding") == {"wte.weight", "pos_embed"}
    matrices = {"attention.in_proj_weight", "attention.out_proj.weight", "fc.weight", "out.weight"}
    assert roles_of(model, "matrix") == {f"blocks.{i}.{m}" for i in range(2) for m in matrices}
    assert {"cls_token", "blocks.0.gain", "blocks.1.norm.weight", "blocks.1.fc.bias"} <= roles_of(model, "vector")


def test_every_parameter_is_in_exactly_one_group():
    model = GPT()
    model.wte.weight.requires_grad_(False)
    for options in ({}, {"vectors": "muon"}, {"embeddings": "muon"}, {"embeddings": "muon", "vectors": "muon"}):
        matrices, rest = split_params(model, **options)
        got = [id(p) for g in matrices for p in g["params"]] + [id(p) for p in rest]
        assert sorted(got) == sorted(id(p) for p in model.parameters() if p.requires_grad)
        Muon(matrices, adamw_params=rest)


def test_embeddings_and_head_only_on_request():
    model = GPT()
    special = {id(model.wte.weight), id(model.lm_head.weight), id(model.pos_embed)}
    assert not special & {id(p) for g in split_params(model)[0] for p in g["params"]}
    assert special <= {id(p) for g in split_params(model, embeddings="muon")[0] for p in g["params"]}


def test_a_tied_head_is_an_embedding():
    roles = parameter_roles(GPT(tied=True))
    assert "head" not in roles.values()
    assert list(roles.values()).count("embedding") == 2


def test_projections_are_matrices_even_inside_a_head():
    model = GPT()
    model.wte, model.lm_head = ProjectedEmbedding(model.wte), ProjectedHead(model.lm_head)
    assert {"wte.projection.weight", "lm_head.projection.weight"} <= roles_of(model, "matrix")
    assert roles_of(model, "head") == {"lm_head.head.weight"}
    square = nn.Sequential(nn.Embedding(16, 16), EmbeddingProjection(16), nn.Linear(16, 3))
    assert roles_of(square, "matrix") == {"1.weight"}


def test_declared_output_embeddings_win():
    class Declared(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(4, 4)
            self.strange = nn.Linear(4, 9)
            self.after = nn.Linear(4, 4)

        def get_output_embeddings(self):
            return self.strange

    assert roles_of(Declared(), "head") == {"strange.weight"}
    assert roles_of(Declared(), "head", head=["after", "body"]) == {"after.weight", "body.weight"}
    assert roles_of(Declared(), "head", head=()) == set()


def test_a_convolutional_classifier():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv1d(8, 6, 5), nn.Flatten(), nn.Linear(6, 10))
    assert roles_of(model, "kernel") == {"0.weight", "2.weight"}
    assert roles_of(model, "head") == {"4.weight"}
    (group,), rest = split_params(model)
    assert group["stacked"] is False and len(group["params"]) == 2 and len(rest) == 6


def test_several_heads():
    model = nn.ModuleDict({"body": nn.Linear(4, 4), "heads": nn.ModuleList([nn.Linear(4, 2), nn.Linear(4, 5)])})
    assert roles_of(model, "head") == {"heads.0.weight", "heads.1.weight"}


def test_errors_name_what_is_wrong():
    with pytest.raises(ParameterError, match="lm_haed.*did you mean 'lm_head'"):
        parameter_roles(GPT(), head="lm_haed")
    with pytest.raises(ParameterError, match="vectors is 'sgd'"):
        split_params(GPT(), vectors="sgd")
    with pytest.raises(ModelError, match="Embedding has no trainable matrix"):
        split_params(nn.Embedding(4, 4))
