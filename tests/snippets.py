"""The fences of a page of documentation, and a reader who does what they say, in their order, in a folder."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from click.testing import CliRunner

from se_inject.cli import main
from se_inject.rules.schema import read


@dataclass(frozen=True)
class Fence:
    kind: str
    body: str


def fences(text: str) -> list[Fence]:
    return [Fence(*match) for match in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S)]


def commands(fence: Fence) -> list[str]:
    """The lines of a shell fence without their comments."""
    return [re.sub(r"\s+#.*", "", line) for line in fence.body.splitlines()]


def words(text: str) -> str:
    return " ".join(text.split())


def missing(shown: str, printed: str) -> str:
    """The first line of ``shown`` that does not stand, in this order, in what was printed; ``...`` stands for more."""
    printed, at = words(printed), 0
    for expected in filter(None, map(words, shown.splitlines())):
        if expected == "...":
            continue
        found = printed.find(expected, at)
        if found < 0:
            return expected
        at = found + len(expected)
    return ""


def run(command: str, stand_ins: Mapping[str, str] | None = None) -> str:
    """What a command of the documentation prints; options among ``stand_ins`` are replaced."""
    program, *args = shlex.split(command)
    assert program == "se-inject", f"neither run nor listed: {command}"
    result = CliRunner().invoke(main, [(stand_ins or {}).get(arg, arg) for arg in args])
    assert result.exit_code == 0, f"{command}: {result.stderr or result.exception}"
    return result.stdout


class Reader:
    """What the reader of a page has done so far. ``names`` are those of Python, ``printed`` is what came out last."""

    def __init__(self, stand_ins: Mapping[str, str] | None = None) -> None:
        self.stand_ins = stand_ins or {}
        self.names: dict[str, object] = {}
        self.printed = ""
        self.replaced: set[str] = set()

    def do(self, fence: Fence) -> None:
        body = fence.body
        for text, other in self.stand_ins.items():
            self.replaced |= {text} if text in body else set()
            body = body.replace(text, other)
        getattr(self, fence.kind)(Fence(fence.kind, body))

    def sh(self, fence: Fence) -> None:
        self.printed = "".join(run(command) for command in commands(fence))

    def python(self, fence: Fence) -> None:
        """Run it; what begins with the name of a file (``# my_net.py``) is written there as well."""
        if name := re.match(r"# (\w+\.py)\n", fence.body):
            Path(name[1]).write_text(fence.body)
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(fence.body, "page.py", "exec"), self.names)
        self.printed = out.getvalue()

    def py(self, fence: Fence) -> None:
        """A file for commands: written under the name in its first line, and not run."""
        Path(fence.body.splitlines()[0].removeprefix("# ")).write_text(fence.body)

    def yaml(self, fence: Fence) -> None:
        """Rules; what begins with the name of a file is written there."""
        if name := re.match(r"# (\w+\.yaml)\n", fence.body):
            Path(name[1]).write_text(fence.body)
            return
        path = Path("rules.yaml")
        path.write_text(fence.body)
        read(path)

    def text(self, fence: Fence) -> None:
        assert not (line := missing(fence.body, self.printed)), f"not printed: {line}\n{self.printed}"
