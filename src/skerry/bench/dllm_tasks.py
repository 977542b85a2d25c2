"""Tasks of the study of diffusion language models, in a form that characters can carry.

General: the true continuation of a passage among four. Mathematics: two-digit additions. Code: closing brackets, and
copying a name. The last three are answered by generation, character by character.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from skerry.core.errors import DataError
from skerry.deep.masked_diffusion import MaskedDiffusionLM
from skerry.deep.masked_sampling import generate, loglikelihood

__all__ = ["LENGTH", "TASKS", "Cloze", "Written", "decode", "encode", "score_cloze", "score_written", "shakespeare"]

ALPHABET = "".join(map(chr, range(32, 127))) + "\n"
MASK = len(ALPHABET)
LENGTH = 64  # characters of a training row
PREFIX = 40  # of them, before the continuation
TASKS = ("cloze", "addition", "brackets", "copy")
PAIRS = {"(": ")", "[": "]", "{": "}", "<": ">"}
NAMES = "abcdefghijklmnopqrstuvwxyz"
DEPTH, LETTERS = 5, 5
SHOTS = 2  # solved examples before the question


def encode(text: str) -> Tensor:
    """Return the codes (len,) int64 of a text.

    Examples
    --------
    >>> encode("a b").tolist(), decode(encode("a b"))
    ([65, 0, 66], 'a b')
    """
    return torch.tensor([ALPHABET.index(c) for c in text])


def decode(codes: Tensor) -> str:
    """Return the text of codes; [MASK] is shown as a low line."""
    return "".join("_" if c == MASK else ALPHABET[c] for c in codes.tolist())


def shakespeare(data: Path) -> tuple[Tensor, Tensor]:
    """Return the codes of tinyshakespeare, for training and (the last tenth) held out.

    Raises
    ------
    DataError
        If the folder has no such text.
    """
    path = data / "text" / "tinyshakespeare.txt.gz"
    if not path.is_file():
        raise DataError(f"no text at {path}: set SKERRY_DATA or --data to the folder of data sets")
    raw = np.frombuffer(gzip.open(path).read(), np.uint8).astype(np.int64)
    codes = torch.from_numpy(np.where(raw == 10, MASK - 1, raw - 32))
    cut = int(0.9 * len(codes))
    return codes[:cut], codes[cut:]


@dataclass(frozen=True)
class Written:
    """Questions answered by generation: prompts (n, P), answers (n, G), characters of a block of generation."""

    prompts: Tensor
    answers: Tensor
    block: int


@dataclass(frozen=True)
class Cloze:
    """Passages (n, 40), options (n, 4, 24) and the index (n,) of the true one."""

    prefixes: Tensor
    options: Tensor
    right: Tensor


def _addition(random: np.random.Generator, held: bool) -> tuple[str, str]:
    while True:
        a, b = random.integers(0, 100, 2)
        if _is_held(int(a) * 100 + int(b)) == held:
            return f"{a:02d}+{b:02d}=", f"{a + b:03d};"


def _brackets(random: np.random.Generator, held: bool) -> tuple[str, str]:
    while True:
        kinds = random.integers(0, 4, DEPTH)
        if _is_held(int(kinds @ 4 ** np.arange(DEPTH))) == held:
            opens = "".join("([{<"[k] for k in kinds)
            return f"{opens}|", "".join(PAIRS[c] for c in reversed(opens)) + ";"


def _copy(random: np.random.Generator, held: bool) -> tuple[str, str]:
    name = "".join(NAMES[i] for i in random.integers(0, 26, LETTERS))
    return f"{name}:", f"{name};"


MAKERS: dict[str, tuple[Callable[[np.random.Generator, bool], tuple[str, str]], int]] = {
    "addition": (_addition, 4),
    "brackets": (_brackets, 3),
    "copy": (_copy, 3),
}


def _is_held(number: int) -> bool:
    """Say whether a question belongs to the tenth that training never shows."""
    return (number * 2_654_435_761 + 12_345) % 2**32 // 64 % 10 == 0


def practice(task: str, rows: int, random: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Return training rows (rows, 64) of a task's solved questions, one after the other, and where answers stand."""
    make = MAKERS[task][0]
    texts, places = [], []
    for _ in range(rows):
        text, where = "", []
        while len(text) < LENGTH:
            question, answer = make(random, False)
            text += question + answer
            where += [False] * len(question) + [True] * len(answer)
        texts.append(encode(text[:LENGTH]))
        places.append(torch.tensor(where[:LENGTH]))
    return torch.stack(texts), torch.stack(places)


def questions(task: str, n: int, random_state: int) -> Written:
    """Return ``n`` held-out questions of a task, each after two solved ones.

    Examples
    --------
    >>> found = questions("addition", 3, 0)
    >>> found.prompts.shape, found.answers.shape
    (torch.Size([3, 26]), torch.Size([3, 4]))
    """
    make, block = MAKERS[task]
    random = np.random.default_rng([random_state, len(task)])
    prompts, answers = [], []
    for _ in range(n):
        shown = "".join("".join(make(random, False)) for _ in range(SHOTS))
        question, answer = make(random, True) if task != "copy" else make(random, False)
        prompts.append(encode(shown + question))
        answers.append(encode(answer))
    return Written(torch.stack(prompts), torch.stack(answers), block)


def cloze(held: Tensor, n: int, random_state: int) -> Cloze:
    """Return ``n`` passages of the held-out text, each with its continuation and three of other places."""
    generator = torch.Generator().manual_seed(random_state)
    at = torch.randint(0, len(held) - LENGTH, (n, 4), generator=generator)
    windows = held[at[..., None] + torch.arange(LENGTH)]
    right = torch.randint(0, 4, (n,), generator=generator)
    options = windows[..., PREFIX:].clone()
    rows = torch.arange(n)
    options[rows, 0], options[rows, right] = options[rows, right].clone(), options[rows, 0].clone()
    return Cloze(windows[:, 0, :PREFIX], options, right)


def score_cloze(model: MaskedDiffusionLM, task: Cloze, mc_num: int, random_state: int) -> float:
    """Return the share of passages whose true continuation is the likeliest; every model sees the same masks."""
    n, options, length = task.options.shape
    prefixes = task.prefixes.repeat_interleave(options, 0)
    generator = torch.Generator().manual_seed(random_state)
    found = loglikelihood(
        model, prefixes, task.options.reshape(-1, length), mc_num=mc_num, batch=mc_num, generator=generator
    )
    return float((found.reshape(n, options).argmax(1) == task.right).double().mean())


def score_written(model: MaskedDiffusionLM, task: Written, *, exact: bool = False) -> float:
    """Return the share of right characters, or with ``exact`` of answers without a wrong one; one character a step.

    The semicolon that ends every answer does not count.
    """
    length = task.answers.shape[1]
    found = generate(model, task.prompts, gen_length=length, steps=length, block_length=task.block)
    right = (found[:, -length:] == task.answers)[:, :-1]
    return float((right.all(1) if exact else right).double().mean())
