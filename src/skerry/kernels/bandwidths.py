"""Bandwidths of one-dimensional kernel densities, compiled: rules of thumb and the improved Sheather-Jones rule.

Z. Botev, J. Grotowski, D. Kroese, "Kernel density estimation via diffusion", Ann. Stat. 38, 2010: the squared
bandwidth t solves t = xi gamma^[5](t), where the roughness of the density's derivatives comes from the cosine
transform of binned data. No normal reference enters, so two far modes do not widen the kernel.
"""

from __future__ import annotations

import numpy as np

from skerry.kernels.compiled import njit

__all__ = ["FIXED", "PLUG_IN", "REACH", "SPREAD", "bandwidth", "sheather_jones"]

REACH = 5.0**0.5  # support of the Epanechnikov kernel in standard deviations
SPREAD, FIXED, PLUG_IN = 0, 1, 2  # value * spread * n^-1/5; value; value * Sheather-Jones
_CELLS = 1024  # a power of two
_STAGES = 7
_NEGLIGIBLE = 50.0  # exp(-50) of a coefficient


@njit(cache=True, nogil=True)
def bandwidth(z, spread, rule, value):
    """Standard deviation of the kernel for the values ``z``; the plug-in rule falls back on Silverman's."""
    if rule == FIXED:
        return value
    if rule == PLUG_IN:
        h = sheather_jones(z)
        # rounded values look like spikes: a width far below any rule of thumb would only count ties
        return value * (max(h, 1e-2 * spread) if h > 0.0 else (4.0 / 3.0) ** 0.2 * spread * z.size ** (-0.2))
    return value * spread * z.size ** (-0.2)


@njit(cache=True, nogil=True)
def _cosine_transform(x):
    """sum_i x_i cos(pi k (i + 1/2) / n) for k = 0 .. n - 1, by one complex radix-2 transform (Makhoul's order)."""
    n = x.size
    re = np.empty(n)
    im = np.zeros(n)
    for i in range(n // 2):
        re[i] = x[2 * i]
        re[n - 1 - i] = x[2 * i + 1]
    j = 0
    for i in range(1, n):  # bit reversal
        bit = n >> 1
        while j & bit:
            j ^= bit
            bit >>= 1
        j |= bit
        if i < j:
            re[i], re[j] = re[j], re[i]
    size = 2
    while size <= n:
        half = size // 2
        for k in range(half):
            angle = -2.0 * np.pi * k / size
            c, s = np.cos(angle), np.sin(angle)
            for a in range(k, n, size):
                b = a + half
                u = re[b] * c - im[b] * s
                v = re[b] * s + im[b] * c
                re[b] = re[a] - u
                im[b] = im[a] - v
                re[a] += u
                im[a] += v
        size *= 2
    out = np.empty(n)
    for k in range(n):
        angle = -0.5 * np.pi * k / n
        out[k] = re[k] * np.cos(angle) - im[k] * np.sin(angle)
    return out


@njit(cache=True, nogil=True)
def _roughness(energy, order, t):
    """Squared norm of the ``order``-th derivative of the density smoothed by ``t``."""
    total = 0.0
    for k in range(1, energy.size):
        decay = k * k * np.pi**2 * t
        if decay > _NEGLIGIBLE:
            break
        total += float(k) ** (2 * order) * energy[k] * np.exp(-decay)
    return 2.0 * np.pi ** (2 * order) * total


@njit(cache=True, nogil=True)
def _excess(t, energy, n):
    """t - xi gamma^[5](t); negative below the root."""
    f = _roughness(energy, _STAGES, t)
    for s in range(_STAGES - 1, 1, -1):
        if f <= 0.0:
            return 1.0
        odd = 1.0
        for i in range(3, 2 * s, 2):
            odd *= i
        constant = (1.0 + 0.5 ** (s + 0.5)) / 3.0 * odd / np.sqrt(2.0 * np.pi)
        f = _roughness(energy, s, (2.0 * constant / (n * f)) ** (2.0 / (3.0 + 2.0 * s)))
    if f <= 0.0:
        return 1.0
    return t - (2.0 * n * np.sqrt(np.pi) * f) ** (-0.4)


@njit(cache=True, nogil=True)
def sheather_jones(z):
    """Improved Sheather-Jones bandwidth of the finite values ``z``; 0.0 where its equation has no root."""
    low, high = z.min(), z.max()
    if not high > low:
        return 0.0
    margin = 0.1 * (high - low)
    width = high - low + 2.0 * margin
    counts = np.zeros(_CELLS)
    for i in range(z.size):
        counts[min(int((z[i] - low + margin) / width * _CELLS), _CELLS - 1)] += 1.0 / z.size
    energy = _cosine_transform(counts) ** 2
    # ties are one observation: the equation counts distinct values
    ordered = np.sort(z)
    n = 1
    for i in range(1, z.size):
        n += ordered[i] > ordered[i - 1]
    top = 1e-5
    while _excess(top, energy, n) < 0.0:
        top *= 2.0
        if top > 0.1:
            return 0.0
    bottom = 0.5 * top if top > 1e-5 else 0.0
    for _ in range(45):
        middle = 0.5 * (bottom + top)
        if _excess(middle, energy, n) < 0.0:
            bottom = middle
        else:
            top = middle
    return np.sqrt(0.5 * (bottom + top)) * width
