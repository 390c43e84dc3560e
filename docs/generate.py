"""Fills tables of the pages from the code, and draws the placements and the stack: ``python -m docs.generate``.

A page holds its regions between ``<!-- generated: NAME -->`` and ``<!-- end -->``; what stands around them is written
by hand. ``tests/docs/test_docs.py`` checks that every page is what this script makes of it.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from docs import places, stack
from se_inject.blocks import BLOCKS
from se_inject.blocks.block import Block
from se_inject.blocks.make import make_block
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


# -----------------------------------------------------------------------------------------------------------------
REGIONS: dict[str, Callable[[], str]] = {
    "columns": columns,
    "keys": keys,
    "presets": presets,
    "placements": placements,
    "blocks": blocks,
}
REGION = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.S)


def fill(page: str) -> str:
    """The page with every region made anew."""
    return REGION.sub(lambda found: f"{found[1]}\n{REGIONS[found[2]]()}\n\n{found[3]}", page)


def main() -> None:
    for path in sorted(FOLDER.glob("*.md")):
        path.write_text(fill(path.read_text()))
    for name, picture in (*places.pictures(), ("stack.svg", stack.picture())):
        (FOLDER / "pictures" / name).write_text(picture)


if __name__ == "__main__":
    main()
