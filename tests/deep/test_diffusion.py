"""The schedule, the masks and the network that ImDiffusion is made of."""

import pytest

pytest.importorskip("torch", reason="needs the extra 'deep'")

import torch

from skerry.deep.diffusion import DiffusionSchedule
from skerry.deep.diffusion_imputer import DiffusionImputer, grating
from skerry.deep.imputation_net import FEED_FORWARD, ImputationNet, _Attention


def small(features=3, window=12, conditional=False, n_steps=10):
    torch.manual_seed(0)
    net = ImputationNet(features, window, channels=8, n_layers=2, n_heads=2, conditional=conditional)
    return DiffusionImputer(net, 4, n_steps, conditional)


def with_head(imputer):
    torch.nn.init.normal_(imputer.net.head.weight)
    imputer.net.eval()
    return imputer


def test_schedule():
    s = DiffusionSchedule(50, dtype=torch.float64)
    assert (s.abar.diff() < 0).all()
    assert float(s.abar[0]) == pytest.approx(0.9999)
    assert float(s.abar[-1]) == pytest.approx(3.354e-5, rel=0.01)


def test_the_chain_has_the_moments_of_a_jump():
    s = DiffusionSchedule(50)
    generator = torch.Generator().manual_seed(0)
    chain = s.chain(torch.full((40_000,), 10.0), lambda x: torch.randn(x.shape, generator=generator))
    for t in (0, 10, 25, 35):
        assert float(chain[t].mean()) == pytest.approx(10.0 * float(s.abar[t].sqrt()), rel=0.03)
        assert float(chain[t].var()) == pytest.approx(1.0 - float(s.abar[t]), rel=0.03)


def test_an_oracle_of_the_noise_brings_the_data_back():
    s = DiffusionSchedule(50, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    draw = lambda x: torch.randn(x.shape, generator=generator, dtype=x.dtype)  # noqa: E731
    x0 = torch.linspace(0, 20, 30, dtype=torch.float64)
    x = draw(x0)
    for t in range(49, -1, -1):
        x = s.reverse(x, (x - s.abar[t].sqrt() * x0) / (1.0 - s.abar[t]).sqrt(), t, draw)
    torch.testing.assert_close(x, x0, atol=1e-3, rtol=0)


def test_bounds_leave_good_noise_alone_and_keep_data_within_them():
    s = DiffusionSchedule(50, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    x0 = torch.linspace(0, 20, 40, dtype=torch.float64)
    for t in (0, 25, 49):
        noise = torch.randn(x0.shape, generator=generator, dtype=x0.dtype)
        x = s.abar[t].sqrt() * x0 + (1.0 - s.abar[t]).sqrt() * noise
        torch.testing.assert_close(s.bounded(x, noise, t, -10.0, 30.0), noise, atol=1e-9, rtol=0)
        wild = s.bounded(x, 5.0 * noise + 1.0, t, -10.0, 30.0)
        data = (x - (1.0 - s.abar[t]).sqrt() * wild) / s.abar[t].sqrt()
        assert data.min() >= -10.0 - 1e-6
        assert data.max() <= 30.0 + 1e-6


@pytest.mark.parametrize("limits", [(0.0, 1.0), (-3.0, -2.0)])
def test_imputations_of_an_untrained_network_stay_within_limits(limits):
    imputer = small()
    imputer.limits = limits
    x = torch.rand(2, 3, 12)
    ((_, y),) = imputer.sample(x, torch.ones_like(x), [0], 5)
    assert y.min() >= limits[0] - 1e-3
    assert y.max() <= limits[1] + 1e-3


@pytest.mark.parametrize(("window", "split"), [(100, 10), (64, 8), (7, 3), (5, 5), (1, 1)])
def test_the_two_gratings_are_complementary(window, split):
    masks = grating(window, split)
    assert (masks.sum(dim=0) == 1).all()
    assert set(masks.unique().tolist()) <= {0.0, 1.0}


def test_every_cell_is_imputed_once_and_only_where_hidden(monkeypatch):
    imputer = small()
    seen_masks = []

    def predict(x, clean, shown, t, policy):
        seen_masks.append((shown, policy))
        return torch.zeros_like(x)

    monkeypatch.setattr(imputer, "predict", predict)
    x, seen = torch.rand(2, 3, 12), torch.ones(2, 3, 12)
    seen[0, 1, 4] = 0.0
    ((t, y),) = imputer.sample(x, seen, [0], 5)
    assert t == 0 and y.shape == (2, 3, 12)
    shown, policy = seen_masks[0]
    assert policy.tolist() == [0, 0, 1, 1]
    total = shown[:2] + shown[2:]
    assert float(total[0, 1, 4]) == 0.0  # no value: hidden in both policies
    torch.testing.assert_close(total, seen)


@pytest.mark.parametrize("conditional", [False, True])
def test_an_untrained_network_predicts_zero(conditional):
    imputer = small(conditional=conditional)
    zero, x = torch.zeros(2, dtype=torch.long), torch.rand(2, 3, 12)
    assert (imputer.predict(x, x, torch.ones_like(x), zero, zero) == 0).all()


def test_shown_and_missing_cells_do_not_enter_the_loss():
    imputer = with_head(small())
    x, seen, zero = torch.rand(2, 3, 12), torch.ones(2, 3, 12), torch.zeros(2, dtype=torch.long)
    seen[1, 2, 5] = 0.0
    shown = imputer.gratings[zero][:, None].expand(2, 3, 12)
    noise = torch.randn(2, 3, 12)
    target = noise.clone().requires_grad_()
    fixed = imputer.schedule.noised(x, zero + 3, noise)
    imputer.schedule.noised = lambda *_: fixed  # the noise of the target alone
    imputer.loss(x, seen, shown, zero + 3, zero, target).backward()
    out = (shown == 1) | (seen == 0)
    assert (target.grad[out] == 0).all()
    assert (target.grad[~out] != 0).all()


def test_channels_may_change_places_with_their_embedding():
    imputer = with_head(small(features=4))
    x, order = torch.rand(2, 4, 12, 1), torch.tensor([2, 0, 3, 1])
    t, policy = torch.tensor([3, 7]), torch.tensor([0, 1])
    with torch.no_grad():
        y = imputer.net(x, t, policy)
        imputer.net.channel.weight.copy_(imputer.net.channel.weight[order].clone())
        torch.testing.assert_close(imputer.net(x[:, order], t, policy), y[:, order], atol=1e-5, rtol=0)


def test_the_first_attention_knows_the_places():
    torch.manual_seed(0)
    net = ImputationNet(1, 12, channels=8, n_layers=1, n_heads=2).eval()
    torch.nn.init.normal_(net.head.weight)
    x, zero = torch.zeros(1, 1, 12, 1), torch.zeros(1, dtype=torch.long)
    near, far = x.clone(), x.clone()
    near[0, 0, 1], far[0, 0, 10] = 5.0, 5.0
    with torch.no_grad():
        at_0 = [float(net(v, zero, zero)[0, 0, 0]) for v in (near, far)]
    assert abs(at_0[0] - at_0[1]) > 1e-4  # the same value elsewhere is another neighbour


@pytest.mark.parametrize("n_steps", [5, 20, 50])
def test_sampling_begins_where_noised_windows_lie(n_steps, monkeypatch):
    imputer = small(features=1, window=400, n_steps=n_steps)
    generator = torch.Generator().manual_seed(0)
    x = 20.0 * torch.rand(50, 1, 400, generator=generator)
    last = torch.full((50,), n_steps - 1)
    noised = imputer.schedule.noised(x, last, torch.randn(x.shape, generator=generator))
    begun = []
    reverse = imputer.schedule.reverse
    monkeypatch.setattr(imputer.schedule, "reverse", lambda y, *rest: (begun.append(y), reverse(y, *rest))[1])
    next(imputer.sample(x, torch.ones_like(x), [n_steps - 1], 1))
    assert float(begun[0].mean()) == pytest.approx(float(noised.mean()), abs=0.05 * float(noised.std()))
    assert float(begun[0].std()) == pytest.approx(float(noised.std()), rel=0.2)


def test_dropout_acts_in_training_alone():
    torch.manual_seed(0)
    net = ImputationNet(3, 12, channels=8, n_layers=1, n_heads=2, dropout=0.5)
    torch.nn.init.normal_(net.head.weight)
    x, zero = torch.rand(2, 3, 12, 1), torch.zeros(2, dtype=torch.long)
    assert not torch.equal(net(x, zero, zero), net(x, zero, zero))
    net.eval()
    assert torch.equal(net(x, zero, zero), net(x, zero, zero))


def test_attention_is_that_of_the_plain_encoder_layer():
    torch.manual_seed(0)
    ours = _Attention(8, 2, 0.1).eval()
    theirs = torch.nn.TransformerEncoderLayer(8, 2, FEED_FORWARD, 0.1, "gelu", batch_first=True).eval()
    pairs = (
        (theirs.self_attn.in_proj_weight, ours.inlet.weight), (theirs.self_attn.in_proj_bias, ours.inlet.bias),
        (theirs.self_attn.out_proj.weight, ours.outlet.weight), (theirs.linear1.weight, ours.wide.weight),
        (theirs.linear1.bias, ours.wide.bias), (theirs.linear2.weight, ours.narrow.weight),
        (theirs.linear2.bias, ours.narrow.bias),
    )  # fmt: skip
    with torch.no_grad():
        for a, b in pairs:
            a.copy_(b)
        x = torch.randn(4, 9, 8)
        torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-5)


def test_step_policy_and_mask_reach_the_output():
    imputer = with_head(small(conditional=True))
    x, one = torch.rand(1, 3, 12), torch.ones(1, dtype=torch.long)
    with torch.no_grad():
        y = imputer.predict(x, x, torch.ones_like(x), one, one)
        assert not torch.allclose(y, imputer.predict(x, x, torch.ones_like(x), 5 * one, one))
        assert not torch.allclose(y, imputer.predict(x, x, torch.ones_like(x), one, 0 * one))
        assert not torch.allclose(y, imputer.predict(x, x, torch.zeros_like(x), one, one))


def test_the_unconditional_network_sees_no_clean_value():
    imputer = with_head(small())
    x, one = torch.rand(1, 3, 12), torch.ones(1, dtype=torch.long)
    with torch.no_grad():
        y = imputer.predict(x, x, torch.ones_like(x), one, one)
        torch.testing.assert_close(y, imputer.predict(x, 9 * x, torch.zeros_like(x), one, one))
