"""A rewritten method beside its original: the lines of a diff, with what was inserted in each marked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher

from se_inject.types import Rewrite

LONGEST = 200_000  # characters of a text in which changes are looked for: a report from elsewhere may hold any text


@dataclass(frozen=True)
class Line:
    """One line of a diff: ``mark`` is ``+``, ``-`` or a space; ``parts`` are (text, whether it was inserted)."""

    mark: str
    number: int
    parts: tuple[tuple[str, bool], ...]


def diff(rewrite: Rewrite) -> tuple[Line, ...]:
    """The text after the rewrite beside the one before; where that was not kept, with nothing marked."""
    new = _lines(rewrite.after)
    old = _lines(rewrite.before) if rewrite.before and len(rewrite.before + rewrite.after) <= LONGEST else new
    found: list[Line] = []
    for tag, a, b, c, d in SequenceMatcher(None, old, new).get_opcodes():
        if tag == "equal":
            found += [Line(" ", n + 1, ((new[n], False),)) for n in range(c, d)]
            continue
        before = [Line("-", n + 1, ((old[n], False),)) for n in range(a, b)]
        if b - a == d - c:  # line by line: what was inserted in each
            after = [Line("+", n + 1, tuple(_parts(old[n - c + a], new[n]))) for n in range(c, d)]
            found += [line for pair in zip(before, after, strict=True) for line in pair]
        else:
            found += [*before, *(Line("+", n + 1, ((new[n], True),)) for n in range(c, d))]
    return tuple(found)


def _lines(text: str) -> list[str]:
    return text.rstrip("\n").expandtabs(4).split("\n")


def _parts(old: str, new: str) -> Iterator[tuple[str, bool]]:
    """The new line in parts. Of two ways to read an insertion, the left one: ``self.se(``, not ``se(self.``."""
    at = 0
    for tag, _, _, start, end in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if tag not in ("insert", "replace"):
            continue
        while start > at and new[start - 1] == new[end - 1]:
            start, end = start - 1, end - 1
        if start > at:
            yield new[at:start], False
        yield new[start:end], True
        at = end
    yield new[at:], False
