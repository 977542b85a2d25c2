"""LRQ-DiT: a small diffusion transformer of images at 3 and 4 bits, with the paper's ablation (arXiv 2508.03485)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from skerry.bench.dit_models import features_of
from skerry.bench.dit_rows import DiTLab, Measured, frechet_distance, make_dit_lab, measured, spread
from skerry.deep.dit import DiT
from skerry.deep.hadamard import hadamard_matrix
from skerry.deep.threads import one_thread
from skerry.quant.activation import TokenDynamic
from skerry.quant.formats import TwinLog
from skerry.quant.numerics import AffineGrid
from skerry.quant.recipe import Recipe, parse_bits
from skerry.quant.recipes import make_recipe
from skerry.quant.solvers import RTN
from skerry.quant.statistics import LayerStatistics
from skerry.quant.transforms.adaptive_rotation import AdaptiveRotation
from skerry.quant.transforms.smooth import Smooth

BITS = ("w4a8", "w3a8", "w4a4")
STEPS = 64  # of the greedy search; the paper's 256 take four times as long
LAYERS = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "ff.net.0.proj", "ff.net.2")
Case = Callable[[str], Recipe]


def run(quick: bool, data: Path, seed: int, progress: Callable[[str], None]) -> dict[str, Any]:
    with one_thread():
        return _run(quick, data, seed, progress)


def _run(quick: bool, data: Path, seed: int, progress: Callable[[str], None]) -> dict[str, Any]:
    lab = make_dit_lab(data, quick=quick, seed=seed, progress=progress)
    cases = _cases(block=32 if quick else 128, steps=8 if quick else STEPS, rank=4 if quick else 16)
    bits = BITS[1:2] if quick else BITS
    found = {which: _rows(lab, which, cases, bits, seed, progress) for which in lab.models}
    some = {k: make for k, make in cases.items() if k in ("RTN, min-max", "SmoothQuant", "LRQ-DiT")}
    high = _rows(lab, "natural", some, ("w8a8",), seed, progress)
    floor = [frechet_distance(features_of(lab.classifier, images), lab.real) for images in lab.images]
    return {
        "title": "LRQ-DiT: twin logarithmic levels and adaptive rotations on a diffusion transformer",
        "claim": _claim(found, bits[-1] if quick else "w3a8"),
        "table": _table(found["natural"], bits),
        "tables": {
            "With a loud channel (times 50) before q, k, v and before the feed-forward layer": _table(
                found["planted"], bits
            ),
            "At 8 bits": _table(high, ("w8a8",)),
            "What the rotation chose": _chosen(found, bits[0]),
            "Relative squared error of the weights alone, by layer (means over the blocks)": _weights(lab),
            "Relative squared error on made-up weights": _distributions(seed, 4000 if quick else 40_000),
        },
        "notes": [
            f"A class-conditional DiT (width {lab.models['natural'].config.hidden_size}) trained here on Fashion-MNIST "  # type: ignore[union-attr]
            f"at 16 x 16; noise loss of the float model {lab.loss:.4f} on held-out images, Fréchet distance of its "
            f"images {spread(floor)}. Planting changed its noise by "
            f"{float((_noise(lab) - lab.noise).norm() / lab.noise.norm()):.1g}, relative.",
            f"{len(lab.images)} seeds of {len(lab.labels)} images, {lab.steps} DDIM steps; ± is the standard deviation "
            "over the seeds. PSNR is beside the float images of the same seed. Fréchet distances of so few images are "
            "biased upwards, alike for all rows, and differences within the spread say nothing.",
            "Inputs are rounded per token and asymmetrically in all rows but SVDQuant's (symmetric; groups of 64 at 4 "
            "bits, and groups of 64 for its weights). Uniform weights have one scale a row and, except in the first "
            "row, a searched range. Stored bits count signs, scales and branches: at this width the four numbers of a "
            "row of TwinLog cost 1 bit a weight where the row is 128 long, at the paper's widths a tenth of that.",
            "QuaRot's rotation of the residual stream cannot pass an adaptive norm: its row is a Hadamard product in "
            "front of every layer. Embedders, modulation and the last layer are in floating point in all rows.",
        ],
    }


def _cases(block: int, steps: int, rank: int) -> dict[str, Case]:
    """Return the recipes, as functions of bits."""

    def uniform(name: str, *transforms: Any, clip: bool = True) -> Case:
        def make(bits: str) -> Recipe:
            b = parse_bits(bits)
            return Recipe(
                name, AffineGrid(b.weight), RTN(clip=clip), TokenDynamic(b.activation, symmetric=False), transforms
            )

        return make

    def log(threshold: float | str | None) -> Case:
        def make(bits: str) -> Recipe:
            b = parse_bits(bits)
            if threshold is not None:
                return make_recipe("lrq-dit", bits, threshold=threshold, block=block, max_steps=steps)
            return Recipe("twin-log", TwinLog(b.weight), None, TokenDynamic(b.activation, symmetric=False))

        return make

    def rotation(threshold: float) -> AdaptiveRotation:
        return AdaptiveRotation(threshold, block, steps)

    return {
        "RTN, min-max": uniform("rtn", clip=False),
        "RTN, searched range": uniform("rtn"),
        "SmoothQuant": uniform("smoothquant", Smooth(folded_only=False)),
        "QuaRot (Hadamard before every layer)": uniform("quarot", rotation(float("inf"))),
        "double rotation before every layer": uniform("duquant", rotation(0.0)),
        f"SVDQuant, rank {rank}": lambda bits: make_recipe(
            "svdquant", f"{bits}g{min(64, block)}", rank=rank, n_grid=6, iterations=20
        ),
        "twin-log alone": log(None),
        "adaptive rotation alone": uniform("ars", rotation(1.0)),
        "LRQ-DiT": log(1.0),
        "LRQ-DiT, loudest tenth": log("quantile:0.9"),
    }


def _rows(
    lab: DiTLab, which: str, cases: dict[str, Case], bits: tuple[str, ...], seed: int, progress: Callable[[str], None]
) -> dict[str, dict[str, Measured]]:
    found: dict[str, dict[str, Measured]] = {}
    for name, make in cases.items():
        for width in bits:
            progress(f"{which}, {name}, {width}")
            found.setdefault(name, {})[width] = measured(lab, which, make(width), seed=seed)
    return found


def _table(found: dict[str, dict[str, Measured]], bits: tuple[str, ...]) -> list[dict[str, Any]]:
    rows = []
    for name, by_width in found.items():
        row: dict[str, Any] = {"method": name}
        for width in bits:
            at = by_width[width]
            row[f"{width} noise error"] = at.noise_error
            row[f"{width} PSNR"] = spread(at.psnr)
            row[f"{width} Fréchet"] = spread(at.frechet)
        row["stored bits"] = ", ".join(f"{by_width[width].bits_per_weight:.2f}" for width in bits)
        row["quantized in s"] = sum(by_width[width].report.seconds for width in bits) / len(bits)
        rows.append(row)
    return rows


def _claim(found: dict[str, dict[str, dict[str, Measured]]], width: str) -> str:
    def told(which: str, name: str) -> str:
        return f"{found[which][name][width].noise_error:.3g}"

    names = ("LRQ-DiT", "twin-log alone", "adaptive rotation alone", "RTN, searched range", "RTN, min-max")
    parts = [", ".join(f"{name} {told(which, name)}" for name in names) for which in ("natural", "planted")]
    return (
        f"Relative squared error of the predicted noise at {width.upper()}: {parts[0]} (with planted channels: "
        f"{parts[1]})."
    )


def _chosen(found: dict[str, dict[str, dict[str, Measured]]], width: str) -> list[dict[str, Any]]:
    rows = []
    for which, by_name in found.items():
        told = by_name["LRQ-DiT"][width].report.transforms
        few = by_name["LRQ-DiT, loudest tenth"][width].report.transforms[0]
        every = by_name["double rotation before every layer"][width].report.transforms
        light = by_name["QuaRot (Hadamard before every layer)"][width].report.transforms
        loud = max(range(len(every)), key=lambda i, e=every: e[i]["J"])  # type: ignore[misc]
        rows.append(
            {
                "model": which,
                "layers": len(told),
                "share above 1": sum(t["kind"] == "dual" for t in told) / len(told),
                "threshold of the loudest tenth": few["threshold"],
                "loudest layer": every[loud]["group"].split(".", 2)[-1],
                "its J": every[loud]["J"],
                "its peak": every[loud]["peak_before"],
                "after a Hadamard product": light[loud]["peak_after"],
                "after the double rotation": every[loud]["peak_after"],
            }
        )
    return rows


def _weights(lab: DiTLab) -> list[dict[str, Any]]:
    """Errors at 3 bits of the natural model's weights, as they are and after a Hadamard rotation of their inputs."""
    model = lab.models["natural"]
    assert isinstance(model, DiT)
    rows = []
    for name in LAYERS:
        weights = [block.get_submodule(name).weight.detach() for block in model.transformer_blocks]
        turned = [(W.double() @ _rotation_of(W.shape[1])).float() for W in weights]
        rows.append(
            {
                "layer": name,
                "excess kurtosis": _mean(map(_kurtosis, weights)),
                "uniform, min-max": _mean(_uniform(W, 3, clip=False) for W in weights),
                "uniform, searched": _mean(_uniform(W, 3, clip=True) for W in weights),
                "twin-log": _mean(_twin_log(W, 3) for W in weights),
                "kurtosis, rotated": _mean(map(_kurtosis, turned)),
                "uniform, searched, rotated": _mean(_uniform(W, 3, clip=True) for W in turned),
                "twin-log, rotated": _mean(_twin_log(W, 3) for W in turned),
            }
        )
    return rows


def _distributions(seed: int, samples: int) -> list[dict[str, Any]]:
    """Errors at 3 and 4 bits (sign counted) on one range for all samples of a distribution."""
    generator = torch.Generator().manual_seed(seed)

    def student(freedom: int) -> Tensor:
        chi = torch.randn(freedom, samples, generator=generator).square().sum(0)
        return torch.randn(samples, generator=generator) / (chi / freedom).sqrt()

    uniform = torch.rand(2, samples, generator=generator)
    drawn = {
        "Gaussian": torch.randn(samples, generator=generator),
        "Laplace": -torch.log(uniform[0].clamp(min=1e-12)) * torch.sign(uniform[1] - 0.5),
        "Student t, 5": student(5),
        "Student t, 3": student(3),
    }
    rows = []
    for name, values in drawn.items():
        W, row = values[None], {"distribution": name}
        for bits in (3, 4):
            row |= {
                f"{bits} bits: uniform, min-max": _uniform(W, bits, clip=False),
                f"{bits}: uniform, searched": _uniform(W, bits, clip=True),
                f"{bits}: twin-log, from the smallest": _twin_log(W, bits, search="none"),
                f"{bits}: twin-log, searched": _twin_log(W, bits),
            }
        rows.append(row)
    return rows


def _noise(lab: DiTLab) -> Tensor:
    with torch.no_grad():
        return lab.models["planted"](*lab.held)


def _uniform(W: Tensor, bits: int, *, clip: bool) -> float:
    stored = RTN(clip=clip).solve(W, LayerStatistics(), AffineGrid(bits)).weight
    return _relative(W, stored.dequantize())


def _twin_log(W: Tensor, bits: int, search: str = "both") -> float:
    return _relative(W, TwinLog(bits, search=search).quantize(W).dequantize())


def _relative(W: Tensor, stored: Tensor) -> float:
    return float((W - stored).double().square().sum() / W.double().square().sum())


def _kurtosis(W: Tensor) -> float:
    z = W.double() - W.double().mean()
    return float(z.pow(4).mean() / z.square().mean().square() - 3.0)


def _rotation_of(width: int) -> Tensor:
    return hadamard_matrix(width, torch.float64)


def _mean(values: Any) -> float:
    found = list(values)
    return sum(found) / len(found)
