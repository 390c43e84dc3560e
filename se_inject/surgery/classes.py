"""Subclasses made at run time: the base class with some of its methods rewritten.

A module becomes an instance by a ``__class__`` swap, as ``torch.nn.utils.parametrize`` and FSDP2 do, and stays an
instance of its base. One class for each (base, edits): equal blocks share it, and compile once.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import io
import linecache
from types import CellType, CodeType, FunctionType
from typing import Any

from torch import nn

from se_inject.errors import PlanMismatchError, SpliceError
from se_inject.object_graph import content
from se_inject.surgery.edit import Edit, indented, is_name, returned, rewrite
from se_inject.trace.source import current_code, foreign_decorator, method_source, parse, self_name
from se_inject.types import Rewrite

_CLASSES: dict[tuple[type, tuple[Edit, ...]], type] = {}
WRAPPER = """    def forward(self, *args, **kwargs):
        return {value}
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


def class_source(base: type, edits: tuple[Edit, ...], name: str) -> Rewrite:
    """The text of the generated class, and what it would be without the edits: each of its methods whole, comments
    kept."""
    before, after = [], []
    wrapper = wrapping(base, edits)
    for method, group in by_method(edits).items():
        if wrapper and method == "forward":
            value = original = "super().forward(*args, **kwargs)"
            for child in wrapper:
                value = f"self.{child}({value})"
            before.append(WRAPPER.format(value=original))
            after.append(WRAPPER.format(value=value))
            continue
        text = _original(base, method, group)
        try:
            written = parse(text).name
            old, new = indented(text), indented(rewrite(text, tuple(group)))
        except ValueError as error:
            raise PlanMismatchError(f"{base.__name__}.{method}: {error}") from error
        others = "".join(f"\n    {name} = {written}\n" for name in aliases(base, method) if name != written)
        before.append(old + others)
        after.append(new + others)
    head = f"class {name}({base.__name__}):\n"
    return Rewrite(head + "\n".join(before), head + "\n".join(after))


def by_method(edits: tuple[Edit, ...]) -> dict[str, list[Edit]]:
    """The edits of each method, in the order in which the class's text holds them."""
    groups: dict[str, list[Edit]] = {}
    for edit in edits:
        groups.setdefault(edit.position.method if edit.position else "forward", []).append(edit)
    return groups


def aliases(base: type, method: str) -> list[str]:
    """All names under which the class has this method: ``forward = _forward`` in its body means two."""
    original = inspect.getattr_static(base, method)
    names = dict.fromkeys(name for cls in base.__mro__ for name in vars(cls))
    return [name for name in names if inspect.getattr_static(base, name) is original]


def wrapping(base: type, edits: tuple[Edit, ...]) -> list[str]:
    """The children's names, when forward must be wrapped from outside because its source cannot be rewritten."""
    wrapped = [edit.name for edit in edits if edit.position is None and not edit.argument and is_name(edit.name)]
    if not wrapped:
        return []
    code = current_code(base, "forward")
    try:
        function = parse(method_source(code)[0]) if code is not None else None
        readable = function is not None and self_name(function) and returned(function)
    except ValueError:
        return wrapped
    return [] if readable and foreign_decorator(inspect.getattr_static(base, "forward")) is None else wrapped


def _original(base: type, method: str, edits: list[Edit]) -> str:
    code = current_code(base, method)
    if code is None:
        raise PlanMismatchError(f"{base.__name__} has no method {method}, which the plan rewrites")
    try:
        text, digest = method_source(code)
    except ValueError as error:
        raise PlanMismatchError(str(error)) from error
    for edit in edits:
        if edit.position is not None and edit.position.digest != digest:
            raise PlanMismatchError(
                f"the source of {base.__name__}.{method} is not the one that the plan was made for "
                "(another version of its library?). Make the plan again."
            )
    return text


def _generate(base: type, edits: tuple[Edit, ...]) -> type:
    if any(cls.__module__ == "torch.nn.utils.parametrize" for cls in base.__mro__):
        # It goes back to its own base class when the parametrization is removed: the block would be lost.
        raise SpliceError(f"{base.__name__} is parametrized: remove the parametrization first, and put it back after.")
    name = f"SE{base.__name__}"
    source = class_source(base, edits, name)
    text = source.after
    digest = hashlib.sha256(f"{base.__module__}.{base.__qualname__}\n{text}".encode()).hexdigest()[:8]
    filename = f"<se_inject {name} {digest}>"
    linecache.cache[filename] = (len(text), None, io.StringIO(text).readlines(), filename)
    body = ast.parse(text).body[0]
    assert isinstance(body, ast.ClassDef)
    namespace: dict[str, Any] = {
        "__module__": "se_inject.surgery.classes",
        "__qualname__": name,
        "__doc__": f"{base.__qualname__} with one call inserted at each planned place.",
        "__reduce_ex__": _reduce,
        "se_base": base,
        "se_edits": edits,
        "se_rewrite": source,
    }
    wrapper = wrapping(base, edits)
    functions = [node for node in body.body if isinstance(node, ast.FunctionDef)]
    for method, function in zip(by_method(edits), functions, strict=True):
        if wrapper and method == "forward":
            continue
        new = _rebuild(inspect.getattr_static(base, method), function, filename, name)
        namespace |= dict.fromkeys(aliases(base, method), new)
    try:
        cls = type(base)(name, (base,), namespace)
    except TypeError as error:
        raise SpliceError(f"{base.__name__} cannot be subclassed: {error}") from error
    if wrapper:
        _add_wrapper(cls, wrapper)
    return cls


def _add_wrapper(cls: Any, names: list[str]) -> None:
    """For a forward whose source cannot be read: call it, then the blocks."""

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        value = super(cls, self).forward(*args, **kwargs)
        for name in names:
            value = getattr(self, name)(value)
        return value

    functools.update_wrapper(forward, cls.forward)
    del forward.__wrapped__  # type: ignore[attr-defined]
    cls.forward = forward


def _rebuild(original: Any, function: ast.FunctionDef, filename: str, name: str) -> Any:
    """The rewritten method with the globals, closure cells, defaults and decorators of the original."""
    inner = inspect.unwrap(original)
    if (decorator := foreign_decorator(original)) is not None:
        raise SpliceError(f"{inner.__qualname__} is decorated by {decorator}, which cannot be put around another.")
    code = _compile(function, inner.__code__, filename)
    cells = dict(zip(inner.__code__.co_freevars, inner.__closure__ or (), strict=True))
    closure = tuple(cells.get(free, CellType()) for free in code.co_freevars)
    new = FunctionType(code, inner.__globals__, inner.__name__, inner.__defaults__, closure)
    new.__kwdefaults__ = inner.__kwdefaults__
    new.__annotations__ = inner.__annotations__
    new.__dict__.update(inner.__dict__)
    new.__doc__, new.__module__ = inner.__doc__, inner.__module__
    new.__qualname__ = f"{name}.{inner.__name__}"
    return _redecorate(original, inner, new)


def _compile(function: ast.FunctionDef, old: CodeType, filename: str) -> CodeType:
    """Compile without running anything: inside a class of the old name, so that private names stay mangled, inside a
    function whose arguments are the old closure's names."""
    qualname = old.co_qualname  # of the text, not of the function: that of a generated method names its new class
    method = ast.FunctionDef(function.name, function.args, function.body, [], function.returns)
    ast.copy_location(method, function)
    owner = qualname.split(".")[-2] if "." in qualname else "_"
    inside = ast.ClassDef(owner, bases=[], keywords=[], body=[method], decorator_list=[])
    free = [ast.arg(name) for name in old.co_freevars if name != "__class__"]
    # The class's own name, as in super(Block, self), is a global of the method, unless it was a local of a function.
    body: list[ast.stmt] = [inside] if owner in old.co_freevars else [ast.Global([owner]), inside]
    outside = ast.FunctionDef(
        "_", ast.arguments(posonlyargs=[], args=free, kwonlyargs=[], kw_defaults=[], defaults=[]), body, []
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
        CellType(wrapped) if content(cell) is original.__wrapped__ else cell for cell in original.__closure__ or ()
    )
    again = FunctionType(original.__code__, original.__globals__, original.__name__, original.__defaults__, cells)
    again.__kwdefaults__ = original.__kwdefaults__
    marks = original.__dict__.items()  # that decorators leave, such as autocast's
    again.__dict__.update((name, wrapped if mark is original.__wrapped__ else mark) for name, mark in marks)
    functools.update_wrapper(again, wrapped)
    return again


def _reduce(self: nn.Module, protocol: int) -> tuple[Any, ...]:
    """Pickle and deepcopy by base and edits: the class is found or made again, and the cache kept."""
    cls: Any = type(self)
    if not is_generated(cls):  # a class on top of ours, as FSDP makes: not ours to rebuild
        return object.__reduce_ex__(self, protocol)  # type: ignore[return-value]
    steps: list[tuple[Edit, ...]] = []
    while is_generated(cls):  # rewritten more than once: pickle finds only the first base by its name
        steps.insert(0, cls.se_edits)
        cls = cls.se_base
    state = self.__getstate__() if hasattr(self, "__getstate__") else self.__dict__
    return _new, (cls, *steps), state


def _new(base: type, *steps: tuple[Edit, ...]) -> nn.Module:
    cls: Any = base
    for edits in steps:
        cls = generated(cls, edits)
    return cls.__new__(cls)
