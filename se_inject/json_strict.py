"""JSON that this tool wrote, read strictly: no key twice, no NaN, no number beyond 64 bits, and of this schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from se_inject.errors import LoadError, SEInjectError
from se_inject.types import SCHEMA_VERSION

MAX_JSON = 16 << 20  # bytes; a plan has about 2,000 for each site
LARGEST = 2**63 - 1


def read_bounded(path: Path, most: int, refusal: type[SEInjectError], hint: str = "") -> bytes:
    """The content of a file of at most ``most`` bytes. Raises ``refusal``."""
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise refusal(f"{path}: cannot be read ({error.strerror}).") from error
    if len(data) > most:
        raise refusal(f"{path}: larger than {most >> 20} MiB{hint}.")
    return data


def read_json(path: Path) -> Any:
    """JSON of a bounded size, without NaN and duplicate keys. Raises ``LoadError``."""
    data = read_bounded(path, MAX_JSON, LoadError)
    try:
        return parse(data.decode())
    except (ValueError, RecursionError) as error:
        raise LoadError(f"{path}: not JSON of this tool ({error}).") from error


def parse(text: str) -> Any:
    """The data in ``text``. Raises ``ValueError`` or ``RecursionError``, each with a line for the user."""
    return json.loads(text, parse_int=_int, parse_constant=_refuse, object_pairs_hook=unique)


def other_schema(data: Any, what: str, again: str) -> str:
    """Why a ``what`` of another schema version cannot be read, and what helps (``again``); empty when it can be."""
    found = data.get("schema") if isinstance(data, dict) else None
    if type(found) is int and found == SCHEMA_VERSION:
        return ""
    newer = "a newer se_inject wrote it: update, or " if type(found) is int and found > SCHEMA_VERSION else ""
    return f"{what} schema {found!r}, this version reads {SCHEMA_VERSION}; {newer}{again}."


def _int(digits: str) -> int:
    if len(digits) > 20 or abs(int(digits)) > LARGEST:
        raise ValueError("a number is too large")
    return int(digits)


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For ``json``: an object in which every key stands once."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found
