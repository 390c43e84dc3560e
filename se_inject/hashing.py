"""The hash of a file, by which outputs and inputs are recognised."""

from __future__ import annotations

import os
import re


def sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes, in hexadecimal; the file is read in pieces."""
    import hashlib

    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def parse_sha256(text: str) -> str:
    """The hash in ``text``, in small letters. Raises ``ValueError``."""
    if not re.fullmatch(r"[0-9a-fA-F]{64}", text.strip()):
        raise ValueError(f"{text!r} is no SHA-256: expected 64 hexadecimal digits, as sha256sum prints them")
    return text.strip().lower()
