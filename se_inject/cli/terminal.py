"""What a person sees while a command runs and when it is done: rich tables on standard output, progress on standard
error, colours only on a terminal and never with NO_COLOR. What models and libraries print meanwhile goes to standard
error, so that standard output holds the result and nothing else."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from se_inject.types import Check, Plan, Report

if TYPE_CHECKING:
    from se_inject.commands.batch.summary import Row as BatchRow
    from se_inject.commands.sweep.rows import Row as SweepRow
    from se_inject.search.explain import Explanation

STEPS = 8  # of the longest command: load, plan, reference, cost before, splice, cost after, checks, write


class Terminal:
    """A context that shows progress, when standard error is a terminal, and prints ``results`` unless ``quiet``."""

    def __init__(self, *, quiet: bool = False, results: bool = True, steps: int = STEPS) -> None:
        self.quiet = quiet
        self.results = results and not quiet
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

    def advance(self, done: int, total: int, unit: str) -> None:
        """How far the step is, with its rate; ``unit`` is what is counted, ``B`` for bytes."""
        amount = amount_text(done, total, unit, time.monotonic() - self.began)
        self.progress.update(self.task, completed=self.steps - 1 + done / max(total, 1), amount=amount)

    def line(self, text: str) -> None:
        if self.results:
            self._print(Text(text))

    def warn(self, text: str) -> None:
        if not self.quiet:
            self.err.print(Text(text, "yellow"), soft_wrap=True)

    def plan(self, made: Plan, *, show_all: bool = False) -> None:
        from se_inject.report.text import render_plan

        if self.results:
            self.progress.stop()
            render_plan(made, self.out, all=show_all)

    def report(self, found: Report, output: Path | None, *, show_all: bool = False) -> None:
        from se_inject.report.text import to_terminal

        if not self.results:
            return
        self.progress.stop()
        to_terminal(found, self.out, all=show_all)
        if output is not None:
            names = ", ".join(sorted(path.name for path in output.iterdir()))
            self._print(Text(f"Written to {output}: {names}"))

    def checks(self, checks: tuple[Check, ...]) -> None:
        from se_inject.report.text import render_checks

        if self.results:
            self.progress.stop()
            render_checks(checks, self.out)

    def sweep(self, rows: Sequence[SweepRow], *, show_all: bool = False) -> None:
        """The costs; and on standard error, since it is of this run alone, how fast they came."""
        from se_inject.commands.sweep.table import render, speed

        self.progress.stop()
        if self.results:
            render(rows, self.out, all=show_all)
        if not self.quiet:
            self.err.print(Text(speed(rows, time.monotonic() - self.began), "dim"))

    def summary(self, rows: tuple[BatchRow, ...]) -> None:
        from se_inject.commands.batch.summary import failures, headline, to_terminal

        if self.results:
            self.progress.stop()
            to_terminal(rows, self.out)
            self._print(Text(headline(rows)))
        elif self.quiet:  # errors are not quiet
            for line in failures(rows):
                self.err.print(Text(line), soft_wrap=True)

    def explanation(self, found: Explanation) -> None:
        from se_inject.report.explain import render

        if self.results:
            self.progress.stop()
            render(found, self.out)

    def table(self, rows: list[dict[str, str]]) -> None:
        """A list when there is one column, a table when there are two, else a paragraph for each row."""
        if not self.results:
            return
        columns = list(rows[0])
        if len(columns) == 1:
            for row in rows:
                self._print(Text(row[columns[0]]))
            return
        if len(columns) > 2:
            for i, row in enumerate(rows):
                if i:
                    self._print(Text())
                self.table([{columns[0]: name, row[columns[0]]: row[name]} for name in columns[1:]])
            return
        table = Table(box=None, pad_edge=False)
        for i, name in enumerate(rows[0]):
            table.add_column(name, overflow="fold", style="bold" if i == 0 else "")
        for row in rows:
            table.add_row(*(Text(value) for value in row.values()))
        self._print(table)

    def _print(self, what: Any) -> None:
        self.progress.stop()
        self.out.print(what, soft_wrap=isinstance(what, Text))


def amount_text(done: int, total: int, unit: str, seconds: float) -> str:
    """``12 of 40 models, 3.1/s, 0:00:09 left``; bytes in the units people read. No rate before there is one."""
    rate = done / seconds if seconds > 0 else 0.0
    if unit == "B":
        text, speed = f"{decimal(done)} of {decimal(total)}", decimal(int(rate))
    else:
        text, speed = f"{done:,} of {total:,} {unit}", f"{rate:,.1f}" if rate < 100 else f"{rate:,.0f}"
    if not done or not rate:
        return text
    left = timedelta(seconds=round((total - done) / rate))
    return f"{text}, {speed}/s, {left} left"
