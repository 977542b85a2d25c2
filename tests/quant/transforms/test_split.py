"""A model of split layers computes what the model did; what cannot be split is named."""

import warnings

import pytest
import torch
from torch import nn

from skerry.core.errors import ModelError, ParameterError, SkerryWarning
from skerry.quant.formats.split import SplitGrid
from skerry.quant.numerics import AffineGrid
from skerry.quant.transforms.split import SplitActivation, split_model


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(11, 8)
        self.body = nn.Linear(8, 8)
        self.twice = self.body
        self.norm = nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids):
        x = self.norm(self.twice(torch.tanh(self.body(self.table(ids)))))
        return self.head(x + self.attention(x, x, x)[0])


def convnet():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.ReLU6(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.GELU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    )


@pytest.mark.parametrize("activations", [False, True])
@pytest.mark.parametrize("granularity", ["auto", "tensor", "channel"])
def test_the_function_stays(granularity, activations):
    torch.manual_seed(0)
    model, x = convnet(), torch.randn(2, 3, 9, 9)
    kept = {k: v.clone() for k, v in model.state_dict().items()}
    found = split_model(model, granularity=granularity, activations=activations)
    torch.testing.assert_close(found(x), model(x), atol=1e-5, rtol=1e-5)
    assert [len(found[i].layers) for i in (0, 2, 6)] == [3, 3, 3]
    assert isinstance(found[1], SplitActivation) == activations == isinstance(found[3], SplitActivation)
    assert all(torch.equal(v, kept[k]) for k, v in model.state_dict().items())  # a copy


def test_shared_tied_and_foreign_layers():
    torch.manual_seed(0)
    model, ids = Tied().eval(), torch.arange(10).reshape(2, 5)
    with pytest.warns(SkerryWarning, match=r"attention\.out_proj.*head \(its weight is tied\)"):
        found = split_model(model)
    assert found.body is found.twice and len(found.body.layers) == 3
    assert found.head.weight is found.table.weight
    assert isinstance(found.norm, nn.LayerNorm)
    torch.testing.assert_close(found.eval()(ids), model(ids), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("bits", [2, 4])
def test_a_quantizer_with_one_scale_a_tensor_gets_what_the_recipe_stores(bits):
    """The three layers, each rounded by the dumb quantizer, add up to the merged weight."""
    torch.manual_seed(0)
    layer = nn.Linear(40, 30)
    layer.weight.data.view(-1)[::50] *= 12.0
    parts = split_model(nn.Sequential(layer))[0].layers
    dumb = AffineGrid(bits, symmetric=False, group_size=0)
    total = sum(dumb.round(part.weight.detach()) for part in parts)
    torch.testing.assert_close(total, SplitGrid(bits).round(layer.weight.detach()), atol=1e-5, rtol=1e-5)
    W = layer.weight.detach()
    errors = [float((V - W).square().mean()) for V in (total, dumb.round(W))]
    assert errors[0] < 0.8 * errors[1]


@pytest.mark.parametrize("shape", [(2, 7), (2, 3, 7), (2, 7, 4, 4), (3, 2)])
@pytest.mark.parametrize("activation", [nn.ReLU(), nn.GELU(), nn.SiLU(), nn.Tanh()], ids=str)
def test_chunks_of_an_activation(activation, shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    split, seen = SplitActivation(activation), []
    for layer in split.layers:
        layer.register_forward_hook(lambda m, a, o: seen.append(o.shape))
    torch.testing.assert_close(split(x), activation(x), atol=1e-6, rtol=1e-6)
    axis = 1 if len(shape) == 4 else -1
    assert len(seen) == min(3, shape[axis]) and sum(s[axis] for s in seen) == shape[axis]
    torch.testing.assert_close(SplitActivation(activation, 2, axis=0)(x), activation(x), atol=1e-6, rtol=1e-6)


def test_what_cannot_be_split_is_refused():
    for wrong in (nn.Softmax(-1), nn.GLU()):
        with pytest.raises(ModelError, match="element by element"):
            SplitActivation(wrong)
    with pytest.raises(ParameterError, match="parts"):
        SplitActivation(nn.ReLU(), 0)
    with pytest.raises(ModelError, match="no linear or convolution"):
        split_model(nn.Sequential(nn.LayerNorm(4), nn.ReLU()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(split_model(nn.Linear(6, 6)).layers) == 3
