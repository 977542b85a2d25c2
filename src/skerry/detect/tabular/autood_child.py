"""Training the networks that AutoOD tries: one design on one table, under four ideas of what an outlier is.

*reconstruction*: far from its rebuilt self. *centroid*: far from a centre of the latent space (Deep SVDD, soft
boundary). *density*: improbable under a Gaussian mixture in the latent space (DAGMM). *cluster*: far from every
cluster of the latent space (DEC). What comes out is plain arrays (:mod:`skerry.detect.tabular.autood_network`).
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["WeightPool", "soft_assignment", "target_assignment", "train_child"]

BATCH, LEARNING_RATE, PATIENCE = 256, 1e-3, 4
NU = 0.1  # of the soft boundary
COMPONENTS, CLUSTERS, JITTER = 4, 4, 1e-6
ENERGY_WEIGHT, DIAGONAL_WEIGHT = 0.1, 0.005
CALIBRATION_ROWS = 8192  # that set centres, mixtures and the statistics of batch normalisation
CALIBRATION_IMAGES = 512  # of which every pixel counts there
PLAIN = {"norm": "none", "activation": "linear", "dropout": 0.0, "skip": False}
CONVOLUTION = ("kernel", "before", "after", "pool", "pool_size")


class WeightPool:
    """First weights of every layer, by (side, layer, inputs, outputs), shared by the children of one search.

    Parameters
    ----------
    seed : int
        A key's first weights depend on it and on the key, not on the order in which keys are asked for.
    share : bool, default True
        Whether a trained child leaves its weights to the next.
    """

    def __init__(self, seed: int, share: bool = True) -> None:
        self.seed, self.share = seed, share
        self.arrays: dict[str, NDArray[np.float32]] = {}

    def take(self, side: str, layer: int, inputs: int, outputs: int) -> tuple[str, NDArray[np.float32]]:
        """Return the key and the weights of a layer, shape (inputs, outputs)."""
        key = f"{side} {layer} {inputs} {outputs}"
        if key in self.arrays:
            return key, self.arrays[key]
        rng = np.random.default_rng([self.seed, 5, layer, inputs, outputs, *key.split()[0].encode()])
        bound = np.sqrt(6.0 / (inputs + outputs))
        return key, rng.uniform(-bound, bound, (inputs, outputs)).astype(np.float32)

    def give(self, found: dict[str, NDArray[np.float32]]) -> None:
        """Keep the weights of a trained child, if they are finite."""
        if self.share and all(np.isfinite(w).all() for w in found.values()):
            self.arrays.update(found)


def train_child(design: dict[str, Any], z: NDArray, pool: WeightPool, epochs: int, seed: int, device: str = "cpu"):
    """Train one design on a standardised table.

    Parameters
    ----------
    design : dict
        As from :meth:`SearchSpace.decode`.
    z : array of shape (n, d)
    pool : WeightPool
    epochs : int
        At most; training stops after 4 epochs without a lower loss.
    seed : int
        Of the order of rows, dropout, and clusters.
    device : str, default "cpu"

    Returns
    -------
    dict or None
        The network as strings and float64 arrays, or None where training gave something that is not finite.
    """
    import torch

    threads, state = torch.get_num_threads(), torch.get_rng_state()
    torch.set_num_threads(1)  # sums in one order, whatever the machine
    torch.manual_seed(seed)
    try:
        return _Trainer(design, z, pool, seed, device).run(epochs)
    except (FloatingPointError, np.linalg.LinAlgError):
        return None
    finally:
        torch.set_num_threads(threads)
        torch.set_rng_state(state)


class _Trainer:
    def __init__(self, design, z, pool, seed, device) -> None:
        import torch

        from skerry.detect.tabular import autood_blocks

        self.torch_layers = autood_blocks
        self.design, self.pool, self.seed = design, pool, seed
        self.kind = design["definition"]
        self.table = torch.tensor(z, dtype=torch.float32, device=device)
        self.rng = np.random.default_rng([seed, 6])
        n_cal = min(len(z), CALIBRATION_IMAGES if "image_shape" in design else CALIBRATION_ROWS)
        self.sample = self.table[np.sort(self.rng.choice(len(z), n_cal, replace=False))]
        self.low, self.span = float(z.min()), max(float(np.ptp(z)), 1e-12)
        self.device = device
        self.parameters, self.shared, self.moments = [], {}, {}
        (self._build_convolutions if "image_shape" in design else self._build_rows)()
        if self.kind == "density":
            bound = design["latent"] ** -0.5
            self.head = [
                self._tensor(self.rng.uniform(-bound, bound, (design["latent"], 10))),
                self._tensor(np.zeros(10)),
                self._tensor(self.rng.uniform(-0.3, 0.3, (10, COMPONENTS))),
                self._tensor(np.zeros(COMPONENTS)),
            ]

    def _tensor(self, a):
        import torch

        t = torch.tensor(a, dtype=torch.float32, device=self.device, requires_grad=True)
        self.parameters.append(t)
        return t

    def _block(self, side, i, n_in, n_out, layer):
        """Return a block of ``n_in`` by ``n_out`` weights with the choices of ``layer``, or plain linear."""
        biased = self.kind != "centroid"
        key, start = self.pool.take(side, i, n_in, n_out)
        self.shared[key] = weight = self._tensor(start)
        outputs = start.shape[1]
        made = {"weight": weight, "bias": self._tensor(np.zeros(outputs)) if biased else None, **PLAIN}
        made |= {k: v for k, v in (layer or {}).items() if k in PLAIN}
        if made["norm"] != "none" and biased:  # a centroid may have no learned offset on its path
            made |= {"scale": self._tensor(np.ones(outputs)), "shift": self._tensor(np.zeros(outputs))}
        return made

    def _build_rows(self) -> None:
        layers = self.design["layers"]
        sizes = [self.table.shape[1], *(layer["width"] for layer in layers), self.design["latent"]]
        self.encoder = [self._block("encoder", i, *sizes[i : i + 2], layer) for i, layer in enumerate([*layers, None])]
        self.decoder = []
        for i, layer in enumerate([*layers[::-1], None] if self.kind != "centroid" else []):
            made = self._block("decoder", i, *sizes[::-1][i : i + 2], layer)
            made["skip"] = i > 0 and layers[len(layers) - i]["skip"]  # the pair of widths that the encoder skips
            self.decoder.append(made)

    def _build_convolutions(self) -> None:
        from skerry.detect.tabular.autood_image_space import ImageSpace

        space, layers = ImageSpace(self.design["image_shape"]), self.design["layers"]
        sizes = [space._begin()]
        for layer in layers:
            sizes.append(space._after(layer, sizes[-1]))
        flat, latent = int(np.prod(sizes[-1])), self.design["latent"]

        def convolution(side, i, before, after, layer, given):
            k = layer["kernel"]
            made = self._block(f"{side}.{k}", i, before[0] * k * k, after[0], given)
            return made | {"kernel": k, "before": before, "after": after, "pool": "mean", "pool_size": 1}

        self.encoder = []
        for i, layer in enumerate(layers):
            made = convolution("encoder", i, sizes[i], sizes[i + 1], layer, layer)
            self.encoder.append(made | {"pool": layer["pool"], "pool_size": layer["pool_size"]})
        self.encoder.append(self._block("encoder", len(layers), flat, latent, None))
        self.decoder = []
        if self.kind != "centroid":
            self.decoder.append(self._block("decoder", 0, latent, flat, None))
            for i, layer in reversed(list(enumerate(layers))):  # the last one, to the image, is plain linear
                given = layer if i else None
                made = convolution("decoder", len(layers) - i, sizes[i + 1], sizes[i], layer, given)
                self.decoder.append(made)

    def forward(self, blocks, x, train: bool):
        for b in blocks:
            x = self.torch_layers.apply_block(b, x, train, self.moments.get(id(b)))
        return x

    def settle(self):
        """Fix the statistics of batch normalisation on the sample, layer after layer."""
        self.moments = {}
        x = self.sample
        for b in self.encoder + self.decoder:
            if b["norm"] == "batch":
                self.moments[id(b)] = self.torch_layers.batch_moments(b, x)
            x = self.torch_layers.apply_block(b, x, False, self.moments.get(id(b)))

    def run(self, epochs: int):
        import torch

        n = len(self.table)
        optimiser = torch.optim.Adam(self.parameters, lr=LEARNING_RATE)
        self.centre = self.centres = None
        if self.kind == "centroid":
            with torch.no_grad():
                self.settle()
                c = self.forward(self.encoder, self.sample, False).mean(0)
                # a centre at 0 is reached by weights of 0
                self.centre = torch.where(c.abs() < 0.1, torch.where(c < 0, -0.1, 0.1), c)
        warm = (epochs + 2) // 3 if self.kind == "cluster" else 0
        best, stale = np.inf, 0
        for epoch in range(epochs):
            if self.kind == "cluster" and epoch == warm:
                self.place_clusters(optimiser)
                best = np.inf
            radius = self.radius() if self.kind == "centroid" else None
            order = torch.from_numpy(self.rng.permutation(n))
            total = 0.0
            starts = list(range(0, n, BATCH))
            if len(starts) > 1 and n - starts[-1] < 2:
                starts.pop()  # one row has no batch statistics
            for at in starts:
                loss = self.loss(self.table[order[at : at + BATCH]], radius)
                if not torch.isfinite(loss):
                    raise FloatingPointError
                optimiser.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(self.parameters, 10.0)
                optimiser.step()
                total += float(loss.detach())
            stale = 0 if total < best - 1e-4 * abs(best) or not np.isfinite(best) else stale + 1
            best = min(best, total)
            if stale >= PATIENCE and epoch >= warm:
                break
        if self.kind == "cluster" and self.centres is None:
            self.place_clusters(optimiser)
        with torch.no_grad():
            self.settle()
            network = self.export()
        if network is not None:
            self.pool.give({k: w.detach().cpu().numpy().copy() for k, w in self.shared.items()})
        return network

    def radius(self):
        import torch

        with torch.no_grad():
            z = self.forward(self.encoder, self.sample, True)
            return torch.quantile(((z - self.centre) ** 2).sum(1), 1 - NU)

    def place_clusters(self, optimiser) -> None:
        import torch
        from sklearn.cluster import KMeans
        from threadpoolctl import threadpool_limits

        with torch.no_grad():
            self.settle()
            z = self.forward(self.encoder, self.sample, False).cpu().numpy().astype(np.float64)
        if not np.isfinite(z).all():
            raise FloatingPointError
        k = min(CLUSTERS, len(np.unique(z, axis=0)))  # more would be empty
        with threadpool_limits(1), warnings.catch_warnings():  # on one thread its sums have one order
            warnings.simplefilter("ignore")
            found = KMeans(k, n_init=2, random_state=self.seed).fit(z).cluster_centers_
        self.centres = torch.tensor(found, dtype=torch.float32, device=self.table.device, requires_grad=True)
        self.parameters.append(self.centres)
        optimiser.add_param_group({"params": [self.centres]})

    def loss(self, x, radius):
        import torch

        z = self.forward(self.encoder, x, True)
        if self.kind == "centroid":
            s = ((z - self.centre) ** 2).sum(1)
            return radius + (s - radius).clamp_min(0).mean() / NU
        rebuilt = self.forward(self.decoder, z, True)
        gap = x - rebuilt
        if self.design["distance"] == "ssim":
            unit = [(v - self.low) / self.span for v in (x, rebuilt)]
            loss = self.torch_layers.ssim_terms(*unit, self.encoder[0]["before"]).sum(1).mean()
        elif self.design["distance"] == "l1":
            loss = gap.abs().sum(1).mean()
        elif self.design["distance"] == "l2":
            loss = (gap**2).sum(1).mean()
        else:
            loss = torch.sqrt((gap**2).sum(1) + 1e-12).mean()
        if self.kind == "density":
            weights, means, chol = self.mixture(z)
            energy = _energy(z.double(), weights, means, chol).mean()
            # 1 / diag(Sigma), from its factor
            diagonal = (1 / (chol**2).sum(2)).sum()
            loss = loss + (ENERGY_WEIGHT * energy + DIAGONAL_WEIGHT * diagonal).float()
        elif self.centres is not None:
            q = soft_assignment(z, self.centres)
            p = target_assignment(q.detach())
            loss = loss + (p * (p.clamp_min(1e-12).log() - q.clamp_min(1e-12).log())).sum(1).mean()
        return loss

    def mixture(self, z):
        """Return shares, means and Cholesky factors of the mixture, from soft assignments, in double."""
        import torch

        z = z.double()
        w1, b1, w2, b2 = (t.double() for t in self.head)
        gamma = torch.softmax(torch.tanh(z @ w1 + b1) @ w2 + b2, dim=1)
        mass = gamma.sum(0) + 1e-9
        means = (gamma.T @ z) / mass[:, None]
        gap = z[:, None, :] - means
        cov = torch.einsum("nk,nki,nkj->kij", gamma, gap, gap) / mass[:, None, None]
        ridge = JITTER * torch.eye(z.shape[1], dtype=torch.float64, device=z.device)
        chol, info = torch.linalg.cholesky_ex(cov + ridge)
        if info.any() or not torch.isfinite(chol).all():
            raise FloatingPointError
        return mass / mass.sum(), means, chol

    def export(self):
        def blocks(side):
            out = []
            for b in side:
                made = {k: b[k] for k in ("norm", "activation", "skip", *CONVOLUTION) if k in b}
                for k in ("weight", "bias", "scale", "shift"):
                    t = b.get(k)
                    made[k] = None if t is None else t.detach().cpu().numpy().astype(np.float64)
                if b["norm"] == "batch":
                    mean, var = (t.cpu().numpy().astype(np.float64) for t in self.moments[id(b)])
                    made |= {"mean": mean, "deviation": np.sqrt(var + 1e-5)}
                out.append(made)
            return out

        net = {
            "definition": self.kind,
            "distance": self.design["distance"],
            "encoder": blocks(self.encoder),
            "decoder": blocks(self.decoder) if self.kind == "reconstruction" else [],
        }
        if self.design["distance"] == "ssim":
            net |= {"low": self.low, "span": self.span}
        if self.kind == "centroid":
            net["centres"] = self.centre[None].cpu().numpy().astype(np.float64)
        elif self.kind == "cluster":
            net["centres"] = self.centres.detach().cpu().numpy().astype(np.float64)
        elif self.kind == "density":
            found = self.mixture(self.forward(self.encoder, self.sample, False))
            net |= dict(zip(("shares", "means", "factors"), (t.detach().cpu().numpy() for t in found), strict=True))
        arrays = [v for b in net["encoder"] + net["decoder"] for v in b.values() if isinstance(v, np.ndarray)]
        arrays += [v for v in net.values() if isinstance(v, np.ndarray)]
        return net if all(np.isfinite(a).all() for a in arrays) else None


def _energy(z, shares, means, chol):
    import torch

    gap = (z[:, None, :] - means).transpose(0, 1).transpose(1, 2)  # (k, latent, n)
    white = torch.linalg.solve_triangular(chol, gap, upper=False)
    log_det = 2 * torch.log(torch.diagonal(chol, dim1=1, dim2=2)).sum(1)
    log_n = -0.5 * ((white**2).sum(1).T + log_det + z.shape[1] * np.log(2 * np.pi))
    return -torch.logsumexp(shares.log() + log_n, dim=1)


def soft_assignment(z, centres):
    """Return Student-t assignments of (n, latent) to (k, latent), rows summing to 1 (torch tensors)."""
    q = 1 / (1 + ((z[:, None, :] - centres) ** 2).sum(2))
    return q / q.sum(1, keepdim=True)


def target_assignment(q):
    """Return the sharpened target ``q^2 / column mass``, rows summing to 1."""
    p = q**2 / q.sum(0)
    return p / p.sum(1, keepdim=True)
