"""ROOT: Muon with coefficients fitted to each shape and outliers clipped off before the step (2025, arXiv 2511.20626).

``eps`` is the 90 % quantile of ``|U|`` of each momentum matrix; ``O = sign(U) max(|U| - eps, 0)`` is the outlier part,
and only ``B = U - O``, which is ``U`` clamped to ``[-eps, eps]``, is orthogonalized. The momentum itself stays
unclipped. The Newton-Schulz triple of each shape comes from :mod:`skerry.train.optim.adanewton`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from skerry.core.errors import ParameterError, SkerryWarning
from skerry.train.optim import adanewton
from skerry.train.optim.muon import Muon

__all__ = ["OFFICIAL_COEFFICIENTS", "ROOT", "soft_threshold"]

Triple = tuple[float, float, float]

# Of the authors' 1B model, by (shorter side, longer side).
OFFICIAL_COEFFICIENTS: dict[tuple[int, int], Triple] = {
    (2048, 2048): (3.4916, -4.8224, 2.1095),
    (2048, 3072): (3.4509, -4.5790, 1.9325),
    (2048, 8192): (2.9794, -3.6674, 1.6207),
    (2048, 16384): (3.1943, -3.8221, 1.5322),
}
_LIVE = 4  # live momenta of a shape that a refresh looks at


class ROOT(Muon):
    """Muon, robust to heavy-tailed gradients.

    Parameters
    ----------
    params : iterable of Tensor or dict
        Matrices, as for :class:`~skerry.train.optim.Muon`.
    lr : float, default 1e-3
    momentum : float, default 0.95
    weight_decay : float, default 0.1
    adamw_params : iterable of Tensor or dict, optional
        Parameters for AdamW: embeddings, the head, vectors.
    quantile : float, default 0.9
        Of the absolute values of each momentum matrix, above which entries are clipped; 1 clips nothing.
    threshold : float, optional
        A fixed clipping value in place of the quantile.
    coefficients : {"fit", "official", "muon"} or mapping, default "fit"
        Newton-Schulz triples: fitted to each shape when it is first met (a fraction of a second, then cached on disk),
        the authors' four, Muon's, or a mapping of ``(shorter side, longer side)`` to a triple. A shape that the second
        and the fourth lack takes Muon's triple and warns once.
    objective : {"mse", "minimax"}, default "mse"
        Of the fit.
    refresh_every : int, optional
        Fit anew every so many steps, on the spectra of the live momenta and three random matrices for each.
    cache : path or None, default "auto"
        Where fits are kept; ``None`` keeps them in memory only.
    **muon
        ``nesterov``, ``ns_steps``, ``scale``, ``vectors``, ``betas``, ``eps``, ``decay_1d``, ``ns_dtype``,
        ``distribute`` as for Muon.

    Attributes
    ----------
    outlier_fraction_ : dict
        Matrix parameter to the share of its entries that the last step clipped, as a tensor.

    Raises
    ------
    ParameterError
        If ``quantile`` is not in (0, 1], ``threshold`` or ``refresh_every`` is not positive, or a choice is unknown.

    Notes
    -----
    Fits are rounded to five decimals and depend on nothing but the shape (and the live momenta), so that the replicas
    of a distributed run agree without speaking. The authors' code also decays vectors: ``decay_1d=True``.

    Examples
    --------
    >>> import torch
    >>> w = torch.nn.Parameter(torch.zeros(8, 16))
    >>> optimizer = ROOT([w], lr=0.1, cache=None)
    >>> (w * torch.randn(8, 16, generator=torch.Generator().manual_seed(0))).sum().backward()
    >>> optimizer.step()
    >>> f"{optimizer.outlier_fraction_[w]:.3f}"  # 13 of 128 entries
    '0.102'
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        momentum: float = 0.95,
        weight_decay: float = 0.1,
        *,
        adamw_params: Iterable[Tensor] | Iterable[dict[str, Any]] | None = None,
        quantile: float = 0.9,
        threshold: float | None = None,
        coefficients: Literal["fit", "official", "muon"] | Mapping[tuple[int, int], Triple] = "fit",
        objective: Literal["mse", "minimax"] = "mse",
        refresh_every: int | None = None,
        cache: str | Path | None = "auto",
        **muon: Any,
    ) -> None:
        self._own = {
            "quantile": quantile,
            "threshold": threshold,
            "coefficients": coefficients if isinstance(coefficients, str) else dict(coefficients),
            "objective": objective,
            "refresh_every": refresh_every,
            "cache": None if cache is None else str(cache),
        }
        self.outlier_fraction_: dict[Tensor, Tensor] = {}
        super().__init__(params, lr, momentum, weight_decay, adamw_params=adamw_params, **muon)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__.setdefault("outlier_fraction_", {})

    @property
    def coefficients_(self) -> dict[tuple[int, int], Triple]:
        """Shape to the triple in use."""
        return {shape: triple for group in self.param_groups for shape, (triple, _) in group["fitted"].items()}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; its values are checked."""
        # These two are the group's own state, and kept in it so that a checkpoint resumes with the same triples.
        super().add_param_group({"fitted": {}, "age": 0, **param_group})
        _check(self.param_groups[-1])

    def _more_defaults(self) -> dict[str, Any]:
        return self._own

    def _orthogonalized(self, group: dict[str, Any], params: list[Tensor]) -> None:
        super()._orthogonalized(group, params)
        group["age"] += 1

    def _suppress(self, group: dict[str, Any], params: list[Tensor], stack: Tensor) -> Tensor:
        if group["threshold"] is None and group["quantile"] == 1:
            return stack
        flat = stack.flatten(1)
        if group["threshold"] is None:
            eps, fraction = _quantile(flat.abs(), group["quantile"])
        else:
            eps = flat.new_full((len(flat), 1), group["threshold"])
            fraction = (flat.abs() > eps).float().mean(1)
        torch.minimum(torch.maximum(flat, -eps, out=flat), eps, out=flat)
        at = 0
        for p in params:
            depth = stack.shape[0] * p.numel() // stack.numel()
            self.outlier_fraction_[p] = fraction[at : at + depth].mean()
            at += depth
        return stack

    def _coefficients(self, group: dict[str, Any], stack: Tensor) -> Triple:
        rows, cols = stack.shape[-2:]
        shape, fitted = (min(rows, cols), max(rows, cols)), group["fitted"]
        refresh = group["refresh_every"]
        if shape not in fitted or (refresh and group["age"] - fitted[shape][1] >= refresh):
            fitted[shape] = (_choose(group, shape, stack if refresh else None), group["age"])
        return fitted[shape][0]


class SoftThreshold(NamedTuple):
    """A stack of matrices in two parts.

    Attributes
    ----------
    inliers, outliers : Tensor of shape (..., m, n)
        The clamped matrices, and what was cut off; they add up to the input.
    threshold : Tensor of shape (...)
        The clipping value of each matrix.
    """

    inliers: Tensor
    outliers: Tensor
    threshold: Tensor


def soft_threshold(matrices: Tensor, quantile: float = 0.9) -> SoftThreshold:
    """Split matrices into a clamped part and an outlier part, at a quantile of each matrix's absolute values.

    Parameters
    ----------
    matrices : Tensor of shape (..., m, n)
    quantile : float, default 0.9
        In (0, 1]; linear interpolation between order statistics.

    Returns
    -------
    SoftThreshold
        ``(inliers, outliers, threshold)``.

    Raises
    ------
    ParameterError
        If ``quantile`` is out of range or ``matrices`` has fewer than two axes.

    Examples
    --------
    >>> import torch
    >>> u = torch.tensor([[1.0, -2, 3, -4, 5], [-6, 7, -8, 9, -100]])
    >>> inliers, outliers, threshold = soft_threshold(u)
    >>> round(threshold.item(), 3), round(inliers[1, 4].item(), 3), round(outliers[1, 4].item(), 3)
    (18.1, -18.1, -81.9)
    """
    if matrices.ndim < 2:
        raise ParameterError(f"matrices has {matrices.ndim} axes: give (..., m, n)")
    _check_quantile(quantile)
    flat = matrices.detach().reshape(-1, matrices.shape[-2] * matrices.shape[-1])
    eps = _quantile(flat.abs(), quantile)[0].reshape(*matrices.shape[:-2], 1, 1)
    inliers = torch.minimum(torch.maximum(matrices, -eps), eps)
    return SoftThreshold(inliers, matrices - inliers, eps[..., 0, 0])


def _quantile(sizes: Tensor, q: float) -> tuple[Tensor, Tensor]:
    """Return the quantile of each row as a column, and the share of each row above it. ``sizes`` is not negative."""
    n = sizes.shape[1]
    low = min(int(q * (n - 1)), n - 2) if n > 1 else 0
    weight = q * (n - 1) - low
    if sizes.device.type == "cpu" and n > 1:  # a partial sort on the host is twice as fast as kthvalue
        parts = torch.from_numpy(np.partition(sizes.float().numpy(), (low, low + 1), axis=1)[:, low:]).to(sizes)
        top = parts[:, 1:]
        largest = top.amax(1, keepdim=True)
        below, above = parts[:, :1], parts[:, 1:2]
    else:
        top = sizes
        largest = sizes.amax(1, keepdim=True)
        below = sizes.kthvalue(low + 1, 1, keepdim=True).values
        above = sizes.kthvalue(min(low + 2, n), 1, keepdim=True).values
    # A row that is mostly zeros has a quantile of zero; the grain keeps the signs of its few entries, not nothing.
    eps = below + weight * (above - below) + 1e-9 * largest
    return eps, (top > eps).sum(1) / n


def _choose(group: dict[str, Any], shape: tuple[int, int], live: Tensor | None) -> Triple:
    """Return the triple for a shape, fitted or looked up."""
    asked = group["coefficients"]
    if asked == "muon":
        return group["ns_coefficients"]
    if asked == "fit":
        momenta = None if live is None else live[:_LIVE].double().cpu().numpy()
        return adanewton.fit(
            *shape, steps=group["ns_steps"], objective=group["objective"], momenta=momenta, cache=group["cache"]
        )
    table = OFFICIAL_COEFFICIENTS if asked == "official" else asked
    if shape not in table:
        warnings.warn(
            f"no coefficients for matrices of {shape[0]} x {shape[1]}: Muon's are used; coefficients='fit' finds them",
            SkerryWarning,
            stacklevel=2,
        )
        return group["ns_coefficients"]
    return tuple(table[shape])


def _check_quantile(quantile: float) -> None:
    if not 0 < quantile <= 1:
        raise ParameterError(f"quantile is {quantile}: give a number above 0 and at most 1")


def _check(group: dict[str, Any]) -> None:
    _check_quantile(group["quantile"])
    if group["threshold"] is not None and not group["threshold"] > 0:
        raise ParameterError(f"threshold is {group['threshold']}: give a positive number, or None for the quantile")
    asked = group["coefficients"]
    if isinstance(asked, str) and asked not in ("fit", "official", "muon"):
        raise ParameterError(f"coefficients is {asked!r}: give 'fit', 'official', 'muon' or a mapping")
    if group["objective"] not in adanewton.OBJECTIVES:
        raise ParameterError(f"objective is {group['objective']!r}: give one of {', '.join(adanewton.OBJECTIVES)}")
    refresh = group["refresh_every"]
    if refresh is not None and (refresh < 1 or asked != "fit"):
        raise ParameterError(f"refresh_every is {refresh}: give 1 or more, and coefficients='fit'")
