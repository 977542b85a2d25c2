"""What a masked-diffusion language model is used for: writing by unmasking, and the likelihood of an answer.

Nie et al. (2025), "Large language diffusion models" (LLaDA, arXiv 2502.09992): low-confidence remasking block by block,
and a Monte-Carlo bound of the log likelihood with stratified numbers of masked tokens. Dream (arXiv 2508.15487) unmasks
by entropy.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from skerry.core.errors import ParameterError
from skerry.deep.masked_diffusion import MaskedDiffusionLM

__all__ = ["commit_schedule", "generate", "gumbel", "loglikelihood", "stratified_counts"]

ROWS = 256  # sequences of one call of the model


def commit_schedule(masked: int, steps: int) -> list[int]:
    """Return how many tokens each of ``steps`` steps commits; the remainder goes to the first.

    Examples
    --------
    >>> commit_schedule(10, 4), commit_schedule(6, 8)
    ([3, 3, 2, 2], [1, 1, 1, 1, 1, 1, 0, 0])
    """
    return [masked // steps + (i < masked % steps) for i in range(steps)]


def gumbel(logits: Tensor, temperature: float, generator: torch.Generator | None = None) -> Tensor:
    """Return values whose largest is a draw from ``softmax(logits / temperature)``; at 0 the logits themselves.

    Examples
    --------
    >>> gumbel(torch.tensor([0.5, 1.0]), 0.0).tolist()
    [0.5, 1.0]
    """
    if temperature == 0.0:
        return logits
    logits = logits.double()
    noise = torch.rand(logits.shape, generator=generator, dtype=torch.float64).to(logits.device)
    return (logits - logits.amax(-1, keepdim=True)).exp() / (-noise.log()) ** temperature


@torch.no_grad()
def generate(
    model: MaskedDiffusionLM,
    prompt: Tensor,
    *,
    gen_length: int,
    steps: int,
    block_length: int,
    temperature: float = 0.0,
    order: str = "confidence",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Write ``gen_length`` tokens behind the prompt, block by block from the left.

    All tokens of a block start masked; at every step the model proposes all of them and the surest are committed.

    Parameters
    ----------
    model : MaskedDiffusionLM
    prompt : int64 Tensor of shape (B, P)
    gen_length, steps, block_length : int
        Blocks must fill the length, and the blocks divide the steps.
    temperature : float, default 0
        0 takes the likeliest token.
    order : {"confidence", "entropy"}, default "confidence"
        Surest by the probability of the proposed token (LLaDA), or by the least entropy (Dream).
    generator : torch.Generator, optional
        For a temperature above 0.

    Returns
    -------
    int64 Tensor of shape (B, P + gen_length)

    Raises
    ------
    ParameterError
        If the lengths do not fit, or the order is unknown.

    Examples
    --------
    >>> model = MaskedDiffusionLM(vocab_size=11, width=16, blocks=2, heads=2)
    >>> found = generate(model, torch.tensor([[1, 2, 3]]), gen_length=4, steps=4, block_length=2)
    >>> found.shape, bool((found == model.mask_id).any())
    (torch.Size([1, 7]), False)
    """
    if block_length < 1 or gen_length % block_length:
        raise ParameterError(f"gen_length {gen_length} must be a multiple of block_length {block_length}")
    blocks = gen_length // block_length
    if steps < 1 or steps % blocks:
        raise ParameterError(f"steps {steps} must be a multiple of the {blocks} blocks")
    if order not in ("confidence", "entropy"):
        raise ParameterError(f"order must be 'confidence' or 'entropy', got {order!r}")
    start = prompt.shape[1]
    x = nn.functional.pad(prompt, (0, gen_length), value=model.mask_id)
    for block in range(blocks):
        end = start + (block + 1) * block_length
        masked = int((x[0, start:end] == model.mask_id).sum())
        for commits in commit_schedule(masked, steps // blocks):
            if commits == 0:
                continue  # more steps than tokens: the model has nothing left to say
            at = slice(start, end)
            logits = model(x)[:, at]
            logits[..., model.mask_id] = -torch.inf
            proposed = gumbel(logits, temperature, generator).argmax(-1)
            p = logits.double().softmax(-1)
            if order == "confidence":
                sure = p.gather(-1, proposed[..., None])[..., 0]
            else:
                sure = torch.special.xlogy(p, p).sum(-1)
            sure = sure.masked_fill(x[:, at] != model.mask_id, -torch.inf)
            chosen = torch.zeros_like(sure, dtype=torch.bool)
            chosen.scatter_(1, sure.topk(commits, dim=1).indices, True)
            x[:, at] = torch.where(chosen, proposed, x[:, at])
    return x


def stratified_counts(length: int, batch: int, first: int) -> Tensor:
    """Return numbers of masked tokens (batch,) spread evenly over 1 .. length, from ``first`` on.

    Examples
    --------
    >>> stratified_counts(8, 4, 3).tolist()
    [3, 5, 7, 1]
    """
    last = first + (batch - 1) * length / batch
    return (torch.linspace(first, last, batch).round().long() - 1) % length + 1


@torch.no_grad()
def loglikelihood(
    model: MaskedDiffusionLM,
    prefix: Tensor,
    target: Tensor,
    *,
    mc_num: int = 128,
    batch: int = 32,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Estimate the bound of ``log p(target | prefix)``; the prefix is never masked.

    All rows get the same draws of masks, so that differences between options (and between models, with a generator
    of the same seed) are not differences of luck.

    Parameters
    ----------
    model : MaskedDiffusionLM
    prefix : int64 Tensor of shape (N, P) or (P,)
    target : int64 Tensor of shape (N, T) or (T,)
    mc_num : int, default 128
        Draws of masks; 1 is enough for a target of one token.
    batch : int, default 32
        Draws that are stratified together; it must divide ``mc_num``.
    generator : torch.Generator, optional

    Returns
    -------
    float64 Tensor of shape (N,) or ()

    Raises
    ------
    ParameterError
        If ``batch`` does not divide ``mc_num``, or the target is empty.

    Examples
    --------
    >>> model = MaskedDiffusionLM(vocab_size=11, width=16, blocks=2, heads=2)
    >>> loglikelihood(model, torch.tensor([1, 2]), torch.tensor([3, 4]), mc_num=4, batch=4).shape
    torch.Size([])
    """
    batch = min(batch, mc_num)
    if mc_num < 1 or mc_num % batch:
        raise ParameterError(f"mc_num {mc_num} must be a positive multiple of batch {batch}")
    if target.shape[-1] == 0:
        raise ParameterError("the target is empty")
    if target.ndim == 1:
        found = loglikelihood(model, prefix[None], target[None], mc_num=mc_num, batch=batch, generator=generator)
        return found[0]
    length = target.shape[1]
    total = torch.zeros(len(target), dtype=torch.float64)
    for _ in range(mc_num // batch):
        first = int(torch.randint(1, length + 1, (1,), generator=generator))
        counts = stratified_counts(length, batch, first)
        ranks = torch.rand(batch, length, generator=generator).argsort(1).argsort(1)
        total -= _masked_losses(model, prefix, target, ranks < counts[:, None], counts)
    return total / mc_num


def _masked_losses(model: MaskedDiffusionLM, prefix: Tensor, target: Tensor, masks: Tensor, counts: Tensor) -> Tensor:
    """Return for every row of ``target`` (N, T) the sum over masks (b, T) of T / m times its cross entropies."""
    losses = torch.zeros(len(target), dtype=torch.float64)
    size, length = len(masks), target.shape[1]
    weight = masks * (length / counts[:, None])
    for rows in torch.arange(len(target)).split(max(1, ROWS // size)):
        exact = target[rows].repeat_interleave(size, 0)
        masked = masks.repeat(len(rows), 1).to(exact.device)
        given = torch.cat((prefix[rows].repeat_interleave(size, 0), exact.masked_fill(masked, model.mask_id)), 1)
        logits = model(given)[:, prefix.shape[1] :].transpose(1, 2).float()
        ce = nn.functional.cross_entropy(logits, exact, reduction="none").cpu().double()
        losses[rows] = (ce * weight.repeat(len(rows), 1)).sum(1).reshape(len(rows), size).sum(1)
    return losses
