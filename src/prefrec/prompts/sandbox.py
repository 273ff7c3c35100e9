"""A sandbox for untrusted templates: limits on their syntax, running time and output."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import wraps
from threading import local
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

MAX_SOURCE = 20_000
"""Maximum characters of a template."""
MAX_TEXT = 1 << 18
"""Maximum characters of a prompt and of each intermediate text, and maximum elements of a list."""
MAX_SECONDS = 2.0
"""Maximum CPU time, in seconds, to render a template once."""
MAX_ARGUMENT, MAX_NUMBER = 100, 1_000
"""Maximum characters of a text argument, and maximum number, of a filter."""
_NODES = {
    nodes.Template, nodes.Output, nodes.TemplateData, nodes.Name, nodes.Const, nodes.For, nodes.If, nodes.CondExpr,
    nodes.Assign, nodes.Getattr, nodes.Getitem, nodes.Slice, nodes.Filter, nodes.Test, nodes.Compare, nodes.Operand,
    nodes.And, nodes.Or, nodes.Not, nodes.Neg, nodes.Pos, nodes.Add, nodes.Sub, nodes.Mul, nodes.Div, nodes.FloorDiv,
    nodes.Mod, nodes.Concat, nodes.Tuple, nodes.List, nodes.Call, nodes.Keyword,
}  # fmt: skip
_FILTERS = (
    "abs", "capitalize", "count", "d", "default", "first", "float", "int", "join", "last", "length", "list", "lower",
    "map", "replace", "reverse", "round", "sort", "string", "title", "tojson", "trim", "truncate", "unique", "upper",
)  # fmt: skip
_METHODS = ("cycle", "endswith", "lower", "lstrip", "rstrip", "split", "startswith", "strip", "title", "upper")
_due = local()


class Sandbox(ImmutableSandboxedEnvironment):
    """An environment whose templates always terminate: they only loop over their inputs, and cannot run other code.

    A value can grow only by a bounded factor per step, and each step checks size and time.
    """

    intercepted_binops = frozenset({"*", "%"})

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        steps = {"_turns": lambda values: map(_bounded, values), "_bounded": _bounded}
        self.filters = {name: _checked(self.filters[name]) for name in _FILTERS} | steps

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Apply `*` or `%` to numbers only; texts and lists could grow to any size."""
        if not all(isinstance(value, int | float) and abs(value) < 1e9 for value in (left, right)):
            raise SecurityError(f"{operator} accepts only numbers below 1e9")
        return super().call_binop(context, operator, left, right)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        if len(source) > MAX_SOURCE:
            raise jinja2.TemplateSyntaxError(f"longer than {MAX_SOURCE} characters; make it simpler", 1, name)
        tree = super()._parse(source, name, filename)
        for node in (tree, *tree.find_all(nodes.Node)):
            if why := _refused(node):
                raise jinja2.TemplateSyntaxError(
                    f"{why}; use texts, set, if, for and plain filters", node.lineno, name
                )
        return _Steps().visit(tree)


def fill(template: jinja2.Template, **values: Any) -> str:
    """Render a template of a `Sandbox`; raise SecurityError if it takes too long or the text becomes too large."""
    _due.at = time.thread_time() + MAX_SECONDS
    pieces: list[str] = []
    size = 0
    try:
        for piece in template.generate(**values):
            size += len(piece)
            pieces.append(_in_time(piece))
            if size > MAX_TEXT:
                raise SecurityError(f"the text has more than {MAX_TEXT} characters; show fewer items")
    finally:
        _due.at = 0.0  # filters then fail, so jinja2 cannot run them when it compiles a template
    return "".join(pieces)


class _Steps(NodeTransformer):
    """Add a check to each iteration of a loop, and to each assigned value."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802  # jinja2's name
        node.iter = nodes.Filter(node.iter, "_turns", [], [], None, None, lineno=node.lineno)
        return self.generic_visit(node)

    def visit_Assign(self, node: nodes.Assign) -> nodes.Node:  # noqa: N802
        node.node = nodes.Filter(node.node, "_bounded", [], [], None, None, lineno=node.lineno)
        return self.generic_visit(node)


def _refused(node: nodes.Node) -> str:
    """Return the reason why a template may not contain a node; an empty text if it may."""
    if type(node) not in _NODES:
        return f"{type(node).__name__.lower()} is not allowed"
    if isinstance(node, nodes.Filter | nodes.Test | nodes.Call) and (node.dyn_args or node.dyn_kwargs):
        return "* and ** are not allowed"
    if isinstance(node, nodes.Call):
        called = node.node
        method = isinstance(called, nodes.Getattr) and called.attr in _METHODS
        is_range = isinstance(called, nodes.Name) and called.name == "range"
        return "" if method or is_range else "this call is not allowed"
    if isinstance(node, nodes.Filter):
        given = [*node.args, *(pair.value for pair in node.kwargs)]
        if not all(isinstance(value, nodes.Const) and _is_small(value.value) for value in given):
            return f"{node.name} accepts only texts up to {MAX_ARGUMENT} characters and numbers up to {MAX_NUMBER}"
    return ""


def _is_small(value: Any) -> bool:
    return len(value) <= MAX_ARGUMENT if isinstance(value, str) else value is None or abs(value) <= MAX_NUMBER


def _in_time(value: Any) -> Any:
    if time.thread_time() > getattr(_due, "at", 0.0):
        raise SecurityError(f"rendering takes longer than {MAX_SECONDS:g} s; simplify the template")
    return value


def _bounded(value: Any) -> Any:
    """Return a value after checking that it is a text, a number, or a list of these, and not too large."""
    elements = value if isinstance(value, list | tuple) else ()
    if isinstance(value, str | list | tuple) and len(value) > MAX_TEXT:
        raise SecurityError(f"a text or list is longer than {MAX_TEXT}")
    # The text of nested lists could become arbitrarily long.
    if not all(isinstance(element, str | int | float | None) for element in elements):
        raise SecurityError("a list may contain only texts and numbers")
    return _in_time(value)


def _checked(inner: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(inner)  # jinja2 stores in an attribute which further arguments a filter takes
    def outer(*args: Any, **kwargs: Any) -> Any:
        _in_time(None)
        made = inner(*args, **kwargs)
        return _bounded(made) if isinstance(made, str) else made

    return outer
