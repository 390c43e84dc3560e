"""Tasks in processes of their own, as many at a time as cores and memory allow.

Every task gets a fresh process, forked from a server that has torch and the zoos imported and has done nothing with
them: it starts in some 30 ms, gives its memory back when it ends, and takes nobody with it when it crashes. (In a pool
whose workers stay, a dead worker breaks the pool, and none of its futures can tell which task did it.)
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from functools import partial
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Generic, TypeVar

from se_inject.errors import SEInjectError
from se_inject.parallel import machine
from se_inject.types import Reason

T = TypeVar("T")
R = TypeVar("R")

PRELOAD = ("torch", "timm", "torchvision", "se_inject.commands.convert", "se_inject.commands.plan")
CONTEXT = multiprocessing.get_context("forkserver")


@dataclass(frozen=True)
class Failure:
    """Why a task has no result."""

    reason: Reason  # one line
    trace: str = ""  # of an error that is no refusal


KILLED = Failure(
    Reason(
        "killed",
        "its process was killed twice, the second time with no other beside it: it needs more memory than there is, "
        "or somebody stopped it",
    )
)


@dataclass(frozen=True)
class _Running(Generic[T]):
    task: T
    need: int
    process: BaseProcess


def run(
    tasks: Iterable[T],
    work: Callable[[T], R],
    *,
    workers: int = 0,
    needs: Callable[[T], int] | None = None,
    limit: int | None = None,
    preload: Iterable[str] = PRELOAD,
) -> Generator[tuple[T, R | Failure], None, None]:
    """Each task with what ``work`` made of it, or a ``Failure``, in the order in which they end.

    ``work`` is a function of a module, as tasks and results are pickled. One failure does not stop the rest.

    Args:
        workers: processes at a time; 0 is one for each core. The cores are shared out among their threads.
        needs: bytes of memory that a task takes; a task starts when the sum of those that run stays within ``limit``.
        limit: bytes; default: most of what is available (``machine.memory``).
        preload: modules that the server imports, so that a process has them when it starts.

    A task that is killed from outside (for want of memory, most likely) is tried once more when the others are done,
    alone. Whoever stops listening, by Ctrl-C too, stops the processes. They end when their parent is killed.
    """
    limit = machine.memory() if limit is None else limit
    cores = machine.cores()
    needs = needs or (lambda task: 0)
    fitting: list[T] = []
    for task in tasks:
        if needs(task) > limit:
            more = f"it needs {gigabytes(needs(task))} of memory"
            yield task, Failure(Reason("memory", f"{more}, and the limit is {gigabytes(limit)} (--memory)"))
        else:
            fitting.append(task)
    start_server(preload)
    one_pass = partial(_pass, work=work, cores=cores, needs=needs, limit=limit)
    killed: list[T] = []
    for task, outcome in one_pass(fitting, workers=workers or cores):
        if outcome is KILLED:
            killed.append(task)
        else:
            yield task, outcome
    yield from one_pass(killed, workers=1)


def start_server(preload: Iterable[str] = PRELOAD) -> None:
    """Start the server that processes are forked from, or leave the one that runs; does not wait for its imports."""
    CONTEXT.set_forkserver_preload(list(preload))
    resource_tracker.ensure_running()  # the server would start it, and that unblocks the signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # the server would die importing, with a trace
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _pass(
    waiting: list[T],
    *,
    work: Callable[[T], R],
    workers: int,
    cores: int,
    needs: Callable[[T], int],
    limit: int,
) -> Generator[tuple[T, R | Failure], None, None]:
    workers = max(1, min(workers, len(waiting)))
    running: dict[Connection, _Running[T]] = {}
    try:
        while waiting or running:
            free = limit - sum(job.need for job in running.values())
            fits = next((i for i, task in enumerate(waiting) if needs(task) <= free), None)
            if fits is not None and len(running) < workers:
                task = waiting.pop(fits)
                ours, theirs = CONTEXT.Pipe(duplex=False)
                process = CONTEXT.Process(target=_child, args=(theirs, work, task, cores // workers), daemon=True)
                process.start()
                theirs.close()
                running[ours] = _Running(task, needs(task), process)
            else:
                ended = wait(list(running))
                for answer in [answer for answer in running if answer in ended]:
                    job = running.pop(answer)
                    yield job.task, _outcome(answer, job.process)
    finally:
        for job in running.values():
            job.process.kill()
        for job in running.values():
            job.process.join()


def _outcome(answer: Connection, process: BaseProcess) -> Any:
    """What a process sent; when it died without a word, how it died."""
    with answer:
        try:
            outcome = answer.recv()
        except (EOFError, OSError):  # before, or while it answered
            outcome = None
    process.join()
    if outcome is not None:
        return outcome[0]
    code = process.exitcode or 0
    if code == -signal.SIGKILL:
        return KILLED
    how = f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    return Failure(Reason("killed", f"its process {how}"))


def _child(answer: Connection, work: Callable[[T], R], task: T, threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)  # what models and libraries print is not among our lines
    os.dup2(silence, 2)
    import torch

    torch.set_num_threads(max(1, min(threads, torch.get_num_threads())))
    answer.send((attempt(work, task),))


def attempt(work: Callable[[T], R], task: T) -> R | Failure:
    """``work(task)``, or why it failed: any error of foreign code is a failure of this task alone."""
    from se_inject.errors import one_line

    try:
        return work(task)
    except SEInjectError as refusal:
        return Failure(Reason(refusal.code, " ".join(str(refusal).split())))
    except (Exception, SystemExit) as error:
        return Failure(Reason("error", one_line(error)), traceback.format_exc())


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB"
