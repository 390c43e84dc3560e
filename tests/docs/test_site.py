"""The site of the documentation: the references name all there is, and it is read from disk, without a server."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import se_inject
from se_inject import types
from se_inject.cli import main
from tests.helpers import ROOT
from tests.report.test_browser import CHROMIUM, browser  # noqa: F401

pytestmark = pytest.mark.slow
TEXT = re.search(r"^site:.*\n\t(.*)$", (ROOT / "Makefile").read_text(), re.M)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `make site` makes it."""
    assert TEXT is not None
    words = TEXT[1].split()
    assert words[0] == "$(BIN)/python" and words[-1] == "site"
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run([sys.executable, *words[1:-1], folder], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_reference_has_every_public_name(site: Path) -> None:
    found = re.findall(r'id="se_inject\.(\w+)"', (site / "docs" / "api.html").read_text())
    assert sorted(found) == sorted({*se_inject.__all__} - {"__version__"})
    assert found[:3] == ["plan", "inject", "apply"]  # in the order of the index


def test_data_stands_with_its_fields_and_their_comments(site: Path) -> None:
    page = (site / "docs" / "api.html").read_text()
    data = {name for name, item in vars(types).items() if dataclasses.is_dataclass(item)}
    assert data <= set(re.findall(r'id="se_inject(?:\.types)?\.(\w+)"', page)), "name it in docs/api.md"
    text = re.sub(r"<[^>]+>", "", page)
    assert "axis: int  # of the channels" in text


def test_the_reference_has_every_option(site: Path) -> None:
    text = re.sub(r"<[^>]+>", "", (site / "docs" / "cli.html").read_text())
    for name, command in main.commands.items():
        assert f"se-inject {name}" in text
        assert len(command.params) > 2
        assert all(option in text for parameter in command.params for option in parameter.opts if option[0] == "-")
    assert "se-inject convert timm:resnet50 --pretrained -o out" in text


def test_pages_and_pictures(site: Path) -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    assert all((site / page.relative_to(ROOT).with_suffix(".html")).is_file() for page in pages)
    assert "url=README.html" in (site / "index.html").read_text()
    for page in site.rglob("*.html"):
        pictures = re.findall(r'<img[^>]* src="([^"]+)"', page.read_text())
        assert all((page.parent / picture).is_file() for picture in pictures), page


@pytest.mark.skipif(not CHROMIUM, reason="no chromium on this machine: apt-get install chromium")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:playwright")
def test_search_from_disk(site: Path, browser: Any) -> None:  # noqa: F811
    page, problems, requests = browser.new_page(), [], []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto((site / "index.html").as_uri())
    page.wait_for_url("**/README.html")
    page.fill("input[name=q]", "fingerprint")
    page.press("input[name=q]", "Enter")
    page.wait_for_selector("ul.search li a")
    page.locator("ul.search li a", has_text="Contributing").first.click()
    page.wait_for_url("**/CONTRIBUTING.html*")
    assert not problems and all(request.startswith("file:") for request in requests)
