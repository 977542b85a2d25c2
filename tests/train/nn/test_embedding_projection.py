"""EmbeddingProjection: orthogonal start, and merged away without a change of the outputs."""

import pytest

pytest.importorskip("torch", reason="needs the extra 'deep'")

import torch
from torch import nn

from skerry.core.errors import ModelError
from skerry.train.nn import (
    EmbeddingProjection,
    ProjectedEmbedding,
    ProjectedHead,
    SingleScaleRMSNorm,
    absorb_embedding_projection,
)

VOCABULARY, D = 13, 6


def network():
    torch.manual_seed(0)
    net = nn.Sequential()
    net.add_module("embed", ProjectedEmbedding(nn.Embedding(VOCABULARY, D, padding_idx=0)))
    net.add_module("norm", SingleScaleRMSNorm(D))
    net.add_module("head", ProjectedHead(nn.Linear(D, VOCABULARY)))
    for p in (net.embed.projection.weight, net.head.projection.weight):
        nn.init.normal_(p, std=0.5)  # as training leaves it: no longer orthogonal
    return net


def test_the_start_is_orthogonal_and_so_keeps_lengths():
    projection = EmbeddingProjection(32)
    torch.testing.assert_close(projection.weight @ projection.weight.T, torch.eye(32), atol=1e-5, rtol=0)
    assert projection.bias is None and isinstance(projection, nn.Linear)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12), (torch.bfloat16, 0.1)])
def test_merging_keeps_the_logits_and_the_names(dtype, tolerance):
    net, tokens = network().to(dtype), torch.arange(VOCABULARY)[None]
    before = net(tokens)
    assert absorb_embedding_projection(net) is net
    torch.testing.assert_close(net(tokens), before, atol=tolerance, rtol=tolerance)
    assert type(net.embed) is nn.Embedding and type(net.head) is nn.Linear
    assert set(net.state_dict()) == {"embed.weight", "norm.scale", "head.weight", "head.bias"}
    assert (net.embed.weight[0] == 0).all() and net.embed.padding_idx == 0
    assert net.embed.weight.dtype == dtype and net.embed.weight.requires_grad


def test_merging_is_the_row_convention_of_the_paper():
    net = network()
    table, p1 = net.embed.embedding.weight.detach().clone(), net.embed.projection.weight.detach().clone()
    head, p2 = net.head.head.weight.detach().clone(), net.head.projection.weight.detach().clone()
    absorb_embedding_projection(net)
    torch.testing.assert_close(net.embed.weight, table @ p1.T)
    torch.testing.assert_close(net.head.weight, head @ p2)


def test_tied_weights_are_refused():
    net = network()
    net.head.head.weight = net.embed.embedding.weight
    before = net.embed.embedding.weight.clone()
    with pytest.raises(ModelError, match=r"embed\.embedding\.weight and head\.head\.weight are one tensor"):
        absorb_embedding_projection(net)
    assert torch.equal(net.embed.embedding.weight, before)


def test_what_cannot_be_merged_is_refused():
    with pytest.raises(ModelError, match="nothing to merge"):
        absorb_embedding_projection(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(ModelError, match="max_norm"):
        EmbeddingProjection(4).absorb_into_(nn.Embedding(3, 4, max_norm=1.0))
    with pytest.raises(ModelError, match="Conv1d"):
        EmbeddingProjection(4).absorb_into_(nn.Conv1d(4, 4, 1))


def test_it_compiles_whole_and_learns():
    net, tokens = network(), torch.arange(VOCABULARY)[None]
    torch.testing.assert_close(torch.compile(net, backend="aot_eager", fullgraph=True)(tokens), net(tokens))
    net(tokens).square().sum().backward()
    assert all((p.grad != 0).any() for p in net.parameters())
