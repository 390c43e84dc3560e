"""The output folder: what is written into it, and how it is read again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from se_inject.checks import baseline
from se_inject.checks.verify import same
from se_inject.errors import LoadError, PlanMismatchError, VerifyError
from se_inject.files.tensorfile import read_tensors, tensors_writer
from se_inject.files.wrappers import Keys
from se_inject.files.write import Content, write
from se_inject.injection import Injection
from se_inject.models.assign import assign, build_empty, lacks_values
from se_inject.models.zoos import build_model
from se_inject.search.skeleton import share, skeleton, to_meta
from se_inject.surgery.modeling import render
from se_inject.surgery.portable import NoSource
from se_inject.surgery.splice import apply
from se_inject.types import SCHEMA_VERSION, Artifact, Check, Plan, Report, dump, from_dict

TENSORS, PLAN, MODELING = "model.safetensors", "plan.json", "modeling.py"
REPORT, MARKDOWN, HTML = "report.json", "report.md", "report.html"
MAX_JSON = 64 << 20
ALIGNMENT = 64  # bytes, of torch's allocator


def save(
    injection: Injection,
    out: Path,
    *,
    force: bool = False,
    source: dict[str, Any] | None = None,
    inputs: Sequence[Path] = (),
) -> Report:
    """Write the folder, and return the report with the check of what was read back and the list of files."""
    from se_inject.report import formats as renderers
    from se_inject.report.html.page import to_html

    plan, report = injection.plan, replace(injection.report, source=source or {})
    files: dict[str, Content] = {
        TENSORS: tensors_writer(injection.model.state_dict(), {"format": "pt"}),
        PLAN: dump(plan).encode(),
    }
    try:
        files[MODELING] = render(injection.base, plan).encode()
    except NoSource as reason:
        report = replace(report, checks=(*report.checks, Check("modeling.py", None, f"not written: {reason}")))

    def finish(path: Path) -> None:
        nonlocal report
        check = read_back(injection, path.parent / TENSORS)
        report = replace(report, checks=(*report.checks, check), artifacts=_artifacts(path.parent))
        if check.passed is False:
            raise VerifyError(f"what was written does not give the same model back. {check.detail}")
        _write_text(path, renderers.to_json(report))

    files[REPORT] = finish
    files[MARKDOWN] = lambda path: _write_text(path, renderers.to_markdown(report))
    files[HTML] = lambda path: _write_text(path, to_html(report))
    write(out, files, force=force, inputs=inputs)
    return report


def _write_text(path: Path, text: str) -> None:
    path.write_bytes(text.encode())  # the same bytes under every locale


def _artifacts(folder: Path) -> tuple[Artifact, ...]:
    """The files written so far; the reports come after them and are not listed in themselves."""
    found = []
    for path in sorted(folder.iterdir()):
        if path.name in (TENSORS, PLAN, MODELING):
            with path.open("rb") as file:
                found.append(Artifact(path.name, hashlib.file_digest(file, "sha256").hexdigest(), path.stat().st_size))
    return tuple(found)


def read_back(injection: Injection, path: Path) -> Check:
    """6. What was written, read back, is the same tensors and gives the same outputs."""
    model = injection.model
    tensors = read_tensors(path)
    before = baseline.digests(model)
    wrong = [name for name, digest in before.items() if name not in tensors or baseline.digest(tensors[name]) != digest]
    if wrong or len(tensors) != len(before):
        return Check("read back", False, f"{len(wrong)} tensors differ, the first is {wrong[:1]}")
    stored = {id(t) for t in model.state_dict(keep_vars=True).values()}
    copy = skeleton(model, keep=lambda t: to_meta(t) if id(t) in stored else t.detach().clone())
    model = skeleton(model, keep=share)  # without the user's hooks, like the copy
    seed = injection.plan.seed
    probe = baseline.shrink(model, injection.inputs, seed)
    want = baseline.run(model, probe, False, seed)
    if want.failure:
        return Check("read back", None, f"{len(before)} tensors identical; the model does not run: {want.failure}")
    copy.load_state_dict(_versioned(model, _aligned(tensors)), assign=True)
    got = baseline.run(copy, probe, False, seed)
    if not _equal(want, got):
        # The file holds values, not memory layouts: strides choose between kernels that round otherwise.
        own = model.state_dict()
        laid_out = {name: _laid_out(t, own[name]) for name, t in tensors.items()}
        copy.load_state_dict(_versioned(model, laid_out), assign=True)
        got = baseline.run(copy, probe, False, seed)
    same = _equal(want, got)
    detail = f"{len(before)} tensors identical, outputs {'bit-equal' if same else 'differ'}"
    return Check("read back", same, got.failure or detail)


def _equal(want: baseline.Run, got: baseline.Run) -> bool:
    return len(want.outputs) == len(got.outputs) and all(map(same, want.outputs, got.outputs))


def _versioned(model: nn.Module, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state dict with the versions of the model's modules, which MNASNet asks for and the file does not hold."""
    state: dict[str, torch.Tensor] = model.state_dict()
    state.clear()
    state.update(tensors)
    return state


def _aligned(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What is mapped from a file where torch would not put it is copied: kernels round otherwise at other addresses."""
    copies: dict[int, torch.Tensor] = {}  # tensors that are one stay one
    return {n: copies.setdefault(id(t), t.clone() if t.data_ptr() % ALIGNMENT else t) for n, t in tensors.items()}


def _laid_out(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(like.shape, like.stride(), dtype=like.dtype).copy_(tensor)


def read_json(path: Path) -> Any:
    """JSON of a bounded size, without NaN and duplicate keys. Raises ``LoadError``."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a key stands twice")
        return found

    def refuse(name: str) -> Any:
        raise ValueError(f"{name} is no number")

    try:
        with path.open("rb") as file:
            data = file.read(MAX_JSON + 1)
    except OSError as error:
        raise LoadError(f"{path}: cannot be read ({error.strerror}).") from error
    if len(data) > MAX_JSON:
        raise LoadError(f"{path}: larger than {MAX_JSON >> 20} MiB.")
    try:
        return json.loads(data.decode(), object_pairs_hook=unique, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise LoadError(f"{path}: not JSON of this tool ({error}).") from error


def read_plan(path: Path) -> Plan:
    """The plan in a file, checked field by field; nothing that it names is imported."""
    data = read_json(path)
    if isinstance(data, dict) and data.get("schema") != SCHEMA_VERSION:
        raise PlanMismatchError(
            f"{path}: plan schema {data.get('schema')!r}, this version reads {SCHEMA_VERSION}. Make the plan again."
        )
    try:
        return from_dict(Plan, data)
    except ValueError as error:
        raise PlanMismatchError(f"{path}: {error}.") from error


def load(out: Path, model: nn.Module | None = None) -> nn.Module:
    """The model of an output folder; ``model`` is a fresh base, which becomes the result."""
    if not out.is_dir():
        raise LoadError(f"{out} is not a folder written by se_inject; give the folder that holds {TENSORS}.")
    plan, tensors = read_plan(out / PLAN), _aligned(read_tensors(out / TENSORS))
    if model is None:
        model = _fresh(plan, tensors)
    model = apply(model, plan, inplace=True)
    assign(model, Keys(tensors, {}, {}, ()), what=str(out / TENSORS))
    return model.eval()


def _fresh(plan: Plan, tensors: dict[str, torch.Tensor]) -> nn.Module:
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
