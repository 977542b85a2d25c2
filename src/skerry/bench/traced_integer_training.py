"""Fine-tune on traces and decode greedily: with a small decoder of our own, or any causal language model.

The loss is on the response and one end token, as in the paper. The small decoder reads a token per name, sign, digit
and line end, so that digits are never merged.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skerry.core.errors import DataError

if TYPE_CHECKING:
    from skerry.bench.traced_integer import Document

__all__ = ["Decoder", "WordTokenizer", "fine_tune", "generator", "response_losses"]

END = 0


class Tokenizer(Protocol):
    """What the functions here ask of a tokenizer; those of ``transformers`` fit."""

    def encode(self, text: str) -> list[int]: ...
    def decode(self, tokens: list[int]) -> str: ...


class WordTokenizer:
    """A token for every word of some texts, for digits and for the line end; token 0 ends a response.

    Parameters
    ----------
    texts : sequence of str
        Words are what spaces part.

    Examples
    --------
    >>> words = WordTokenizer(["res = 1 2"])
    >>> words.decode(words.encode("res = 2 1\\n"))
    'res = 2 1\\n'
    """

    def __init__(self, texts: Sequence[str]) -> None:
        found = {w for t in texts for w in t.replace("\n", " ").split()} | set("0123456789")
        self.words = ["<end>", "\n", *sorted(found)]
        self._index = {w: i for i, w in enumerate(self.words)}

    def __len__(self) -> int:
        return len(self.words)

    def encode(self, text: str) -> list[int]:
        """Return the tokens.

        Raises
        ------
        DataError
            If a word is unknown.
        """
        try:
            return [self._index[w] for w in text.replace("\n", " \n ").split(" ") if w]
        except KeyError as error:
            raise DataError(f"the word {error} did not occur in the texts that the tokenizer was made from") from None

    def decode(self, tokens: list[int]) -> str:
        """Return the text."""
        return " ".join(self.words[t] for t in tokens).replace(" \n ", "\n").replace(" \n", "\n").replace("\n ", "\n")


class Decoder(nn.Module):
    """A small causal transformer: pre-norm, rotary positions, GELU, untied head.

    Parameters
    ----------
    vocabulary : int
    dim, n_layers, n_heads : int, default 128, 4, 4

    Examples
    --------
    >>> import torch
    >>> Decoder(11, dim=16, n_layers=1, n_heads=2)(torch.zeros(2, 5, dtype=torch.long)).shape
    torch.Size([2, 5, 11])
    """

    def __init__(self, vocabulary: int, dim: int = 128, n_layers: int = 4, n_heads: int = 4) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, dim)
        self.blocks = nn.ModuleList(_Block(dim, n_heads) for _ in range(n_layers))
        self.norm = nn.RMSNorm(dim)
        self.head = nn.Linear(dim, vocabulary, bias=False)
        for name, p in self.named_parameters():
            if p.ndim == 2:
                last = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(
                    p, std=0.02 / math.sqrt(2 * n_layers) if last else 0.02 if "embed" in name else dim**-0.5
                )

    def forward(self, tokens: Tensor, caches: list[list[Tensor]] | None = None) -> Tensor:
        """Return logits (B, T, vocabulary); with ``caches`` (one list per layer) tokens continue what is in them."""
        x = self.embedding(tokens)
        start = caches[0][0].shape[2] if caches and caches[0] else 0
        half = self.blocks[0].head_dim // 2
        angle = torch.arange(start, start + tokens.shape[1], device=x.device)[:, None] * (
            10_000.0 ** (-torch.arange(half, device=x.device) / half)
        )
        turn = angle.cos(), angle.sin()
        for i, block in enumerate(self.blocks):
            x = block(x, turn, None if caches is None else caches[i])
        return self.head(self.norm(x))


class _Block(nn.Module):
    def __init__(self, dim: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads, self.head_dim = n_heads, dim // n_heads
        self.norm1, self.norm2 = nn.RMSNorm(dim), nn.RMSNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        self.up, self.down = nn.Linear(dim, 4 * dim, bias=False), nn.Linear(4 * dim, dim, bias=False)

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor], cache: list[Tensor] | None) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.n_heads, self.head_dim)).permute(2, 0, 3, 1, 4)
        q, k = _rotate(q, *turn), _rotate(k, *turn)
        if cache is not None:
            if cache:
                k, v = torch.cat([cache[0], k], 2), torch.cat([cache[1], v], 2)
            cache[:] = [k, v]
        causal = q.shape[2] == k.shape[2]
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


def _logits(model: nn.Module, tokens: Tensor) -> Tensor:
    out = model(tokens)
    return out if isinstance(out, Tensor) else out.logits


def _encoded(documents: Sequence[Document], tokenizer: Tokenizer, end: int) -> list[tuple[list[int], int]]:
    """Return tokens of prompt, line end, response and end, and how many of them are not learnt."""
    found = []
    for d in documents:
        prompt = tokenizer.encode(f"{d.prompt}\n")
        found.append(([*prompt, *tokenizer.encode(d.response), end], len(prompt)))
    return found


def _batch(rows: Sequence[tuple[list[int], int]], device: torch.device, end: int) -> tuple[Tensor, Tensor]:
    """Return inputs and targets (B, T); targets that carry no loss are -100."""
    length = max(len(tokens) for tokens, _ in rows) - 1
    x = torch.full((len(rows), length), end)
    y = torch.full((len(rows), length), -100)
    for i, (tokens, prompt) in enumerate(rows):
        x[i, : len(tokens) - 1] = torch.tensor(tokens[:-1])
        y[i, prompt - 1 : len(tokens) - 1] = torch.tensor(tokens[prompt:])
    return x.to(device), y.to(device)


def fine_tune(
    model: nn.Module,
    tokenizer: Tokenizer,
    documents: Sequence[Document],
    *,
    steps: int,
    batch_size: int = 64,
    lr: float = 1e-4,
    warmup: int = 100,
    weight_decay: float = 0.01,
    optimizer: torch.optim.Optimizer | None = None,
    end: int = END,
    seed: int = 0,
    progress: Callable[[int, float], None] = lambda step, loss: None,
) -> list[float]:
    """Train on the responses, with AdamW (or ``optimizer``) on a cosine after a linear warm-up.

    Sets of unequal length (lines deleted) are compared at equal steps, not epochs.

    Parameters
    ----------
    model : torch.nn.Module
        Maps tokens (B, T) to logits, or to an object that has them.
    tokenizer
        With ``encode`` and ``decode``.
    documents : sequence of Document
    steps, batch_size : int
    lr, warmup, weight_decay
        The paper's values by default.
    optimizer : torch.optim.Optimizer, optional
        In place of AdamW; its learning rates are scheduled.
    end : int, default 0
        Token that ends a response.
    seed : int, default 0
        Of the order of documents.
    progress : callable, optional
        Called with step and loss every 50 steps.

    Returns
    -------
    list of float
        The loss of each step.

    Raises
    ------
    DataError
        If there are no documents.
    """
    rows = _encoded(documents, tokenizer, end)
    if not rows:
        raise DataError("no documents to train on")
    device = next(model.parameters()).device
    optimizer = optimizer or torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: _schedule(k, warmup, steps))
    draw = torch.Generator().manual_seed(seed)
    order: list[list[int]] = []
    losses = []
    model.train()
    for step in range(steps):
        if not order:
            order = _epoch(rows, batch_size, draw)
        x, y = _batch([rows[i] for i in order.pop()], device, end)
        loss = F.cross_entropy(_logits(model, x).flatten(0, 1), y.flatten(), ignore_index=-100)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if step % 50 == 49:
            progress(step + 1, losses[-1])
    return losses


def _schedule(step: int, warmup: int, steps: int) -> float:
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _epoch(rows: Sequence[tuple[list[int], int]], batch_size: int, draw: torch.Generator) -> list[list[int]]:
    """Return shuffled batches of documents of like length, which wastes little on padding."""
    order = torch.randperm(len(rows), generator=draw).tolist()
    wide = 16 * batch_size
    batches = []
    for i in range(0, len(order), wide):
        near = sorted(order[i : i + wide], key=lambda k: len(rows[k][0]))
        batches += [near[j : j + batch_size] for j in range(0, len(near), batch_size)]
    return [batches[i] for i in torch.randperm(len(batches), generator=draw)]


def generator(
    model: nn.Module, tokenizer: Tokenizer, max_new_tokens: int, *, batch_size: int = 512, end: int = END
) -> Callable[[list[str]], list[str]]:
    """Return a function for :func:`~skerry.bench.traced_integer.evaluate` that continues prompts greedily.

    Parameters
    ----------
    model : torch.nn.Module
    tokenizer
    max_new_tokens : int
        The paper allows the longest test response and 25 more.
    batch_size : int, default 512
    end : int, default 0

    Returns
    -------
    callable
        Prompts to continuations.
    """

    @torch.no_grad()
    def generate(prompts: list[str]) -> list[str]:
        model.eval()
        texts = []
        for i in range(0, len(prompts), batch_size):
            asked = [tokenizer.encode(p) for p in prompts[i : i + batch_size]]
            texts += [tokenizer.decode(t) for t in _greedy(model, asked, max_new_tokens, end)]
        return texts

    return generate


def _greedy(model: nn.Module, prompts: list[list[int]], room: int, end: int) -> list[list[int]]:
    """All rows advance together; a row reads its own prompt until that ends, so nothing is padded on the left."""
    device = next(model.parameters()).device
    longest = max(map(len, prompts))
    tokens = torch.full((len(prompts), longest + room), end, device=device)
    lengths = torch.tensor([len(p) for p in prompts], device=device)
    for i, p in enumerate(prompts):
        tokens[i, : len(p)] = torch.tensor(p)
    caches = [[] for _ in model.blocks] if isinstance(model, Decoder) else None
    kept = _own_cache(model) if caches is None else None
    done = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    first = int(lengths.min())
    for at in range(first, longest + room):
        unread = tokens[:, :at] if at == first else tokens[:, at - 1 : at]
        if caches is not None:
            logits = model(unread, caches)
        elif kept is not None:
            logits = model(input_ids=unread, use_cache=True, **kept).logits
        else:
            logits = _logits(model, tokens[:, :at])
        own = at >= lengths
        tokens[:, at] = torch.where(own & ~done, logits[:, -1].argmax(-1), tokens[:, at])
        done |= own & (tokens[:, at] == end)
        done |= at - lengths >= room
        if done.all():
            break
    found = []
    for row, n in zip(tokens.tolist(), lengths.tolist(), strict=True):
        new = row[n : n + room]
        found.append(new[: new.index(end)] if end in new else new)
    return found


def _own_cache(model: nn.Module) -> dict[str, Any] | None:
    """Return an empty cache under the name by which a model of ``transformers`` takes it; None for any other."""
    if not hasattr(model, "generate"):
        return None
    from transformers import DynamicCache

    name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    return {name: DynamicCache()}  # filled in place


@torch.no_grad()
def response_losses(
    model: nn.Module, tokenizer: Tokenizer, documents: Sequence[Document], *, batch_size: int = 256, end: int = END
) -> Tensor:
    """Return the mean loss on each document's response, shape (n,): the logarithm of its perplexity."""
    model.eval()
    device = next(model.parameters()).device
    found = []
    rows = _encoded(documents, tokenizer, end)
    for i in range(0, len(rows), batch_size):
        x, y = _batch(rows[i : i + batch_size], device, end)
        each = F.cross_entropy(_logits(model, x).transpose(1, 2), y, ignore_index=-100, reduction="none")
        found.append(each.sum(1) / (y >= 0).sum(1))
    return torch.cat(found).cpu() if found else torch.zeros(0)
