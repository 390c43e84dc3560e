"""A safetensors file: a length, a header in JSON, and the data, which is mapped and not copied."""

from __future__ import annotations

import json
import os
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from se_inject.errors import LoadError

HEADER_LIMIT = 10 << 20  # bytes, of 100,000 tensors; the format allows 100 MB, which cost a reader several times that


def read_safetensors(path: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file. Raises ``LoadError`` when it is cut short or damaged in any way."""
    _check_header(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError, RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise _damaged(path, ascii(text)[1:-1]) from error


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For ``json``: an object in which every key stands once."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found


def _check_header(path: str | os.PathLike[str]) -> None:
    """The format's library takes the last of two equal keys; everything else it checks itself."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(HEADER_LIMIT, os.fstat(file.fileno()).st_size - 8):
            raise _damaged(path, f"its header is {length:,} bytes")
        try:
            json.loads(file.read(length).decode(), object_pairs_hook=unique)
        except (ValueError, RecursionError) as error:
            raise _damaged(path, str(error)) from error


def _damaged(path: str | os.PathLike[str], why: str) -> LoadError:
    return LoadError(f"{path}: a safetensors file that is cut short or damaged: {why}.")
