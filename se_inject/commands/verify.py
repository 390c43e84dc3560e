"""``se-inject verify``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from se_inject.checks import trained
from se_inject.checks import verify as checking
from se_inject.checks.cost import measure
from se_inject.checks.reference import example_of, probe_of
from se_inject.commands.model import Screen, open_folder, trusting
from se_inject.commands.report import files_check, read_report
from se_inject.inputs import Inputs, dtype_of
from se_inject.output import folder as store
from se_inject.output.folder import formats_in
from se_inject.output.formats import FORMATS, Subject
from se_inject.output.weights import shard_names
from se_inject.types import Check, Plan, Report


def verify(
    folder: Path, base: str | None, model_args: Mapping[str, Any], *, trusted: bool = False, screen: Screen
) -> tuple[Check, ...]:
    """Check an output folder by itself: against the hashes, the probe and the figures that it carries.

    ``trusted``: a program in it may be run.
    """
    screen.step("load")
    report = read_report(folder)
    with trusting(folder):
        if shard_names(folder):
            model, made = open_folder(folder, base, model_args)
            probe = probe_of(made, dtype_of(model))
            checks = _whole(folder, report, model, made, probe, screen)
            subject = Subject(made, example_of(made, dtype_of(model)) or probe, model, trusted=trusted)
        else:
            made = store.read_plan(folder / store.PLAN)
            outputs = Check("outputs (eval)", None, "no file here holds all weights", "nothing-to-compare")
            checks = [files_check(folder, report), outputs]
            subject = Subject(made, probe_of(made, torch.float32), trusted=trusted)
        for name in formats_in(folder):
            if name != "safetensors":  # that is the model itself
                screen.step(name)
                checks.append((FORMATS[name].inspect or FORMATS[name].check)(folder, subject))
    return tuple(checks)


def _whole(
    folder: Path, report: Report, model: nn.Module, made: Plan, probe: Inputs | None, screen: Screen
) -> list[Check]:
    """The checks on a folder that holds all weights."""
    screen.step("checks")
    checks = [files_check(folder, report)]
    if not made.baseline.tensors:
        reason = "the folder was written without checks (--no-verify)"
        return [*checks, *(Check(name, None, reason, "unchecked") for name in ("keys", "outputs (eval)"))]
    checks.append(trained.unchanged(model, made) if made.trained else checking.keys(made.baseline.tensors, model, made))
    checks.append(checking.against_baseline(model, probe, made))
    if probe is not None:
        found = checking.reached(model, probe, made)
        # training may close a gate for good: no fault of the insertion
        checks.append(replace(found, passed=None) if made.trained and found.passed is False else found)
    if (example := example_of(made, dtype_of(model))) is not None:
        measured = measure(model, example, [d.key for d in made.insertions])
        checks.append(checking.overhead(report.before, measured.cost, measured.sites(made)))
    return checks
