"""Code that can stand in a file of its own: generated classes and blocks, with all that their text draws on.

What would not mean the same there is refused with the reason: closures, private names, names bound in a class body.
"""

from __future__ import annotations

import ast
import builtins
import functools
import inspect
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from safetensors import safe_open
from torch import nn

from se_inject.surgery.classes import by_method, class_source, wrapping
from se_inject.surgery.edit import Edit

PACKAGE = __name__.partition(".")[0]


class NoSource(Exception):
    """Why the model cannot be written as code; its message is a sentence for the report."""


class Header:
    """What the file imports and defines at its top: a name can stand for one thing only."""

    def __init__(self) -> None:
        self.lines = {"import json", "from pathlib import Path", "from safetensors import safe_open"}
        self.bound: dict[str, Any] = {"json": json, "Path": Path, "safe_open": safe_open}
        self.bound |= dict.fromkeys(("BLOCKS", "CLASSES", "BEHIND", "insert", "build", "read_weights", "load"), self)

    def bind(self, name: str, value: Any, line: str = "") -> None:
        """Raises ``NoSource`` when the name is bound to something else."""
        if self.bound.setdefault(name, value) is not value or getattr(builtins, name, value) is not value:
            raise NoSource(f"the name {name} stands for different things in the modules that it would draw on")
        if line:
            self.lines.add(line)

    def free(self, name: str) -> str:
        n, free = 1, name
        while free in self.bound:
            n += 1
            free = f"{name}{n}"
        return free

    def __str__(self) -> str:
        return "\n".join(sorted(self.lines, key=lambda line: (line.startswith("from"), line)))


def class_code(base: type, edits: tuple[Edit, ...], name: str) -> str:
    """The generated class as text that means the same in another module."""
    text = class_source(base, edits, name).after
    if wrapping(base, edits):
        return text
    for name, method in _methods(edits, text):
        text = _explicit_super(text, method, _defined(base, name)[0])
    return text


def _methods(edits: tuple[Edit, ...], text: str) -> list[tuple[str, ast.FunctionDef]]:
    """Each rewritten method by its name in the class, which may not be the name that its text defines."""
    tree: Any = ast.parse(text)
    return list(zip(by_method(edits), (n for n in tree.body[0].body if isinstance(n, ast.FunctionDef)), strict=True))


def bind_class(cls: type, header: Header) -> None:
    """Import a class by its name. Raises ``NoSource`` when it has none."""
    name, module = cls.__name__, sys.modules.get(cls.__module__)
    if cls.__module__ == "__main__" or cls.__qualname__ != name or getattr(module, name, None) is not cls:
        raise NoSource(f"{cls.__qualname__} of {cls.__module__} cannot be imported by name")
    header.bind(name, cls, f"from {cls.__module__} import {name}")


def _defined(base: type, method: str) -> tuple[type, Any]:
    """The class that defines a method, and its function, decorators looked through."""
    owner = next(cls for cls in base.__mro__ if method in vars(cls))
    return owner, inspect.unwrap(vars(owner)[method])


def bind_globals(base: type, edits: tuple[Edit, ...], header: Header) -> None:
    """Import what the rewritten methods read from the module they come from."""
    if wrapping(base, edits):
        return
    for attribute, method in _methods(edits, class_source(base, edits, "_").after):
        owner, function = _defined(base, attribute)
        if reason := _bound_to_its_place(method, function):
            raise NoSource(f"{base.__name__}.{attribute} {reason}")
        if next(_supers(method), None) is not None:
            bind_class(owner, header)
        scope = function.__globals__
        module = scope.get("__name__", "")
        for name in sorted({node.id for node in ast.walk(method) if isinstance(node, ast.Name)} & set(scope)):
            value = scope[name]
            if isinstance(value, ModuleType) and value.__name__ == name:
                header.bind(name, value, f"import {name}")
            elif module == "__main__" or getattr(sys.modules.get(module), "__dict__", None) is not scope:
                raise NoSource(f"{base.__name__}.{attribute} reads {name}, which cannot be imported from {module!r}")
            else:
                header.bind(name, value, f"from {module} import {name}")


def _bound_to_its_place(method: ast.FunctionDef, function: Any) -> str:
    """Why the method's text does not mean the same in another module; empty when it does."""
    if set(function.__code__.co_freevars) - {"__class__"}:
        return "uses variables of the function that defines it"
    names = [node for node in ast.walk(method) if isinstance(node, ast.Name)]
    words = [n.id for n in names] + [n.attr for n in ast.walk(method) if isinstance(n, ast.Attribute)]
    if any(word.startswith("__") and not word.endswith("__") for word in words):
        return "uses private names (self.__x), which belong to its class"
    if "__class__" in words:
        return "uses __class__"
    if any(isinstance(node, ast.Global) for node in ast.walk(method)):
        return "writes a global variable of its module"
    evaluated = [*method.decorator_list, *method.args.defaults, *filter(None, method.args.kw_defaults)]
    for name in (n.id for expression in evaluated for n in ast.walk(expression) if isinstance(n, ast.Name)):
        if name not in function.__globals__ and not hasattr(builtins, name):
            return f"reads {name} from the body of its class"
    return ""


def _explicit_super(text: str, method: ast.FunctionDef, owner: type) -> str:
    """``super()`` in a copied method means the class it was written in, not the generated one."""
    lines = text.encode().splitlines(keepends=True)
    first = [*method.args.posonlyargs, *method.args.args][0].arg
    for node in sorted(_supers(method), key=lambda n: (n.lineno, n.col_offset), reverse=True):
        if node.end_lineno != node.lineno:
            raise NoSource(f"{owner.__name__}.{method.name} writes super() over several lines")
        line, end = lines[node.lineno - 1], node.end_col_offset
        lines[node.lineno - 1] = line[: node.col_offset] + f"super({owner.__name__}, {first})".encode() + line[end:]
    return b"".join(lines).decode()


def _supers(method: ast.FunctionDef) -> Iterator[ast.Call]:
    for node in ast.walk(method):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "super" and not node.args:
            yield node


def block_code(classes: Iterable[type[nn.Module]], header: Header) -> str:
    """The block classes and what they use of this package, each once, before what uses it."""
    parts: list[str] = []
    seen: set[tuple[str, str]] = set()

    def copy(module: str, name: str) -> None:
        text, defined, imported = _contents(module)
        if name in imported:
            origin, line = imported[name]
            if origin.partition(".")[0] == PACKAGE:
                copy(origin, line)
            else:
                header.bind(name, vars(sys.modules[module])[name], line)
        elif name in defined and (module, name) not in seen:
            seen.add((module, name))
            header.bind(name, vars(sys.modules[module])[name])
            for node in ast.walk(defined[name]):
                if isinstance(node, ast.Name):
                    copy(module, node.id)
            parts.append(ast.get_source_segment(text, defined[name]) or "")

    for cls in classes:
        copy(cls.__module__, cls.__name__)
    code = ""
    for part in parts:
        gap = "" if not code else "\n\n\n" if part.startswith(("class ", "def ", "@")) else "\n"
        if gap == "\n" and code.rpartition("\n")[2].startswith((" ", ")")):
            gap = "\n\n\n"
        code += gap + part
    return code


@functools.cache
def _contents(module: str) -> tuple[str, dict[str, ast.stmt], dict[str, tuple[str, str]]]:
    """A module's text, what it defines, and what it imports: name -> (module, name there or the import line)."""
    text = inspect.getsource(sys.modules[module])
    defined: dict[str, ast.stmt] = {}
    imported: dict[str, tuple[str, str]] = {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            defined[node.name] = node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if isinstance(target, ast.Name):
                defined[target.id] = node
        elif isinstance(node, ast.Import):
            for alias in node.names:
                imported[alias.asname or alias.name.partition(".")[0]] = ("", f"import {ast.unparse(alias)}")
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            for alias in node.names:
                line = (
                    alias.name
                    if node.module.partition(".")[0] == PACKAGE
                    else f"from {node.module} import {ast.unparse(alias)}"
                )
                imported[alias.asname or alias.name] = (node.module, line)
    return text, defined, imported
