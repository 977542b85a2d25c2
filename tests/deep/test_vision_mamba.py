"""Vision Mamba: its scan against loops, what each token can see, where the class token sits."""

import pytest

pytest.importorskip("torch", reason="needs the extra 'deep'")

import torch

from skerry.core.errors import ParameterError
from skerry.deep.vision_mamba import DirectionalScan, VisionMamba


def scan(seed=0):
    torch.manual_seed(seed)
    found = DirectionalScan(6, 3, 2).double()
    for parameter in found.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return found


@torch.no_grad()
@pytest.mark.parametrize("tokens", [1, 2, 9])
def test_the_scan_is_the_recurrence_of_the_paper(tokens):
    """Token by token, channel by channel, as equations 2 and 3 are written."""
    core, xs = scan(), torch.randn(2, tokens, 6, dtype=torch.float64)
    kernel, bias = core.conv1d.weight[:, 0], core.conv1d.bias
    wanted = torch.zeros_like(xs)
    for b in range(2):
        h = torch.zeros(6, 3, dtype=torch.float64)
        for t in range(tokens):
            past = [xs[b, t - 3 + k] if t - 3 + k >= 0 else torch.zeros(6, dtype=torch.float64) for k in range(4)]
            c = torch.nn.functional.silu(sum(kernel[:, k] * past[k] for k in range(4)) + bias)
            low, B, C = (core.x_proj.weight @ c).split([2, 3, 3])
            dt = torch.log1p(torch.exp(core.dt_proj.weight @ low + core.dt_proj.bias))
            for d in range(6):
                h[d] = torch.exp(-dt[d] * core.A_log[d].exp()) * h[d] + dt[d] * B * c[d]
                wanted[b, t, d] = h[d] @ C + core.D[d] * c[d]
    torch.testing.assert_close(core(xs), wanted, atol=1e-10, rtol=1e-8)


@torch.no_grad()
def test_both_ends_reach_every_token():
    torch.manual_seed(0)
    mixer = VisionMamba(image_size=8, width=8, blocks=1, states=2, rank=2).layers[0].mixer.double()
    x = torch.randn(1, 6, 8, dtype=torch.float64)
    moved = x.clone()
    moved[0, 3] += 1.0
    change = (mixer(moved) - mixer(x)).abs().amax(-1)[0]
    assert bool((change > 0).all())  # tokens before it by the backward scan, those behind it by the forward one
    one_way = (
        mixer.forward_scan(mixer.in_proj(moved)[..., :16]) - mixer.forward_scan(mixer.in_proj(x)[..., :16])
    ).abs()
    assert one_way.amax(-1)[0, :3].max() == 0 < one_way.amax(-1)[0, 3:].min()


@torch.no_grad()
def test_patches_and_the_class_token():
    torch.manual_seed(0)
    model = VisionMamba(image_size=8, width=8, blocks=1, states=2, rank=2, in_channels=2)
    seen = []
    model.layers[0].register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    images = torch.randn(3, 2, 8, 8)
    assert model(images).shape == (3, 10)
    x = seen[0]
    assert x.shape == (3, 5, 8) and model.middle == 2
    torch.testing.assert_close(x[:, 2], model.positions.weight[2].expand(3, -1))
    patch = images[:, :, 4:, :4].flatten(1)  # the third of four, behind the class token
    torch.testing.assert_close(x[:, 3], model.patch_embed(patch) + model.positions.weight[3])


def test_time_steps_start_between_a_thousandth_and_a_tenth():
    core = DirectionalScan(32, 4, 2)
    steps = torch.nn.functional.softplus(core.dt_proj.bias.detach())
    assert float(steps.min()) == pytest.approx(1e-3, rel=1e-3) and float(steps.max()) == pytest.approx(0.1, rel=1e-3)


def test_patches_must_fill_the_image():
    with pytest.raises(ParameterError, match="patches of 4 do not fill"):
        VisionMamba(image_size=10)
