"""Bound methods that a model keeps (``self.body = partial(self.f)``, ``block.forward = block.forward``, a compiled
method) follow their module to another class."""

from __future__ import annotations

import functools
import inspect
from types import FunctionType, MethodType
from typing import Any

from torch import nn

from se_inject.copying import Rebinding
from se_inject.object_graph import LRU_CACHE, content, held
from se_inject.surgery.classes import is_generated

Functions = dict[tuple[int, int], Any]  # (module, function of its old class) -> function of its new class


def set_classes(model: nn.Module, classes: dict[str, type]) -> None:
    """Make the module at each path an instance of a class; methods of it that the model keeps are the new class's."""
    functions: Functions = {}
    for path, cls in classes.items():
        module: Any = model.get_submodule(path) if path else model
        functions |= {(id(module), id(old)): new for old, new in _pairs(type(module), cls)}
        module.__class__ = cls
    if any((id(method.__self__), id(method.__func__)) in functions for method in held(model).methods):
        Following(functions).model(model)


def _pairs(old: type, new: type) -> list[tuple[Any, Any]]:
    """The functions that differ between a class and a generated subclass of it, whichever of the two is the old."""
    upper, lower = (old, new) if is_generated(new) and issubclass(new, old) else (new, old)
    names = [name for name, value in vars(lower).items() if isinstance(value, FunctionType)]
    pairs = [(inspect.getattr_static(upper, name, None), vars(lower)[name]) for name in names]
    return pairs if lower is new else [(b, a) for a, b in pairs]


class Following(Rebinding):
    """Puts the methods of the new classes where the old ones are kept, in place."""

    def __init__(self, functions: Functions) -> None:
        super().__init__({}, (), ())
        self.functions = functions

    def method(self, old: MethodType) -> Any:
        function = self.functions.get((id(old.__self__), id(old.__func__)))
        return super().method(old) if function is None else MethodType(function, old.__self__)

    def callable(self, old: Any) -> Any:
        if isinstance(old, LRU_CACHE):
            wrapped = self.new(old.__wrapped__)
            return old if wrapped is old.__wrapped__ else functools.lru_cache(**old.cache_parameters())(wrapped)
        if isinstance(old, FunctionType):
            for cell in old.__closure__ or ():
                if (made := self.new(value := content(cell))) is not value:
                    cell.cell_contents = made
            if (defaults := self.new(old.__defaults__)) is not old.__defaults__:
                old.__defaults__ = defaults
            for held in (old.__kwdefaults__, old.__dict__):
                self._entries(held or {})
        return old
