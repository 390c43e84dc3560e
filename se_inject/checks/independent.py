"""The result holds nothing of the original."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from se_inject.checks.reference import run_forward
from se_inject.checks.spliced import Spliced
from se_inject.inputs import Inputs, tensor_leaves
from se_inject.object_graph import held
from se_inject.types import Check


def check(spliced: Spliced) -> tuple[Check, ...]:
    if spliced.original is None:
        return ()
    probe = spliced.reference.probe if spliced.reference is not None else None
    return (independent(spliced.original, spliced.model, probe, spliced.plan.seed),)


class Reads(TorchFunctionMode):
    """Which of some tensors a forward takes."""

    def __init__(self, watched: Collection[int]) -> None:
        super().__init__()
        self.watched, self.found = watched, list[torch.Tensor]()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.found += (t for t in tensor_leaves((args, kwargs or {})) if id(t) in self.watched)
        return func(*args, **(kwargs or {}))


def independent(original: nn.Module, model: nn.Module, inputs: Inputs | None, seed: int) -> Check:
    """The result holds no module and no tensor of the original, not in a closure either, and runs without them."""
    before, after = held(original), held(model)
    memory = {_storage(t): t for t in before.tensors.values()}
    shared: list[Any] = [value for key, value in after.modules.items() if key in before.modules]
    shared += [memory[place] for t in after.tensors.values() if (place := _storage(t)) in memory and place is not None]
    if not shared and inputs is not None:
        with Reads(before.tensors.keys()) as reads:
            run_forward(model, inputs, False, seed)
        shared = reads.found
    if shared:
        detail = (
            f"the result goes on with {len(shared)} parts of the original, the first is {_path(original, shared[0])}"
        )
        return Check("independent", False, detail)
    count = len(after.modules)
    return Check("independent", True, f"{count} modules and {len(after.tensors)} tensors, none of them the original's")


def _storage(tensor: torch.Tensor) -> int | None:
    plain = tensor.layout is torch.strided and not tensor.is_meta and tensor.numel()
    return tensor.untyped_storage().data_ptr() if plain else None


def _path(model: nn.Module, part: Any) -> str:
    named = (*model.named_modules(), *model.named_parameters(), *model.named_buffers())
    return next((path for path, value in named if value is part), f"a {type(part).__name__}")
