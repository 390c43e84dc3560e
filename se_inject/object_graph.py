"""What a model holds, all of it: attributes of any kind, and what functions hold in their closures."""

from __future__ import annotations

import functools
import itertools
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from types import BuiltinMethodType, CodeType, FunctionType, MethodType, ModuleType, NoneType
from typing import Any

import torch
from torch import fx, nn

LRU_CACHE = type(functools.lru_cache(int))
ATOMS = frozenset({
    NoneType, bool, int, float, complex, str, bytes, range, slice, type, type(...), CodeType, ModuleType,
    torch.Size, torch.dtype, torch.device, torch.layout, torch.memory_format, torch.Generator,
})  # fmt: skip
OPAQUE = (type, fx.Graph, fx.Node)
OPAQUE_MODULES = ("torch._dynamo.", "torch._inductor.", "torch._ops")
EMPTY = frozenset({dict, OrderedDict, list, tuple, set})
# The user's hooks would run on a copy that is only looked at, with their side effects.
HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)
OWN = ("_parameters", "_buffers", "_modules")


def content(cell: Any) -> Any:
    """What a closure's cell holds; None while it is empty."""
    try:
        return cell.cell_contents
    except ValueError:
        return None


def _in_function(function: Any) -> Iterable[Any]:
    found = [content(cell) for cell in function.__closure__ or ()]
    if function.__defaults__ or function.__kwdefaults__ or function.__dict__:
        found += function.__defaults__ or ()
        found += (function.__kwdefaults__ or {}).values()
        found += function.__dict__.values()
    return found


def target(weak: Any) -> Any:
    """What a weak reference, or a proxy, points at."""
    return weak() if isinstance(weak, weakref.ref) else weak.__init__.__self__


# What deepcopy takes as it is -> what that holds; a weak reference holds nothing.
WEAK = (weakref.ref, weakref.ProxyType, weakref.CallableProxyType)
CALLABLES: dict[type, Callable[[Any], Iterable[Any]]] = {
    FunctionType: _in_function,
    BuiltinMethodType: lambda method: (method.__self__,),
    LRU_CACHE: lambda cached: (cached.__wrapped__,),
    **dict.fromkeys(WEAK, lambda weak: ()),
}


def attributes(value: Any) -> dict[str, Any]:
    """The attributes that an object keeps, those in slots included."""
    found = {}
    for cls in type(value).__mro__:
        slots = cls.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__") and hasattr(value, name):
                found[name] = getattr(value, name)
    return found | getattr(value, "__dict__", {})


def contents(value: Any) -> Iterable[Any]:
    """What a value of any kind holds, as deepcopy would follow it, and what a function holds."""
    kind = type(value)
    if kind in CALLABLES:
        return CALLABLES[kind](value)
    if kind is MethodType:
        return value.__func__, value.__self__
    if issubclass(kind, OPAQUE) or kind.__module__.startswith(OPAQUE_MODULES):
        return value._modules.values() if issubclass(kind, nn.Module) else ()
    found: Iterable[Any] = ()
    if issubclass(kind, dict):
        found = itertools.chain(value.keys(), value.values())
    elif issubclass(kind, list | tuple | set | frozenset | deque):
        found = value
    elif issubclass(kind, functools.partial):
        found = (value.func, *value.args, *value.keywords.values())
    if kind.__module__ == "builtins":
        return found
    return itertools.chain(found, attributes(value).values())


@dataclass
class Held:
    """What there is in a model, hidden modules and tensors included."""

    modules: dict[int, nn.Module] = field(default_factory=dict)
    tensors: dict[int, torch.Tensor] = field(default_factory=dict)
    callables: list[tuple[str, Any]] = field(default_factory=list)  # the attribute that it was met in, and the function
    methods: list[MethodType] = field(default_factory=list)
    seen: dict[int, Any] = field(default_factory=dict)


def held(model: nn.Module, skip: Collection[str] = ()) -> Held:
    """Walk all that ``model`` holds, except the attributes ``skip`` of its modules."""
    found = Held(modules={id(module): module for module in model.modules()})
    hooks = []
    for path, module in model.named_modules():
        for name, value in module.__dict__.items():
            kind = type(value)
            if kind in ATOMS or name in skip or (kind in EMPTY and not value) or name == "_modules":
                continue
            if name in OWN:
                found.tensors.update((id(tensor), tensor) for tensor in value.values() if tensor is not None)
            elif name in HOOKS:
                hooks.append((value, f"{path}.{name}".lstrip(".")))
            else:
                _walk(value, f"{path}.{name}".lstrip("."), found, skip)
    for value, where in hooks:  # last: what a hook alone holds is the user's, and no part of the model
        _walk(value, where, found, skip, own=False)
    return found


def _walk(value: Any, where: str, found: Held, skip: Collection[str], own: bool = True) -> None:
    stack = [value]
    while stack:
        value = stack.pop()
        kind, key = type(value), id(value)
        if kind in ATOMS or key in found.seen:
            continue
        if issubclass(kind, torch.Tensor):
            found.tensors.update({key: value} if own else {})
            continue
        found.seen[key] = value
        if issubclass(kind, nn.Module):
            if own and key not in found.modules:  # in a list, or in a closure
                found.modules[key] = value
                stack += (part for name, part in value.__dict__.items() if name not in skip)
            continue
        if kind in CALLABLES:
            found.callables.append((where, value))
        elif kind is MethodType:
            found.methods.append(value)
        stack += contents(value)


def part_of(value: Any, wanted: Collection[int] | None = None, within: Collection[type] = ()) -> Any:
    """The first module or tensor in a value, or None; one with an id in ``wanted``, if given.

    ``within``: the only kinds of values to look into, if given.
    """
    stack, seen = [value], set()
    while stack:
        value = stack.pop()
        kind = type(value)
        if kind in ATOMS or id(value) in seen:
            continue
        seen.add(id(value))
        is_part = issubclass(kind, nn.Module | torch.Tensor)
        if is_part and (wanted is None or id(value) in wanted):
            return value
        if not issubclass(kind, torch.Tensor) and (not within or kind in within):
            stack += contents(value)
    return None
