"""``se-inject list``: what there is by name, one function for each kind; each imports only what it lists."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable
from typing import Any

from se_inject.errors import LoadError, closest

Rows = list[dict[str, str]]


def blocks() -> Rows:
    from se_inject.blocks import BLOCKS

    return [
        {
            "block": name,
            "layouts": ", ".join(block.layouts),
            "starts": ", ".join(block.inits),
            "options": ", ".join(block.options),
            "paper": block.paper,
        }
        for name, block in BLOCKS.items()
    ]


def placements() -> Rows:
    from se_inject.search.placements import PLACEMENTS, sentence

    where = (
        "for depthwise blocks inner, other residual blocks standard, branches concat; conv where there are no blocks"
    )
    auto = {"placement": "auto", "where": where}
    return [auto, *({"placement": name, "where": sentence(name)} for name in PLACEMENTS)]


def presets() -> Rows:
    from se_inject.rules.presets import PRESETS

    return [{"preset": name, "selects": p.selects, "paper": p.paper} for name, p in PRESETS.items()]


def rules() -> Rows:
    from se_inject.rules.schema import FIELDS

    return [{"key": name, "what": f.doc} for name, f in FIELDS.items()]


def reasons() -> Rows:
    from se_inject.reasons import REASONS

    return [{"code": code, "meaning": meaning} for code, meaning in REASONS.items()]


def models() -> Rows:
    from se_inject.models.zoos import known_models

    return [{"model": name} for name in known_models()]


def schema(what: str) -> dict[str, Any]:
    """The JSON Schema of ``rules``, ``plan`` or ``report``."""
    if what == "rules":
        from se_inject.rules.schema import schema as rules_schema

        return rules_schema()
    from se_inject.report import formats
    from se_inject.types import Plan, Report

    return formats.schema({"plan": Plan, "report": Report}[what])


def keys(what: str) -> Rows:
    """The keys of ``plan.json`` or ``report.json`` with the kind of their values."""
    found = schema(what)
    fields = found["$defs"][what.capitalize()]["properties"]
    return [{"key": name, "kind": _kind(field)} for name, field in fields.items()]


def _kind(field: dict[str, Any]) -> str:
    if "const" in field:
        return f"always {field['const']}"
    if field.get("type") == "array":
        return f"list of {_kind(field['items'])}"
    if field.get("type") == "object":
        return f"mapping to {_kind(field['additionalProperties'])}"
    return field.get("$ref", "").rpartition("/")[2] or field.get("type", "any")


LISTINGS: dict[str, Callable[[], Rows]] = {
    "blocks": blocks,
    "placements": placements,
    "presets": presets,
    "rules": rules,
    "plan": lambda: keys("plan"),
    "report": lambda: keys("report"),
    "reasons": reasons,
    "models": models,
}


def listing(what: str, pattern: str) -> Rows:
    """The rows of ``what`` whose name fits the glob ``pattern``; models are found without their zoo too.

    Raises ``LoadError`` when none does.
    """
    rows = LISTINGS[what]()
    column = next(iter(rows[0]))
    names = [row[column] for row in rows]
    fits = [row for row in rows if any(fnmatch.fnmatch(row[column], glob) for glob in (pattern, f"*:{pattern}"))]
    if not fits:
        example = " Patterns are globs, such as '*resnet50*'." if what == "models" else ""
        raise LoadError(f"no {column} is called {pattern!r}.{closest(pattern, names)}{example}")
    return fits
