"""TInt: chains of thought that algorithms write, and noise in them as a dial (Havrilla and Iyer, arXiv 2402.04004).

A task draws arguments, runs an algorithm on traced integers and writes prompt, trace and answer. The parts: numbers and
tracing in ``traced_integer_core``, arithmetic in ``traced_integer_algorithms``, noise in ``traced_integer_noise``, the
replay that finds inconsistent lines in ``traced_integer_check``, evaluation and files in ``traced_integer_protocol``,
fine-tuning in ``traced_integer_training``. The study is ``skerry bench run tint-noise``.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, overload

from skerry.bench import traced_integer_algorithms as algorithms
from skerry.bench.traced_integer_check import Inconsistency, plain_answer, replay
from skerry.bench.traced_integer_core import Level, TInt, Trace, TraceLimit, render, traced
from skerry.bench.traced_integer_noise import Noise, NoisyTrace, edit
from skerry.bench.traced_integer_protocol import evaluate, few_shot_prompt, write_jsonl
from skerry.core.errors import DataError, ParameterError, nearest

__all__ = [
    "Corpus",
    "Document",
    "Inconsistency",
    "Noise",
    "TInt",
    "TraceTask",
    "check_trace",
    "evaluate",
    "few_shot_prompt",
    "traced",
    "write_jsonl",
]

# Per operation: the function, its sign between two numbers, arguments, their digits, and what is shown.
_OPERATIONS: dict[str, tuple[Callable[..., Any], str | None, int, int, tuple[str, ...]]] = {
    "add": (algorithms.add, "+", 2, 10, ("add",)),
    "sub": (algorithms.sub, "-", 2, 10, ("sub",)),
    "mul": (algorithms.mul, "*", 2, 5, ("mul",)),
    "div": (algorithms.div, "//", 2, 8, ("div",)),
    "mod": (algorithms.mod, "%", 2, 8, ("div",)),
    "gcd": (algorithms.gcd, None, 2, 5, ("gcd",)),
    "sort": (algorithms.sort, None, 5, 3, ("sort",)),
    "median": (algorithms.median, None, 5, 3, ("median", "sort")),
    "mixed": (algorithms.mixed, None, 3, 3, ("mixed", "add", "mul")),
}
_LISTS = ("sort", "median", "mixed")
_TRIES = 1000


@dataclass(frozen=True)
class Document:
    """One question with its trace.

    Attributes
    ----------
    prompt : str
        The question, without a line end.
    response : str
        Lines of the trace, then the answer.
    answer : str
        The true answer, without spaces.
    is_noised : bool
        Whether noise was applied to it; at low rates it may still equal the clean one.
    args : tuple
    task : TraceTask
    noised_lines : tuple of int
        Lines whose values dynamic noise changed.
    changed_digits, digits, deleted_lines : int
        What static noise did.
    """

    prompt: str
    response: str
    answer: str
    is_noised: bool
    args: tuple[Any, ...] = field(repr=False)
    task: TraceTask = field(repr=False)
    noised_lines: tuple[int, ...] = field(default=(), repr=False)
    changed_digits: int = field(default=0, repr=False)
    digits: int = field(default=0, repr=False)
    deleted_lines: int = field(default=0, repr=False)

    @property
    def lines(self) -> list[str]:
        """Lines of the response."""
        return self.response.split("\n")

    @property
    def text(self) -> str:
        """Prompt and response."""
        return f"{self.prompt}\n{self.response}"


@dataclass(frozen=True)
class TraceTask:
    """Questions of one kind, and how their answers are written.

    Parameters
    ----------
    op : str or callable
        ``add sub mul div mod gcd sort median mixed``, or a function under :func:`traced`.
    n_args : int, optional
        Length of the list for ``sort``, ``median`` and ``mixed``; otherwise the number of arguments.
    max_size, min_size : int, optional
        Digits for ``sampling="len"``; bounds of the numbers, the upper one excluded, for ``"mag"``.
    visible, call : tuple of str, optional
        Functions whose lines are shown, and functions of which only the call is shown.
    sampling : {"len", "mag"}, default "len"
        Uniform in the number of digits, or in the number.
    line_limit : int, default 300
        Questions whose trace grows longer are drawn anew, never cut.
    sample : callable, optional
        ``sample(rng) -> arguments`` in place of the sampling above; needed for a function that takes numbers and lists.

    Examples
    --------
    >>> task = TraceTask("add", max_size=2)
    >>> document = task.document((57, 68))
    >>> document.prompt, document.lines[:3], document.lines[-2:], document.answer
    ('5 7 + 6 8', ['x = 5 7 , y = 6 8', 'res = 0', 'carry = 0'], ['res = 1 2 5', '1 2 5'], '125')
    """

    op: str | Callable[..., Any]
    n_args: int | None = None
    max_size: int | None = None
    min_size: int = 1
    visible: tuple[str, ...] | None = None
    call: tuple[str, ...] = ()
    sampling: str = "len"
    line_limit: int = 300
    sample: Callable[[random.Random], tuple[Any, ...]] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.op, str):
            if self.op not in _OPERATIONS:
                raise ParameterError(f"unknown operation {self.op!r}: {nearest(self.op, _OPERATIONS)}")
            _, _, n_args, size, visible = _OPERATIONS[self.op]
        elif hasattr(self.op, "trace_name"):
            n_args, size, visible = 2, 3, (self.op.trace_name,)
        else:
            raise ParameterError(f"{self.op!r} is not traced: put @traced above its definition")
        for name, value in (("n_args", n_args), ("max_size", size), ("visible", visible)):
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        if self.sampling not in ("len", "mag"):
            raise ParameterError(f"sampling is {self.sampling!r}: give 'len' or 'mag'")
        low = self.min_size if self.sampling == "len" else self.min_size + 1
        if self.n_args < 1 or self.line_limit < 1 or not 0 <= self.min_size <= self.max_size or self.max_size < low:
            raise ParameterError(
                f"n_args {self.n_args}, sizes {self.min_size} to {self.max_size}, line_limit {self.line_limit}: "
                "nothing can be drawn"
            )

    @property
    def name(self) -> str:
        """The operation's name."""
        return self.op if isinstance(self.op, str) else self.op.trace_name

    @property
    def levels(self) -> dict[str, Level]:
        """Function to what is shown of it."""
        return dict.fromkeys(self.call, "call") | dict.fromkeys(self.visible, "visible")

    def question(self, args: tuple[Any, ...]) -> str:
        """Return the prompt for arguments."""
        sign = _OPERATIONS[self.op][1] if isinstance(self.op, str) else None
        written = [render(a) for a in args]
        if sign and len(args) == 2:
            return f"{written[0]} {sign} {written[1]}"
        return f"{self.name} ( {' , '.join(written)} )"

    def document(self, args: Iterable[Any], noise: Noise | None = None, rng: random.Random | None = None) -> Document:
        """Return the document of given arguments.

        Parameters
        ----------
        args : iterable of int or list of int
        noise : Noise, optional
            Applied as it is: ``contamination`` plays no role here.
        rng : random.Random, optional

        Raises
        ------
        TraceLimit
            If the trace is longer than ``line_limit``.
        """
        args = tuple([TInt(v) for v in a] if isinstance(a, (list, tuple)) else TInt(a) for a in args)
        noise, rng = noise or Noise(), rng or random.Random("noise")
        function = _OPERATIONS[self.op][0] if isinstance(self.op, str) else self.op
        answer = plain_answer(_answer_line(Trace({}, self.line_limit).run(function, *args)))
        trace = NoisyTrace(self.levels, self.line_limit, noise, rng)
        result = trace.run(lambda: _copy(function(*args), trace.inner_noise))
        if len(trace.lines) >= self.line_limit:
            raise TraceLimit(f"more than {self.line_limit} lines")
        lines = [*trace.lines, _answer_line(result)]
        edited, changed, digits = edit(lines, noise, rng)
        return Document(
            prompt=self.question(args),
            response="\n".join(edited),
            answer=answer,
            is_noised=bool(noise.char or noise.line or noise.dynamic),
            args=args,
            task=self,
            noised_lines=tuple(sorted(trace.noised)),
            changed_digits=changed,
            digits=digits,
            deleted_lines=len(lines) - len(edited),
        )

    def generate(
        self,
        n: int,
        noise: Noise | None = None,
        seed: int = 0,
        *,
        exclude: Collection[str] = (),
        unique: bool = False,
        n_jobs: int = 1,
    ) -> Corpus:
        """Return ``n`` documents.

        Parameters
        ----------
        n : int
        noise : Noise, optional
        seed : int, default 0
            The same seed gives the same documents, whatever ``n_jobs``; a longer set begins with the shorter one.
        exclude : collection of str
            Prompts that must not occur: those of the test set.
        unique : bool, default False
            Whether every question occurs once.
        n_jobs : int, default 1
            Processes.

        Raises
        ------
        DataError
            If no new question is found in 1,000 draws, or every trace is too long.
        """
        noise, exclude = noise or Noise(), set(exclude)
        found: list[Document] = []
        start = failed = 0
        while len(found) < n:
            count = max(16, n - len(found))
            for document in self._batch(range(start, start + count), noise, seed, n_jobs):
                failed = failed + 1
                if len(found) < n and document is not None and document.prompt not in exclude:
                    found.append(document)
                    failed = 0
                    if unique:
                        exclude.add(document.prompt)
            start += count
            if failed >= _TRIES and len(found) < n:
                raise DataError(
                    f"{self.name}: {len(found)} of {n} documents found, then none in {failed} draws; allow larger "
                    "numbers, a longer line_limit or less noise"
                )
        return Corpus(found)

    def _batch(self, numbers: range, noise: Noise, seed: int, n_jobs: int) -> Iterable[Document | None]:
        if n_jobs == 1:
            return (self._draw(k, noise, seed) for k in numbers)
        from joblib import Parallel, delayed

        return Parallel(n_jobs=n_jobs, batch_size=256)(delayed(self._draw)(k, noise, seed) for k in numbers)

    def _draw(self, number: int, noise: Noise, seed: int) -> Document | None:
        rng = random.Random(f"{seed} {number}")
        args = self._arguments(rng)
        if rng.random() >= noise.contamination:
            noise = Noise()
        try:
            return self.document(args, noise, random.Random(f"{seed} {number} noise"))
        except TraceLimit:
            return None

    def _arguments(self, rng: random.Random) -> tuple[Any, ...]:
        if self.sample is not None:
            return tuple(self.sample(rng))
        numbers = [self._number(rng) for _ in range(self.n_args)]
        if self.op in _LISTS:
            return (numbers,)
        while self.op in ("div", "mod") and min(numbers) == 0:
            numbers = [self._number(rng) for _ in numbers]
        if self.op in ("sub", "div", "mod", "gcd"):
            numbers.sort(reverse=True)
        return tuple(numbers)

    def _number(self, rng: random.Random) -> int:
        if self.sampling == "mag":
            return rng.randrange(self.min_size, self.max_size)
        length = rng.randint(max(1, self.min_size), self.max_size)
        return rng.randrange(10 ** (length - 1) if length > 1 else 0, 10**length)


class Corpus(Sequence[Document]):
    """Documents in a row, with what was done to them in numbers."""

    def __init__(self, documents: Iterable[Document]) -> None:
        self._documents = tuple(documents)

    @overload
    def __getitem__(self, i: int) -> Document: ...
    @overload
    def __getitem__(self, i: slice) -> Corpus: ...
    def __getitem__(self, i):
        return Corpus(self._documents[i]) if isinstance(i, slice) else self._documents[i]

    def __len__(self) -> int:
        return len(self._documents)

    def __iter__(self) -> Iterator[Document]:
        return iter(self._documents)

    def answers_only(self) -> Corpus:
        """Return the documents without their traces."""
        return Corpus(replace(d, response=d.lines[-1], noised_lines=()) for d in self)

    def consistent(self) -> Corpus:
        """Return the documents in which every line follows from those before: the filter that dynamic noise needs."""
        return Corpus(d for d in self if not check_trace(d))

    def rates(self) -> dict[str, float]:
        """Return the damage that the noise did.

        Returns
        -------
        dict
            ``documents``; shares: ``noised`` of documents, ``digits`` of the digits that static noise could reach,
            ``lines_deleted`` of lines, ``wrong_answers`` of documents, ``inconsistent_lines`` of the lines,
            ``inconsistent_documents``.
        """
        n, lines = max(1, len(self)), sum(len(d.lines) + d.deleted_lines for d in self)
        wrong = [check_trace(d) for d in self]
        return {
            "documents": len(self),
            "noised": sum(d.is_noised for d in self) / n,
            "digits": sum(d.changed_digits for d in self) / max(1, sum(d.digits for d in self)),
            "lines_deleted": sum(d.deleted_lines for d in self) / max(1, lines),
            "wrong_answers": sum(plain_answer(d.lines[-1]) != d.answer for d in self) / n,
            "inconsistent_lines": sum(map(len, wrong)) / max(1, lines),
            "inconsistent_documents": sum(map(bool, wrong)) / n,
        }


def check_trace(document: Document, response: str | None = None) -> list[Inconsistency]:
    """Return the lines of a document that do not follow from its question and the lines before.

    Parameters
    ----------
    document : Document
    response : str, optional
        Another text in place of the document's own: what a model wrote.

    Examples
    --------
    >>> document = TraceTask("add").document((57, 68))
    >>> check_trace(document)
    []
    >>> wrong = check_trace(document, document.response.replace("ds = 1 5", "ds = 1 4"))
    >>> wrong[0], len(wrong)  # and the next line, res = 5, does not follow from 14
    (Inconsistency(line=7, expected='ds = 1 5', found='ds = 1 4'), 2)
    """
    task = document.task
    function = _OPERATIONS[task.op][0] if isinstance(task.op, str) else task.op
    lines = (document.response if response is None else response).split("\n")
    return replay(function, document.args, task.levels, task.line_limit, lines)


def _copy(value: Any, again: bool) -> Any:
    """Return the answer's copy, which noise on constructions reaches as it reaches any number."""
    return TInt(value) if again and isinstance(value, TInt) else value


def _answer_line(value: Any) -> str:
    text = render(TInt(int(value)) if isinstance(value, TInt) else value)
    if text is None:
        raise ParameterError(f"the traced function returned {value!r}: it must return a number or a list of numbers")
    return text
