"""The source of a method, an expression in it, and the method rewritten with one call more.

``x = self.bn3(x)`` becomes ``x = self.se(self.bn3(x))``. All else of the text stays as its authors wrote it.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import keyword
from dataclasses import dataclass
from types import CodeType, FunctionType
from typing import Any

from se_inject.trace.spots import Spot
from se_inject.types import Position


@dataclass(frozen=True)
class Edit:
    """One call to insert: around the expression at ``position``; without one around every returned value of
    ``forward``, or, when ``argument``, around its first argument."""

    name: str  # of the child that is called
    position: Position | None = None
    argument: bool = False


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
def position(spot: Spot, operand: int | str | None = None, method: bool = False) -> Position:
    """The expression of ``spot`` as plain data, or one operand in it: by index, or by keyword.

    ``method``: it is the call of a method, whose operand 0 is the object. Raises ``ValueError`` with the reason when
    it cannot be wrapped.
    """
    text, digest = method_source(spot.code)
    line, end_line, column, end_column = spot.span
    first = spot.code.co_firstlineno - 2
    node = _at(parse(text), (line - first, column, end_line - first, end_column))
    name = f"{spot.cls.__name__}.{spot.method}"
    if node is not None and operand is not None:
        node = operand_of(node, operand, method)
    if node is None or node.end_lineno is None or node.end_col_offset is None:
        raise ValueError(f"no single expression of {name} has this value")
    # Inside a class, Python has put the class's name before them; a function from elsewhere keeps them as they are.
    if any(n.startswith("__") and not n.endswith("__") for n in spot.code.co_names):
        raise ValueError(f"{name} uses private names (self.__x), which a subclass cannot")
    if (decorator := foreign_decorator(inspect.getattr_static(spot.cls, spot.method))) is not None:
        raise ValueError(f"{name} is decorated by {decorator}, which cannot be put around another function")
    return Position(
        spot.cls.__module__,
        spot.cls.__qualname__,
        spot.method,
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


def content(cell: Any) -> Any:
    """What a closure's cell holds; None while it is empty."""
    try:
        return cell.cell_contents
    except ValueError:
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


def find(function: ast.FunctionDef, place: Position) -> ast.expr | ast.AugAssign | None:
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
def detour(spot: Spot) -> int:
    """Line of the condition (from the method's first, 1) that can make the method pass by the expression; 0 if none.

    The example took the path with the expression; a flag that changes later (a fused convolution) takes another.
    """
    text, _ = method_source(spot.code)
    function, first = parse(text), spot.code.co_firstlineno - 2
    line, end = spot.span[0] - first, spot.span[1] - first
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


def rewrite(text: str, edits: tuple[Edit, ...]) -> str:
    """``text`` with the calls of all ``edits`` inserted; at one place the first edit is the innermost.

    Raises ``ValueError`` when a position is not in the text, or no value is returned.
    """
    function = parse(text)
    owner = self_name(function)
    lines = text.encode().splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    inserts: list[tuple[int, int, int, int, bytes]] = []  # offset, closing before opening, and nesting

    def wrap(start: int, end: int, rank: int, name: str) -> None:
        inserts.append((start, 1, -end, -rank, f"{owner}.{name}(".encode()))
        inserts.append((end, 0, -start, rank, b")"))

    for rank, edit in enumerate(edits):
        if not is_name(edit.name):  # it comes from a file: nothing but a name may get into the code
            raise ValueError(f"{edit.name!r} is not a name")
        if edit.argument:
            name, offset, indent = taken(function, text)
            inserts.append((starts[offset], 1, 0, rank, f"{indent}{name} = {owner}.{edit.name}({name})\n".encode()))
            continue
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
        if isinstance(getattr(node, "ctx", None), ast.Store):  # the target of an augmented assignment: x += y
            target = ast.unparse(node)
            inserts.append((start, 1, -end, -rank, f"{target} = {owner}.{edit.name}({target}); ".encode()))
        elif isinstance(node, ast.AugAssign):
            target = ast.unparse(node.target)
            inserts.append((end, 0, -start, rank, f"; {target} = {owner}.{edit.name}({target})".encode()))
        else:
            wrap(start, end, rank, edit.name)
    source = text.encode()
    for offset, *_, piece in sorted(inserts, reverse=True):
        source = source[:offset] + piece + source[offset:]
    return source.decode()


def taken(function: ast.FunctionDef, text: str) -> tuple[str, int, str]:
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


def is_name(name: str) -> bool:
    """Whether a child of that name can be written as ``self.name``, and is not private."""
    return name.isascii() and name.isidentifier() and not keyword.iskeyword(name) and not name.startswith("__")


def indented(text: str) -> str:
    """The method as the body of a class: four columns in. What stands inside a string is left alone."""
    margin = text[: len(text) - len(text.lstrip())]
    if margin == "    ":
        return text
    lines = text.split("\n")
    inside: set[int] = set()
    for node in ast.walk(parse(text)):
        if isinstance(node, ast.Constant | ast.JoinedStr) and node.end_lineno is not None:
            inside.update(range(node.lineno - 1, node.end_lineno - 1))  # parse counts from 2
    for i, line in enumerate(lines):
        if i not in inside and line.startswith(margin) and line.strip():
            lines[i] = "    " + line[len(margin) :]
    return "\n".join(lines)
