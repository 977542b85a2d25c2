"""Integers that write down what an algorithm does to them: the number, the trace and the decorator (TInt, 2024).

A function under :func:`traced` runs as it is until a :class:`Trace` is active. Then a copy of it runs whose assignments
report to the trace: the syntax tree is rewritten once, so any function on integers and lists of them can be traced,
values can be replaced while it runs (noise, replay), and two traces never share state.
"""

from __future__ import annotations

import ast
import functools
import inspect
import re
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any, Literal

from skerry.bench.traced_integer_rewrite import instrument
from skerry.core.errors import ParameterError, SkerryError

__all__ = ["TInt", "Trace", "TraceLimit", "render", "traced"]

Level = Literal["visible", "call", "invisible"]
ALGORITHMS: dict[str, Callable[..., Any]] = {}
_ACTIVE: ContextVar[Trace | None] = ContextVar("trace", default=None)


class TraceLimit(SkerryError):
    """A trace grew beyond its limit, as loops over wrong values may."""


class TInt:
    """A natural number as a string of digits; the empty string is an empty accumulator and counts as 0.

    ``+ - * // %`` run the schoolbook algorithms of :mod:`skerry.bench.traced_integer_algorithms`; ``x | y`` joins the
    digits, ``x >> k`` drops ``k`` digits from the right, ``x << k`` appends zeros, ``x[i]`` is the i-th digit from the
    right (0 beyond the end), ``len`` counts digits.

    Parameters
    ----------
    value : int, str or TInt, default ""

    Raises
    ------
    ParameterError
        If ``value`` is negative or not a number; from ``-``, outside of a trace, if the result would be negative.

    Examples
    --------
    >>> x = TInt(57)
    >>> int(x + 68), int(x[0]), int(x >> 1), int(x | 3), int(TInt(100) // 7)
    (125, 7, 5, 573, 14)
    """

    __slots__ = ("digits",)

    def __init__(self, value: int | str | TInt = "") -> None:
        digits = value.digits if isinstance(value, TInt) else str(value)
        if digits and not (digits.isascii() and digits.isdigit()):
            raise ParameterError(f"{value!r} is not a natural number")
        trace = _ACTIVE.get()
        self.digits = digits if trace is None else trace.constructed(digits)

    def __int__(self) -> int:
        return int(self.digits or 0)

    def __index__(self) -> int:
        return int(self)

    def __len__(self) -> int:
        return len(self.digits)

    def __bool__(self) -> bool:
        return int(self) != 0

    def __getitem__(self, i: int) -> TInt:
        return TInt(self.digits[-1 - i] if 0 <= i < len(self.digits) else "0")

    def __rshift__(self, k: int) -> TInt:
        return TInt(self.digits[: max(0, len(self.digits) - int(k))])

    def __lshift__(self, k: int) -> TInt:
        return TInt(self.digits + "0" * int(k))

    def __or__(self, other: int | TInt) -> TInt:
        return TInt(self.digits + _digits(other))

    def __ror__(self, other: int) -> TInt:
        return TInt(_digits(other) + self.digits)

    def __add__(self, other: int | TInt) -> TInt:
        return _compute("add", self, other, lambda x, y: x + y)

    def __mul__(self, other: int | TInt) -> TInt:
        return _compute("mul", self, other, lambda x, y: x * y)

    def __sub__(self, other: int | TInt) -> TInt:
        if _ACTIVE.get() is None and self < other:
            raise ParameterError(f"{int(self)} - {int(other)} is negative: traced integers are natural numbers")
        # Within a trace wrong values may be subtracted; the last borrow is lost then, as on paper.
        return _compute("sub", self, other, lambda x, y: x - y if x >= y else (x - y) % 10 ** max(1, len(self)))

    def __floordiv__(self, other: int | TInt) -> TInt:
        return _compute("div", self, other, lambda x, y: x // y)

    def __mod__(self, other: int | TInt) -> TInt:
        return _compute("mod", self, other, lambda x, y: x % y)

    def __radd__(self, other: int) -> TInt:
        return TInt(other) + self

    def __rmul__(self, other: int) -> TInt:
        return TInt(other) * self

    def __rsub__(self, other: int) -> TInt:
        return TInt(other) - self

    def __rfloordiv__(self, other: int) -> TInt:
        return TInt(other) // self

    def __rmod__(self, other: int) -> TInt:
        return TInt(other) % self

    def __eq__(self, other: object) -> bool:
        return int(self) == int(other) if isinstance(other, (int, TInt)) else NotImplemented

    def __hash__(self) -> int:
        return hash(int(self))

    def __lt__(self, other: int | TInt) -> bool:
        return int(self) < int(other)

    def __le__(self, other: int | TInt) -> bool:
        return int(self) <= int(other)

    def __gt__(self, other: int | TInt) -> bool:
        return int(self) > int(other)

    def __ge__(self, other: int | TInt) -> bool:
        return int(self) >= int(other)

    def __repr__(self) -> str:
        return f"TInt({self.digits!r})"


def _digits(value: int | TInt) -> str:
    return value.digits if isinstance(value, TInt) else str(value)


def _compute(name: str, x: TInt, y: int | TInt, known: Callable[[int, int], int]) -> TInt:
    """Run the algorithm if it can be seen or its inner values can be noised; else answer at once."""
    y = y if isinstance(y, TInt) else TInt(y)
    trace = _ACTIVE.get()
    # Outside of a trace the algorithm itself answers: what is traced and what is computed cannot differ.
    if trace is not None and not trace.steps_into("div" if name == "mod" else name):
        if name in ("div", "mod") and not y:
            raise TraceLimit("a division by zero never ends")
        return TInt(known(int(x), int(y)))
    if trace is None and name in ("div", "mod") and not y:
        raise ZeroDivisionError("division of a traced integer by zero")
    return ALGORITHMS[name](x, y)


def render(value: Any) -> str | None:
    """Return a value as it is written in a trace, digits apart; None for what cannot be written.

    >>> render([TInt(31), TInt("")])
    '[ 3 1 , 0 ]'
    """
    if isinstance(value, TInt):
        return " ".join(value.digits) or "0"
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return " ".join(str(value))
    if isinstance(value, (list, tuple)):
        parts = [render(v) for v in value]
        if None not in parts:
            return f"[ {' , '.join(parts)} ]" if parts else "[ ]"
    return None


class Trace:
    """What one run wrote.

    Parameters
    ----------
    levels : mapping of function name to {"visible", "call", "invisible"}
        Functions that are absent are invisible.
    limit : int, default 300
        Lines; beyond it :class:`TraceLimit` is raised.

    Attributes
    ----------
    lines : list of str
    """

    inner_noise = False

    def __init__(self, levels: Mapping[str, Level], limit: int = 300) -> None:
        self.levels = dict(levels)
        self.limit = limit
        self.lines: list[str] = []
        self.callers: list[Frame] = []
        self._left = 200 * limit

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """Run a traced function under this trace and return its result."""
        token = _ACTIVE.set(self)
        try:
            return function(*args)
        finally:
            _ACTIVE.reset(token)

    def steps_into(self, name: str) -> bool:
        """Tell whether the algorithm ``name`` must run step by step."""
        return self.inner_noise or self.levels.get(name) == "visible"

    # What noise and replay change ----------------------------------------------------------------------------------

    def constructed(self, digits: str) -> str:
        """Return the digits that a new number gets."""
        self._left -= 1  # a loop that writes no line must end too
        if self._left < 0:
            raise TraceLimit(f"more than {200 * self.limit} numbers without an end")
        return digits

    def assigned(self, name: str, value: Any) -> Any:
        """Return the value that a variable gets."""
        return value

    def write(self, names: tuple[str, ...], values: list[Any], text: str) -> None:
        """Take a line of values."""
        if not self.lines or self.lines[-1] != text:
            self.add(text)

    def write_call(self, text: str) -> None:
        """Take a line that shows a call with its values."""
        self.add(text)

    def add(self, text: str) -> None:
        """Append a line."""
        if len(self.lines) >= self.limit:
            raise TraceLimit(f"more than {self.limit} lines")
        self.lines.append(text)


class Frame:
    """One visible call: what its statements report."""

    def __init__(self, trace: Trace, statements: list[tuple[str, ast.expr]]) -> None:
        self.trace = trace
        self.statements = statements
        self.pending: tuple[int, dict[str, Any]] | None = None
        self.known: dict[str, str | None] = {}

    def at(self, statement: int, variables: dict[str, Any]) -> None:
        """Remember the statement that runs, in case that it calls a function that shows itself."""
        self.pending = (statement, variables)

    def show_call(self) -> None:
        if self.pending is None:
            return
        (target, expression), variables = self.statements[self.pending[0]], self.pending[1]
        self.pending = None
        shown = _Substitute(variables).visit(ast.parse(ast.unparse(expression), mode="eval").body)
        self.trace.write_call(_spaced(target + ast.unparse(shown)))

    def value(self, name: str, value: Any) -> Any:
        return self.trace.assigned(name, value)

    def values(self, names: tuple[str, ...], values: Any) -> tuple[Any, ...]:
        return tuple(self.trace.assigned(n, v) for n, v in zip(names, values, strict=True))

    def wrote(self, names: tuple[str, ...], variables: dict[str, Any]) -> None:
        """Write the variables just assigned, and the lists that changed."""
        self.pending = None
        lists = {n: render(v) for n, v in variables.items() if isinstance(v, list)}
        changed = [n for n, text in lists.items() if n in self.known and self.known[n] != text and n not in names]
        self.known = lists
        shown = [(n, variables[n], render(variables[n])) for n in (*names, *changed)]
        shown = [s for s in shown if s[2] is not None]
        if shown:
            text = " , ".join(f"{n} = {t}" for n, _, t in shown)
            self.trace.write(tuple(n for n, _, _ in shown), [v for _, v, _ in shown], text)


class _Substitute(ast.NodeTransformer):
    def __init__(self, variables: dict[str, Any]) -> None:
        self.variables = variables

    def visit_Name(self, node: ast.Name) -> ast.AST:
        text = render(self.variables.get(node.id))
        return node if text is None else ast.Name(id=text, ctx=node.ctx)


def _spaced(text: str) -> str:
    """Return an expression with its symbols and the digits of its numbers apart."""
    text = re.sub(r"(?<![\w])\d+", lambda m: " ".join(m.group()), text)
    return " ".join(re.sub(r"([()\[\],+*%]|//|<<|>>|==|(?<![/<>=])-)", r" \1 ", text).split())


def traced(function: Callable[..., Any] | None = None, *, name: str | None = None) -> Callable[..., Any]:
    """Make a function on integers writable as a trace; without an active trace it runs unchanged.

    Parameters
    ----------
    function : callable
        Its source must be at hand. Assignments, loops, calls and changes of lists are reported; functions that it
        defines inside are not looked into.
    name : str, optional
        The name under which a task makes it visible; default its own.

    Returns
    -------
    callable
        With the attribute ``trace_name``.

    Raises
    ------
    ParameterError
        On its first traced run, if the source cannot be read.

    Examples
    --------
    >>> @traced
    ... def twice(x):
    ...     double = x + x
    ...     return double
    >>> trace = Trace({"twice": "visible"})
    >>> int(trace.run(twice, TInt(21))), trace.lines
    (42, ['x = 2 1', 'double = 4 2'])
    """
    if function is None:
        return functools.partial(traced, name=name)
    own = name or function.__name__
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        trace = _ACTIVE.get()
        level = "invisible" if trace is None else trace.levels.get(own, "invisible")
        if level != "invisible" and trace.callers:
            trace.callers[-1].show_call()
        if level != "visible":
            return function(*args, **kwargs)
        if call.instrumented is None:
            call.instrumented = instrument(function)
        run, statements = call.instrumented
        frame = Frame(trace, statements)
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        trace.callers.append(frame)
        try:
            frame.wrote(tuple(bound.arguments), dict(bound.arguments))
            return run(*bound.args, **bound.kwargs, _frame=frame)
        finally:
            trace.callers.pop()

    call.instrumented = None
    call.trace_name = own
    return call
