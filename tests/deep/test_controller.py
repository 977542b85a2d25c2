"""The Bayesian controller: its gradients, its information gain, imitation, and what curiosity buys."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra 'deep'")

from skerry.deep.controller import CLIP, TEMPERATURE, Controller, gaussian_kl  # noqa: E402


class Arms:
    """Strings of ``length`` decisions among ``n`` arms."""

    def __init__(self, n=8, length=1):
        self.kinds = {f"arm{i}": n for i in range(length)}
        self.n, self.length = n, length

    def next(self, prefix):
        if len(prefix) == self.length:
            return None
        return f"arm{len(prefix)}", np.ones(self.n, dtype=bool)


@pytest.fixture(autouse=True)
def one_thread():
    kept = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(kept)


def twin(controller, space, strings, advantages):
    """Plain REINFORCE by PyTorch's own LSTM cell on the controller's means: log-probabilities and gradient."""
    parts, at, mu = {}, 0, controller.mu.detach().clone().requires_grad_()
    for name, shape in controller.shapes.items():
        n = int(np.prod(shape))
        parts[name], at = mu[at : at + n].view(shape), at + n
    found, loss = [], 0.0
    for string, advantage in zip(strings, advantages, strict=True):
        h = c = torch.zeros(1, parts["recurrent"].shape[0])
        token, log_p, entropy, offset = 0, 0.0, 0.0, 1
        for i, choice in enumerate(string):
            x = parts["embedding"][token : token + 1]
            zero = torch.zeros_like(parts["bias"])
            h, c = torch.lstm_cell(x, (h, c), parts["input"].T, parts["recurrent"].T, parts["bias"], zero)
            logits = CLIP * torch.tanh((h @ parts[f"head arm{i}"] + parts[f"offset arm{i}"]) / TEMPERATURE)
            q = torch.distributions.Categorical(logits=logits[0])
            log_p, entropy = log_p + q.log_prob(torch.tensor(choice)), entropy + q.entropy()
            token, offset = offset + choice, offset + space.n
        found.append(float(log_p.detach()))
        loss = loss - (advantage * log_p + 1e-3 * entropy) / len(strings)
    loss.backward()
    return found, mu.grad


def test_without_noise_curiosity_and_replay_it_is_reinforce():
    space = Arms(4, 3)
    controller = Controller(space, seed=1, curiosity=0.0, self_imitation=None)
    with torch.no_grad():
        controller.rho.fill_(-40.0)
    controller._remember_posterior()
    strings, rewards = [(0, 1, 2), (3, 3, 0), (1, 2, 2)], [0.9, 0.1, 0.4]
    controller.baseline = 0.3
    expected, gradient = twin(controller, space, strings, [r - 0.3 for r in rewards])
    log_p = [float(controller.log_prob(s, controller.weights(k))[0].detach()) for k, s in enumerate(strings)]
    np.testing.assert_allclose(log_p, expected, atol=1e-5)
    controller._policy_loss(strings, rewards, 0).backward()
    np.testing.assert_allclose(controller.mu.grad.numpy(), gradient.numpy(), atol=1e-5)
    assert np.abs(gradient.numpy()).max() > 1e-3


def test_information_gain_is_the_divergence_of_a_small_step():
    controller = Controller(Arms(5, 2), seed=0)
    (d_mu, d_rho), gain = controller.natural_step((1, 3), 0.7, 0)
    # the step scaled until it is small beside the weights' deviation; the gain is quadratic in it
    scale = float(0.02 / max((d_mu / 0.02).abs().max(), d_rho.abs().max()))
    mu, rho = controller.mu.detach().double(), controller.rho.detach().double()
    exact = gaussian_kl(mu + scale * d_mu.double(), rho + scale * d_rho.double(), mu, rho)
    assert gain > 0
    assert float(exact) == pytest.approx(gain * scale**2, rel=0.05)
    assert controller.natural_step((1, 3), 0.0, 0)[1] == 0.0


def test_information_gain_falls_when_an_episode_repeats():
    controller = Controller(Arms(6, 2), seed=0, curiosity=0.0, self_imitation=None)
    controller.baseline = 0.0
    gains = [controller.update([(2, 4)] * 5, [1.0] * 5) for _ in range(30)]
    assert np.mean(gains[-3:]) < 0.2 * np.mean(gains[:3])
    assert np.min(gains) >= 0


def test_imitation_is_silent_at_and_under_the_baseline():
    controller = Controller(Arms(), seed=0)
    controller.baseline = 0.5
    for reward in (0.2, 0.5):
        loss = controller.imitation_loss((3,), reward, controller.weights(0))
        assert float(loss.detach()) == 0.0
        gradient = torch.autograd.grad(loss, controller.mu)[0]
        assert not gradient.any()
    loss = controller.imitation_loss((3,), 0.9, controller.weights(0))
    assert torch.autograd.grad(loss, controller.mu)[0].any()


def updates_until_sure(self_imitation, seed):
    controller = Controller(Arms(8), seed=seed, curiosity=0.0, self_imitation=self_imitation)
    controller.update([(3,), (0,), (1,), (2,), (4,)], [1.0, 0.0, 0.0, 0.0, 0.0])  # the good arm, found once
    for k in range(1, 150):
        strings = [controller.sample(controller.episodes + i) for i in range(5)]
        controller.update(strings, [float(s == (3,)) for s in strings])
        if float(controller.log_prob((3,), controller.weights(None))[0].detach().exp()) > 0.9:
            return k
    return 150


def test_replay_learns_a_good_arm_in_fewer_updates():
    with_replay = [updates_until_sure("advantage", s) for s in range(4)]
    without = [updates_until_sure(None, s) for s in range(4)]
    assert np.mean(with_replay) < np.mean(without)
    assert max(with_replay) < 150


def test_the_buffer_holds_the_best_true_rewards_once_each():
    controller = Controller(Arms(8, 2), seed=0, curiosity=5.0)
    rng = np.random.default_rng(0)
    seen = {}
    for _ in range(12):
        strings = [tuple(int(c) for c in rng.integers(0, 8, 2)) for _ in range(5)]
        rewards = [s[0] / 10 + s[1] / 100 for s in strings]
        seen |= dict(zip(strings, rewards, strict=True))
        controller.update(strings, rewards)
    kept = controller.buffer()
    assert kept == sorted(seen.items(), key=lambda i: -i[1])[:20]


def test_the_density_ratio_prefers_what_the_buffer_holds():
    controller = Controller(Arms(8), seed=0, self_imitation="js")
    for k in range(6):
        strings = [(int(i % 8),) for i in range(5 * k, 5 * k + 5)]
        controller.update(strings, [float(s[0]) for s in strings])
    controller.strings += [(0,)] * 20
    controller.rewards += [0.0] * 20
    ratio = controller._log_ratio([(7,), (0,)])
    assert ratio[0] > 0 > ratio[1]
    assert np.abs(ratio).max() <= 2.0


def finds_the_better_hill(curiosity, seed, n=10):
    """Two coupled decisions: 0.6 with either at 0; 1.0 with both at the last arm, where one of them alone gives 0."""
    controller = Controller(Arms(n, 2), seed=seed, curiosity=curiosity, self_imitation=None)
    for _ in range(40):
        strings = [controller.sample(controller.episodes + i) for i in range(5)]
        if (n - 1, n - 1) in strings:
            return True
        rewards = [0.6 if 0 in s else 0.0 if n - 1 in s else 0.3 for s in strings]
        controller.update(strings, rewards)
    return False


def test_curiosity_leaves_a_local_optimum_more_often():
    # A weight of 1 instead of the default 0.05 shows the mechanism over few seeds; over 120 other seeds it was
    # 111 against 97.
    curious = sum(finds_the_better_hill(1.0, s) for s in range(10))
    plain = sum(finds_the_better_hill(0.0, s) for s in range(10))
    assert curious > plain, (curious, plain)


def test_a_restored_controller_goes_on_as_if_nothing_happened():
    space = Arms(5, 2)
    one, two = Controller(space, seed=3), Controller(space, seed=3)
    strings = [(0, 1), (1, 1), (4, 2), (3, 3), (2, 0)]
    one.update(strings, [0.1, 0.5, 0.9, 0.3, 0.2])
    two.load_state(*one.state())
    for controller in (one, two):
        controller.update(strings, [0.2, 0.4, 0.8, 0.3, 0.1], 0.5)
    np.testing.assert_array_equal(one.mu.detach().numpy(), two.mu.detach().numpy())
    assert one.sample(10) == two.sample(10)
    assert one.baseline == two.baseline
