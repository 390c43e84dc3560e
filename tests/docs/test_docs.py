"""The pages of docs/ hold: their snippets run in order, what they show is printed, what is generated is current."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from click.testing import CliRunner

from docs import generate, places, stack
from se_inject.cli import main
from tests.helpers import ROOT
from tests.snippets import Reader, commands, fences, missing, run

PAGES = sorted(path.name for path in (ROOT / "docs").glob("*.md"))
TUTORIAL = "tutorial.md"  # has tests of its own below
SLOW = {"formats.md"}  # exports
SHOW_REASONS = ("gates.md", "sites.md", "sweep.md")  # in what they show as printed
# Text of a page -> what stands for it here. The weights come from the network; the last norms of random ones are zero.
STAND_INS = {
    "training.md": {
        "pretrained=True": "zero_init_last=False",
        "--pretrained --placement": "--random-init --model-arg zero_init_last=False --placement",
    }
}
# Makes the tutorial short: text -> other text.
QUICK = {"steps=60": "steps=1", "slice(1400, None)": "slice(1400, 1416)"}
# First words of the commands that are not run here -> why not.
NOT_RUN = {
    "python -m pip install": "fetches what is installed",
    "python examples/finetune_accelerate.py": "run by test_examples.py",
    "accelerate launch": "the same",
    "python train": "run by test_timm_train.py",
    "ssh-keygen": "run by test_sums.py",
    "cd out && sha256sum": "the same",
}
# What a page's reader has done before: an output folder to look at.
BEFORE = {"report.md": "se-inject convert torchvision:resnet18 --random-init --input-size 3,64,64 -o out"}


def page(name: str) -> str:
    """What is written by hand of a page: no region of ours, no directive of Sphinx."""
    text = generate.REGION.sub("", (ROOT / "docs" / name).read_text())
    return re.sub(r"^```\{.*?^```$", "", text, flags=re.M | re.S)


def follow(name: str, folder: Path, stand_ins: Mapping[str, str] | None = None) -> Reader:
    """Do what a page says in ``folder``."""
    reader = Reader(stand_ins)
    with contextlib.chdir(folder), pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "100")
        patch.setattr(sys, "path", [str(folder), *sys.path])
        if name in BEFORE:
            run(BEFORE[name])
        for fence in fences(page(name)):
            if not all(command.startswith(tuple(NOT_RUN)) for command in commands(fence)):
                reader.do(fence)
        for module in ("digits_net", "small_net"):
            sys.modules.pop(module, None)
    assert reader.replaced == set(reader.stand_ins)
    return reader


def marks(name: str) -> list[pytest.MarkDecorator]:
    return [pytest.mark.slow] * (name in SLOW) + [pytest.mark.wording] * (name in SHOW_REASONS)


@pytest.mark.parametrize("name", [pytest.param(n, marks=marks(n)) for n in PAGES if n != TUTORIAL])
def test_snippets_run(name: str, tmp_path: Path) -> None:
    follow(name, tmp_path, STAND_INS.get(name))


@pytest.mark.wording
def test_the_tutorial_runs(tmp_path: Path) -> None:
    names = follow(TUTORIAL, tmp_path, QUICK).names
    assert {"converted", "tuned", "base"} <= {path.name for path in tmp_path.iterdir()}
    assert names["new"][0] == "_blocks.1.se."  # type: ignore[index]


@pytest.mark.slow
def test_the_tutorial_trains_what_it_says(tmp_path: Path) -> None:
    reader = follow(TUTORIAL, tmp_path)
    before, first, both = reader.names["before"], reader.names["first"], reader.names["accuracy"](reader.names["model"])
    assert before < 0.2 and 0.85 < first < both  # type: ignore[operator]


def test_a_line_that_is_not_printed_is_found() -> None:
    assert missing("a b\n...\nc", "a  b and then c") == ""
    assert missing("c\na b", "a  b and then c") == "a b"


@pytest.mark.parametrize("name", PAGES)
def test_generated_regions_are_current(name: str) -> None:
    text = (ROOT / "docs" / name).read_text()
    assert generate.fill(text) == text, "make docs"


def test_every_region_is_on_a_page() -> None:
    found = [name for page in PAGES for _, name, _ in generate.REGION.findall((ROOT / "docs" / page).read_text())]
    assert sorted(found) == sorted(generate.REGIONS)


def test_drawings_are_current() -> None:
    for name, picture in (*places.pictures(), ("stack.svg", stack.picture())):
        assert (ROOT / "docs" / "pictures" / name).read_text() == picture, "make docs"


@pytest.mark.parametrize("name", PAGES)
def test_links_and_pictures(name: str) -> None:
    text = (ROOT / "docs" / name).read_text()
    assert not re.search(r"(?<![\w.])/(home|root|tmp|work|usr|Users)/", text)
    for alt, link in re.findall(r"(!?\[[^]]*)\]\((?!https?:)([^)#]+)\)", text):
        assert (ROOT / "docs" / link).exists(), link
        assert len(alt) > 10 or not alt.startswith("!"), f"{link} has no text for those who do not see it"


# -- completion -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_as_documented(shell: str) -> None:
    """What the line for the shell's configuration prints defines a function that asks the command again."""
    command = f"_SE_INJECT_COMPLETE={shell}_source se-inject"
    assert command in (ROOT / "docs" / "cli.md").read_text()
    variable, value = command.split()[0].split("=")
    result = CliRunner(env={variable: value}).invoke(main, prog_name="se-inject")
    assert result.exit_code == 0 and f"{variable}={shell}_complete" in result.stdout


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("ver", ["verify"]),
        ("plan torchvision:resnet1", ["torchvision:resnet101", "torchvision:resnet152", "torchvision:resnet18"]),
        ("plan timm:seresnet3", ["timm:seresnet33ts", "timm:seresnet34"]),
        ("plan m --rules se-res", ["se-resnet", "se-resnet-3x3"]),
        ("plan m --block e", ["ese", "eca"]),
        ("convert m --init ", ["identity", "absorb", "paper"]),
        ("convert m --placement st", ["standard", "stage"]),
        ("plan m --block no", []),
    ],
)
def test_names_are_completed(typed: str, offered: list[str]) -> None:
    environment = {"_SE_INJECT_COMPLETE": "bash_complete", "COMP_WORDS": f"se-inject {typed}"}
    words = f"{environment['COMP_WORDS']}x".split()
    result = CliRunner(env={**environment, "COMP_CWORD": str(len(words) - 1)}).invoke(main, prog_name="se-inject")
    assert [line.partition(",")[2] for line in result.stdout.splitlines() if line] == offered


def test_examples_of_the_help_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that need nothing but a model's name."""
    monkeypatch.chdir(tmp_path)
    helps = [CliRunner().invoke(main, [command, "--help"], terminal_width=100).output for command in ("plan", "sweep")]
    starts = ("    se-inject plan ", "    se-inject sweep ")
    examples = [line.strip() for line in "\n".join(helps).splitlines() if line.startswith(starts)]
    assert len(examples) >= 7
    for example in examples:
        run(example)
