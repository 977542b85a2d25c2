"""A trainable square projection after the embedding and before the head, merged into both once training is done.

Park et al., "Outlier-Safe Pre-Training", ACL 2025 (arXiv 2506.19697), where it is called EmbProj: embeddings must be
trained with Adam, whose coordinate-wise steps favour single channels; the projection, trained with Muon, mixes them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from skerry.core.errors import ModelError
from skerry.train.nn.replace import set_module

__all__ = ["EmbeddingProjection", "ProjectedEmbedding", "ProjectedHead", "absorb_embedding_projection"]


class EmbeddingProjection(nn.Linear):
    """A linear layer (dim, dim) without bias that starts orthogonal; give it to Muon, not to AdamW.

    Parameters
    ----------
    dim : int
    device, dtype : optional

    Examples
    --------
    >>> import torch
    >>> P = EmbeddingProjection(4).weight
    >>> torch.allclose(P @ P.T, torch.eye(4), atol=1e-6)
    True
    """

    def __init__(self, dim: int, device: torch.device | None = None, dtype: torch.dtype | None = None) -> None:
        super().__init__(dim, dim, bias=False, device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        """Draw an orthogonal matrix."""
        nn.init.orthogonal_(self.weight)

    @torch.no_grad()
    def absorb_into_(self, module: nn.Embedding | nn.Linear) -> None:
        """Multiply the projection into the embedding that precedes it (E P') or the linear layer that follows (W P).

        Raises
        ------
        ModelError
            If the module is of another kind, or an embedding renormalises its rows (``max_norm``) at each look-up.
        """
        p = self.weight.float() if self.weight.dtype.itemsize < 4 else self.weight
        old = module.weight.to(p.dtype)
        if isinstance(module, nn.Embedding):
            if module.max_norm is not None:
                raise ModelError("an embedding with max_norm rescales its rows at each call: it cannot be merged")
            new = old @ p.T
        elif isinstance(module, nn.Linear):
            new = old @ p
        else:
            raise ModelError(f"a projection merges into Embedding or Linear, not into {type(module).__name__}")
        module.weight.data = new.to(module.weight.dtype)


def _projection(module: nn.Embedding | nn.Linear, dim: int) -> EmbeddingProjection:
    return EmbeddingProjection(dim, device=module.weight.device, dtype=module.weight.dtype)


class ProjectedEmbedding(nn.Module):
    """An embedding followed by its projection: ``P1(E[tokens])``.

    Parameters
    ----------
    embedding : torch.nn.Embedding
        Wrapped as it is.
    projection : EmbeddingProjection, optional
        Default: a new one of the embedding's width, device and dtype.

    Examples
    --------
    >>> import torch
    >>> ProjectedEmbedding(torch.nn.Embedding(10, 4))(torch.tensor([[1, 2]])).shape
    torch.Size([1, 2, 4])
    """

    def __init__(self, embedding: nn.Embedding, projection: EmbeddingProjection | None = None) -> None:
        super().__init__()
        self.embedding = embedding
        self.projection = projection or _projection(embedding, embedding.embedding_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return (..., dim) for integer tokens (...)."""
        return self.projection(self.embedding(tokens))


class ProjectedHead(nn.Module):
    """A head behind its projection: ``head(P2(x))``.

    Parameters
    ----------
    head : torch.nn.Linear
        Wrapped as it is.
    projection : EmbeddingProjection, optional
        Default: a new one of the head's input width, device and dtype.

    Examples
    --------
    >>> import torch
    >>> ProjectedHead(torch.nn.Linear(4, 10))(torch.zeros(2, 4)).shape
    torch.Size([2, 10])
    """

    def __init__(self, head: nn.Linear, projection: EmbeddingProjection | None = None) -> None:
        super().__init__()
        self.projection = projection or _projection(head, head.in_features)
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., n_classes) for hidden states (..., dim)."""
        return self.head(self.projection(x))


def absorb_embedding_projection(model: nn.Module) -> nn.Module:
    """Merge every :class:`ProjectedEmbedding` and :class:`ProjectedHead` of a trained model, in place.

    The outputs stay and the architecture is the plain one again: ``nn.Embedding`` and ``nn.Linear`` at the same names.

    Parameters
    ----------
    model : Module
        Not itself one of the two; embedding and head must not be tied.

    Returns
    -------
    Module
        The same object.

    Raises
    ------
    ModelError
        If there is nothing to merge, or a weight is shared with another module: merging would change that one too.

    Examples
    --------
    >>> import torch
    >>> net = torch.nn.Sequential(ProjectedEmbedding(torch.nn.Embedding(10, 4)), torch.nn.Linear(4, 2))
    >>> tokens = torch.arange(10)
    >>> before = net(tokens)
    >>> torch.allclose(absorb_embedding_projection(net)(tokens), before, atol=1e-6), net[0]
    (True, Embedding(10, 4))
    """
    found = {n: m for n, m in model.named_modules() if isinstance(m, ProjectedEmbedding | ProjectedHead)}
    if not found or "" in found:
        raise ModelError(f"no ProjectedEmbedding or ProjectedHead inside {type(model).__name__}: nothing to merge")
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    for module in found.values():
        inner = module.embedding if isinstance(module, ProjectedEmbedding) else module.head
        for parameter in (inner.weight, module.projection.weight):
            if len(names[id(parameter)]) > 1:
                raise ModelError(f"tied weights cannot be merged: {' and '.join(names[id(parameter)])} are one tensor")
    for name, module in found.items():
        inner = module.embedding if isinstance(module, ProjectedEmbedding) else module.head
        module.projection.absorb_into_(inner)
        set_module(model, name, inner)
    return model
