"""``se-inject report``: no model is needed, and torch is not imported."""

from __future__ import annotations

from pathlib import Path

from se_inject.commands.files import check_file, write_file
from se_inject.errors import LoadError
from se_inject.hashing import sha256
from se_inject.output.names import HTML, MARKDOWN, REPORT
from se_inject.report import formats
from se_inject.report.html.page import to_html
from se_inject.types import Check, Report

RENDERERS = {"md": formats.to_markdown, "json": formats.to_json, "html": to_html}


def read_report(folder: Path) -> Report:
    """The report in an output folder. Raises ``LoadError``, and ``VerifyError`` when it disagrees with itself."""
    path = folder / REPORT
    if not path.is_file():
        raise LoadError(f"{folder} is not a folder written by se_inject: it has no {REPORT}.")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise LoadError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or 'it is no UTF-8'}).") from error
    return formats.from_json(text)


def files_check(folder: Path, report: Report) -> Check:
    """Whether the files of an output are those that its report lists."""
    for artifact in report.artifacts:
        path = folder / artifact.path
        if not path.is_file():
            return Check("files", False, f"{artifact.path} is missing", "missing")
        if sha256(path) != artifact.sha256:
            return Check("files", False, f"{artifact.path} is not the file that was written", "differs")
    return Check("files", True, f"{len(report.artifacts)} files have the hashes of the report")


def write_report(folder: Path, kind: str, output: Path, *, force: bool) -> None:
    """The rendered report as a file of its own."""
    found = read_report(folder)
    check_file(output, force, [path for path in folder.iterdir() if path.name not in (MARKDOWN, HTML)])
    write_file(output, RENDERERS[kind](found))
