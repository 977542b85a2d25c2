"""What noise in chains of thought does to training: static against dynamic, and which filter helps (arXiv 2402.04004).

A small decoder learns addition from traces. The sets differ only in their noise; the first weights, the steps and the
clean test questions are the same for all. Trainings are kept in the user's cache: a study that was stopped goes on.
With ``--model FOLDER`` the paper's own protocol runs on a language model: :mod:`skerry.bench.tint_pretrained`.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from skerry.bench.traced_integer import Corpus, Noise, TraceTask, check_trace, evaluate
from skerry.core.errors import ParameterError

_FORMAT = 1  # raise it when a training changes, so that kept runs no longer stand for it
SIZES = {
    "full": {"digits": 2, "documents": 8000, "test": 500, "steps": 900, "dim": 64, "layers": 2, "seeds": 3},
    "quick": {"digits": 1, "documents": 300, "test": 30, "steps": 20, "dim": 32, "layers": 1, "seeds": 1},
}
CLEAN, ANSWER = "clean trace", "answer only"
CONSISTENCY, PERPLEXITY = "consistent documents only", "lowest 75 % perplexity only"
ARMS: dict[str, Noise] = {
    ANSWER: Noise(),
    CLEAN: Noise(),
    "static, characters 0.3, half": Noise(char=0.3, contamination=0.5),
    "static, characters 0.3, all": Noise(char=0.3),
    "static, characters 0.3 and the answer, all": Noise(char=0.3, noise_answer=True),
    "static, lines 0.3, all": Noise(line=0.3),
    "dynamic 0.3, half": Noise(dynamic=0.3, contamination=0.5),
    "dynamic 0.3, all": Noise(dynamic=0.3),
    # the paper's: hidden numbers too, so that a digit passes many draws
    "dynamic 0.3 on every number, half": Noise(dynamic=0.3, dynamic_mode="constructions", contamination=0.5),
    "dynamic 0.3 on every number, all": Noise(dynamic=0.3, dynamic_mode="constructions"),
}
FILTERED = ("dynamic 0.3, half",)
HALVES = ("static, characters 0.3, half", *FILTERED)
DROPPED = 0.25
LR = 5e-3


def _task(size: dict[str, Any]) -> TraceTask:
    return TraceTask("add", max_size=size["digits"])


def _test(size: dict[str, Any], seed: int) -> Corpus:
    return _task(size).generate(size["test"], seed=10_000 + seed, unique=True)


def _documents(arm: str, size: dict[str, Any], seed: int) -> Corpus:
    known = {d.prompt for d in _test(size, seed)}
    found = _task(size).generate(size["documents"], ARMS[arm], seed=seed, exclude=known)
    return found.answers_only() if arm == ANSWER else found


def _model(size: dict[str, Any]):
    """Return an untrained model and the tokenizer of both operations."""
    from skerry.bench.traced_integer_training import Decoder, WordTokenizer

    texts = [d.text for op in ("add", "sub") for d in TraceTask(op, max_size=size["digits"]).generate(200, seed=1)]
    words = WordTokenizer(texts)
    return Decoder(len(words), size["dim"], size["layers"]), words


def _fit(model, words, documents: Corpus, steps: int, seed: int) -> None:
    from skerry.bench.traced_integer_training import fine_tune
    from skerry.train.optim import Muon, split_params

    matrices, rest = split_params(model)
    optimizer = Muon(matrices, adamw_params=rest, lr=LR)
    fine_tune(model, words, documents, steps=steps, batch_size=32, warmup=30, optimizer=optimizer, seed=seed)


def _room(words, documents: Corpus) -> int:
    return max(len(words.encode(d.response)) for d in documents) + 25


def _train(documents: Corpus, size: dict[str, Any], seed: int):
    """Return the scores of a model trained on the documents, the model and its tokenizer."""
    import torch

    from skerry.bench.traced_integer_training import generator

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    test = _test(size, seed)
    model, words = _model(size)
    _fit(model, words, documents, size["steps"], seed)
    return evaluate(generator(model, words, _room(words, test)), test), model, words


def _job(arm: str, size: dict[str, Any], seed: int) -> dict[str, Any]:
    """Train an arm, and the filtered copies of it if it has any."""
    from skerry.bench.traced_integer_training import response_losses

    began = time.process_time()
    documents = _documents(arm, size, seed)
    scores, model, words = _train(documents, size, seed)
    found: dict[str, Any] = {"scores": {arm: scores}, "caught": None}
    if arm in HALVES:
        noised = np.array([d.is_noised for d in documents])
        inconsistent = np.array([bool(check_trace(d)) for d in documents])
        losses = response_losses(model, words, documents).numpy()
        worst = losses >= np.quantile(losses, 1 - DROPPED)
        found["caught"] = {
            name: [float(drop[noised].mean()), float(drop[~noised].mean())]
            for name, drop in ((CONSISTENCY, inconsistent), (PERPLEXITY, worst))
        }
        if arm in FILTERED:
            for name, drop in ((CONSISTENCY, inconsistent), (PERPLEXITY, worst)):
                kept = Corpus(d for d, out in zip(documents, drop, strict=True) if not out)
                found["scores"][f"{arm}: {name}"] = _train(kept, size, seed)[0]
    return found | {"seconds": time.process_time() - began}


def _kept(arm: str, size: dict[str, Any], seed: int) -> dict[str, Any]:
    """Return what a job found, from the cache of runs if it is there."""
    from skerry.bench.train_runs import kept, lab_folder

    folder = lab_folder(None)
    folder.mkdir(parents=True, exist_ok=True)
    key = json.dumps([_FORMAT, arm, asdict(ARMS[arm]), size, LR, seed], sort_keys=True)
    name = "tint-" + hashlib.sha256(key.encode()).hexdigest()[:16]
    return kept({"folder": folder, "steps": size["steps"]}, name, lambda: _job(arm, size, seed))


def run(
    quick: bool,
    data: Path,
    seed: int,
    progress: Callable[[str], None],
    seeds: int | None = None,
    model: str | None = None,
    variants: str | None = None,
    preset: str | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    if model is not None:
        from skerry.bench.tint_pretrained import study

        return study(Path(model), variants, preset or "paper", quick, seed, seeds or 1, device, progress)
    if variants is not None or preset is not None or device != "cpu":
        raise ParameterError("variants (operations), preset (a grid) and device belong to --model FOLDER: give one")
    from joblib import Parallel, delayed

    size, n_jobs = SIZES["quick" if quick else "full"], 1 if quick else 2
    n_seeds = size["seeds"] if seeds is None else int(seeds)
    shape = {k: v for k, v in size.items() if k != "seeds"}
    # The longest first, so that no process waits for another at the end.
    order = sorted(ARMS, key=lambda a: (a not in FILTERED, a == ANSWER))
    jobs = [(arm, s) for s in range(seed, seed + n_seeds) for arm in order]
    progress(f"{len(jobs) + 2 * len(FILTERED) * n_seeds} models of {size['steps']} steps; what the cache has is kept")

    scores: dict[str, list[dict[str, float]]] = defaultdict(list)
    caught: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    seconds = 0.0
    results = Parallel(n_jobs=n_jobs, return_as="generator")(delayed(_kept)(arm, shape, s) for arm, s in jobs)
    for k, ((arm, s), found) in enumerate(zip(jobs, results, strict=True), 1):
        for name, one in found["scores"].items():
            scores[name].append(one)
        for name, shares in (found["caught"] or {}).items():
            caught[arm, name].append(shares)
        seconds += found["seconds"]
        progress(f"{k} of {len(jobs)}: {arm}, seed {s}: accuracy {found['scores'][arm]['accuracy']:.3f}")

    progress("realised rates")
    sample = shape | {"documents": min(400, size["documents"])}
    rates = {arm: _documents(arm, sample, seed).rates() for arm in ARMS if arm != ANSWER}

    names = [n for arm in ARMS for n in (arm, f"{arm}: {CONSISTENCY}", f"{arm}: {PERPLEXITY}") if n in scores]
    accuracy = {n: float(np.mean([s["accuracy"] for s in scores[n]])) for n in names}
    rows = [
        {
            "training set": n,
            "accuracy": accuracy[n],
            "least": min(s["accuracy"] for s in scores[n]),
            "most": max(s["accuracy"] for s in scores[n]),
            "right lines": None if n == ANSWER else float(np.mean([s["line_accuracy"] for s in scores[n]])),
            "no answer": float(np.mean([s["parse_errors"] for s in scores[n]])),
        }
        for n in names
    ]
    clean, lines = accuracy[CLEAN], accuracy["static, lines 0.3, all"]
    still, still_half = accuracy["static, characters 0.3, all"], accuracy["static, characters 0.3, half"]
    moving, moving_half = accuracy["dynamic 0.3, all"], accuracy["dynamic 0.3, half"]
    deep, deep_half = (accuracy[f"dynamic 0.3 on every number, {share}"] for share in ("all", "half"))
    label = accuracy["static, characters 0.3 and the answer, all"]
    repaired, cheap = (accuracy[f"{FILTERED[0]}: {name}"] for name in (CONSISTENCY, PERPLEXITY))
    expectations = (
        ("clean traces beat answers alone by 0.2 or more", clean - accuracy[ANSWER], clean - accuracy[ANSWER] >= 0.2),
        ("static characters in every document cost at most 0.05", clean - still, clean - still <= 0.05),
        ("dynamic noise on every number, as in the paper, is worse than static at equal rate in all documents "
         "(difference)", still - deep, deep < still),
        ("the same in half of them (difference)", still_half - deep_half, deep_half < still_half),
        ("dynamic noise on assignments is worse than static at equal rate in all documents (difference)",
         still - moving, moving < still),
        ("the same in half of them (difference)", still_half - moving_half, moving_half < still_half),
        ("dynamic noise on every number in all documents collapses: accuracy below 0.1", deep, deep < 0.1),
        ("the consistency filter restores clean accuracy within 0.05 (gap)", clean - repaired,
         clean - repaired <= 0.05),
    )  # fmt: skip
    told = [f"{kind} {'worse than' if found < still else 'no worse than'} static"
            for kind, found in (("on every number", deep), ("on assignments", moving))]  # fmt: skip
    return {
        "title": "Noise in chains of thought: static and dynamic",
        "claim": (
            f"Addition of numbers of up to {size['digits']} digits, {n_seeds} seed(s), {size['steps']} steps, "
            f"accuracy on {size['test']} clean unseen questions: clean traces {clean:.3f}, answers alone "
            f"{accuracy[ANSWER]:.3f}. Noise at rate 0.3: static characters in half and all of the documents "
            f"{still_half:.3f} and {still:.3f} ({label:.3f} with the answer noised too), static lines in all "
            f"{lines:.3f}; dynamic on every number, the paper's kind, {deep_half:.3f} and {deep:.3f}, on assignments "
            f"alone {moving_half:.3f} and {moving:.3f}: at equal rate in all documents dynamic noise {told[0]} and "
            f"{told[1]} here. The set with dynamic noise in half: {repaired:.3f} after the consistency filter, "
            f"{cheap:.3f} after the perplexity filter."
        ),
        "table": rows,
        "tables": {
            "Realised damage": [{"training set": a} | {k: v for k, v in r.items() if k != "documents"}
                                for a, r in rates.items()],
            "What the filters drop": [
                {"training set": arm, "filter": name} | dict(zip(
                    ("of noised documents", "of clean documents"), np.mean(shares, axis=0).tolist(), strict=True))
                for (arm, name), shares in sorted(caught.items())
            ],
            "Expectations": [
                {"expected": t, "measured": float(v), "met": "yes" if met else "no"} for t, v, met in expectations
            ],
        },
        "notes": [
            f"Decoder of {size['layers']} layers of {size['dim']} from scratch, {size['steps']} steps of 32 out of "
            f"{size['documents']:,} documents, Muon at {LR} on a cosine, a token per name, sign, digit and line end, "
            "greedy decoding. The paper fine-tunes pretrained models, and far longer: robustness that needs many steps "
            "cannot show here.",
            "With noise independent of the digit the likeliest next digit stays the right one, in static and in "
            "dynamic noise alike. Static noise also spoils the context that a digit is worked out from; dynamic noise "
            "on every number passes a digit through many draws, hidden ones too, before it is written.",
            "Rates are not comparable across kinds: the table of realised damage says what each did. Static noise "
            "keeps the answer unless told; noise on assignments spares the answer's copy, noise on every number does "
            "not.",
            "The consistency filter replays each trace and drops documents with a line that does not follow. The "
            "perplexity filter drops the worst quarter by the model trained on the same set.",
            f"CPU seconds of all models together: {seconds:.0f}.",
            "Not part of the run, for want of the models: fine-tuning Pythia-410M and prompting with noised examples. "
            "`skerry bench run tint-noise --model FOLDER` does both on the paper's grid.",
        ],
    }  # fmt: skip
