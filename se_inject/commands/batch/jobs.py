"""A manifest's entry as a job: the key that recognises its output, and the work itself."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import sys
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from importlib.machinery import PathFinder
from pathlib import Path

from se_inject._version import __version__
from se_inject.blocks.custom import import_block
from se_inject.checkpoints.checkpoint import require_sha256
from se_inject.checkpoints.kind import locate, readable
from se_inject.checkpoints.shards import read_index
from se_inject.commands.batch.manifest import Entry
from se_inject.commands.convert import convert
from se_inject.commands.model import Listener
from se_inject.commands.report import read_report
from se_inject.errors import SEInjectError
from se_inject.hashing import sha256
from se_inject.models.zoos import ZOOS
from se_inject.output.sums import files_check
from se_inject.parallel import machine
from se_inject.rules.schema import to_plain as plain_rules
from se_inject.types import Report, to_dict


@dataclass(frozen=True)
class Options:
    """What the command line says about every job."""

    blocks: tuple[str, ...] = ()  # classes that rules may name
    allow_pickle: bool = False
    force: bool = False
    discard_changes: bool = False


@dataclass(frozen=True)
class Job:
    """One entry, with what is known of it before it runs."""

    entry: Entry
    folder: Path  # to write
    options: Options
    key: str
    size: int  # bytes of its checkpoint


@dataclass(frozen=True)
class Done:
    """What became of a job."""

    report: Report
    warnings: tuple[str, ...] = ()
    peak: int = 0  # bytes that the process had in memory at most


def job_of(entry: Entry, folder: Path, options: Options) -> Job:
    """The job of an entry; its checkpoint is read for the hash. Raises ``LoadError`` when there is none."""
    weights, inputs = entry.request.weights, entry.request.inputs
    if weights.checkpoint is not None and weights.sha256:
        require_sha256(weights.checkpoint, weights.sha256)
    files = _weight_files(weights.checkpoint) if weights.checkpoint is not None else []
    facts = {
        "model": weights.model,
        "model_args": [f"{name}={value!r}" for name, value in sorted(weights.model_args.items())],
        "weights": "random" if weights.random_init else "pretrained" if weights.pretrained else [*map(sha256, files)],
        "allow_missing": weights.allow_missing,
        "ema": weights.ema,
        "input": [",".join(map(str, inputs.input_size or ())), inputs.input_kind or ""],
        "rules": plain_rules(entry.request.rules.rules),
        "formats": sorted(entry.formats),
        "seed": entry.request.seed,
        "versions": _versions(entry, options.blocks),
    }
    text = json.dumps(to_dict(facts), sort_keys=True)
    key = hashlib.sha256(text.encode()).hexdigest()
    return Job(entry, folder, options, key, sum(file.stat().st_size for file in files))


def _weight_files(checkpoint: Path) -> list[Path]:
    """The file that the weights are in; of an index, its shards too."""
    file = locate(checkpoint)
    shards = dict.fromkeys(read_index(file).values()) if readable(file).name == "shards" else ()
    return [file, *(file.parent / name for name in shards)]


def _versions(entry: Entry, blocks: Iterable[str]) -> dict[str, str]:
    """Of what makes the output; for a module of the user's own, the hash of its file (not of what that imports)."""
    rules = json.dumps(plain_rules(entry.request.rules.rules))
    modules = {name.partition(":")[0] for name in (entry.model, *(block for block in blocks if block in rules))}
    found = {"se_inject": __version__, "torch": importlib.metadata.version("torch")}
    for module in modules:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError, ValueError):
            found[module] = importlib.metadata.version(module.partition(".")[0])
        if module not in ZOOS and (file := _source(module)) is not None:
            found[f"{module}, source"] = sha256(file)
    return found


def _source(module: str) -> Path | None:
    """The file of a module, found where it will be imported from, without importing it."""
    root, *parts = module.split(".")
    spec = PathFinder.find_spec(root, [*sys.path, os.getcwd()])
    if spec is None:
        return None
    bases = [Path(folder, *parts) for folder in spec.submodule_search_locations or ()]
    names = [name for base in bases for name in (base.with_suffix(".py"), base / "__init__.py")] if parts else []
    files = [*names, *([] if parts else [Path(spec.origin or "")])]
    return next((file for file in files if file.is_file()), None)


def output_of(keys: Collection[str], folder: Path) -> Report | None:
    """The report in a folder that a job of one of these keys wrote, if it passed its checks and its files are whole."""
    try:
        report = read_report(folder)
    except SEInjectError:  # not ours, or damaged
        return None
    wrong = any(check.passed is False for check in report.checks)
    return report if report.source.get("job") in keys and not wrong and files_check(folder)[0].passed else None


def run_job(job: Job) -> Done:
    """Convert the model of a job and write its folder, as ``se-inject convert`` does.

    A job that is run again because a node was lost may have been done there: its folder is then recognised.
    """
    if (report := output_of({job.key}, job.folder)) is not None:
        return Done(report)
    for name in job.options.blocks:
        import_block(name)
    listener, request = Listener(), job.entry.request
    report = convert(
        replace(request, weights=replace(request.weights, allow_pickle=job.options.allow_pickle)),
        job.folder,
        formats=job.entry.formats,
        force=job.options.force,
        discard_changes=job.options.discard_changes,
        screen=listener,
        origin={"job": job.key},
    )
    return Done(report, tuple(listener.warnings), machine.resident("VmHWM"))
