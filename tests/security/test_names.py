"""Names of modules and parameters, and what stands in a checkpoint, are text wherever they go."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from markdown_it import MarkdownIt
from safetensors.torch import load_file

import se_inject
from tests.checkpoints.files import STATE, refused
from tests.helpers import ROOT, run
from tests.report.test_html import Page
from tests.security import hostile

SIZE = ["--input-size", "3,8,8"]


def convert(factory: str, *args: str) -> Result:
    result = run("convert", f"tests.security.hostile:{factory}", "--random-init", *SIZE, *args)
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the hostile net (``out``), and the same net under harmless names (``tame``)."""
    path = tmp_path_factory.mktemp("hostile")
    canary = str(path / "canary")
    assert "." not in canary, "a module's name cannot hold a dot"
    shown = convert("net", "--model-arg", f"canary={canary!r}", "-o", str(path / "out"))
    (path / "shown").write_text(shown.stdout)
    convert("harmless", "-o", str(path / "tame"))
    return path


@pytest.fixture(autouse=True)
def no_canary(request: pytest.FixtureRequest) -> Any:
    yield
    if "folder" in request.fixturenames:
        path = request.getfixturevalue("folder")
        assert not os.path.lexists(path / "canary")
        assert {p.name for p in path.iterdir()} <= {"out", "tame", "shown", "base", "programs"}


def model(path: Path) -> hostile.Net:
    torch.manual_seed(0)
    return hostile.net(str(path / "canary")).eval()


def base(path: Path) -> list[str]:
    return ["--model", "tests.security.hostile:net", "--model-arg", f"canary={str(path / 'canary')!r}"]


def test_s9_every_name_is_a_site_and_a_key(folder: Path) -> None:
    called = hostile.names(str(folder / "canary"))
    plan = se_inject.read_plan(folder / "out" / "plan.json")
    assert {d.site.owner for d in plan.insertions} == {f"blocks.{n}" for c in called for n in (c, c + "p")}
    written = load_file(folder / "out" / "model.safetensors")
    assert written.keys() > model(folder).state_dict().keys()
    assert all(torch.equal(written[key], value) for key, value in model(folder).state_dict().items())


def test_s9_the_folder_verifies_and_loads(folder: Path) -> None:
    result = run("verify", str(folder / "out"), *base(folder))
    assert result.exit_code == 0 and "FAIL" not in result.stdout, result.output
    loaded = se_inject.load(folder / "out", model(folder))
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(loaded(x), model(folder)(x))
    assert run("remove", str(folder / "out"), "-o", str(folder / "base"), *base(folder)).exit_code == 0
    assert load_file(folder / "base" / "model.safetensors").keys() == model(folder).state_dict().keys()


BUILD = """
import sys, torch
sys.path[:0] = sys.argv[1:3]
import modeling
from tests.security import hostile
torch.manual_seed(0)
model, x = hostile.net(sys.argv[3]).eval(), torch.randn(2, 3, 8, 8)
assert torch.equal(modeling.load(canary=sys.argv[3])(x), model(x))
"""


def test_s9_the_generated_file_holds_names_as_text(folder: Path) -> None:
    """A name is a part of a string in it, never a part of its code."""
    code = (folder / "out" / "modeling.py").read_text()
    tame = identifiers(ast.parse((folder / "tame" / "modeling.py").read_text()))
    more = identifiers(ast.parse(code)) - tame
    assert more <= {"net", "SEBlock2", "SEParameters2", "se_1"}, more
    assert all(character.isprintable() or character == "\n" for character in code)
    command = [sys.executable, "-B", "-c", BUILD, str(folder / "out"), str(ROOT), str(folder / "canary")]
    done = subprocess.run(command, cwd=folder / "out", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def identifiers(tree: ast.AST) -> set[str]:
    """All that is a name in Python code."""
    fields = ("id", "attr", "arg", "name", "asname", "module")
    found = {getattr(node, field, None) for node in ast.walk(tree) for field in fields}
    return {name for name in found if isinstance(name, str)}


def could_be_code(name: str) -> bool:
    return any(c in "\"'\\" or not c.isprintable() for c in name)


def test_s9_exports_refuse_names_that_could_be_code(folder: Path) -> None:
    """torch.export writes names into the code that it runs."""
    for name in filter(could_be_code, hostile.names(str(folder / "canary"))):
        injection = se_inject.inject(hostile.Net([name]).eval(), (3, 8, 8), verify=False)
        for kind in ("pt2", "onnx"):
            with pytest.raises(se_inject.SEInjectError, match=r"torch\.export writes names into code: rename"):
                se_inject.save(injection, folder / "programs", formats=kind)
        assert not (folder / "programs").exists()


@pytest.mark.slow
def test_s9_other_names_are_exported(folder: Path) -> None:
    """The negative twin: names that are no code to anybody go into the program, which is run in another process."""
    called = ["<script>alert(1)</script>", "|a|b|", "/etc/passwd", "-rf"]
    injection = se_inject.inject(hostile.Net(called).eval(), (3, 8, 8))
    se_inject.save(injection, folder / "programs", formats=("safetensors", "pt2"))
    assert (folder / "programs" / "model.pt2").is_file()


def test_s9_surrogates_are_refused_in_one_line(tmp_path: Path) -> None:
    """Half a surrogate pair is a name in Python, and none in a file."""
    net = hostile.Net(["\ud800"]).eval()
    injection = se_inject.inject(net, (3, 8, 8))
    with pytest.raises(se_inject.SEInjectError, match="has a name that safetensors cannot keep"):
        se_inject.save(injection, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def shape(path: Path) -> set[tuple[str, tuple[str, ...]]]:
    return set(Page((path / "report.html").read_text()).elements)


def test_s10_the_page_has_the_elements_of_its_template(folder: Path) -> None:
    page = Page((folder / "out" / "report.html").read_text())
    assert shape(folder / "out") == shape(folder / "tame")
    assert page.open == [] and page.comments == 0
    (policy,) = (value for value in page.value("meta", "content") if "default-src" in value)
    assert policy.startswith("default-src 'none'")
    assert not [value for _, _, value in page.values if value.strip().lower().startswith(("javascript:", "data:text"))]
    tame = Page((folder / "tame" / "report.html").read_text())
    assert page.raw == tame.raw  # the style and the script


def test_s10_markdown_and_terminal(folder: Path) -> None:
    text = (folder / "out" / "report.md").read_text()
    rendered = MarkdownIt("commonmark", {"html": True}).enable("table").render(text)
    tags = set(re.findall(r"<(/?\w+)", rendered))
    tame = MarkdownIt("commonmark", {"html": True}).enable("table").render((folder / "tame" / "report.md").read_text())
    assert tags <= set(re.findall(r"<(/?\w+)", tame)) | {"strong", "/strong"}
    rows = [line for line in text.splitlines() if line.startswith("|")]
    columns = {len(re.findall(r"(?<!\\)\|", row)) for row in rows}
    wanted = (folder / "tame" / "report.md").read_text().splitlines()
    assert columns == {len(re.findall(r"(?<!\\)\|", row)) for row in wanted if row.startswith("|")}
    again = run("report", str(folder / "out"), "--all").stdout
    for shown in (text, (folder / "shown").read_text(), again, (folder / "out" / "report.json").read_text()):
        assert all(character.isprintable() or character == "\n" for character in shown)


def test_s10_a_cell_is_no_formula(folder: Path) -> None:
    """Pasted into a spreadsheet, no cell of a table begins as a formula does."""
    text = (folder / "out" / "report.md").read_text()
    cells = [cell.strip() for line in text.splitlines() if line.startswith("|") for cell in line.split("|")]
    assert any("HYPERLINK" in cell for cell in cells)
    assert not [cell for cell in cells if re.match(r"[=@\t\r]|[-+][^\d\s.,%-]", cell)]


KEY = "</td><script>alert(1)</script>\x1b[31m|=1\u202e"


def test_s10_what_stands_in_a_checkpoint(folder: Path, tmp_path: Path) -> None:
    """Its file name, and keys beside the weights, are shown in the report."""
    net = hostile.harmless(1)
    path = tmp_path / "<script>\x1b[31m=1|.pt"
    torch.save({**net.state_dict(), KEY: 3}, path)
    args = ["--model-arg", "count=1", "--checkpoint", str(path), *SIZE, "-o", str(tmp_path / "out")]
    result = run("convert", "tests.security.hostile:harmless", *args)
    assert result.exit_code == 0, result.output
    source = json.loads((tmp_path / "out" / "report.json").read_text())["source"]
    assert source["ignored"] == [KEY] and source["file"] == path.name
    page, tame = (Page((out / "report.html").read_text()) for out in (tmp_path / "out", folder / "tame"))
    assert {tag for tag, _ in page.elements} <= {tag for tag, _ in tame.elements}
    assert page.raw == tame.raw and "<script>alert" in "".join(page.text)
    markdown = (tmp_path / "out" / "report.md").read_text()
    assert "<script" not in MarkdownIt("commonmark", {"html": True}).enable("table").render(markdown)
    for shown in (result.stdout, result.stderr, markdown, (tmp_path / "out" / "report.html").read_text()):
        assert all(character.isprintable() or character == "\n" for character in shown)


def test_s10_refusals_print_names_as_escapes(tmp_path: Path) -> None:
    torch.save({**STATE, KEY: torch.ones(1)}, tmp_path / "x.pt")
    said = refused(tmp_path / "x.pt", spec="timm:test_resnet")
    assert "\\x1b[31m" in said and said.isprintable()
