"""What a person sees while a command runs and when it is done: rich tables on standard output, progress on standard
error, colours only on a terminal and never with NO_COLOR. What models and libraries print meanwhile goes to standard
error, so that standard output holds the result and nothing else."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from se_inject.types import Report

if TYPE_CHECKING:
    from rich.console import Console


class Terminal:
    """A context that shows progress, when standard error is a terminal, and prints results unless ``quiet``; with
    ``as_json`` their data alone, in any case."""

    def __init__(self, *, quiet: bool = False, as_json: bool = False, steps: int = 1) -> None:
        from rich.console import Console  # here, since the names of options are told without it
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        self.quiet, self.as_json = quiet, as_json
        self.results = not (quiet or as_json)
        self.out = Console(file=sys.stdout, highlight=False)
        self.err = Console(file=sys.stderr, highlight=False)
        self.progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[amount]}"),
            TimeElapsedColumn(),
            console=self.err,
            transient=True,
            disable=quiet or not sys.stderr.isatty(),
        )
        self.task = self.progress.add_task("start", total=steps, amount="")
        self.steps = 0
        self.began = time.monotonic()
        self.others = contextlib.redirect_stdout(io.StringIO() if quiet else sys.stderr)
        if self.progress.disable:
            os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

    def __enter__(self) -> Terminal:
        self.others.__enter__()
        self.progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.progress.stop()
        self.others.__exit__(None, None, None)

    def step(self, name: str) -> None:
        self.progress.update(self.task, description=name, completed=self.steps, amount="")
        self.steps += 1
        self.began = time.monotonic()

    def seconds(self) -> float:
        """Since the step began."""
        return time.monotonic() - self.began

    def advance(self, done: int, total: int, unit: str) -> None:
        """How far the step is, with its rate; ``unit`` is what is counted, ``B`` for bytes."""
        amount = amount_text(done, total, unit, self.seconds())
        self.progress.update(self.task, completed=self.steps - 1 + done / max(total, 1), amount=amount)

    def line(self, text: str) -> None:
        if self.results:
            self.progress.stop()
            self.out.print(_text(text), soft_wrap=True)

    def json(self, data: Any) -> None:
        """The result as JSON, where that is asked for; a text is JSON already."""
        if self.as_json:
            self.write(data if isinstance(data, str) else json.dumps(data, indent=1) + "\n")

    def write(self, text: str) -> None:
        self.progress.stop()
        click.echo(text, file=self.out.file, nl=False)

    def warn(self, text: str) -> None:
        if not self.quiet:
            self.err.print(_text(text, "yellow"), soft_wrap=True)

    def note(self, text: str) -> None:
        """What is of this run alone, and no result."""
        if not self.quiet:
            self.err.print(_text(text, "dim"))

    def show(self, render: Callable[..., None], what: Any, **options: Any) -> None:
        """A result, by a function that prints it on a console."""
        if self.results:
            self.progress.stop()
            render(what, self.out, **options)

    def report(self, found: Report, output: Path | None, *, show_all: bool = False) -> None:
        from se_inject.report.text import to_terminal

        self.show(to_terminal, found, all=show_all)
        if output is not None:
            self.line(f"Written to {output}: {', '.join(sorted(path.name for path in output.iterdir()))}")

    def table(self, rows: list[dict[str, str]]) -> None:
        """A list when there is one column, a table when there are two, else a paragraph for each row."""
        columns = list(rows[0])
        if len(columns) == 1:
            for row in rows:
                self.line(row[columns[0]])
        elif len(columns) == 2:
            self.show(_two_columns, rows)
        else:
            for i, row in enumerate(rows):
                if i:
                    self.line("")
                self.table([{columns[0]: name, row[columns[0]]: row[name]} for name in columns[1:]])


def _text(text: str, style: str = "") -> Any:
    from rich.text import Text

    return Text(text, style)


def _two_columns(rows: list[dict[str, str]], console: Console) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name, style in zip(rows[0], ("bold", ""), strict=True):
        table.add_column(name, overflow="fold", style=style)
    for row in rows:
        table.add_row(*map(_text, row.values()))
    console.print(table)


def amount_text(done: int, total: int, unit: str, seconds: float) -> str:
    """``12 of 40 models, 3.1/s, 0:00:09 left``; bytes in the units people read. No rate before there is one."""
    from rich.filesize import decimal

    rate = done / seconds if seconds > 0 else 0.0
    if unit == "B":
        text, speed = f"{decimal(done)} of {decimal(total)}", decimal(int(rate))
    else:
        text, speed = f"{done:,} of {total:,} {unit}", f"{rate:,.1f}" if rate < 100 else f"{rate:,.0f}"
    if not done or not rate:
        return text
    left = timedelta(seconds=round((total - done) / rate))
    return f"{text}, {speed}/s, {left} left"
