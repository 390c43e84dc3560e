"""``se-inject batch``."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from se_inject.blocks.custom import import_block
from se_inject.commands.batch import summary
from se_inject.commands.batch.jobs import Job, Options, job_of, output_of, run_job
from se_inject.commands.batch.manifest import Entry, read_manifest
from se_inject.commands.batch.memory import UNKNOWN, architecture, footprint, need
from se_inject.commands.batch.summary import SUMMARIES, Row
from se_inject.commands.files import check_file
from se_inject.commands.model import Screen
from se_inject.errors import SEInjectError
from se_inject.output.adding import add_files, check_files
from se_inject.output.atomic import recover
from se_inject.output.disk import writing
from se_inject.output.names import REPORT
from se_inject.parallel import machine, pool
from se_inject.parallel.pool import Failure, gigabytes
from se_inject.types import Reason, Report

T = TypeVar("T")
R = TypeVar("R")
Run = Callable[..., Generator[tuple[Any, Any], None, None]]  # pool.run, or what does the same elsewhere
TAKEN = (
    "{} exists, and is not this output: it has other weights, rules or versions, or was changed; "
    "give the entry another name, or replace what is there with --force"
)


def batch(
    manifest: Path,
    output: Path,
    *,
    factories: Sequence[str] = (),
    options: Options,
    workers: int = 0,
    memory: int | None = None,
    ray: str | None = None,
    dry_run: bool = False,
    screen: Screen,
) -> tuple[Row, ...]:
    """Convert what the manifest names and is not done yet, write the summary, and return its rows.

    ``factories``: ``pkg.module:factory`` or ``pkg.module`` that the manifest may name as a model.
    ``workers`` (0: one a core) and ``memory`` (bytes, default: most of what is available) bound the processes here;
    with ``ray`` it is the cluster at that address that has cores and memory. ``dry_run`` changes nothing.
    """
    screen.step("manifest")
    for name in options.blocks:
        import_block(name)
    entries = read_manifest(manifest, factories=factories, output=output)
    if dry_run:
        return tuple(_decided(entries, manifest, output, options, screen)[0].values())
    _prepare(output, entries, manifest, options.discard_changes)
    if ray is None:
        pool.start_server()  # it has its imports done by the time that the hashes are
        run: Run = partial(pool.run, workers=workers, limit=machine.memory() if memory is None else memory)
    else:
        from se_inject.parallel.ray_pool import run as run_on_ray

        run = partial(run_on_ray, address=ray)
    rows, todo = _decided(entries, manifest, output, options, screen)
    screen.step("memory needed")
    needs = _needs(todo, run, screen)
    screen.step("convert")
    outcomes = run(todo, run_job, needs=lambda job: needs[job.entry.name])
    try:
        for done, (job, outcome) in enumerate(outcomes, 1):
            name = job.entry.name
            if isinstance(outcome, Failure):
                rows[name] = replace(rows[name], status="failed", reason=outcome.reason)
            else:
                rows[name] = replace(rows[name], status="converted", folder=name, **summary.figures(outcome.report))
                for text in (*outcome.warnings, *_memory_missed(outcome.peak, needs[name])):
                    screen.warn(f"{name}: {text}")
            screen.advance(done, len(todo), "models")
    except KeyboardInterrupt:
        screen.warn("stopped; the same command does what is left")
        raise
    finally:  # a summary of what there is, and nothing half-written, whatever stopped us
        outcomes.close()
        recover(output, rows)
        texts = {file: render(tuple(rows.values())).encode() for file, render in SUMMARIES.items()}
        for text in add_files(output, texts, force=True, discard_changes=options.discard_changes):
            screen.warn(text)
    return tuple(rows.values())


def _memory_missed(peak: int, planned: int) -> list[str]:
    return [f"took {gigabytes(peak)} of memory, planned were {gigabytes(planned)}"] if peak > planned else []


def _prepare(output: Path, entries: Iterable[Entry], manifest: Path, discard_changes: bool) -> None:
    """The folder, without what killed runs left in it; its sums say which summary gives way to the next."""
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
    recover(output, [entry.name for entry in entries])
    for file in SUMMARIES:
        check_file(output / file, True, [manifest])
    check_files(output, SUMMARIES, force=True, discard_changes=discard_changes)


def _decided(
    entries: Sequence[Entry], manifest: Path, output: Path, options: Options, screen: Screen
) -> tuple[dict[str, Row], list[Job]]:
    """Name -> the row of every entry, and the jobs that are to be done."""
    screen.step("hashes")
    found = _each(entries, partial(_job, output=output, options=options), screen, "entries")
    jobs = [job for job in found if isinstance(job, Job)]
    earlier = _earlier(output, jobs, options.force, screen)
    rows: dict[str, Row] = {}
    todo: list[Job] = []
    for entry, job in zip(entries, found, strict=True):
        row = Row(entry.line, entry.name, entry.model, _weights(entry, manifest), "to do")
        if isinstance(job, Failure):
            row = replace(row, status="failed", reason=job.reason)
        elif entry.name in earlier:
            folder, report = earlier[entry.name]
            row = replace(row, status="done before", folder=folder, key=job.key, **summary.figures(report))
        elif os.path.lexists(job.folder) and not options.force:
            row = replace(row, status="failed", reason=Reason("write", TAKEN.format(job.folder)), key=job.key)
        else:
            row = replace(row, key=job.key)
            todo.append(job)
        rows[entry.name] = row
    return rows, todo


def _each(items: Sequence[T], work: Callable[[T], R], screen: Screen, unit: str) -> list[R]:
    """``work`` on each, in threads: hashing leaves the interpreter to others."""
    found: list[R] = []
    with ThreadPoolExecutor(machine.cores()) as threads:
        for result in threads.map(work, items):
            found.append(result)
            screen.advance(len(found), len(items), unit)
    return found


def _job(entry: Entry, output: Path, options: Options) -> Job | Failure:
    try:
        return job_of(entry, output / entry.name, options)
    except SEInjectError as error:
        return Failure(Reason(error.code, str(error)))
    except OSError as error:
        return Failure(Reason("load", f"{error.filename or entry.checkpoint}: cannot be read: {error.strerror}"))


def _weights(entry: Entry, manifest: Path) -> str:
    if entry.checkpoint is None:
        return "pretrained" if entry.request.weights.pretrained else "random"
    inside = entry.checkpoint.is_relative_to(manifest.parent)
    return str(entry.checkpoint.relative_to(manifest.parent)) if inside else entry.checkpoint.name


def _earlier(output: Path, jobs: Sequence[Job], force: bool, screen: Screen) -> dict[str, tuple[str, Report]]:
    """Name of an entry -> the folder and the report of its output, if it is there: by the key, under any name.

    First each entry has the folder of its own name, then one that was renamed; with ``force`` none of another entry,
    which may be replaced.
    """
    names, keys = {job.entry.name for job in jobs}, {job.key for job in jobs}
    folders = [path.parent for path in sorted(output.glob(f"*/{REPORT}"))]
    held: dict[str, list[tuple[str, Report]]] = {}
    for folder, report in zip(folders, _each(folders, partial(output_of, keys), screen, "outputs"), strict=True):
        if report is not None:
            held.setdefault(str(report.source["job"]), []).append((folder.name, report))
    found: dict[str, tuple[str, Report]] = {}
    for own in (True, False):
        for job in jobs:
            name, there = job.entry.name, held.get(job.key, [])
            fits = [pair for pair in there if (pair[0] == name if own else not (force and pair[0] in names))]
            if fits and name not in found:
                found[name] = fits[0]
                there.remove(fits[0])
    return found


def _needs(jobs: Sequence[Job], run: Run, screen: Screen) -> Mapping[str, int]:
    """Name of an entry -> bytes of memory that its job takes; every architecture is measured once, without data."""
    kinds = {repr(request): request for request in (architecture(job.entry) for job in jobs)}
    found = {}
    for done, (kind, made) in enumerate(run(list(kinds.values()), footprint), 1):
        found[repr(kind)] = UNKNOWN if isinstance(made, Failure) else made
        screen.advance(done, len(kinds), "architectures")
    return {job.entry.name: need(job, found[repr(architecture(job.entry))]) for job in jobs}
