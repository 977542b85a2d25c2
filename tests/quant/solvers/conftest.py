"""Layers to solve: correlated inputs, a few weights of unusual size."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

from skerry.quant.numerics import AffineGrid
from skerry.quant.statistics import LayerStatistics


@dataclass(frozen=True)
class FixedGrid(AffineGrid):
    """A grid of step 0.5 whose levels at 2 bits are -0.5, 0, 0.5 and 1."""

    def fit(self, W, *, low=None, high=None):
        return torch.full((len(W), 1), 0.5), torch.full((len(W), 1), -1, dtype=torch.int32)


@dataclass
class Layer:
    W: torch.Tensor
    X: torch.Tensor
    statistics: LayerStatistics

    @property
    def gram(self) -> torch.Tensor:
        return self.statistics.gram

    def error(self, V: torch.Tensor) -> float:
        E = self.W.double() - V.double()
        return float((E @ self.gram * E).sum())


def layer(q: int = 32, p: int = 48, *, tokens: int = 300, seed: int = 0, outliers: int = 0, diagonal: bool = False):
    g = torch.Generator().manual_seed(seed)
    W = torch.randn(q, p, generator=g)
    if outliers:
        W.view(-1)[torch.randperm(q * p, generator=g)[:outliers]] *= 10.0
    X = torch.randn(tokens, p, generator=g)
    if not diagonal:
        X = X @ (torch.randn(p, p, generator=g) / p**0.5 + 0.3 * torch.eye(p))
    statistics = LayerStatistics.of(X)
    if diagonal:
        statistics.gram = torch.diag(torch.rand(p, generator=g, dtype=torch.float64) + 0.1)
    return Layer(W, X, statistics)


@pytest.fixture(scope="session")
def make_layer() -> Callable[..., Layer]:
    return layer


@pytest.fixture
def golden() -> tuple[Layer, AffineGrid]:
    """The brief's small problem: one row, levels -0.5, 0, 0.5, 1."""
    gram = torch.tensor([[5.0, 0, 2, 0], [0, 3, -1, -1], [2, -1, 3, 0], [0, -1, 0, 3]], dtype=torch.float64)
    W = torch.tensor([[-0.25, 0.3, 0.75, 0.9]])
    return Layer(W, torch.empty(0), LayerStatistics(tokens=4, gram=gram)), FixedGrid(bits=2, symmetric=False)
