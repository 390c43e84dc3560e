"""The output folder: what is written into it, and how it is read again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from se_inject.checkpoints.wrappers import Keys
from se_inject.errors import LoadError, VerifyError
from se_inject.injection.inject import Injection
from se_inject.models.assign import assign, build_empty, lacks_values
from se_inject.models.zoos import build_model
from se_inject.output.atomic import Content, check_output, write
from se_inject.output.formats import FORMATS, Subject, format_names
from se_inject.output.formats.whole import aligned
from se_inject.output.names import HTML, MARKDOWN, MODELING, PLAN, REPORT, TENSORS
from se_inject.output.plan_file import read_plan
from se_inject.output.weights import parse_size, read_weights, shard_names
from se_inject.surgery.modeling import render
from se_inject.surgery.portable import NoSource
from se_inject.surgery.splice import apply
from se_inject.types import Artifact, Check, Plan, Report, dump

REPORTS = (REPORT, MARKDOWN, HTML)

__all__ = ["MODELING", "PLAN", "REPORT", "TENSORS", "formats_in", "load", "read_plan", "save"]


def save(
    injection: Injection,
    out: Path,
    *,
    formats: str | Iterable[str] = "safetensors",
    max_shard_size: str | int | None = None,
    force: bool = False,
    discard_changes: bool = False,
    source: dict[str, Any] | None = None,
    inputs: Sequence[Path] = (),
    hashes: Mapping[str, str] | None = None,
    advance: Callable[[int, int, str], None] = lambda done, total, unit: None,
) -> Report:
    """Write the folder, and return the report with the checks of what was read back and the list of files.

    ``hashes``: of the model's tensors, where they are known. ``advance``: progress callback, bytes of the
    weights written and their total.
    """
    from se_inject.report import formats as renderers
    from se_inject.report.html.page import to_html

    check_output(out, force=force, discard_changes=discard_changes, inputs=inputs)  # before an export that takes long
    plan, report = injection.plan, replace(injection.report, source=source or {})
    limit = parse_size(max_shard_size)
    subject = Subject(
        plan, injection.inputs, injection.model, injection.base, hashes, max_shard_size=limit, advance=advance
    )
    wanted = [FORMATS[name] for name in format_names(formats)]
    files: dict[str, Content] = {}
    for format in wanted:
        files |= format.write(subject)
    files[PLAN] = dump(plan).encode()
    try:
        files[MODELING] = render(injection.base, plan).encode()
    except NoSource as reason:
        unwritten = Check("modeling.py", None, f"not written: {reason}", "no-source")
        report = replace(report, checks=(*report.checks, unwritten))

    def finish(path: Path) -> None:
        nonlocal report
        checks = [format.check(path.parent, subject) for format in wanted]
        report = replace(report, checks=(*report.checks, *checks), artifacts=_artifacts(path.parent))
        if failed := next((check for check in checks if check.passed is False), None):
            raise VerifyError(f"what was written does not give the same model back. {failed.name}: {failed.detail}")
        _write_text(path, renderers.to_json(report))

    files[REPORT] = finish
    files[MARKDOWN] = lambda path: _write_text(path, renderers.to_markdown(report))
    files[HTML] = lambda path: _write_text(path, to_html(report))
    write(out, files, force=force, discard_changes=discard_changes, inputs=inputs)
    return report


def _write_text(path: Path, text: str) -> None:
    path.write_bytes(text.encode())  # the same bytes under every locale


def _artifacts(folder: Path) -> tuple[Artifact, ...]:
    """The files written so far; the reports, and the sums of all, come after them."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in REPORTS:
            found.append(Artifact(path.relative_to(folder).as_posix(), path.stat().st_size))
    return tuple(found)


def formats_in(folder: Path) -> list[str]:
    """The formats that an output folder holds, in the order of the table."""
    return [name for name, format in FORMATS.items() if any((folder / file).is_file() for file in format.markers)]


def load(out: Path, model: nn.Module | None = None) -> nn.Module:
    """The model of an output folder; ``model`` is a fresh base, which becomes the result."""
    if not out.is_dir():
        raise LoadError(f"{out} is not a folder written by se_inject; give the folder that holds {TENSORS}.")
    if not shard_names(out) and (other := formats_in(out)):
        hint = " An adapter goes onto a base: se_inject.load_adapter(model, out)." if "adapter" in other else ""
        raise LoadError(f"{out} holds no {TENSORS}, only {', '.join(other)}.{hint}")
    plan, tensors = read_plan(out / PLAN), aligned(read_weights(out))
    if model is None:
        model = _fresh(plan, tensors)
    model = apply(model, plan, inplace=True)
    assign(model, Keys(tensors, {}, {}, ()), what=str(out / TENSORS))
    return model.eval()


def _fresh(plan: Plan, tensors: dict[str, Any]) -> nn.Module:
    """The base model of a plan, from the two libraries that a file may name; without data where the file has it all."""
    if not plan.model.startswith(("timm:", "torchvision:")):
        raise LoadError(
            f"the plan is for {plan.model}, which is not built from a file's word. Pass a fresh base model: "
            "load(out, model=...), or --model pkg.module:factory."
        )

    def build() -> nn.Module:
        return build_model(plan.model, plan.model_args)

    model = build_empty(build)
    return build() if lacks_values(model, tensors) else model
