"""A model with its weights: from the zoo, from a checkpoint, or random when asked.

A checkpoint costs no second copy in memory: the model is built on the meta device, which holds no data, and takes the
tensors that are mapped from the file.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from se_inject.checkpoints.checkpoint import read_state_dict
from se_inject.checkpoints.wrappers import match_keys
from se_inject.errors import LoadError
from se_inject.hashing import sha256
from se_inject.models.assign import assign, build_empty, lacks_values
from se_inject.models.remap import remap
from se_inject.models.request import WeightsRequest
from se_inject.models.zoos import build_model, input_kind, input_size, weights_name
from se_inject.types import InputKind


@dataclass(frozen=True)
class Loaded:
    """A model as it was asked for, with what the report says about its weights."""

    model: nn.Module  # in eval mode
    spec: str
    model_args: dict[str, Any]
    input_size: tuple[int, ...] | None  # channels and sides, from the model's own configuration
    source: dict[str, Any]
    input_kind: InputKind = "batch"  # one of inputs.KINDS


def load_model(request: WeightsRequest, *, allow_factory: bool = False, weights_needed: bool = True) -> Loaded:
    """The model that is asked for, with its weights, in eval mode.

    ``allow_factory`` permits ``pkg.module:factory``, which imports and runs code. With ``weights_needed=False`` no
    source of weights need be named, and the model then holds no data where it can be built so. Random weights come from
    torch's global generator: seed it before. Before ``allow_pickle``, show ``blocked_globals(checkpoint)``. Raises
    ``LoadError``.

    >>> load_model(WeightsRequest("timm:resnet18", random_init=True)).input_size
    (3, 224, 224)
    """
    spec, args = request.model, dict(request.model_args)
    asked = {
        "--pretrained": request.pretrained,
        "--checkpoint": request.checkpoint is not None,
        "--random-init": request.random_init,
    }
    _one_of([name for name, given in asked.items() if given], list(asked), weights_needed)
    if request.checkpoint is None and (request.allow_missing or request.sha256 or request.ema is not None):
        raise LoadError("--allow-missing, --sha256, --ema and --no-ema are about a --checkpoint, and none is given.")

    def build() -> nn.Module:
        return build_model(spec, args, pretrained=request.pretrained, allow_factory=allow_factory)

    source: dict[str, Any]
    if request.checkpoint is not None:
        model, source = _with_checkpoint(request, build, request.checkpoint)
    elif request.pretrained:
        model = build()
        source = {"weights": "pretrained", "name": weights_name(spec, model) or "as the factory returned them"}
    elif request.random_init:
        model, source = build(), {"weights": "random-init"}
    else:
        model, source = build_empty(build), {"weights": "none"}
    return Loaded(model, spec, args, input_size(spec, model, args), source, input_kind(spec))


def _one_of(given: list[str], options: list[str], needed: bool) -> None:
    if len(given) > 1:
        raise LoadError(f"{' and '.join(given)} are given; the weights come from one of them.")
    if needed and not given:
        raise LoadError(f"no weights: give one of {', '.join(options)}.")


def _with_checkpoint(
    request: WeightsRequest, build: Callable[[], nn.Module], path: Path
) -> tuple[nn.Module, dict[str, Any]]:
    content = read_state_dict(path, allow_pickle=request.allow_pickle, ema=request.ema)
    model = build_empty(build)
    keys = match_keys(content.tensors, content.versions, model.state_dict().keys(), what=str(path))
    keys, remapped = remap(request.model, model, keys)
    if lacks_values(model, keys.tensors):
        model = build()
    fit = assign(model, keys, request.allow_missing, what=str(path))
    relaid = _contiguous(model)
    return model, {
        "weights": "checkpoint",
        "file": content.file.name,
        "sha256": sha256(content.file),
        "shards": {shard.name: sha256(shard) for shard in content.shards},
        "bytes": sum(map(os.path.getsize, content.shards or [content.file])),
        "kind": content.kind,
        "unwrapped": list(content.unwrapped),
        "ema": content.ema,
        "stripped": keys.stripped,
        "remapped": remapped,
        "ignored": [*content.ignored, *keys.dropped],
        "missing": list(fit.missing),
        "dtypes": fit.dtypes,
        "relaid": relaid,
        "unsafe_globals": list(content.globals),
    }


def _contiguous(model: nn.Module) -> int:
    """Give tensors that the file holds in another order of memory (converted from TensorFlow, channels last) the usual
    one, and say how many: a layout chooses the kernel that rounds, and what is written holds values alone."""
    strided = [t for t in (*model.parameters(), *model.buffers()) if not t.is_contiguous()]
    for tensor in strided:
        tensor.data = tensor.data.contiguous()
    return len(strided)
