"""Covariance of the rows of a cluster, relative to the noise: random effects and correlation, never inverted densely.

``Psi_i = R_i(correlation) + Z_i D Z_i'``, with ``D = L L'`` unstructured and ``R_i`` the identity, first-order
autoregression in the order of the rows, compound symmetry, or ``I + h K_i`` for given kinship. Everything a fit needs
is a whitening ``W_i`` with ``W_i' W_i = Psi_i^-1`` and ``ln det Psi_i``; both cost O(rows) for a few random effects.
After K. Yang, "Maximum Tsallis entropy distributions ..." (thesis, McGill, 2025), where ``Psi`` is given.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from skerry.core.errors import DataError

__all__ = ["CORRELATIONS", "ClusterCovariance"]

CORRELATIONS = ("ar1", "compound_symmetry", "kinship")
_LARGEST = 0.98  # correlation
Array = NDArray[np.float64]


class ClusterCovariance:
    """The structure of ``Psi`` for rows that are sorted by cluster.

    Its parameters ``theta`` are the correlation (or ``ln h``), if any, then the rows of the lower triangle of ``L``,
    its diagonal as logarithms.

    Parameters
    ----------
    sizes : ndarray of shape (g,), int
        Rows of each cluster.
    Z : ndarray of shape (n, q)
        Columns of the random effects; q may be 0.
    correlation : {"ar1", "compound_symmetry", "kinship"} or None
    kinship : ndarray of shape (n, n), optional
        In the order of the rows; only its blocks within clusters are read.

    Raises
    ------
    DataError
        If the kinship is not symmetric and positive semidefinite.

    Examples
    --------
    >>> covariance = ClusterCovariance(np.array([2, 3]), np.ones((5, 1)), None)
    >>> covariance.dense(np.log([2.0]))[0]
    array([[5., 4.],
           [4., 5.]])
    """

    def __init__(self, sizes, Z, correlation=None, kinship=None):
        self.sizes, self.correlation = sizes, correlation
        self.starts = np.r_[0, np.cumsum(sizes)[:-1]]
        self.code = np.repeat(np.arange(len(sizes)), sizes)
        self.q = Z.shape[1]
        self.rows, self.columns = np.tril_indices(self.q)
        self.first = np.zeros(len(Z), dtype=bool)
        self.first[self.starts] = True
        self.values, self.vectors, self.blocks = np.zeros(len(Z)), [], []
        if correlation == "kinship":
            for start, size in zip(self.starts, sizes, strict=True):
                block = kinship[start : start + size, start : start + size]
                value, vector = np.linalg.eigh(block)
                far = np.abs(block - block.T).max(initial=0.0)
                if far > 1e-8 or value[0] < -1e-6 * max(1.0, value[-1]):
                    raise DataError("kinship must be symmetric and positive semidefinite within every cluster")
                self.values[start : start + size] = np.maximum(value, 0.0)
                self.vectors.append(vector)
                self.blocks.append(block)
        self.Z = self.prepare(Z)
        lowest = -_LARGEST / max(1, int(sizes.max()) - 1)
        self._low = {None: [], "ar1": [-_LARGEST], "compound_symmetry": [lowest], "kinship": [-12.0]}[correlation]
        self._high = [] if correlation is None else [8.0 if correlation == "kinship" else _LARGEST]

    @property
    def bounds(self) -> list[tuple[float, float]]:
        """Bounds of ``theta``."""
        triangle = [(-7.0, 5.0) if i == j else (-50.0, 50.0) for i, j in zip(self.rows, self.columns, strict=True)]
        return [*zip(self._low, self._high, strict=True), *triangle]

    def start(self) -> Array:
        """Return a ``theta`` to begin from: little correlation, random effects a third as wide as the noise."""
        first = {None: [], "ar1": [0.1], "compound_symmetry": [0.05], "kinship": [-2.0]}[self.correlation]
        return np.r_[first, np.where(self.rows == self.columns, -1.0, 0.0)]

    def without_effects(self, theta: Array) -> Array:
        """Return ``theta`` with the random effects switched off (``D = 0``)."""
        out = theta.copy()
        split = len(theta) - len(self.rows)
        out[split:] = np.where(self.rows == self.columns, -np.inf, 0.0)
        return out

    def factor(self, theta: Array) -> Array:
        """Return ``L``, shape (q, q)."""
        L = np.zeros((self.q, self.q))
        L[self.rows, self.columns] = theta[len(theta) - len(self.rows) :]
        diagonal = np.arange(self.q)
        L[diagonal, diagonal] = np.exp(L[diagonal, diagonal])
        return L

    def correlation_value(self, theta: Array) -> float:
        """Return the correlation, or ``h`` for kinship; 0.0 without either."""
        if self.correlation is None:
            return 0.0
        return float(np.exp(theta[0]) if self.correlation == "kinship" else theta[0])

    def prepare(self, M: Array) -> Array:
        """Return ``M`` (n, ...) in the basis in which the other methods expect it (kinship: its eigenvectors)."""
        if self.correlation != "kinship":
            return M
        out = np.empty_like(M)
        for start, vector in zip(self.starts, self.vectors, strict=True):
            part = slice(start, start + len(vector))
            out[part] = vector.T @ M[part]
        return out

    def sums(self, M: Array) -> Array:
        """Return sums of the rows of each cluster, shape (g, ...)."""
        return np.add.reduceat(M, self.starts, axis=0)

    def _decorrelate(self, theta: Array, M: Array) -> Array:
        """Whiten by ``R``."""
        if self.correlation is None:
            return M
        rho = self.correlation_value(theta)
        shape = (-1,) + (1,) * (M.ndim - 1)
        if self.correlation == "kinship":
            return M / np.sqrt(1.0 + rho * self.values).reshape(shape)
        if self.correlation == "ar1":
            out = M.copy()
            inner = np.flatnonzero(~self.first)
            out[inner] = (M[inner] - rho * M[inner - 1]) / np.sqrt(1.0 - rho**2)
            return out
        inside = 1.0 / np.sqrt(1.0 - rho)
        change = (1.0 / np.sqrt(1.0 + (self.sizes - 1) * rho) - inside) / self.sizes
        return inside * M + (change.reshape(shape) * self.sums(M))[self.code]

    def _log_det_correlation(self, theta: Array) -> Array:
        rho = self.correlation_value(theta)
        if self.correlation is None:
            return np.zeros(len(self.sizes))
        if self.correlation == "kinship":
            return self.sums(np.log1p(rho * self.values))
        if self.correlation == "ar1":
            return (self.sizes - 1) * np.log1p(-(rho**2))
        return (self.sizes - 1) * np.log1p(-rho) + np.log1p((self.sizes - 1) * rho)

    def _gram(self, Z: Array) -> Array:
        return np.stack([self.sums(Z[:, [j]] * Z) for j in range(self.q)], axis=1)

    def distances(self, theta: Array, r: Array) -> tuple[Array, Array]:
        """Return ``r_i' Psi_i^-1 r_i`` and ``ln det Psi_i`` of every cluster, for ``r`` of shape (n,)."""
        r = self._decorrelate(theta, r)
        square, log_det = self.sums(r * r), self._log_det_correlation(theta)
        if self.q == 0:
            return square, log_det
        Z, L = self._decorrelate(theta, self.Z), self.factor(theta)
        inner = np.eye(self.q) + L.T @ self._gram(Z) @ L
        along = self.sums(Z * r[:, None]) @ L
        square = square - (along * np.linalg.solve(inner, along[:, :, None])[:, :, 0]).sum(axis=1)
        return np.maximum(square, 0.0), log_det + np.linalg.slogdet(inner)[1]

    def whiten(self, theta: Array, M: Array) -> Array:
        """Return ``W_i M_i`` stacked, for ``M`` of shape (n, c)."""
        M = self._decorrelate(theta, M)
        if self.q == 0:
            return M
        Z, L = self._decorrelate(theta, self.Z), self.factor(theta)
        # (I + U U')^-1/2 = I + U V f(S) V' U' with U = Z L, U'U = V S V', f(s) = ((1 + s)^-1/2 - 1) / s
        S, V = np.linalg.eigh(L.T @ self._gram(Z) @ L)
        root = np.sqrt(1.0 + np.maximum(S, 0.0))
        V = L @ V
        middle = (V * (-1.0 / (root * (1.0 + root)))[:, None, :]) @ V.transpose(0, 2, 1)
        along = np.stack([self.sums(Z[:, [j]] * M) for j in range(self.q)], axis=1)
        shift = middle @ along
        out = M.copy()
        for j in range(self.q):
            out += Z[:, [j]] * shift[self.code, j]
        return out

    def effects(self, theta: Array, r: Array) -> Array:
        """Return the predicted random effects ``D Z_i' Psi_i^-1 r_i``, shape (g, q)."""
        if self.q == 0:
            return np.zeros((len(self.sizes), 0))
        both = self.whiten(theta, np.column_stack([self.Z, r]))
        L = self.factor(theta)
        return self.sums(both[:, :-1] * both[:, -1:]) @ (L @ L.T)

    def dense(self, theta: Array) -> list[Array]:
        """Return ``Psi_i`` of every cluster, in the order and basis of the rows that came in."""
        L, rho, out = self.factor(theta), self.correlation_value(theta), []
        for i, (start, size) in enumerate(zip(self.starts, self.sizes, strict=True)):
            Z = self.Z[start : start + size]
            if self.correlation == "kinship":
                R, Z = np.eye(size) + rho * self.blocks[i], self.vectors[i] @ Z
            elif self.correlation == "ar1":
                R = rho ** np.abs(np.subtract.outer(np.arange(size), np.arange(size)))
            else:
                R = np.eye(size) + rho * (1.0 - np.eye(size))
            out.append(R + Z @ L @ L.T @ Z.T)
        return out
