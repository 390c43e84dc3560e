"""Tasks in processes of their own: what comes back, who is blamed, and that limits hold."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from se_inject.errors import LoadError
from se_inject.parallel import machine
from se_inject.parallel.pool import Failure, run
from tests.helpers import ROOT

GB = 10**9


def work(task: str) -> object:
    """What a task does is its name."""
    if task.startswith("mark "):
        Path(task[5:]).write_text(f"{os.getpid()}\n")
        time.sleep(60)
    return {
        "double": lambda: 2 * len(task),
        "where": os.getpid,
        "sleep": lambda: (time.monotonic(), time.sleep(0.3), time.monotonic())[::2],
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
    assert found["refuse"] == Failure("no such file")
    reasons = {task: found[task].reason for task in ("crash", "raise", "leave", "vanish", "killed")}
    assert reasons == {
        "crash": "its process died of SIGSEGV",
        "raise": "ZeroDivisionError: division by zero",
        "leave": "SystemExit: bye",
        "vanish": "its process ended with exit code 3",
        "killed": reasons["killed"],
    }
    assert "twice" in reasons["killed"] and "1 / 0" in found["raise"].trace


def test_a_process_each_and_silent(capfd: pytest.CaptureFixture[str]) -> None:
    found = dict(run(["where", "where 2", "print"], work, workers=1))
    assert len({found["where"], found["where 2"], os.getpid()}) == 3
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("need", "together"), [(GB, True), (2 * GB, False)])
def test_memory_decides_who_runs_beside_whom(need: int, together: bool) -> None:
    found = dict(run(["sleep", "sleep 2"], work, workers=2, needs=lambda task: need, limit=3 * GB))
    first, second = sorted(found.values())
    assert (second[0] < first[1]) == together


def test_a_task_above_the_limit_alone_is_refused_with_the_numbers() -> None:
    found = dict(run(["double", "none"], work, needs=lambda task: len(task) * GB, limit=5 * GB))
    assert found == {"double": Failure("it needs 6.00 GB of memory, and the limit is 5.00 GB (--memory)"), "none": None}


def test_who_stops_listening_stops_the_processes(tmp_path: Path) -> None:
    running = run([f"mark {tmp_path / 'pid'}", "none"], work, workers=2)
    assert next(running) == ("none", None)
    pid = int(wait_for(tmp_path / "pid"))
    running.close()
    assert gone(pid)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_processes_end_with_their_parent(number: int, tmp_path: Path) -> None:
    task = f"mark {tmp_path / 'pid'}"
    imports = "from se_inject.parallel.pool import run; from tests.parallel.test_pool import work"
    code = f"{imports}; list(run([{task!r}], work))"
    parent = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    pid = int(wait_for(tmp_path / "pid"))
    (os.killpg if number == signal.SIGINT else os.kill)(parent.pid, number)  # Ctrl-C reaches all, a kill the parent
    _, said = parent.communicate(timeout=20)
    assert gone(pid) and parent.returncode != 0
    assert "forkserver" not in said


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


def wait_for(path: Path) -> str:
    for _ in range(600):
        if path.exists() and (text := path.read_text()).endswith("\n"):
            return text
        time.sleep(0.05)
    raise AssertionError(f"{path} was not written")


def gone(pid: int) -> bool:
    """Whether the process ends soon."""
    for _ in range(100):
        try:
            os.kill(pid, 0)
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.05)
    return False
