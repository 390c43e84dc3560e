"""Subclasses made at run time: the base class with some of its methods rewritten.

A module becomes an instance by a ``__class__`` swap, as ``torch.nn.utils.parametrize`` and FSDP2 do, and stays an
instance of its base. One class for each (base, edits): equal blocks share it, and compile once.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import linecache
from types import CellType, CodeType, FunctionType
from typing import Any

from torch import nn

from se_inject.errors import PlanMismatchError, SpliceError
from se_inject.source import Edit, current_code, indented, method_source, parse, returned, rewrite

_CLASSES: dict[tuple[type, tuple[Edit, ...]], type] = {}
WRAPPER = """    def forward(self, *args, **kwargs):
        return self.{name}(super().forward(*args, **kwargs))
"""


def generated(base: type, edits: tuple[Edit, ...]) -> type:
    """The cached subclass of ``base`` with ``edits`` made in its methods.

    Raises ``PlanMismatchError`` when the source is not the one that the edits were made for, and ``SpliceError``
    when the class cannot be subclassed.
    """
    key = (base, edits)
    if key not in _CLASSES:
        _CLASSES[key] = _generate(base, edits)
    return _CLASSES[key]


def is_generated(cls: type) -> bool:
    return "se_base" in vars(cls)


def class_source(base: type, edits: tuple[Edit, ...], name: str) -> str:
    """The text of the generated class: each rewritten method whole, comments kept."""
    parts = []
    wrapper = _wrapper(base, edits)
    for method, group in _by_method(edits).items():
        if wrapper and method == "forward":
            parts.append(WRAPPER.format(name=wrapper))
            continue
        text = _original(base, method, group)
        try:
            parts.append(indented(rewrite(text, tuple(group))))
        except ValueError as error:
            raise PlanMismatchError(f"{base.__name__}.{method}: {error}") from error
    return f"class {name}({base.__name__}):\n" + "\n".join(parts)


def _by_method(edits: tuple[Edit, ...]) -> dict[str, list[Edit]]:
    groups: dict[str, list[Edit]] = {}
    for edit in edits:
        groups.setdefault(edit.position.method if edit.position else "forward", []).append(edit)
    return groups


def _wrapper(base: type, edits: tuple[Edit, ...]) -> str:
    """The child's name, when forward must be wrapped from outside because its source cannot be read."""
    wrapped = [edit.name for edit in edits if edit.position is None]
    if not wrapped:
        return ""
    code = current_code(base, "forward")
    try:
        return "" if code is not None and returned(parse(method_source(code)[0])) else wrapped[0]
    except ValueError:
        return wrapped[0]


def _original(base: type, method: str, edits: list[Edit]) -> str:
    code = current_code(base, method)
    if code is None:
        raise PlanMismatchError(f"{base.__name__} has no method {method}, which the plan rewrites")
    text, digest = method_source(code)
    for edit in edits:
        if edit.position is not None and edit.position.digest != digest:
            raise PlanMismatchError(
                f"the source of {base.__name__}.{method} is not the one that the plan was made for "
                "(another version of its library?). Make the plan again."
            )
    return text


def _generate(base: type, edits: tuple[Edit, ...]) -> type:
    name = f"SE{base.__name__}"
    text = class_source(base, edits, name)
    digest = hashlib.sha256(f"{base.__module__}.{base.__qualname__}\n{text}".encode()).hexdigest()[:8]
    filename = f"<se_inject {name} {digest}>"
    linecache.cache[filename] = (len(text), None, text.splitlines(keepends=True), filename)
    body = ast.parse(text).body[0]
    assert isinstance(body, ast.ClassDef)
    namespace: dict[str, Any] = {
        "__module__": "se_inject.generated",
        "__qualname__": name,
        "__doc__": f"{base.__qualname__} with one call inserted at each planned place.",
        "__reduce_ex__": _reduce,
        "se_base": base,
        "se_edits": edits,
        "se_source": text,
    }
    wrapper = _wrapper(base, edits)
    for function in body.body:
        assert isinstance(function, ast.FunctionDef)
        if wrapper and function.name == "forward":
            continue
        original = inspect.getattr_static(base, function.name)
        namespace[function.name] = _rebuild(original, function, filename, name)
    try:
        cls = type(base)(name, (base,), namespace)
    except TypeError as error:
        raise SpliceError(f"{base.__name__} cannot be subclassed: {error}") from error
    if wrapper:
        _add_wrapper(cls, wrapper)
    return cls


def _add_wrapper(cls: Any, name: str) -> None:
    """For a forward whose source cannot be read: call it, then the block."""

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(self, name)(super(cls, self).forward(*args, **kwargs))

    functools.update_wrapper(forward, cls.forward)
    del forward.__wrapped__  # type: ignore[attr-defined]
    cls.forward = forward


def _rebuild(original: Any, function: ast.FunctionDef, filename: str, name: str) -> Any:
    """The rewritten method with the globals, closure cells, defaults and decorators of the original."""
    inner = inspect.unwrap(original)
    code = _compile(function, inner.__code__, filename, inner.__qualname__)
    cells = dict(zip(inner.__code__.co_freevars, inner.__closure__ or (), strict=True))
    closure = tuple(cells.get(free, CellType()) for free in code.co_freevars)
    new = FunctionType(code, inner.__globals__, inner.__name__, inner.__defaults__, closure)
    new.__kwdefaults__ = inner.__kwdefaults__
    new.__annotations__ = inner.__annotations__
    new.__dict__.update(inner.__dict__)
    new.__doc__, new.__module__ = inner.__doc__, inner.__module__
    new.__qualname__ = f"{name}.{inner.__name__}"
    return _redecorate(original, inner, new)


def _compile(function: ast.FunctionDef, old: CodeType, filename: str, qualname: str) -> CodeType:
    """Compile without running anything: inside a class of the old name, so that private names stay mangled, inside a
    function whose arguments are the old closure's names."""
    method = ast.FunctionDef(function.name, function.args, function.body, [], function.returns)
    ast.copy_location(method, function)
    owner = qualname.split(".")[-2] if "." in qualname else "_"
    inside = ast.ClassDef(owner, bases=[], keywords=[], body=[method], decorator_list=[])
    free = [ast.arg(name) for name in old.co_freevars if name != "__class__"]
    outside = ast.FunctionDef(
        "_", ast.arguments(posonlyargs=[], args=free, kwonlyargs=[], kw_defaults=[], defaults=[]), [inside], []
    )
    for node in (inside, outside):
        if hasattr(node, "type_params"):
            node.type_params = []
        node.lineno = node.end_lineno = function.lineno
    if hasattr(method, "type_params"):
        method.type_params = []
    module = ast.fix_missing_locations(ast.Module([outside], []))
    code = compile(module, filename, "exec", dont_inherit=True)
    for wanted in ("_", owner, function.name):
        code = next(c for c in code.co_consts if isinstance(c, CodeType) and c.co_name == wanted)
    return code


def _redecorate(original: Any, inner: Any, new: Any) -> Any:
    """The same wrappers (``torch.no_grad``, autocast, ...) around the new function: their cells point to it."""
    if original is inner:
        return new
    wrapped = _redecorate(original.__wrapped__, inner, new)
    cells = tuple(
        CellType(wrapped) if _content(cell) is original.__wrapped__ else cell for cell in original.__closure__ or ()
    )
    again = FunctionType(original.__code__, original.__globals__, original.__name__, original.__defaults__, cells)
    again.__kwdefaults__ = original.__kwdefaults__
    functools.update_wrapper(again, wrapped)
    return again


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return None


def _reduce(self: nn.Module, protocol: int) -> tuple[Any, ...]:
    """Pickle and deepcopy by base and edits: the class is found or made again, and the cache kept."""
    cls: Any = type(self)
    state = self.__getstate__() if hasattr(self, "__getstate__") else self.__dict__
    return _new, (cls.se_base, cls.se_edits), state


def _new(base: type, edits: tuple[Edit, ...]) -> nn.Module:
    cls: Any = generated(base, edits)
    return cls.__new__(cls)
