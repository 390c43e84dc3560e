"""Reasons: a code for programs, a text for people. The table is complete, and no behaviour hangs on a text."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from click.testing import CliRunner

import se_inject
from se_inject import errors
from se_inject.cli import main
from se_inject.reasons import REASONS
from se_inject.types import Reason
from tests import rewording
from tests.helpers import ROOT
from tests.nets import Basic

# Rules, search, surgery and a command: a part of the suite that runs in seconds. The whole: make test-wording.
PART = (
    "tests/rules/test_decide.py", "tests/rules/test_rules.py", "tests/search/test_dense.py",
    "tests/surgery/test_containers.py", "tests/commands/test_sweep.py", "tests/test_reasons.py",
)  # fmt: skip


def literals() -> Iterator[str]:
    """Every string literal in the package but for the table itself."""
    for path in (ROOT / "se_inject").rglob("*.py"):
        if path.name != "reasons.py":
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value


def codes() -> Iterator[str]:
    """What stands where a code does: the first argument of ``Reason``, the fourth of ``Check``."""
    for path in (ROOT / "se_inject").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                place = {"Reason": 0, "Check": 3}.get(node.func.id)
                if place is not None and len(node.args) > place and isinstance(node.args[place], ast.Constant):
                    yield node.args[place].value  # type: ignore[attr-defined]


def refusals(cls: type[errors.SEInjectError] = errors.SEInjectError) -> Iterator[str]:
    yield cls.code
    for child in cls.__subclasses__():
        yield from refusals(child)


def test_every_code_is_in_the_table_and_every_line_of_it_is_used() -> None:
    used = {*codes(), *refusals()}
    assert {"gated", "differs", "load"} <= used <= REASONS.keys()
    assert REASONS.keys() <= set(literals())
    assert len(set(REASONS.values())) == len(REASONS)


def test_the_table_is_listed() -> None:
    rows = json.loads(CliRunner().invoke(main, ["list", "reasons", "--json"]).stdout)
    assert rows == [{"code": code, "meaning": meaning} for code, meaning in REASONS.items()]
    assert REASONS["gated"] in CliRunner(env={"COLUMNS": "200"}).invoke(main, ["list", "reasons", "gat*"]).stdout


def test_a_reason_prints_as_its_text() -> None:
    (decision,) = se_inject.plan(Basic(), (8, 8, 8), "standard").insertions
    assert decision.reason == Reason("placement", "placement standard")
    assert f"{decision.reason}" == str(decision.reason) == decision.reason.text


def test_rewording() -> None:
    """That the run with other words is one."""
    assert Reason("gated", "already gated").text.startswith(rewording.SIGN) is rewording.REWORDED


@pytest.mark.wording
def test_no_behaviour_hangs_on_a_text() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "-m", "not slow", *PART]
    ran = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "SE_INJECT_TEST_REASONS": "1"}, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stdout[-3000:]
    assert "deselected" in ran.stdout and " failed" not in ran.stdout
