"""Weights in several safetensors files, with an index that says which file holds which tensor.

The index is JSON, ``{"metadata": {...}, "weight_map": {"conv1.weight": "model-00001-of-00002.safetensors", ...}}``. The
shards lie beside it. That is decided by their names alone, not by where links lead: in a Hugging Face cache every shard
is a link to ``../../blobs``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from se_inject.checkpoints.kind import readable
from se_inject.checkpoints.safetensors_file import read_safetensors
from se_inject.errors import LoadError
from se_inject.json_strict import unique

SHARD = re.compile(r"\w[\w. -]*\.safetensors", re.ASCII)  # a file beside the index: no folder, no drive, no ".."


def read_shards(
    path: Path, read: Callable[[Path], dict[str, torch.Tensor]] = read_safetensors, *, aliases: bool = False
) -> tuple[dict[str, torch.Tensor], tuple[Path, ...]]:
    """The tensors of all shards, mapped from their files, and the shards in the index's order.

    Every tensor lies in the one shard that the index names, and no shard holds another; with ``aliases``, ``read`` may
    find names in a shard that no index places. Raises ``LoadError``.
    """
    placed = read_index(path)
    tensors: dict[str, torch.Tensor] = {}
    shards = {name: path.parent / name for name in dict.fromkeys(placed.values())}
    for name, shard in shards.items():
        readable(shard)
        held = read(shard)
        for key in held:
            if key in tensors or placed.get(key, name if aliases else "") != name:
                where = f"in {placed[key]!a}" if key in placed else "in none"
                raise LoadError(f"{path}: the shard {name} holds {key!a}, which its index places {where}.")
        tensors |= held
    if lost := [key for key in placed if key not in tensors]:
        raise LoadError(f"{path}: the index places {lost[0]!a} in {placed[lost[0]]}, which does not hold it.")
    return tensors, tuple(shards.values())


def read_index(path: Path) -> dict[str, str]:
    """Name of a tensor -> name of the shard, every shard's name checked."""
    try:
        data: Any = json.loads(path.read_bytes().decode("utf-8-sig"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise LoadError(f"{path}: an index of shards that is damaged: {error}.") from error
    placed = data.get("weight_map") if isinstance(data, dict) else None
    if not isinstance(placed, dict) or not placed:
        raise LoadError(f"{path}: an index of shards whose weight_map is no mapping, or empty.")
    for name in dict.fromkeys(map(str, placed.values())):
        if name.endswith(".bin"):
            raise LoadError(f"{path}: its shards are pickles ({name!a}); save the model again as safetensors.")
        if not SHARD.fullmatch(name):
            raise LoadError(f"{path}: {name!a} is not the name of a .safetensors file beside the index.")
    return {key: str(name) for key, name in placed.items()}
