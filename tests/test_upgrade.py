"""Plans and reports of earlier schemas are read as if they had been written today."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import se_inject
from se_inject.errors import LoadError, PlanMismatchError
from se_inject.inputs import KINDS, Inputs, from_shape
from se_inject.report.formats import from_json, to_json
from se_inject.types import SCHEMA_VERSION, Report, dump, to_dict
from se_inject.upgrade import CARRIERS_1, upgrade
from tests import tiny


def nested(value: Any) -> Any:
    """Inputs as schema 1 kept them."""
    if isinstance(value, dict):
        return {key: nested(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [nested(item) for item in value]
    return f"float32{list(value.shape)}" if hasattr(value, "shape") else value


def downgraded(report: Report, inputs: Inputs) -> dict[str, Any]:
    """A report as schema 1 had it, plan included."""
    data = to_dict(report)
    plan = data["plan"]
    plan["inputs"] = {"args": nested(inputs.args), "kwargs": nested(inputs.kwargs)}
    for decision in plan["decisions"]:
        site = decision["site"]
        site["beside"], site["holds"] = site.pop("concat_id"), site.pop("gate_on_branch")
        carrier = site["carrier"]
        carrier["kind"] = {new: old for old, new in CARRIERS_1.items()}.get(carrier["kind"], carrier["kind"])
    data["rewritten"] = {cls: rewrite["after"] for cls, rewrite in data["rewritten"].items()}
    return {**data, "schema": 1, "plan": {**plan, "schema": 1}}


@pytest.fixture(scope="module")
def injected() -> se_inject.Injection:
    return tiny.inject(tiny.net())


def test_a_report_of_schema_1(injected: se_inject.Injection) -> None:
    old = json.dumps(downgraded(injected.report, injected.inputs))
    found = from_json(old)
    assert found.schema == found.plan.schema == SCHEMA_VERSION and found.plan == injected.plan
    assert [r.after for r in found.rewritten.values()] == [r.after for r in injected.report.rewritten.values()]
    assert {r.before for r in found.rewritten.values()} == {""}
    assert from_json(to_json(found)) == found


def test_a_plan_of_schema_1(injected: se_inject.Injection, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(json.dumps(downgraded(injected.report, injected.inputs)["plan"]))
    found = se_inject.read_plan(tmp_path / "plan.json")
    assert dump(found) == dump(injected.plan)


@pytest.mark.parametrize("kind", KINDS)
def test_inputs_of_every_kind(injected: se_inject.Injection, kind: Any) -> None:
    inputs = from_shape((3, 8, 8), torch.float32, kind=kind)
    plan = upgrade(downgraded(injected.report, inputs)["plan"])
    assert plan["inputs"] == {
        key: [{k: v for k, v in a.items() if k != "value"} for a in value] if key == "arguments" else value
        for key, value in to_dict(inputs.describe()).items()
    }


def test_inputs_that_the_user_gave(injected: se_inject.Injection) -> None:
    plan = downgraded(injected.report, injected.inputs)["plan"]
    plan["baseline"] = {**plan["baseline"], "probe": []}
    plan["inputs"] = {"args": ["float32[2, 3]", {"flag": True}], "kwargs": {"mask": ["int64[]"], "name": "x[1]y"}}
    assert upgrade(plan)["inputs"] == {
        "arguments": [
            {"path": "0", "dtype": "float32", "shape": [2, 3]},
            {"path": "1.flag", "value": True},
            {"path": "mask.0", "dtype": "int64", "shape": []},
            {"path": "name", "value": "x[1]y"},
        ]
    }


@pytest.mark.parametrize(("old", "new"), CARRIERS_1.items())
def test_carriers(injected: se_inject.Injection, old: str, new: str) -> None:
    plan = downgraded(injected.report, injected.inputs)["plan"]
    plan["decisions"][0]["site"]["carrier"]["kind"] = old
    assert upgrade(plan)["decisions"][0]["site"]["carrier"]["kind"] == new


@pytest.mark.parametrize("data", [None, [], "x", {}, {"schema": True}, {"schema": [1]}, {"schema": 99}, {"schema": 2}])
def test_anything_else_stays_as_it_is(data: Any) -> None:
    assert upgrade(data) is data


@pytest.mark.parametrize(
    "change", [{"decisions": 1}, {"decisions": [1]}, {"inputs": {"args": 3, "kwargs": []}}, {"inputs": {"args": []}}]
)
def test_what_is_malformed_is_refused(injected: se_inject.Injection, tmp_path: Path, change: dict[str, Any]) -> None:
    report = downgraded(injected.report, injected.inputs)
    report["plan"] |= change
    with pytest.raises(LoadError, match="the report is malformed: schema 1, and not as that says"):
        from_json(json.dumps(report))
    (tmp_path / "plan.json").write_text(json.dumps(report["plan"]))
    with pytest.raises(PlanMismatchError, match="schema 1, and not as that says"):
        se_inject.read_plan(tmp_path / "plan.json")
