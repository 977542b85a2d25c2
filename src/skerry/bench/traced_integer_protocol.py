"""How traces are used: evaluation on clean questions, few-shot prompts, and files for other trainers."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from skerry.bench.traced_integer_check import plain_answer
from skerry.core.errors import DataError, ParameterError
from skerry.core.files import atomic_write

if TYPE_CHECKING:
    from skerry.bench.traced_integer import Document

__all__ = ["INSTRUCTION", "evaluate", "few_shot_prompt", "write_jsonl"]

INSTRUCTION = "Work each problem out line by line as the examples do, and end with a line that is the answer alone."


def few_shot_prompt(exemplars: Sequence[Document], question: str, instruction: str = INSTRUCTION) -> str:
    """Return a prompt of worked examples, noised or not, that ends with the question and a line end.

    Parameters
    ----------
    exemplars : sequence of Document
        The paper uses six.
    question : str
    instruction : str
        Put first; empty for none.

    Returns
    -------
    str
    """
    parts = ([instruction] if instruction else []) + [d.text for d in exemplars] + [f"{question}\n"]
    return "\n\n".join(parts)


def evaluate(
    generate: Callable[[list[str]], Sequence[str]],
    documents: Sequence[Document],
    *,
    exemplars: Sequence[Document] = (),
    instruction: str = INSTRUCTION,
) -> dict[str, float]:
    """Ask a model every question and compare the last line that it writes with the true answer.

    Parameters
    ----------
    generate : callable
        Takes prompts that end with a line end, returns the continuations; at temperature 0, at most as long as the
        longest response and 25 tokens.
    documents : sequence of Document
        Clean ones: the lines of their traces are what the model's are compared with.
    exemplars : sequence of Document
        For few-shot prompting; without them the bare question is the prompt, as after fine-tuning.
    instruction : str
        Of :func:`few_shot_prompt`.

    Returns
    -------
    dict
        ``accuracy``, ``parse_errors`` (last lines that are no answer at all), ``line_accuracy`` (lines before the
        answer that stand where the clean trace has them).

    Raises
    ------
    DataError
        If ``documents`` is empty or holds noised ones, or the model returned another number of texts.

    Examples
    --------
    >>> from skerry.bench.traced_integer import TraceTask
    >>> documents = TraceTask("add", max_size=2).generate(5)
    >>> known = {f"{d.prompt}\\n": d.response for d in documents}
    >>> evaluate(lambda prompts: [known[p] for p in prompts], documents)
    {'accuracy': 1.0, 'parse_errors': 0.0, 'line_accuracy': 1.0}
    """
    if not documents:
        raise DataError("no documents to evaluate on")
    if any(d.is_noised for d in documents):
        raise DataError("the documents to evaluate on are noised: generate them without noise")
    prompts = [few_shot_prompt(exemplars, d.prompt, instruction) if exemplars else f"{d.prompt}\n" for d in documents]
    texts = list(generate(prompts))
    if len(texts) != len(documents):
        raise DataError(f"generate returned {len(texts)} texts for {len(documents)} prompts")
    right = unreadable = same = lines = 0
    for document, text in zip(documents, texts, strict=True):
        written = [line.strip() for line in text.strip().split("\n")]
        answer = plain_answer(written[-1])
        right += answer == document.answer
        unreadable += not answer or not set(answer) <= set("0123456789[],")
        expected = document.lines[:-1]
        same += sum(a == b for a, b in zip(expected, written[:-1], strict=False))
        lines += len(expected)
    n = len(documents)
    return {"accuracy": right / n, "parse_errors": unreadable / n, "line_accuracy": same / lines if lines else 1.0}


def write_jsonl(
    documents: Sequence[Document], path: str | Path, style: Literal["prompt", "chat", "text"] = "prompt"
) -> None:
    """Write documents as JSON lines for other trainers.

    Parameters
    ----------
    documents : sequence of Document
    path : path
    style : {"prompt", "chat", "text"}, default "prompt"
        ``prompt`` and ``completion``; ``messages`` of user and assistant; or one ``text``. Every line also has
        ``answer`` and ``noised``.

    Raises
    ------
    ParameterError
        For another style.
    DataError
        If the file cannot be written.
    """
    forms = {
        "prompt": lambda d: {"prompt": f"{d.prompt}\n", "completion": d.response},
        "chat": lambda d: {
            "messages": [{"role": "user", "content": d.prompt}, {"role": "assistant", "content": d.response}]
        },
        "text": lambda d: {"text": d.text},
    }
    if style not in forms:
        raise ParameterError(f"style is {style!r}: give one of {', '.join(map(repr, forms))}")
    with atomic_write(path) as file:
        for d in documents:
            row = forms[style](d) | {"answer": d.answer, "noised": d.is_noised}
            file.write(json.dumps(row).encode() + b"\n")
