"""Writes an output folder all at once: it is complete, or it is not there (POSIX).

The files are made in a fresh folder beside the target, on the same file system, flushed to the disk, and renamed into
place. A run that is killed leaves at most folders named ``.se-inject-<hash of the target's name>-<token>.new`` or
``.old``; the next run for the same target removes the first and, if the target is missing, puts the second back.

The last file is ``SHA256SUMS`` of all others. An earlier output is replaced when by its sums nothing in it is the
user's work.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from se_inject.errors import WriteError
from se_inject.hashing import sha256
from se_inject.output.adding import NOT_OURS, complete
from se_inject.output.disk import locked, opened, sync, writing
from se_inject.output.sums import SIGNATURE, SUMS, sums_text, users_work
from se_inject.output.tensors import read_tensors, tensors_writer

__all__ = ["check_output", "read_tensors", "recover", "tensors_writer", "write"]

Content = bytes | Callable[[Path], None]


def write(
    out: Path,
    files: Mapping[str, Content],
    *,
    force: bool = False,
    discard_changes: bool = False,
    inputs: Sequence[Path] = (),
) -> dict[str, str]:
    """Make the folder ``out`` with ``files`` and their ``SHA256SUMS`` in it, or change nothing at all.

    ``files``: path inside the folder -> its bytes, or a function that writes the file at the path it is given; made in
    this order, so a later one may read an earlier.
    ``force``: an earlier output at ``out`` that is wholly ours is replaced; a link at ``out`` is replaced itself, what
    it points to stays. ``discard_changes``: any folder is replaced, with the user's work in it.
    ``inputs``: files and folders that this run reads, which the output must not touch. Missing parents are made.
    Modes follow the umask. Returns the hashes of the files, by path. Raises ``WriteError``.

    >>> write(Path("out"), {"plan.json": b"{}", "model.safetensors": tensors_writer(model.state_dict())})
    """
    for name in files:
        check_name(name)
    out = _absolute(out)
    check_output(out, force=force, discard_changes=discard_changes, inputs=inputs)
    made: list[Path] = []
    done = False
    try:
        with writing(out):
            for folder in _missing(out.parent):
                made.append(folder)
                folder.mkdir(exist_ok=True)
            with _workspace(out) as (new, old):
                sums = _build(new, files)
                with locked(out.parent):
                    _refuse(out, force, discard_changes, inputs)  # again: it may have appeared meanwhile
                    if os.path.lexists(out):
                        os.rename(out, old)
                    os.rename(new, out)
                    done = True
                    _delete(old)
                sync(out.parent)
            return sums
    finally:
        if not done:
            for folder in reversed(made):
                with contextlib.suppress(OSError):
                    folder.rmdir()


def check_output(out: Path, *, force: bool = False, discard_changes: bool = False, inputs: Sequence[Path] = ()) -> None:
    """Refuse, before any work is done, an ``out`` that ``write`` would refuse; put right what killed runs left there.

    Raises ``WriteError``.
    """
    out = _absolute(out)
    with writing(out):
        if out.parent.is_dir():
            with locked(out.parent):
                _recover(out.parent, [out.name])
        if out.is_dir():
            with locked(out):
                complete(out)
        _refuse(out, force, discard_changes, inputs)
        folder = next(parent for parent in out.parents if os.path.lexists(parent))
        if folder.is_dir() and not os.access(folder, os.W_OK | os.X_OK):
            raise WriteError(f"cannot write {out}: {folder} is not writable.")


def _refuse(out: Path, force: bool, discard_changes: bool, inputs: Sequence[Path]) -> None:
    for path in map(_absolute, inputs):
        if touching := _touches(out, path):
            raise WriteError(f"output {out} {touching} the input {path}; choose another output folder.")
    if not os.path.lexists(out):
        return
    kind = "link" if out.is_symlink() else "folder" if out.is_dir() else "file"
    if kind == "file":
        raise WriteError(f"output {out} is a file; the output is a folder, choose another path.")
    if discard_changes:
        return
    if not force:
        raise WriteError(f"output {out} exists ({kind}); choose another path, or replace it with --force (force=True).")
    if kind == "folder" and (found := users_work(out)):
        raise WriteError(f"output {out} holds {found[0]!a}, {NOT_OURS}")


def _absolute(path: Path) -> Path:
    path = Path(path).absolute()
    return path if path.name not in ("", "..") else _real(path)


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))


def check_name(name: str) -> None:
    parts = PurePosixPath(name).parts
    odd = "\\" in name or not name.isprintable() or name != name.strip() or name in (SUMS, SIGNATURE)
    if odd or not parts or name.startswith("/") or ".." in parts or "/".join(parts) != name:
        raise WriteError(f"{name!r} is no path of a file inside the output folder.")


def _touches(out: Path, path: Path) -> str:
    """How an output and an input meet, by name or through links; ``""`` when they do not."""
    if _same(out, path):
        return "is, or links to,"
    if any(_same(parent, path) for parent in (*out.parents, *_real(out).parents)):
        return "is inside"
    if any(_same(out, parent) for parent in (*path.parents, *_real(path).parents)):
        return "contains"
    return ""


def _same(a: Path, b: Path) -> bool:
    try:
        return os.path.samefile(a, b)
    except OSError:  # one of them does not exist
        return a == b


def _missing(folder: Path) -> list[Path]:
    """The folders that must be made so that ``folder`` is there, outermost first."""
    missing: list[Path] = []
    while not os.path.lexists(folder):
        missing.insert(0, folder)
        folder = folder.parent
    return missing


def _prefix(out: Path) -> str:
    return f".se-inject-{hashlib.sha256(os.fsencode(out.name)).hexdigest()[:12]}-"


PREFIX = len(_prefix(Path("any")))


@contextlib.contextmanager
def _workspace(out: Path) -> Iterator[tuple[Path, Path]]:
    """A fresh folder beside ``out``, locked while we live, and a name to move an earlier output to; both go."""
    stem = out.parent / f"{_prefix(out)}{secrets.token_hex(4)}"
    new, old = stem.with_name(stem.name + ".new"), stem.with_name(stem.name + ".old")
    handle = -1
    try:
        with locked(out.parent):
            new.mkdir()
            handle = os.open(new, os.O_RDONLY)
            with contextlib.suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_EX)
        yield new, old
    finally:
        _restore(old, out)
        _delete(new)
        if handle >= 0:
            os.close(handle)


def recover(folder: Path, names: Iterable[str]) -> None:
    """Put right what killed runs left in ``folder``, for the targets of these names, and for files that were added.

    Raises ``WriteError``.
    """
    folder = _real(folder)
    with writing(folder), locked(folder):
        _recover(folder, names)
        complete(folder)


def _recover(folder: Path, names: Iterable[str]) -> None:
    """Under the lock of ``folder``, an ``.old`` in it has no living owner."""
    targets = {_prefix(folder / name): folder / name for name in names}
    for name in sorted(os.listdir(folder)):
        path, out = folder / name, targets.get(name[:PREFIX])
        if out is not None and name.endswith(".old"):
            _restore(path, out)
        elif out is not None and name.endswith(".new") and _abandoned(path):
            _delete(path)


def _restore(old: Path, out: Path) -> None:
    """An earlier output goes back when nothing has taken its place, else it goes."""
    if os.path.lexists(old):
        if os.path.lexists(out):
            _delete(old)
        else:
            os.rename(old, out)


def _abandoned(folder: Path) -> bool:
    """Whether the run that made it is gone: its lock went with it."""
    try:
        with opened(folder) as handle:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError:
        return False


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _build(folder: Path, files: Mapping[str, Content]) -> dict[str, str]:
    mode = stat.S_IMODE(folder.stat().st_mode) & 0o666  # mkdir applied the umask; safetensors writes 0600
    sums: dict[str, str] = {}
    seal: Callable[[Path], object] = lambda path: path.write_bytes(sums_text(sums))  # noqa: E731
    for name, content in [*files.items(), (SUMS, seal)]:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            content(path)
        if path.is_symlink() or not path.is_file():
            raise WriteError(f"the writer of {name!r} made no file.")
        path.chmod(mode)
        sync(path)
        if name != SUMS:
            sums[name] = sha256(path)
    found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_symlink() or not p.is_dir()}
    if extra := sorted(found - {*files, SUMS}):
        raise WriteError(f"a writer made a file that was not asked for: {extra[0]!r}.")
    for path in (folder, *(p for p in folder.rglob("*") if p.is_dir())):
        sync(path)
    return dict(sorted(sums.items()))
