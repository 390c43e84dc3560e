"""``modeling.py``: the rewritten model as code that needs torch and the model's own library, and not this tool.

It carries each generated class with the original method and its one call more, a copy of the block classes, and two
functions: ``build()`` and ``load()``. Names of modules are written as literals and parsed before they are used.
"""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from torch import nn

from se_inject.blocks import BLOCKS
from se_inject.generated import class_source
from se_inject.source import Edit
from se_inject.types import Plan

HEADER = '''"""{title}

Made by se_inject from {model}. The classes below are those of {origins},
each with the original method and one call inserted; the original's licence applies to them.
"""

from __future__ import annotations

{imports}

'''

FOOTER = '''
# path of the parent, name of the child, block class, its arguments
BLOCKS = {blocks}
# path -> generated class
CLASSES = {classes}


def insert(model):
    """Put the blocks into a freshly built base model, in place."""
    for parent, name, block, kwargs in BLOCKS:
        module = model.get_submodule(parent)
        module.__dict__.pop(name, None)
        module.add_module(name, block(**kwargs))
    for path, cls in CLASSES.items():
        model.get_submodule(path).__class__ = cls
    return model


{build}


def load(path=None, **options):
    """The model with its weights, in eval mode; ``path``: a safetensors file, by default the one beside this file."""
    path = Path(__file__).parent / "model.safetensors" if path is None else path
    model = build(**options)
    with safe_open(str(path), framework="pt") as file:
        state = {{key: file.get_tensor(key) for key in file.keys()}}
        aliases = json.loads((file.metadata() or {{}}).get("aliases", "{{}}"))
    state.update({{key: state[name] for key, name in aliases.items()}})
    for key, tensor in model.state_dict().items():  # a half-precision checkpoint makes a half-precision model
        if key in state and tensor.dtype != state[key].dtype:
            model.to(state[key].dtype)
            break
    model.load_state_dict(state)
    return model.eval()
'''


class NoSource(Exception):
    """Why the model cannot be written as code; its message is a sentence for the report."""


def render(base: nn.Module, plan: Plan) -> str:
    """The text of ``modeling.py`` for ``plan`` on the unchanged model ``base``.

    Raises ``NoSource`` when a class cannot be imported by name, or lives in a graph.
    """
    edits: dict[str, tuple[Edit, ...]] = {}
    for decision in plan.insertions:
        carrier = decision.site.carrier
        assert carrier is not None
        if carrier.kind == "graph":
            raise NoSource("the model is a GraphModule: its code is its graph, which no library holds")
        if carrier.kind in ("source", "callee"):
            edits[carrier.path] = (*edits.get(carrier.path, ()), Edit(carrier.name, carrier.position))
    imports = {"import json", "from pathlib import Path", "from safetensors import safe_open"}
    names: dict[tuple[type, tuple[Edit, ...]], str] = {}
    parts: list[str] = []
    for path, edit in edits.items():
        key = (type(base.get_submodule(path)), edit)
        if key not in names:
            names[key] = _free(f"SE{key[0].__name__}", set(names.values()))
            parts.append(_class(key[0], edit, names[key], imports))
    used = {d.block for d in plan.insertions}
    blocks = "\n\n".join(_block_source(BLOCKS[name].module, imports) for name in sorted(used))
    origins = sorted({cls.__module__.partition(".")[0] for cls, _ in names}) or [
        type(base).__module__.partition(".")[0]
    ]
    build = _build(base, plan, imports)
    footer = FOOTER.format(
        blocks=_rows([_row(d) for d in plan.insertions], "[]"),
        classes=_rows(
            [f"{path!r}: {names[type(base.get_submodule(path)), edit]}" for path, edit in edits.items()], "{}"
        ),
        build=build,
    )
    header = HEADER.format(
        title=f"{type(base).__name__} with {len(plan.insertions)} attention blocks.",
        model=_comment(plan.model),
        origins=", ".join(origins),
        imports="\n".join(sorted(imports, key=lambda line: (line.startswith("from"), line))),
    )
    text = header + blocks + "\n\n\n" + "".join(part + "\n\n" for part in parts) + footer
    try:
        ast.parse(text)
    except SyntaxError as error:  # a name that is no identifier: better no file than a wrong one
        raise NoSource(f"the code would not parse ({error.msg})") from error
    return text


def _row(decision: Any) -> str:
    parent, _, name = decision.key.rpartition(".")
    return f"({parent!r}, {name!r}, {BLOCKS[decision.block].module.__name__}, {decision.kwargs!r})"


def _rows(rows: list[str], brackets: str) -> str:
    if not rows:
        return brackets
    return brackets[0] + "\n" + "".join(f"    {row},\n" for row in rows) + brackets[1]


def _comment(text: str) -> str:
    return ascii(text)[1:-1].replace('"', "'")


def _free(name: str, taken: set[str]) -> str:
    n, free = 1, name
    while free in taken:
        n += 1
        free = f"{name}{n}"
    return free


def _class(base: type, edits: tuple[Edit, ...], name: str, imports: set[str]) -> str:
    imports.add(_import(base))
    text = class_source(base, edits, name)
    tree = ast.parse(text)
    for method in tree.body[0].body:  # type: ignore[attr-defined]
        function: Any = inspect.unwrap(getattr(base, method.name))
        if set(function.__code__.co_freevars) - {"__class__"}:
            raise NoSource(f"{base.__name__}.{method.name} uses variables of the function that defines it")
        owner = next(cls for cls in base.__mro__ if method.name in vars(cls))
        _import_globals(method, function, imports)
        text = _explicit_super(text, method, owner, imports)
    return text


def _import(cls: type) -> str:
    module = sys.modules.get(cls.__module__)
    if cls.__module__ == "__main__" or getattr(module, cls.__qualname__, None) is not cls:
        raise NoSource(f"{cls.__qualname__} of {cls.__module__} cannot be imported by name")
    return f"from {cls.__module__} import {cls.__name__}"


def _import_globals(method: ast.FunctionDef, function: Any, imports: set[str]) -> None:
    """Import what the method's text reads from its module, from that module."""
    for node in ast.walk(method):
        if not isinstance(node, ast.Name) or node.id not in function.__globals__:
            continue
        value = function.__globals__[node.id]
        if isinstance(value, ModuleType) and "." not in value.__name__ and value.__name__ == node.id:
            imports.add(f"import {node.id}")
        else:
            imports.add(f"from {function.__module__} import {node.id}")


def _explicit_super(text: str, method: ast.FunctionDef, owner: type, imports: set[str]) -> str:
    """``super()`` in a copied method means the class it was written in, not the generated one."""
    lines = text.encode().splitlines(keepends=True)
    for node in sorted(_supers(method), key=lambda n: (n.lineno, n.col_offset), reverse=True):
        imports.add(_import(owner))
        self_name = method.args.args[0].arg
        line, end = lines[node.lineno - 1], node.end_col_offset
        lines[node.lineno - 1] = line[: node.col_offset] + f"super({owner.__name__}, {self_name})".encode() + line[end:]
    return b"".join(lines).decode()


def _supers(method: ast.FunctionDef) -> Iterator[ast.Call]:
    for node in ast.walk(method):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "super" and not node.args:
            yield node


def _block_source(cls: type[nn.Module], imports: set[str]) -> str:
    """The block class and what it uses of its file, in the file's order."""
    module = sys.modules[cls.__module__]
    text = inspect.getsource(module)
    tree = ast.parse(text)
    defined: dict[str, ast.stmt] = {}
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            defined[node.name] = node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if isinstance(target, ast.Name):
                defined[target.id] = node
        elif isinstance(node, ast.Import | ast.ImportFrom) and getattr(node, "module", "") != "__future__":
            imports.add(ast.unparse(node))
    wanted, todo = set(), [cls.__name__]
    while todo:
        name = todo.pop()
        if name in defined and name not in wanted:
            wanted.add(name)
            todo += [n.id for n in ast.walk(defined[name]) if isinstance(n, ast.Name)]
    parts = [ast.get_source_segment(text, node) or "" for name, node in defined.items() if name in wanted]
    return "\n\n\n".join(parts) if len(parts) < 2 else _spaced(parts)


def _spaced(parts: list[str]) -> str:
    text = parts[0]
    for part in parts[1:]:
        text += ("\n\n\n" if part.startswith(("class ", "def ")) else "\n") + part
    return text


def _build(base: nn.Module, plan: Plan, imports: set[str]) -> str:
    library, _, name = plan.model.partition(":")
    arguments = f"{{**{plan.model_args!r}, **options}}"
    if library == "timm" and name:
        imports.add("import timm")
        make = f"timm.create_model({name!r}, pretrained=False, **{arguments})"
    elif library == "torchvision" and name:
        imports.add("import torchvision")
        make = f"torchvision.models.get_model({name!r}, weights=None, **{arguments})"
        if "weights_backbone" in inspect.signature(_builder(name)).parameters:
            make = make.replace("weights=None", "weights=None, weights_backbone=None")
    elif name and all(part.isidentifier() for part in (library + "." + name).split(".")):
        imports.add(f"from {library} import {name.partition('.')[0]}")
        make = f"{name}(**{arguments})"
    else:
        text = '''
            def build(model=None):
                """The blocks put into ``model``, a freshly built base model, in place."""
                if model is None:
                    raise TypeError("pass the base model: build(model=...), load(model=...)")
                return insert(model)
        '''
        return textwrap.dedent(text).strip()
    text = f'''
        def build(**options):
            """The base model, freshly built, with the blocks in it; ``options`` go to its constructor."""
            return insert({make})
    '''
    return textwrap.dedent(text).strip()


def _builder(name: str) -> Any:
    import torchvision

    return torchvision.models.get_model_builder(name)
