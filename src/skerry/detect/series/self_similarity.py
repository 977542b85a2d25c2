"""The windowed absolute similarity matrix of THEMIS and the four scorers on it (arXiv 2510.03911).

The paper's text names the parts; the equations here are our reading of them, chosen so that each is well defined.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh
from scipy.sparse.linalg import eigsh

__all__ = ["mean_similarity", "similarity_matrix", "spectral_residual", "trimmed_top"]

EPSILON = 1e-8
WHOLE = 1_024  # steps up to which the eigenvalues come from the full reduction


def similarity_matrix(
    E: NDArray[np.float64],
    center: bool = False,
    band: int | None = None,
    reference: NDArray[np.float64] | None = None,
) -> NDArray[np.float64]:
    """Return ``|e_i . e_j|`` of row-normalised embeddings: how much each moment resembles each other.

    Parameters
    ----------
    E : ndarray of shape (L, d)
    center : bool, default False
        Subtract the mean embedding first (that of ``reference`` where it is given): the vectors of a transformer
        share a large direction, and all similarities would be near 1.
    band : int, optional
        Set similarities more than ``band`` steps apart to 0.
    reference : ndarray of shape (m, d), optional
        Embeddings of ordinary moments, compared with as well.

    Returns
    -------
    ndarray of shape (L, L) or (L, L + m), in [0, 1]
        A constant window resembles itself everywhere: all ones.

    >>> similarity_matrix(np.array([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0]]))
    array([[1., 0., 1.],
           [0., 1., 0.],
           [1., 0., 1.]])
    """
    E = np.asarray(E, dtype=np.float64)
    flat = np.ptp(E, axis=0).max(initial=0.0) <= EPSILON * max(np.abs(E).max(initial=0.0), EPSILON)
    if flat and reference is None:
        return np.ones((len(E), len(E)))
    other = E if reference is None else np.concatenate([E, reference])
    if center:
        mean = (E if reference is None else reference).mean(axis=0)
        E, other = E - mean, other - mean
    length = np.linalg.norm(E, axis=1, keepdims=True)
    floor = EPSILON * max(float(np.linalg.norm(other, axis=1).max(initial=0.0)), 1e-290)
    unit = E / np.maximum(length, floor)
    others = other / np.maximum(np.linalg.norm(other, axis=1, keepdims=True), floor)
    S = np.minimum(np.abs(unit @ others.T), 1.0)
    square = S[:, : len(E)]
    square += square.T.copy()
    square /= 2.0  # symmetric to the last bit
    if band is not None:
        steps = np.arange(len(E))
        square[np.abs(steps[:, None] - steps) > band] = 0.0
    return S


def spectral_residual(S: NDArray[np.float64], n_components: int = 5) -> NDArray[np.float64]:
    """Return the length of each row's part outside of the leading eigenvectors of S (singular vectors if it is wide).

    With ``S = U diag(l) U'`` and the k largest ``|l|`` kept, ``r_i = ||S_i - (U_k diag(l_k) U_k')_i||``, computed as
    ``r_i^2 = ||S_i||^2 - sum_k l_k^2 U_ik^2``.
    """
    n = len(S)
    k = min(n_components, n)
    total = np.einsum("ij,ij->i", S, S)
    gram = S if S.shape[1] == n else S @ S.T
    if n <= WHOLE:
        parts = [eigh(gram, subset_by_index=(max(n - k, 0), n - 1))]
        if gram is S and k < n:  # a large negative eigenvalue counts as well
            parts.append(eigh(gram, subset_by_index=(0, min(k, n - k) - 1)))
        values, vectors = (np.concatenate(p, axis=-1) for p in zip(*parts, strict=True))
    else:
        values, vectors = eigsh(gram, k=k, which="LM", v0=np.ones(n))
    order = np.argsort(-np.abs(values), kind="stable")[:k]
    kept = values[order] ** 2 if gram is S else np.maximum(values[order], 0.0)
    rest = total - (vectors[:, order] ** 2) @ kept
    return np.sqrt(np.where(rest > 1e-12 * total, rest, 0.0))


def mean_similarity(S: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return ``1 - mean_j S_ij``."""
    return 1.0 - S.mean(axis=1)


def trimmed_top(
    S: NDArray[np.float64], share: float = 0.1, trim: float = 0.01, exclude: int = 0
) -> NDArray[np.float64]:
    """Return 1 - the mean of each row's largest similarities, the very largest left out.

    Parameters
    ----------
    S : ndarray of shape (L, L) or (L, L + m)
    share : float, default 0.1
        How many similarities are averaged, as a share of L.
    trim : float, default 0.01
        How many of the largest are dropped first: a moment's own neighbourhood.
    exclude : int, default 0
        Moments at most this many steps away do not count: those of an anomaly that lasts resemble each other.
    """
    n, m = S.shape
    if n < 2:
        return np.zeros(n)
    steps = np.arange(n)
    far = np.array(S)
    far[:, :n][np.abs(steps[:, None] - steps) <= exclude] = -1.0
    drop = int(trim * n)
    count = max(1, round(share * n))
    count = min(count, m - 1)
    ranked = -np.sort(-far, axis=1)[:, drop : drop + count]
    valid = ranked >= 0.0
    return 1.0 - np.where(valid, ranked, 0.0).sum(axis=1) / np.maximum(valid.sum(axis=1), 1)
