"""What the tool refuses, by kind. Every message says what was asked, what was found, and how to fix it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SEInjectError(Exception):
    """Base of every refusal; the command line prints its message as one line and exits with 1."""


class LoadError(SEInjectError):
    """The model or its checkpoint could not be had as asked."""


class TraceError(SEInjectError):
    """The model could not be run on the example inputs."""


class CopyError(TraceError):
    """A copy of the model would not be independent of it."""


class RulesError(SEInjectError):
    """The rules are malformed, or they select nothing."""


class PlanMismatchError(SEInjectError):
    """The plan was made for another model, or for another version of its source."""


class SpliceError(SEInjectError):
    """A planned insertion could not be made."""


class VerifyError(SEInjectError):
    """A check after the splice failed; the rewritten model was not handed out."""


class WriteError(SEInjectError):
    """The output could not be written, or was refused before anything was."""


def closest(name: str, known: Iterable[str], n: int = 3) -> str:
    """``" Did you mean 'a' or 'b'?"`` for the nearest known names, or the whole short list."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=n, cutoff=0.5)
    if near:
        return " Did you mean " + " or ".join(repr(hit) for hit in near) + "?"
    if len(names) <= 12:
        return " Known: " + ", ".join(names) + "."
    return ""


def sentence(error: BaseException) -> str:
    """What an error says, with one mark at its end."""
    text = str(error).rstrip(".")
    return text if text.endswith("?") else f"{text}."
