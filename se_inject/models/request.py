"""Which model, with which weights: what ``load_model`` is asked for. Torch is not needed to ask."""

from __future__ import annotations

import ast
import dataclasses
import keyword
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from se_inject.errors import LoadError


def option(default: Any, doc: str, metavar: str = "", flag: str = "") -> Any:
    """A field of a request, from which its option of the command line is made: ``--name-of-field``, or ``flag``."""
    metadata = {"doc": doc, "metavar": metavar or None, "flag": flag}
    if default is dict:
        return dataclasses.field(default_factory=dict, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def flag(field: dataclasses.Field[Any]) -> str:
    """The option of a field: ``--allow-missing``."""
    return field.metadata["flag"] or f"--{field.name.replace('_', '-')}"


@dataclass(frozen=True)
class WeightsRequest:
    """A model, and where its weights come from: one of ``pretrained``, ``checkpoint`` and ``random_init``."""

    model: str  # timm:NAME, torchvision:NAME or pkg.module:factory
    model_args: Mapping[str, Any] = option(dict, "Constructor option; repeatable.", "KEY=VALUE", "--model-arg")
    pretrained: bool = option(False, "Weights that the library downloads.")
    checkpoint: Path | None = option(None, "Weights: a torch or safetensors file, an index of shards, or a folder.")
    sha256: str | None = option(None, "Hash that the checkpoint must have, before it is read.", "HEX")
    random_init: bool = option(False, "Random weights, on purpose.")
    allow_missing: tuple[str, ...] = option((), "Keys the checkpoint may lack; repeatable.", "GLOB")
    ema: bool | None = option(None, "Averaged or raw weights, where a checkpoint has both.")
    allow_pickle: bool = option(False, "Run code that the checkpoint names. Only for files you made.")


def parse_model_args(pairs: Iterable[str], what: str = "model arg", example: str = "num_classes=10") -> dict[str, Any]:
    """Constructor arguments from ``name=value`` texts; ``what`` they are called in a refusal, with an ``example``.

    A value is read as a Python literal (``10``, ``True``, ``(3, 224)``, ``None``), else as a string. Raises
    ``LoadError`` for a text without ``=``, an impossible or repeated name, ``true``/``false``, and an open bracket.

    >>> parse_model_args(["num_classes=10", "model_name=efficientnet-lite0"])
    {'num_classes': 10, 'model_name': 'efficientnet-lite0'}
    """
    args: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise LoadError(f"{what} {pair!r}: expected NAME=VALUE, such as {example}.")
        if not name.isidentifier() or keyword.iskeyword(name):
            raise LoadError(f"{what} {pair!r}: {name!r} is not the name of an argument; write NAME=VALUE.")
        if name in args:
            raise LoadError(f"{what} {name!r} is given twice.")
        args[name] = _literal(f"{what} {name}", name, text.strip())
    return args


def _literal(what: str, name: str, text: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        if text.lower() in ("true", "false"):
            raise LoadError(f"{what}={text}: write {name}={text.capitalize()}.") from None
        if text[:1] in tuple("([{'\""):
            raise LoadError(f"{what}={text}: not a Python literal; check brackets and quotes.") from None
        return text
