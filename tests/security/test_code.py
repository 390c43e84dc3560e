"""What could run code is in one place, behind one flag, and a .pt2 is never read."""

from __future__ import annotations

import argparse
import ast
import functools
import itertools
import json
import os
import pickle
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from torch import nn

import se_inject
from se_inject.checkpoints.checkpoint import blocked_globals, read_state_dict
from se_inject.cli import main
from se_inject.cli.terminal import Terminal
from se_inject.errors import RulesError
from se_inject.rules.schema import read
from tests.checkpoints.files import SAVERS, STATE, Call, refusal, refused, same, write_zip
from tests.helpers import run
from tests.security.payloads import pickled

PACKAGE = Path(se_inject.__file__).parent
# Modules whose import means that something is unpickled, and functions that run what a file says.
PICKLES = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
LOADERS = {
    "torch.load": "weights_only",
    "torch.hub.load": "", "torch.hub.load_state_dict_from_url": "", "torch.jit.load": "", "torch.export.load": "",
    "torch.package.PackageImporter": "", "numpy.load": "", "np.load": "", "torch.serialization.add_safe_globals": "",
    "yaml.unsafe_load": "", "yaml.full_load": "", "runpy.run_path": "", "eval": "", "exec": "", "os.system": "",
}  # fmt: skip


@functools.cache
def sources() -> list[tuple[str, ast.Module]]:
    paths = sorted(PACKAGE.rglob("*.py"))
    return [(path.relative_to(PACKAGE).as_posix(), ast.parse(path.read_text())) for path in paths]


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def loads_in(tree: ast.AST) -> list[tuple[str, str]]:
    """Every call of a loader, with what it gives as ``weights_only``."""
    return [
        (name, next((ast.unparse(k.value) for k in call.keywords if k.arg == "weights_only"), ""))
        for name, call in calls(tree)
        if name in LOADERS
    ]


def scripts_in(tree: ast.AST) -> Iterator[ast.AST]:
    """Texts in a source file that are programs of their own, run in another process."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and "\nimport " in node.value:
            try:
                yield ast.parse(node.value)
            except SyntaxError:  # words that only begin so
                continue


def test_s2_weights_only_is_in_every_call() -> None:
    """One call passes a variable: it is False behind ``--allow-pickle`` alone."""
    found = [(path, *call) for path, tree in sources() for call in loads_in(tree)]
    assert ("checkpoints/torch_file.py", "torch.load", "plain") in found
    assert {call[2] for call in found if call[0] != "checkpoints/torch_file.py"} <= {"True"}, found
    assert {call[1] for call in found} == {"torch.load"}
    in_scripts = [call for _, tree in sources() for script in scripts_in(tree) for call in loads_in(script)]
    # a program that was just exported is run in a process of its own, which is given its inputs
    assert set(in_scripts) <= {("torch.load", "True"), ("torch.export.load", "")}


def test_s2_nothing_unpickles() -> None:
    for path, tree in sources():
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
            assert not {name.partition(".")[0] for name in names} & PICKLES, path
            assert not set(names) & LOADERS.keys(), path  # from torch import load


def test_s2_the_search_can_fail() -> None:
    tree = ast.parse("import pickle\ntorch.load(x)\ntorch.load(x, weights_only=False)\nfrom torch import load")
    assert loads_in(tree) == [("torch.load", ""), ("torch.load", "False")]
    script = ast.parse('RUN = """\nimport torch\ntorch.load(x, weights_only=False)\n"""')
    assert [call for found in scripts_in(script) for call in loads_in(found)] == [("torch.load", "False")]


def test_s2_safe_globals_are_one_class_for_one_call() -> None:
    found = [
        (path, name, [ast.unparse(arg) for arg in call.args])
        for path, tree in sources()
        for name, call in calls(tree)
        if "safe_globals" in name and "get_" not in name
    ]
    assert found == [("checkpoints/torch_file.py", "torch.serialization.safe_globals", ["[argparse.Namespace]"])]


@pytest.mark.parametrize("kind", ["torch-zip", "torch-legacy"])
def test_s2_weights_only_is_passed_and_tried_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    seen = []

    def load(*args: Any, **kwargs: Any) -> Any:
        seen.append(kwargs["weights_only"])
        raise pickle.UnpicklingError("you can turn weights_only off")

    SAVERS[kind](STATE, tmp_path / "x.pt")
    monkeypatch.setattr(torch, "load", load)
    for allow_pickle in (False, True):  # a plain file is read safely, flag or not
        assert "torch could not read" in refusal(tmp_path / "x.pt", allow_pickle=allow_pickle)
    assert seen == [True, True]


@pytest.mark.parametrize("value", ["1", "y", "true", "0"])
def test_s2_the_environment_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", value)
    torch.save({"state_dict": STATE, "args": argparse.Namespace(a=1)}, tmp_path / "plain.pt")
    assert same(read_state_dict(tmp_path / "plain.pt").tensors, STATE)
    torch.save({"state_dict": STATE, "x": Call(os.mkdir, str(tmp_path / "canary"))}, tmp_path / "x.pt")
    assert "it is more than weights" in refused(tmp_path / "x.pt")
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("known", [[], [argparse.Namespace]])
def test_s2_safe_globals_are_as_before(tmp_path: Path, known: list[Any]) -> None:
    torch.save({"state_dict": STATE, "args": argparse.Namespace(a=1)}, tmp_path / "x.pt")
    with torch.serialization.safe_globals(known):
        before = set(torch.serialization.get_safe_globals())
        read_state_dict(tmp_path / "x.pt")
        assert set(torch.serialization.get_safe_globals()) == before
    with torch.serialization.safe_globals([Call]):  # what others allowed is not allowed here
        torch.save({"state_dict": STATE, "x": Path("a")}, tmp_path / "x.pt")
        assert "pathlib" in refusal(tmp_path / "x.pt")


# S3


def test_s3_the_canary_sings_when_asked(tmp_path: Path) -> None:
    """The negative twin of S1: with the flag, after the names were shown, the file is loaded as it wishes."""
    path, canary = tmp_path / "x.pt", tmp_path / "canary"
    torch.save({"state_dict": STATE, "extra": Call(os.mkdir, str(canary))}, path)
    assert blocked_globals(path) == (f"{os.mkdir.__module__}.mkdir",) and not canary.exists()
    file = read_state_dict(path, allow_pickle=True)
    assert canary.exists() and same(file.tensors, STATE)
    assert file.globals == (f"{os.mkdir.__module__}.mkdir",)


def test_s3_the_globals_are_printed_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    canary, said = tmp_path / "canary", []
    monkeypatch.setattr(Terminal, "warn", lambda self, text: said.append((text, canary.exists())))
    torch.save({"state_dict": STATE, "extra": Call(os.mkdir, str(canary))}, tmp_path / "x.pt")
    refused(tmp_path / "x.pt", "--allow-pickle", spec="timm:test_resnet")  # whose weights these are not
    assert said == [("--allow-pickle: x.pt runs posix.mkdir", False)] and canary.exists()


def test_s3_the_flag_is_on_the_command_line_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for prefix, name in itertools.product(("", "SE_INJECT_", "SE_INJECT_CONVERT_"), ("ALLOW_PICKLE", "UNSAFE")):
        monkeypatch.setenv(prefix + name, "1")
    torch.save({"state_dict": STATE, "extra": Call(os.mkdir, str(tmp_path / "canary"))}, tmp_path / "x.pt")
    assert "--allow-pickle runs that code" in refused(tmp_path / "x.pt")
    assert not (tmp_path / "canary").exists()
    commands = [main, *main.commands.values()]
    assert not any(command.context_settings.get("auto_envvar_prefix") for command in commands)
    options = [p for command in commands for p in command.params if isinstance(p, click.Option)]
    assert not any(option.envvar for option in options)
    with pytest.raises(RulesError, match="allow_pickle"):
        read({"placement": "auto", "allow_pickle": True})
    assert not any("allow_pickle" in str(getattr(se_inject, name).__doc__) for name in se_inject.__all__)


def test_s3_a_whole_model_needs_the_flag(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    torch.save({"model": model}, tmp_path / "x.pt")
    assert "torch.nn.modules.linear.Linear" in refusal(tmp_path / "x.pt")
    file = read_state_dict(tmp_path / "x.pt", allow_pickle=True)
    assert file.unwrapped == ("model", "Linear") and same(file.tensors, model.state_dict())


# S4


def crafted(path: Path, canary: Path) -> None:
    """A .pt2 whose every part would run code where torch.export loads it."""
    body = pickled("os.mkdir", (str(canary),))
    expression = f'getattr(__import__("os"),"mkdir")({str(canary)!r})'
    graph = {"inputs": [f'a" if {expression} else "b'], "expr_str": expression}
    program = json.dumps({"graph_module": {"graph": graph}})
    members = {
        "archive_format": b"pt2",
        "archive_version": b"0",
        "models/model.json": program.encode(),
        "data/weights/model_weights_config.json": b'{"config": {"a": {"path_name": "w", "use_pickle": true}}}',
        "data/weights/w": body,
        "data/constants/opaque_obj_0": body,
        "data/constants/custom_obj_0": body,
        "data/sample_inputs/model.pt": body,
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(f"x/{name}", data)


@pytest.mark.parametrize("also", ["", "data.pkl", "constants.pkl", ".data/extern_modules", "byteorder", "version"])
@pytest.mark.parametrize("name", ["x.pt2", "x.pt", "x.safetensors", "pytorch_model.bin"])
def test_s4_a_pt2_is_refused_by_its_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, also: str, name: str) -> None:
    canary = tmp_path / "canary"
    crafted(tmp_path / name, canary)
    if also:
        with zipfile.ZipFile(tmp_path / name, "a") as archive:
            archive.writestr(f"x/{also}", pickled("os.mkdir", (str(canary),)))
    monkeypatch.setitem(sys.modules, "torch.export", None)  # importing it would fail
    said = refused(tmp_path / name)
    assert "this is an exported program (.pt2)" in said or (also.startswith(".data") and "torch.package" in said)
    given = tmp_path if name == "pytorch_model.bin" else tmp_path / name
    assert refused(given, "--allow-pickle").startswith("Error: ") and not canary.exists()


def test_s4_a_program_behind_a_plain_pickle(tmp_path: Path) -> None:
    """Whatever else lies in the archive, only ``data.pkl`` and its storages would be read."""
    torch.save(STATE, tmp_path / "x.pt")
    with zipfile.ZipFile(tmp_path / "x.pt", "a") as archive:
        archive.writestr("x/models/evil.json", "{}")
    assert "this is an exported program" in refusal(tmp_path / "x.pt")
    write_zip(b"\x80\x02}X\x01\x00\x00\x00aNs.", tmp_path / "plain.pt")
    assert "no weights found" in refusal(tmp_path / "plain.pt")


def test_s4_no_command_takes_a_program() -> None:
    result = run("convert", "model.pt2", "--random-init", "-o", "out")
    assert result.exit_code == 1 and "names no model" in result.stderr
