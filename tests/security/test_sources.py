"""Code comes from the command line or the caller alone; rule files are data."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import se_inject
from se_inject.errors import SEInjectError
from tests.helpers import reseal, run
from tests.tiny import Net, inject

CANARY = "from pathlib import Path\nPath(__file__).with_name('canary').touch()\n"


def refused(*args: str) -> str:
    result = run(*args)
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit), result.output
    assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1
    return result.stderr


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("os:system", "belongs to Python's standard library"),
        ("a.b:c.d()", "names no model"),
        ("torch:__builtins__", "cannot be part of a factory's name"),
        ("timm:hf-hub:a/b", "timm has no model"),
    ],
)
@pytest.mark.parametrize("command", ["plan", "convert"])
def test_s11_what_is_no_factory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, spec: str, said: str
) -> None:
    """One name of each kind; all of them: ``tests/models/test_loading.py``."""
    monkeypatch.chdir(tmp_path)
    args = ["--model-arg", "path=canary", "--random-init", *(["-o", "out"] if command == "convert" else [])]
    assert said in refused(command, spec, *args)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An output folder that names code of its own wherever it names anything, in the current directory."""
    se_inject.save(inject(Net()), tmp_path / "out")
    (tmp_path / "evil_factory.py").write_text(CANARY + "def make(): pass\nclass Block: pass\n")
    (tmp_path / "out" / "modeling.py").write_text(CANARY)
    plan = json.loads((tmp_path / "out" / "plan.json").read_text())
    plan["model"] = "evil_factory:make"
    (tmp_path / "out" / "plan.json").write_text(json.dumps(plan))
    for name in ("setup.py", "hubconf.py", "conftest.py", "__init__.py"):
        (tmp_path / "out" / name).write_text(CANARY)
    reseal(tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def no_canary(folder: Path) -> bool:
    return not list(folder.rglob("canary")) and "evil_factory" not in sys.modules


def test_s11_a_folder_names_no_factory(folder: Path) -> None:
    with pytest.raises(SEInjectError, match="not built from a file's word"):
        se_inject.load(folder / "out")
    for command in (["verify", "out"], ["remove", "out", "-o", "base"]):
        assert "Pass a fresh base model" in refused(*command)
    assert no_canary(folder)


def test_s11_the_caller_names_it(folder: Path) -> None:
    """The negative twin; what lies beside the weights is not imported then either."""
    model = se_inject.load(folder / "out", Net())
    assert no_canary(folder) and type(model) is Net
    refused("verify", "out", "--model", "evil_factory:make")
    assert (folder / "canary").exists() and not (folder / "out" / "canary").exists()
    sys.modules.pop("evil_factory")


def test_s11_a_plan_names_no_block_class(folder: Path) -> None:
    plan = json.loads((folder / "out" / "plan.json").read_text())
    for decision in plan["decisions"]:
        decision["block"] = "evil_factory:Block"
    (folder / "out" / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(SEInjectError, match="evil_factory:Block"):
        se_inject.load(folder / "out", Net())
    assert no_canary(folder)


def test_s11_rules_name_no_block_class(folder: Path) -> None:
    Path("rules.yaml").write_text("block: {name: 'evil_factory:Block'}\n")
    assert "evil_factory:Block" in refused("plan", "timm:test_resnet", "--rules", "rules.yaml")
    assert no_canary(folder)


RULES = {
    "apply": ("!!python/object/apply:os.mkdir ['canary']\n", "not the YAML of a rules file"),
    "new": ("!!python/object/new:os.mkdir ['canary']\n", "not the YAML of a rules file"),
    "name": ("placement: !!python/name:os.mkdir\n", "not the YAML of a rules file"),
    "module": ("placement: !!python/module:os\n", "not the YAML of a rules file"),
    "alias": ("a: &x [1, 1]\nb: [*x, *x]\n", "aliases (*name) are not allowed"),
    "billion laughs": (
        "a: &a [x, x]\n" + "".join(f"{c}: &{c} [*{p}, *{p}]\n" for p, c in zip("abcdefgh", "bcdefghi", strict=True)),
        "aliases (*name) are not allowed",
    ),
    "two keys": ("ratio: 8\nratio: 16\n", "stands twice"),
    "1 MiB": ("placement: inner #" + "x" * (1 << 20), "larger than 1 MiB"),
    "no": ("placement: no\n", "placement"),
    "12:30": ("ratio: 12:30\n", "ratio"),
    "octal": ("ratio: '010'\n", "ratio"),
    "date": ("placement: 2026-11-24\n", "placement"),
}


@pytest.mark.parametrize("case", RULES)
def test_s12_rule_files_are_plain_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    monkeypatch.chdir(tmp_path)
    text, said = RULES[case]
    Path("rules.yaml").write_text(text)
    assert said in refused("plan", "timm:test_resnet", "--rules", "rules.yaml")
    assert not Path("canary").exists()
