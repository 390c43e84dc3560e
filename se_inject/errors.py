"""What the tool refuses, by kind. Every message says what was asked, what was found, and how to fix it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from se_inject.types import Reason


class SEInjectError(Exception):
    """Base of every refusal; the command line prints its message as one line and exits with 1."""

    code = "refused"  # of ``reasons.REASONS``


class LoadError(SEInjectError):
    """The model or its checkpoint could not be had as asked."""

    code = "load"


class TraceError(SEInjectError):
    """The model could not be run on the example inputs."""

    code = "trace"


class CopyError(TraceError):
    """A copy of the model would not be independent of it."""


class RulesError(SEInjectError):
    """The rules are malformed, or they select nothing."""

    code = "rules"


class NothingSelectedError(RulesError):
    """The rules select nothing, for this reason most often."""

    def __init__(self, text: str, reason: Reason) -> None:
        super().__init__(text, reason)
        self.reason, self.code = reason, reason.code

    def __str__(self) -> str:
        return str(self.args[0])


class PlanMismatchError(SEInjectError):
    """The plan was made for another model, or for another version of its source."""

    code = "mismatch"


class SpliceError(SEInjectError):
    """A planned insertion could not be made."""

    code = "splice"


class VerifyError(SEInjectError):
    """A check after the splice failed; the rewritten model was not handed out."""

    code = "verify"


class WriteError(SEInjectError):
    """The output could not be written, or was refused before anything was."""

    code = "write"


def closest(name: str, known: Iterable[str], n: int = 3) -> str:
    """``" Did you mean 'a' or 'b'?"`` for the nearest known names, or the whole short list."""
    names = sorted(known)
    import difflib

    near = difflib.get_close_matches(name, names, n=n, cutoff=0.5)
    if near:
        return " Did you mean " + " or ".join(repr(hit) for hit in near) + "?"
    if len(names) <= 12:
        return " Known: " + ", ".join(names) + "."
    return ""


def one_line(error: BaseException) -> str:
    """Type and first line of an error's text, shortened."""
    text = next(iter(str(error).strip().splitlines()), "")
    import textwrap

    text = textwrap.shorten(text, 160, placeholder=" ...").rstrip(".")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def first_line(error: BaseException) -> str:
    """What an error says, in one line; with its type where that is too little: an empty text, or a mere key."""
    text = next(iter(str(error).strip().splitlines()), "")[:200].rstrip(". ")
    return one_line(error) if not text or isinstance(error, LookupError) else text


def sentence(error: BaseException | Reason) -> str:
    """What an error or a reason says, with one mark at its end."""
    text = str(error).rstrip(".")
    return text if text.endswith("?") else f"{text}."
