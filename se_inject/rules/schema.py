"""Rules: what the user asks for, and which sites they take.

From a dict, a YAML file, the name of a placement or of a preset. One table, ``FIELDS``, says what each key takes; the
reader, the JSON Schema and the documentation follow from it. Conditions answer None or the reason why they say
no; the first entry of ``sites`` that matches decides.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from se_inject.errors import RulesError, closest, sentence
from se_inject.rules.yaml_file import read_yaml
from se_inject.search import placements
from se_inject.types import INITS, BlockSpec, Site, to_dict

PLACEMENTS = ("auto", *placements.PLACEMENTS)
SUFFIXES = (".yaml", ".yml", ".json")  # of a file of rules


@dataclass(frozen=True)
class Rule:
    """Conditions, all of which must hold, and what happens where they do."""

    placement: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    stages: tuple[int, ...] = ()
    min_channels: int = 0
    max_channels: int = 0
    min_resolution: int = 0
    max_resolution: int = 0
    kernel: tuple[int, ...] = ()
    depthwise: bool | None = None
    every: int = 1
    last: bool = False
    block: dict[str, Any] = field(default_factory=dict)
    ratio: float = 0
    ratio_by_stage: dict[int, float] = field(default_factory=dict)
    init: str = ""


@dataclass(frozen=True)
class Match(Rule):
    """One entry of ``sites``, that changes something where its conditions hold."""


@dataclass(frozen=True)
class Rules(Rule):
    """What to insert where. The defaults are the whole of ``rules="auto"``."""

    placement: tuple[str, ...] = ("auto",)
    init: str = "identity"
    again: bool = False
    budget: dict[str, Any] = field(default_factory=dict)
    sites: tuple[Match, ...] = ()

    def spec(self, match: Match | None, defaults: dict[str, Any], site: Site) -> BlockSpec:
        """The block for a site: defaults of the placement, then the rules, then the entry that matched."""
        options = {**self.block, **_ratio(self, site)}
        if match is not None:
            if match.block.get("name", options.get("name", "se")) != options.get("name", "se"):
                options = _ratio(self, site)  # the options of another block
            options |= {**match.block, **_ratio(match, site)}
        if not {"rd_ratio", "rd_channels", "rd_base"} & set(options):
            options = {**defaults, **options}  # a width that the user gives is meant as it stands
        name = options.pop("name", "se")
        return BlockSpec(name, options)


def _ratio(rule: Rule, site: Site) -> dict[str, Any]:
    ratio = rule.ratio_by_stage.get(site.stage, rule.ratio)
    return {"rd_ratio": 1 / ratio} if ratio else {}


# -- reading ------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Field:
    """What a key takes: its JSON Schema, its reader (raises ``ValueError``), and a sentence for the reference."""

    schema: dict[str, Any]
    read: Callable[[Any], Any]
    doc: str
    top_only: bool = False


def listed(item: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def read(value: Any) -> tuple[Any, ...]:
        return tuple(item(v) for v in (value if isinstance(value, list | tuple) else [value]))

    return read


def integer(low: int) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        if type(value) is not int or value < low:
            raise ValueError(f"takes a whole number from {low}, found {value!r}")
        return value

    return read


def text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"takes a text, found {value!r}")
    return value


def _pattern(value: Any) -> str:
    if text(value).startswith("re:"):
        try:
            re.compile(value[3:])
        except re.error as error:
            raise ValueError(f"{value!r} is not a regular expression: {error}") from error
    return str(value)


def flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"takes true or false, found {value!r}")
    return value


def one_of(known: Iterable[str]) -> Callable[[Any], str]:
    names = tuple(known)

    def read(value: Any) -> str:
        if value not in names:
            raise ValueError(f"{value!r} is not known.{closest(str(value), names)}")
        return str(value)

    return read


def _positive(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 4096:
        raise ValueError(f"takes a number above 0, found {value!r}")
    return value


def _by_stage(value: Any) -> dict[int, float]:
    if not isinstance(value, dict):
        raise ValueError(f"takes a mapping of stage to ratio, found {value!r}")
    return {integer(1)(int(k) if isinstance(k, str) and k.isdigit() else k): _positive(v) for k, v in value.items()}


def _block(value: Any) -> dict[str, Any]:
    from se_inject.blocks import find_block

    options = {"name": value} if isinstance(value, str) else value
    if not isinstance(options, dict):
        raise ValueError(f"takes a name or a mapping of options, found {value!r}")
    name = options.get("name", "se")
    known = ("name", *find_block(text(name)).options)
    for key in options:
        if key not in known:
            raise ValueError(f"{name} has no option {key!r}.{closest(str(key), known)}")
    return dict(options)


def _budget(value: Any) -> dict[str, Any]:
    """``{"params": 0.02, "macs": 0.01, "ratios": (32, 16, 8, 4)}`` from ``{"params": "2%", ...}``."""
    if not isinstance(value, dict) or not set(value) & {"params", "macs"}:
        raise ValueError(f"takes params and/or macs, such as {{params: 2%}}, found {value!r}")
    found: dict[str, Any] = {}
    for key, given in value.items():
        if key == "ratios":
            found[key] = listed(_positive)(given)
        elif key in ("params", "macs"):
            said = given.strip() if isinstance(given, str) else given
            try:
                share = float(said[:-1]) / 100 if isinstance(said, str) and said.endswith("%") else float(said)
            except (TypeError, ValueError):
                share = -1.0
            if isinstance(given, bool) or not 0 < share <= 10:
                raise ValueError(f"{key} takes a share of the model's, such as 2% or 0.02, found {given!r}")
            found[key] = share
        else:
            raise ValueError(f"unknown key {key!r}.{closest(str(key), ('params', 'macs', 'ratios'))}")
    return found


TEXTS = {"type": ["string", "array"], "items": {"type": "string"}}
COUNT = {"type": "integer", "minimum": 0}
COUNTS = {"type": ["integer", "array"], "items": {"type": "integer", "minimum": 1}}
RATIO = {"type": "number", "exclusiveMinimum": 0}
SHARE = {"type": ["string", "number"]}

FIELDS: dict[str, Field] = {
    "placement": Field(
        {"type": ["string", "array"], "enum": None, "items": {"enum": list(PLACEMENTS)}},
        listed(one_of(PLACEMENTS)),
        "Where in a block: one placement or several. Default auto.",
    ),
    "init": Field({"enum": list(INITS)}, one_of(INITS), "Start of the block. Default identity."),
    "block": Field(
        {"type": ["string", "object"]}, _block, "Which block, and its options: {name: se, gate: hardsigmoid}."
    ),
    "ratio": Field(RATIO, _positive, "Channels divided by reduced channels: 16 is rd_ratio 0.0625."),
    "ratio_by_stage": Field(
        {"type": "object", "additionalProperties": RATIO}, _by_stage, "Ratio for each stage: {3: 16, 4: 8}."
    ),
    "include": Field(TEXTS, listed(_pattern), "Paths to take: globs, or re:... for a full match."),
    "exclude": Field(TEXTS, listed(_pattern), "Paths to leave out."),
    "classes": Field(TEXTS, listed(_pattern), "Class names of the owner to take: globs, or re:..."),
    "stages": Field(COUNTS, listed(integer(1)), "Stages to take; 1 is the largest resolution among the blocks."),
    "min_channels": Field(COUNT, integer(0), "Fewest channels."),
    "max_channels": Field(COUNT, integer(1), "Most channels."),
    "min_resolution": Field(COUNT, integer(0), "Smallest side of the map."),
    "max_resolution": Field(COUNT, integer(1), "Largest side of the map."),
    "kernel": Field(COUNTS, listed(integer(1)), "Kernel sizes of the convolution before the site."),
    "depthwise": Field({"type": "boolean"}, flag, "Whether that convolution is depthwise."),
    "every": Field({"type": "integer", "minimum": 1}, integer(1), "Every n-th of the sites that are left, in order."),
    "last": Field({"type": "boolean"}, flag, "Only the last of each stage."),
    "again": Field({"type": "boolean"}, flag, "Insert at places that are gated already.", top_only=True),
    "budget": Field(
        {"type": "object", "properties": {"params": SHARE, "macs": SHARE, "ratios": {"type": "array"}}},
        _budget,
        "Choose sites and ratios under a share of the model's parameters and MACs: {params: 2%, macs: 1%}.",
        top_only=True,
    ),
}  # fmt: skip


def read(source: Any = "auto") -> Rules:
    """``Rules`` from the name of a placement or preset, a YAML file's path, a dict, or ``Rules``.

    Raises ``RulesError`` that names what is wrong and the closest known name.
    """
    from se_inject.blocks.custom import named
    from se_inject.rules.presets import PRESETS

    if isinstance(source, Rules):
        return source
    if source is None:
        return Rules()
    if isinstance(source, BlockSpec):
        source = {"block": source}
    if isinstance(source, dict):
        return plain(named(source), "rules")
    if isinstance(source, str) and source in PLACEMENTS:
        return Rules(placement=(source,))
    if isinstance(source, str) and source in PRESETS:
        return plain(PRESETS[source].rules, source)
    if isinstance(source, Path) or (isinstance(source, str) and Path(source).suffix in SUFFIXES):
        return plain(read_yaml(Path(source)), str(source))
    if isinstance(source, str):
        near = closest(source, [*PLACEMENTS, *PRESETS])
        raise RulesError(f"rules: {source!r} is no placement, preset or YAML file.{near}")
    raise RulesError(f"rules: expected a dict, a file or a name, found {type(source).__name__}.")


def plain(data: Any, where: str) -> Rules:
    """``Rules`` from what a file says, which is ``where``: a class that it names as a block is not imported."""
    entries = data.get("sites", []) if isinstance(data, dict) else []
    if not isinstance(entries, list | tuple):
        raise RulesError(f"{where}: sites is a list of entries, found {type(entries).__name__}.")
    values = _fields(data, where, top=True)
    sites = tuple(Match(**_fields(entry, f"{where}: sites[{i}]", top=False)) for i, entry in enumerate(entries))
    return Rules(**values, sites=sites)


def _fields(data: Any, where: str, *, top: bool) -> dict[str, Any]:
    if data is None:
        raise RulesError(f"{where}: is empty; write a rule, such as 'placement: standard'.")
    if not isinstance(data, dict):
        raise RulesError(f"{where}: expected a mapping, found {type(data).__name__}.")
    known = [name for name, f in FIELDS.items() if top or not f.top_only] + ["sites"] * top
    values = {}
    for key, value in data.items():
        if key not in known:
            raise RulesError(f"{where}: unknown key {key!r}.{closest(str(key), known)}")
        if key == "sites":
            continue
        try:
            values[key] = FIELDS[key].read(value)
        except ValueError as error:
            raise RulesError(f"{where}: {key}: {sentence(error)}") from error
    return values


def to_plain(rules: Rule) -> dict[str, Any]:
    """The rules as plain data that ``read`` takes, defaults left out: what a plan remembers."""
    default = type(rules)()
    data = {
        f.name: to_dict(value)
        for f in fields(rules)
        if f.name != "sites" and (value := getattr(rules, f.name)) != getattr(default, f.name)
    }
    if isinstance(rules, Rules) and rules.sites:
        data["sites"] = [to_plain(entry) for entry in rules.sites]
    return data


def schema() -> dict[str, Any]:
    """The JSON Schema of a rules file, for editors that complete and check YAML."""

    def properties(top: bool) -> dict[str, Any]:
        return {
            name: {k: v for k, v in {**f.schema, "description": f.doc}.items() if v is not None}
            for name, f in FIELDS.items()
            if top or not f.top_only
        }

    entry = {"type": "object", "additionalProperties": False, "properties": properties(False)}
    sites = {"type": "array", "items": entry, "description": "First match wins; without it, every site."}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "se_inject rules",
        "type": "object",
        "additionalProperties": False,
        "properties": {**properties(True), "sites": sites},
    }
