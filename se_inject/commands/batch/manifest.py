"""A manifest: which models to convert, one entry a line, in YAML, JSON lines or CSV.

It is data: nothing that it names is imported before the command line allowed it, and no checkpoint in it may run code.
Paths in it are relative to its folder.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from se_inject.commands.batch.columns import COLUMNS
from se_inject.commands.batch.rows import READERS, read_text
from se_inject.commands.batch.summary import SUMMARIES
from se_inject.commands.request import ModelRequest
from se_inject.errors import LoadError, RulesError, SEInjectError, closest, sentence
from se_inject.models.request import WeightsRequest
from se_inject.models.zoos import ZOOS, check_known, known_models, split_spec
from se_inject.output.formats import format_names
from se_inject.output.names import PLAN, REPORT
from se_inject.output.sums import SUMS
from se_inject.rules import schema
from se_inject.rules.schema import Rules
from se_inject.rules.yaml_file import Loader

SHOWN = 5  # lines with mistakes that are named
LONGEST = 200  # bytes of a name; file systems take 255, and a run adds some of its own


@dataclass(frozen=True)
class Entry:
    """One model to convert."""

    line: int  # in the manifest
    name: str  # of its folder in the output
    request: ModelRequest  # its rules are read already
    formats: tuple[str, ...] = ("safetensors",)

    @property
    def model(self) -> str:
        return self.request.weights.model

    @property
    def checkpoint(self) -> Path | None:
        return self.request.weights.checkpoint


def read_manifest(path: Path, *, factories: Collection[str] = (), output: Path | None = None) -> tuple[Entry, ...]:
    """The entries of a manifest, in its order, globs expanded, each with a name of its own.

    ``factories``: ``pkg.module:factory`` or ``pkg.module`` that entries may name. ``output``: where the outputs go; a
    glob does not stand for those that are there. Raises ``RulesError`` that lists the lines with mistakes, before
    anything is done.
    """
    suffix = path.suffix.lower()
    if suffix not in READERS:
        raise RulesError(f"{path}: a manifest is one of {', '.join(READERS)}, by its name.")
    entries: list[Entry] = []
    wrong: list[str] = []
    for line, row in READERS[suffix](read_text(path), path):
        try:
            entries += _entries(line, row, path.parent, factories, output)
        except (ValueError, SEInjectError) as error:
            wrong.append(f"line {line}: {sentence(error)}")
    wrong += [*_unknown(entries), *_taken(entries)]
    if wrong:
        more = [f"And {len(wrong) - SHOWN} more."] if len(wrong) > SHOWN else []
        raise RulesError(f"{path}: {' '.join([*wrong[:SHOWN], *more])}")
    if not entries:
        raise RulesError(f"{path}: no entries; write one a line, such as 'model: timm:resnet18'.")
    return tuple(entries)


def _entries(line: int, row: Any, folder: Path, factories: Collection[str], output: Path | None) -> Iterable[Entry]:
    if not isinstance(row, Mapping):
        raise ValueError(f"expected a mapping of columns to values, found {type(row).__name__}")
    values: dict[str, Any] = {}
    for key, value in row.items():
        if key not in COLUMNS:
            raise ValueError(f"unknown column {key!r}.{closest(str(key), COLUMNS)}")
        if value is None or value == "":
            continue
        try:
            values[key] = COLUMNS[key].read(value)
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from error
    if "model" not in values:
        raise ValueError("no model; write timm:NAME, torchvision:NAME or pkg.module:factory")
    _allowed(values["model"], factories)
    sources = [key for key in ("checkpoint", "pretrained", "random_init") if values.get(key)]
    if len(sources) != 1:
        found = " and ".join(sources) or "none"
        raise ValueError(f"the weights come from one of checkpoint, pretrained, random_init; given: {found}")
    values["rules"] = _rules(values.get("rules"), folder)
    formats = format_names(values.pop("formats", Entry.formats))
    name = values.pop("name", "")
    files = _files(folder, values.pop("checkpoint"), output) if "checkpoint" in values else [None]
    if "sha256" in values and (files == [None] or len(files) > 1):
        raise ValueError(f"sha256 is of one checkpoint, and there are {len([file for file in files if file])}")
    requests = [ModelRequest.of(checkpoint=file, **values) for file in files]
    return [Entry(line, _name(name, request.weights), request, formats) for request in requests]


def _allowed(model: str, factories: Collection[str]) -> None:
    zoo, _ = split_spec(model)
    if zoo not in ZOOS and not {zoo, model} & set(factories):
        raise ValueError(f"{model} is code, which a manifest may not run; allow it with --factory {model}")


def _rules(value: Any, folder: Path) -> Rules:
    """Rules as a file says them: a class that they name as a block is not imported."""
    if isinstance(value, str) and value.lstrip().startswith("{"):  # in a cell of a CSV file
        try:
            value = yaml.load(value, Loader=Loader)
        except (yaml.YAMLError, RecursionError) as error:
            raise ValueError(f"rules: {value!r} is no mapping: {' '.join(str(error).split())}") from error
    if isinstance(value, dict):
        return schema.plain(value, "rules")
    if isinstance(value, str) and Path(value).suffix in schema.SUFFIXES:
        return schema.read(folder / value)
    return schema.read(value)


def _files(folder: Path, text: str, output: Path | None) -> list[Path]:
    """The path, or the files that a glob stands for; with ``**`` in all folders below, and none of our own outputs."""
    if not glob.has_magic(text) or (folder / text).exists():
        return [folder / text]
    found = sorted(
        name for name in glob.glob(text, root_dir=folder, recursive=True) if not _ours(folder / name, output)
    )
    if not found:
        raise ValueError(f"checkpoint: {text!r} matches no file in {folder}")
    return [folder / name for name in found]


def _ours(path: Path, output: Path | None) -> bool:
    """Whether a path is in an output folder that an earlier run of the same command wrote, or is one."""
    if output is None or not path.resolve().is_relative_to(output.resolve()):
        return False
    within = path.resolve().relative_to(output.resolve()).parts
    return bool(within) and all((output / within[0] / file).is_file() for file in (PLAN, REPORT))


def _name(template: str, weights: WeightsRequest) -> str:
    file = weights.checkpoint
    parts = {
        "model": weights.model.rpartition(":")[2],
        "stem": (file.stem if file.suffix else file.name) if file else "",
        "folder": file.absolute().parent.name if file else "",
    }
    name = template or ("{stem}" if file else "{model}")
    for part, text in parts.items():
        name = name.replace(f"{{{part}}}", text)
    name = re.sub(r"[^\w.+@-]+", "-", name).strip("-.")
    if not name or name.casefold() in (*SUMMARIES, SUMS.casefold()) or len(name.encode()) > LONGEST:
        raise ValueError(f"name: {template or name!r} cannot be that of an output folder")
    return name


def _unknown(entries: Iterable[Entry]) -> list[str]:
    """A complaint for every line whose model its library does not have."""
    lines = {entry.line: entry.model for entry in entries if split_spec(entry.model)[0] in ZOOS}
    known = frozenset(known_models()) if lines else frozenset()
    wrong = []
    for line, model in lines.items():
        try:
            check_known(model, known)
        except LoadError as error:
            wrong.append(f"line {line}: {sentence(error)}")
    return wrong


def _taken(entries: Iterable[Entry]) -> list[str]:
    """A complaint for every second entry that writes the same folder; case does not tell folders apart everywhere."""
    first: dict[str, Entry] = {}
    wrong = []
    for entry in entries:
        other = first.setdefault(entry.name.casefold(), entry)
        if other is not entry:
            wrong.append(
                f"line {entry.line}: writes {entry.name!r}, as line {other.line} does; "
                "tell them apart with a name, such as {folder}-{stem}."
            )
    return wrong
