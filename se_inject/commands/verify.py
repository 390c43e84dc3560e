"""``se-inject verify``."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from se_inject.checks import trained
from se_inject.checks.cost import measure
from se_inject.checks.keys import keys
from se_inject.checks.outputs import against_baseline
from se_inject.checks.overhead import overhead
from se_inject.checks.reached import reached
from se_inject.checks.reference import example_of, probe_of
from se_inject.commands.model import Screen, open_folder, trusting
from se_inject.commands.report import read_report
from se_inject.inputs import Inputs, dtype_of
from se_inject.output.folder import formats_in, read_plan
from se_inject.output.formats import FORMATS, Subject
from se_inject.output.names import PLAN, REPORT
from se_inject.output.sums import SUMS, Compared, files_check
from se_inject.output.weights import INDEX, WHOLE, shard_names
from se_inject.types import Check, Plan, Report


def verify(
    folder: Path, base: str | None, model_args: Mapping[str, Any], *, runs: Collection[str] = (), screen: Screen
) -> tuple[Check, ...]:
    """Check an output folder by itself: against the hashes, the probe and the figures that it carries.

    A file is opened when it has the hash that it was written with, and then alone. ``runs``: formats, of ``pt2`` and
    ``onnx``, whose files may be run.
    """
    screen.step("load")
    if not (folder / REPORT).is_file():
        read_report(folder)  # refuses
    files, found = files_check(folder)
    if closed := _closed((REPORT, PLAN), found):
        return files, Check("outputs (eval)", None, closed, "not-opened")
    report = read_report(folder)
    with trusting(folder):
        weights = _weights(folder, found)
        closed = _closed(weights, found)
        if weights and not closed:
            model, made = open_folder(folder, base, model_args)
            probe = probe_of(made, dtype_of(model))
            checks = [files, *_whole(report, model, made, probe, screen)]
            subject = Subject(made, example_of(made, dtype_of(model)) or probe, model, runs=frozenset(runs))
        else:
            made = read_plan(folder / PLAN)
            passed = False if set(weights) & set(found.unlisted) else None
            reason = (closed, "not-opened") if closed else ("no file here holds all weights", "nothing-to-compare")
            checks = [files, Check("outputs (eval)", passed, *reason)]
            subject = Subject(made, probe_of(made, torch.float32), runs=frozenset(runs))
        for name in formats_in(folder):
            if name == "safetensors":  # that is the model itself
                continue
            screen.step(name)
            of_format = _files(folder, name)
            if closed := _closed(of_format, found):
                called = FORMATS[name].markers[0].partition("/")[0]
                passed = False if set(of_format) & set(found.unlisted) else None
                checks.append(Check(called, passed, closed, "not-opened"))
            else:
                checks.append((FORMATS[name].inspect or FORMATS[name].check)(folder, subject))
    return tuple(checks)


def _closed(names: Iterable[str], found: Compared) -> str:
    """Why what needs these files is not checked; empty when each has its hash."""
    wrong = next((name for name in names if name not in found.right), None)
    if wrong is None:
        return ""
    why = "is not listed in" if wrong in found.unlisted else "has not the hash of"
    return f"not opened: {wrong} {why} {SUMS}"


def _weights(folder: Path, found: Compared) -> list[str]:
    """The files that the model is read from; an index is opened when it has its hash."""
    if INDEX in found.right or (folder / WHOLE).is_file():
        return shard_names(folder)
    return [INDEX] if (folder / INDEX).is_file() else []


def _files(folder: Path, name: str) -> list[str]:
    """The files of a format: one, or all in a folder of its own."""
    marker = next(marker for marker in FORMATS[name].markers if (folder / marker).is_file())
    within = (folder / marker).parent
    if within == folder:
        return [marker]
    return sorted(path.relative_to(folder).as_posix() for path in within.rglob("*"))


def _whole(report: Report, model: nn.Module, made: Plan, probe: Inputs | None, screen: Screen) -> list[Check]:
    """The checks on a folder that holds all weights."""
    screen.step("checks")
    checks: list[Check] = []
    if not made.baseline.tensors:
        reason = "the folder was written without checks (--no-verify)"
        return [Check(name, None, reason, "unchecked") for name in ("keys", "outputs (eval)")]
    checks.append(trained.unchanged(model, made) if made.trained else keys(made.baseline.tensors, model, made))
    checks.append(against_baseline(model, probe, made))
    if probe is not None:
        found = reached(model, probe, made)
        # training may close a gate for good: no fault of the insertion
        checks.append(replace(found, passed=None) if made.trained and found.passed is False else found)
    if (example := example_of(made, dtype_of(model))) is not None:
        measured = measure(model, example, [d.key for d in made.insertions])
        checks.append(overhead(report.before, measured.cost, measured.sites(made)))
    return checks
