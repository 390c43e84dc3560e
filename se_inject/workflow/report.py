"""``se-inject report``."""

from __future__ import annotations

from pathlib import Path

from se_inject.files import store
from se_inject.report import formats
from se_inject.report.html.page import to_html
from se_inject.workflow.folder import read_report
from se_inject.workflow.outputs import check_file, write_file


def render(folder: Path, kind: str) -> str:
    found = read_report(folder)
    if kind == "html":
        return to_html(found)
    return {"md": formats.to_markdown, "json": formats.to_json}[kind](found)


def write_report(folder: Path, kind: str, output: Path, *, force: bool) -> None:
    """The rendered report as a file of its own."""
    check_file(output, force, [folder / name for name in (store.REPORT, store.PLAN, store.TENSORS)])
    write_file(output, render(folder, kind))
