"""Example inputs: a tensor, tuple, dict, or a shape; and the size that a model's own configuration names."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from se_inject.errors import TraceError
from se_inject.types import Argument, InputKind, InputSpec

BATCH = 2  # at least 2: batch norm in train mode refuses one value per channel
KINDS: dict[InputKind, Callable[[list[torch.Tensor]], tuple[Any, ...]]] = {
    "batch": lambda noise: (noise[0],),
    "list": lambda noise: (list(noise[0].unbind()),),  # images of their own, as detectors take them
    "pair": lambda noise: (noise[0], noise[1]),  # two batches, as optical flow takes them
}


@dataclass(frozen=True)
class Inputs:
    """The arguments of one call of the model."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    shape: tuple[int, ...] | None = None  # without the batch, when the input was made from a shape alone
    kind: InputKind = "batch"  # how it was made from the shape, one of KINDS

    def map(self, fn: Any) -> Inputs:
        """The same arguments with ``fn`` applied to every tensor."""
        args, kwargs = pytree.tree_map_only(torch.Tensor, fn, (self.args, self.kwargs))
        return Inputs(args, kwargs, self.shape, self.kind)

    def __str__(self) -> str:
        return str(self.describe())

    def describe(self) -> InputSpec:
        """Shapes and dtypes as data, for the plan."""
        arguments = tuple(leaf for part in (self.args, self.kwargs) for leaf in _arguments("", part))
        return InputSpec(None, (), arguments) if self.shape is None else InputSpec(self.kind, self.shape, arguments)


def _arguments(path: str, value: Any) -> Iterator[Argument]:
    if isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from _arguments(f"{path}.{key}" if path else str(key), item)
    elif isinstance(value, torch.Tensor):
        yield Argument(path, str(value.dtype).removeprefix("torch."), tuple(value.shape))
    else:
        plain = isinstance(value, str | int | float | bool | None)
        yield Argument(path, value=value if plain else repr(type(value)))


def default_size(model: nn.Module) -> tuple[int, ...] | None:
    """The input size in the model's own configuration (timm's ``default_cfg``), without the batch."""
    config = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    size = config.get("input_size") if isinstance(config, dict) else getattr(config, "input_size", None)
    return tuple(size) if size else None


def resolve(model: nn.Module, example: Any = None, *, seed: int = 0) -> Inputs:
    """``Inputs`` from what the user gave.

    ``example``: a tensor (one argument), a tuple or list of arguments, a dict of keyword arguments, or a shape such
    as ``(3, 224, 224)``, to which a batch of 2 is added; ``None`` takes the size in the model's configuration.
    Shapes become seeded normal noise in the model's dtype. Raises ``TraceError`` when there is no size to take.
    """
    if isinstance(example, Inputs):
        return example
    if example is None:
        size = default_size(model)
        if size is None:
            raise TraceError(
                f"no input size given, and {type(model).__name__} does not name one. "
                "Give it: example_inputs=(3, 224, 224), or --input-size 3,224,224."
            )
        example = size
    if isinstance(example, torch.Tensor):
        return Inputs((example,), {})
    if isinstance(example, dict):
        if odd := [key for key in example if not isinstance(key, str)]:
            raise TraceError(f"example_inputs: the keys of a dict are the names of arguments, found {odd[0]!r}.")
        return Inputs((), dict(example))
    if isinstance(example, list | tuple):
        if example and all(isinstance(n, int) and not isinstance(n, bool) for n in example):
            if min(example) < 1:
                raise TraceError(f"input size {tuple(example)}: every side must be at least 1.")
            return from_shape(tuple(example), dtype_of(model), seed)
        return Inputs(tuple(example), {})
    raise TraceError(
        f"example_inputs is a {type(example).__name__}; expected a tensor, a tuple of arguments, "
        "a dict of keyword arguments, or a shape such as (3, 224, 224)."
    )


def from_shape(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0, kind: InputKind = "batch") -> Inputs:
    """A batch of 2 of seeded normal noise: as the one argument, or in another of ``KINDS``.

    >>> str(from_shape((3, 64, 64), torch.float32, kind="list"))
    '0.0=float32[3, 64, 64], 0.1=float32[3, 64, 64]'
    """
    drawn = [noise((BATCH, *shape), dtype, seed + i) for i in range(1 + (kind == "pair"))]
    return Inputs(KINDS[kind](drawn), {}, shape, kind)


def dtype_of(model: nn.Module) -> torch.dtype:
    """The dtype of the first floating-point parameter, ``float32`` when there is none."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def noise(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Normal noise from its own generator: the global one stays as it was."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def tensors_in(output: Any) -> list[torch.Tensor]:
    """All tensors of an output, result objects of unknown classes included."""
    found = tensor_leaves(output)
    for leaf in pytree.tree_leaves(output):
        if hasattr(leaf, "__dict__") and not isinstance(leaf, torch.Tensor | nn.Module):
            found += tensor_leaves(vars(leaf))
    return found


def tensor_leaves(value: Any) -> list[torch.Tensor]:
    """The tensors in containers that torch knows, in the order in which an export takes them."""
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]
