"""Reading a CNN and running it in patches: the same numbers, each output once, and no wrong padding at the seams."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from skerry.core.errors import DataError, ModelError, ParameterError
from skerry.deep.convnets import CifarResNet, SmallCNN
from skerry.deep.mobilenet import InvertedResidual, MobileNetV2
from skerry.quant.patches.executor import PatchExecutor
from skerry.quant.patches.graph import read_cnn
from skerry.quant.patches.receptive import Layout, input_interval, input_window, tiles

seeds = st.integers(0, 2**16)


class Residual(nn.Module):
    """A shortcut around a convolution, followed by ReLU."""

    def __init__(self, channels, kernel, dilation):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel, padding=dilation * (kernel // 2), dilation=dilation)

    def forward(self, x):
        return torch.relu(self.conv(x) + x)


def random_cnn(seed, depth=5):
    """A chain of convolutions, norms, pools and residual blocks whose statistics are not trivial."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    layers, channels = [], 2
    for _ in range(depth):
        kind = rng.choice(["conv", "depthwise", "residual", "inverted", "max", "avg", "norm"])
        wide = int(rng.integers(2, 5)) * 2
        kernel, stride = (int(v) for v in (rng.choice([1, 3, 5]), rng.choice([1, 1, 2])))
        if kind == "conv":
            pad = int(rng.integers(0, kernel // 2 + 1))
            layers += [nn.Conv2d(channels, wide, kernel, stride, pad, bias=bool(rng.integers(2)))]
            channels = wide
        elif kind == "depthwise":
            layers += [
                nn.Conv2d(channels, channels, 3, stride, 1, groups=channels),
                nn.BatchNorm2d(channels),
                nn.ReLU6(),
            ]
        elif kind == "residual":
            layers += [Residual(channels, 3, int(rng.integers(1, 3)))]
        elif kind == "inverted":
            layers += [InvertedResidual(channels, channels if stride == 1 else wide, stride, 2)]
            channels = channels if stride == 1 else wide
        elif kind == "max":
            layers += [nn.MaxPool2d(3, 2, 1) if rng.integers(2) else nn.MaxPool2d(2)]
        elif kind == "avg":
            layers += [nn.AvgPool2d(3, 1, 1), nn.ReLU()]
        else:
            layers += [nn.BatchNorm2d(channels), nn.ReLU()]
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 3))
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return net.eval()


# ---- windows ---------------------------------------------------------------------------------------------------------


def test_the_windows_of_the_brief():
    assert tiles(16, 16, 3)[0] == (0, 6, 0, 6) and tiles(16, 16, 3)[4] == (6, 11, 6, 11)
    assert input_interval(0, 6, 3, 2, 1) == (-1, 12)
    assert input_interval(6, 11, 3, 2, 1) == (11, 22)
    layout = Layout(read_cnn(nn.Sequential(nn.Conv2d(1, 1, 3, 2, 1)), (1, 32, 32)), 3, 1)
    assert layout.branches[0].windows[0] == (0, 12, 0, 12)
    assert layout.branches[0].crop(0)[1] == (1, 0, 1, 0)  # one column left and one row on top, none inside
    assert layout.branches[4].windows[0] == (11, 22, 11, 22) and layout.branches[4].crop(0)[1] == (0, 0, 0, 0)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 9))
def test_tiles_cover_every_value_once(height, width, patches):
    if patches > min(height, width):
        with pytest.raises(ParameterError, match="does not fit"):
            tiles(height, width, patches)
        return
    count = np.zeros((height, width), int)
    for a, b, c, d in tiles(height, width, patches):
        count[a:b, c:d] += 1
    assert (count == 1).all() and len(tiles(height, width, patches)) == patches**2


@settings(max_examples=30)
@given(st.sampled_from([1, 3, 5]), st.sampled_from([1, 2]), st.integers(0, 2), st.integers(1, 2), seeds)
def test_the_window_is_exactly_what_the_outputs_depend_on(kernel, stride, pad, dilation, seed):
    pad = min(pad, dilation * (kernel - 1))
    conv = nn.Conv2d(1, 1, kernel, stride, pad, dilation, bias=False)
    nn.init.constant_(conv.weight, 1.0)
    op = read_cnn(conv, (1, 14, 14)).ops[0]
    rng = np.random.default_rng(seed)
    a, c = (int(rng.integers(0, op.shape[1])) for _ in range(2))
    b, d = (int(rng.integers(v + 1, op.shape[1] + 1)) for v in (a, c))
    x = torch.zeros(1, 1, 14, 14, requires_grad=True)
    conv(x)[:, :, a:b, c:d].sum().backward()
    rows, columns = (x.grad[0, 0].sum(axis).nonzero()[:, 0] for axis in (1, 0))
    wanted = input_window(op, (a, b, c, d))
    assert max(wanted[0], 0) <= rows.min() and rows.max() < min(wanted[1], 14)
    if dilation == 1:
        assert (rows.min(), rows.max() + 1) == (max(wanted[0], 0), min(wanted[1], 14))
        assert (columns.min(), columns.max() + 1) == (max(wanted[2], 0), min(wanted[3], 14))


# ---- the executor ----------------------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(seeds, st.integers(1, 4), st.integers(13, 26), st.integers(13, 26))
def test_patches_compute_what_the_network_does(seed, patches, height, width):
    net = random_cnn(seed)
    x = torch.randn(2, 2, height, width)
    graph = read_cnn(net, (2, height, width))
    fitting = [n for n in graph.cuts() if min(graph.shape(n)[1:]) >= patches]
    with torch.no_grad():
        expected = net(x)
        assert torch.allclose(graph(x), expected, atol=1e-5 * max(1.0, float(expected.abs().max())))
        for n in {*fitting[:1], *fitting[len(fitting) // 2 :][:1], *fitting[-1:]}:
            executor = PatchExecutor(net, (2, height, width), patches=patches, n_stage=n)
            found = executor.run(x)
            assert (found - expected).abs().max() < 1e-5 * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize("model", [MobileNetV2(5, 1), CifarResNet(8, 5, 1, width=4), SmallCNN(5, 1, (4, 8, 8))])
@pytest.mark.parametrize("patches", [1, 2, 3])
def test_whole_networks(model, patches):
    x = torch.randn(3, 1, 40, 40, generator=torch.Generator().manual_seed(1))
    executor = PatchExecutor(model.eval(), (1, 40, 40), patches=patches, batch_size=2)
    with torch.no_grad():
        expected = model(x)
    assert executor.layout.n_stage > 1
    assert (executor.run(x.numpy()) - expected).abs().max() < 1e-5 * float(expected.abs().max().clamp(min=1))
    assert (executor.run(x) == executor.run(x)).all()


def test_the_stage_ends_where_the_map_is_eight_times_smaller():
    layout = Layout(read_cnn(MobileNetV2(5, 1), (1, 64, 64)), 3)
    assert layout.graph.shape(layout.n_stage)[1:] == (8, 8)
    assert layout.n_stage in layout.graph.cuts()
    assert layout.graph.shape(layout.n_stage - 1)[1:] == (8, 8)  # of that block, the last operator
    assert Layout(layout.graph, 8).n_stage == layout.n_stage
    assert min(Layout(layout.graph, 9).graph.shape(Layout(layout.graph, 9).n_stage)[1:]) == 16  # 9 x 9 needs more


@settings(max_examples=15)
@given(seeds)
def test_redundancy_is_one_for_one_patch_and_grows(seed):
    graph = read_cnn(random_cnn(seed), (2, 24, 24))
    n = [n for n in graph.cuts() if min(graph.shape(n)[1:]) >= 3]
    if not n or any(k < s for op in graph.ops[: n[-1]] for k, s in zip(op.kernel, op.stride, strict=True)):
        return
    found = [Layout(graph, p, n[-1]).redundancy for p in (1, 2, 3)]
    assert found[0] == 1.0 and found[0] <= found[1] + 1e-12 and found[1] <= found[2] + 1e-12


# ---- reading a network -----------------------------------------------------------------------------------------------


class Views(nn.Module):
    """Reshapes as people write them."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.out = nn.Linear(4 * 36, 2)

    def forward(self, x):
        x = functional.relu(self.conv(x))
        return self.out(x.view(x.size(0), -1))


def test_a_view_is_a_flatten():
    net, x = Views().eval(), torch.randn(2, 1, 8, 8)
    assert torch.allclose(read_cnn(net, (1, 8, 8))(x), net(x), atol=1e-6)


def test_the_network_of_the_caller_is_left_alone():
    net = MobileNetV2(5, 1).train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    PatchExecutor(net, (1, 32, 32), patches=2)
    assert net.training and all((net.state_dict()[k] == v).all() for k, v in before.items())
    assert all(p.requires_grad for p in net.parameters())


class Concatenated(nn.Module):
    def forward(self, x):
        return torch.cat([x, x], 1)


class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class LongShortcut(nn.Module):
    """Its input is read until the end: no point of the chain carries everything."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 1, 3, padding=1), nn.AdaptiveAvgPool2d(1)

    def forward(self, x):
        return self.b(self.a(x)) + self.b(x)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.Sigmoid()), "'1' .Sigmoid. cannot be run in patches"),
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.InstanceNorm2d(2)), "InstanceNorm2d"),
        (Concatenated(), "cat"),
        (Branching(), "depends on values of its input"),
        (LongShortcut(), "no point where one feature map carries everything"),
        (nn.Sequential(nn.Flatten(), nn.Linear(256, 2)), "before its first linear layer"),
        (nn.Conv2d(1, 2, 3, padding=1, padding_mode="reflect"), "'reflect'"),
        (nn.AvgPool2d(3, 1, 1, count_include_pad=False), "count_include_pad"),
        (nn.MaxPool2d(2, ceil_mode=True), "ceil_mode"),
        (nn.Conv2d(1, 2, 1, padding=1), "more than its kernel reaches"),
        (nn.Conv2d(3, 2, 3), "does not take images of shape"),
    ],
)
def test_networks_that_cannot_be_cut_are_refused_by_name(model, message):
    with pytest.raises(ModelError, match=message):
        PatchExecutor(model, (1, 16, 16), patches=2)


def test_wrong_grids_and_stages_are_refused():
    net = MobileNetV2(5, 1)
    graph = read_cnn(net, (1, 64, 64))
    inside = next(n for n in range(1, len(graph.ops)) if n not in graph.cuts())
    with pytest.raises(ParameterError, match="9 x 9 patches does not fit a feature map of 8 x 8"):
        PatchExecutor(net, (1, 64, 64), patches=9, n_stage=Layout(graph).n_stage)
    with pytest.raises(ParameterError, match="residual connection crosses"):
        PatchExecutor(net, (1, 64, 64), n_stage=inside)
    with pytest.raises(ParameterError, match="patches must be an integer"):
        PatchExecutor(net, (1, 64, 64), patches=2.5)
    with pytest.raises(ParameterError, match="patches is 0"):
        PatchExecutor(net, (1, 64, 64), patches=0)
    with pytest.raises(ParameterError, match="bits must be 2 to 8"):
        PatchExecutor(net, (1, 64, 64), weight_bits=9)


def test_wrong_images_are_refused():
    executor = PatchExecutor(nn.Conv2d(1, 2, 3), (1, 8, 8), patches=2)
    broken = torch.zeros(3, 1, 8, 8)
    broken[1, 0, 2, 2] = float("nan")
    with pytest.raises(DataError, match="image 1 has values that are NaN"):
        executor.run(broken)
    with pytest.raises(DataError, match="laid out for"):
        executor.run(torch.zeros(3, 1, 9, 8))
    with pytest.raises(DataError, match="give .N, C, H, W."):
        executor.run(torch.zeros(8, 8))
    with pytest.raises(DataError, match="not an array of numbers"):
        executor.run([["a"]])
