"""Series that nobody measured: paths of Gaussian processes whose kernels are drawn and joined at random.

The recipe is KernelSynth of Ansari et al., "Chronos: learning the language of time series", TMLR 2024, appendix A; to
which steps, spikes and level shifts are added, since an encoder that is to notice them must have seen some.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cholesky
from threadpoolctl import threadpool_limits

__all__ = ["disturbed", "drawn_kernel", "gaussian_paths"]

PERIODS = (4, 6, 7, 10, 12, 14, 24, 26, 30, 40, 48, 52, 60, 96, 168, 336, 365, 672, 730)  # steps
MOST_KERNELS = 5
JITTER = 1e-6  # of the mean variance, so that the root exists
LIKELIHOOD = 0.05  # of each kind of disturbance in a series


def _bank(x: NDArray[np.float64]) -> list:
    """Return one function for each kernel of the recipe, of the distances and the places in [0, 1]."""
    apart = np.abs(x[:, None] - x)
    n = len(x)
    bank = [lambda p=p: np.exp(-2.0 * np.sin(np.pi * apart * n / p) ** 2) for p in PERIODS]
    bank += [lambda s=s: s**2 + np.outer(x, x) for s in (0.0, 1.0, 10.0)]
    bank += [lambda s=s: np.exp(-(apart**2) / (2.0 * s**2)) for s in (0.1, 1.0, 10.0)]
    bank += [lambda a=a: (1.0 + apart**2 / (2.0 * a)) ** -a for a in (0.1, 1.0, 10.0)]
    bank += [lambda s=s: s * np.eye(n) for s in (0.1, 1.0)]
    return [*bank, lambda: np.ones((n, n))]


def drawn_kernel(rng: np.random.RandomState, length: int = 1_024) -> NDArray[np.float64]:
    """Return the covariances (length, length) of one to five kernels, each joined to the last by + or x.

    >>> K = drawn_kernel(np.random.RandomState(0), 50)
    >>> bool(np.allclose(K, K.T)), bool(np.linalg.eigvalsh(K).min() > -1e-6 * np.trace(K))
    (True, True)
    """
    bank = _bank(np.linspace(0.0, 1.0, length))
    chosen = rng.randint(len(bank), size=rng.randint(1, MOST_KERNELS + 1))
    K = bank[chosen[0]]()
    for i in chosen[1:]:
        K = K + bank[i]() if rng.rand() < 0.5 else K * bank[i]()
    return K


def gaussian_paths(n_kernels: int, paths: int = 4, length: int = 1_024, random_state: int = 0) -> NDArray[np.float32]:
    """Return ``n_kernels * paths`` series, each with mean 0 and mean absolute value 1.

    Parameters
    ----------
    n_kernels : int
        Kernels drawn; the root of each costs of order ``length ** 3``.
    paths : int, default 4
        Series drawn from each.
    length : int, default 1024
    random_state : int, default 0
        The same number gives the same series on any number of threads.

    Returns
    -------
    ndarray of shape (n_kernels * paths, length), float32

    Examples
    --------
    >>> gaussian_paths(2, paths=3, length=64).shape
    (6, 64)
    """
    rng = np.random.RandomState(random_state)
    out = np.empty((n_kernels, paths, length), dtype=np.float32)
    with threadpool_limits(1, user_api="blas"):
        for i in range(n_kernels):
            K = drawn_kernel(rng, length)
            K[np.diag_indices(length)] += JITTER * max(np.trace(K) / length, 1e-12)
            noise = rng.normal(size=(length, paths))
            try:
                x = cholesky(K, lower=True, overwrite_a=True, check_finite=False) @ noise
            except LinAlgError:  # rounding: take the root of what is positive
                values, vectors = np.linalg.eigh(K)
                x = vectors @ (np.sqrt(np.maximum(values, 0.0))[:, None] * noise)
            x -= x.mean(axis=0)
            scale = np.abs(x).mean(axis=0)
            out[i] = (x / np.where(scale > 0.0, scale, 1.0)).T
    return out.reshape(-1, length)


def disturbed(x: NDArray[np.float32], rng: np.random.RandomState) -> NDArray[np.float32]:
    """Return series (B, L), each with a step, spikes or a shift of the level with a chance of 5 % for each kind."""
    x = x.copy()
    n = x.shape[1]
    for kind in ("step", "spike", "shift"):
        for row in np.flatnonzero(rng.rand(len(x)) < LIKELIHOOD):
            height = rng.normal() * 4.0
            start = rng.randint(n)
            if kind == "step":
                x[row, start : start + rng.randint(4, 65)] += height
            elif kind == "shift":
                x[row, start:] += height
            else:
                at = rng.randint(n, size=rng.randint(1, 6))
                x[row, at] += (rng.normal(size=len(at)) * 6.0).astype(np.float32)
    return x
