"""The checks after a splice: one line and one file for each, whose ``check`` takes what was spliced.

They leave modes, buffers and the random state as they were.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module

from se_inject.checks.spliced import Spliced
from se_inject.errors import VerifyError
from se_inject.types import Check

CHECKS = (  # files of this folder, in the order of the report
    "structure",
    "outputs",
    "reached",
    "keys",
    "overhead",
    "independent",
)


def run_checks(spliced: Spliced) -> tuple[Check, ...]:
    """What each check finds."""
    return tuple(found for name in CHECKS for found in import_module(f"se_inject.checks.{name}").check(spliced))


def require(checks: Iterable[Check]) -> None:
    """Raise ``VerifyError`` with every check that failed."""
    failed = [f"{check.name}: {check.detail}" for check in checks if check.passed is False]
    if failed:
        raise VerifyError("the rewritten model is not what was planned. " + "; ".join(failed))
