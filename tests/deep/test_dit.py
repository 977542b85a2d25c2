"""The diffusion transformer and its sampler: what goes in, what comes out, what the noise must satisfy."""

import pytest

pytest.importorskip("torch", reason="needs the extra 'deep'")

import torch
from torch import nn

from skerry.core.errors import ParameterError
from skerry.deep.ddim import CosineSchedule, ddim_sample, denoising_batches, noise_loss
from skerry.deep.dit import DiT

SHAPE = (2, 8, 8)


class Oracle(nn.Module):
    """Knows the image: the noise that it finds is exact."""

    def __init__(self, schedule, image):
        super().__init__()
        self.schedule, self.image = schedule, image

    def forward(self, x, t, labels):
        abar = self.schedule.abar.to(x)[t][:, None, None, None]
        return (x - abar.sqrt() * self.image) / (1 - abar).sqrt()


def model():
    torch.manual_seed(0)
    found = DiT(8, 2, 2, width=16, blocks=2, heads=2, n_classes=3).eval()
    for parameter in found.parameters():  # modulation starts at zero: every block would be the identity
        parameter.data += 0.1 * torch.randn_like(parameter)
    return found


def test_patches_come_back():
    net, x = model(), torch.randn(3, *SHAPE)
    patches = net._patches(x)
    assert patches.shape == (3, 16, 8)
    assert torch.equal(net._image(patches, x.shape), x)
    assert torch.equal(patches[0, 1].reshape(2, 2, 2), x[0, :, :2, 2:4])


def test_zero_start():
    torch.manual_seed(0)
    net, x = DiT(8, 2, 2, width=16, blocks=2, heads=2), torch.randn(3, 16, 16)
    assert torch.equal(net.transformer_blocks[0](x, torch.randn(3, 16)), x)
    assert not net(torch.randn(2, *SHAPE), torch.tensor([1, 2]), torch.tensor([0, 1])).any()


def test_time_and_class_matter():
    net, x = model(), torch.randn(1, *SHAPE)
    with torch.no_grad():
        base = net(x, torch.tensor([10]), torch.tensor([0]))
        assert not torch.allclose(base, net(x, torch.tensor([500]), torch.tensor([0])))
        assert not torch.allclose(base, net(x, torch.tensor([10]), torch.tensor([1])))
        both = net(x.expand(2, -1, -1, -1), torch.tensor([10, 500]), torch.tensor([0, 0]))
    torch.testing.assert_close(both[:1], base)


@pytest.mark.parametrize("settings", [{"sample_size": 9, "patch_size": 2}, {"width": 18, "heads": 4}])
def test_sizes_that_do_not_fit(settings):
    with pytest.raises(ParameterError):
        DiT(**settings)


@pytest.mark.parametrize("steps", [1, 7])
def test_exact_noise_leads_to_the_image(steps):
    schedule = CosineSchedule(100)
    image = torch.rand(4, *SHAPE) * 1.8 - 0.9
    found = ddim_sample(Oracle(schedule, image), schedule, torch.zeros(4).long(), SHAPE, steps=steps)
    torch.testing.assert_close(found, image, atol=1e-4, rtol=0)


def test_schedule():
    schedule = CosineSchedule(50)
    x, noise = torch.randn(2, 6, 1, 1, 1, dtype=torch.float64)
    t = torch.tensor([0, 1, 10, 20, 48, 49])
    abar = schedule.abar[t][:, None, None, None]
    torch.testing.assert_close(schedule.noised(x, t, noise), abar.sqrt() * x + (1 - abar).sqrt() * noise)
    assert float(schedule.abar[0]) > 0.98 and float(schedule.abar[-1]) < 1e-3
    for steps in (0, 51):
        with pytest.raises(ParameterError):
            schedule.places(steps)
    with pytest.raises(ParameterError):
        CosineSchedule(1)


def test_same_seed_same_images():
    net, schedule, labels = model(), CosineSchedule(100), torch.tensor([0, 1, 2, 0])
    a, b, c = (ddim_sample(net, schedule, labels, SHAPE, steps=3, random_state=s) for s in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert float(a.abs().max()) <= 1.0


def test_batches_mix_the_steps_of_the_run():
    net, schedule, labels = model(), CosineSchedule(100), torch.tensor([0, 1, 2, 0, 1, 2])
    batches = denoising_batches(net, schedule, labels, SHAPE, steps=5, batch_size=12)
    assert [len(x) for x, _, _ in batches] == [12, 12, 6]
    assert all(len(t.unique()) > 2 for _, t, _ in batches)
    x, t, label = (torch.cat(part) for part in zip(*batches, strict=True))
    assert sorted(t.tolist()) == sorted(schedule.places(5) * 6)
    assert label.bincount().tolist() == [10, 10, 10]
    first = x[(t == schedule.places(5)[0])]
    assert 0.7 < float(first.std()) < 1.3


def test_loss_of_the_exact_noise():
    schedule = CosineSchedule(100)
    image = torch.rand(8, *SHAPE) - 0.5
    assert float(noise_loss(Oracle(schedule, image), schedule, image, torch.zeros(8).long(), 0)) < 1e-6
