"""What writers of files share: a lock on a folder, flushing, and what they say when the disk refuses."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from se_inject.errors import WriteError


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """An error of the system becomes a ``WriteError`` that names ``path``."""
    try:
        yield
    except OSError as error:
        raise WriteError(f"cannot write {path}: {error.strerror or error}.") from error


@contextlib.contextmanager
def opened(path: Path) -> Iterator[int]:
    """The handle of a file or folder, for what is not reading."""
    handle = os.open(path, os.O_RDONLY)
    try:
        yield handle
    finally:
        os.close(handle)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One run at a time looks at leftovers or renames; short, so others wait. Without locks (NFS) it goes on."""
    with opened(folder) as handle:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def sync(path: Path) -> None:
    with opened(path) as handle:
        os.fsync(handle)
