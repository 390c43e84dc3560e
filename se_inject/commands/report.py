"""``se-inject report``: no model is needed, and torch is not imported."""

from __future__ import annotations

from pathlib import Path

from se_inject.commands.files import check_file, write_file
from se_inject.errors import LoadError
from se_inject.output.adding import add_files
from se_inject.output.names import HTML, MARKDOWN, REPORT
from se_inject.report import formats
from se_inject.report.html.page import to_html
from se_inject.types import Report

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


def write_report(
    folder: Path, kind: str, output: Path, *, force: bool, discard_changes: bool = False
) -> tuple[str, ...]:
    """The rendered report as a file of its own; what there is to say about it.

    In the folder itself it is one more file of the output, listed in its sums.
    """
    text = RENDERERS[kind](read_report(folder))
    inputs = [path for path in folder.iterdir() if path.name not in (MARKDOWN, HTML)]
    check_file(output, True, inputs)
    if output.parent.samefile(folder):
        return add_files(folder, {output.name: text.encode()}, force=force, discard_changes=discard_changes)
    check_file(output, force or discard_changes, inputs)
    write_file(output, text)
    return ()
