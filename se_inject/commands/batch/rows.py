"""The file of a manifest as rows with their line numbers: YAML, JSON lines, CSV, by the table ``READERS``."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from se_inject.errors import RulesError
from se_inject.json_strict import parse, read_bounded
from se_inject.rules.yaml_file import Loader

MAX_BYTES = 64 << 20


def read_text(path: Path) -> str:
    try:
        return read_bounded(path, MAX_BYTES, RulesError).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RulesError(f"{path}: not UTF-8 text.") from error


def _yaml(text: str, path: Path) -> Iterator[tuple[int, Any]]:
    loader = Loader(text)
    try:
        node = loader.get_single_node()
        if node is not None and not isinstance(node, yaml.SequenceNode):
            raise RulesError(f"{path}: expected a list of entries, each '- model: timm:resnet18'.")
        for item in node.value if node is not None else ():
            yield item.start_mark.line + 1, loader.construct_object(item, deep=True)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise RulesError(f"{path}: not the YAML of a manifest: {' '.join(str(error).split())}") from error
    finally:
        loader.dispose()


def _json_lines(text: str, path: Path) -> Iterator[tuple[int, Any]]:
    for line, row in enumerate(text.splitlines(), 1):
        if row.strip():
            try:
                yield line, parse(row)
            except (ValueError, RecursionError) as error:
                raise RulesError(f"{path}: line {line} is not JSON: {error}.") from error


def _csv(text: str, path: Path) -> Iterator[tuple[int, Any]]:
    rows = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        columns = rows.fieldnames or []
        if twice := next((name for name in columns if columns.count(name) > 1), None):
            raise RulesError(f"{path}: the header names the column {twice!r} twice.")
        for row in rows:
            if None in row or None in row.values():
                raise RulesError(f"{path}: line {rows.line_num} has not as many cells as the header has columns.")
            yield rows.line_num, row
    except csv.Error as error:
        raise RulesError(f"{path}: line {rows.line_num} is not CSV: {error}.") from error


READERS: dict[str, Callable[[str, Path], Iterator[tuple[int, Any]]]] = {
    ".yaml": _yaml,
    ".yml": _yaml,
    ".jsonl": _json_lines,
    ".csv": _csv,
}
