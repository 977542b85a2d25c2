"""Invariants of Beta-Rank and of the criteria beside it, against brute-force twins."""

import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra 'deep'")

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from skerry.core.errors import DataError, ModelError, ParameterError
from skerry.deep.convnets import CifarResNet, SmallCNN
from skerry.rank.filter_spread import RATIOS, Moments, beta_ratio, receptive_field_std
from skerry.rank.filters import CRITERIA, rank_filters
from skerry.rank.filters import stability_fraction as sf


@pytest.fixture
def net():
    torch.manual_seed(0)
    model = SmallCNN(3, widths=(4, 6))
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.uniform_(m.weight, 0.5, 1.5)
            nn.init.normal_(m.bias)
    return model


@pytest.fixture
def images():
    return torch.randn(20, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def labels():
    return torch.tensor([0] * 14 + [1] * 4 + [2] * 2)


def brute_force(conv, x, labels=None):
    """R of both ratios, patch by patch; each class weighs the same if labels are given."""
    x = x.numpy().astype(float)
    weight = np.ones(len(x)) if labels is None else 1 / np.bincount(labels)[labels]
    weight /= weight.sum()
    (ph, pw), (sh, sw), (dh, dw), (kh, kw) = conv.padding, conv.stride, conv.dilation, conv.kernel_size
    x = np.pad(x, ((0, 0), (0, 0), (ph, ph), (pw, pw)))
    out = conv(torch.from_numpy(x[:, :, ph : x.shape[2] - ph, pw : x.shape[3] - pw]).float()).detach().double().numpy()
    per_group, group = conv.in_channels // conv.groups, conv.out_channels // conv.groups
    norms = conv.weight.detach().double().abs().sum((1, 2, 3)).numpy()
    scores = {r: np.zeros(conv.out_channels) for r in RATIOS}
    spreads = np.zeros((conv.groups, *out.shape[2:]))
    for k in range(conv.out_channels):
        g, ratios = k // group, {r: [] for r in RATIOS}
        for u in range(out.shape[2]):
            for v in range(out.shape[3]):
                patch = x[:, g * per_group : (g + 1) * per_group, u * sh : u * sh + dh * (kh - 1) + 1 : dh]
                patch = patch[..., v * sw : v * sw + dw * (kw - 1) + 1 : dw].reshape(len(x), -1)
                s_in = np.sqrt(weight @ ((patch - weight @ patch.mean(1)) ** 2).mean(1))
                s_out = np.sqrt(weight @ (out[:, k, u, v] - weight @ out[:, k, u, v]) ** 2)
                spreads[g, u, v] = s_in
                ratios["output/input"].append(s_out / s_in)
                ratios["input/output"].append(s_in / s_out)
        for r in RATIOS:
            scores[r][k] = norms[k] * np.mean(ratios[r])
    return scores, spreads


CONVS = [
    nn.Conv2d(2, 3, 3, padding=1),
    nn.Conv2d(2, 4, (3, 2), stride=(2, 1), padding=(0, 1), bias=False),
    nn.Conv2d(2, 3, 2, dilation=2),
    nn.Conv2d(2, 4, 3, padding=1, groups=2),
]


@pytest.mark.parametrize("conv", CONVS, ids=["plain", "stride", "dilation", "groups"])
@pytest.mark.parametrize("balance", ["none", "class"])
def test_beta_equals_a_loop_over_patches(conv, balance, labels):
    x = torch.randn(20, 2, 6, 6, generator=torch.Generator().manual_seed(2)) + 3
    x[labels == 2] *= 4
    expected, spreads = brute_force(conv, x, labels.numpy() if balance == "class" else None)
    for ratio in RATIOS:
        for size in (20, 7):
            got = rank_filters(conv, (x, labels), ratio=ratio, balance=balance, normalize=False, chunk_size=size)[""]
            np.testing.assert_allclose(got, expected[ratio], rtol=1e-4)
    if balance == "none":
        moments = Moments()
        moments.add(x.unflatten(1, (conv.groups, -1)), (0, 2))
        got = receptive_field_std(conv, moments.mean, moments.square / moments.count)
        np.testing.assert_allclose(got.numpy(), spreads.reshape(conv.groups, -1), rtol=1e-6)


@pytest.mark.parametrize("mode", ["reflect", "circular", "replicate"])
def test_padding_modes_repeat_pixels(mode):
    x = torch.randn(9, 2, 6, 6, generator=torch.Generator().manual_seed(3))
    conv = nn.Conv2d(2, 3, 3, padding=1, padding_mode=mode)
    inner = nn.Conv2d(2, 3, 3)
    inner.load_state_dict(conv.state_dict())
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1), mode=mode)
    a, b = (rank_filters(m, v, normalize=False)[""] for m, v in ((conv, x), (inner, padded)))
    np.testing.assert_allclose(a, b, rtol=1e-5)


def test_a_constant_ratio_gives_the_order_of_l1(net, images):
    spread = torch.rand(5, 7, dtype=torch.float64) + 0.1
    for ratio in RATIOS:
        np.testing.assert_allclose(beta_ratio(spread, spread, ratio).numpy(), 1, rtol=1e-5)
    # the same, of whole layers: 1 x 1 filters of one sign on one channel spread the input by exactly their norm
    conv = nn.Conv2d(1, 5, 1)
    weights = torch.tensor([3.0, 1, 5, 2, 4])
    conv.weight.data = weights.view(5, 1, 1, 1).clone()
    np.testing.assert_allclose(rank_filters(conv, images, normalize=False)[""], (weights**2).numpy(), rtol=1e-5)
    l1, beta = rank_filters(conv, criterion="l1")[""], rank_filters(conv, images)[""]
    assert np.argsort(l1).tolist() == np.argsort(beta).tolist()


@settings(max_examples=20, deadline=None)
@given(factor=st.floats(1e-3, 1e3), shift=st.floats(-5, 5), seed=st.integers(0, 99))
def test_scale_and_bias(factor, shift, seed):
    torch.manual_seed(seed)
    conv, x = nn.Conv2d(2, 3, 3, padding=1), torch.randn(12, 2, 6, 6)
    with torch.no_grad():
        conv.bias.zero_()
    before = {r: rank_filters(conv, x, ratio=r, normalize=False)[""] for r in RATIOS}
    with torch.no_grad():
        conv.weight[1] *= factor
    after = {r: rank_filters(conv, x, ratio=r, normalize=False)[""] for r in RATIOS}
    grown = before["output/input"] * np.array([1, factor**2, 1])
    np.testing.assert_allclose(after["output/input"], grown, rtol=1e-5)
    np.testing.assert_allclose(after["input/output"], before["input/output"], rtol=1e-5)
    with torch.no_grad():
        conv.weight[1] /= factor
        conv.bias += shift
    for r in RATIOS:
        np.testing.assert_allclose(rank_filters(conv, x, ratio=r, normalize=False)[""], before[r], rtol=1e-4)


@pytest.mark.parametrize("ratio", RATIOS)
def test_a_constant_output_is_worth_nothing(images, ratio):
    conv = nn.Conv2d(1, 3, 3)
    with torch.no_grad():
        conv.weight[1] = 0
    raw = rank_filters(conv, images, ratio=ratio, normalize=False)[""]
    assert raw[1] == 0 and (raw[[0, 2]] > 0).all()
    flat = torch.zeros(5, 1, 6, 6) + 0.3  # a layer whose whole input is constant
    assert (rank_filters(nn.Conv2d(1, 3, 3), flat, ratio=ratio, normalize=False)[""] == 0).all()


def test_dead_borders_are_skipped(images):
    conv = nn.Conv2d(1, 3, 3)
    wide = torch.nn.functional.pad(images, (0, 7, 0, 0), value=0.7)
    wide[..., 8:] = 0.7
    seven = rank_filters(conv, wide, normalize=False)[""]
    live = rank_filters(conv, wide[..., :10], normalize=False)[""]
    np.testing.assert_allclose(seven, live, rtol=1e-5)


@pytest.mark.parametrize("criterion", [c for c in CRITERIA if c != "random"])
@pytest.mark.parametrize("balance", ["none", "class"])
def test_order_and_chunks_of_images_change_nothing(net, images, labels, criterion, balance):
    options = {"criterion": criterion, "balance": balance, "normalize": False}
    whole = rank_filters(net, (images, labels), **options)
    mixed = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    for other in (
        rank_filters(net, (images, labels), chunk_size=3, **options),
        rank_filters(net, [(images[:9], labels[:9]), [images[9:], labels[9:]]], **options),
        rank_filters(net, (images[mixed], labels[mixed]), **options),
    ):
        assert list(other) == list(whole) == ["features.0", "features.4"]
        for name in whole:
            np.testing.assert_allclose(other[name], whole[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("criterion", [c for c in CRITERIA if c != "random"])
def test_permuted_filters_permute_the_scores(net, images, labels, criterion):
    before = rank_filters(net, (images, labels), criterion=criterion)["features.0"]
    order = torch.tensor([2, 0, 3, 1])
    conv, norm, following = net.features[0], net.features[1], net.features[4]
    with torch.no_grad():
        for p in (conv.weight, norm.weight, norm.bias, norm.running_mean, norm.running_var):
            p.copy_(p[order].clone())
        following.weight.copy_(following.weight[:, order].clone())
    after = rank_filters(net, (images, labels), criterion=criterion)["features.0"]
    np.testing.assert_allclose(after, before[order.numpy()], atol=1e-5)


def test_class_balance_equals_an_equal_draw(net, images, labels):
    repeated = torch.cat([images[labels == 0], images[labels == 1].repeat(7, 1, 1, 1)])  # 14 and 28
    y = torch.tensor([0] * 14 + [1] * 28)
    equal = torch.cat([images[labels == 0].repeat(2, 1, 1, 1), images[labels == 1].repeat(7, 1, 1, 1)])
    a = rank_filters(net, (repeated, y), balance="class", normalize=False)
    b = rank_filters(net, equal, normalize=False)
    for name in a:
        np.testing.assert_allclose(a[name], b[name], rtol=1e-6)


def test_feature_map_criteria_look_behind_batch_norm_and_relu(net, images):
    net.eval()
    maps = torch.relu(net.features[1](net.features[0](images))).detach()
    ranks = np.array([[np.linalg.matrix_rank(m.numpy()) for m in image] for image in maps]).mean(0)
    np.testing.assert_allclose(rank_filters(net, images, criterion="hrank", normalize=False)["features.0"], ranks)
    alive = (maps > 0).float().mean((0, 2, 3)).numpy()
    got = rank_filters(net, images, criterion="apoz", normalize=False)["features.0"]
    np.testing.assert_allclose(got, alive, rtol=1e-6)
    spread = net.features[0](images).detach().transpose(0, 1).flatten(1).double().std(1, correction=0).numpy()
    got = rank_filters(net, images, criterion="activation_std", normalize=False)["features.0"]
    np.testing.assert_allclose(got, spread, rtol=1e-6)


def test_taylor_is_output_times_gradient(net, images, labels):
    net.eval()
    z = net.features[0](images).detach().requires_grad_()
    logits = net.classifier(net.pool(net.features[1:](z)).flatten(1))
    torch.nn.functional.cross_entropy(logits, labels, reduction="sum").backward()
    expected = (z * z.grad).mean((2, 3)).abs().mean(0).detach().numpy()
    net.zero_grad()
    got = rank_filters(net, (images, labels), criterion="taylor", normalize=False)
    np.testing.assert_allclose(got["features.0"], expected, rtol=1e-4, atol=1e-7)
    assert all(p.grad is None for p in net.parameters())


def test_in_place_activations_do_not_reach_the_statistics(images, labels):
    torch.manual_seed(0)
    nets = [
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(inplace=flag), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
        for flag in (False, True)
    ]
    nets[1].load_state_dict(nets[0].state_dict())
    for criterion in CRITERIA:
        a, b = (rank_filters(n, (images, labels), criterion=criterion, random_state=0)["0"] for n in nets)
        np.testing.assert_array_equal(a, b)


def test_the_network_is_left_as_it_was(images, labels):
    torch.manual_seed(0)
    net = CifarResNet(8, 3, in_channels=1, width=4).train()
    net.bn1.eval()
    state = {k: v.clone() for k, v in net.state_dict().items()}
    for criterion in CRITERIA:
        scores = rank_filters(net, (images, labels), criterion=criterion, random_state=0)
        assert len(scores) == 9
        assert all(v.dtype == np.float64 and v.min() >= 0 and v.max() == 1 for v in scores.values())
    assert net.training and net.layer1.training and not net.bn1.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())


def test_random_needs_no_data_and_repeats(net):
    a, b, c = (rank_filters(net, criterion="random", random_state=s)["features.4"] for s in (0, 0, 1))
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, c)


def test_layers_select_and_equal_scores_are_all_one(net):
    with torch.no_grad():
        net.features[4].weight.fill_(0.5)
    scores = rank_filters(net, criterion="l2", layers=["features.4"])
    assert list(scores) == ["features.4"] and (scores["features.4"] == 1).all()


def test_mistakes_are_named(net, images, labels):
    for options, hint in (
        ({"criterion": "betta"}, "'beta'"),
        ({"ratio": "output"}, "output/input"),
        ({"balance": "classes"}, "'class'"),
        ({"layers": ["features.1"]}, "features"),
        ({"chunk_size": 0}, "chunk_size"),
    ):
        with pytest.raises(ParameterError, match=hint):
            rank_filters(net, images, **options)
    for data, options, hint in (
        (None, {}, "give batches"),
        ([], {}, "empty"),
        (images, {"balance": "class"}, "no labels"),
        (images[0], {}, "N, C, H, W"),
        ([images, images[..., :6]], {}, "batch 1"),
        ((images, labels[:3]), {"balance": "class"}, "20 images"),
    ):
        with pytest.raises(DataError, match=hint):
            rank_filters(net, data, **options)
    with pytest.raises(ModelError, match="no Conv2d"):
        rank_filters(nn.Linear(2, 2), images)
    shared = nn.Conv2d(1, 1, 3, padding=1)
    with pytest.raises(ModelError, match="'0' runs more than once"):
        rank_filters(nn.Sequential(shared, shared), images)
    with pytest.raises(ModelError, match="logits"):
        rank_filters(shared, (images, labels), criterion="taylor")
    with torch.no_grad():
        net.features[0].weight[2, 0, 0, 0] = float("nan")
    with pytest.raises(ModelError, match=r"'features\.0'.*filter 2"):
        rank_filters(net, images, layers=["features.0"])
    assert not any(m._forward_hooks for m in net.modules())


def test_stability_fraction():
    a, b = {"x": np.arange(8.0), "y": np.arange(4.0)}, {"x": np.arange(8.0)[::-1], "y": np.arange(4.0)}
    # top quarter: x has 2 of 8, y has 1 of 4; the runs of "moves" choose both ends of x
    assert sf({"stays": [a, a], "moves": [a, b]}) == {"stays": 3 / 5, "moves": 1.0}
    assert sf({"stays": [a, a], "moves": [a, b]}, end="bottom") == {"stays": 3 / 5, "moves": 1.0}
    assert sf({"one": [a]}, top=1.0) == {"one": 1.0}
    for options in ({"top": 0.0}, {"end": "middle"}):
        with pytest.raises(ParameterError):
            sf({"one": [a]}, **options)
    with pytest.raises(DataError, match="'none'"):
        sf({"none": []})


def test_without_torch_the_install_line_is_given():
    code = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            raise ModuleNotFoundError("No module named 'torch'")
sys.meta_path.insert(0, Absent())
import skerry.rank.filters
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode and "pip install 'skerry[deep]'" in done.stderr
