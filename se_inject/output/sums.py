"""``SHA256SUMS``: the hashes of what we wrote into a folder, as ``sha256sum -c`` reads them.

A file that it lists with the hash that it has is ours. A file that was changed since, and any file or folder beside
those listed, is the work of the user.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from se_inject.errors import LoadError
from se_inject.hashing import sha256
from se_inject.json_strict import read_bounded, read_json
from se_inject.output.names import REPORT
from se_inject.types import Check

SUMS, SIGNATURE = "SHA256SUMS", "SHA256SUMS.sig"
# A comment to sha256sum. Data sets come with sums of their own, and what those list is not ours.
HEADER = "# se_inject wrote the files with these hashes; compare them with: sha256sum -c SHA256SUMS"
LINE = re.compile(r"([0-9a-f]{64})  (\S.*)")
LARGEST = 16 << 20  # bytes: of 100,000 shards
CACHE = re.compile(r"__pycache__(/modeling\.[\w.-]+\.pyc)?")  # Python's, of modeling.py


@dataclass(frozen=True)
class Compared:
    """A folder beside the sums; paths in it, sorted."""

    right: tuple[str, ...]
    changed: tuple[str, ...]
    missing: tuple[str, ...]
    unlisted: tuple[str, ...]  # a folder in which nothing is listed stands for all that it holds

    @property
    def users(self) -> tuple[str, ...]:
        """What is not ours."""
        return tuple(sorted((*self.changed, *self.unlisted)))


def sums_text(sums: Mapping[str, str]) -> bytes:
    return "\n".join([HEADER, *(f"{digest}  {name}" for name, digest in sorted(sums.items())), ""]).encode()


def read_sums(folder: Path) -> dict[str, str] | None:
    """Path -> hash of the files that we wrote, None where nothing says so. Raises ``LoadError`` for sums of others."""
    path = folder / SUMS
    if not path.is_file():
        return None
    try:
        head, *lines = read_bounded(path, LARGEST, LoadError).decode().split("\n")
    except UnicodeDecodeError as error:
        raise LoadError(f"{path}: not the sums of an output folder (it is no UTF-8).") from error
    found = [LINE.fullmatch(line) for line in lines if line]
    sums = {match[2]: match[1] for match in found if match}
    if head != HEADER or len(sums) < len(found) or not all(map(_inside, sums)):
        raise LoadError(f"{path}: not the sums of an output folder: se_inject did not write it, or it was edited.")
    return sums


def _inside(name: str) -> bool:
    return not PurePosixPath(name).is_absolute() and ".." not in PurePosixPath(name).parts


def compare(folder: Path, sums: Mapping[str, str]) -> Compared:
    """What is in the folder, against ``sums``. Links are followed: what counts is what is read through them."""
    parents = {str(parent) for name in sums for parent in PurePosixPath(name).parents}
    found: dict[bool, list[str]] = {True: [], False: []}
    unlisted: list[str] = []

    def look(within: str) -> None:
        for entry in sorted(os.listdir(folder / within)):
            name = f"{within}/{entry}" if within else entry
            path = folder / name
            if name in sums:
                found[path.is_file() and sha256(path) == sums[name]].append(name)
            elif path.is_dir() and (name in parents or CACHE.fullmatch(name)):
                look(name)
            elif name != SUMS and not CACHE.fullmatch(name):
                unlisted.append(name)

    look("")
    missing = sorted(set(sums) - {*found[True], *found[False]})
    return Compared(tuple(found[True]), tuple(found[False]), tuple(missing), tuple(unlisted))


def users_work(folder: Path) -> tuple[str, ...]:
    """What a folder holds that is not ours; sums of others prove nothing, and are the user's too."""
    try:
        sums = read_sums(folder)
        return compare(folder, recorded(folder) if sums is None else sums).users
    except LoadError:
        return (SUMS,)


def files_check(folder: Path) -> tuple[Check, Compared]:
    """Whether the files of an output are those that were written; those that are are all that may be opened."""
    nothing = Compared((), (), (), ())
    try:
        sums = read_sums(folder)
    except LoadError as error:
        return Check("files", False, str(error), "foreign"), nothing
    by = SUMS
    if sums is None:
        by, sums = f"{REPORT}, which has none of the reports (version 0.1 wrote no {SUMS})", recorded(folder)
        if not sums:
            detail = f"there is no {SUMS}, and nothing else says what was written"
            return Check("files", False, detail, "missing"), nothing
    found = compare(folder, sums)
    if by != SUMS:  # nothing is known of the reports
        found = replace(found, right=(*found.right, *found.unlisted), unlisted=())
    if found.missing:
        return Check("files", False, f"{found.missing[0]} is missing", "missing"), found
    if found.changed:
        return Check("files", False, f"{found.changed[0]} is not the file that was written", "differs"), found
    others = [name for name in found.unlisted if name != SIGNATURE]
    more = f"; {len(others)} more are not listed, the first is {others[0]!a}" if others else ""
    signed = f"; {SIGNATURE} is left to ssh-keygen -Y verify" if SIGNATURE in found.unlisted else ""
    return Check("files", True, f"{len(sums)} files have the hashes of {by}{more}{signed}"), found


def proven(folder: Path) -> dict[str, str]:
    """The sums in a folder; none where they are missing, or those of others."""
    try:
        return read_sums(folder) or {}
    except LoadError:
        return {}


def is_ours(path: Path) -> bool:
    """Whether the sums beside a file list it with the hash that it has."""
    wanted = proven(path.parent).get(path.name)
    return wanted is not None and path.is_file() and sha256(path) == wanted


def recorded(folder: Path) -> dict[str, str]:
    """The hashes in ``report.json`` of version 0.1, which wrote no sums; those of the reports themselves it has not."""
    try:
        data = read_json(folder / REPORT)
        listed: Iterable[Mapping[str, str]] = data["artifacts"]
        return {a["path"]: a["sha256"] for a in listed if a.get("sha256") and _inside(a["path"])}
    except (LoadError, TypeError, KeyError, AttributeError):
        return {}
