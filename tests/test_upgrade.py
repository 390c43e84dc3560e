"""Plans and reports of earlier schemas are read as if they had been written today."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch

import se_inject
from se_inject.errors import LoadError, PlanMismatchError, RulesError
from se_inject.inputs import KINDS, Inputs, from_shape
from se_inject.report.formats import from_json, schema, to_json
from se_inject.search.placements import PLACEMENTS
from se_inject.types import SCHEMA_VERSION, Plan, Reason, Report, dump, from_dict, to_dict
from se_inject.upgrade import CARRIERS_1, REASONS_1, upgrade
from tests import tiny
from tests.conftest import GOLDEN
from tests.helpers import code
from tests.nets import NETS


def nested(value: Any) -> Any:
    """Inputs as schema 1 kept them."""
    if isinstance(value, dict):
        return {key: nested(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [nested(item) for item in value]
    return f"float32{list(value.shape)}" if hasattr(value, "shape") else value


def textual(reason: dict[str, str] | None) -> str:
    """A reason as schema 1 wrote it."""
    return reason["text"] if reason else ""


def downgraded(report: Report, inputs: Inputs) -> dict[str, Any]:
    """A report as schema 1 had it, plan included."""
    data = to_dict(report)
    plan = data["plan"]
    plan["inputs"] = {"args": nested(inputs.args), "kwargs": nested(inputs.kwargs)}
    for decision in plan["decisions"]:
        site = decision["site"]
        site |= {name: textual(site[name]) for name in REASONS_1}
        decision["reason"] = textual(decision["reason"])
        site["beside"], site["holds"] = site.pop("concat_id"), site.pop("gate_on_branch")
        carrier = site["carrier"]
        carrier["kind"] = {new: old for old, new in CARRIERS_1.items()}.get(carrier["kind"], carrier["kind"])
    plan["notes"] = [textual(note) for note in plan["notes"]]
    data["gates"] = [{**gate, "note": textual(gate["note"])} for gate in data["gates"]]
    data["rewritten"] = {cls: rewrite["after"] for cls, rewrite in data["rewritten"].items()}
    return {**data, "schema": 1, "plan": {**plan, "schema": 1}}


@pytest.fixture(scope="module")
def injected() -> se_inject.Injection:
    return tiny.inject(tiny.net())


@pytest.mark.wording
def test_a_report_of_schema_1(injected: se_inject.Injection) -> None:
    old = json.dumps(downgraded(injected.report, injected.inputs))
    found = from_json(old)
    assert found.schema == found.plan.schema == SCHEMA_VERSION and found.plan == injected.plan
    assert [r.after for r in found.rewritten.values()] == [r.after for r in injected.report.rewritten.values()]
    assert {r.before for r in found.rewritten.values()} == {""}
    assert from_json(to_json(found)) == found


@pytest.mark.wording
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


# -- reasons ----------------------------------------------------------------------------------------------------------
PLAN, REPORT = GOLDEN / "v1" / "plan.json", GOLDEN / "v1" / "report.json"
# Site -> code of its decision, and of its obstacle or what is against `absorb`.
CODES = {
    "blocks.0:pre": ("other-values", None, "other-values"),
    "blocks.0:standard": ("placement", None, None),
    "blocks.1:pre": ("excluded", None, "other-values"),
    "blocks.1:standard": ("excluded", None, None),
    "blocks.2:pre": ("no-entry", None, "other-values"),
    "blocks.2:standard": ("no-entry", None, None),
    "blocks.3:pre": ("other-values", None, "other-values"),
    "blocks.3:standard": ("gated", None, "not-scaling"),
    "blocks.4:pre": ("loop", "loop", "other-values"),
    "blocks.4:standard": ("loop", "loop", "not-scaling"),
    "blocks.4:pre_2": ("loop", "loop", "other-values"),
    "blocks.4:standard_2": ("loop", "loop", "not-scaling"),
    "blocks.5:pre": ("other-values", None, "other-values"),
    "blocks.5:standard": ("placement", None, None),
}


def test_a_plan_that_schema_1_wrote() -> None:
    plan = se_inject.read_plan(PLAN)
    assert {
        d.site.id: (d.reason.code, code(d.site.obstacle), code(d.site.absorb_obstacle)) for d in plan.decisions
    } == CODES
    old = json.loads(PLAN.read_text())
    for decision, before in zip(plan.decisions, old["decisions"], strict=True):
        assert decision.reason == Reason(decision.reason.code, before["reason"])
    assert [d.site.note.code for d in plan.decisions if d.site.note] == ["eval-mode-only"]
    assert [d.site.gated.code for d in plan.decisions if d.site.gated] == ["gated"]
    assert [note.code for note in plan.notes] == ["real-run"] and plan.schema == 2
    jsonschema.validate(json.loads(dump(plan)), schema(Plan))


def test_a_report_that_schema_1_wrote() -> None:
    report = from_json(REPORT.read_text())
    assert (report.schema, report.plan.schema) == (2, 2)
    assert report.plan.decisions == se_inject.read_plan(PLAN).decisions
    assert from_json(to_json(report)) == report
    jsonschema.validate(json.loads(to_json(report)), schema(Report))


@pytest.mark.wording
@pytest.mark.parametrize("name", NETS)
def test_the_codes_of_texts_are_those_that_are_given_today(name: str) -> None:
    net = NETS[name]()
    for rules in ("auto", {"placement": list(PLACEMENTS), "init": "absorb", "exclude": "*2*", "min_channels": 16}):
        try:
            plan = se_inject.plan(net, net.shape, rules)
        except RulesError:
            continue
        data = to_dict(plan)
        for decision in data["decisions"]:
            decision["reason"] = textual(decision["reason"])
            decision["site"] |= {name: textual(decision["site"][name]) for name in REASONS_1}
        data |= {"schema": 1, "inputs": {"args": [], "kwargs": {}}}
        assert from_dict(Plan, upgrade(data)).decisions == plan.decisions
