"""A block, a placement, a format, a check and a command are each one new file and one line: on a copy."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.helpers import ROOT


class Addition(NamedTuple):
    file: str
    text: str
    table: str  # file of the table
    after: str  # the line of the table behind which the new one goes
    line: str


ADDITIONS = {
    "block": Addition(
        "blocks/scale.py",
        """
import torch
from torch import nn
from se_inject.blocks.block import Block

class Scale(nn.Module):
    def __init__(self, channels, *, first=1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels, 1, 1), first))

    def forward(self, x):
        return x * self.weight

def resolve(site, init, options):
    return {"channels": site.channels, "first": float(options.get("first", 1.0))}

BLOCK = Block(Scale, resolve, {"first": "first value of every channel"}, "none", ("NCHW",), ("identity",))
""",
        "blocks/table.py",
        '    "stn": "spatial_transformer",',
        '    "scale": "scale",',
    ),
    "placement": Addition(
        "search/placements/join.py",
        """
from se_inject.search.axes import channels
from se_inject.search.candidates import Candidate

def find(flow, call):
    \"\"\"After the addition of a residual block, before its activation.\"\"\"
    for join in flow.joins[call]:
        yield Candidate("join", call, join.node, channels(join.node), join)
""",
        "search/placements/__init__.py",
        '    "input": Picture(("*", "network"), None),',
        '    "join": Picture(("layers",), (), ("*",)),',
    ),
    "format": Addition(
        "output/formats/listing.py",
        """
from se_inject.output.formats.subject import Format
from se_inject.types import Check

def write(subject):
    return {"keys.txt": "\\n".join(subject.whole.state_dict()).encode()}

def check(folder, subject):
    right = (folder / "keys.txt").read_text().split() == list(subject.whole.state_dict())
    return Check("keys.txt", right, "lists every key")

FORMAT = Format("the keys", ("keys.txt",), write, check)
""",
        "output/names.py",
        '    "timm": "timmfolder",',
        '    "keys": "listing",',
    ),
    "check": Addition(
        "checks/trainable.py",
        """
from se_inject.types import Check

def check(spliced):
    return (Check("trainable", all(p.requires_grad for p in spliced.model.parameters()), "every parameter"),)
""",
        "checks/table.py",
        '    "independent",',
        '    "trainable",',
    ),
    "command": Addition(
        "cli/hello.py",
        """
import click
from se_inject.cli.parts import command

@command(short_help="Say hello.")
def hello():
    click.echo("hello")
""",
        "cli/__init__.py",
        '    "listing:list_",',
        '    "hello:hello",',
    ),
}
SCRIPT = """
import json, sys
from pathlib import Path
import torch
from click.testing import CliRunner
import se_inject
from se_inject.cli import main
from tests.tiny import SIZE, net

assert Path(se_inject.__file__).is_relative_to(sys.argv[1]), se_inject.__file__
result = se_inject.inject(net(), SIZE, {"placement": "join", "block": {"name": "scale"}})
report = se_inject.save(result, "out", formats="keys")
listed = json.loads(CliRunner().invoke(main, ["list", "blocks", "--json"]).output)
print(json.dumps({
    "block": "scale" in {row["block"] for row in listed} and "Scale(" in repr(result.model),
    "placement": {d.site.placement for d in result.plan.insertions} == {"join"},
    "format": Path("out/keys.txt").is_file() and [c.passed for c in report.checks if c.name == "keys.txt"] == [True],
    "check": [c.passed for c in result.report.checks if c.name == "trainable"] == [True],
    "command": CliRunner().invoke(main, ["hello"]).output == "hello\\n",
}))
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a copy of the package with all additions says of each."""
    here = tmp_path_factory.mktemp("copy")
    shutil.copytree(ROOT / "se_inject", here / "se_inject", ignore=shutil.ignore_patterns("__pycache__"))
    for added in ADDITIONS.values():
        new, table = here / "se_inject" / added.file, here / "se_inject" / added.table
        assert not new.exists()
        new.write_text(added.text, encoding="utf-8")
        text = table.read_text(encoding="utf-8")
        assert text.count(f"{added.after}\n") == 1, added.table
        table.write_text(text.replace(added.after, f"{added.after}\n{added.line}"), encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": f"{here}{os.pathsep}{ROOT}", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(here)], cwd=here, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("kind", ADDITIONS)
def test_one_file_and_one_line(kind: str, answers: dict[str, Any]) -> None:
    assert answers[kind]


@pytest.mark.parametrize("kind", ADDITIONS)
def test_contributing_names_the_file_and_the_table(kind: str) -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text.partition(f"### A {kind}\n")[2].partition("###")[0]
    assert f"{Path(ADDITIONS[kind].file).parent}/`" in section and ADDITIONS[kind].table in section
