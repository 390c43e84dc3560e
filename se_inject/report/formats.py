"""One report, many renderings: each a pure function of the ``Report``, and none when its columns do not add up."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from typing import Any

from se_inject.errors import LoadError
from se_inject.json_strict import other_schema, parse
from se_inject.report.markdown import to_markdown
from se_inject.report.tables import check_sums
from se_inject.report.text import render_checks, render_plan, to_terminal
from se_inject.types import SCHEMA_VERSION, Report, from_dict, to_dict
from se_inject.upgrade import upgrade

__all__ = [
    "check_sums", "from_json", "render_checks", "render_plan", "schema", "to_json", "to_markdown", "to_terminal",
]  # fmt: skip

TYPES = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}


def to_json(report: Report) -> str:
    """The whole report, plan included; ASCII, keys sorted, the same text for the same report.

    Raises ``VerifyError`` when the report disagrees with itself.
    """
    check_sums(report)
    return json.dumps(to_dict(report), indent=1, sort_keys=True, allow_nan=False) + "\n"


def from_json(text: str) -> Report:
    """The report that ``to_json`` wrote; nothing that it names is imported.

    Raises ``LoadError`` for another schema version or malformed data, ``VerifyError`` when it disagrees with itself.
    """
    try:
        data = parse(text)
    except (ValueError, RecursionError) as error:
        raise LoadError(f"the report is not JSON of this tool: {error}.") from error
    try:
        data = upgrade(data)
        if other := other_schema(data, "report", "convert again"):
            raise LoadError(other)
        report = from_dict(Report, data)
    except ValueError as error:
        raise LoadError(f"the report is malformed: {error}.") from error
    if keyless := [d.site.id for d in report.plan.insertions if d.site.carrier is None]:
        raise LoadError(f"the report is malformed: {keyless[0]!r} is inserted, but has no carrier.")
    check_sums(report)
    return report


def schema(kind: type = Report) -> dict[str, Any]:
    """JSON Schema (2020-12) of ``report.json``, or with ``Plan`` of ``plan.json``: what ``from_dict`` reads."""
    definitions: dict[str, Any] = {}
    top = _schema(kind, definitions)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"se_inject {kind.__name__.lower()}, schema {SCHEMA_VERSION}",
        **top,
        "$defs": dict(sorted(definitions.items())),
    }


def _schema(kind: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    if kind is Any:
        return {}
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [_schema(a, definitions) for a in args]}
    if origin is typing.Literal:
        return {"enum": list(args)}
    if origin is tuple:
        return {"type": "array", "items": _schema(args[0], definitions)}
    if origin is dict:
        return {"type": "object", "additionalProperties": _schema(args[1], definitions)}
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        name = kind.__name__
        if name not in definitions:
            definitions[name] = {}
            definitions[name].update(_fields(kind, definitions))
        return {"$ref": f"#/$defs/{name}"}
    return {"type": TYPES[kind]}


def _fields(kind: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    fields = dataclasses.fields(kind)
    missing = dataclasses.MISSING
    properties = {f.name: _schema(hints[f.name], definitions) for f in fields}
    if "schema" in properties:
        properties["schema"] = {"const": SCHEMA_VERSION}
    return {
        "type": "object",
        "properties": properties,
        "required": [f.name for f in fields if f.default is missing and f.default_factory is missing],
        "additionalProperties": False,
    }
