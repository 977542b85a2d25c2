"""A trained network of AutoOD: a dictionary of strings and float64 arrays, which NumPy (torch for images) scores.

The score is that of the network's definition of an outlier: the error of the rebuilt row, the squared distance to a
centre or to the nearest of several, or the negative log-density under a Gaussian mixture in the latent space.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logsumexp

from skerry.core.errors import MissingExtra

__all__ = ["column_terms", "energy", "latent", "score"]

BLOCK = 256  # rows scored at once; the last block is padded, so that a row's score does not depend on its batch
NEGATIVE_SLOPE = 0.01

_NUMPY = {
    "linear": lambda a: a,
    "relu": lambda a: np.maximum(a, 0.0),
    "relu6": lambda a: np.clip(a, 0.0, 6.0),
    "leaky_relu": lambda a: np.where(a > 0, a, NEGATIVE_SLOPE * a),
    "elu": lambda a: np.where(a > 0, a, np.expm1(np.minimum(a, 0.0))),
    "sigmoid": expit,
    "tanh": np.tanh,
    "softplus": lambda a: np.logaddexp(0.0, a),
}


def _apply(blocks, x):
    for b in blocks:
        if "kernel" in b:
            x = _convolve(b, x)
            continue
        a = x @ b["weight"]
        if b["bias"] is not None:
            a = a + b["bias"]
        if b["norm"] == "layer":
            a = (a - a.mean(1, keepdims=True)) / np.sqrt(a.var(1, keepdims=True) + 1e-5)
        elif b["norm"] == "batch":
            a = (a - b["mean"]) / b["deviation"]
        if b["scale"] is not None:
            a = a * b["scale"] + b["shift"]
        a = _NUMPY[b["activation"]](a)
        x = a + x if b["skip"] else a
    return x


def _convolve(b: dict[str, Any], x: NDArray) -> NDArray[np.float64]:
    """Apply a convolution in torch, in float32, on one thread."""
    try:
        import torch
    except ImportError:  # a saved model, loaded where there is no torch
        raise MissingExtra("torch", "deep") from None

    from skerry.detect.tabular.autood_blocks import EPSILON, apply_block

    made = {k: torch.from_numpy(v.astype(np.float32)) if isinstance(v, np.ndarray) else v for k, v in b.items()}
    moments = (made["mean"], made["deviation"] ** 2 - EPSILON) if b["norm"] == "batch" else None
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums in one order, whatever the machine
    try:
        with torch.no_grad():
            rows = torch.from_numpy(x.astype(np.float32))
            return apply_block(made | {"dropout": 0.0}, rows, False, moments).numpy().astype(np.float64)
    finally:
        torch.set_num_threads(threads)


def _ssim(net: dict[str, Any], x: NDArray) -> NDArray[np.float64]:
    import torch

    from skerry.detect.tabular.autood_blocks import ssim_terms

    rebuilt = _apply(net["decoder"], _apply(net["encoder"], x))
    unit = [torch.from_numpy((v - net["low"]) / net["span"]) for v in (x, rebuilt)]
    return ssim_terms(*unit, net["encoder"][0]["before"]).numpy()


def _per_block(function, z: NDArray, width: int) -> NDArray[np.float64]:
    out = np.empty((len(z), width))
    block = np.zeros((BLOCK, z.shape[1]))
    for at in range(0, len(z), BLOCK):
        m = min(BLOCK, len(z) - at)
        block[:m], block[m:] = z[at : at + m], 0.0
        out[at : at + m] = function(block)[:m]
    return out


def latent(net: dict[str, Any], z: NDArray) -> NDArray[np.float64]:
    """Return the latent rows, shape (n, latent)."""
    return _per_block(lambda x: _apply(net["encoder"], x), z, net["encoder"][-1]["weight"].shape[1])


def column_terms(net: dict[str, Any], z: NDArray) -> NDArray[np.float64]:
    """Return the distance of every cell to its rebuilt self, (n, d); rows sum to the l1, squared l2 or SSIM score."""
    if net["distance"] == "ssim":
        return _per_block(lambda x: _ssim(net, x), z, z.shape[1])
    gap = _per_block(lambda x: x - _apply(net["decoder"], _apply(net["encoder"], x)), z, z.shape[1])
    return np.abs(gap) if net["distance"] == "l1" else gap**2


def score(net: dict[str, Any], z: NDArray) -> NDArray[np.float64]:
    """Return the scores of standardised rows, shape (n,), higher = more anomalous."""
    kind = net["definition"]
    if kind == "reconstruction":
        s = column_terms(net, z).sum(1)
        return np.sqrt(s) if net["distance"] == "l21" else s
    f = latent(net, z)
    if kind in ("centroid", "cluster"):
        return np.min([((f - c) ** 2).sum(1) for c in net["centres"]], axis=0)
    return energy(f, net["shares"], net["means"], net["factors"])


def energy(f: NDArray, shares: NDArray, means: NDArray, factors: NDArray) -> NDArray[np.float64]:
    """Return ``-log sum_k phi_k N(f; mu_k, L_k L_k^T)``, shape (n,)."""
    from scipy.linalg import solve_triangular

    logs = []
    for share, mean, factor in zip(shares, means, factors, strict=True):
        # the inverse factor is tiny, and a product in blocks keeps a row free of its batch
        inverse = solve_triangular(factor, np.eye(len(mean)), lower=True).T
        white = _per_block(lambda x, a=inverse: x @ a, f - mean, len(mean))
        log_det = 2 * np.log(np.diag(factor)).sum()
        logs.append(np.log(share) - 0.5 * ((white**2).sum(1) + log_det + len(mean) * np.log(2 * np.pi)))
    return -logsumexp(logs, axis=0)
