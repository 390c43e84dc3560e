"""What a weights file may call, and with which arguments. ``picklescan`` holds a pickle against this table."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

DIMENSIONS = 64  # of a tensor, as in NumPy
HASHES = 2**61 - 1  # Python's hash of an integer is its remainder by this: larger ones can share a hash
Symbol = Any  # a plain value, a tuple or list of symbols, or one of the three classes below


@dataclass(frozen=True, eq=False)
class Name:
    """A global, as Python 3 spells it: ``torch._utils._rebuild_tensor_v2``."""

    path: str


@dataclass(frozen=True, eq=False)
class Storage:
    """A declared storage: so many elements of so many bytes."""

    elements: int
    itemsize: int


class Made:
    """The result of a call, or a container whose content does not matter."""


def _any(args: tuple[Symbol, ...]) -> str:
    return ""


def _view(args: tuple[Symbol, ...], itemsize: int | None = None) -> str:
    """``_rebuild_tensor(storage, offset, size, stride, ...)``: a view past its storage would grow it."""
    match args:
        case (Storage() as storage, int(offset), tuple(size), tuple(stride), *_) if len(size) == len(stride):
            if len(size) > DIMENSIONS or not all(isinstance(n, int) and n >= 0 for n in (offset, *size, *stride)):
                return "a tensor has a negative or odd shape"
            last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) + 1
            if 0 not in size and last * (itemsize or storage.itemsize) > storage.elements * storage.itemsize:
                return "a tensor reaches past the end of its storage"
            return ""
    return "a tensor is not made as torch.save makes it"


def _typed_view(args: tuple[Symbol, ...]) -> str:
    """``_rebuild_tensor_v3(storage, offset, size, stride, requires_grad, hooks, dtype, metadata)``."""
    dtype = getattr(torch, args[6].path.removeprefix("torch."), None) if isinstance(args[6], Name) else None
    return _view(args, dtype.itemsize) if isinstance(dtype, torch.dtype) else "a tensor has an unknown dtype"


def _subclass(args: tuple[Symbol, ...]) -> str:
    """``_rebuild_from_type_v2(function, type, arguments, state)``: it calls the function."""
    if isinstance(args[0], Name) and CALLS.get(args[0].path) is _subclass:
        return "a tensor is not made as torch.save makes it"
    return call_problem(args[0], args[2])


def _flat(args: tuple[Symbol, ...]) -> str:
    items = [item for arg in args for item in (arg if isinstance(arg, list) else [arg])]
    return "" if all(hashable(item) for item in items) else "a set holds something other than strings and usual numbers"


def _latin1(args: tuple[Symbol, ...]) -> str:
    return "" if len(args) == 2 and isinstance(args[1], str) and args[1] in ("latin1", "latin-1") else "an odd encoding"


def _not_a_size(args: tuple[Symbol, ...]) -> str:
    return "bytearray is called with a size" if any(isinstance(arg, int) for arg in args) else ""


# What a weights file may call, each with the check of its arguments: the reason against the call, or "".
CALLS: dict[str, Callable[[tuple[Symbol, ...]], str]] = {
    "torch._utils._rebuild_tensor": _view,
    "torch._utils._rebuild_tensor_v2": _view,
    "torch._utils._rebuild_tensor_v3": _typed_view,
    "torch._utils._rebuild_parameter": _any,
    "torch._utils._rebuild_parameter_with_state": _any,
    "torch._utils._rebuild_sparse_tensor": _any,  # refused later, by the tensor's name
    "torch._tensor._rebuild_from_type_v2": _subclass,
    "torch.serialization._get_layout": _any,
    "torch.Size": _any,
    "torch.device": _any,
    "collections.OrderedDict": lambda args: "OrderedDict is called with arguments" if args else "",
    "builtins.set": _flat,
    "builtins.complex": _any,
    "builtins.bytearray": _not_a_size,
    "_codecs.encode": _latin1,
}
OBJECTS = frozenset({"argparse.Namespace"})  # made without a call; timm keeps a run's options in one


@functools.cache
def values() -> frozenset[str]:
    """Globals that stand for themselves: storage classes, dtypes, and the classes of tensors."""
    named = vars(torch).items()
    names = {f"torch.{name}" for name, value in named if name.endswith("Storage") or isinstance(value, torch.dtype)}
    return frozenset(names | {"torch.storage.UntypedStorage", "torch.Tensor", "torch.nn.parameter.Parameter"})


def call_problem(function: Symbol, args: Symbol) -> str:
    """Why a call is not one that a weights file needs, or ``""``. Blocked globals are listed elsewhere."""
    if not isinstance(function, Name) or not isinstance(args, tuple):
        return "it calls the result of a call"
    check = CALLS.get(function.path)
    if check is None:
        return f"it calls {function.path}" if function.path in OBJECTS | values() else ""
    try:
        return check(args)
    except (IndexError, TypeError, AttributeError):
        return f"{function.path} is called with odd arguments"


def hashable(key: Symbol) -> bool:
    """Strings and numbers. A tuple can be built whose hash takes for ever, and integers that all have one hash."""
    return isinstance(key, str | float | bytes | None) or (isinstance(key, int) and abs(key) < HASHES)
