"""A recurrent controller whose weights are a distribution, for searches over strings of choices (AutoOD, 2020).

It writes strings with weights drawn anew for each, learns from their rewards by REINFORCE, is paid for choices that
teach it something (information gain, as in Houthooft et al., 2016) and imitates its best past strings (Oh et al., 2018;
``"js"`` after Gangwani et al., 2019). Sizes and schedules are decisions of ours: the paper's are not known to us.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.nn.functional import softplus

__all__ = ["Controller"]

HIDDEN, EMBEDDING, SIGMA = 64, 32, 0.02
TEMPERATURE, CLIP = 1.5, 2.5  # of the logits: CLIP * tanh(logit / TEMPERATURE)
LEARNING_RATE, ENTROPY, DECAY = 3e-3, 1e-3, 0.9
STEP = 0.01  # the natural step whose divergence is the information gain
BUFFER, REPLAYS, JS_WEIGHT, WINDOW = 20, 4, 0.5, 10


class Controller:
    """One-layer LSTM with fully factorised Gaussian weights ``mu + log(1 + exp(rho)) * noise``.

    Parameters
    ----------
    space : object
        ``kinds`` maps each kind of decision to its number of options; ``next(prefix)`` returns the next kind and the
        mask of its legal options, or None at the end of a string.
    seed : int, default 0
        Every draw is keyed by it and by the number of the episode.
    curiosity : float >= 0, default 0.05
        Weight of the scaled information gain, in standard deviations of the rewards; falls to 0 at 80 % of the budget.
    self_imitation : {"advantage", "js", None}, default "advantage"
        Replay of the 20 best strings where they beat the baseline; or a reward shaped by the log density ratio of these
        and the recent strings; or neither.

    Notes
    -----
    The evidence bound adds KL(q || last posterior) / N. Each update is one step from the last posterior, where that
    term has gradient zero; it is reported by :meth:`divergence` and does not hold back the replay steps, whose target
    is the buffer and not the posterior.

    Examples
    --------
    >>> class Coin:
    ...     kinds = {"side": 2}
    ...     def next(self, prefix):
    ...         return None if prefix else ("side", np.ones(2, dtype=bool))
    >>> Controller(Coin(), seed=0).sample(0) in {(0,), (1,)}
    True
    """

    def __init__(self, space: Any, seed: int = 0, curiosity: float = 0.05, self_imitation: str | None = "advantage"):
        self.space, self.seed = space, int(seed)
        self.curiosity, self.self_imitation = curiosity, self_imitation
        self._offset, total = {}, 1  # token 0 opens a string
        for kind, n in space.kinds.items():
            self._offset[kind], total = total, total + n
        self.shapes = {
            "embedding": (total, EMBEDDING),
            "input": (EMBEDDING, 4 * HIDDEN),
            "recurrent": (HIDDEN, 4 * HIDDEN),
            "bias": (4 * HIDDEN,),
        }
        for kind, n in space.kinds.items():
            self.shapes[f"head {kind}"] = (HIDDEN, n)
            self.shapes[f"offset {kind}"] = (n,)
        size = sum(int(np.prod(s)) for s in self.shapes.values())
        start = np.random.default_rng([self.seed, 1]).uniform(-0.1, 0.1, size)
        self.mu = torch.tensor(start, dtype=torch.float32, requires_grad=True)
        self.rho = torch.full((size,), float(np.log(np.expm1(SIGMA))), requires_grad=True)
        self.optimiser = torch.optim.Adam([self.mu, self.rho], lr=LEARNING_RATE)
        self._remember_posterior()
        self.baseline: float | None = None
        self.episodes, self.gains, self.rewards, self.strings = 0, [], [], []

    # ---- strings ----------------------------------------------------------------------------------------------
    def weights(self, episode: int | None) -> torch.Tensor:
        """Return the weights of an episode, shape (p,), float32; of None, their means."""
        if episode is None:
            return self.mu
        noise = np.random.default_rng([self.seed, 2, episode]).standard_normal(self.mu.numel(), dtype=np.float32)
        return self.mu + softplus(self.rho) * torch.from_numpy(noise)

    def sample(self, episode: int) -> tuple[int, ...]:
        """Return a string, written with weights drawn once for the whole of it."""
        rng = np.random.default_rng([self.seed, 3, episode])
        with torch.no_grad():
            return self._write(self.weights(episode), rng=rng)[0]

    def log_prob(self, string, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the log-probability of a string and the summed entropy of its decisions, both scalars."""
        _, log_p, entropy = self._write(weights, string=string)
        return log_p, entropy

    def _write(self, weights, string=None, rng=None):
        parts, at = {}, 0
        for name, shape in self.shapes.items():
            n = int(np.prod(shape))
            parts[name], at = weights[at : at + n].view(shape), at + n
        h = c = torch.zeros(HIDDEN)
        token, written, log_p, entropy = 0, [], torch.zeros(()), torch.zeros(())
        while (step := self.space.next(tuple(written))) is not None:
            kind, legal = step
            gates = parts["embedding"][token] @ parts["input"] + h @ parts["recurrent"] + parts["bias"]
            i, f, g, o = gates.chunk(4)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            logits = CLIP * torch.tanh((h @ parts[f"head {kind}"] + parts[f"offset {kind}"]) / TEMPERATURE)
            logits = torch.where(torch.from_numpy(legal), logits, -1e9)
            log_q = logits.log_softmax(0)
            q = log_q.exp()
            if string is None:
                p = q.double().numpy()
                choice = int(rng.choice(len(p), p=p / p.sum()))
            else:
                choice = int(string[len(written)])
            log_p = log_p + log_q[choice]
            entropy = entropy - (q * log_q).sum()
            written.append(choice)
            token = self._offset[kind] + choice
        return tuple(written), log_p, entropy

    # ---- what an episode teaches ------------------------------------------------------------------------------
    def natural_step(self, string, advantage: float, episode: int, step: float = STEP):
        """Return one natural-gradient step on an episode's loss, and its information gain.

        Returns
        -------
        (Tensor, Tensor), float
            Steps of ``mu`` and ``rho``, and ``0.5 step^2 sum(grad^2 / H)``, the second-order form of
            KL(q(mu', rho') || q(mu, rho)) with H the Fisher information of a diagonal Gaussian.
        """
        loss = -self.log_prob(string, self.weights(episode))[0] * float(advantage)
        grads = torch.autograd.grad(loss, [self.mu, self.rho])
        with torch.no_grad():
            s2 = softplus(self.rho) ** 2
            curvature = (1 / s2, 2 * torch.sigmoid(self.rho) ** 2 / s2)
            gain = 0.5 * step**2 * sum(float((g**2 / h).sum()) for g, h in zip(grads, curvature, strict=True))
            return tuple(-step * g / h for g, h in zip(grads, curvature, strict=True)), gain

    def divergence(self) -> torch.Tensor:
        """Return KL(q || last posterior), a scalar."""
        return gaussian_kl(self.mu, self.rho, *self._prior)

    def _remember_posterior(self) -> None:
        self._prior = (self.mu.detach().clone(), self.rho.detach().clone())

    # ---- learning ---------------------------------------------------------------------------------------------
    def update(self, strings, rewards, progress: float = 0.0) -> list[float]:
        """Learn from the next episodes, in their order; return their information gains.

        Parameters
        ----------
        strings : list of tuple of int
        rewards : list of float
            True rewards; the buffer holds these, never those with curiosity.
        progress : float in [0, 1], default 0
            Share of the budget that is spent.
        """
        first = self.episodes
        if self.baseline is None:
            self.baseline = float(np.mean(rewards))
        gains, paid = [], []
        spread = float(np.std([*self.rewards, *rewards]))
        eta = self.curiosity * spread * max(0.0, 1.0 - progress / 0.8)
        for k, (string, reward) in enumerate(zip(strings, rewards, strict=True)):
            gain = self.natural_step(string, reward - self.baseline, first + k)[1]
            gains.append(gain)
            self.gains = [*self.gains, gain][-WINDOW:]
            scale = float(np.median(self.gains))
            paid.append(reward + (eta * gain / scale if scale > 0 else 0.0))
        if self.self_imitation == "js":
            paid = list(np.array(paid) + JS_WEIGHT * spread * self._log_ratio(strings))
        self._step(self._policy_loss(strings, paid, first))
        for reward in paid:
            self.baseline = DECAY * self.baseline + (1 - DECAY) * float(reward)
        self.episodes += len(strings)
        self.strings += [tuple(s) for s in strings]
        self.rewards += [float(r) for r in rewards]
        if self.self_imitation == "advantage":
            self._replay()
        self._remember_posterior()
        return gains

    def _policy_loss(self, strings, paid, first: int) -> torch.Tensor:
        loss = self.divergence() / (first + len(strings))
        for k, (string, reward) in enumerate(zip(strings, paid, strict=True)):
            log_p, entropy = self.log_prob(string, self.weights(first + k))
            loss = loss - ((reward - self.baseline) * log_p + ENTROPY * entropy) / len(strings)
        return loss

    def buffer(self) -> list[tuple[tuple[int, ...], float]]:
        """Return the best distinct strings with their best reward, best first."""
        best: dict[tuple[int, ...], float] = {}
        for string, reward in zip(self.strings, self.rewards, strict=True):
            best[string] = max(reward, best.get(string, -np.inf))
        return sorted(best.items(), key=lambda item: -item[1])[:BUFFER]

    def imitation_loss(self, string, reward: float, weights: torch.Tensor) -> torch.Tensor:
        """Return ``-log pi(a) (r - b)_+ + 0.01 * 0.5 (r - b)_+^2``: zero unless the reward beats the baseline."""
        gap = max(0.0, reward - (self.baseline or 0.0))
        return -self.log_prob(string, weights)[0] * gap + 0.005 * gap**2

    def _replay(self) -> None:
        kept = self.buffer()
        rng = np.random.default_rng([self.seed, 4, self.episodes])
        p = np.arange(len(kept), 0, -1) / (len(kept) * (len(kept) + 1) / 2)
        for k in range(REPLAYS):
            string, reward = kept[rng.choice(len(kept), p=p)]
            if reward > self.baseline:  # otherwise nothing is imitated, and Adam's momentum must not act either
                self._step(self.imitation_loss(string, reward, self.weights(1_000_000 + REPLAYS * self.episodes + k)))

    def _log_ratio(self, strings) -> np.ndarray:
        """Return log density ratios buffer : recent strings, from a logistic regression, held within ±2."""
        from sklearn.linear_model import LogisticRegression

        good, recent = [s for s, _ in self.buffer()], self.strings[-BUFFER:]
        if len(set(recent) | set(good)) < 4:
            return np.zeros(len(strings))
        labels = np.r_[np.ones(len(good)), np.zeros(len(recent))]
        model = LogisticRegression(class_weight="balanced").fit(self._one_hot([*good, *recent]), labels)
        return np.clip(model.decision_function(self._one_hot(strings)), -2.0, 2.0)

    def _one_hot(self, strings) -> np.ndarray:
        places, widest = 64, max(self.space.kinds.values())
        out = np.zeros((len(strings), places, widest))
        for row, string in enumerate(strings):
            for at, choice in enumerate(string[:places]):
                out[row, at, choice] = 1.0
        return out.reshape(len(strings), -1)

    def _step(self, loss: torch.Tensor) -> None:
        self.optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([self.mu, self.rho], 1.0)
        self.optimiser.step()

    # ---- state, for a search that was interrupted ---------------------------------------------------------------
    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Return all that was learned as arrays and as JSON-ready data."""
        arrays = {"mu": self.mu.detach().numpy().copy(), "rho": self.rho.detach().numpy().copy()}
        for name, tensor in (("mu", self.mu), ("rho", self.rho)):
            for key, value in self.optimiser.state.get(tensor, {}).items():
                arrays[f"adam {name} {key}"] = value.numpy().copy()
        plain = {
            "baseline": self.baseline,
            "episodes": self.episodes,
            "gains": self.gains,
            "rewards": self.rewards,
            "strings": [list(s) for s in self.strings],
        }
        return arrays, plain

    def load_state(self, arrays: dict[str, np.ndarray], plain: dict[str, Any]) -> None:
        """Take up what :meth:`state` returned."""
        with torch.no_grad():
            self.mu.copy_(torch.from_numpy(arrays["mu"]))
            self.rho.copy_(torch.from_numpy(arrays["rho"]))
        for name, tensor in (("mu", self.mu), ("rho", self.rho)):
            head = f"adam {name} "
            moments = {k[len(head) :]: torch.tensor(v) for k, v in arrays.items() if k.startswith(head)}
            if moments:
                self.optimiser.state[tensor] = moments
        self.baseline, self.episodes = plain["baseline"], plain["episodes"]
        self.gains, self.rewards = list(plain["gains"]), list(plain["rewards"])
        self.strings = [tuple(s) for s in plain["strings"]]
        self._remember_posterior()


def gaussian_kl(mu, rho, mu0, rho0) -> torch.Tensor:
    """Return KL(N(mu, softplus(rho)^2) || N(mu0, softplus(rho0)^2)), summed over weights."""
    s, s0 = softplus(rho), softplus(rho0)
    return (s0.log() - s.log() + (s**2 + (mu - mu0) ** 2) / (2 * s0**2) - 0.5).sum()
