"""Weights files to state dicts: what is in the file, taken out of its wrapper, without running foreign code.

A torch.save file is a pickle. It is scanned first (``picklescan``), then read with ``weights_only=True``; there is no
second attempt. Tensors are mapped from the file and not copied, except from the old format.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from se_inject.errors import LoadError
from se_inject.files.filekind import FileKind, readable
from se_inject.files.picklescan import Scan, scan
from se_inject.files.wrappers import unwrap
from se_inject.files.zipcheck import check_zip

HEADER_LIMIT = 100 << 20  # bytes of a safetensors header, as in the format's own library


@dataclass(frozen=True)
class StateDictFile:
    """The weights of one file, as they are named in it."""

    tensors: dict[str, Any]  # values are tensors, but for ``_extra_state`` entries
    kind: str  # "torch-zip", "torch-legacy" or "safetensors"
    versions: dict[str, Any]  # state dict metadata: path of a module -> {"version": n}
    unwrapped: tuple[str, ...] = ()  # wrapper keys, outermost first
    ignored: tuple[str, ...] = ()  # keys beside the tensors that hold something else
    ema: bool = False  # whether these are the averaged weights
    globals: tuple[str, ...] = ()  # what unsafe loading was allowed to call


def read_state_dict(
    path: str | os.PathLike[str], *, allow_pickle: bool = False, ema: bool | None = None
) -> StateDictFile:
    """The state dict in a torch.save or safetensors file.

    ``allow_pickle`` (default False) runs whatever the pickle names, when it names more than a weights file needs; it
    is for an explicit flag on the command line, after ``blocked_globals`` was shown. ``ema`` chooses the averaged or
    the raw weights of a file that has both. Raises ``LoadError`` for any other kind of file, a damaged file, a pickle
    that names foreign code, and a file without weights.

    >>> read_state_dict("resnet18.pth").tensors["conv1.weight"].shape
    torch.Size([64, 3, 7, 7])
    """
    kind = readable(path)
    content, unsafe = READERS[kind.name](path, kind, allow_pickle)
    mapping, unwrapped, averaged = unwrap(path, content, ema)
    tensors, ignored = {}, []
    for key, value in mapping.items():
        if isinstance(key, str) and (isinstance(value, torch.Tensor) or key.endswith("_extra_state")):
            tensors[key] = value
        else:
            ignored.append(str(key))
    versions = getattr(mapping, "_metadata", None)
    return StateDictFile(
        tensors=tensors,
        kind=kind.name,
        versions=dict(versions) if isinstance(versions, Mapping) else {},
        unwrapped=unwrapped,
        ignored=tuple(ignored),
        ema=averaged,
        globals=unsafe,
    )


def blocked_globals(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """What the file at ``path`` would call beyond what a weights file needs; empty for a plain weights file."""
    kind = readable(path)
    return () if kind.name == "safetensors" else SCANNERS[kind.name](path).blocked


def _scan_zip(path: str | os.PathLike[str]) -> Scan:
    archive = check_zip(path)
    found = _scan(path, io.BytesIO(archive.pickle))
    for key, (_, size) in found.records.items():
        if key not in archive.records:
            raise LoadError(f"{path}: the storage {key!r} is missing; download the file again.")
        if archive.records[key] != size:
            raise LoadError(f"{path}: the storage {key!r} declares {size} bytes and holds {archive.records[key]}.")
    return found


def _scan_legacy(path: str | os.PathLike[str]) -> Scan:
    """Five pickles (magic number, protocol, system, object, storage keys), then each storage: its length, its bytes."""
    with open(path, "rb") as file:
        parts = [_scan(path, file) for _ in range(5)]
        rest = os.fstat(file.fileno()).st_size - file.tell()
    declared = sum(8 + size for _, size in parts[3].records.values())
    if declared != rest:
        raise LoadError(f"{path}: its storages declare {declared:,} bytes and {rest:,} follow; download it again.")
    for part in parts:
        parts[3].globals |= part.globals
        parts[3].problems += [problem for problem in part.problems if problem not in parts[3].problems]
    return parts[3]


def _scan(path: str | os.PathLike[str], file: Any) -> Scan:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # pickletools, of odd escapes in names
            return scan(file)
    except (ValueError, RecursionError, MemoryError) as error:
        text = ascii(str(error))[1:-1][:120]
        raise LoadError(f"{path}: its pickle is cut short or damaged ({text}); download it again.") from error


SCANNERS: dict[str, Callable[[str | os.PathLike[str]], Scan]] = {"torch-zip": _scan_zip, "torch-legacy": _scan_legacy}


def _read_torch(path: str | os.PathLike[str], kind: FileKind, allow_pickle: bool) -> tuple[Any, tuple[str, ...]]:
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


def _read_safetensors(path: str | os.PathLike[str], kind: FileKind, allow_pickle: bool) -> tuple[Any, tuple[str, ...]]:
    from safetensors import SafetensorError, safe_open

    _check_header(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, ()  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError, RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise LoadError(f"{path}: a safetensors file that is cut short or damaged: {ascii(text)[1:-1]}.") from error


def _check_header(path: str | os.PathLike[str]) -> None:
    """The format's library takes the last of two equal keys; everything else it checks itself."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            raise ValueError("a key stands twice in the header")
        return dict(pairs)

    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(HEADER_LIMIT, os.fstat(file.fileno()).st_size - 8):
            raise LoadError(f"{path}: a safetensors file that is cut short or damaged: its header is {length:,} bytes.")
        try:
            json.loads(file.read(length).decode(), object_pairs_hook=unique)
        except (ValueError, RecursionError) as error:
            raise LoadError(f"{path}: a safetensors file that is cut short or damaged: {error}.") from error


READERS: dict[str, Callable[[str | os.PathLike[str], FileKind, bool], tuple[Any, tuple[str, ...]]]] = {
    "torch-zip": _read_torch,
    "torch-legacy": _read_torch,
    "safetensors": _read_safetensors,
}
