"""What an orthogonalizing optimizer costs and how it bears heavy-tailed gradients: the parts of the study of ROOT."""

from __future__ import annotations

import gzip
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skerry.bench.traced_integer_training import Decoder
from skerry.core.errors import DataError
from skerry.train.optim import ROOT, Muon, adanewton, newton_schulz, split_params
from skerry.train.optim.muon import _as_matrices
from skerry.train.optim.orthogonalize import MUON_COEFFICIENTS

__all__ = ["OPTIMIZERS", "cost", "precision", "quadratic", "read_text", "train_bytes"]

TEXT = "wikitext2_valid.txt.gz"
HELD_OUT = 12  # batches
NOISES = ("clean", "Student-t entries", "spoilt batches")
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer] | None] = {
    "AdamW": None,
    "Muon": Muon,
    "Muon, fitted coefficients": lambda *a, **kw: ROOT(*a, quantile=1.0, cache=None, **kw),
    "Muon, clamp": lambda *a, **kw: ROOT(*a, coefficients="muon", cache=None, **kw),
    "ROOT": lambda *a, **kw: ROOT(*a, cache=None, **kw),
}


def build(name: str, model: nn.Module, lr: float, weight_decay: float = 0.1) -> torch.optim.Optimizer:
    """Return an optimizer of the study: equal learning rate, decay on matrices only."""
    if OPTIMIZERS[name] is None:
        groups = [
            {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": weight_decay},
            {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), fused=True)
    matrices, rest = split_params(model)
    return OPTIMIZERS[name](matrices, adamw_params=rest, lr=lr, weight_decay=weight_decay)


# Precision ---------------------------------------------------------------------------------------------------------


def precision(shapes: Sequence[tuple[int, int]], seed: int, samples: int = 4) -> list[dict[str, Any]]:
    """Return the squared distance of singular values from 1 in float32, on matrices that no fit saw."""
    spectra = [adanewton.spectrum(m, n, samples=4, seed=seed) for m, n in shapes]
    # Resampled to equal lengths, so that no shape outweighs another in the one triple for all.
    even = np.concatenate([np.quantile(s, np.linspace(0, 1, 512)) for s in spectra])
    fixed = adanewton._solve(even, 5, "mse")
    draw = torch.Generator().manual_seed(seed + 1)
    rows = []
    for m, n in shapes:
        g = torch.randn(samples, m, n, generator=draw)

        def errors(triple, steps, g=g):
            return torch.linalg.svdvals(newton_schulz(g, triple, steps).double())

        fit = adanewton.fit(m, n, seed=seed, cache=None)
        five = errors(fit, 5)
        rows.append(
            {
                "shape": f"{m} x {n}",
                "Muon": _mse(errors(MUON_COEFFICIENTS, 5)),
                "one triple for all": _mse(errors(fixed, 5)),
                "fitted": _mse(five),
                "fitted, 5 % quantile": float(torch.quantile(five, 0.05)),
                "Muon, 10 steps": _mse(errors(MUON_COEFFICIENTS, 10)),
                "fitted, 10 steps": _mse(errors(adanewton.fit(m, n, steps=10, seed=seed, cache=None), 10)),
                "a, b, c": ", ".join(f"{v:.4f}" for v in fit),
            }
        )
    return rows


def live_precision(momenta: dict[tuple[int, int], list[Tensor]]) -> list[dict[str, Any]]:
    """Return the same on momenta of a trained network: half of each shape's matrices fit, the other half judge."""
    rows = []
    for (m, n), found in momenta.items():
        known, held = [g.double().numpy() for g in found[::2]], [g.double() for g in found[1::2]]
        if not held:
            continue
        triples = {
            "Muon": MUON_COEFFICIENTS,
            "fitted to Gaussian matrices": adanewton.fit(m, n, cache=None),
            "fitted to live and Gaussian, 1 to 3": adanewton.fit(m, n, momenta=known),
        }
        judged = torch.stack(held)
        rows.append(
            {"shape": f"{m} x {n}", "matrices": len(held)}
            | {k: _mse(torch.linalg.svdvals(newton_schulz(judged, t))) for k, t in triples.items()}
        )
    return rows


def _mse(values: Tensor) -> float:
    return float((values - 1).square().mean())


# Cost --------------------------------------------------------------------------------------------------------------


def cost(
    dim: int, n_layers: int, vocabulary: int, repeats: int, progress: Callable[[str], None]
) -> tuple[int, list[dict[str, Any]]]:
    """Return the number of parameters, and seconds of an optimizer's step beside the products that Muon cannot avoid.

    The network's gradients are random. The products alone are those of five Newton-Schulz steps on matrices of the
    same shapes and number, into buffers made beforehand, and nothing else; the fewest products are those of the Gram
    matrix where a matrix is wide enough for them to be fewer. Ratios are of CPU seconds, which other work on the
    machine disturbs least; every figure is the least of its rounds.
    """
    torch.manual_seed(0)
    model = Decoder(vocabulary, dim, n_layers, n_heads=max(1, dim // 64))
    n = sum(p.numel() for p in model.parameters())
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    matrices, rest = split_params(model)
    group = {"stacked": True}
    shapes = sorted(tuple(sorted(_as_matrices(p, group).shape[-2:])) for p in matrices[0]["params"])
    steps: dict[str, Callable[[], Any]] = {
        "the matrix products alone": _products(shapes),
        "the fewest products alone": _fewest_products(shapes),
        "AdamW, one tensor after another": torch.optim.AdamW(model.parameters(), lr=1e-9, foreach=False).step,
        "AdamW, fused": torch.optim.AdamW(model.parameters(), lr=1e-9, fused=True).step,
        "Muon": Muon(matrices, adamw_params=rest, lr=1e-9).step,
        "ROOT": ROOT(matrices, adamw_params=rest, lr=1e-9, cache=None).step,
    }
    wall: dict[str, list[float]] = {name: [] for name in steps}
    cpu: dict[str, list[float]] = {name: [] for name in steps}
    for k in range(repeats + 1):  # in turn, so that a busy machine slows all of them
        for name, step in steps.items():
            progress(f"cost of a step at {n / 1e6:.0f} million parameters, round {k} of {repeats}: {name}")
            began, used = time.perf_counter(), time.process_time()
            step()
            if k:  # the first makes states, and fits coefficients
                wall[name].append(time.perf_counter() - began)
                cpu[name].append(time.process_time() - used)
    floor, fewest, adamw = (
        min(cpu[name]) for name in ("the matrix products alone", "the fewest products alone", "AdamW, fused")
    )
    return n, [
        {
            "step": name,
            "seconds": min(wall[name]),
            "CPU seconds": min(cpu[name]),
            "to the products": min(cpu[name]) / floor if name in ("Muon", "ROOT") else None,
            "to the fewest": min(cpu[name]) / fewest if name in ("Muon", "ROOT") else None,
            "to AdamW, fused": min(cpu[name]) / adamw,
        }
        for name in steps
    ]


def _products(shapes: Sequence[tuple[int, int]]) -> Callable[[], None]:
    """Return a function that makes five steps' products for every shape, in whatever order is fastest: one by one."""
    buffers = {
        s: (torch.randn(s), torch.empty(s), torch.empty(s[0], s[0]), torch.empty(s[0], s[0])) for s in set(shapes)
    }

    def step() -> None:
        for s in shapes:
            x, out, gram, square = buffers[s]
            for _ in range(5):
                torch.mm(x, x.T, out=gram)
                torch.mm(gram, gram, out=square)
                torch.mm(square, x, out=out)

    return step


def _fewest_products(shapes: Sequence[tuple[int, int]]) -> Callable[[], None]:
    """Return a function that makes the same five steps' products by the order that has fewer of them, one by one."""
    direct = [s for s in shapes if not _gram_is_fewer(*s)]
    wide = [s for s in shapes if _gram_is_fewer(*s)]
    plain = _products(direct)
    buffers = {s: (torch.randn(s), torch.empty(s), *(torch.empty(s[0], s[0]) for _ in range(4))) for s in set(wide)}

    def step() -> None:
        plain()
        for s in wide:
            x, out, gram, square, factor, moved = buffers[s]
            torch.mm(x, x.T, out=gram)
            for k in range(5):
                torch.mm(gram, gram, out=square)
                if k:
                    torch.mm(square, factor, out=moved)
                if k < 4:
                    torch.mm(gram, square, out=moved)
                    torch.mm(square, moved, out=factor)
            torch.mm(factor, x, out=out)

    return step


def _gram_is_fewer(m: int, n: int, steps: int = 5) -> bool:
    return 2 * m * m * n + (4 * steps - 3) * m**3 < steps * (2 * m * m * n + m**3)


def flops(shapes: Sequence[tuple[int, int]], steps: int = 5) -> int:
    """Return the operations of those products."""
    return sum(steps * (4 * m * m * n + 2 * m**3) for m, n in shapes)


# Heavy tails -------------------------------------------------------------------------------------------------------


def read_text(data: Path) -> Tensor:
    """Return the bytes of the study's text.

    Raises
    ------
    DataError
        If the file is absent or damaged.
    """
    path = data / "text" / TEXT
    try:
        with gzip.open(path) as file:
            return torch.frombuffer(bytearray(file.read()), dtype=torch.uint8).long()
    except (OSError, EOFError) as error:
        raise DataError(f"{path}: cannot be read ({error}); put the text there or set SKERRY_DATA") from None


def train_bytes(
    text: Tensor, name: str, noise: str, seed: int, steps: int, lr: float = 3e-3, dim: int = 64, n_layers: int = 2
) -> dict[str, Any]:
    """Train a byte model and return its loss on held-out text, and its last momenta by shape.

    ``noise``: Student's t with 1.5 degrees of freedom and ten times the gradient's size added to 1 % of its entries at
    every step; or every fiftieth batch with shuffled targets and its loss times twenty.
    """
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    cut = int(0.92 * len(text))
    model = Decoder(256, dim, n_layers)
    optimizer = build(name, model, lr)
    warmup = max(1, steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda k: min(1.0, (k + 1) / warmup) * (0.1 + 0.45 * (1 + np.cos(np.pi * k / steps))),
    )
    draw, wild = torch.Generator().manual_seed(seed), np.random.default_rng([seed, 7])
    began = time.process_time()
    for k in range(steps):
        x, y = _windows(text[:cut], 16, draw)
        spoilt = noise == "spoilt batches" and k % 50 == 49
        if spoilt:
            y = y.flatten()[torch.randperm(y.numel(), generator=draw)].reshape(y.shape)
        loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten()) * (20.0 if spoilt else 1.0)
        optimizer.zero_grad()
        loss.backward()
        if noise == "Student-t entries":
            for p in model.parameters():
                hit = torch.from_numpy(wild.random(p.shape) < 0.01)
                tail = torch.from_numpy(wild.standard_t(1.5, size=int(hit.sum()))).float()
                p.grad[hit] += 10 * p.grad.square().mean().sqrt() * tail
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    seconds = time.process_time() - began
    fixed = torch.Generator().manual_seed(99)
    model.eval()
    with torch.no_grad():
        losses = []
        for _ in range(HELD_OUT):
            x, y = _windows(text[cut:], 32, fixed)
            losses.append(F.cross_entropy(model(x).flatten(0, 1), y.flatten()).item())
    momenta: dict[tuple[int, int], list[Tensor]] = {}
    for p in model.parameters():
        m = optimizer.state.get(p, {}).get("momentum_buffer")
        if m is not None:
            momenta.setdefault(tuple(sorted(m.shape)), []).append(m if m.shape[0] <= m.shape[1] else m.T)
    return {"loss": float(np.mean(losses)), "seconds": seconds, "momenta": momenta}


def _windows(text: Tensor, n: int, draw: torch.Generator, length: int = 64) -> tuple[Tensor, Tensor]:
    start = torch.randint(len(text) - length - 1, (n, 1), generator=draw)
    window = text[start + torch.arange(length + 1)]
    return window[:, :-1], window[:, 1:]


def quadratic(name: str, outliers: bool, seeds: int, steps: int) -> list[float]:
    """Return the mean of (W - W*)^2 / 2 after noisy steps, one value per draw; the draws are trained as one stack."""
    draw = torch.Generator().manual_seed(0)
    shape = (seeds, 32, 64)
    target = torch.randn(shape, generator=draw)
    w = nn.Parameter(torch.zeros(shape))
    maker = OPTIMIZERS[name]
    optimizer = (
        torch.optim.AdamW([w], lr=0.03, weight_decay=0.0, betas=(0.9, 0.95))
        if maker is None
        else maker([w], lr=0.03, weight_decay=0.0)
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: 1 - k / steps)
    for _ in range(steps):
        w.grad = w.detach() - target + 0.3 * torch.randn(shape, generator=draw)
        if outliers:
            hit = torch.rand(shape, generator=draw) < 0.01
            w.grad += hit * 30 * torch.randn(shape, generator=draw)
        optimizer.step()
        schedule.step()
    return (0.5 * (w.detach() - target).square().mean((1, 2))).tolist()
