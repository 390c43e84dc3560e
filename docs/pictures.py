"""Takes the pictures of the documentation from real runs: ``make pictures`` (``python -m docs.pictures``).

terminal.svg: ``se-inject plan --explain`` as a terminal shows it. report.png: the top of a ``report.html`` in a
browser. digits.svg: the curves of ``examples/finetune_digits.py``. sweep.svg: the picture of ``se-inject sweep``.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import tempfile
from pathlib import Path

os.environ["SOURCE_DATE_EPOCH"] = "0"  # no date in matplotlib's file

import torch
from click.testing import CliRunner
from matplotlib import rc_context
from playwright.sync_api import sync_playwright
from rich.console import Console
from rich.text import Text

from examples import finetune_digits
from se_inject.cli import main as command_line

FOLDER = Path(__file__).parent / "pictures"
EXPLAIN = "plan torchvision:resnet50 --explain layer1.1"
SWEEP = "sweep timm:resnet* --placement standard,inner --ratio 8,16,32 --force --plot"
CONVERT = "convert torchvision:resnet50 --random-init -o"
BROWSER = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), "")
COLUMNS, WIDE, HIGH = 92, 1200, 900


def run(command: str) -> str:
    """What a command prints on a terminal, colours included."""
    environment = {"COLUMNS": str(COLUMNS), "FORCE_COLOR": "1", "TERM": "xterm-256color"}
    result = CliRunner(env=environment).invoke(command_line, command.split())
    assert result.exit_code == 0, result.stderr
    return result.stdout


def terminal() -> str:
    """The command and its output as SVG, in the reader's own monospaced font."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO())
    console.print(Text(f"$ se-inject {EXPLAIN}", "bold"))
    console.print(Text.from_ansi(run(EXPLAIN)))
    svg = console.export_svg(title="se-inject", unique_id="terminal")
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.S)  # fetched from elsewhere
    return "\n".join(line.rstrip() for line in svg.replace("Fira Code", "ui-monospace").splitlines()) + "\n"


def page(path: Path) -> None:
    """The first screen of a report."""
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        torch.manual_seed(0)
        run(f"{CONVERT} {folder}/out")
        browser = playwright.chromium.launch(executable_path=BROWSER or None, args=["--no-sandbox"])
        opened = browser.new_page(viewport={"width": WIDE, "height": HIGH}, color_scheme="light")
        opened.goto(Path(folder, "out", "report.html").as_uri())
        opened.screenshot(path=path)
        browser.close()


def main() -> None:
    (FOLDER / "terminal.svg").write_text(terminal())
    run(f"{SWEEP} {FOLDER / 'sweep.svg'}")
    page(FOLDER / "report.png")
    with rc_context({"svg.hashsalt": "digits", "svg.fonttype": "none"}):
        finetune_digits.main(str(FOLDER / "digits.svg"))


if __name__ == "__main__":
    main()
