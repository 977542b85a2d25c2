"""Nearest level of a short ascending list, with the tie rule said per boundary: what every table format rounds by."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["boundaries", "nearest_level"]


def boundaries(levels: list[float], ties_up: list[bool]) -> Tensor:
    """Return float32 boundaries between ascending ``levels`` for :func:`nearest_level`.

    Parameters
    ----------
    levels : list of float, n of them, ascending
    ties_up : list of bool, n - 1 of them
        Whether a value halfway between two levels goes to the upper one.

    Examples
    --------
    >>> bounds = boundaries([0.0, 1.0, 2.0], [False, True])  # half to even
    >>> nearest_level(torch.tensor([0.4, 0.5, 1.5, 9.0]), bounds).tolist()
    [0, 0, 2, 2]
    """
    values = torch.tensor(levels, dtype=torch.float64)
    middles = ((values[1:] + values[:-1]) / 2).float()
    above = torch.nextafter(middles, torch.tensor(float("inf")))
    return torch.where(torch.tensor(ties_up), middles, above)


def nearest_level(magnitudes: Tensor, bounds: Tensor) -> Tensor:
    """Return the int32 index of the level nearest to each magnitude (any shape)."""
    return torch.bucketize(magnitudes, bounds.to(magnitudes.device), out_int32=True, right=True)
