"""Where in the owner's source an expression stands, and what the source says there; nothing is changed here.

A frame's code object and its PEP 657 positions name the expression; the method's text is read from its file.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import os
import sys
from dataclasses import dataclass
from types import CodeType, FrameType, FunctionType
from typing import Any

import torch
from torch import nn

from se_inject.object_graph import content
from se_inject.types import Position

TORCH_DIR = os.path.dirname(torch.__file__) + os.sep  # not torchvision


@dataclass(frozen=True)
class CodeSpan:
    """Where in the owner's source a node was made. ``direct``: the expression's value is the node's value."""

    code: CodeType
    method: str
    cls: type  # the class that defines the method
    extent: tuple[int, int, int, int]  # line, end line, column, end column, as PEP 657 counts them
    direct: bool


def current_span(module: nn.Module) -> CodeSpan | None:
    """The innermost frame that runs a method of ``module``, and the expression at which it stands."""
    cls: Any = type(module)
    codes, direct = methods(cls), True
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        code = frame.f_code
        if code in codes and frame.f_locals.get(code.co_varnames[0]) is module:
            line, end_line, column, end_column = code_positions(code)[frame.f_lasti // 2]
            if line is None or end_line is None or column is None or end_column is None:
                return None
            method, cls = codes[code]
            return CodeSpan(code, method, cls, (line, end_line, column, end_column), direct)
        direct = direct and code.co_filename.startswith(TORCH_DIR)
        frame = frame.f_back
    return None


@functools.cache
def methods(cls: type) -> dict[CodeType, tuple[str, type]]:
    """Code object -> (method name, defining class) for every method of ``cls``, decorators looked through."""
    found: dict[CodeType, tuple[str, type]] = {}
    for base in cls.__mro__:
        if base in (nn.Module, object):
            continue
        for name, value in vars(base).items():
            code = getattr(inspect.unwrap(value), "__code__", None) if callable(value) else None
            if code is not None and code.co_varnames:
                found.setdefault(code, (name, base))
    return found


@functools.lru_cache(maxsize=4096)
def code_positions(code: CodeType) -> list[tuple[int | None, int | None, int | None, int | None]]:
    return list(code.co_positions())


def current_code(cls: type, method: str) -> CodeType | None:
    """The code object that ``instance.method`` runs, decorators looked through."""
    function = inspect.unwrap(getattr(cls, method, None))  # type: ignore[arg-type]
    return getattr(function, "__code__", None)


_SOURCES: dict[int, tuple[CodeType, str, str]] = {}


def method_source(code: CodeType) -> tuple[str, str]:
    """The method's text as it stands in its file, and its SHA-256. Raises ``ValueError`` when there is none."""
    # Kept by identity: code objects are equal when two files differ in a comment alone.
    if id(code) not in _SOURCES:
        try:
            lines, _ = inspect.getsourcelines(code)
        except (OSError, TypeError) as error:
            raise ValueError(f"the source of {code.co_qualname} cannot be read") from error
        text = "".join(lines)
        _SOURCES[id(code)] = code, text, hashlib.sha256(text.encode()).hexdigest()
    return _SOURCES[id(code)][1:]


@functools.lru_cache(maxsize=1024)
def position(span: CodeSpan, operand: int | str | None = None, method: bool = False) -> Position:
    """The expression of ``span`` as plain data, or one operand in it: by index, or by keyword.

    ``method``: it is the call of a method, whose operand 0 is the object. Raises ``ValueError`` with the reason when
    it cannot be wrapped.
    """
    text, digest = method_source(span.code)
    line, end_line, column, end_column = span.extent
    first = span.code.co_firstlineno - 2
    node = _at(parse(text), (line - first, column, end_line - first, end_column))
    name = f"{span.cls.__name__}.{span.method}"
    if node is not None and operand is not None:
        node = operand_of(node, operand, method)
    if node is None or node.end_lineno is None or node.end_col_offset is None:
        raise ValueError(f"no single expression of {name} has this value")
    # Inside a class, Python has put the class's name before them; a function from elsewhere keeps them as they are.
    if any(n.startswith("__") and not n.endswith("__") for n in span.code.co_names):
        raise ValueError(f"{name} uses private names (self.__x), which a subclass cannot")
    if (decorator := foreign_decorator(inspect.getattr_static(span.cls, span.method))) is not None:
        raise ValueError(f"{name} is decorated by {decorator}, which cannot be put around another function")
    return Position(
        span.cls.__module__,
        span.cls.__qualname__,
        span.method,
        node.lineno - 2,
        node.col_offset,
        node.end_lineno - 2,
        node.end_col_offset,
        digest,
    )


def foreign_decorator(function: Any) -> str | None:
    """The first decorator that is no plain function with its target in a closure; None when all can be made again."""
    while (target := getattr(function, "__wrapped__", None)) is not None:
        if not isinstance(function, FunctionType) or all(content(c) is not target for c in function.__closure__ or ()):
            return type(function).__name__ if not isinstance(function, FunctionType) else function.__code__.co_qualname
        function = target
    return None


@functools.lru_cache(maxsize=1024)
def parse(text: str) -> ast.FunctionDef:
    """The method's syntax tree; line 2 is its first line, columns are those of the file."""
    inside = text[:1].isspace()
    try:
        tree: Any = ast.parse(("class _:\n" if inside else "\n") + text)
    except SyntaxError as error:
        raise ValueError("the method's source cannot be parsed by itself") from error
    function = (tree.body[0] if inside else tree).body[0]
    if not isinstance(function, ast.FunctionDef):
        raise ValueError("the forward is not a plain method (a lambda, or an async function)")
    return function


def self_name(function: ast.FunctionDef) -> str:
    """What the method calls its module. Raises ``ValueError`` when it takes it from ``*args``."""
    positional = [*function.args.posonlyargs, *function.args.args]
    if not positional:
        raise ValueError("the forward does not name the module that it is called on")
    return positional[0].arg


def expression_at(function: ast.FunctionDef, place: Position) -> ast.expr | ast.AugAssign | None:
    """The expression, or the augmented assignment, at a position of ``parse``'s tree."""
    return _at(function, (place.line + 2, place.column, place.end_line + 2, place.end_column))


def _at(function: ast.FunctionDef, span: tuple[int, int, int, int]) -> ast.expr | ast.AugAssign | None:
    called = None
    for node in ast.walk(function):
        if not isinstance(node, ast.expr | ast.AugAssign):
            continue
        if (node.lineno, node.col_offset, node.end_lineno, node.end_col_offset) == span:
            return node
        if isinstance(node, ast.Call) and _chained(node) == span:
            called = node
    return called


@functools.lru_cache(maxsize=1024)
def bypassing_condition(span: CodeSpan) -> int:
    """Line of the condition (from the method's first, 1) that can make the method pass by the expression; 0 if none.

    The example took the path with the expression; a flag that changes later (a fused convolution) takes another.
    """
    text, _ = method_source(span.code)
    function, first = parse(text), span.code.co_firstlineno - 2
    line, end = span.extent[0] - first, span.extent[1] - first
    for node in ast.walk(function):
        if not isinstance(node, ast.If | ast.IfExp | ast.Match | ast.Try):
            continue
        inside = node.lineno <= line and end <= (node.end_lineno or line)
        in_test = isinstance(node, ast.If | ast.IfExp) and node.test.lineno <= line <= (node.test.end_lineno or line)
        leaves = (node.end_lineno or line) < line and any(isinstance(n, ast.Return) for n in ast.walk(node))
        if leaves or (inside and not in_test):
            return node.lineno - 1
    return 0


def operand_of(node: ast.AST, operand: int | str, method: bool) -> ast.expr | None:
    """The operand of an operator, an augmented assignment, or a call; None when it is not written out there."""
    found: Any = None
    if isinstance(node, ast.BinOp) and operand in (0, 1):
        found = (node.left, node.right)[int(operand)]
    elif isinstance(node, ast.AugAssign) and operand in (0, 1):
        if operand == 0 and ast.unparse(node.target) in {ast.unparse(n) for n in ast.walk(node.value)}:
            raise ValueError(f"{ast.unparse(node)} reads {ast.unparse(node.target)} on its right side too")
        found = (node.target, node.value)[int(operand)]
    elif isinstance(node, ast.Call) and isinstance(operand, str):
        found = next((k.value for k in node.keywords if k.arg == operand), None)
    elif isinstance(node, ast.Call):
        written: list[ast.expr] = list(node.args)
        if method and isinstance(node.func, ast.Attribute):
            written.insert(0, node.func.value)
        before = written[: int(operand) + 1]
        found = (
            before[-1] if len(before) > int(operand) and not any(isinstance(a, ast.Starred) for a in before) else None
        )
    return found


def _chained(call: ast.Call) -> tuple[int, int, int, int] | None:
    """The span that Python gives the call of a method whose name stands on a later line than the object's start."""
    name = call.func
    if not isinstance(name, ast.Attribute) or name.lineno == name.end_lineno or name.end_lineno is None:
        return None
    assert name.end_col_offset is not None and call.end_lineno is not None and call.end_col_offset is not None
    return name.end_lineno, name.end_col_offset - len(name.attr), call.end_lineno, call.end_col_offset


def first_argument(function: ast.FunctionDef, text: str) -> tuple[str, int, str]:
    """The first argument after the module itself, the line (from 0) of the first statement, and its indentation.

    Raises ``ValueError`` when the forward names no such argument, or is written on one line.
    """
    positional = [*function.args.posonlyargs, *function.args.args]
    documented = ast.get_docstring(function, clean=False) is not None and len(function.body) > 1
    first = function.body[1 if documented else 0]
    if len(positional) < 2 or first.lineno == function.lineno:
        raise ValueError("the forward does not name what it takes")
    line = text.split("\n")[first.lineno - 2]
    return positional[1].arg, first.lineno - 2, line[: len(line) - len(line.lstrip())]
