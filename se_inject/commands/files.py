"""Single files that are written, all or nothing, and never over an input; rows as CSV that a spreadsheet shows and does
not calculate."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from se_inject.errors import WriteError
from se_inject.output.disk import writing
from se_inject.output.names import PLAN
from se_inject.types import Reason

FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "|")  # with which a text begins that a spreadsheet would calculate


def existing(*sources: Any) -> list[Path]:
    """The files among these; rules may also be the name of a preset, or read already."""
    paths = [Path(source) for source in sources if isinstance(source, str | Path)]
    return [path for path in paths if path.exists()]


def check_file(output: Path, force: bool, inputs: Iterable[Path]) -> None:
    if output.is_dir():
        raise WriteError(f"{output} is a folder; give a file in it, such as {output / PLAN}.")
    if not output.parent.is_dir():
        raise WriteError(f"cannot write {output}: there is no folder {output.parent}.")
    if any(output.exists() and path.samefile(output) for path in inputs):
        raise WriteError(f"output {output} is an input of this run; choose another file.")
    if output.exists() and not force:
        raise WriteError(f"{output} exists; choose another file, or replace it with --force.")


def write_file(output: Path, content: str | bytes) -> None:
    """All or nothing, as a folder is written."""
    new = output.with_name(f".{output.name}.{os.getpid()}.new")
    try:
        with writing(output):
            new.write_bytes(content.encode() if isinstance(content, str) else content)  # the same under every locale
            new.replace(output)
    finally:
        new.unlink(missing_ok=True)


def to_csv(columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """A head and a line for each row; None is an empty cell, and before a text like a formula stands an apostrophe.

    >>> to_csv(("model", "blocks"), [("=1+1", 8), ("net", None)])
    "model,blocks\\n'=1+1,8\\nnet,\\n"
    """
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULA) else cell for cell in row])
    return out.getvalue()


def flat(reason: Reason | None) -> dict[str, str]:
    """A reason as two cells."""
    return {"reason": reason.text, "code": reason.code} if reason else {"reason": "", "code": ""}
