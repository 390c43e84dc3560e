"""The source of a method, an expression in it, and the method rewritten with one call more.

``x = self.bn3(x)`` becomes ``x = self.se(self.bn3(x))``. All else of the text stays as its authors wrote it.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import textwrap
from dataclasses import dataclass
from types import CodeType
from typing import Any

from se_inject.trace import Spot
from se_inject.types import Position


@dataclass(frozen=True)
class Edit:
    """One call to insert: around the expression at ``position``, or around every returned value of ``forward``."""

    name: str  # of the child that is called
    position: Position | None = None


def current_code(cls: type, method: str) -> CodeType | None:
    """The code object that ``instance.method`` runs, decorators looked through."""
    function = inspect.unwrap(getattr(cls, method, None))  # type: ignore[arg-type]
    return getattr(function, "__code__", None)


@functools.lru_cache(maxsize=1024)
def method_source(code: CodeType) -> tuple[str, str]:
    """The method's text as it stands in its file, and its SHA-256. Raises ``ValueError`` when there is none."""
    try:
        lines, _ = inspect.getsourcelines(code)
    except (OSError, TypeError) as error:
        raise ValueError(f"the source of {code.co_qualname} cannot be read") from error
    text = "".join(lines)
    return text, hashlib.sha256(text.encode()).hexdigest()


@functools.lru_cache(maxsize=1024)
def position(spot: Spot) -> Position:
    """The expression of ``spot`` as plain data. Raises ``ValueError`` with the reason when it cannot be wrapped."""
    text, digest = method_source(spot.code)
    line, end_line, column, end_column = spot.span
    first = spot.code.co_firstlineno
    place = Position(
        spot.cls.__module__,
        spot.cls.__qualname__,
        spot.method,
        line - first,
        column,
        end_line - first,
        end_column,
        digest,
    )
    function = parse(text)
    name = f"{spot.cls.__name__}.{spot.method}"
    if find(function, place) is None:
        raise ValueError(f"no single expression of {name} has this value")
    if any(n.startswith("__") and not n.endswith("__") for n in spot.code.co_names):
        raise ValueError(f"{name} uses private names (self.__x), which a subclass cannot")
    return place


@functools.lru_cache(maxsize=1024)
def parse(text: str) -> ast.FunctionDef:
    """The method's syntax tree; line 2 is its first line, columns are those of the file."""
    header = "class _:\n" if text[:1].isspace() else "if 1:\n"
    body = text if text[:1].isspace() else textwrap.indent(text, " ")
    try:
        tree = ast.parse(header + body)
    except SyntaxError as error:
        raise ValueError("the method's source cannot be parsed by itself") from error
    function = tree.body[0].body[0]  # type: ignore[attr-defined]
    if not isinstance(function, ast.FunctionDef):
        raise ValueError("the forward is not a plain method (a lambda, or an async function)")
    return function


def find(function: ast.FunctionDef, place: Position) -> ast.expr | ast.AugAssign | None:
    """The expression, or the augmented assignment, at a position of ``parse``'s tree."""
    wanted = (place.line + 2, place.column, place.end_line + 2, place.end_column)
    for node in ast.walk(function):
        if not isinstance(node, ast.expr | ast.AugAssign):
            continue
        if (node.lineno, node.col_offset, node.end_lineno, node.end_col_offset) == wanted:
            return node
    return None


def rewrite(text: str, edits: tuple[Edit, ...]) -> str:
    """``text`` with the calls of all ``edits`` inserted; at one place the first edit is the innermost.

    Raises ``ValueError`` when a position is not in the text, or no value is returned.
    """
    function = parse(text)
    self_name = function.args.args[0].arg
    lines = text.encode().splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    inserts: list[tuple[int, int, int, int, bytes]] = []  # offset, closing before opening, and nesting

    def wrap(start: int, end: int, rank: int, name: str) -> None:
        inserts.append((start, 1, -end, -rank, f"{self_name}.{name}(".encode()))
        inserts.append((end, 0, -start, rank, b")"))

    for rank, edit in enumerate(edits):
        if edit.position is None:
            values = returned(function)
            if not values:
                raise ValueError("forward returns no value")
            for value in values:
                assert value.end_lineno is not None and value.end_col_offset is not None
                start = starts[value.lineno - 2] + value.col_offset
                wrap(start, starts[value.end_lineno - 2] + value.end_col_offset, rank, edit.name)
            continue
        place = edit.position
        node = find(function, place)
        start = starts[place.line] + place.column
        end = starts[place.end_line] + place.end_column
        if node is None:
            raise ValueError(f"no expression at line {place.line + 1}, column {place.column}")
        if isinstance(node, ast.AugAssign):
            target = ast.unparse(node.target)
            inserts.append((end, 0, -start, rank, f"; {target} = {self_name}.{edit.name}({target})".encode()))
        else:
            wrap(start, end, rank, edit.name)
    source = text.encode()
    for offset, *_, piece in sorted(inserts, reverse=True):
        source = source[:offset] + piece + source[offset:]
    return source.decode()


def returned(function: ast.FunctionDef) -> list[ast.expr]:
    """The values of the function's own return statements, nested functions left out."""
    found: list[ast.expr] = []
    todo: list[Any] = list(function.body)
    while todo:
        node = todo.pop(0)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
            continue
        if isinstance(node, ast.Return) and node.value is not None:
            found.append(node.value)
        todo.extend(ast.iter_child_nodes(node))
    return found


def indented(text: str) -> str:
    """The method as the body of a class: four columns in."""
    if text.startswith("    ") and not text.startswith("     "):
        return text
    return textwrap.indent(textwrap.dedent(text), "    ")
