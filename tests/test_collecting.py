"""A test file without a test fails the run, however it is started."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import ROOT

FILES = {
    "test_full.py": "def test_one(): pass\n",
    "test_empty.py": "def helper(): pass\n",
    "helpers.py": "",
    "deeper/test_class.py": "class TestNothing:\n    def helper(self): pass\n",
    "deeper/test_skipped.py": "import pytest\npytest.importorskip('no_such_module')\n",
}


def run(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    for name, text in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = slow\n")
    command = [sys.executable, "-m", "pytest", "-p", "tests.collecting", "-p", "no:cacheprovider", *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("options", [[], ["-n", "2"], ["-k", "one"], ["-m", "not slow"]], ids=" ".join)
def test_files_and_classes_without_a_test_fail_the_run(tmp_path: Path, options: list[str]) -> None:
    done = run(tmp_path, *options)
    assert done.returncode not in (0, 5), done.stdout
    found = set(re.findall(r"^(\S+): no test in it", done.stdout, re.M))
    assert found == {"test_empty.py", "deeper/test_class.py::TestNothing"}, done.stdout


@pytest.mark.parametrize(("file", "code"), [("test_full.py", 0), ("test_full.py::test_one", 0), ("test_empty.py", 2)])
def test_files_one_by_one(tmp_path: Path, file: str, code: int) -> None:
    done = run(tmp_path, file)
    assert done.returncode == code, done.stdout
    assert ("no test in it" in done.stdout) == bool(code)
