"""A torch.save file, zip or legacy: a pickle, which is scanned first and then read with ``weights_only=True``.

There is no second attempt. Tensors are mapped from the file and not copied, except from the old format.
"""

from __future__ import annotations

import argparse
import io
import os
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import IO, Any

import torch

from se_inject.checkpoints.kind import FileKind
from se_inject.checkpoints.pickle_scan import Scan, scan
from se_inject.checkpoints.zip_check import PICKLE_LIMIT, check_zip
from se_inject.errors import LoadError


def read_torch(path: str | os.PathLike[str], kind: FileKind, allow_pickle: bool) -> tuple[Any, tuple[str, ...]]:
    """The content of the file, and the globals that ``allow_pickle`` let run. Raises ``LoadError``."""
    found = SCANNERS[kind.name](path)
    plain = not found.blocked and not found.problems
    if not plain and not allow_pickle:
        _refuse(path, found)
    known = argparse.Namespace in torch.serialization.get_safe_globals()  # leaving the context would remove it
    allowed = nullcontext() if known else torch.serialization.safe_globals([argparse.Namespace])
    try:
        with allowed, warnings.catch_warnings():
            if plain:
                warnings.simplefilter("ignore")  # notes on sparse and typed storages, none of them the user's to act on
            content = torch.load(path, map_location="cpu", weights_only=plain, mmap=kind.name == "torch-zip")
    except Exception as error:  # torch's own text advises to turn weights_only off: it is not passed on
        raise LoadError(f"{path}: {kind.title} that torch could not read ({type(error).__name__}).") from error
    return content, found.blocked


def _refuse(path: str | os.PathLike[str], found: Scan) -> None:
    if found.blocked:
        names = ", ".join(found.blocked[:10])
        more = f" and {len(found.blocked) - 10} more" if len(found.blocked) > 10 else ""
        raise LoadError(
            f"{path}: it is more than weights: loading it would run {names}{more}. "
            "Save the weights alone, with torch.save(model.state_dict(), FILE); "
            "--allow-pickle runs that code, and only a file you made yourself deserves it."
        )
    raise LoadError(
        f"{path}: not a plain weights file: {'; '.join(found.problems[:3])}. "
        "Save it again with torch.save(model.state_dict(), FILE)."
    )


def _scan_zip(path: str | os.PathLike[str]) -> Scan:
    archive = check_zip(path)
    found = _scan(path, io.BytesIO(archive.pickle))
    for key, (_, size) in found.records.items():
        if key not in archive.records:
            raise LoadError(f"{path}: the storage {key!r} is missing; download the file again.")
        if archive.records[key] != size:
            raise LoadError(f"{path}: the storage {key!r} declares {size} bytes and holds {archive.records[key]}.")
    return found


LEGACY_PARTS = (100, 100, 100, None, 100_000)  # operations of each pickle at most; None: as many as any may have


def _scan_legacy(path: str | os.PathLike[str]) -> Scan:
    """Five pickles (magic number, protocol, system, object, storage keys), then each storage: its length, its bytes."""
    with open(path, "rb") as file:
        pickles = io.BytesIO(file.read(PICKLE_LIMIT))
        parts = [_scan(path, pickles, operations) for operations in LEGACY_PARTS]
        rest = os.fstat(file.fileno()).st_size - pickles.tell()
    declared = sum(8 + size for _, size in parts[3].records.values())
    if declared != rest:
        raise LoadError(f"{path}: its storages declare {declared:,} bytes and {rest:,} follow; download it again.")
    for part in parts:
        parts[3].globals |= part.globals
        for problem in part.problems:
            parts[3].refuse(problem)
    return parts[3]


def _scan(path: str | os.PathLike[str], file: IO[bytes], operations: int | None = None) -> Scan:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # pickletools, of odd escapes in names
            return scan(file, operations)
    except (ValueError, RecursionError, MemoryError) as error:
        text = ascii(str(error))[1:-1][:120]
        raise LoadError(f"{path}: its pickle is cut short or damaged ({text}); download it again.") from error


SCANNERS: dict[str, Callable[[str | os.PathLike[str]], Scan]] = {"torch-zip": _scan_zip, "torch-legacy": _scan_legacy}
