"""JSON from a file that is not trusted: of a bounded size, each key once, every number a number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from se_inject.errors import LoadError

MAX_JSON = 64 << 20  # bytes


def read_json(path: Path) -> Any:
    """JSON of a bounded size, without NaN and duplicate keys. Raises ``LoadError``."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a key stands twice")
        return found

    def refuse(name: str) -> Any:
        raise ValueError(f"{name} is no number")

    try:
        with path.open("rb") as file:
            data = file.read(MAX_JSON + 1)
    except OSError as error:
        raise LoadError(f"{path}: cannot be read ({error.strerror}).") from error
    if len(data) > MAX_JSON:
        raise LoadError(f"{path}: larger than {MAX_JSON >> 20} MiB.")
    try:
        return json.loads(data.decode(), object_pairs_hook=unique, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise LoadError(f"{path}: not JSON of this tool ({error}).") from error
