"""A state dict in one safetensors file, or in several with an index, named as Hugging Face names them.

``model.safetensors``, or ``model-00001-of-00004.safetensors`` and so on beside ``model.safetensors.index.json``, which
says in which shard each tensor lies. Tied tensors are stored once, and named again in the metadata of their shard.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from se_inject.checkpoints.shards import read_index, read_shards
from se_inject.errors import WriteError
from se_inject.output.names import TENSORS
from se_inject.output.tensors import distinct, read_tensors, tensors_writer

WHOLE, INDEX = TENSORS, f"{TENSORS}.index.json"
SHARD = re.compile(r"model-(\d{5})-of-(\d{5})\.safetensors")  # as they are written here
UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def parse_size(text: str | int | None, what: str = "shard size") -> int | None:
    """Bytes of ``5GB``, ``500MiB`` or a number; None is no limit. Raises ``WriteError`` that says ``what`` is wrong."""
    if text is None:
        return None
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(text))
    size = int(float(match[1]) * UNITS.get(match[2].upper(), 0)) if match else 0
    if size < 1:
        raise WriteError(f"{what} {str(text)!r}: expected a size above 0 such as 5GB, 500MB or 2GiB.")
    return size


def weights_files(
    state_dict: Mapping[str, torch.Tensor],
    limit: int | None = None,
    advance: Callable[[int, int, str], None] = lambda done, total, unit: None,
) -> dict[str, bytes | Callable[[Path], None]]:
    """The files of a state dict, name -> what writes it: one file, or shards of at most ``limit`` bytes and an index.

    A tensor that is larger than ``limit`` has a shard to itself. ``advance``: progress callback, bytes written and
    their total. Raises ``WriteError`` as ``tensors_writer`` does.
    """
    stored, aliases = distinct(state_dict)
    total = sum(tensor.numel() * tensor.element_size() for tensor in stored.values())
    done = 0

    def written(size: int) -> None:
        nonlocal done
        done += size
        advance(done, total, "B")

    groups: list[list[str]] = [[]]
    room = limit
    for name, tensor in stored.items():
        size = tensor.numel() * tensor.element_size()
        if room is not None and limit is not None:
            if size > room and groups[-1]:
                groups.append([])
                room = limit
            room -= size
        groups[-1].append(name)
    if len(groups) == 1:
        return {WHOLE: tensors_writer(state_dict, written=written)}
    again: dict[str, list[str]] = {}
    for name, kept in aliases.items():
        again.setdefault(kept, []).append(name)
    files: dict[str, bytes | Callable[[Path], None]] = {}
    weight_map: dict[str, str] = {}
    for number, names in enumerate(groups, 1):
        shard = f"model-{number:05}-of-{len(groups):05}.safetensors"
        part = {n: state_dict[n] for name in names for n in (name, *again.get(name, ()))}
        files[shard] = tensors_writer(part, written=written)
        weight_map |= dict.fromkeys(names, shard)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    files[INDEX] = (json.dumps(index, indent=2, sort_keys=True) + "\n").encode()
    return files


def shard_names(folder: Path) -> list[str]:
    """The files in ``folder`` that hold the weights, the index included; empty when there are none.

    Raises ``LoadError`` for an index that names anything but shards beside it.
    """
    if (folder / WHOLE).is_file():
        return [WHOLE]
    if not (folder / INDEX).is_file():
        return []
    return [*sorted(set(read_index(folder / INDEX).values())), INDEX]


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The state dict that the files of ``weights_files`` hold, mapped from them. Raises ``LoadError``."""
    if (folder / WHOLE).is_file() or not (folder / INDEX).is_file():
        return read_tensors(folder / WHOLE)
    return dict(sorted(read_shards(folder / INDEX, read_tensors, aliases=True)[0].items()))
