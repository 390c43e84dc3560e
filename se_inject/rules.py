"""Rules: what the user asks for. From a dict, a YAML file, or the name of a placement; and which sites they take.

Each check answers ``""`` or the reason why it says no. The first entry of ``sites`` that matches decides.
"""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from se_inject.blocks import BLOCKS, INITS
from se_inject.errors import RulesError, closest
from se_inject.types import BlockSpec, Site

PLACEMENTS = ("auto", "standard", "inner")
MAX_BYTES = 1 << 20


@dataclass(frozen=True)
class Match:
    """One entry of ``sites``: conditions, all of which must hold, and what it changes."""

    include: tuple[str, ...] = ()  # paths, globs, or re:... full matches
    exclude: tuple[str, ...] = ()
    min_channels: int = 0
    stages: tuple[int, ...] = ()
    block: dict[str, Any] = field(default_factory=dict)
    init: str = ""


@dataclass(frozen=True)
class Rules:
    """What to insert where. The defaults are the whole of ``rules="auto"``."""

    placement: str = "auto"
    init: str = "identity"
    block: dict[str, Any] = field(default_factory=dict)
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    min_channels: int = 0
    stages: tuple[int, ...] = ()
    sites: tuple[Match, ...] = ()

    def spec(self, match: Match | None, defaults: dict[str, Any]) -> BlockSpec:
        """The block for a site: defaults of the placement, then the rules, then the entry that matched."""
        options = {**defaults, **self.block, **(match.block if match else {})}
        name = options.pop("name", "se")
        return BlockSpec(name, options)


def read(source: Any = "auto") -> Rules:
    """``Rules`` from a placement's name, a YAML file's path, a dict, or ``Rules``.

    Raises ``RulesError`` that names what is wrong and the closest known name.
    """
    if isinstance(source, Rules):
        return source
    if source is None:
        return Rules()
    if isinstance(source, dict):
        return _rules(source, "rules")
    if isinstance(source, str) and source in PLACEMENTS:
        return Rules(placement=source)
    if isinstance(source, Path) or (isinstance(source, str) and (Path(source).suffix in (".yaml", ".yml", ".json"))):
        return _rules(_yaml(Path(source)), str(source))
    if isinstance(source, str):
        raise RulesError(f"rules: {source!r} is neither a placement nor a YAML file.{closest(source, PLACEMENTS)}")
    raise RulesError(f"rules: expected a dict, a file or a placement, found {type(source).__name__}.")


class _Loader(yaml.SafeLoader):
    """Safe, without aliases (a small file must not become a large one) and without duplicate keys."""

    def compose_node(self, parent: Any, index: int) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not allowed")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"key {key!r} stands twice")
        return super().construct_mapping(node, deep)


def _yaml(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            text = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise RulesError(f"{path}: cannot be read ({error.strerror}).") from error
    if len(text) > MAX_BYTES:
        raise RulesError(f"{path}: larger than {MAX_BYTES} bytes; a rules file is a page of text.")
    try:
        return yaml.load(text.decode(), Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise RulesError(f"{path}: not the YAML of a rules file: {' '.join(str(error).split())}") from error


def _rules(data: Any, where: str) -> Rules:
    values = _fields(Rules, data, where)
    if values.get("placement", "auto") not in PLACEMENTS:
        name = values["placement"]
        raise RulesError(f"{where}: placement {name!r} is not known.{closest(str(name), PLACEMENTS)}")
    sites = values.get("sites", ())
    if not isinstance(sites, list | tuple):
        raise RulesError(f"{where}: sites is a list of entries, found {type(sites).__name__}.")
    values["sites"] = tuple(Match(**_fields(Match, s, f"{where}: sites[{i}]")) for i, s in enumerate(sites))
    return Rules(**values)


def _fields(cls: type, data: Any, where: str) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise RulesError(f"{where}: expected a mapping, found {type(data).__name__}.")
    known = [f.name for f in fields(cls)]
    for key in data:
        if key not in known:
            raise RulesError(f"{where}: unknown key {key!r}.{closest(str(key), known)}")
    values = dict(data)
    for key in ("include", "exclude"):
        if key in values:
            values[key] = _patterns(values[key], f"{where}: {key}")
    if "min_channels" in values and (type(values["min_channels"]) is not int or values["min_channels"] < 0):
        raise RulesError(f"{where}: min_channels is a whole number, found {values['min_channels']!r}.")
    if "stages" in values:
        stages = values["stages"] if isinstance(values["stages"], list | tuple) else [values["stages"]]
        if not all(type(s) is int and s > 0 for s in stages):
            raise RulesError(f"{where}: stages is a list of numbers from 1, found {values['stages']!r}.")
        values["stages"] = tuple(stages)
    if values.get("init") is not None and "init" in values and values["init"] not in INITS:
        raise RulesError(f"{where}: init {values['init']!r} is not known.{closest(str(values['init']), INITS)}")
    if "block" in values:
        values["block"] = _block(values["block"], f"{where}: block")
    return values


def _patterns(value: Any, where: str) -> tuple[str, ...]:
    patterns = [value] if isinstance(value, str) else value
    if not isinstance(patterns, list | tuple) or not all(isinstance(p, str) for p in patterns):
        raise RulesError(f"{where} is a pattern or a list of patterns, found {value!r}.")
    for pattern in patterns:
        if pattern.startswith("re:"):
            try:
                re.compile(pattern[3:])
            except re.error as error:
                raise RulesError(f"{where}: {pattern!r} is not a regular expression: {error}.") from error
    return tuple(patterns)


def _block(value: Any, where: str) -> dict[str, Any]:
    options = {"name": value} if isinstance(value, str) else value
    if not isinstance(options, dict):
        raise RulesError(f"{where} is a name or a mapping of options, found {value!r}.")
    name = options.get("name", "se")
    if name not in BLOCKS:
        raise RulesError(f"{where}: no block is called {name!r}.{closest(str(name), BLOCKS)}")
    known = ("name", *BLOCKS[name].options)
    for key in options:
        if key not in known:
            raise RulesError(f"{where}: {name} has no option {key!r}.{closest(str(key), known)}")
    return dict(options)


def matches(pattern: str, site: Site) -> bool:
    """Whether a glob (or ``re:`` full match) names the site by its owner's path, its carrier's path, or its id."""
    names = {site.owner, site.id}
    if site.carrier is not None:
        names.add(site.carrier.path)
    if pattern.startswith("re:"):
        return any(re.fullmatch(pattern[3:], name) for name in names)
    return any(fnmatch.fnmatchcase(name, pattern) for name in names)


def included(rule: Rules | Match, site: Site) -> str:
    if rule.include and not any(matches(p, site) for p in rule.include):
        return f"not included by {', '.join(rule.include)}"
    return ""


def excluded(rule: Rules | Match, site: Site) -> str:
    for pattern in rule.exclude:
        if matches(pattern, site):
            return f"excluded by {pattern}"
    return ""


def wide_enough(rule: Rules | Match, site: Site) -> str:
    if site.channels < rule.min_channels:
        return f"{site.channels} channels, fewer than min_channels {rule.min_channels}"
    return ""


def in_stage(rule: Rules | Match, site: Site) -> str:
    if rule.stages and site.stage not in rule.stages:
        return f"stage {site.stage} is not among stages {', '.join(map(str, rule.stages))}"
    return ""


CHECKS = (included, excluded, wide_enough, in_stage)


def select(rules: Rules, site: Site) -> tuple[Match | None, str]:
    """The entry that takes the site (None when there are no entries), or the reason why it is not taken."""
    for check in CHECKS:
        if reason := check(rules, site):
            return None, reason
    if not rules.sites:
        return None, ""
    for match in rules.sites:
        if match.exclude and not match.include:
            if reason := excluded(match, site):
                return None, reason
            continue
        if not any(check(match, site) for check in CHECKS):
            return match, ""
    # A list of exclusions alone leaves all the rest in.
    only_excludes = all(m.exclude and not m.include for m in rules.sites)
    return None, "" if only_excludes else "no entry of sites matches it"
