"""The original of a rewritten method, from the generated text alone: what was inserted is found and taken out again.

The text comes from a report, and is parsed, never run. What cannot be parsed is shown as it is, with nothing marked.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator
from dataclasses import dataclass

Span = tuple[int, int]  # byte offsets


@dataclass(frozen=True)
class Line:
    """One line of a diff: ``mark`` is ``+``, ``-`` or a space; ``parts`` are (text, whether it was inserted)."""

    mark: str
    number: int
    parts: tuple[tuple[str, bool], ...]


def diff(source: str, names: Collection[str]) -> tuple[Line, ...]:
    """``source`` beside what it was without the calls of the children ``names``."""
    text = source.rstrip("\n").encode("utf-8", "surrogatepass")
    spans = inserted(text, names)
    lines: list[Line] = []
    start = 0
    for number, raw in enumerate(text.split(b"\n"), 1):
        end = start + len(raw)
        inside = [(max(a, start) - start, min(b, end) - start) for a, b in spans if a < end and b > start]
        parts = tuple(_parts(raw, inside))
        if inside:
            old = b"".join(_kept(raw, inside))
            lines.append(Line("-", number, ((_text(old), False),)))
        lines.append(Line("+" if inside else " ", number, parts))
        start = end + 1
    return tuple(lines)


def inserted(text: bytes, names: Collection[str]) -> list[Span]:
    """Where the inserted calls stand: ``self.se(`` and ``)``, or a statement behind an augmented assignment."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    starts = [0]
    for line in text.split(b"\n"):
        starts.append(starts[-1] + len(line) + 1)
    spans: list[Span] = []
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef):
            continue
        arguments = [*function.args.posonlyargs, *function.args.args]
        if not arguments:
            continue
        heads = {f"{arguments[0].arg}.{name}(".encode() for name in names}
        for node in ast.walk(function):
            if isinstance(node, ast.Call) and len(node.args) == 1 and not node.keywords:
                call, argument = _span(node, starts), _span(node.args[0], starts)
                head, tail = text[call[0] : argument[0]], text[argument[1] : call[1]]
                if head in heads and tail == b")":
                    spans += _statement(text, call, argument) or [(call[0], argument[0]), (argument[1], call[1])]
    return sorted(set(spans))


def _span(node: ast.expr, starts: list[int]) -> Span:
    assert node.end_lineno is not None and node.end_col_offset is not None
    return starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset


def _statement(text: bytes, call: Span, argument: Span) -> list[Span]:
    """``; x = self.se(x)`` or ``x = self.se(x); `` as a whole."""
    assign = text[argument[0] : argument[1]] + b" = "
    start, end = call[0] - len(assign), call[1]
    if start < 2 or text[start : call[0]] != assign:
        return []
    if text[start - 2 : start] == b"; ":
        return [(start - 2, end)]
    return [(start, end + 2)] if text[end : end + 2] == b"; " else []


def _parts(raw: bytes, spans: list[Span]) -> Iterator[tuple[str, bool]]:
    at = 0
    for a, b in spans:
        if a > at:
            yield _text(raw[at:a]), False
        yield _text(raw[a:b]), True
        at = b
    yield _text(raw[at:]), False


def _kept(raw: bytes, spans: list[Span]) -> Iterator[bytes]:
    at = 0
    for a, b in spans:
        yield raw[at:a]
        at = b
    yield raw[at:]


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogatepass").expandtabs(4)
