"""Patterns to models, and options with commas to one set of options for each combination."""

from __future__ import annotations

import fnmatch
import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from se_inject.blocks import find_block
from se_inject.commands.request import AXES, RulesRequest
from se_inject.errors import LoadError, RulesError, closest
from se_inject.importing import find
from se_inject.models.zoos import ZOOS, check_known, known_models, split_spec
from se_inject.rules.schema import Rules


@dataclass(frozen=True)
class Point:
    """One set of rules of the grid, under the name of the preset or file that it comes from, if any."""

    source: str
    rules: Rules

    @property
    def block(self) -> str:
        return str(self.rules.block.get("name", "se"))

    @property
    def ratio(self) -> float | None:
        """Channels / reduced channels; None: what the block takes by default, entries of ``sites`` say, or a budget
        chooses.
        """
        if self.rules.budget:
            return None
        share = self.rules.block.get("rd_ratio", 0)
        return float(self.rules.ratio or (share and 1 / share)) or None


def models(patterns: Iterable[str]) -> list[str]:
    """Specs of the models that are meant, each once: globs over the zoos, with their name or without, and plain specs.

    Raises ``LoadError`` for a pattern that nothing matches, an unknown name, and a factory that cannot be imported.

    >>> models(["timm:resnet1?"])
    ['timm:resnet10t', 'timm:resnet14t', 'timm:resnet18', 'timm:resnet18d']
    """
    known = known_models()
    return list(dict.fromkeys(spec for pattern in patterns for spec in _models(pattern, known)))


def _models(pattern: str, known: list[str]) -> list[str]:
    if re.search(r"[*?[]", pattern):
        found = [spec for spec in known if any(fnmatch.fnmatch(spec, glob) for glob in (pattern, f"*:{pattern}"))]
        if not found:
            raise LoadError(f"no model is called {pattern!r}.{closest(pattern, known)}")
        return found
    library, name = split_spec(pattern)
    if library not in ZOOS:
        find(pattern, library, name)
    else:
        check_known(pattern, known)
    return [pattern]


def combinations(rules: RulesRequest, axes: Mapping[str, Sequence[str]]) -> Iterator[RulesRequest]:
    """``rules`` with one value of each of ``AXES``, from texts that hold commas; the last axis moves fastest.

    Raises ``RulesError`` for an empty value, and for a ratio that is no number.

    >>> [one.ratio for one in combinations(RulesRequest(), {"ratio": ("8,16",), "init": ()})]
    [8.0, 16.0]
    """
    values = (_values(axis, axes.get(axis, ())) or [getattr(rules, axis)] for axis in AXES)
    for chosen in itertools.product(*values):
        yield replace(rules, **dict(zip(AXES, chosen, strict=True)))


def _values(axis: str, texts: Iterable[str]) -> list[Any]:
    parts = [part.strip() for text in texts for part in text.split(",")]
    if "" in parts:
        raise RulesError(f"--{axis} {','.join(parts)!r}: a value is empty.")
    read = {"ratio": _number, "placement": lambda name: (name,)}.get(axis, str)
    return [read(part) for part in dict.fromkeys(parts)]


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 1 / 8 <= value < math.inf:
        raise RulesError(f"--ratio {text!r} is not a number from 0.125 on; give ratios such as --ratio 8,16,32.")
    return value


def labels(rules: Iterable[str]) -> dict[str, str]:
    """What the rows call each preset or file of rules: its name, or where files share one, the path that was given.

    >>> labels(["ecanet", "one/r.yaml", "two/r.yaml", "three/s.yaml"])
    {'ecanet': 'ecanet', 'one/r.yaml': 'one/r.yaml', 'two/r.yaml': 'two/r.yaml', 'three/s.yaml': 's.yaml'}
    """
    given = dict.fromkeys(rules)
    shared = Counter(Path(text).name for text in given)
    return {text: text if shared[Path(text).name] > 1 else Path(text).name for text in given}


def distinct(points: Iterable[Point]) -> tuple[Point, ...]:
    """The points that differ: a block without reduced channels (ECA) is the same at every ratio, and a budget chooses
    the ratio.
    """
    kept: list[Point] = []
    for point in points:
        fixed = not point.rules.sites and "rd_ratio" not in find_block(point.block).options
        if fixed or point.rules.budget:
            point = replace(point, rules=replace(point.rules, ratio=0))
        if point not in kept:
            kept.append(point)
    return tuple(kept)
