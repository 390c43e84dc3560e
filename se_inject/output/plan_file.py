"""``plan.json``, read as data."""

from __future__ import annotations

from pathlib import Path

from se_inject.errors import PlanMismatchError
from se_inject.json_strict import other_schema, read_json
from se_inject.output.names import PLAN
from se_inject.types import Plan, from_dict
from se_inject.upgrade import upgrade

__all__ = ["PLAN", "read_plan"]


def read_plan(path: Path) -> Plan:
    """The plan in a file, checked field by field; nothing that it names is imported."""
    data = read_json(path)
    try:
        data = upgrade(data)
        if isinstance(data, dict) and (other := other_schema(data, "plan", "make the plan again")):
            raise PlanMismatchError(f"{path}: {other}")
        return from_dict(Plan, data)
    except ValueError as error:
        raise PlanMismatchError(f"{path}: {error}.") from error
