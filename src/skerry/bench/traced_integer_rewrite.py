"""Rewrite a function so that its assignments report to a frame: once per function, on the syntax tree."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable
from typing import Any

from skerry.core.errors import ParameterError

__all__ = ["instrument"]


class _Rewrite(ast.NodeTransformer):
    """Report to the frame after every assignment and before every statement that may call."""

    def __init__(self) -> None:
        self.statements: list[tuple[str, ast.expr]] = []

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        return node

    def visit_Lambda(self, node: ast.Lambda) -> ast.AST:
        return node

    def visit_Assign(self, node: ast.Assign) -> list[ast.stmt]:
        names = _names(node.targets)
        before = self._before(node.value, " = ".join(ast.unparse(t) for t in node.targets) + " = ")
        if len(node.targets) == 1 and isinstance(node.targets[0], ast.Tuple) and _plain(node.targets[0]):
            node.value = _report("values", _tuple(names), node.value)
        elif len(names) == 1:
            node.value = _report("value", ast.Constant(names[0]), node.value)
        return [*before, node, _wrote(names)]

    def visit_AugAssign(self, node: ast.AugAssign) -> list[ast.stmt]:
        load = ast.parse(ast.unparse(node.target), mode="eval").body
        return self.visit_Assign(ast.Assign(targets=[node.target], value=ast.BinOp(load, node.op, node.value)))

    def visit_AnnAssign(self, node: ast.AnnAssign) -> list[ast.stmt]:
        return [] if node.value is None else self.visit_Assign(ast.Assign(targets=[node.target], value=node.value))

    def visit_Expr(self, node: ast.Expr) -> list[ast.stmt]:
        if isinstance(node.value, ast.Constant):
            return [node]
        return [*self._before(node.value, ""), node, _wrote(())]

    def visit_Return(self, node: ast.Return) -> list[ast.stmt]:
        return [*(self._before(node.value, "") if node.value else []), node]

    def visit_For(self, node: ast.For) -> ast.AST:
        self.generic_visit(node)
        names = _names([node.target])
        value = [
            ast.Assign(
                targets=[ast.Name(n, ast.Store())],
                value=_report("value", ast.Constant(n), ast.Name(n, ast.Load())),
            )
            for n in names
        ]
        node.body = [*value, _wrote(names), *node.body]
        return node

    def _before(self, expression: ast.expr, target: str) -> list[ast.stmt]:
        if not any(isinstance(n, (ast.Call, ast.BinOp)) for n in ast.walk(expression)):
            return []
        # Kept as text made anew: the expression itself is about to be wrapped.
        self.statements.append((target, ast.parse(ast.unparse(expression), mode="eval").body))
        return [ast.Expr(_report("at", ast.Constant(len(self.statements) - 1), _locals()))]


def instrument(function: Callable[..., Any]) -> tuple[Callable[..., Any], list[tuple[str, ast.expr]]]:
    """Return the copy of a function that reports, and the targets and expressions of its numbered statements.

    The copy takes one more argument, ``_frame``, whose methods ``at``, ``value``, ``values`` and ``wrote`` it calls.

    Raises
    ------
    ParameterError
        If the source cannot be read or is no ``def``.
    """
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, SyntaxError) as error:
        raise ParameterError(
            f"{function.__qualname__}: its source cannot be read ({error}); define it in a file as a def"
        ) from None
    definition = tree.body[0]
    if not isinstance(definition, ast.FunctionDef):
        raise ParameterError(f"{function.__qualname__}: only a def can be traced, not a {type(definition).__name__}")
    definition.decorator_list = []
    definition.args.kwonlyargs.append(ast.arg("_frame"))
    definition.args.kw_defaults.append(None)
    # Annotations and defaults were evaluated where the function was defined; they are not evaluated again.
    definition.returns = None
    for argument in (*definition.args.posonlyargs, *definition.args.args, *definition.args.kwonlyargs):
        argument.annotation = None
    definition.args.defaults = []
    definition.args.kw_defaults = [None] * len(definition.args.kwonlyargs)
    rewrite = _Rewrite()
    rewrite.generic_visit(definition)
    free = function.__code__.co_freevars
    maker = ast.parse(f"def _make({', '.join(free)}):\n    return {definition.name}").body[0]
    maker.body.insert(0, definition)
    module = ast.fix_missing_locations(ast.Module(body=[maker], type_ignores=[]))
    space: dict[str, Any] = {}
    exec(compile(module, f"<traced {function.__qualname__}>", "exec"), function.__globals__, space)
    return space["_make"](*(c.cell_contents for c in function.__closure__ or ())), rewrite.statements


def _names(targets: list[ast.expr]) -> tuple[str, ...]:
    """Return the variables that assignment targets change, without repetition."""
    found = [n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)]
    whole = [n for t in targets for n in ([_base(t)] if isinstance(t, ast.Subscript) else [])]
    return tuple(dict.fromkeys(whole or found))


def _base(target: ast.expr) -> str:
    while isinstance(target, (ast.Subscript, ast.Attribute)):
        target = target.value
    return target.id if isinstance(target, ast.Name) else "_"


def _plain(target: ast.Tuple) -> bool:
    return all(isinstance(e, ast.Name) for e in target.elts)


def _tuple(names: tuple[str, ...]) -> ast.expr:
    return ast.Tuple([ast.Constant(n) for n in names], ast.Load())


def _locals() -> ast.expr:
    return ast.Call(ast.Name("locals", ast.Load()), [], [])


def _report(method: str, *args: ast.expr) -> ast.expr:
    return ast.Call(ast.Attribute(ast.Name("_frame", ast.Load()), method, ast.Load()), list(args), [])


def _wrote(names: tuple[str, ...]) -> ast.stmt:
    return ast.Expr(_report("wrote", _tuple(names), _locals()))
