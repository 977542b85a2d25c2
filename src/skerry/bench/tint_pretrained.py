"""The paper's own protocol on a language model of yours: fine-tune on noised traces, and prompt with noised exemplars.

Havrilla and Iyer (arXiv 2402.04004). ``skerry bench run tint-noise --model FOLDER --device auto``: every arm starts
from the folder's weights again, is trained on the responses of one noised set for equal steps, and is judged on clean
unseen questions; before that, the model as it is gets six exemplars of the same set in its prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from skerry.bench.traced_integer import Noise, TraceTask, evaluate
from skerry.bench.traced_integer_training import fine_tune, generator
from skerry.core.errors import DataError, ParameterError, nearest

__all__ = ["GRIDS", "ModelTokenizer", "grid_arms", "run_pretrained", "study"]

# Contaminations, then the rates of each kind; "paper" is the grid of its prompting experiments and the whole set.
GRIDS: dict[str, dict[str, tuple[float, ...]]] = {
    "paper": {
        "contamination": (0.2, 0.5, 0.8, 1.0),
        "char": (0.3, 0.6, 0.9),
        "line": (0.3, 0.6, 0.9),
        "dynamic": (0.2, 0.4),
    },
    "short": {"contamination": (0.5, 1.0), "char": (0.3,), "line": (0.3,), "dynamic": (0.3,)},
}
KINDS = {"char": "static, characters", "line": "static, lines", "dynamic": "dynamic"}
SIZES = {
    "full": {"documents": 20_000, "test": 104, "steps": 5000, "batch": 10, "exemplars": 6},
    "quick": {"documents": 60, "test": 8, "steps": 4, "batch": 4, "exemplars": 2},
}
CLEAN = "clean trace"


class ModelTokenizer:
    """A tokenizer of ``transformers`` without special tokens, as :mod:`skerry.bench.traced_integer_training` asks."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        end = tokenizer.eos_token_id
        if end is None:
            raise DataError("the tokenizer has no end-of-text token, which must close a response: set eos_token")
        self.end = int(end)

    def encode(self, text: str) -> list[int]:
        """Return the tokens."""
        return self._tokenizer.encode(text, add_special_tokens=False)

    def decode(self, tokens: list[int]) -> str:
        """Return the text."""
        return self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def grid_arms(grid: str) -> dict[str, Noise]:
    """Return the noise of every arm of a grid, the clean set first.

    Dynamic noise is the paper's, on every number that is made; answers of static sets are kept.

    Raises
    ------
    ParameterError
        For an unknown grid.

    Examples
    --------
    >>> len(grid_arms("paper")), list(grid_arms("short"))[1]
    (33, 'static, characters 0.3, 50%')
    """
    if grid not in GRIDS:
        raise ParameterError(f"unknown grid {grid!r}: {nearest(grid, GRIDS)}")
    rates, arms = GRIDS[grid], {CLEAN: Noise()}
    for kind, told in KINDS.items():
        for rate in rates[kind]:
            for share in rates["contamination"]:
                how: dict[str, Any] = {kind: rate, "contamination": share, "dynamic_mode": "constructions"}
                arms[f"{told} {rate}, {share:.0%}"] = Noise(**how)
    return arms


def run_pretrained(
    folder: Path,
    operations: Sequence[str],
    *,
    grid: str = "paper",
    quick: bool = False,
    seed: int = 0,
    seeds: int = 1,
    device: str = "cpu",
    progress: Callable[[str], None] = lambda text: None,
) -> list[dict[str, Any]]:
    """Fine-tune and prompt the model of a folder on every arm of a grid.

    Parameters
    ----------
    folder : Path
        With config.json, safetensors and the tokenizer's files; nothing is downloaded.
    operations : sequence of str
        Of :class:`~skerry.bench.traced_integer.TraceTask`.
    grid : {"paper", "short"}, default "paper"
    quick : bool, default False
        A few documents and steps.
    seed, seeds : int
        The first one, and how many.
    device : {"cpu", "auto"}, default "cpu"
        ``"auto"`` takes a GPU, in bfloat16 where the arithmetic allows it, if there is one.
    progress : callable, optional

    Returns
    -------
    list of dict
        A row for each operation and arm: accuracy after fine-tuning (mean, least, most), share of right lines and of
        texts without an answer, and the same of the prompted model.

    Raises
    ------
    DataError
        If the folder has no tokenizer.
    ParameterError
        For an unknown grid or device.
    """
    from skerry.deep.model_folder import read_config
    from skerry.deep.token_text import load_tokenizer

    if device not in ("cpu", "auto"):
        raise ParameterError(f"device is {device!r}: give 'cpu' or 'auto'")
    size, arms = SIZES["quick" if quick else "full"], grid_arms(grid)
    read_config(folder)
    words = load_tokenizer(folder)
    if words is None:
        raise DataError(f"{folder}: has no tokenizer; put tokenizer.json there")
    tokens = ModelTokenizer(words)
    place = torch.device("cuda" if device == "auto" and torch.cuda.is_available() else "cpu")
    rows = []
    for op in operations:
        task = TraceTask(op)
        for name, noise in arms.items():
            tuned, prompted = [], []
            for s in range(seed, seed + seeds):
                test = task.generate(size["test"], seed=10_000 + s, unique=True)
                known = {d.prompt for d in test}
                documents = task.generate(size["documents"], noise, seed=s, exclude=known)
                prompted.append(_prompted(folder, tokens, documents[: size["exemplars"]], test, place))
                tuned.append(_tuned(folder, tokens, documents, test, place, size, s))
            rows.append(_row(op, name, tuned, prompted))
            progress(f"{op}, {name}: accuracy {rows[-1]['accuracy']:.3f}, prompted {rows[-1]['prompted accuracy']:.3f}")
    return rows


def study(
    folder: Path,
    operations: str | None,
    grid: str,
    quick: bool,
    seed: int,
    seeds: int,
    device: str,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """Return :func:`run_pretrained` as the result of a study; ``operations`` are separated by semicolons."""
    names = [n.strip() for n in (operations or "add; mul; median").split(";") if n.strip()]
    rows = run_pretrained(
        folder, names, grid=grid, quick=quick, seed=seed, seeds=seeds, device=device, progress=progress
    )
    size = SIZES["quick" if quick else "full"]
    told = []
    for op in names:
        by = {r["training set"]: r for r in rows if r["operation"] == op}
        worst = {
            told: min((r for n, r in by.items() if n.startswith(told)), key=lambda r: r["accuracy"])
            for told in KINDS.values()
        }
        told.append(
            f"{op}: clean traces {by[CLEAN]['accuracy']:.3f} (prompted {by[CLEAN]['prompted accuracy']:.3f}); worst "
            "arm of each kind, fine-tuned and prompted: "
            + ", ".join(f"{r['training set']} {r['accuracy']:.3f} and {r['prompted accuracy']:.3f}"
                        for r in worst.values())
        )  # fmt: skip
    return {
        "title": f"Noise in chains of thought: {folder.name}",
        "file": f"tint-noise-{folder.name}",
        "claim": ". ".join(told) + ".",
        "table": rows,
        "notes": [
            f"Fine-tuning: {size['documents']:,} documents, {size['steps']} steps of {size['batch']}, AdamW at 1e-4 on "
            f"a cosine, loss on responses alone, {seeds} seed(s); the paper trains up to 150 epochs. Prompting: the "
            f"model as it is, {size['exemplars']} exemplars of the same set. {size['test']} clean unseen questions, "
            "greedy decoding.",
            "Dynamic noise is on every number that is made, as in the paper's generator; static noise keeps the "
            "answer.",
            "Rates are not comparable across kinds: TraceTask.generate(...).rates() tells what each did.",
        ],
    }


def _model(folder: Path, place: torch.device) -> torch.nn.Module:
    from skerry.deep.model_folder import load_model_folder

    return load_model_folder(folder).float().to(place)


def _room(tokens: ModelTokenizer, documents: Sequence[Any]) -> int:
    return max(len(tokens.encode(d.response)) for d in documents) + 25


def _low(place: torch.device) -> torch.autocast:
    return torch.autocast(place.type, torch.bfloat16, enabled=place.type == "cuda")


def _prompted(folder: Path, tokens: ModelTokenizer, exemplars: Any, test: Any, place: torch.device) -> dict[str, float]:
    write = generator(_model(folder, place), tokens, _room(tokens, test), batch_size=16, end=tokens.end)

    def first_block(prompts: list[str]) -> list[str]:
        # a model that was never told to stop goes on with an example of its own, behind an empty line
        return [text.strip().split("\n\n")[0] for text in write(prompts)]

    with _low(place):
        return evaluate(first_block, test, exemplars=exemplars)


def _tuned(
    folder: Path,
    tokens: ModelTokenizer,
    documents: Any,
    test: Any,
    place: torch.device,
    size: dict[str, int],
    seed: int,
) -> dict[str, float]:
    model = _model(folder, place)
    with _low(place):
        fine_tune(
            model, tokens, documents, steps=size["steps"], batch_size=size["batch"], end=tokens.end, seed=seed,
            warmup=min(100, size["steps"] // 2),
        )  # fmt: skip
        return evaluate(generator(model, tokens, _room(tokens, test), batch_size=64, end=tokens.end), test)


def _row(op: str, name: str, tuned: list[dict[str, float]], prompted: list[dict[str, float]]) -> dict[str, Any]:
    def mean(of: list[dict[str, float]], key: str) -> float:
        return float(np.mean([one[key] for one in of]))

    found = [one["accuracy"] for one in tuned]
    return {
        "operation": op,
        "training set": name,
        "accuracy": mean(tuned, "accuracy"),
        "least": min(found),
        "most": max(found),
        "right lines": mean(tuned, "line_accuracy"),
        "no answer": mean(tuned, "parse_errors"),
        "prompted accuracy": mean(prompted, "accuracy"),
        "prompted, no answer": mean(prompted, "parse_errors"),
    }
