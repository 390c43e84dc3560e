"""Tasks in processes of their own: what comes back, who is blamed, and that limits hold."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import pytest

from se_inject.errors import LoadError
from se_inject.parallel import machine, pool
from se_inject.parallel.pool import Failure, run
from se_inject.types import Reason
from tests.helpers import says
from tests.processes import Started, hold, named_pipe

GB = 10**9
PARENT = """
import os
from se_inject.parallel.pool import run
from tests.parallel.test_pool import work
list(run(["hold " + os.environ["SAID"]], work, preload=["torch"]))
"""


def work(task: str) -> object:
    """What a task does is its name."""
    return {
        "hold": lambda: hold(task[5:]),
        "double": lambda: 2 * len(task),
        "where": os.getpid,
        "refuse": lambda: (_ for _ in ()).throw(LoadError("no\nsuch file")),
        "raise": lambda: 1 / 0,
        "leave": lambda: sys.exit("bye"),
        "crash": lambda: os.kill(os.getpid(), signal.SIGSEGV),
        "vanish": lambda: os._exit(3),
        "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
        "print": lambda: print("not among our lines", flush=True),
        "none": lambda: None,
    }[task.partition(" ")[0]]()


def test_each_task_has_its_result_or_the_reason_why_not() -> None:
    tasks = ("double", "killed", "refuse", "crash", "raise", "leave", "vanish", "none", "double 2")
    found = dict(run(tasks, work, workers=2))
    assert set(found) == set(tasks)
    assert (found["double"], found["double 2"], found["none"]) == (12, 16, None)
    assert found["refuse"] == Failure(Reason("load", "no such file"))
    reasons = {task: found[task].reason for task in ("crash", "raise", "leave", "vanish", "killed")}
    assert reasons == {
        "crash": Reason("killed", "its process died of SIGSEGV"),
        "raise": Reason("error", "ZeroDivisionError: division by zero"),
        "leave": Reason("error", "SystemExit: bye"),
        "vanish": Reason("killed", "its process ended with exit code 3"),
        "killed": reasons["killed"],
    }
    assert says(reasons["killed"], "killed", "twice") and "1 / 0" in found["raise"].trace


def test_a_process_each_and_silent(capfd: pytest.CaptureFixture[str]) -> None:
    found = dict(run(["where", "where 2", "print"], work, workers=1))
    assert len({found["where"], found["where 2"], os.getpid()}) == 3
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("need", "beside"), [(GB, [2, 1]), (2 * GB, [1, 1])])
def test_memory_decides_who_runs_beside_whom(need: int, beside: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[int] = []

    def one_ends(answers: Sequence[Any]) -> list[Any]:
        """The first to end, alone: both may have ended when the pool looks."""
        waited.append(len(answers))
        return wait(answers)[:1]

    monkeypatch.setattr(pool, "wait", one_ends)
    tasks = ["double", "double 2"]
    assert len(dict(run(tasks, work, workers=2, needs=lambda task: need, limit=3 * GB))) == 2
    assert waited == beside


def test_a_task_above_the_limit_alone_is_refused_with_the_numbers() -> None:
    found = dict(run(["double", "none"], work, needs=lambda task: len(task) * GB, limit=5 * GB))
    assert found == {
        "double": Failure(Reason("memory", "it needs 6.00 GB of memory, and the limit is 5.00 GB (--memory)")),
        "none": None,
    }


def test_who_stops_listening_stops_the_processes(tmp_path: Path) -> None:
    with named_pipe(tmp_path / "pipe") as (said, held):
        running = run([f"hold {tmp_path / 'pipe'}", "none"], work, workers=2)
        assert next(running) == ("none", None)
        assert said.readline() == "here\n"
        os.close(held)
        running.close()
        os.set_blocking(said.fileno(), False)
        assert said.read() == ""  # an end; were the other still there, there would be nothing to read yet


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_processes_end_with_their_parent(number: int, start: Callable[..., Started]) -> None:
    parent, said = start(PARENT, stderr=subprocess.PIPE)
    assert said.readline() == "here\n"
    (os.killpg if number == signal.SIGINT else os.kill)(parent.pid, number)  # Ctrl-C reaches all, a kill the parent
    assert said.read() == ""  # parent and child are gone
    _, errors = parent.communicate()
    assert parent.returncode != 0 and "forkserver" not in errors


def test_the_machine_has_something_to_give() -> None:
    assert 1 <= machine.cores() <= (os.cpu_count() or 1)
    assert 0 < machine.resident() <= machine.resident("VmHWM")
    assert 0 < machine.memory() < 1 << 50


@pytest.mark.parametrize(("limit", "free"), [("1000", 800), ("max", 8 * 1024)])
def test_the_limit_of_a_container_counts(
    limit: str, free: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in (("memory.max", limit), ("memory.current", "500")):
        (tmp_path / name).write_text(text)
    (tmp_path / "memory.stat").write_text("anon 7\ninactive_file 300\n")
    (tmp_path / "meminfo").write_text("MemTotal: 99 kB\nMemAvailable: 8 kB\n")
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    monkeypatch.setattr(machine, "MEMINFO", tmp_path / "meminfo")
    assert machine.memory() == int(machine.MARGIN * free)


@pytest.mark.parametrize(("quota", "cores"), [("100000 100000", 1), ("50000 100000", 1), ("max 100000", None)])
def test_the_quota_of_a_container_counts(
    quota: str, cores: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpu.max").write_text(quota)
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    assert machine.cores() == (cores or len(os.sched_getaffinity(0)))
