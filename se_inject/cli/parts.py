"""What click lacks: options under headings, refusals as one line, and silence of libraries."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import click

from se_inject.errors import SEInjectError

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class Option(click.Option):
    """An option with the heading under which ``--help`` shows it."""

    def __init__(self, *args: Any, section: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.section = section


class Command(click.Command):
    """Shows its options by section; arguments are in the usage line, and the text says what they are."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in sorted(self.get_params(ctx), key=lambda param: not isinstance(param, Option)):
            record = param.get_help_record(ctx)
            if record is not None and isinstance(param, click.Option):
                sections.setdefault(getattr(param, "section", "Other"), []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)


command = functools.partial(click.command, cls=Command, context_settings=CONTEXT)


class Commands(click.Group):
    """Turns a refusal of the library into one line on standard error and exit code 1."""

    command_class = Command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with undisturbed():
                return super().invoke(ctx)
        except SEInjectError as error:
            message = " ".join(printable(str(error)).split())
            label = "Error" if "NO_COLOR" in os.environ else click.style("Error", fg="red")
            click.echo(f"{label}: {message}", err=True)
            ctx.exit(1)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)  # in the order in which they are used


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Libraries warn and log for their own developers: not among our lines, unless python -W asks for it."""
    logging.getLogger().addHandler(logging.NullHandler())
    with warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.simplefilter("ignore")
        yield


def printable(text: str) -> str:
    """Control characters as escapes: names in models and files are not trusted with the terminal."""
    return "".join(c if c.isprintable() or c in "\n " else c.encode("unicode_escape").decode() for c in text)
