"""What a test starts ends with it, when it fails too, and nothing of it reaches the next test."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.helpers import ROOT
from tests.processes import named_pipe

TESTS = """
import gc

CODE = "import os; kept = open('kept', 'w'); os.fork(); from tests.processes import hold; hold(os.environ['SAID'])"

def test_that_fails(start):
    child, said = start(CODE)
    assert [said.readline(), said.readline()] == ["here\\n"] * 2
    assert child.poll() is not None

def test_that_collects_what_is_left():
    gc.collect()
"""


def test_processes_end_with_the_test_that_started_them(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    command = [sys.executable, "-m", "pytest", "-p", "tests.processes", "-p", "no:cacheprovider"]
    with named_pipe(tmp_path / "kept") as (kept, held):
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        os.close(held)
        assert "1 failed, 1 passed" in done.stdout, done.stdout
        assert kept.read() == ""  # both processes are gone
