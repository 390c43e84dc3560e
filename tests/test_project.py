"""What those who come after rely on: workflows that do what `.ci/run` does, forms of the right shape, one stack."""

from __future__ import annotations

import configparser
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import se_inject
from tests import matrix
from tests.helpers import ROOT

GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
SCHEMAS = {  # of check-jsonschema, which brings them
    "github-workflows": WORKFLOWS,
    "github-issue-forms": sorted((GITHUB / "ISSUE_TEMPLATE").glob("[!c]*.yml")),
    "github-issue-config": [GITHUB / "ISSUE_TEMPLATE" / "config.yml"],
    "citation-file-format": [ROOT / "CITATION.cff"],
}
MAKEFILE = (ROOT / "Makefile").read_text()
CI = set(re.findall(r"^step \S+ (make \S+)$", (ROOT / ".ci" / "run").read_text(), re.M))


def metadata() -> configparser.ConfigParser:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    return config


# -- workflows and forms --------------------------------------------------------------------------------------------
def check(schema: str, *files: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}", *map(str, files)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize("schema", SCHEMAS)
def test_files_are_as_their_schema_says(schema: str, tmp_path: Path) -> None:
    files = SCHEMAS[schema]
    done = check(schema, *files)
    assert files and done.returncode == 0, done.stdout
    (tmp_path / "wrong.yml").write_text("no: such key\n")
    assert check(schema, tmp_path / "wrong.yml").returncode == 1


def steps(path: Path) -> list[dict[str, str]]:
    return [step for job in yaml.safe_load(path.read_text())["jobs"].values() for step in job.get("steps", ())]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_run_what_ci_runs(path: Path) -> None:
    asked = {step["run"] for step in steps(path) if "run" in step}
    assert asked and asked <= CI, asked - CI


def test_workflows_test_what_is_promised() -> None:
    jobs = yaml.safe_load((GITHUB / "workflows" / "ci.yml").read_text())["jobs"]
    pinned = re.search(r"^TORCH \?= (.*)$", MAKEFILE, re.M)
    assert pinned is not None
    assert jobs["torch"]["strategy"]["matrix"]["torch"] == [matrix.oldest(metadata()), pinned[1], "torch torchvision"]
    promised = re.findall(r"Python :: (3\.\d+)", metadata()["metadata"]["classifiers"])
    assert jobs["python"]["strategy"]["matrix"]["python"] == promised == list(matrix.VERSIONS)


def test_everything_that_ci_runs_is_in_a_workflow() -> None:
    asked = {step.get("run") for path in WORKFLOWS for step in steps(path)}
    assert CI - asked == {"make setup"}  # what all others do first


def test_every_target_is_explained() -> None:
    targets = set(re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.M)[1].split())  # type: ignore[index]
    explained = set(re.findall(r"make ([\w-]+)", MAKEFILE.partition("\nPYTHON")[0]))
    assert targets - explained == {"setup"} and explained <= targets


def test_the_citation_is_of_this_version() -> None:
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == se_inject.__version__


# -- make matrix ----------------------------------------------------------------------------------------------------
def test_the_matrix_takes_the_oldest_torch_of_the_metadata() -> None:
    config = configparser.ConfigParser()
    options = "[options]\ninstall_requires =\n numpy>=3\n torch>=1.2\n"
    config.read_string(f"{options}[options.extras_require]\ntorchvision = torchvision>=0.4.1\n")
    assert matrix.oldest(config) == "torch==1.2.* torchvision==0.4.*"


def test_the_matrix_says_what_is_absent(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    own = "{}.{}".format(*sys.version_info)
    monkeypatch.setattr(matrix, "VERSIONS", (own, "3.98", "3.99"))
    monkeypatch.setattr(matrix, "python", {"3.98": "a_python", "3.99": None}.get)
    ran = []

    def run(command: list[str], **options: object) -> subprocess.CompletedProcess[bytes]:
        ran.append(command[2:])
        return subprocess.CompletedProcess(command, "PYTHON=a_python" in command)

    monkeypatch.setattr(matrix.subprocess, "run", run)
    assert matrix.main("make", "JOBS=1") == 1
    assert capsys.readouterr().out.splitlines()[1:] == [
        f"Python {own}: passed",
        "Python 3.98: failed",
        "Python 3.99: absent",
    ]
    assert [variables[-1] for variables in ran] == ["JOBS=1"] * 3 and "VENV=.matrix/3.98" in ran[2]


# -- the stack ------------------------------------------------------------------------------------------------------
def lint(folder: Path, files: dict[str, str]) -> str:
    """What import-linter says of a package with these files, under the contracts of setup.cfg."""
    config = metadata()
    for section in set(config) - {"DEFAULT"}:
        if not section.startswith("importlinter"):
            config.remove_section(section)
    with (folder / "setup.cfg").open("w") as file:
        config.write(file)
    layers = config["importlinter:contract:stack"]["layers"].replace(":", "\n").split()
    for name in layers:
        (folder / "se_inject" / name).mkdir(parents=True)
        (folder / "se_inject" / name / "__init__.py").touch()
    (folder / "se_inject" / "__init__.py").touch()
    for name, text in files.items():
        (folder / "se_inject" / name).write_text(text)
    command = "from importlinter.cli import lint_imports_command as lint; lint(['--no-cache', '--no-logo'])"
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run([sys.executable, "-c", command], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == ("BROKEN" in done.stdout), done.stdout + done.stderr
    return done.stdout


WRONG = {
    "inside a function": (
        "One stack",
        {"blocks/a.py": "def f():\n    from se_inject.search import b\n", "search/b.py": ""},
    ),
    "for a type": (
        "One stack",
        {"trace/a.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import se_inject.rules\n"},
    ),
    "a circle in a folder": (
        "No circle of files",
        {
            "rules/a.py": "from se_inject.rules import b\n",
            "rules/b.py": "def f():\n    from se_inject.rules import a\n",
        },
    ),
    "the index": ("The index is for users", {"output/a.py": "from se_inject import plan\n"}),
    "a folder of no layer": ("One stack", {"new.py": ""}),
}


def test_what_imports_downwards_is_kept(tmp_path: Path) -> None:
    shown = lint(
        tmp_path, {"search/a.py": "from se_inject.trace import b\n", "trace/b.py": "import se_inject.errors\n"}
    )
    assert "3 kept, 0 broken" in shown


@pytest.mark.parametrize("name", WRONG)
def test_what_breaks_the_stack_is_found(name: str, tmp_path: Path) -> None:
    contract, files = WRONG[name]
    shown = lint(tmp_path, files)
    assert f"{contract} BROKEN" in shown and "2 kept, 1 broken" in shown
