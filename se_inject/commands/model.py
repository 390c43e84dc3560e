"""The model of a request, with its inputs and its rules; the model of an output folder; and who is told meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import nn

from se_inject.checkpoints.checkpoint import blocked_globals, require_sha256
from se_inject.commands.request import ModelRequest, RulesRequest
from se_inject.errors import LoadError, PlanMismatchError, RulesError, SEInjectError, TraceError, one_line
from se_inject.inputs import Inputs, dtype_of, from_shape
from se_inject.models.loading import Loaded, load_model
from se_inject.models.request import WeightsRequest
from se_inject.output import folder
from se_inject.output.names import PLAN
from se_inject.rules.schema import Rules, read
from se_inject.types import Plan

T = TypeVar("T")


class Screen(Protocol):
    """Where progress and warnings go."""

    def step(self, name: str) -> None: ...

    def advance(self, done: int, total: int, unit: str) -> None: ...

    def warn(self, text: str) -> None: ...


@dataclass
class Listener:
    """The screen of a process that nobody watches: it keeps the warnings."""

    warnings: list[str] = field(default_factory=list)

    def step(self, name: str) -> None: ...

    def advance(self, done: int, total: int, unit: str) -> None: ...

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def load(request: ModelRequest, screen: Screen, *, weights_needed: bool) -> Loaded:
    screen.step("load")
    weights = request.weights
    if weights.checkpoint is not None and weights.sha256:
        require_sha256(weights.checkpoint, weights.sha256)
    if weights.allow_pickle and weights.checkpoint is not None and (names := blocked_globals(weights.checkpoint)):
        screen.warn(f"--allow-pickle: {weights.checkpoint.name} runs {', '.join(names)}")
    torch.manual_seed(request.seed)  # random weights come from the global generator
    return load_model(weights, allow_factory=True, weights_needed=weights_needed)


def without_weights(request: ModelRequest, screen: Screen, look: Callable[[Loaded], T]) -> T:
    """What ``look`` finds in a model that holds no data; where its forward needs numbers (NMS, data-dependent shapes),
    in one with random weights."""
    loaded = load(request, screen, weights_needed=False)
    try:
        return look(loaded)
    except TraceError:
        if loaded.source["weights"] != "none":
            raise
        request = replace(request, weights=replace(request.weights, random_init=True))
        return look(load(request, screen, weights_needed=False))


def example_inputs(request: ModelRequest, loaded: Loaded) -> Inputs | tuple[int, ...] | None:
    """The inputs of the size and the kind that were asked for, or that are the model's own."""
    kind = request.inputs.input_kind or loaded.input_kind
    size = request.inputs.input_size or loaded.input_size
    if size is None:
        if kind != "batch":
            raise RulesError(f"--input-kind {kind} needs the size of one image: give --input-size, such as 3,224,224.")
        return None  # the model's own configuration may tell
    return size if kind == "batch" else from_shape(size, dtype_of(loaded.model), request.seed, kind)


def read_rules(request: RulesRequest) -> Rules:
    """The rules that are named, with what else was asked for over them."""
    rules = read(request.rules)
    block = {"name": request.block} if request.block else dict(rules.block)
    block = {**block, **request.block_args}
    changes: dict[str, Any] = {"block": block} if block else {}
    for name in ("placement", "ratio", "init", "include", "exclude", "min_channels", "stages", "budget", "again"):
        if value := getattr(request, name):
            changes[name] = value
    checked = read(dict(changes))  # the same checks as for a file
    return replace(rules, **{name: getattr(checked, name) for name in changes})


def open_folder(out: Path, base: str | None, model_args: Mapping[str, Any]) -> tuple[nn.Module, Plan]:
    """The model of an output folder on a new ``base``, which is built by its plan where none is named."""
    made = folder.read_plan(out / PLAN) if out.is_dir() else None
    if made is None:
        raise LoadError(f"{out} is not a folder written by se_inject.")
    if base is None:
        return folder.load(out), made
    request = WeightsRequest(base, {**made.model_args, **model_args}, random_init=True)
    return folder.load(out, load_model(request, allow_factory=True).model), made


@contextmanager
def trusting(path: Path | None) -> Iterator[None]:
    """What is read from ``path`` has the right types, but an edited file may hold any value in them."""
    try:
        yield
    except SEInjectError:
        raise
    except Exception as error:
        if path is None:
            raise
        raise PlanMismatchError(
            f"{path} was edited, or is not for this model: {one_line(error)}. Make the plan again."
        ) from error
