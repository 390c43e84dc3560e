"""Single files that are written, all or nothing, and never over an input."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from se_inject.errors import WriteError
from se_inject.output.names import PLAN


def read_by(given: Mapping[str, Any], *names: str) -> list[Path]:
    """The files among these options; rules may also be the name of a preset, or read already."""
    paths = [Path(value) for name in names if isinstance(value := given[name], str | Path)]
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
        new.write_bytes(content.encode() if isinstance(content, str) else content)  # the same bytes under every locale
        new.replace(output)
    except OSError as error:
        raise WriteError(f"cannot write {output}: {error.strerror}.") from error
    finally:
        new.unlink(missing_ok=True)
