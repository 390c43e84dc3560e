"""``pkg.module:factory``: from a name on the command line to the call that builds the model."""

from __future__ import annotations

import functools
import importlib
import inspect
import keyword
import os
import sys
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

from torch import nn

from se_inject.errors import LoadError, closest, one_line

EXTRAS = ("timm", "torchvision")  # packages that an extra of this one installs


def factory_call(spec: str, module: str, attribute: str, args: dict[str, Any], pretrained: bool) -> Callable[[], Any]:
    """The call of ``module:attribute`` with ``args``, ready to be made; the module is imported.

    The current directory can be imported from, as with ``python -m``. ``pretrained`` is passed on to a factory that
    takes it. Raises ``LoadError`` for what cannot be a factory: above all, anything of the standard library.
    """
    target = find(spec, module, attribute)
    if isinstance(target, nn.Module) or not callable(target):
        kind = type(target).__name__
        raise LoadError(f"{spec}: is of type {kind}; name a function or class that builds the model.")
    function = target
    while isinstance(function, functools.partial):
        function = function.func
    _refuse_stdlib(spec, getattr(function, "__module__", None) or type(function).__module__)
    try:
        takes: Iterable[str] = inspect.signature(target).parameters
    except (TypeError, ValueError):  # a callable that does not say
        takes = ()
    if "pretrained" in takes:
        args["pretrained"] = pretrained
    return functools.partial(target, **args)


def find(spec: str, module: str, attribute: str) -> Any:
    """``module:attribute``; the module is imported, from the current directory too. Raises ``LoadError``."""
    for part in (*module.split("."), *attribute.split(".")):
        if part.startswith("__") or keyword.iskeyword(part):
            raise LoadError(f"{spec}: {part!r} cannot be part of a factory's name.")
    _refuse_stdlib(spec, module)
    if os.getcwd() not in sys.path and "" not in sys.path:  # as with python -m; modules imported later need it too
        sys.path.insert(0, os.getcwd())
    target: Any = import_or_refuse(module, spec)
    for i, part in enumerate(attribute.split(".")):
        if not hasattr(target, part):
            where = ".".join([module, *attribute.split(".")[:i]])
            raise LoadError(f"{spec}: {where} has no {part!r}.{closest(part, dir(target))}")
        target = getattr(target, part)
    return target


def _refuse_stdlib(spec: str, module: str) -> None:
    if module.partition(".")[0] in sys.stdlib_module_names:
        raise LoadError(f"{spec}: {module} belongs to Python's standard library, which builds no models.")


def import_or_refuse(module: str, spec: str = "") -> ModuleType:
    """The module, imported. Raises ``LoadError`` that says how to get it."""
    root = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and (module == error.name or module.startswith(f"{error.name}.")):
            how = f"pip install se_inject[{root}]" if root in EXTRAS else "install it, or run in the folder that has it"
            if module.endswith(".py"):
                how = f"write a module as in an import: {module.removesuffix('.py')!r}"
            raise LoadError(f"{spec or module}: no module named {error.name!r}; {how}.") from error
        raise LoadError(f"{spec or module}: cannot be imported: {one_line(error)}") from error
    except (Exception, SystemExit) as error:  # whatever foreign module code raises
        raise LoadError(f"{spec or module}: cannot be imported: {one_line(error)}") from error
