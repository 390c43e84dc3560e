"""``se-inject verify``."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from torch import nn

from se_inject.checks import verify as checking
from se_inject.checks.measure import measure
from se_inject.search.inputs import Inputs, dtype_of, from_shape
from se_inject.types import Check, Plan, Report, SiteCost
from se_inject.workflow.folder import open_folder, read_report, trusting
from se_inject.workflow.screen import Screen


def verify(folder: Path, spec: str | None, model_arg: Iterable[str], *, screen: Screen) -> tuple[Check, ...]:
    """Check an output folder by itself: against the hashes, the probe and the figures that it carries."""
    screen.step("load")
    report = read_report(folder)
    with trusting(folder):
        model, made = open_folder(folder, spec, model_arg)
        return _verify(folder, report, model, made, screen)


def _verify(folder: Path, report: Report, model: nn.Module, made: Plan, screen: Screen) -> tuple[Check, ...]:
    screen.step("checks")
    checks = [_files(folder, report)]
    if not made.baseline.tensors:
        reason = "the folder was written without checks (--no-verify)"
        return (*checks, Check("keys", None, reason), Check("outputs (eval)", None, reason))
    probe = inputs_of(made, model)
    checks.append(checking.keys(made.baseline.tensors, model, made))
    checks.append(checking.against_baseline(model, probe, made))
    if probe is not None:
        checks.append(checking.reached(model, probe, made))
    measured = measure(model, size_of(made), [d.key for d in made.insertions]) if size_of(made) else None
    if measured is not None:
        sites = tuple(
            SiteCost(d.site.id, c.parameters, c.macs, c.elementwise, c.activation_bytes)
            for d in made.insertions
            for c in [measured.by_module[d.key]]
        )
        checks.append(checking.overhead(report.before, measured.cost, sites))
    return tuple(checks)


def inputs_of(made: Plan, model: nn.Module) -> Inputs | None:
    """The probe of a plan: seeded noise of the size that it names."""
    shape = made.baseline.probe
    return from_shape(tuple(shape), dtype_of(model), made.seed) if shape else None


def size_of(made: Plan) -> tuple[int, ...] | None:
    """The input size for which the costs were counted, if it was given as a shape."""
    args = made.inputs.get("args", []) if isinstance(made.inputs, dict) else []
    if len(args) != 1 or not isinstance(args[0], str) or "[" not in args[0] or not made.baseline.probe:
        return None
    return tuple(int(n) for n in args[0].partition("[")[2].rstrip("]").split(","))[1:]


def _files(folder: Path, report: Report) -> Check:
    for artifact in report.artifacts:
        path = folder / artifact.path
        if not path.is_file():
            return Check("files", False, f"{artifact.path} is missing")
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != artifact.sha256:
                return Check("files", False, f"{artifact.path} is not the file that was written")
    return Check("files", True, f"{len(report.artifacts)} files have the hashes of the report")
