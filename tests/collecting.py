"""A test file, or a class of tests, without a test fails the run: nothing in it would ever fail."""

from __future__ import annotations

from collections.abc import Generator

import pytest


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Each file is seen whole, before ``-m`` and ``-k`` choose from it; one that is skipped has said so."""
    report = yield
    if isinstance(collector, pytest.Module | pytest.Class) and report.passed and not report.result:
        report.outcome = "failed"
        report.longrepr = f"{collector.nodeid}: no test in it. Write one, or remove it."
    return report
