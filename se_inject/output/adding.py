"""Files that come into a folder after it was written: all of them or none, and its ``SHA256SUMS`` anew.

The new files first lie beside their names, as ``.se-inject-add-<name>``. They count from the moment at which the new
sums take the place of the old ones; a run that is killed later is completed by the next, one that is killed earlier
leaves files that the next removes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from se_inject.errors import LoadError, WriteError
from se_inject.hashing import sha256
from se_inject.output.disk import locked, sync, writing
from se_inject.output.sums import SIGNATURE, SUMS, is_ours, proven, read_sums, recorded, sums_text

WAITING = ".se-inject-add-"
UNSIGNED = f"{SIGNATURE} was of the sums before, and is gone: sign the new {SUMS}"


def add_files(
    folder: Path, files: Mapping[str, bytes], *, force: bool = False, discard_changes: bool = False
) -> tuple[str, ...]:
    """Write ``files`` (name -> content) into ``folder``, and seal it anew; what else is in it stays as it is.

    ``force``: files of these names that are ours are replaced; ``discard_changes``: any are. Returns what there is to
    say: that a signature of the sums is gone. Raises ``WriteError``.

    >>> add_files(Path("out"), {"bench.json": b"{}"})
    ()
    """
    with writing(folder), locked(folder):
        complete(folder)
        check_files(folder, files, force=force, discard_changes=discard_changes)
        try:
            return _add(folder, files)
        finally:
            complete(folder)


def check_files(
    folder: Path, names: Mapping[str, object], *, force: bool = False, discard_changes: bool = False
) -> None:
    """Refuse names that ``add_files`` would refuse. Raises ``WriteError``."""
    try:
        if read_sums(folder) is None and recorded(folder):
            raise WriteError(f"{folder} has no {SUMS} that could be sealed anew: an output of 0.1. Convert again.")
    except LoadError as error:
        if not discard_changes:
            raise WriteError(f"{error} {MOVE}") from error
    for name in names:
        if "/" in name or name in (SUMS, SIGNATURE) or name.startswith(".") or not name.isprintable():
            raise WriteError(f"{name!a} is no name of a file that can be added to an output folder.")
        path = folder / name
        if path.is_dir():
            raise WriteError(f"{path} is a folder; give a file in it.")
        if discard_changes or not os.path.lexists(path):
            continue
        if not is_ours(path):
            raise WriteError(f"{folder} holds {name!a}, {NOT_OURS}")
        if not force:
            raise WriteError(f"{path} exists; choose another file, or replace it with --force.")


MOVE = "Move it, or discard it with --discard-changes (discard_changes=True)."
NOT_OURS = f"which is not ours: {SUMS} does not list it with the hash that it has. {MOVE}"


def _add(folder: Path, files: Mapping[str, bytes]) -> tuple[str, ...]:
    before = proven(folder)  # those of others are to be discarded
    sums = before | {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    if sums == before and all(is_ours(folder / name) for name in files):
        return ()
    for name, data in {**files, SUMS: sums_text(sums)}.items():
        waiting = folder / f"{WAITING}{name}"
        waiting.write_bytes(data)
        sync(waiting)
    signed = os.path.lexists(folder / SIGNATURE)
    if signed:
        (folder / SIGNATURE).unlink()
    os.replace(folder / f"{WAITING}{SUMS}", folder / SUMS)
    return (UNSIGNED,) if signed else ()


def complete(folder: Path) -> None:
    """Put the files that wait in ``folder`` into their places, if its sums list them; else they go."""
    waiting = [name for name in sorted(os.listdir(folder)) if name.startswith(WAITING)]
    if not waiting:
        return
    sums = proven(folder)
    for path in (folder / name for name in waiting):
        name = path.name.removeprefix(WAITING)
        if name in sums and sha256(path) == sums[name]:
            os.replace(path, folder / name)
        else:
            path.unlink()
    sync(folder)
