"""Weights files to state dicts: what is in the file, taken out of its wrapper, without running foreign code.

A table of readers, one for each kind that ``filekind`` can tell: ``torchfile``, ``safefile``, ``indexfile``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from se_inject.checkpoints.kind import FileKind, locate, readable
from se_inject.checkpoints.safetensors_file import read_safetensors
from se_inject.checkpoints.shards import read_shards
from se_inject.checkpoints.torch_file import SCANNERS, read_torch
from se_inject.checkpoints.wrappers import unwrap
from se_inject.errors import LoadError
from se_inject.hashing import sha256


@dataclass(frozen=True)
class StateDictFile:
    """The weights of one file, as they are named in it."""

    tensors: dict[str, Any]  # values are tensors, but for ``_extra_state`` entries
    kind: str  # "torch-zip", "torch-legacy", "safetensors" or "shards"
    file: Path  # what was read: in a folder, its weights file
    shards: tuple[Path, ...]  # the files that an index names
    versions: dict[str, Any]  # state dict metadata: path of a module -> {"version": n}
    unwrapped: tuple[str, ...] = ()  # wrapper keys, outermost first
    ignored: tuple[str, ...] = ()  # keys beside the tensors that hold something else
    ema: bool = False  # whether these are the averaged weights
    globals: tuple[str, ...] = ()  # what unsafe loading was allowed to call


@dataclass(frozen=True)
class Content:
    """What a reader found."""

    value: Any  # the state dict, or what is wrapped around it
    globals: tuple[str, ...] = ()
    shards: tuple[Path, ...] = ()


def _torch(path: Path, kind: FileKind, allow_pickle: bool) -> Content:
    return Content(*read_torch(path, kind, allow_pickle))


def _safetensors(path: Path, kind: FileKind, allow_pickle: bool) -> Content:
    return Content(read_safetensors(path))


def _shards(path: Path, kind: FileKind, allow_pickle: bool) -> Content:
    tensors, shards = read_shards(path)
    return Content(tensors, shards=shards)


READERS: dict[str, Callable[[Path, FileKind, bool], Content]] = {
    "torch-zip": _torch,
    "torch-legacy": _torch,
    "safetensors": _safetensors,
    "shards": _shards,
}


def read_state_dict(
    path: str | os.PathLike[str], *, allow_pickle: bool = False, ema: bool | None = None
) -> StateDictFile:
    """The state dict in a torch.save or safetensors file, in shards with their index, or in a Hugging Face folder.

    ``allow_pickle`` (default False) runs whatever the pickle names, when it names more than a weights file needs; it
    is for an explicit flag on the command line, after ``blocked_globals`` was shown. ``ema`` chooses the averaged or
    the raw weights of a file that has both. Raises ``LoadError`` for any other kind of file, a damaged file, a pickle
    that names foreign code, and a file without weights.

    >>> read_state_dict("resnet18.pth").tensors["conv1.weight"].shape
    torch.Size([64, 3, 7, 7])
    """
    file = locate(path)
    kind = readable(file)
    content = READERS[kind.name](file, kind, allow_pickle)
    mapping, unwrapped, averaged = unwrap(file, content.value, ema)
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
        file=file,
        shards=content.shards,
        versions=dict(versions) if isinstance(versions, Mapping) else {},
        unwrapped=unwrapped,
        ignored=tuple(ignored),
        ema=averaged,
        globals=content.globals,
    )


def require_sha256(path: str | os.PathLike[str], wanted: str) -> None:
    """Raise ``LoadError`` unless the weights file at ``path`` has this hash; nothing in it is parsed before."""
    file = locate(path)
    if file.is_file() and (found := sha256(file)) != wanted:
        raise LoadError(f"{file}: its SHA-256 is {found}, and --sha256 wants {wanted}: it is another file.")
    if readable(file).name == "shards":
        raise LoadError(f"{file}: --sha256 is of one file, and this index names others; give a file with all weights.")


def blocked_globals(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """What the file at ``path`` would call beyond what a weights file needs; empty for a plain weights file."""
    file = locate(path)
    kind = readable(file)
    return SCANNERS[kind.name](file).blocked if kind.name in SCANNERS else ()
