"""The public names of the package: code written for an earlier version finds them all."""

from __future__ import annotations

import ast
import inspect
import re

import pytest

import se_inject
from tests.helpers import ROOT

# A name is added here when it becomes public, and never taken away.
PROMISED = [
    "BlockSpec", "Cost", "GateStats", "Gates", "Injection", "LoadError", "Plan", "PlanMismatchError", "Pruning",
    "Report", "RulesError", "SEInjectError", "SpliceError", "TraceError", "VerifyError", "WriteError",
    "__version__", "apply", "cost", "freeze_base", "gates", "inject", "load", "load_adapter", "param_groups",
    "plan", "prune", "read_plan", "register_block", "remove", "save", "save_adapter", "to_graph",
    "trainable_summary", "unfreeze",
]  # fmt: skip


def test_the_index_holds_what_was_promised() -> None:
    assert sorted(se_inject.__all__) == sorted(PROMISED)
    assert dir(se_inject) == sorted(PROMISED)


@pytest.mark.parametrize("name", PROMISED)
def test_every_public_name_is_there(name: str) -> None:
    item = getattr(se_inject, name)
    assert name == "__version__" or (item.__name__ == name and inspect.getdoc(item))


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = se_inject.no_such_name


def test_checkers_see_the_same_names() -> None:
    """mypy reads the imports under TYPE_CHECKING, a program the index: they must agree."""
    tree = ast.parse((ROOT / "se_inject" / "__init__.py").read_text())
    guarded = {
        alias.name: f"{node.module}"
        for block in tree.body
        if isinstance(block, ast.If)
        for node in ast.walk(block)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert guarded == {name: f"se_inject.{module}" for name, module in se_inject._INDEX.items()}


def test_one_version() -> None:
    """It stands in ``_version.py`` alone, and CHANGES begins with it."""
    assert re.fullmatch(r"\d+\.\d+\.\d+", se_inject.__version__)
    found = [p for p in (ROOT / "se_inject").rglob("*.py") if f'"{se_inject.__version__}"' in p.read_text()]
    assert [path.name for path in found] == ["_version.py"]
    assert "version = attr: se_inject._version.__version__" in (ROOT / "setup.cfg").read_text()
    assert re.search(r"^## (\S+)", (ROOT / "CHANGES.md").read_text(), re.M)[1] == se_inject.__version__  # type: ignore[index]
