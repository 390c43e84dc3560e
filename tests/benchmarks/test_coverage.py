"""The sweep over the zoos: what a row says, that a fault is a row and no end, and the committed table's rows."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import timm
import torchvision

from benchmarks.zoo import __main__ as sweep
from benchmarks.zoo import examine as module
from benchmarks.zoo.architectures import family, names
from benchmarks.zoo.examine import Row, examine
from benchmarks.zoo.tables import coverage
from tests.helpers import ROOT
from tests.rewording import REWORDED

TIMM, TORCHVISION = "1.0.31", "0.29"  # which the committed table is of


def test_names_and_families() -> None:
    assert names("resnet18") == ["timm:resnet18", "torchvision:resnet18"]
    assert names("timm:resnet18", "raft_*") == ["timm:resnet18", "torchvision:raft_large", "torchvision:raft_small"]
    assert family("timm:seresnet18") == "resnet"
    assert family("torchvision:fcos_resnet50_fpn") == "torchvision detection.fcos"


def test_a_structure_row() -> None:
    row = examine(("structure", "timm:test_resnet"))
    assert (row.rules, row.blocks, row.fx, row.failure, row.passed) == ("auto", 4, "", "", True)
    assert row.sites["standard"] == row.sites["post"] == 4
    assert row.checks == {"structure": True, "keys": True, "parameters": True}
    gated = examine(("structure", "timm:test_efficientnet"))
    assert (gated.rules, gated.gates, gated.again) == ("inner", 2, 2) and gated.reason
    assert REWORDED or gated.reason.startswith("already gated by")


def test_a_numeric_row() -> None:
    row = examine(("numeric", "timm:test_resnet"))
    assert row.passed and {"outputs (eval)", "outputs (train)", "reached", "keys"} <= set(row.checks)


def test_a_fault_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "differences", lambda *_: ["layer1.0"])
    row = examine(("structure", "timm:test_resnet"))
    assert not row.passed and row.failure == "structure: ['layer1.0']"
    monkeypatch.setattr(module, "load", lambda *_, **__: 1 / 0)
    broken = examine(("structure", "timm:test_resnet"))
    assert broken.failure == "ZeroDivisionError: division by zero"
    assert "- failed, structure: `timm:test_resnet`: ZeroDivisionError" in coverage([broken])


def test_a_sweep_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Row("timm:test_resnet", "resnet", "structure", blocks=99)
    (tmp_path / "rows.jsonl").write_text(json.dumps(vars(kept)) + "\n")
    asked = ["--rows", str(tmp_path / "rows.jsonl"), "-o", str(tmp_path / "table.md"), "--kind", "structure"]
    monkeypatch.setattr(sys, "argv", ["zoo", "timm:test_resnet", *asked])
    sweep.main()
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 1
    assert "| resnet | 1 | 100 % |  | 99 |" in (tmp_path / "table.md").read_text()
    assert json.loads((tmp_path / "table.json").read_text())[0]["blocks"] == 99


def test_the_committed_table_is_of_every_architecture() -> None:
    if timm.__version__ != TIMM or not torchvision.__version__.startswith(TORCHVISION):
        pytest.skip(f"the table is of timm {TIMM} and torchvision {TORCHVISION}")
    rows = [Row(**row) for row in json.loads((ROOT / "docs/coverage.json").read_text())]
    structure = {row.name: row for row in rows if row.kind == "structure"}
    numeric = {row.name: row for row in rows if row.kind == "numeric"}
    assert set(structure) == set(names("*")) and len(structure) == 1492
    assert all(row.passed and (row.blocks or row.reason) for row in structure.values())
    assert all(row.passed for row in numeric.values())
    assert {name for name in structure if name.startswith("torchvision:")} <= set(numeric)
    assert {row.family for row in structure.values() if row.blocks} == {row.family for row in numeric.values()}
    assert (ROOT / "docs/coverage.md").read_text() == coverage(rows)
