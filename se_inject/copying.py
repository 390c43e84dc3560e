"""Copies of a model that share nothing with it.

``copy.deepcopy`` takes a function as it is, and with it the modules in its closure: the copy of a model that keeps
``lambda x: self.conv(x)`` goes on with the original's convolution. Here such functions are made again around the
copy. What cannot be made again (a global variable, an object that refuses to be copied) is refused by its place.
"""

from __future__ import annotations

import copy
import dis
import functools
import itertools
import weakref
from collections import deque
from collections.abc import Callable, Collection, Iterator
from types import BuiltinMethodType, CellType, CodeType, FunctionType, MethodType
from typing import Any

import torch
from torch import nn

from se_inject.errors import CopyError
from se_inject.object_graph import (
    ATOMS,
    CALLABLES,
    HOOKS,
    LRU_CACHE,
    OPAQUE,
    WEAK,
    Held,
    attributes,
    content,
    contents,
    held,
    part_of,
    target,
)

PLAIN = frozenset({list, tuple, dict, MethodType, FunctionType, functools.partial})  # to look into, in a global


def independent_copy(
    model: nn.Module, memo: dict[int, Any], old: Held | None = None, skip: Collection[str] = ()
) -> Any:
    """A deep copy of ``model`` in which nothing goes on with the original's modules or tensors.

    ``memo``: as for ``copy.deepcopy``; what it holds is taken as it is. ``old``: what ``held(model, skip)`` found.
    Raises ``CopyError`` with the place that cannot be copied.
    """
    old = old or held(model, skip)
    _refuse_globals(model, old)
    both = [(key, value) for key, value in (old.modules | old.tensors).items() if key not in memo]
    bound = {id(value): value for where, value in old.callables if _is_bound(where, value, old)}
    memo.update(
        (key, value) for key, value in bound.items() if isinstance(value, WEAK)
    )  # a proxy would copy its target
    try:
        new = copy.deepcopy(model, memo)
        if bound:
            Rebinding(memo, bound, old.seen).model(new, old)
        _keep_modes(memo, old)
    except Exception as error:  # whatever a foreign __deepcopy__ raises
        raise CopyError(
            f"cannot copy {type(model).__name__}: {type(error).__name__}: {error}. "
            "A module holds something that copy.deepcopy refuses (a lock, a file, a generator); remove it first."
        ) from error
    if any(memo.get(key, value) is value for key, value in both) or _keeps_itself(memo, old):
        _refuse_shared(model, held(new, skip), dict(both))
    return new


def _keep_modes(memo: dict[int, Any], old: Held) -> None:
    """A graph module with two graphs is in train mode after it was made."""
    for key, module in old.modules.items():
        if key in memo and memo[key].training is not module.training:
            memo[key].train(module.training)


def _is_bound(where: str, value: Any, old: Held) -> bool:
    """Whether a function has to be made again: it holds a module or a tensor. A hook often writes into a list of the
    user's, which is to stay that list: it has to hold a part of the model."""
    if isinstance(value, WEAK):
        return any(id(target(value)) in known for known in (old.modules, old.tensors, old.seen))
    wanted = old.modules.keys() | old.tensors.keys() if where.rpartition(".")[2] in HOOKS else None
    return any(part_of(part, wanted) is not None for part in contents(value))


class Rebinding:
    """Makes functions again around a copy, and puts them where the copy still has the old ones."""

    def __init__(self, memo: dict[int, Any], bound: Collection[int], originals: Collection[int]) -> None:
        self.memo, self.bound, self.originals = memo, bound, originals
        self.done: dict[int, Any] = {}
        self.cells: dict[int, CellType] = {}
        self.alive: list[Any] = []  # what has an entry in `done` keeps its id

    def model(self, model: nn.Module, old: Held | None = None) -> None:
        modules = list(model.modules())
        self.done.update((id(module), module) for module in modules)
        for module in modules:
            self._entries(module.__dict__)
        for key, module in (old.modules if old else {}).items():
            if (
                module._compiled_call_impl is not None and key in self.memo
            ):  # by Module.compile(); deepcopy leaves it out
                self.memo[key]._compiled_call_impl = self.new(module._compiled_call_impl)

    def new(self, value: Any) -> Any:
        """What stands in the copy for ``value``; what it holds is put right in place."""
        kind, key = type(value), id(value)
        if kind in ATOMS or issubclass(kind, (torch.Tensor, *OPAQUE)):
            return value
        if key not in self.done:
            self.alive.append(value)
            self.done[key] = value
            self.done[key] = self._made(value, kind)
        return self.done[key]

    def _made(self, value: Any, kind: type) -> Any:
        if kind in CALLABLES:
            return self.callable(value)
        if kind is MethodType:
            return self.method(value)
        if issubclass(kind, tuple | frozenset):
            parts = [self.new(part) for part in value]
            if all(a is b for a, b in zip(parts, value, strict=True)):
                return value
            return kind._make(parts) if hasattr(kind, "_make") else kind(parts)
        if id(value) not in self.originals:  # shared on purpose: not ours to write
            self._inside(value, kind)
        return value

    def _inside(self, value: Any, kind: type) -> None:
        if issubclass(kind, dict):
            self._entries(value)
        elif issubclass(kind, list | deque):
            for i, part in enumerate(value):
                value[i] = self.new(part)
        elif issubclass(kind, set):
            parts = [self.new(part) for part in value]
            value.clear()
            value.update(parts)
        elif issubclass(kind, functools.partial):
            made = self.new(value.func), self.new(value.args), value.keywords, value.__dict__
            value.__setstate__(made)
            self._entries(value.keywords)
        for name, part in attributes(value).items():
            if (made := self.new(part)) is not part:
                object.__setattr__(value, name, made)

    def _entries(self, values: dict[Any, Any]) -> None:
        for name, part in list(values.items()):
            if (made := self.new(part)) is not part:
                values[name] = made

    def again(self, value: Any) -> Any:
        """The copy of what a function holds; the same object when there is no module and no tensor in it."""
        return value if part_of(value) is None else self.new(copy.deepcopy(value, self.memo))

    # -- what deepcopy takes as it is -------------------------------------------------------------------------------
    def callable(self, old: Any) -> Any:
        return MAKE[type(old)](self, old) if id(old) in self.bound else old

    def method(self, old: MethodType) -> Any:
        function, owner = self.new(old.__func__), self.new(old.__self__)
        return old if function is old.__func__ and owner is old.__self__ else MethodType(function, owner)

    def function(self, old: FunctionType) -> Any:
        fresh: list[tuple[CellType, Any]] = []

        def again(cell: CellType) -> CellType:
            holds = content(cell)
            if part_of(holds) is None:
                return cell
            if id(cell) not in self.cells:
                self.cells[id(cell)] = CellType()
                fresh.append((self.cells[id(cell)], holds))
            return self.cells[id(cell)]

        closure = tuple(map(again, old.__closure__ or ()))
        new = FunctionType(old.__code__, old.__globals__, old.__name__, None, closure)
        self.done[id(old)] = new  # before its cells, which may hold it
        for cell, holds in fresh:
            cell.cell_contents = self.again(holds)
        for name in ("__defaults__", "__kwdefaults__"):
            setattr(new, name, self.again(getattr(old, name)))
        for name in ("__qualname__", "__module__", "__doc__", "__annotations__"):
            setattr(new, name, getattr(old, name))
        new.__dict__.update((name, self.again(value)) for name, value in old.__dict__.items())
        return new

    def builtin(self, old: Any) -> Any:
        return getattr(self.again(old.__self__), old.__name__)  # of a list, a dict, a tensor

    def cached(self, old: Any) -> Any:
        return functools.lru_cache(**old.cache_parameters())(self.again(old.__wrapped__))

    def weak(self, old: Any) -> Any:
        new = copy.deepcopy(target(old), self.memo)
        return weakref.ref(new, old.__callback__) if isinstance(old, weakref.ref) else weakref.proxy(new)


MAKE: dict[type, Callable[[Rebinding, Any], Any]] = {
    FunctionType: Rebinding.function,
    BuiltinMethodType: Rebinding.builtin,
    LRU_CACHE: Rebinding.cached,
    **dict.fromkeys(WEAK, Rebinding.weak),
}


# -- what cannot be made again ----------------------------------------------------------------------------------------
def _keeps_itself(memo: dict[int, Any], old: Held) -> bool:
    """Whether an object with a part of the model in it was not copied."""
    own = {*old.modules, *old.tensors}
    shared = (value for key, value in old.seen.items() if key not in memo and type(value) not in CALLABLES)
    return any(part_of(value, own) is not None for value in shared)


def _refuse_shared(model: nn.Module, there: Held, originals: dict[int, Any]) -> None:
    """Raise ``CopyError`` when the copy still holds what is the original's."""
    shared = next((originals[key] for key in (*there.modules, *there.tensors) if key in originals), None)
    if shared is not None:
        raise CopyError(
            f"cannot copy {type(model).__name__}: the copy would go on with the original's {_name(model, shared)}, "
            "because an object that holds it gives itself back when it is copied. Let its __deepcopy__ make a copy."
        )


def _name(model: nn.Module, value: Any) -> str:
    names = itertools.chain(model.named_modules(), model.named_parameters(), model.named_buffers())
    return f"{next((path for path, own in names if own is value), '')} ({type(value).__name__})".lstrip()


def _refuse_globals(model: nn.Module, old: Held) -> None:
    """Raise ``CopyError`` for a function or a method that takes a part of the model from outside the model."""
    own = {key for key, m in old.modules.items() if m._parameters or m._buffers or m._modules} | old.tensors.keys()
    seen: set[int] = set()
    classes: dict[Any, None] = dict.fromkeys(type(module) for module in old.modules.values())
    for cls in classes:
        for name, function in _methods(cls):
            where = f"{cls.__name__}.{name}"
            for cell, free in zip(function.__closure__ or (), function.__code__.co_freevars, strict=True):
                _refuse(model, where, free, content(cell), own)
            _refuse_global(model, where, function, own, seen)
    for where, value in old.callables:
        if isinstance(value, FunctionType):
            _refuse_global(model, where, value, own, seen)


def _refuse_global(model: nn.Module, where: str, function: Any, own: Collection[int], seen: set[int]) -> None:
    """Look at the globals of a function, and of the functions beside it that it calls."""
    stack = [function]
    while stack:
        function = stack.pop()
        if id(function) in seen or (function.__module__ or "torch.").startswith("torch."):
            continue
        seen.add(id(function))
        space = function.__globals__
        for name in _names(function.__code__):
            value = space.get(name)
            if type(value) is FunctionType and value.__globals__ is space:
                stack.append(value)
            elif type(value) not in ATOMS and part_of(value, own, PLAIN) and name in _loaded(function.__code__):
                _refuse(model, where, name, value, own)


def _refuse(model: nn.Module, where: str, name: str, value: Any, own: Collection[int]) -> None:
    part = part_of(value, own, PLAIN)
    if part is not None:
        raise CopyError(
            f"cannot copy {type(model).__name__}: {where} takes {_name(model, part)} of the model from the variable "
            f"{name!r} outside it, and the copy would go on with the original's. Use an attribute instead: self.{name}."
        )


@functools.lru_cache(maxsize=4096)
def _methods(cls: type) -> tuple[tuple[str, FunctionType], ...]:
    """The functions of a class and its bases, those of torch apart, with what is under their decorators."""
    return tuple(_unwrapped(cls))


def _unwrapped(cls: type) -> Iterator[tuple[str, FunctionType]]:
    for base in cls.__mro__:
        if base.__module__.partition(".")[0] not in ("torch", "builtins"):
            for name, value in vars(base).items():
                value = getattr(value, "fget", value) if name != "__init__" else None  # a copy never runs it
                while value is not None:
                    if isinstance(value, FunctionType):
                        yield name, value
                    value = getattr(value, "__dict__", {}).get("__wrapped__", getattr(value, "__func__", None))


@functools.lru_cache(maxsize=4096)
def _names(code: CodeType) -> tuple[str, ...]:
    """Names of globals and attributes in a function, and in those inside it."""
    inner = (_names(const) for const in code.co_consts if isinstance(const, CodeType))
    return tuple(dict.fromkeys(itertools.chain(code.co_names, *inner)))


def _loaded(code: CodeType) -> set[str]:
    """Names that a function, or one inside it, reads as globals."""
    inner = (_loaded(const) for const in code.co_consts if isinstance(const, CodeType))
    own = {str(i.argval) for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return own.union(*inner)
