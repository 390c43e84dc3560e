"""`docs/ecosystem.md`: the rows and cells are those of the tests, which hold them to what they say."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from importlib import metadata
from types import ModuleType
from typing import Any

from tests.ecosystem import (
    test_compile,
    test_distributed,
    test_export,
    test_inference,
    test_modules,
    test_originals,
    test_threads,
    test_timm,
    test_training,
    test_wrappers,
)
from tests.ecosystem.cases import MODELS, Cell

FILES = (
    test_modules, test_timm, test_compile, test_export, test_inference, test_training, test_distributed, test_threads,
    test_originals, test_wrappers,
)  # fmt: skip
LIBRARIES = (
    "torch", "torchvision", "timm", "torchao", "peft", "accelerate", "pytorch-lightning", "onnx", "onnxruntime",
    "safetensors",
)  # fmt: skip
HEAD = """# What the ecosystem does with an injected model

Every cell is a test of `tests/ecosystem/`: the model, injected by the default rules, with open gates and batch norms
that do something, run through what the row says. Each gate moves the output by more than the bounds of the rows, so a
row that compares outputs shows that no block was lost.

- **yes**: it holds.
- **as base**: it does not, and the model without blocks fails in the same way. Both are strict xfails: the cell changes
  when the library does.
- **none**: the model has nothing of the kind. Empty: not run, the other models show what there is to see.

The models are torchvision's `resnet50` and timm's `resnet18`, `efficientnet_lite0`, `convnext_atto` and `regnetx_002`,
their stages cut to one or two blocks.
"""
RECORD = "`EXPECTTEST_ACCEPT=1 python -m pytest tests/ecosystem/test_matrix.py`"


def render() -> str:
    """The whole file."""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in LIBRARIES)
    recorded = textwrap.fill(
        f"Recorded with {versions}, by {RECORD}.", 120, break_on_hyphens=False, break_long_words=False
    )
    return "\n".join([HEAD, recorded, "", *table()])


def table() -> list[str]:
    """The lines of the tables and the notes under them."""
    notes: dict[str, int] = {}
    lines = []
    for file in FILES:
        title = _sentence(file)
        lines += [f"## {title[0].upper()}{title[1:]}", ""]
        lines += [f"| | {' | '.join(MODELS)} |", "|---" * (1 + len(MODELS)) + "|"]
        for test in rows(file):
            cells = [_cell(test.cells.get(name, Cell("")), notes) for name in MODELS]
            lines.append(f"| {_sentence(test)} | {' | '.join(cells)} |")
        lines.append("")
        for test in vars(file).values():
            if names := getattr(test, "others", ()):
                lines += [textwrap.fill(f"{_sentence(test)}: {', '.join(names)}.", 120), ""]
    return [*lines, *(f"{number}. {reason}" for reason, number in notes.items()), ""]


def rows(file: ModuleType) -> Iterator[Any]:
    """The tests of a file that are rows, in its order."""
    return (value for value in vars(file).values() if hasattr(value, "cells"))


def _cell(cell: Cell, notes: dict[str, int]) -> str:
    if not cell.reason:
        return cell.text
    number = notes.setdefault(cell.reason, len(notes) + 1)
    return f"{cell.text} ({number})"


def _sentence(documented: Any) -> str:
    """The docstring in one line, without the name of the check."""
    words = " ".join((documented.__doc__ or "").split()).rstrip(".")
    return re.sub(r"^E\d( and E\d)?: ", "", words)
