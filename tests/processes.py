"""Processes that tests start. They say through a named pipe where they are, so that nothing waits for a clock, and they
end with the test, whatever happens."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

import pytest

from tests.helpers import ROOT

# In the background of a shell a process inherits that SIGINT is ignored, and so would its children.
LISTEN = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
Started = tuple["subprocess.Popen[str]", TextIO]


@contextlib.contextmanager
def named_pipe(path: Path) -> Iterator[tuple[TextIO, int]]:
    """Both ends of a new pipe. Reading waits for words, and ends when nobody has the other end, by its name neither."""
    os.mkfifo(path)
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), encoding="utf-8") as said:
        os.set_blocking(said.fileno(), True)
        yield said, os.open(path, os.O_WRONLY)


def hold(path: str) -> None:
    """Say ``here`` into a pipe, and keep it until nobody listens."""
    with open(path, "w", encoding="utf-8") as pipe:
        print("here", file=pipe, flush=True)
        broken = select.poll()
        broken.register(pipe, 0)
        broken.poll()


@pytest.fixture
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Started]]:
    """``start(code, *args, **options of Popen)``: Python in a session of its own, and what is said to it.

    The process finds the pipe's name in ``SAID`` and holds the pipe from its first moment; who else opens it holds it
    too. So reading ends when the process and all of those are gone. With the test all that is left is killed.
    """
    with contextlib.ExitStack() as ends:

        def started(code: str, *args: str, **options: Any) -> Started:
            path = tmp_path_factory.mktemp("said") / "pipe"
            said, held = ends.enter_context(named_pipe(path))
            search = os.pathsep.join([str(ROOT), "."])
            options["env"] = {**os.environ, "PYTHONPATH": search, "SAID": str(path), **options.get("env", {})}
            command = [sys.executable, "-c", LISTEN + code, *args]
            try:
                child = subprocess.Popen(command, text=True, start_new_session=True, pass_fds=[held], **options)
            finally:
                os.close(held)
            ends.callback(end, child)
            return child, said

        yield started


def end(child: subprocess.Popen[str]) -> None:
    """Kill a process with its group, wait for it, and close its pipes: nothing of it is left to a later test."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    for pipe in (child.stdin, child.stdout, child.stderr):
        if pipe is not None:
            pipe.close()
