"""The folders of ``se_inject``, one upon another, and which imports from which: ``pictures/stack.svg``.

The order is that of the contract in setup.cfg, the imports are those of the code, and the sentences those of the
folders' docstrings; ``make docs`` draws it anew.
"""

from __future__ import annotations

import ast
import configparser
from html import escape
from pathlib import Path

import grimp

from docs.places import STYLE

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "se_inject"
TOP, STEP, BOX, HIGH = 12, 34, 104, 24
EDGE, WIDE = 196, 1000  # where the boxes begin, and the whole
BASES = 2  # the lowest layers are for everyone: their imports are not drawn
LOOK = (
    "<style>text.left { text-anchor: start } text.soft { fill: var(--soft) } "
    ".arc { fill: none; stroke: var(--accent); stroke-width: 1; opacity: .45 }</style>"
)


def layers() -> list[list[str]]:
    """What each layer holds, from the top: ``[["__main__"], ["cli"], ...]``."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    lines = config["importlinter:contract:stack"]["layers"].split("\n")
    return [[name.strip() for name in line.split(":")] for line in lines if line.strip()]


def imports(names: list[str]) -> list[tuple[str, str]]:
    """Pairs of folders, of which the first imports from the second; inside functions and for types alone counts too."""
    graph = grimp.build_graph("se_inject", exclude_type_checking_imports=False, cache_dir=None)
    found = [(a, b) for a in names for b in names if a != b]
    return [
        (a, b)
        for a, b in found
        if graph.direct_import_exists(importer=f"se_inject.{a}", imported=f"se_inject.{b}", as_packages=True)
    ]


def sentence(name: str) -> str:
    """The first line of its docstring."""
    path = PACKAGE / name / "__init__.py"
    text = ast.get_docstring(ast.parse((path if path.exists() else PACKAGE / f"{name}.py").read_text()))
    return (text or "").partition("\n")[0].replace("``", "")


def picture() -> str:
    rows = [layer for layer in layers() if layer != ["__main__"]]
    high = 2 * TOP + HIGH + (len(rows) - 1) * STEP
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDE}" height="{high}" viewBox="0 0 {WIDE} {high}" '
        f'role="img" aria-label="Folders, one upon another, and their imports">'
    )
    middle = {layer[0]: TOP + HIGH / 2 + row * STEP for row, layer in enumerate(rows)}
    drawn = [layer[0] for layer in rows[:-BASES]]
    parts = [_arc(a, b, middle[a], middle[b]) for a, b in imports(drawn)]
    parts += [_row(layer, middle[layer[0]]) for layer in rows]
    return "\n".join((head, STYLE, LOOK, *parts, "</svg>")) + "\n"


def _row(layer: list[str], y: float) -> str:
    if len(layer) > 1:
        text = f'<text class="left" x="{EDGE + 10}" y="{y + 4:g}">{" · ".join(layer)}</text>'
        return f'<g class="box"><rect x="{EDGE}" y="{y - HIGH / 2:g}" width="460" height="{HIGH}" rx="4"/>{text}</g>'
    (name,) = layer
    said = f'<text class="left soft" x="{EDGE + BOX + 12}" y="{y + 4:g}">{escape(sentence(name))}</text>'
    text = f'<text x="{EDGE + BOX / 2:g}" y="{y + 4:g}">{name}</text>'
    return (
        f'<g class="box"><rect x="{EDGE}" y="{y - HIGH / 2:g}" width="{BOX}" height="{HIGH}" rx="4"/>{text}</g>{said}'
    )


def _arc(importer: str, imported: str, y: float, below: float) -> str:
    """To the left of the boxes, the farther the wider; it leaves a box in its lower half and arrives in the upper."""
    out = EDGE - 14 - (below - y) * 0.42
    line = f"M{EDGE} {y + 5:g}C{out:g} {y + 5:g} {out:g} {below - 5:g} {EDGE} {below - 5:g}"
    return f'<path class="arc" d="{line}"><title>{importer} imports from {imported}</title></path>'
