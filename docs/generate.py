"""Fills what the pages of this folder take from the code, and draws the placements: ``python -m docs.generate``.

A page holds its regions between ``<!-- generated: NAME -->`` and ``<!-- end -->``; what stands around them is written
by hand. ``tests/docs/test_docs.py`` checks that every page is what this script makes of it.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from click.testing import CliRunner

import se_inject
from docs import places
from se_inject import types
from se_inject.blocks import BLOCKS
from se_inject.blocks.block import Block
from se_inject.blocks.make import make_block
from se_inject.cli import main as command_line
from se_inject.commands.batch.columns import COLUMNS
from se_inject.rules.presets import PRESETS
from se_inject.rules.schema import FIELDS
from se_inject.search.placements import PLACEMENTS, sentence

FOLDER = Path(__file__).parent
WIDTHS = (64, 256, 2048)  # channels at which a block's parameters are counted
# What JSON Schema calls a type -> what a reader does.
WORDS = {"string": "text", "array": "list", "object": "mapping", "integer": "whole number", "boolean": "true or false"}


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def fence(kind: str, text: str) -> str:
    return f"```{kind}\n{text.strip(chr(10))}\n```"


# -- batch.md -----------------------------------------------------------------------------------------------------
def columns() -> str:
    """One row for each column of a manifest."""
    return table(("column", "holds"), ((f"`{name}`", column.doc) for name, column in COLUMNS.items()))


# -- rules.md -----------------------------------------------------------------------------------------------------
def keys() -> str:
    """One row for each key of the rules: what it takes, and its sentence."""
    rows = [
        (f"`{name}`", _takes(field.schema), field.doc + " At the top level only." * field.top_only)
        for name, field in FIELDS.items()
    ]
    return table(("key", "takes", "meaning"), rows)


def _takes(schema: dict[str, Any]) -> str:
    known = schema.get("enum") or schema.get("items", {}).get("enum")
    if known:
        return ", ".join(f"`{value}`" for value in known) + (", or a list" if "items" in schema else "")
    names = {
        "string": "text",
        "array": "list",
        "object": "mapping",
        "integer": "whole number",
        "boolean": "true, false",
    }
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    return " or ".join(names.get(kind, kind) for kind in kinds)


def presets() -> str:
    """Each preset with its source and its rules as YAML."""
    parts = []
    for name, preset in PRESETS.items():
        rules = yaml.safe_dump(preset.rules, sort_keys=False, default_flow_style=None, width=100)
        parts.append(f"### {name}\n\n{preset.selects[0].upper()}{preset.selects[1:]}. {preset.paper}.")
        parts.append(fence("yaml", rules))
    return "\n\n".join(parts)


def placements() -> str:
    """The sentence of each placement."""
    return table(("placement", "where"), [(f"`{name}`", sentence(name)) for name in PLACEMENTS])


# -- blocks.md ----------------------------------------------------------------------------------------------------
def blocks() -> str:
    """Each block: equations and source, what it takes, and what it becomes."""
    return "\n\n".join(_block(name, block) for name, block in BLOCKS.items())


def _block(name: str, block: Block) -> str:
    title, _, text = inspect.getdoc(inspect.getmodule(block.module)).partition("\n")
    made = [make_block(places.decision(name, width), 0, None) for width in WIDTHS]
    counts = [f"{sum(p.numel() for p in module.parameters()):,}" for module in made]
    arguments = ", ".join(f"{key}={value!r}" for key, value in places.decision(name, 256).kwargs.items())
    return "\n\n".join(
        (
            f"## {name}",
            title.rstrip("."),
            _prose(text),
            f"Starts: {_listed(block.inits)}. Layouts: {_listed(block.layouts)}.",
            table(("option", ""), [(f"`{option}`", doc) for option, doc in block.options.items()]),
            f"At {_numbers(WIDTHS)} channels it has {_numbers(counts)} parameters with the default options. At 256:",
            fence("python", f"{block.module.__name__}({arguments})"),
        )
    )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _numbers(values: Iterable[Any]) -> str:
    *most, last = map(str, values)
    return f"{', '.join(most)} and {last}"


def _prose(text: str) -> str:
    """A docstring as Markdown: indented paragraphs and examples become fences, double backticks single ones."""
    parts = []
    for part in re.split(r"\n\s*\n", text.strip("\n")):
        if part.startswith("    ") or part.startswith(">>>"):
            kind = "python" if part.startswith(">>>") else "text"
            parts.append(fence(kind, textwrap.dedent(part).replace("``", "")))
        else:
            parts.append(part.replace("``", "`"))
    return "\n\n".join(parts)


# -- api.md -------------------------------------------------------------------------------------------------------
def functions() -> str:
    return "\n\n".join(
        f"### {name}\n\n{fence('python', _signature(item))}\n\n{_prose(inspect.getdoc(item))}"
        for name, item in _public().items()
        if inspect.isfunction(item)
    )


def data() -> str:
    """The dataclasses of the index, then those that stand in their fields."""
    found = [item for item in _public().values() if inspect.isclass(item) and not issubclass(item, Exception)]
    inside = ("Decision", "Site", "Carrier", "Position", "InputSpec", "Argument", "SiteCost", "Check", "Rewrite",
              "GraphNode", "Artifact", "Baseline", "Pruned")  # fmt: skip
    return "\n\n".join(map(_data, (*found, *(getattr(types, name) for name in inside))))


def errors() -> str:
    found = [item for item in _public().values() if inspect.isclass(item) and issubclass(item, Exception)]
    rows = [(f"`{item.__name__}`", f"`{item.__base__.__name__}`", _flat(item)) for item in found]
    return table(("error", "is a", "raised"), rows)


def _public() -> dict[str, Any]:
    """What the index holds, in its order."""
    return {name: getattr(se_inject, name) for name in se_inject._INDEX}


def _flat(item: Any) -> str:
    return " ".join(inspect.getdoc(item).replace("``", "`").split())


def _signature(function: Any) -> str:
    """As it stands in the source: with its annotations, without its body."""
    source = textwrap.dedent(inspect.getsource(function))
    return source[: source.index('"""')].rstrip().removesuffix(":")


def _data(cls: type) -> str:
    source = inspect.getsource(cls)
    lines, body = source.splitlines(), ast.parse(source).body[0].body  # type: ignore[attr-defined]
    fields = [
        textwrap.dedent("\n".join(lines[n.lineno - 1 : n.end_lineno])) for n in body if isinstance(n, ast.AnnAssign)
    ]
    known = [
        node for node in body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_") and node.returns
    ]
    properties = [f"`{node.name}` ({ast.unparse(node.returns)})" for node in known if node.decorator_list]
    parts = [f"### {cls.__name__}", _prose(inspect.getdoc(cls)), fence("python", "\n".join(fields))]
    parts += [f"Properties: {', '.join(properties)}."] * bool(properties)
    for method in (getattr(cls, node.name) for node in known if not node.decorator_list):
        parts += [fence("python", _signature(method)), _prose(inspect.getdoc(method))]
    return "\n\n".join(parts)


# -- cli.md -------------------------------------------------------------------------------------------------------
def commands() -> str:
    """What ``--help`` says, of the program and of each command."""
    return "\n\n".join(
        f"## {' '.join(('se-inject', *words))}\n\n{fence('text', _help(words))}"
        for words in ((), *((name,) for name in command_line.commands))
    )


def _help(words: Sequence[str]) -> str:
    result = CliRunner().invoke(command_line, [*words, "--help"], prog_name="se-inject", terminal_width=100)
    return "\n".join(line.rstrip() for line in result.output.splitlines())


# -----------------------------------------------------------------------------------------------------------------
REGIONS: dict[str, Callable[[], str]] = {
    "columns": columns,
    "keys": keys,
    "presets": presets,
    "placements": placements,
    "blocks": blocks,
    "functions": functions,
    "data": data,
    "errors": errors,
    "commands": commands,
}
REGION = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.S)


def fill(page: str) -> str:
    """The page with every region made anew."""
    return REGION.sub(lambda found: f"{found[1]}\n{REGIONS[found[2]]()}\n\n{found[3]}", page)


def main() -> None:
    for path in sorted(FOLDER.glob("*.md")):
        path.write_text(fill(path.read_text()))
    for name, picture in places.pictures():
        (FOLDER / "pictures" / name).write_text(picture)


if __name__ == "__main__":
    main()
