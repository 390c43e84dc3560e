"""What an entry of a manifest takes, a line each in ``COLUMNS``, and how the values are read."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, get_args

from se_inject.commands.request import ModelRequest, sides
from se_inject.errors import RulesError
from se_inject.hashing import parse_sha256
from se_inject.models.request import WeightsRequest, parse_model_args
from se_inject.rules.schema import flag, integer, one_of, text
from se_inject.types import InputKind


@dataclass(frozen=True)
class Column:
    """How the value of a column is read (raises ``ValueError`` or a refusal), and a sentence for the reference."""

    read: Callable[[Any], Any]
    doc: str


def _said(value: Any) -> Any:
    """A text, which is all that a cell of a CSV file can hold, as what it says: true, false, a number, or itself."""
    if not isinstance(value, str):
        return value
    word = value.strip()
    return int(word) if word.isdecimal() else {"true": True, "false": False}.get(word.lower(), value)


def _text(value: Any) -> str:
    return text(value.strip() if isinstance(value, str) else value)


def _texts(value: Any) -> tuple[str, ...]:
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, list):
        raise ValueError(f"takes a text or a list of texts, found {value!r}")
    return tuple(_text(part) for part in parts)


def _flag(value: Any) -> bool:
    return flag(_said(value))


def _sides(value: Any) -> tuple[int, ...]:
    size = ",".join(map(str, value)) if isinstance(value, list) else _text(value)
    try:
        return sides(size)
    except RulesError as error:  # it speaks of an option
        raise ValueError(f"{size!r}: expected whole numbers above 0, such as 3,224,224") from error


def _kind(value: Any) -> str:
    return one_of(get_args(InputKind))(_text(value))


def _args(value: Any) -> dict[str, Any]:
    pairs = shlex.split(value) if isinstance(value, str) else []
    if not isinstance(value, str | dict):
        raise ValueError(f"takes a mapping, or num_classes=10 in_chans=1, found {value!r}")
    if isinstance(value, dict):
        pairs = [f"{name}={item!r}" for name, item in value.items()]
    return dict(sorted(parse_model_args(pairs).items()))


DOCS = {f.name: f.metadata["doc"] for part in (WeightsRequest, ModelRequest) for f in fields(part) if f.metadata}

COLUMNS = {
    "model": Column(_text, "`timm:NAME`, `torchvision:NAME`, or `pkg.module:factory` if `--factory` allows it"),
    "model_args": Column(_args, "constructor options: a mapping, or `num_classes=10 in_chans=1`"),
    "checkpoint": Column(_text, "a file, a folder, or a glob, which stands for one entry for each file"),
    "sha256": Column(lambda value: parse_sha256(_text(value)), DOCS["sha256"]),
    "pretrained": Column(_flag, DOCS["pretrained"]),
    "random_init": Column(_flag, DOCS["random_init"]),
    "allow_missing": Column(_texts, "globs of keys that the checkpoint may lack"),
    "ema": Column(_flag, DOCS["ema"]),
    "input_size": Column(_sides, "`3,224,224`; default: the model's own configuration"),
    "input_kind": Column(_kind, "`batch`, `list` or `pair`; default: what the model takes"),
    "rules": Column(lambda value: value, "a mapping, the name of a placement or preset, or a YAML file"),
    "formats": Column(_texts, "`safetensors,onnx`, ...; default `safetensors`"),
    "seed": Column(lambda value: integer(0)(_said(value)), DOCS["seed"]),
    "name": Column(_text, "of its folder, `{folder}-{stem}`, say; default `{stem}`, or `{model}` without a checkpoint"),
}  # fmt: skip
