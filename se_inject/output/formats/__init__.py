"""The formats in which a rewritten model is written: one file for each, one line in ``names.FORMATS``.

A file says what files there are (``write``), compares a written one with the model (``check``), and ends in ``FORMAT``.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module

from se_inject.errors import WriteError, closest
from se_inject.output import names
from se_inject.output.formats.subject import Content, Format, Subject

FORMATS: dict[str, Format] = {name: import_module(f"{__name__}.{file}").FORMAT for name, file in names.FORMATS.items()}


def format_names(formats: str | Iterable[str]) -> tuple[str, ...]:
    """The names of formats, from a list or from ``safetensors,onnx``, each once. Raises ``WriteError``."""
    given = formats.split(",") if isinstance(formats, str) else formats
    found = tuple(dict.fromkeys(name.strip() for name in given))
    for name in found:
        if name not in FORMATS:
            raise WriteError(f"format {name!r} is unknown.{closest(name, FORMATS)}")
    return found


__all__ = ["FORMATS", "Content", "Format", "Subject", "format_names"]
