"""The README holds: its commands run, its Python runs, what it shows is what they print."""

from __future__ import annotations

import contextlib
import html
import itertools
import re
import sys
from pathlib import Path

import pytest
import torch

from se_inject.rules.schema import read
from tests.helpers import ROOT
from tests.snippets import commands, fences, missing, run, words

TEXT = (ROOT / "README.md").read_text()

# Commands that are not run here -> why not.
NOT_RUN = {
    'python -m pip install ".[all]"': "fetches gigabytes",
    "make demo": "fetches gigabytes; examples/demo.py is run by test_examples.py",
    "make test": "is this suite",
}
# Options that are replaced -> by what.
STAND_INS = {"--pretrained": "--random-init"}  # the weights come from the network

# What a user brings: README's `my_models:make_net` and `best.pth`.
MY_MODELS = """
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x):
        return torch.relu(x + self.bn(self.conv(x)))


def make_net():
    return nn.Sequential(nn.Conv2d(3, 32, 3, 4, 1), Block(32), Block(32), nn.Flatten(), nn.Linear(8192, 2))
"""
MANIFEST = 'model,checkpoint,input_size\nmy_models:make_net,*.pth,"3,64,64"\n'


FENCES = fences(TEXT)
SHOWN_CLASS = "class SEBottleneck(Bottleneck):"


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A folder in which every command of the README was run, in its order, and what each printed."""
    folder = tmp_path_factory.mktemp("readme")
    shown: dict[str, str] = {}
    with contextlib.chdir(folder), pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        Path("my_models.py").write_text(MY_MODELS)
        Path("models.csv").write_text(MANIFEST)
        Path("rules.yaml").write_text(next(fence.body for fence in FENCES if fence.kind == "yaml"))
        torch.manual_seed(0)
        torch.save(__import__("my_models").make_net().state_dict(), "best.pth")
        for fence in FENCES:
            for command in commands(fence) if fence.kind == "sh" else ():
                if command not in NOT_RUN:
                    shown[command] = run(command, STAND_INS)
    sys.modules.pop("my_models", None)
    return folder, shown


def test_kinds_of_fences() -> None:
    assert {fence.kind for fence in FENCES} == {"sh", "text", "python", "yaml"}


def test_every_command_runs(ran: tuple[Path, dict[str, str]]) -> None:
    folder, shown = ran
    assert len(shown) >= 9
    for name in ("out", "again", "mine"):
        assert {
            "SHA256SUMS",
            "model.safetensors",
            "plan.json",
            "modeling.py",
            "report.html",
            "report.json",
            "report.md",
        } == {p.name for p in (folder / name).iterdir()}
    same = [(folder / name / "model.safetensors").read_bytes() for name in ("out", "again")]
    assert same[0] == same[1]  # "the same, without rules"
    assert not any("FAIL" in text for text in shown.values())


def test_lists_of_exceptions_are_in_use() -> None:
    all_commands = [command for fence in FENCES if fence.kind == "sh" for command in commands(fence)]
    assert NOT_RUN.keys() <= set(all_commands)
    assert all(any(option in command for command in all_commands) for option in STAND_INS)


@pytest.mark.wording
def test_what_is_shown_is_what_is_printed(ran: tuple[Path, dict[str, str]]) -> None:
    """Every line of a text fence stands, in this order, in the output of the command before it."""
    for command, fence in itertools.pairwise(FENCES):
        if fence.kind != "text":
            continue
        (line,) = commands(command)
        lost = missing(fence.body, ran[1][line])
        assert not lost, f"{line} does not print: {lost}"


def test_method_that_is_shown_is_the_generated_one(ran: tuple[Path, dict[str, str]]) -> None:
    shown = next(fence.body for fence in FENCES if fence.body.startswith(SHOWN_CLASS))
    assert f"```python\n{shown}```" in (ran[0] / "out" / "report.md").read_text()
    assert shown in (ran[0] / "out" / "modeling.py").read_text()


def test_python_runs(
    ran: tuple[Path, dict[str, str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ran[0])
    monkeypatch.setattr(sys, "path", list(sys.path))
    names: dict[str, object] = {}
    snippets = [f for f in FENCES if f.kind == "python" and not f.body.startswith(SHOWN_CLASS)]
    for fence in snippets:
        exec(compile(fence.body, "README.md", "exec"), names)
    sys.modules.pop("modeling", None)
    assert len(snippets) == 2
    assert capsys.readouterr().out.startswith("Injection(timm.models.resnet.ResNet: 4 blocks")
    optimizer = names["optimizer"]
    assert isinstance(optimizer, torch.optim.AdamW)
    groups = {group["name"]: len(group["params"]) for group in optimizer.param_groups}
    assert groups == {"base": 1, "base without decay": 1, "blocks": 16}  # the head; 4 blocks, two layers of two tensors
    model = names["model"]
    assert isinstance(model, torch.nn.Module)
    assert type(model.get_submodule("layer1.0")).__name__ == "SEBottleneck"


def test_rules_that_are_shown_mean_what_they_say(ran: tuple[Path, dict[str, str]]) -> None:
    rules = read(ran[0] / "rules.yaml")
    assert len(rules.sites) == 2
    printed = next(text for command, text in ran[1].items() if command.endswith("--rules rules.yaml"))
    assert "layer4.2.se" in printed and "2048 -> 256" in printed  # the entry's ratio 8
    assert "layer2.0.se" in printed and "512 -> 32" in printed  # the file's ratio 16
    assert "layer1.0.se" not in printed


@pytest.mark.wording
def test_the_terminal_in_the_picture_shows_what_is_printed(ran: tuple[Path, dict[str, str]]) -> None:
    """``make pictures`` takes it anew."""
    svg = (ROOT / "docs" / "pictures" / "terminal.svg").read_text()
    shown = [html.unescape(text) for text in re.findall(r'<text class="terminal-r[^>]*>(.*?)</text>', svg)]
    command = shown.pop(0).replace("\xa0", " ").removeprefix("$ ")
    assert words(" ".join(shown)) == words(ran[1][command])
    assert "url(http" not in svg  # fonts, fetched from elsewhere


def test_pictures_are_small_and_described() -> None:
    pictures = re.findall(r"!\[(.*)\]\((.*)\)", TEXT)
    assert len(pictures) == 2
    for text, path in pictures:
        assert len(text) > 60
        assert (ROOT / path).stat().st_size < 250_000


def test_no_paths_of_a_machine() -> None:
    assert not re.search(r"(?<![\w.])/(home|root|tmp|work|usr|Users)/", TEXT)
    for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", TEXT):
        assert (ROOT / link).exists(), link
