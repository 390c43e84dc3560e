"""The rows of the benchmark compute, at the smallest settings; what they measure is for `make bench`."""

from __future__ import annotations

import importlib.util
import itertools
import os
import sys
import time
from types import ModuleType, SimpleNamespace

import pytest

from tests.helpers import ROOT


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench", ROOT / "benchmarks" / "bench.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name, value in (
        ("NETS", ("resnet18",)),
        ("MAPPED", "resnet18"),
        ("SWEPT", ("resnet18",)),
        ("CHAIN", (2, 4)),
        ("GROWN", 3),
        ("REPEAT", 1),
        ("CHECKPOINT", 1 << 20),
        ("LAYER", 128),
        ("MANY", 2),
    ):
        assert hasattr(module, name)
        monkeypatch.setattr(module, name, value)
    ticks = itertools.count()  # every measurement takes one
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: next(ticks), sleep=time.sleep))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return module


ROWS = {"splice": 1, "chain": 1, "growth": 1, "command": 2, "sweep": 1, "memory": 1, "read": 8, "refuse": 1, "batch": 2}
SLOW = {"command", "memory", "read", "refuse", "batch"}  # processes of their own, or large files


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in ROWS])
def test_rows_compute(bench: ModuleType, name: str) -> None:
    rows = list(bench.ROWS[name]())
    assert len(rows) == ROWS[name]
    for what, against, ratio, goal in rows:
        assert what and against and what != against
        assert 0 <= ratio < 1e3 and goal > 0


def test_every_row_is_tested(bench: ModuleType) -> None:
    assert bench.ROWS.keys() == ROWS.keys()


def test_fastest_takes_the_minimum_of_interleaved_runs(bench: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0, 5, 10, 11, 20, 22, 30, 34])  # a: 5 s and 2 s, b: 1 s and 4 s
    monkeypatch.setattr(bench, "REPEAT", 2)
    monkeypatch.setattr(bench, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    order: list[str] = []
    assert bench.fastest(lambda: order.append("a"), lambda: order.append("b")) == [2, 1]
    assert order == ["a", "b", "a", "b"]


@pytest.mark.parametrize(("ratio", "code"), [(0.9, 0), (1.1, 1)])
def test_exit_code_says_whether_a_goal_was_missed(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], ratio: float, code: int
) -> None:
    monkeypatch.setattr(bench, "ROWS", {"one": lambda: iter([("this", "that", ratio, 1.0)])})
    monkeypatch.setattr(sys, "argv", ["bench.py"])
    assert bench.main() == code
    assert f"{ratio:.2f}" in capsys.readouterr().out


def test_unknown_row(bench: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["bench.py", "splcie"])
    with pytest.raises(
        SystemExit, match="no rows splcie; there are splice, chain, growth, command, sweep, memory, read, refuse, batch"
    ):
        bench.main()
