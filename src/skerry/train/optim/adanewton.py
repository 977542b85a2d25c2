"""AdaNewton: Newton-Schulz coefficients fitted to the singular values that matrices of one shape have (ROOT, 2025).

After division by the Frobenius norm the singular values of an m x n matrix lie in a range that depends on m and n, so
no triple suits all. With ``f(s) = a s + b s^3 + c s^5`` and ``F`` its T-fold composition, the fit minimises the mean
(or the largest) ``(F(s) - 1)^2`` over sampled spectra. The paper's optimiser is not published; here it is Levenberg and
Marquardt's, from several starts, which finds errors far below those of gradient descent from Muon's triple. A triple
counts only if ``F`` maps [0, 1], where every normalised spectrum lies, into [0, 1.5]: trained momenta are not random.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import least_squares

from skerry.core.errors import DataError, ParameterError
from skerry.core.files import atomic_write, cache_folder

__all__ = ["OBJECTIVES", "Error", "error", "fit", "spectrum"]

OBJECTIVES = ("mse", "minimax")

Triple = tuple[float, float, float]
Float = NDArray[np.float64]

_MUON: Triple = (3.4445, -4.7750, 2.0315)
_STARTS: tuple[Triple, ...] = (_MUON, (3.0, -4.0, 1.8), (2.9, -3.1, 1.2), (2.5, -2.5, 1.0), (2.0, -1.5, 0.5))
_BOUND = 1.5
_POWERS = (2, 6, 20, 60)  # of the residuals, towards the largest alone
_POINTS = 1024  # singular values, or quantiles of them, that a fit looks at
_LARGE = 1024  # shorter sides beyond this take the limit law in place of decompositions
_memory: dict[str, Triple] = {}


class Error(NamedTuple):
    """How far singular values end from 1.

    Attributes
    ----------
    mse, max : float
        The mean and the largest of ``(F(s) - 1)^2``.
    q05 : float
        The 5 % quantile of ``F(s)``: small singular values of square matrices cannot reach 1 in five steps.
    """

    mse: float
    max: float
    q05: float


def spectrum(
    m: int, n: int, samples: int | None = None, seed: int = 0, momenta: Sequence[ArrayLike] | ArrayLike | None = None
) -> Float:
    """Return singular values of Gaussian m x n matrices divided by their Frobenius norm.

    Parameters
    ----------
    m, n : int
        In any order. If the shorter side is above 1,024, the values are quantiles of the Marchenko-Pastur law.
    samples : int, optional
        Matrices to draw; by default 16, or as many fewer as still give 1,024 values, but 2 at least. With ``momenta``,
        three for each of them instead.
    seed : int, default 0
    momenta : sequence of array of shape (m, n), optional
        Real matrices, whose singular values are added: one part real, three parts random.

    Returns
    -------
    ndarray of float64
        Of ``min(m, n)`` values for each matrix.

    Raises
    ------
    ParameterError
        If a size or ``samples`` is below 1, or a momentum has another shape.

    Examples
    --------
    >>> s = spectrum(8, 32, samples=2)
    >>> s.shape, bool(abs((s**2).sum() - 2) < 1e-12)
    ((16,), True)
    """
    rows, cols = min(m, n), max(m, n)
    if samples is None:
        samples = max(2, min(16, 1024 // max(1, rows)))
    if rows < 1 or samples < 1:
        raise ParameterError(f"m, n, samples are {m}, {n}, {samples}: give 1 or more")
    real = [np.asarray(g, np.float64) for g in momenta] if momenta is not None else []
    for g in real:
        if sorted(g.shape) != [rows, cols]:
            raise ParameterError(f"momenta: a matrix of shape {g.shape} among those for {m} x {n}")
    samples = 3 * len(real) or samples
    rng = np.random.default_rng(seed)
    if rows > _LARGE:
        values = [_limit_law(rows, cols)] * max(1, len(real))
    else:
        values = [_singular_values(rng.standard_normal((rows, cols))) for _ in range(samples)]
    return np.concatenate([*values, *(_singular_values(g) for g in real if np.any(g))])


def fit(
    m: int,
    n: int,
    steps: int = 5,
    objective: str = "mse",
    samples: int | None = None,
    seed: int = 0,
    momenta: Sequence[ArrayLike] | ArrayLike | None = None,
    cache: str | Path | None = "auto",
) -> Triple:
    """Return ``(a, b, c)`` for m x n matrices.

    Parameters
    ----------
    m, n : int
    steps : int, default 5
        Newton-Schulz steps that the triple will be used for.
    objective : {"mse", "minimax"}, default "mse"
        The mean, or the largest, of ``(F(s) - 1)^2``.
    samples, seed, momenta
        Of :func:`spectrum`. Fits with ``momenta`` are not cached.
    cache : path or None, default "auto"
        JSON file of earlier fits; ``"auto"`` is ``skerry/adanewton.json`` in the user's cache folder, ``None`` keeps
        them in memory only. A file that cannot be read or written is passed over.

    Returns
    -------
    (float, float, float)
        Rounded to five decimals. Muon's triple if no better one keeps ``F`` within bounds.

    Raises
    ------
    ParameterError
        If ``objective`` is unknown, or a number below 1.

    Examples
    --------
    >>> a, b, c = fit(64, 128, cache=None)
    >>> error(64, 128, (a, b, c)).mse < error(64, 128, (3.4445, -4.7750, 2.0315)).mse / 1000
    True
    """
    if objective not in OBJECTIVES:
        raise ParameterError(f"objective is {objective!r}: give one of {', '.join(OBJECTIVES)}")
    if steps < 1:
        raise ParameterError(f"steps is {steps}: give 1 or more")
    if momenta is not None:
        return _solve(spectrum(m, n, samples, seed, momenta), steps, objective)
    key = f"{min(m, n)}x{max(m, n)}, {steps} steps, {objective}, {samples or 'usual'} samples, seed {seed}"
    path = _cache_file(cache)
    found = _memory.get(key) or _load(path).get(key)
    if found is None:
        found = _solve(spectrum(m, n, samples, seed), steps, objective)
    _memory[key] = found
    if path is not None and key not in (known := _load(path)):
        with suppress(DataError, OSError):  # a read-only home must not stop a training run
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as file:
                file.write(json.dumps(known | {key: found}, indent=1).encode())
    return found


def error(
    m: int, n: int, coefficients: Triple, steps: int = 5, samples: int | None = None, seed: int = 1,
    momenta: Sequence[ArrayLike] | ArrayLike | None = None,
) -> Error:  # fmt: skip
    """Return the error of a triple on m x n matrices, by default others than those that :func:`fit` saw.

    Parameters
    ----------
    m, n : int
    coefficients : (float, float, float)
    steps, samples, seed, momenta
        As for :func:`fit`.

    Returns
    -------
    Error
        ``(mse, max, q05)``.

    Examples
    --------
    >>> f"{error(256, 256, (3.4445, -4.7750, 2.0315), samples=2).mse:.3f}"
    '0.044'
    """
    values = _compose(np.asarray(coefficients), spectrum(m, n, samples, seed, momenta), steps)
    square = (values - 1) ** 2
    return Error(float(square.mean()), float(square.max()), float(np.quantile(values, 0.05)))


def _singular_values(g: Float) -> Float:
    wide = g if g.shape[0] <= g.shape[1] else g.T
    wide = wide / np.linalg.norm(wide)
    return np.sqrt(np.maximum(np.linalg.eigvalsh(wide @ wide.T), 0))


def _limit_law(rows: int, cols: int) -> Float:
    """Return quantiles of the Marchenko-Pastur law as singular values of a normalised matrix."""
    ratio = rows / cols
    low, high = (1 - ratio**0.5) ** 2, (1 + ratio**0.5) ** 2
    # In the angle the density has no square-root ends, so that a plain sum is accurate.
    angle = (np.arange(200_000) + 0.5) * np.pi / 200_000
    eigen = (low + high) / 2 - (high - low) / 2 * np.cos(angle)
    mass = np.cumsum(np.sin(angle) ** 2 / eigen)
    wanted = (np.arange(2048) + 0.5) / 2048
    return np.sqrt(np.interp(wanted, mass / mass[-1], eigen) / rows)


def _compose(t: Float, s: Float, steps: int) -> Float:
    for _ in range(steps):
        square = s * s
        s = s * (t[0] + square * (t[1] + square * t[2]))
    return s


def _slopes(t: Float, s: Float, steps: int) -> Float:
    """Return the derivatives of F(s) by a, b and c, shape (len(s), 3)."""
    total = np.zeros((len(s), 3))
    for _ in range(steps):
        square = s * s
        inner = t[0] + square * (3 * t[1] + 5 * square * t[2])
        total = total * inner[:, None] + np.stack([s, s * square, s * square * square], axis=1)
        s = s * (t[0] + square * (t[1] + square * t[2]))
    return total


def _solve(s: Float, steps: int, objective: str) -> Triple:
    if len(s) > _POINTS:
        s = np.quantile(s, np.linspace(0, 1, _POINTS))
    grid = np.concatenate([np.linspace(0, 1, 2001), np.geomspace(1e-8, 1, 500)])
    best, least = _MUON, _loss(np.array(_MUON), s, steps, objective)
    for start in _STARTS:
        t = np.array(start)
        for power in _POWERS if objective == "minimax" else _POWERS[:1]:
            t = _descend(t, s, steps, power)
            rounded = np.round(t, 5)
            reached = _loss(rounded, s, steps, objective)
            if reached < least:
                image = _compose(rounded, grid, steps)
                if image.min() >= 0 and image.max() <= _BOUND:
                    best, least = tuple(rounded.tolist()), reached
    return best


def _descend(t: Float, s: Float, steps: int, power: int) -> Float:
    """Minimise the mean of ``|F(s) - 1| ** power``, and of what F exceeds its bounds by on [0, 1]."""
    half, n, room = power / 2, len(s), np.linspace(0, 1, 200)
    points = np.concatenate([s, room])
    largest = float(np.abs(np.clip(_compose(t, s, steps) - 1, -1e3, 1e3)).max())
    size = largest if power > 2 and largest > 0 else 1.0  # so that powers neither vanish nor overflow

    def parts(t: Float) -> tuple[Float, Float]:
        image = np.clip(_compose(t, points, steps), -1e3, 1e3)
        off = (image[:n] - 1) / size
        return off, np.clip(image[n:] - _BOUND + 0.02, 0, None) + np.clip(image[n:], None, 0)

    def residuals(t: Float) -> Float:
        off, over = parts(t)
        return np.concatenate([np.sign(off) * np.abs(off) ** half, over * np.sqrt(n)])

    def jacobian(t: Float) -> Float:
        off, over = parts(t)
        weights = np.concatenate([half / size * np.abs(off) ** (half - 1), (over != 0) * np.sqrt(n)])
        return weights[:, None] * np.clip(_slopes(t, points, steps), -1e9, 1e9)

    with np.errstate(over="ignore", invalid="ignore"):
        try:
            found = least_squares(residuals, t, jac=jacobian, method="lm", max_nfev=200).x
        except ValueError:  # left the region where F is finite
            return t
    return found if np.all(np.isfinite(found)) else t


def _loss(t: Float, s: Float, steps: int, objective: str) -> float:
    with np.errstate(over="ignore", invalid="ignore"):
        square = (_compose(t, s, steps) - 1) ** 2
    value = float(square.max() if objective == "minimax" else square.mean())
    return value if np.isfinite(value) else np.inf


def _cache_file(cache: str | Path | None) -> Path | None:
    if cache is None:
        return None
    if str(cache) != "auto":
        return Path(cache)
    return cache_folder() / "adanewton.json"


def _load(path: Path | None) -> dict[str, Triple]:
    """Return the fits in a cache file; entries that are not three finite numbers are passed over."""
    if path is None:
        return {}
    try:
        raw = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    good = {}
    for key, value in raw.items() if isinstance(raw, dict) else ():
        if isinstance(value, list) and len(value) == 3 and all(isinstance(v, float) and abs(v) < 100 for v in value):
            good[key] = tuple(value)
    return good
