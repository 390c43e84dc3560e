"""Where in the owner's source an expression stands: the frame's code object and its PEP 657 positions."""

from __future__ import annotations

import functools
import inspect
import os
import sys
from dataclasses import dataclass
from types import CodeType, FrameType
from typing import Any

import torch
from torch import nn

TORCH_DIR = os.path.dirname(torch.__file__) + os.sep  # not torchvision


@dataclass(frozen=True)
class Spot:
    """Where in the owner's source a node was made. ``direct``: the expression's value is the node's value."""

    code: CodeType
    method: str
    cls: type  # the class that defines the method
    span: tuple[int, int, int, int]  # line, end line, column, end column, as PEP 657 counts them
    direct: bool


def here(module: nn.Module) -> Spot | None:
    """The innermost frame that runs a method of ``module``, and the expression at which it stands."""
    cls: Any = type(module)
    codes, direct = methods(cls), True
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        code = frame.f_code
        if code in codes and frame.f_locals.get(code.co_varnames[0]) is module:
            line, end_line, column, end_column = spans(code)[frame.f_lasti // 2]
            if line is None or end_line is None or column is None or end_column is None:
                return None
            method, cls = codes[code]
            return Spot(code, method, cls, (line, end_line, column, end_column), direct)
        direct = direct and code.co_filename.startswith(TORCH_DIR)
        frame = frame.f_back
    return None


@functools.cache
def methods(cls: type) -> dict[CodeType, tuple[str, type]]:
    """Code object -> (method name, defining class) for every method of ``cls``, decorators looked through."""
    found: dict[CodeType, tuple[str, type]] = {}
    for base in cls.__mro__:
        if base in (nn.Module, object):
            continue
        for name, value in vars(base).items():
            code = getattr(inspect.unwrap(value), "__code__", None) if callable(value) else None
            if code is not None and code.co_varnames:
                found.setdefault(code, (name, base))
    return found


@functools.lru_cache(maxsize=4096)
def spans(code: CodeType) -> list[tuple[int | None, int | None, int | None, int | None]]:
    return list(code.co_positions())
