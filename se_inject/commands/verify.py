"""``se-inject verify``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from se_inject.checks import trained
from se_inject.checks import verify as checking
from se_inject.checks.cost import measure
from se_inject.checks.reached import reached
from se_inject.commands.folder import open_folder, trusting
from se_inject.commands.report import files_check, read_report
from se_inject.commands.screen import Screen
from se_inject.inputs import Inputs, dtype_of, from_shape
from se_inject.output import folder as store
from se_inject.output.folder import formats_in
from se_inject.output.formats import FORMATS, Subject
from se_inject.output.weights import shard_names
from se_inject.types import Check, Plan, Report, SiteCost


def verify(
    folder: Path, spec: str | None, model_arg: Iterable[str], *, trusted: bool = False, screen: Screen
) -> tuple[Check, ...]:
    """Check an output folder by itself: against the hashes, the probe and the figures that it carries.

    ``trusted``: a program in it may be run.
    """
    screen.step("load")
    report = read_report(folder)
    with trusting(folder):
        if shard_names(folder):
            model, made = open_folder(folder, spec, model_arg)
            probe = inputs_of(made, dtype_of(model))
            checks = _whole(folder, report, model, made, probe, screen)
            subject = Subject(made, example_of(made, dtype_of(model)) or probe, model, trusted=trusted)
        else:
            made = store.read_plan(folder / store.PLAN)
            outputs = Check("outputs (eval)", None, "no file here holds all weights", "nothing-to-compare")
            checks = [files_check(folder, report), outputs]
            subject = Subject(made, inputs_of(made, torch.float32), trusted=trusted)
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
        found = reached(model, probe, made)
        # training may close a gate for good: no fault of the insertion
        checks.append(replace(found, passed=None) if made.trained and found.passed is False else found)
    if (example := example_of(made, dtype_of(model))) is not None:
        measured = measure(model, example, [d.key for d in made.insertions])
        sites = tuple(
            SiteCost(d.site.id, c.parameters, c.macs, c.elementwise, c.activation_bytes)
            for d in made.insertions
            for c in [measured.by_module[d.key]]
        )
        checks.append(checking.overhead(report.before, measured.cost, sites))
    return checks


def inputs_of(made: Plan, dtype: torch.dtype) -> Inputs | None:
    """The probe of a plan: seeded noise of the size that it names."""
    return _noise(made, made.baseline.probe, dtype)


def example_of(made: Plan, dtype: torch.dtype) -> Inputs | None:
    """The input for which the costs were counted, if it was made from a shape."""
    return _noise(made, made.inputs.shape, dtype)


def _noise(made: Plan, shape: tuple[int, ...], dtype: torch.dtype) -> Inputs | None:
    kind = made.inputs.kind
    return from_shape(shape, dtype, made.seed, kind) if shape and kind else None
