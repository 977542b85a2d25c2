"""Weight outliers: a row or column of a linear layer with one entry far above its mean.

``column ratio = max_i |W_ij| / (mean_i |W_ij| + 1e-8)``, rows likewise; a module's score is its largest ratio.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

__all__ = ["WeightOutliers", "weight_outliers"]

EPS = 1e-8
FLAG = 5.0  # times the mean score of the other modules (ours: the paper's code has no cut)


@dataclass(frozen=True)
class WeightOutliers:
    """One linear layer.

    Attributes
    ----------
    score : float
        Largest ratio over rows and columns.
    row, column : int
        Where the largest row and column ratio are.
    top_columns : tuple of (int, float)
        The three largest column ratios.
    median_ratio : float
        Median column ratio.
    flagged : bool
        Score above five times the mean score of the other modules.
    """

    score: float
    row: int
    column: int
    top_columns: tuple[tuple[int, float], ...]
    median_ratio: float
    flagged: bool = False


def weight_outliers(model: nn.Module) -> Mapping[str, WeightOutliers]:
    """Return the weight outliers of every linear layer, by name; scaling a weight changes nothing.

    Examples
    --------
    >>> import torch
    >>> layer = torch.nn.Sequential(torch.nn.Linear(8, 8))
    >>> layer[0].weight.data[2, 5] = 50.0
    >>> weight_outliers(layer)["0"].top_columns[0][0]
    5
    """
    found = {}
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        size = module.weight.detach().float().abs()
        scale = size.mean().clamp(min=1e-30)
        size = size / scale
        columns = size.amax(0) / (size.mean(0) + EPS)
        rows = size.amax(1) / (size.mean(1) + EPS)
        top = columns.topk(min(3, len(columns)))
        found[name] = WeightOutliers(
            score=float(max(columns.max(), rows.max())),
            row=int(rows.argmax()),
            column=int(columns.argmax()),
            top_columns=tuple(zip(top.indices.tolist(), top.values.tolist(), strict=True)),
            median_ratio=float(columns.median()),
        )
    total = sum(w.score for w in found.values())
    return {
        name: WeightOutliers(
            w.score,
            w.row,
            w.column,
            w.top_columns,
            w.median_ratio,
            len(found) > 1 and w.score > FLAG * (total - w.score) / (len(found) - 1),
        )
        for name, w in found.items()
    }
