"""A safetensors file: a length, a header in JSON, and the data, which is mapped and not copied."""

from __future__ import annotations

import json
import os

import torch
from safetensors import SafetensorError, safe_open

from se_inject.errors import LoadError, first_line
from se_inject.json_strict import unique

HEADER_LIMIT = 8 << 20  # bytes, of 80,000 tensors; the format allows 100 MB, which cost a reader several times that


def read_safetensors(path: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file. Raises ``LoadError`` when it is cut short or damaged in any way."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(HEADER_LIMIT, os.fstat(file.fileno()).st_size - 8):
            raise _damaged(path, f"its header is {length:,} bytes")
        header = file.read(length)
    try:
        with safe_open(path, framework="pt", device="cpu") as opened:
            # The format's library checks all but this: it takes the last of two equal keys.
            json.loads(header.decode(), object_pairs_hook=lambda pairs: bool(unique(pairs)))
            return {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError, RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise _damaged(path, ascii(first_line(error))[1:-1]) from error


def _damaged(path: str | os.PathLike[str], why: str) -> LoadError:
    return LoadError(f"{path}: a safetensors file that is cut short or damaged: {why}.")
