"""A method's text rewritten with one call more at each planned place.

``x = self.bn3(x)`` becomes ``x = self.se(self.bn3(x))``. All else of the text stays as its authors wrote it.
"""

from __future__ import annotations

import ast
import keyword
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from se_inject.trace.source import expression_at, first_argument, parse, self_name
from se_inject.types import REWRITTEN, Decision, Position


@dataclass(frozen=True)
class Edit:
    """One call to insert: around the expression at ``position``; without one around every returned value of
    ``forward``, or, when ``argument``, around its first argument."""

    name: str  # of the child that is called
    position: Position | None = None
    argument: bool = False


def edits_of(decisions: Iterable[Decision]) -> dict[str, tuple[Edit, ...]]:
    """The edits that a plan's insertions need, by the path of the module whose class is rewritten."""
    edits: dict[str, tuple[Edit, ...]] = {}
    for decision in decisions:
        carrier = decision.site.carrier
        if carrier is not None and carrier.kind in REWRITTEN:
            places = (carrier.position, *carrier.others)
            new = (Edit(carrier.name, place, carrier.kind == "wrap_input") for place in places)
            edits[carrier.path] = (*edits.get(carrier.path, ()), *new)
    return edits


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
            name, offset, indent = first_argument(function, text)
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
        node = expression_at(function, place)
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
