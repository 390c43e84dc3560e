"""Every architecture of timm and torchvision: its name, its family, how it is built, and what it runs on."""

from __future__ import annotations

from fnmatch import fnmatch
from typing import Any

import timm
import torchvision

from se_inject.inputs import Inputs, dtype_of, from_shape
from se_inject.models.loading import Loaded, load_model
from se_inject.models.request import WeightsRequest

# Detectors scale their images up to 800 pixels; a small one shows the same.
SMALL = {"min_size": 96, "max_size": 128}
ARGS = dict.fromkeys(("faster_rcnn", "mask_rcnn", "keypoint_rcnn", "retinanet", "fcos"), SMALL)


def names(*patterns: str) -> list[str]:
    """Those of both libraries that match a glob, with or without the library's name."""
    known = [f"timm:{name}" for name in timm.list_models()]
    known += [f"torchvision:{name}" for name in torchvision.models.list_models()]
    return [n for n in known if any(fnmatch(n, p) or fnmatch(n.partition(":")[2], p) for p in patterns)]


def family(name: str) -> str:
    """The module that defines it: ``resnet``, ``torchvision detection.fcos``."""
    library, _, model = name.partition(":")
    if library == "timm":
        return timm.models.model_entrypoint(model).__module__.rpartition(".")[2]
    module = torchvision.models.get_model_builder(model).__module__
    return f"torchvision {module.removeprefix('torchvision.models.')}"


def load(name: str, *, weights: bool) -> tuple[Loaded, Inputs]:
    """The model, with random weights or without any where that works, and an example input of its kind."""
    args: dict[str, Any] = ARGS.get(family(name).rpartition(".")[2], {})
    loaded = load_model(WeightsRequest(name, args, random_init=weights), weights_needed=False)
    assert loaded.input_size is not None, f"no input size is known for {name}"
    return loaded, from_shape(loaded.input_size, dtype_of(loaded.model), 0, loaded.input_kind)
