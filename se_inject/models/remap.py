"""Weights files in the layout of another library, under the names of the zoo's model: the zoo's own remapping.

timm's architectures come with a ``checkpoint_filter_fn(state_dict, model)`` for the files of the papers' authors: it
renames keys, reshapes kernels and resizes position embeddings. torchvision's DenseNets rename the keys of their files,
which are older than the class. Both are used as they are, and only where they make a file fit better.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from se_inject.checkpoints.wrappers import Keys
from se_inject.importing import import_or_refuse
from se_inject.models.zoos import split_spec

Filter = Callable[[dict[str, Any], nn.Module], dict[str, Any]]
# What timm's modules call it, in the module of the architecture's entry point.
FILTERS = ("checkpoint_filter_fn", "_filter_fn", "_filter_torchvision_pretrained")
DENSE = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\.(?:weight|bias|running_mean|running_var))$")


def remap(spec: str, model: nn.Module, keys: Keys) -> tuple[Keys, str]:
    """``keys`` as the zoo would load them, and the name of what remapped them; unchanged, with ``""``, where that
    brings them no nearer to ``model``, which may be without data."""
    own = model.state_dict()
    wrong = _misfits(keys.tensors, own)
    zoo, name = split_spec(spec)
    found = ZOOS[zoo](name) if wrong and zoo in ZOOS else None
    if found is None:
        return keys, ""
    remapped, what = found
    try:
        tensors = remapped(dict(keys.tensors), model)
    except Exception:  # a filter expects the layouts that it knows, and this is another one
        return keys, ""
    if not isinstance(tensors, dict) or _misfits(tensors, own) >= wrong:
        return keys, ""
    return replace(keys, tensors=tensors), what


def _misfits(tensors: dict[str, Any], own: dict[str, Any]) -> int:
    """How many keys are missing, unexpected, or of another shape."""
    shapes = {name: getattr(tensor, "shape", None) for name, tensor in tensors.items()}
    return sum(shapes.get(name) != getattr(tensor, "shape", None) for name, tensor in own.items()) + len(
        shapes.keys() - own.keys()
    )


def _timm(name: str) -> tuple[Filter, str] | None:
    entry = import_or_refuse("timm").models.model_entrypoint(name.partition(".")[0])
    module = sys.modules[entry.__module__]
    known = (getattr(module, attribute, None) for attribute in FILTERS)
    found = next((function for function in known if inspect.isfunction(function)), None)
    if found is None:
        return None
    takes_model = len(inspect.signature(found).parameters) > 1

    def remapped(tensors: dict[str, Any], model: nn.Module) -> dict[str, Any]:
        with torch.no_grad():
            return dict(found(tensors, model) if takes_model else found(tensors))

    return remapped, f"{found.__module__}.{found.__name__}"


def _torchvision(name: str) -> tuple[Filter, str] | None:
    """``norm.1`` in a file is the module ``norm1``, as in ``torchvision.models.densenet._load_state_dict``."""

    def remapped(tensors: dict[str, Any], model: nn.Module) -> dict[str, Any]:
        return {DENSE.sub(r"\1\2", key): tensor for key, tensor in tensors.items()}

    return (remapped, "torchvision.models.densenet") if name.startswith("densenet") else None


ZOOS: dict[str, Callable[[str], tuple[Filter, str] | None]] = {"timm": _timm, "torchvision": _torchvision}
