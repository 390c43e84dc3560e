"""``plan.json``, read as data."""

from __future__ import annotations

from pathlib import Path

from se_inject.errors import PlanMismatchError
from se_inject.files.jsonfile import read_json
from se_inject.types import SCHEMA_VERSION, Plan, from_dict

PLAN = "plan.json"


def read_plan(path: Path) -> Plan:
    """The plan in a file, checked field by field; nothing that it names is imported."""
    data = read_json(path)
    if isinstance(data, dict) and data.get("schema") != SCHEMA_VERSION:
        raise PlanMismatchError(
            f"{path}: plan schema {data.get('schema')!r}, this version reads {SCHEMA_VERSION}. Make the plan again."
        )
    try:
        return from_dict(Plan, data)
    except ValueError as error:
        raise PlanMismatchError(f"{path}: {error}.") from error
