"""A plan as a file: what was decided, and nothing that runs."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import se_inject
from se_inject.errors import LoadError, PlanMismatchError
from se_inject.types import Plan, dump, from_dict, to_dict
from tests.tiny import SIZE, Dropped, Layers, Residual, image, inject, net, with_carrier

PAPER = {"placement": "standard", "init": "paper", "sites": [{"exclude": "blocks.2"}]}


@pytest.fixture
def plan() -> Plan:
    """With a skip, and with what a verified injection remembers of the original."""
    return inject(net(n=3), {**PAPER, "init": "absorb"}).plan


def write(path: Path, plan: Plan, change: Callable[[dict[str, Any]], Any] | None = None) -> Path:
    data = to_dict(plan)
    if change is not None:
        change(data)
    path.write_text(json.dumps(data))
    return path


def test_round_trip(plan: Plan, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(dump(plan))
    again = se_inject.read_plan(path)
    assert again == plan
    assert dump(again) == dump(plan)
    assert plan.baseline.tensors and plan.baseline.outputs and plan.skips and plan.insertions
    assert all(d.reason for d in again.decisions)
    assert from_dict(Plan, json.loads(dump(plan))) == plan


def test_text_is_sorted_and_ascii(plan: Plan) -> None:
    text = dump(plan)
    assert text.isascii() and text.endswith("}\n")
    assert list(json.loads(text)) == sorted(json.loads(text))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda d: d.update(extra=1), "Plan: unknown field 'extra'"),
        (lambda d: d["decisions"][0].update(run="x"), r"Plan.decisions\[0\]: unknown field 'run'"),
        (lambda d: d.pop("seed"), "Plan: field 'seed' is missing"),
        (lambda d: d.update(seed="0"), "Plan.seed: expected int, found '0'"),
        (lambda d: d.update(seed=True), "Plan.seed: expected int, found True"),
        (lambda d: d.update(decisions={}), "Plan.decisions: expected a list, found dict"),
        (lambda d: d["decisions"].append(None), r"Plan.decisions\[3\]: expected a mapping, found NoneType"),
        (lambda d: d["decisions"][0]["site"].update(channels=8.0), "site.channels: expected int, found 8.0"),
        (lambda d: d["decisions"][0].update(status="maybe"), "status: expected one of 'insert', 'skip', found 'maybe'"),
        (lambda d: d["decisions"][0]["site"]["carrier"].update(kind="exec"), "carrier.kind: expected one of"),
        (lambda d: d.update(schema=3), "plan schema 3, this version reads 2"),
        (lambda d: d.update(schema="1"), "plan schema '1', this version reads 2"),
        (lambda d: d.pop("schema"), "plan schema None, this version reads 2"),
    ],
)
def test_what_is_not_a_plan_is_refused(plan: Plan, tmp_path: Path, change: Any, reason: str) -> None:
    path = write(tmp_path / "plan.json", plan, change)
    with pytest.raises(PlanMismatchError, match=reason) as caught:
        se_inject.read_plan(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"schema": 1, "schema": 1}', "a key stands twice"),
        ('{"schema": NaN}', "NaN is no number"),
        ('{"schema": Infinity}', "Infinity is no number"),
        ("[" * 100_000, "not JSON of this tool"),
        ("", "not JSON of this tool"),
        ("\xff", "not JSON of this tool"),
        ("import os", "not JSON of this tool"),
    ],
)
def test_what_is_not_json_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(LoadError, match=reason):
        se_inject.read_plan(path)


@pytest.mark.parametrize("text", ["[]", '"plan"', "1", "null"])
def test_json_that_is_no_mapping(tmp_path: Path, text: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(PlanMismatchError, match="Plan: expected a mapping"):
        se_inject.read_plan(path)


def test_a_file_that_is_not_there_or_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LoadError, match="cannot be read"):
        se_inject.read_plan(tmp_path / "plan.json")
    monkeypatch.setattr("se_inject.json_strict.MAX_JSON", 10)
    (tmp_path / "plan.json").write_text("{" + " " * 20 + "}")
    with pytest.raises(LoadError, match="larger than"):
        se_inject.read_plan(tmp_path / "plan.json")


# -- applied again ----------------------------------------------------------------------------------------------------
def test_a_plan_needs_no_rules(tmp_path: Path) -> None:
    model = net(n=3)
    first = inject(model, PAPER)
    (tmp_path / "plan.json").write_text(dump(first.plan))
    torch.manual_seed(7)
    again = se_inject.apply(net(n=3), se_inject.read_plan(tmp_path / "plan.json"))
    assert list(again.state_dict()) == list(first.model.state_dict())
    new = [key for key in again.state_dict() if ".se." in key]
    assert len(new) == 2 * 4
    assert all(torch.equal(again.state_dict()[key], first.model.state_dict()[key]) for key in new)
    again.load_state_dict(first.model.state_dict())
    assert torch.equal(again(image()), first.model(image()))


def test_a_plan_made_dry_is_the_plan_of_the_injection() -> None:
    dry = se_inject.plan(net(n=3), SIZE, PAPER)
    assert dry == replace(inject(net(n=3), PAPER).plan, baseline=dry.baseline)


def test_a_model_of_another_shape_is_refused(plan: Plan) -> None:
    for other in (net(n=2), net(Dropped, 3), net(Residual, 3, channels=8).blocks):
        with pytest.raises(PlanMismatchError, match=r"the plan was made for .*Make the plan again for this model"):
            se_inject.apply(other, plan)


def test_other_values_are_not_another_model(plan: Plan) -> None:
    model = net(n=3)
    with torch.no_grad():
        model.stem.weight.mul_(2)
    assert se_inject.apply(model, plan)


MODULE = """
from tests.tiny import Layers

class Block(Layers):
    def forward(self, x):
        y = self.bn2(self.conv2(self.first(x)))
        return x + y{rest}
"""


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], type[Layers]]]:
    """A library of blocks whose next version is another text."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def version(rest: str) -> type[Layers]:
        (tmp_path / "a_library_of_blocks.py").write_text(MODULE.format(rest=rest))
        sys.modules.pop("a_library_of_blocks", None)
        importlib.invalidate_caches()
        import linecache

        linecache.checkcache()
        block: type[Layers] = importlib.import_module("a_library_of_blocks").Block
        return block

    yield version
    sys.modules.pop("a_library_of_blocks", None)


def test_another_version_of_the_source_is_refused(library: Callable[[str], type[Layers]]) -> None:
    plan = se_inject.plan(net(library("")), SIZE, "standard")
    assert se_inject.apply(net(library("")), plan)
    other = net(library("  # now with a comment"))
    with pytest.raises(PlanMismatchError, match=r"the source of Block\.forward is not the one that the plan"):
        se_inject.apply(other, plan, inplace=True)
    assert type(other.blocks[0]).__name__ == "Block"


# -- what a plan names is not run -------------------------------------------------------------------------------------
def test_reading_a_plan_imports_nothing(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "a_module_named_by_a_plan.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')\n")

    def change(data: dict[str, Any]) -> None:
        data["model"] = "a_module_named_by_a_plan:build"
        place = data["decisions"][0]["site"]["carrier"]["position"]
        place["module"], place["cls"] = "a_module_named_by_a_plan", "Block"

    again = se_inject.read_plan(write(tmp_path / "plan.json", plan, change))
    se_inject.apply(net(n=3), again)
    assert "a_module_named_by_a_plan" not in sys.modules and not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    "name",
    [
        'training and getattr(__import__("os"), "mkdir")({}) or (lambda v: v)',
        'se) or getattr(__import__("os"), "mkdir")({}) or (x',
        'a" if getattr(__import__("os"), "mkdir")({}) else "b',
        'blocks.0.se" if getattr(__import__("os"), "mkdir")({}) else "b',
    ],
)
@pytest.mark.parametrize("kind", ["source", "wrap_output", "graph"])
def test_a_name_in_a_plan_is_never_code(name: str, kind: str, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    name = name.format(ascii(str(canary)))
    model: nn.Module = net()
    if kind == "graph":
        model = torch.fx.symbolic_trace(model)
    plan = se_inject.plan(model, SIZE, "standard")
    changed = with_carrier(
        plan, name=name, **({"kind": "wrap_output", "position": None} if kind == "wrap_output" else {})
    )
    again = se_inject.read_plan(write(tmp_path / "plan.json", changed))
    with pytest.raises(PlanMismatchError, match="is not a name"):
        se_inject.apply(model, again)(image())
    assert not canary.exists()
