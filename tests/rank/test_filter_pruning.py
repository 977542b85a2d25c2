"""Structured pruning: what is tied, what is refused, and that the smaller network is the one that the report says."""

import io

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra 'deep'")

import torch
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from skerry.core.errors import DataError, ModelError, ParameterError
from skerry.deep.convnets import VGG16, CifarResNet, SmallCNN
from skerry.rank.filter_pruning import prune_filters
from skerry.rank.filters import rank_filters

X = torch.randn(4, 2, 16, 16, generator=torch.Generator().manual_seed(0))


def lively(model, seed=0):
    """Give norms statistics and weights of their own, so that a wrong index shows."""
    torch.manual_seed(seed)
    for m in model.modules():
        if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.uniform_(m.weight, 0.5, 1.5)
            nn.init.normal_(m.bias, std=0.3)
            m.running_mean.normal_()
            m.running_var.uniform_(0.5, 2)
    return model.eval()


class Mobile(nn.Module):
    """Depth-wise and grouped convolutions, a gate, concatenation and a flattened end."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(2, 8, 3, padding=1)
        self.depth = nn.Conv2d(8, 16, 3, padding=1, groups=8)  # two filters per channel
        self.act = nn.PReLU(16)
        self.point = nn.Conv2d(16, 8, 1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 12, 3, stride=2, groups=4)
        self.gate = nn.Conv2d(12, 12, 1)
        self.side = nn.Conv2d(2, 5, 3, stride=2)
        self.head = nn.Linear(17 * 9, 3)

    def forward(self, x):
        h = self.norm(self.point(self.act(self.depth(self.stem(x)))))
        h = self.grouped(functional.relu(h))
        h = h * torch.sigmoid(self.gate(h.mean((2, 3), keepdim=True)))
        h = torch.cat([h, functional.relu(self.side(x))], dim=1)
        h = functional.max_pool2d(h, 2)
        return self.head(h.view(h.size(0), -1))


NETS = {
    "small": lambda: SmallCNN(3, 2, widths=(6, 8, 10)),
    "resnet": lambda: CifarResNet(14, 3, 2, width=4),
    "vgg": lambda: VGG16(3, 2, width=4),
    "mobile": Mobile,
}


@pytest.fixture(params=NETS, ids=list(NETS))
def net(request):
    torch.manual_seed(1)
    return lively(NETS[request.param]())


def example(net):
    return X[:, :, :14, :14] if isinstance(net, Mobile) else X


def counted(model, x):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x[:1])
    return counter.get_total_flops()


def test_the_report_agrees_with_independent_counts(net):
    x = example(net)
    scores = rank_filters(net, x)
    small, report = prune_filters(net, scores, rates=0.5, example=x)
    assert small(x).shape == net(x).shape
    assert (report.total.flops_before, report.total.flops_after) == (counted(net, x), counted(small, x))
    assert report.total.params_after == sum(p.numel() for p in small.parameters())
    assert report.total.params_after == sum(layer.params_after for layer in report.layers)
    assert report.total.flops_after < 0.5 * report.total.flops_before
    modules = dict(small.named_modules())
    for layer in report.layers:
        module = modules[layer.layer]
        if isinstance(module, nn.Conv2d):
            assert layer.kept == module.out_channels == len(module.weight) == layer.of // 2
            assert np.all(np.diff(report.kept[layer.layer]) > 0)
            assert module.weight.shape[1] == module.in_channels // module.groups
        elif isinstance(module, nn.BatchNorm2d):
            assert layer.kept == module.num_features == len(module.running_var)
    frame = report.to_frame()
    assert frame.height == len(report.layers) + 1 and frame["layer"][-1] == "(network)"
    assert {"kept", "flops_after", "params_after", "latency_before", "latency_after"} <= set(frame.columns)
    assert frame["latency_after"].min() > 0


def test_it_saves_and_loads(net):
    x = example(net)
    small, _ = prune_filters(net, rank_filters(net, criterion="l1"), rates=0.3, example=x)
    other, _ = prune_filters(lively(net, 5), rank_filters(net, criterion="l2"), rates=0.3, example=x)
    file = io.BytesIO()
    torch.save(small.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    torch.testing.assert_close(other.eval()(x), small(x))


def test_rate_zero_is_the_same_model_bit_for_bit(net):
    x = example(net)
    scores = rank_filters(net, criterion="random", random_state=0)
    for options in ({"rates": 0}, {"rates": {}}, {"target_flops": 1.0}):
        same, report = prune_filters(net, scores, example=x, **options)
        assert same is not net and str(same) == str(net)
        assert all(torch.equal(v, net.state_dict()[k]) for k, v in same.state_dict().items())
        assert torch.equal(same(x), net(x)) and report.total.flops_after == report.total.flops_before


def silence(net, layers):
    """Set filters and norm shifts to zero wherever their channel is removed; return those scores."""
    rng, scores = np.random.default_rng(0), {}
    for group in layers:
        width = dict(net.named_modules())[group[0][0]].out_channels
        values = rng.permutation(width).astype(float)
        dead = torch.from_numpy(np.argsort(values)[: width - width // 2].copy())
        for conv_name, norm_name in group:
            conv, norm = dict(net.named_modules())[conv_name], dict(net.named_modules())[norm_name]
            scores[conv_name] = values
            with torch.no_grad():
                conv.weight[dead] = 0
                norm.bias[dead] = 0
                norm.running_mean[dead] = 0
    return scores


def test_filters_that_are_zero_may_go_unnoticed():
    cnn = lively(NETS["small"]())
    vgg = lively(NETS["vgg"]())
    resnet = lively(NETS["resnet"]())
    plain = [[(f"features.{i}", f"features.{i + 1}")] for i in (0, 4, 8)]
    deep = [[(n, f"features.{int(n[9:]) + 1}")] for n, m in vgg.named_modules() if isinstance(m, nn.Conv2d)]
    blocks = [f"layer{s}.{b}." for s in (1, 2, 3) for b in (0, 1)]
    stages = [[("conv1", "bn1"), ("layer1.0.conv2", "layer1.0.bn2"), ("layer1.1.conv2", "layer1.1.bn2")]]
    for s in (2, 3):
        stage = [(f"layer{s}.{b}.conv2", f"layer{s}.{b}.bn2") for b in (0, 1)]
        stages.append([*stage, (f"layer{s}.0.shortcut.0", f"layer{s}.0.shortcut.1")])
    residual = [[(f"{b}conv1", f"{b}bn1")] for b in blocks] + stages
    for net, groups in ((cnn, plain), (vgg, deep), (resnet, residual)):
        scores = silence(net, groups)
        small, report = prune_filters(net, scores, rates=0.5, example=X)
        assert report.total.kept <= report.total.of // 2
        torch.testing.assert_close(small(X), net(X), rtol=1e-5, atol=1e-5)


def test_pruning_equals_masking(net):
    """Set to zero what each layer reads from removed channels: the logits are those of the smaller network."""
    x = example(net)
    small, report = prune_filters(net, rank_filters(net, criterion="l1"), rates=0.4, example=x)

    def mask(name):
        gone = np.setdiff1d(np.arange(dict(net.named_modules())[name].out_channels), report.kept[name])

        def hook(module, args, out):
            out = out.clone()
            out[:, gone] = 0
            return out

        return hook

    following = {}
    for name, module in net.named_modules():  # mask behind the norm, which would revive a zero
        if isinstance(module, nn.Conv2d):
            following[name] = module
    norms = {"conv1": "bn1", "conv2": "bn2", "shortcut.0": "shortcut.1", "point": "norm"}
    modules = dict(net.named_modules())
    for name in following:
        stem, _, last = name.rpartition(".")
        if name.startswith("features."):
            following[name] = modules[f"features.{int(last) + 1}"]
        for conv, norm in norms.items():
            if name == conv or name.endswith(f".{conv}"):
                following[name] = modules[name[: len(name) - len(conv)] + norm]
    handles = [m.register_forward_hook(mask(n)) for n, m in following.items()]
    expected = net(x)
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(small(x), expected, rtol=1e-4, atol=1e-5)


def test_tied_layers_keep_the_same_filters():
    net = lively(NETS["resnet"]())
    _, report = prune_filters(net, rank_filters(net, X), rates=0.5, example=X)
    for tied in (
        ["conv1", "layer1.0.conv2", "layer1.1.conv2"],
        ["layer2.0.conv2", "layer2.0.shortcut.0", "layer2.1.conv2"],
    ):
        assert len({tuple(report.kept[n]) for n in tied}) == 1
    net = lively(Mobile())
    _, report = prune_filters(net, rank_filters(net, example(net)), rates=0.5, example=example(net))
    assert np.array_equal(report.kept["depth"], np.sort(np.r_[2 * report.kept["stem"], 2 * report.kept["stem"] + 1]))
    groups = np.unique(report.kept["point"] // 2)
    assert np.array_equal(report.kept["grouped"], (3 * groups[:, None] + np.arange(3)).ravel())
    assert np.array_equal(report.kept["grouped"], report.kept["gate"])


def test_rates_by_name():
    net = lively(NETS["resnet"]())
    scores = rank_filters(net, criterion="l1")
    small, report = prune_filters(net, scores, rates={"layer2": 0.5, "layer2.1.conv1": 0.25}, example=X)
    kept = {n: len(k) for n, k in report.kept.items()}
    assert kept["layer2.0.conv1"] == kept["layer2.0.conv2"] == kept["layer2.0.shortcut.0"] == 4
    assert kept["layer2.1.conv1"] == 6 and kept["layer1.0.conv1"] == 4 and kept["layer3.0.conv1"] == 16
    assert small.layer3[0].conv1.in_channels == 4
    # the first stage is tied to the stem: only its inner convolutions go
    _, report = prune_filters(net, scores, rates={"layer1": 0.5}, example=X)
    assert len(report.kept["layer1.0.conv1"]) == 2 and len(report.kept["layer1.0.conv2"]) == 4
    # int(C * (1 - rate)) filters stay, without an error of rounding
    _, report = prune_filters(
        SmallCNN(3, 2, (10, 10)), {"features.0": np.arange(10)}, rates={"features.0": 0.9}, example=X
    )
    assert report.kept["features.0"].tolist() == [9]


def test_a_grouped_layer_follows_its_producer():
    net = lively(Mobile())
    scores = rank_filters(net, criterion="l1", layers=["stem"])
    small, _ = prune_filters(net, scores, rates={"stem": 0.5}, example=example(net))
    assert (small.stem.out_channels, small.depth.groups, small.depth.out_channels) == (4, 4, 8)
    assert small.act.num_parameters == 8 and small.point.in_channels == 8


@pytest.mark.parametrize("target", [0.8, 0.5, 0.3])
def test_target_flops(net, target):
    x = example(net)
    small, report = prune_filters(net, rank_filters(net, x), target_flops=target, example=x)
    before, after = counted(net, x), counted(small, x)
    assert after <= target * before and after == report.total.flops_after
    assert after > 0.6 * target * before  # no more is taken than needed, up to one class of channels
    for layer in report.layers:
        if layer.layer in report.kept:
            assert layer.kept >= min(layer.of, max(2, np.ceil(0.1 * layer.of)))


def test_target_flops_takes_the_lowest_scores():
    net = SmallCNN(3, 2, widths=(6, 8))
    scores = {"features.0": np.array([0, 1, 1, 1, 1, 1.0]), "features.4": np.array([0, 0.1, 0.2, 1, 1, 1, 1, 1])}
    _, report = prune_filters(net, scores, target_flops=0.68, example=X)
    gone = {n: sorted(set(range(len(s))) - set(report.kept[n].tolist())) for n, s in scores.items()}
    assert gone == {"features.0": [0], "features.4": [0, 1, 2]}
    with pytest.raises(ParameterError, match="cannot be reached"):
        prune_filters(net, scores, target_flops=0.01, min_keep=0.5, example=X)


def test_scale_kept():
    net = SmallCNN(3, 2, widths=(4, 5))
    scores = {"features.0": np.array([0, 2, 1, 4.0])}
    small, _ = prune_filters(net, scores, rates={"features.0": 0.5}, scale_kept=True, example=X)
    torch.testing.assert_close(
        small.features[0].weight, net.features[0].weight[[1, 3]] * torch.tensor([1.5, 2.0]).view(2, 1, 1, 1)
    )
    assert torch.equal(small.features[4].weight, net.features[4].weight[:, [1, 3]])


def test_the_model_is_not_changed_and_modes_are_kept():
    net = lively(NETS["resnet"]()).train()
    net.layer1.eval()
    net.conv1.weight.requires_grad_(False)
    state = {k: v.clone() for k, v in net.state_dict().items()}
    small, _ = prune_filters(net, rank_filters(net, criterion="l1"), rates=0.5, example=X)
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    assert small.training and net.training and not net.layer1.training and not small.layer1.training
    assert not small.conv1.weight.requires_grad and small.bn1.weight.requires_grad
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in (*net.modules(), *small.modules()))
    small(X).sum().backward()
    assert small.layer3[0].conv1.weight.grad.shape == small.layer3[0].conv1.weight.shape


class Odd(nn.Module):
    """Convolutions ``a`` and ``b`` around an operation to be refused."""

    def __init__(self, step, b=None, **extra):
        super().__init__()
        self.a, self.b, self.step = nn.Conv2d(2, 4, 3, padding=1), b or nn.Conv2d(4, 4, 3, padding=1), step
        for name, module in extra.items():
            setattr(self, name, module)

    def forward(self, x):
        return self.b(self.step(self, self.a(x))).mean((2, 3))


REFUSED = {
    "softmax": Odd(lambda m, x: x.softmax(1)),
    "split": Odd(lambda m, x: torch.cat(x.chunk(2, dim=1), 1)),
    "shuffle": Odd(lambda m, x: x.view(x.size(0), 2, 2, 16, 16).transpose(1, 2).reshape(x.size(0), 4, 16, 16)),
    "padded channels": Odd(lambda m, x: functional.pad(x, (0, 0, 0, 0, 1, 1)), nn.Conv2d(6, 4, 3)),
    "group norm": Odd(lambda m, x: m.norm(x), norm=nn.GroupNorm(2, 4)),
    "flattened with the batch": Odd(lambda m, x: x.flatten(end_dim=1).view(4, 4, 16, 16)),
    "a slice": Odd(lambda m, x: x[:, 1:], nn.Conv2d(3, 4, 3)),
    "a sum with the input": Odd(lambda m, x: x + m.skip[:, :, None, None], skip=nn.Parameter(torch.ones(1, 4))),
    "transposed": Odd(lambda m, x: m.up(x), up=nn.ConvTranspose2d(4, 4, 2)),
    "used twice": Odd(lambda m, x: m.b(x)),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_followed_is_refused_by_name(case):
    net = REFUSED[case].eval()
    scores = rank_filters(net, criterion="l1")
    with pytest.raises(ModelError, match="layer 'a' cannot lose filters"):
        prune_filters(net, scores, rates={"a": 0.5}, example=X)
    # without a rate it is left alone, and so it is under a target
    same, report = prune_filters(net, scores, rates={"a": 0.0}, example=X)
    assert torch.equal(same(X), net(X)) and "a" in report.fixed
    with pytest.raises(ParameterError, match="cannot be reached"):
        prune_filters(net, scores, target_flops=0.3, example=X)


def test_outputs_and_ties_are_named():
    net = Odd(lambda m, x: x.relu())
    with pytest.raises(ModelError, match="'b' cannot lose filters: they reach the network's output"):
        prune_filters(net, rank_filters(net, criterion="l1"), rates=0.5, example=X)
    resnet = NETS["resnet"]()
    with pytest.raises(ModelError, match=r"'layer1.0.conv2' is tied to 'conv1'"):
        prune_filters(resnet, rank_filters(resnet, criterion="l1"), rates={"layer1.0.conv2": 0.5}, example=X)

    class Branches(SmallCNN):
        def forward(self, x):
            return super().forward(x if x.sum() > 0 else -x)

    with pytest.raises(ModelError, match="Branches cannot be traced"):
        prune_filters(Branches(3), {}, rates=0.5, example=X)
    with pytest.raises(ModelError, match="does not run on the example"):
        prune_filters(SmallCNN(3, 1), {}, rates=0.5, example=X)


def test_mistakes_are_named():
    net = SmallCNN(3, 2, widths=(4, 5))
    scores = rank_filters(net, criterion="l1")
    for options, hint in (
        ({}, "either"),
        ({"rates": 0.5, "target_flops": 0.5}, "either"),
        ({"rates": 1.0}, "share"),
        ({"rates": {"feature": 0.5}}, "features.0"),
        ({"target_flops": 0.0}, "target_flops"),
        ({"target_flops": 0.5, "min_keep": 2}, "min_keep"),
    ):
        with pytest.raises(ParameterError, match=hint):
            prune_filters(net, scores, example=X, **options)
    with pytest.raises(ParameterError, match="no Conv2d layer"):
        prune_filters(net, {"features.1": np.ones(4)}, rates=0.5, example=X)
    for wrong in (np.ones(3), np.array([0, 1, np.nan, 2])):
        with pytest.raises(DataError, match="give 4 finite numbers"):
            prune_filters(net, {"features.0": wrong}, rates=0.5, example=X)
    with pytest.raises(DataError, match=r"no scores for layer 'features\.4'"):
        prune_filters(net, {"features.0": np.ones(4)}, rates=0.5, example=X)
