"""The formats in which a rewritten model is written: one file for each, one line in the table.

A new one needs a function that says what files there are, one that compares a written file with the model, and a line.
"""

from __future__ import annotations

from collections.abc import Iterable

from se_inject.errors import WriteError, closest
from se_inject.output.formats import adapter, onnxfile, program, timmfolder, whole
from se_inject.output.formats.subject import Content, Format, Subject
from se_inject.output.weights import INDEX, WHOLE

FORMATS = {
    "safetensors": Format("all weights, in one file or in shards", (WHOLE, INDEX), whole.write, whole.check),
    "adapter": Format("the new weights alone, for a fresh base", (adapter.NAME,), adapter.write, adapter.check),
    "pt2": Format("a torch.export program", (program.NAME,), program.write, program.check, program.inspect),
    "onnx": Format("one file for ONNX Runtime", (onnxfile.NAME,), onnxfile.write, onnxfile.check, onnxfile.inspect),
    "timm": Format(
        "a folder for timm.create_model", (timmfolder.CONFIG,), timmfolder.write, timmfolder.check, timmfolder.inspect
    ),
}


def format_names(formats: str | Iterable[str]) -> tuple[str, ...]:
    """The names of formats, from a list or from ``safetensors,onnx``, each once. Raises ``WriteError``."""
    names = formats.split(",") if isinstance(formats, str) else formats
    found = tuple(dict.fromkeys(name.strip() for name in names))
    for name in found:
        if name not in FORMATS:
            raise WriteError(f"format {name!r} is unknown.{closest(name, FORMATS)}")
    return found


__all__ = ["FORMATS", "Content", "Format", "Subject", "format_names"]
