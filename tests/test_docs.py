"""The pages of docs/ hold: their snippets run in order, what they show is printed, what is generated is current."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from docs import generate, places
from tests.snippets import Reader, commands, fences, missing, run

ROOT = Path(__file__).parent.parent
PAGES = sorted(path.name for path in (ROOT / "docs").glob("*.md"))
TUTORIAL = "tutorial.md"  # has tests of its own below
SLOW = {"formats.md"}  # exports
# Makes the tutorial short: text -> other text.
QUICK = {"steps=60": "steps=1", "slice(1400, None)": "slice(1400, 1416)"}
NOT_RUN = {'python -m pip install ".[demo]"'}
# What a page's reader has done before: an output folder to look at.
BEFORE = {"report.md": "se-inject convert torchvision:resnet18 --random-init --input-size 3,64,64 -o out"}


def page(name: str) -> str:
    """What is written by hand of a page."""
    return generate.REGION.sub("", (ROOT / "docs" / name).read_text())


def follow(name: str, folder: Path, stand_ins: Mapping[str, str] | None = None) -> Reader:
    """Do what a page says in ``folder``."""
    reader = Reader(stand_ins)
    with contextlib.chdir(folder), pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "100")
        patch.setattr(sys, "path", [str(folder), *sys.path])
        if name in BEFORE:
            run(BEFORE[name])
        for fence in fences(page(name)):
            if not {*commands(fence)} <= NOT_RUN:
                reader.do(fence)
        sys.modules.pop("digits_net", None)
    assert reader.replaced == set(reader.stand_ins)
    return reader


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in PAGES if n != TUTORIAL]
)
def test_snippets_run(name: str, tmp_path: Path) -> None:
    follow(name, tmp_path)


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


def test_pictures_of_placements_are_current() -> None:
    for name, picture in places.pictures():
        assert (ROOT / "docs" / "pictures" / name).read_text() == picture, "make docs"


@pytest.mark.parametrize("name", PAGES)
def test_links_and_pictures(name: str) -> None:
    text = (ROOT / "docs" / name).read_text()
    assert not re.search(r"(?<![\w.])/(home|root|tmp|work|usr|Users)/", text)
    for alt, link in re.findall(r"(!?\[[^]]*)\]\((?!https?:)([^)#]+)\)", text):
        assert (ROOT / "docs" / link).exists(), link
        assert len(alt) > 10 or not alt.startswith("!"), f"{link} has no text for those who do not see it"
