"""``modeling.py``: the rewritten model as code that needs torch and the model's own library, and not this tool.

It carries each generated class with the original method and its one call more, a copy of the block classes, and two
functions: ``build()`` and ``load()``. Names of modules are written as literals and parsed before they are used.
"""

from __future__ import annotations

import ast
import inspect
import keyword
import sys
import textwrap
from typing import Any

from torch import nn

from se_inject.blocks import BLOCKS, find_block
from se_inject.surgery.edit import Edit, edits
from se_inject.surgery.portable import Header, NoSource, bind_class, bind_globals, block_code, class_code
from se_inject.types import REWRITTEN, Decision, Plan

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
CLASSES = {classes}{behind}


def insert(model):
    """Put the blocks into a freshly built base model, in place."""
    for parent, name, block, kwargs in BLOCKS:
        module = model.get_submodule(parent)
        module.__dict__.pop(name, None)
        module.add_module(name, block(**kwargs)){move}
    for path, cls in CLASSES.items():
        model.get_submodule(path).__class__ = cls
    return model


{build}


def read_weights(path=None):
    """The tensors of a safetensors file, or of the shards in an index file; by default those beside this file."""
    names = ("model.safetensors.index.json", "model.safetensors")
    beside = [Path(__file__).parent / name for name in names]
    path = Path(path) if path is not None else next((p for p in beside if p.exists()), beside[-1])
    shards = {{path}}
    if path.suffix == ".json":
        shards = {{path.parent / name for name in json.loads(path.read_text())["weight_map"].values()}}
    state = {{}}
    for shard in sorted(shards):
        with safe_open(str(shard), framework="pt") as file:
            state.update({{key: file.get_tensor(key) for key in file.keys()}})
            aliases = json.loads((file.metadata() or {{}}).get("aliases", "{{}}"))
        state.update({{key: state[name] for key, name in aliases.items()}})
    return state


def load(path=None, **options):
    """The model with its weights, in eval mode; ``path``: as for ``read_weights``; ``options``: as for ``build``."""
    model = build(**options)
    state = read_weights(path)
    dtypes = {{tensor.dtype for tensor in state.values() if tensor.is_floating_point()}}
    if len(dtypes) == 1:  # a half-precision checkpoint makes a half-precision model
        model.to(dtypes.pop())
    for key, tensor in model.state_dict(keep_vars=True).items():
        if key in state and tensor.dtype != state[key].dtype:
            tensor.data = tensor.data.to(state[key].dtype)
    versioned = model.state_dict()  # keeps the versions of its modules, which some ask for
    versioned.clear()
    versioned.update(state)
    model.load_state_dict(versioned)
    return model.eval()
'''


# For what stands in the middle of a Sequential.
BEHIND = """
# path of a new child -> the child of its Sequential that it follows
BEHIND = {}"""
MOVE = """
        names = list(module._modules)[:-1]
        after = BEHIND.get(f"{parent}.{name}".lstrip("."))
        for key in names[names.index(after) + 1 :] if after is not None else ():
            module._modules[key] = module._modules.pop(key)"""


def render(base: nn.Module, plan: Plan) -> str:
    """The text of ``modeling.py`` for ``plan`` on the unchanged model ``base``.

    Raises ``NoSource`` when a class cannot be imported by name, or lives in a graph.
    """
    changes: dict[str, tuple[Edit, ...]] = {}
    behind: list[str] = []
    for decision in plan.insertions:
        carrier = decision.site.carrier
        assert carrier is not None
        if carrier.kind == "sequential_after":
            behind.append(f"{decision.key!r}: {carrier.node!r}")
        if carrier.kind == "graph":
            raise NoSource("the model is a GraphModule: its code is its graph, which no library holds")
        if carrier.kind in REWRITTEN:
            changes[carrier.path] = (*changes.get(carrier.path, ()), *edits(carrier))
    header = Header()
    used = sorted({d.block for d in plan.insertions})
    blocks = block_code([BLOCKS[name].module for name in used if name in BLOCKS], header)
    for name in used:
        if name not in BLOCKS:  # a class of the user's own: imported, as the model's library is
            bind_class(find_block(name).module, header)
    build = _build(plan, header)
    classes = {path: (type(base.get_submodule(path)), change) for path, change in changes.items()}
    for cls, edit in dict.fromkeys(classes.values()):
        bind_class(cls, header)
        bind_globals(cls, edit, header)
    names: dict[tuple[type, tuple[Edit, ...]], str] = {}
    for key in dict.fromkeys(classes.values()):  # after all imports, so that no import takes one of these names
        names[key] = header.free(f"SE{key[0].__name__}")
        header.bind(names[key], key)
    parts = [class_code(cls, edit, name) for (cls, edit), name in names.items()]
    origins = sorted({cls.__module__.partition(".")[0] for cls, _ in names}) or [
        type(base).__module__.partition(".")[0]
    ]
    footer = FOOTER.format(
        blocks=_rows([_row(d) for d in plan.insertions], "[]"),
        classes=_rows([f"{path!r}: {names[key]}" for path, key in classes.items()], "{}"),
        build=build,
        behind=BEHIND.format(_rows(behind, "{}")) if behind else "",
        move=MOVE if behind else "",
    )
    top = HEADER.format(
        title=f"{_comment(type(base).__name__)} with {len(plan.insertions)} attention blocks.",
        model=_comment(plan.model),
        origins=", ".join(map(_comment, origins)),
        imports=header,
    )
    text = top + blocks + "\n\n\n" + "".join(part + "\n\n" for part in parts) + footer.lstrip("\n")
    try:
        ast.parse(text)
    except SyntaxError as error:  # a name that is no identifier: better no file than a wrong one
        raise NoSource(f"the code would not parse ({error.msg})") from error
    return text


def _row(decision: Decision) -> str:
    parent, _, name = decision.key.rpartition(".")
    return f"({parent!r}, {name!r}, {find_block(decision.block).module.__name__}, {decision.kwargs!r})"


def _rows(rows: list[str], brackets: str) -> str:
    if not rows:
        return brackets
    return brackets[0] + "\n" + "".join(f"    {row},\n" for row in rows) + brackets[1]


def _comment(text: str) -> str:
    return ascii(text)[1:-1].replace('"', "'")


def _build(plan: Plan, header: Header) -> str:
    library, _, name = plan.model.partition(":")
    arguments = f"{{**{plan.model_args!r}, **options}}"
    if library == "timm" and name:
        header.bind("timm", sys.modules.get("timm"), "import timm")
        make = f"timm.create_model({name!r}, pretrained=False, **{arguments})"
    elif library == "torchvision" and name:
        header.bind("torchvision", sys.modules.get("torchvision"), "import torchvision")
        make = f"torchvision.models.get_model({name!r}, weights=None, **{arguments})"
        if "weights_backbone" in inspect.signature(_builder(name)).parameters:
            make = make.replace("weights=None", "weights=None, weights_backbone=None")
    elif name and all(part.isidentifier() and not keyword.iskeyword(part) for part in f"{library}.{name}".split(".")):
        first = name.partition(".")[0]
        local = header.free(first)  # a factory may well be called build, as the function below is
        alias = "" if local == first else f" as {local}"
        header.bind(local, getattr(sys.modules.get(library), first, None), f"from {library} import {first}{alias}")
        make = f"{local}{name.removeprefix(first)}(**{arguments})"
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
