"""A model with its weights: from the zoo, from a checkpoint, or random when asked.

A checkpoint costs no second copy in memory: the model is built on the meta device, which holds no data, and takes the
tensors that are mapped from the file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from se_inject.checkpoints.checkpoint import blocked_globals, read_state_dict
from se_inject.checkpoints.wrappers import match_keys
from se_inject.errors import LoadError
from se_inject.hashing import sha256
from se_inject.models.assign import assign, build_empty, lacks_values
from se_inject.models.remap import remap
from se_inject.models.zoos import build_model, input_kind, input_size, parse_model_args, weights_name
from se_inject.types import InputKind

__all__ = ["Loaded", "blocked_globals", "build_model", "load_model", "parse_model_args", "read_state_dict"]


@dataclass(frozen=True)
class Loaded:
    """A model as it was asked for, with what the report says about its weights."""

    model: nn.Module  # in eval mode
    spec: str
    model_args: dict[str, Any]
    input_size: tuple[int, ...] | None  # channels and sides, from the model's own configuration
    source: dict[str, Any]
    input_kind: InputKind = "batch"  # one of inputs.KINDS


def load_model(
    spec: str,
    *,
    model_args: dict[str, Any] | None = None,
    pretrained: bool = False,
    checkpoint: str | os.PathLike[str] | None = None,
    random_init: bool = False,
    allow_missing: Sequence[str] = (),
    allow_factory: bool = False,
    allow_pickle: bool = False,
    ema: bool | None = None,
    weights_needed: bool = True,
) -> Loaded:
    """The model that ``spec`` names, with the weights that were asked for, in eval mode.

    Exactly one of ``pretrained``, ``checkpoint`` and ``random_init``; with ``weights_needed=False`` none is fine, and
    the model then holds no data where it can be built so.

    Args:
        spec: ``timm:NAME``, ``torchvision:NAME`` or, with ``allow_factory``, ``pkg.module:factory``.
        model_args: constructor arguments, such as ``{"num_classes": 10}``.
        checkpoint: a torch.save or safetensors file, an index of shards, or a folder with one of these.
        allow_missing: globs of keys that the checkpoint may lack; the constructor's values stay there.
        allow_factory: permit ``pkg.module:factory``, which imports and runs code.
        allow_pickle: run what the checkpoint names beyond weights; show ``blocked_globals(checkpoint)`` before.
        ema: averaged (True) or raw (False) weights of a checkpoint that has both.

    Random weights come from torch's global generator: seed it before. Raises ``LoadError``.

    >>> load_model("timm:resnet18", random_init=True).input_size
    (3, 224, 224)
    """
    args = dict(model_args or {})
    asked = {"--pretrained": pretrained, "--checkpoint": checkpoint is not None, "--random-init": random_init}
    _one_of([name for name, given in asked.items() if given], list(asked), weights_needed)
    if checkpoint is None and (allow_missing or ema is not None):
        raise LoadError("--allow-missing, --ema and --no-ema are about a --checkpoint, and none is given.")

    def build() -> nn.Module:
        return build_model(spec, args, pretrained=pretrained, allow_factory=allow_factory)

    source: dict[str, Any]
    if checkpoint is not None:
        model, source = _with_checkpoint(spec, build, checkpoint, allow_missing, allow_pickle, ema)
    elif pretrained:
        model = build()
        source = {"weights": "pretrained", "name": weights_name(spec, model) or "as the factory returned them"}
    elif random_init:
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
    spec: str,
    build: Callable[[], nn.Module],
    path: str | os.PathLike[str],
    allow_missing: Sequence[str],
    allow_pickle: bool,
    ema: bool | None,
) -> tuple[nn.Module, dict[str, Any]]:
    content = read_state_dict(path, allow_pickle=allow_pickle, ema=ema)
    model = build_empty(build)
    keys = match_keys(content.tensors, content.versions, model.state_dict().keys(), what=str(path))
    keys, remapped = remap(spec, model, keys)
    if lacks_values(model, keys.tensors):
        model = build()
    fit = assign(model, keys, allow_missing, what=str(path))
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
