"""The command line: round trips, what goes to which stream, refusals, and that a stopped run leaves nothing."""

from __future__ import annotations

import configparser
import contextlib
import hashlib
import importlib
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from safetensors.torch import load_file, save_file

import se_inject
from se_inject.cli import main
from se_inject.cli.listing import SCHEMAS, WHAT
from se_inject.commands import verify as verify_command
from se_inject.injection import inject as injection
from se_inject.injection import plan as planning
from se_inject.output import atomic as write_module
from se_inject.output.formats import whole
from se_inject.reasons import REASONS
from se_inject.surgery import splice
from tests.helpers import ROOT, ok, reseal, run
from tests.processes import Started
from tests.rewording import REWORDED, SIGN

NETS = """
import logging
import os
import warnings

import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, channels, out, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.shortcut = nn.Identity() if channels == out and stride == 1 else nn.Conv2d(channels, out, 1, stride)

    def forward(self, x):
        y = torch.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return torch.relu(y + self.shortcut(x))


class Net(nn.Module):
    def __init__(self, width=16, classes=5):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.Sequential(Block(width, width, 1), Block(width, 2 * width, 2))
        self.head = nn.Linear(2 * width, classes)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


def make(width=16, classes=5):
    return Net(width, classes)


def noisy():
    print("noise on standard output")
    warnings.warn("noise of a library")
    logging.getLogger("library").warning("noise in a log")
    return Net()


def dense():
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 4))


def slow():
    from tests.processes import hold
    hold(os.environ["SAID"])


def broken():
    raise RuntimeError("no such hyperparameter\\nsecond line")


class Keyed(Net):
    def forward(self, x):
        return {}["heads"]


class Worded(Net):
    def forward(self, x):
        return str(super().forward(x).sum())


class Two(Net):
    def forward(self, x, scale):
        return super().forward(x) * scale


WIDTH = 3
"""
TINY = ["cli_nets:make", "--input-size", "3,16,16"]
RANDOM = [*TINY, "--random-init"]
FILES = ["SHA256SUMS", "model.safetensors", "modeling.py", "plan.json", "report.html", "report.json", "report.md"]


class Shell:
    __reduce__ = lambda self: (os.mkdir, ("payload-ran",))  # noqa: E731


@pytest.fixture(scope="session")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with models, checkpoints good and bad, rules, plans and an output; tests get a copy of it."""
    folder = tmp_path_factory.mktemp("stock")
    (folder / "cli_nets.py").write_text(NETS)
    with contextlib.chdir(folder), pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        state = importlib.import_module("cli_nets").make().state_dict()
        torch.save(state, "good.pth")
        save_file(state, "good.safetensors")
        torch.save({"state_dict": state, "more": Shell()}, "payload.pth")
        Path("payload.pkl").write_bytes(pickle.dumps(Shell()))
        Path("empty.pth").touch()
        Path("empty.yaml").touch()
        Path("cli_syntax.py").write_text("def make(:\n")
        Path("cli_exits.py").write_text("raise SystemExit(3)\n")
        Path("page.pth").write_text("<!DOCTYPE html><html><body>404</body></html>")
        Path("cut.pth").write_bytes(Path("good.pth").read_bytes()[:2000])
        Path("typo.yaml").write_text("placment: standard\n")
        Path("broken.yaml").write_text("placement: [\n")
        Path("value.yaml").write_text("placement: standrad\n")
        ok("convert", *RANDOM, "-o", "out")
        plan = json.loads(Path("out/plan.json").read_text())
        Path("plan.json").write_text(json.dumps(plan))
        inserted = next(d for d in plan["decisions"] if d["status"] == "insert")
        for name, (item, key, value) in {
            "schema": (plan, "schema", 99),
            "unknown": (plan, "frobnicate", 1),
            "kind": (plan, "seed", "zero"),
            "other": (plan, "fingerprint", "0" * 64),
            "width": (inserted["kwargs"], "rd_channels", -1),
            "block": (inserted, "block", "nonesuch"),
            "child": (inserted["site"]["carrier"], "name", 'se if print("ran") else self.se'),
            "owner": (inserted["site"]["carrier"], "path", "nonesuch"),
        }.items():
            before = dict(item)
            item[key] = value
            Path(f"plan-{name}.json").write_text(json.dumps(plan))
            item.clear()
            item.update(before)
        shutil.copytree("out", "sums")
        found = json.loads(Path("out/report.json").read_text())
        found["after"]["parameters"] += 1
        Path("sums/report.json").write_text(json.dumps(found))
    sys.modules.pop("cli_nets")
    return folder


@pytest.fixture
def here(stock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(stock, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(stock)
    return tmp_path


def process(*args: str, program: tuple[str, ...] = ("-m", "se_inject"), **env: str) -> subprocess.CompletedProcess[str]:
    given = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), "."]), **env}
    return subprocess.run([sys.executable, *program, *args], capture_output=True, text=True, env=given)


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and "__pycache__" not in p.parts
    }


# --- what a run does ---


def test_round_trip(here: Path) -> None:
    shown = ok("convert", *TINY, "--checkpoint", "good.pth", "--placement", "standard", "-o", "a/b").stdout
    assert sorted(p.name for p in Path("a/b").iterdir()) == FILES
    assert "blocks.0.se" in shown and "16 -> 8" in shown and "read back" in shown and "FAIL" not in shown
    assert shown.splitlines()[-1] == "Written to a/b: " + ", ".join(FILES)
    verified = ok("verify", "a/b", "--model", "cli_nets:make").stdout
    assert "bit-equal to the original's" in verified and "FAIL" not in verified
    assert "blocks.1.se" in ok("report", "a/b").stdout
    assert ok("report", "a/b", "--format", "md").stdout == Path("a/b/report.md").read_text()
    assert json.loads(ok("report", "a/b", "--format", "json").stdout) == json.loads(Path("a/b/report.json").read_text())
    assert "2 blocks removed; 30 of 30 tensors" in ok("remove", "a/b", "-o", "base", "--model", "cli_nets:make").stdout
    back, first = load_file("base/model.safetensors"), load_file("good.safetensors")
    assert back.keys() == first.keys() and all(torch.equal(back[k], first[k]) for k in first)


def test_zoo_model_needs_no_factory(here: Path) -> None:
    ok("convert", "timm:resnet18", "--random-init", "--input-size", "3,64,64", "--init", "absorb", "-o", "o")
    assert "bit-equal to the original's" in ok("verify", "o").stdout
    ok("remove", "o", "-o", "base")
    again = ok("convert", "timm:resnet18", "--checkpoint", "base/model.safetensors", "--plan", "o/plan.json", "-o", "p")
    assert "FAIL" not in again.stdout
    assert Path("o/model.safetensors").read_bytes() == Path("p/model.safetensors").read_bytes()


def test_torchvision_model(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MNASNet does not load a state dict without the versions of its modules, which safetensors does not hold."""
    args = ["torchvision:mnasnet0_5", "--input-size", "3,64,64", "--block-arg", "gate=hardsigmoid"]
    assert "inner" in ok("convert", *args, "--random-init", "-o", "o").stdout
    assert "bit-equal to the original's" in ok("verify", "o").stdout
    ok("remove", "o", "-o", "base")
    ok("convert", *args, "--checkpoint", "base/model.safetensors", "--no-verify", "-o", "again")
    monkeypatch.syspath_prepend("again")
    module = importlib.import_module("modeling")
    sys.modules.pop("modeling")
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(module.load()(x), se_inject.load("o")(x))


def test_plan_writes_what_convert_follows(here: Path) -> None:
    rules = ["--placement", "standard", "--ratio", "4", "--exclude", "blocks.0"]
    ok("plan", *TINY, *rules, "-o", "mine.json")
    ok("convert", *TINY, "--checkpoint", "good.safetensors", *rules, "-o", "by-rules")
    ok("convert", *TINY, "--checkpoint", "good.safetensors", "--plan", "mine.json", "-o", "by-plan")
    files = [Path(name, "model.safetensors").read_bytes() for name in ("by-rules", "by-plan")]
    assert files[0] == files[1]
    assert [k for k in load_file("by-plan/model.safetensors") if ".se." in k and "blocks.1" not in k] == []
    assert run("plan", *TINY, "-o", "mine.json").exit_code == 1
    ok("plan", *TINY, "-o", "mine.json", "--force")


def test_rules_file_and_options_over_it(here: Path) -> None:
    Path("rules.yaml").write_text("placement: standard\ninit: absorb\nblock: {rd_divisor: 4}\n")
    made = json.loads(ok("plan", *TINY, "--rules", "rules.yaml", "--init", "paper", "--json").stdout)
    taken = [d for d in made["decisions"] if d["status"] == "insert"]
    assert [d["init"] for d in taken] == ["paper", "paper"]
    assert [d["kwargs"]["rd_channels"] for d in taken] == [4, 4]


@pytest.mark.wording  # one of the two processes is not reworded
def test_same_seed_same_bytes(here: Path) -> None:
    """All files in one process; in another, with other hashes, all that do not name the libraries it has imported."""
    for folder, seed in (("x", "3"), ("y", "3"), ("z", "4")):
        ok("convert", *RANDOM, "--seed", seed, "-o", f"{folder}/out")
    done = process("convert", *RANDOM, "--seed", "3", "-o", "p/out", PYTHONHASHSEED="7")
    assert done.returncode == 0, done.stderr
    x, y, z, other = (tree(here / name / "out") for name in "xyzp")
    assert x == y
    for name in ("model.safetensors", "plan.json", "modeling.py"):
        assert x[name] == other[name], name
    assert x["model.safetensors"] != z["model.safetensors"]


def test_force_replaces_an_output_and_nothing_else(here: Path) -> None:
    ok("convert", *RANDOM, "-o", "out", "--force", "--placement", "standard", "--stages", "2")
    assert "blocks.0.se.fc1.weight" not in load_file("out/model.safetensors")
    Path("out/mine.txt").write_text("keep me")
    assert "mine.txt" in run("convert", *RANDOM, "-o", "out", "--force").stderr
    assert Path("out/mine.txt").read_text() == "keep me"


def test_verify_fails_on_changed_weights(here: Path) -> None:
    state = load_file("out/model.safetensors")
    state["stem.weight"][0, 0, 0, 0] += 1
    save_file(state, "out/model.safetensors")
    result = run("verify", "out", "--model", "cli_nets:make")
    assert result.exit_code == 1
    assert "FAIL  files" in result.stdout and "not opened: model.safetensors has not the hash of" in result.stdout
    assert "keys" not in result.stdout
    reseal(Path("out"))
    result = run("verify", "out", "--model", "cli_nets:make")
    assert "pass  files" in result.stdout and "FAIL  keys" in result.stdout
    assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1


def test_a_checkpoint_of_another_hash_is_not_parsed(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is compared before anything is read out of the file, with --allow-pickle too."""
    good, payload = (hashlib.sha256(Path(name).read_bytes()).hexdigest() for name in ("good.pth", "payload.pth"))
    ok("convert", *TINY, "--checkpoint", "good.pth", "--sha256", good.upper(), "-o", "o")
    with monkeypatch.context() as patch:
        for name in ("readable", "read_state_dict"):
            patch.setattr(f"se_inject.checkpoints.checkpoint.{name}", lambda *args, **how: pytest.fail("parsed"))
        result = run("convert", *TINY, "--checkpoint", "payload.pth", "--sha256", good, "--allow-pickle", "-o", "p")
    assert result.exit_code == 1 and result.stderr.count("\n") == 1
    assert f"its SHA-256 is {payload}, and --sha256 wants {good}" in result.stderr and not Path("p").exists()
    assert (
        "--sha256, --ema and --no-ema are about a --checkpoint"
        in run("convert", *RANDOM, "--sha256", good, "-o", "p").stderr
    )
    assert run("convert", *TINY, "--checkpoint", "good.pth", "--sha256", "12ab", "-o", "p").exit_code == 2


def test_no_verify_is_said(here: Path) -> None:
    assert "outputs (eval)" not in ok("convert", *RANDOM, "--no-verify", "-o", "o").stdout
    assert "--no-verify" in ok("verify", "o", "--model", "cli_nets:make").stdout


def test_payload_runs_only_when_allowed(here: Path) -> None:
    args = ["convert", *TINY, "--checkpoint", "payload.pth", "-o", "o", "--json"]
    assert run(*args).exit_code == 1 and not Path("payload-ran").exists()
    result = ok(*args, "--allow-pickle")
    assert Path("payload-ran").is_dir()
    assert "posix.mkdir" in result.stderr and json.loads(result.stdout)["source"]["unsafe_globals"]


# --- what goes where ---


def test_json(here: Path) -> None:
    assert json.loads(ok("convert", *RANDOM, "-o", "o", "--json").stdout)["plan"]["model"] == "cli_nets:make"
    plan = json.loads(ok("plan", *TINY, "--json").stdout)
    assert {d["status"] for d in plan["decisions"]} <= {"insert", "skip"} and all(
        d["reason"]["code"] in REASONS and d["reason"]["text"] for d in plan["decisions"]
    )
    assert json.loads(ok("plan", *TINY, "--explain", "blocks.0", "--json").stdout)["path"] == "blocks.0"
    checks = json.loads(ok("verify", "o", "--model", "cli_nets:make", "--json").stdout)
    assert all(check["passed"] is not False for check in checks) and len(checks) >= 4
    assert json.loads(ok("report", "o", "--json").stdout) == json.loads(Path("o/report.json").read_text())
    assert json.loads(ok("remove", "o", "-o", "b", "--model", "cli_nets:make", "--json").stdout)["identical"] == 30


@pytest.mark.parametrize("what", WHAT)
def test_lists(what: str) -> None:
    rows = json.loads(ok("list", what, "--json").stdout)
    column = next(iter(rows[0]))
    first = rows[0][column]
    assert first in ok("list", what).stdout
    assert [row[column] for row in json.loads(ok("list", what, first, "--json").stdout)] == [first]


@pytest.mark.parametrize("what", SCHEMAS)
def test_schemas(here: Path, what: str) -> None:
    """What a run wrote fits the schema, and what is no such file does not."""
    schema = json.loads(ok("list", what, "--schema").stdout)
    data = {"placement": "standard"} if what == "rules" else json.loads(Path(f"out/{what}.json").read_text())
    jsonschema.validate(data, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**data, "frobnicate": 1}, schema)


def test_report_into_a_file(here: Path) -> None:
    for kind in ("md", "html", "json"):
        assert ok("report", "out", "--format", kind, "-o", f"mine.{kind}").stdout == f"Written to mine.{kind}\n"
        assert Path(f"mine.{kind}").read_bytes() == Path(f"out/report.{kind}").read_bytes()
    ok("report", "out", "--json", "-o", "more.json", "-q")
    assert Path("more.json").read_bytes() == Path("out/report.json").read_bytes()


def test_report_does_without_torch(here: Path) -> None:
    code = "import sys; from se_inject.cli import main; main(standalone_mode=False); assert 'torch' not in sys.modules"
    for args in (["report", "out"], ["report", "out", "--format", "html"], ["list", "report"]):
        done = process(*args, program=("-c", code))
        assert done.returncode == 0 and done.stdout, done.stderr


def test_plan_says_that_nothing_was_done(here: Path) -> None:
    shown = ok("plan", *TINY).stdout
    assert "2 blocks would be inserted" in shown and "Would be inserted:" in shown


def test_model_whose_output_is_no_tensor(here: Path) -> None:
    shown = ok("convert", "cli_nets:Worded", "--random-init", "--input-size", "3,16,16", "-o", "o").stdout
    assert "n.a.  outputs (eval)   the output holds no tensor" in shown and "pass  reached" in shown


@pytest.mark.parametrize("width", [40, 80, 200])
def test_no_line_is_wider_than_the_terminal(here: Path, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    shown = ok("plan", *TINY).stdout + ok("report", "out").stdout + ok("list", "placements").stdout
    assert max(map(len, shown.splitlines())) <= width
    assert "blocks.0.se" in shown and "16 -> 8" in shown


def test_quiet_prints_nothing(here: Path) -> None:
    args = ("--model", "cli_nets:make", "-q")
    for command in (
        ("convert", *RANDOM, "-o", "o", "-q"),
        ("plan", *TINY, "-o", "p.json", "--quiet"),
        ("verify", "o", *args),
        ("report", "o", "-q"),
        ("list", "blocks", "-q"),
        ("remove", "o", "-o", "b", *args),
    ):
        result = ok(*command)
        assert (result.stdout, result.stderr) == ("", ""), command
    assert run("verify", "nonesuch", "-q").stderr.startswith("Error: nonesuch")


def test_noise_of_libraries_stays_out_of_the_result(here: Path) -> None:
    args = ["convert", "cli_nets:noisy", "--random-init", "--input-size", "3,16,16", "--json"]
    done = process(*args, "-o", "a", "--no-verify")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["plan"]["model"] == "cli_nets:noisy"
    assert done.stderr == "noise on standard output\n"
    assert ok(*args, "-o", "b", "--quiet").stderr == ""


def test_warnings_are_shown_to_those_who_ask(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "warnoptions", ["error"])
    result = run("convert", "cli_nets:noisy", "--random-init", "--input-size", "3,16,16", "-o", "o")
    assert "UserWarning: noise of a library" in result.stderr  # the filters of this suite make it an error


COLOUR = re.compile(r"\x1b\[(\d+;)*3\d")


def test_no_escape_codes_in_a_pipe(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    for result in (ok("report", "out"), ok("verify", "out", "--model", "cli_nets:make"), run("report", "nonesuch")):
        assert "\x1b" not in result.output and "\r" not in result.output


@pytest.mark.parametrize(("env", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)], ids=["terminal", "NO_COLOR"])
def test_colours_and_progress_on_a_terminal(
    here: Path, start: Callable[..., Started], env: dict[str, str], coloured: bool
) -> None:
    shown = under_terminal(start, "verify", "out", "--model", "cli_nets:make", **env)
    assert "bit-equal" in shown
    assert bool(COLOUR.search(shown)) is coloured
    assert "checks" in shown and "\x1b[2K" in shown  # the bar, and that it was wiped


def test_what_takes_long_says_how_fast_it_goes(here: Path, start: Callable[..., Started]) -> None:
    amount = re.compile(r"[\d.]+ [kM]?B of [\d.]+ [kM]?B, [\d.]+ (bytes|[kMG]B)/s, \d:\d\d:\d\d left")
    assert amount.search(under_terminal(start, "convert", *RANDOM, "-o", "o"))
    assert not amount.search(under_terminal(start, "convert", *RANDOM, "-o", "p", "--quiet"))


MAIN = "from se_inject.cli import main; main(prog_name='se-inject')"
# The bar is drawn at every change, not ten times a second: what is drawn depends on no clock.
DRAWN = (
    "from functools import partialmethod; from rich.progress import Progress\n"
    "Progress.update = partialmethod(Progress.update, refresh=True)\n"
)


def under_terminal(start: Callable[..., Started], *args: str, **env: str) -> str:
    """Output of a run whose streams are a terminal."""
    import pty

    ours, theirs = pty.openpty()
    given = {"TERM": "xterm-256color", "COLUMNS": "100", **env}
    with open(ours, "rb", buffering=0) as screen:
        try:
            child, _ = start(DRAWN + MAIN, *args, stdout=theirs, stderr=theirs, env=given)
        finally:
            os.close(theirs)
        chunks = []
        with contextlib.suppress(OSError):  # the other end is closed
            while chunk := screen.read(1 << 16):
                chunks.append(chunk)
    assert child.wait() == 0
    return b"".join(chunks).decode()


def test_closed_pipe_is_no_traceback(here: Path) -> None:
    command = f"{sys.executable} -m se_inject report out --format json | head -1"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, shell=True, capture_output=True, text=True, env=env)
    assert (done.stdout, done.stderr) == ("{\n", "")


# --- help, and the three ways to start it ---


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom se_inject.cli import main\n"
        "for args in ([], *([name] for name in main.commands)):\n"
        "    main([*args, '--help'], standalone_mode=False)\n"
        "main(['--version'], standalone_mode=False)\n"
        "heavy = {'torch', 'timm', 'torchvision', 'numpy', 'rich', 'yaml', 'safetensors'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = process(program=("-c", code))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Usage:") == 1 + len(main.commands)


@pytest.mark.parametrize("name", [*main.commands])
def test_help_shows_an_example(name: str) -> None:
    shown = ok(name, "--help").stdout
    assert re.search(rf"Examples?:\n  +se-inject {name} ", shown)
    assert all(line.strip() for line in re.findall(r"^  --\S+ +(.*)$", shown, re.M)), "an option without help"


def test_three_ways_to_start_agree() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    command, _, target = config["options.entry_points"]["console_scripts"].strip().partition(" = ")
    module, _, attribute = target.partition(":")
    assert command == "se-inject" and getattr(importlib.import_module(module), attribute) is main
    ways = [("-m", "se_inject"), (str(ROOT / "cli.py"),)]
    if (script := Path(sys.executable).with_name("se-inject")).exists():
        ways.append((str(script),))
    versions = {process("--version", program=way).stdout for way in ways}
    assert versions == {f"se-inject, version {se_inject.__version__}\n"}
    shown = [process("convert", "--help", program=way) for way in ways]
    assert {done.returncode for done in shown} == {0}
    assert len({done.stdout.partition("\n")[2] for done in shown}) == 1  # all but the line with the program's name


# --- a run that is stopped ---


def test_interrupt_while_loading_leaves_nothing(here: Path, start: Callable[..., Started]) -> None:
    before = tree(here)
    args = ["convert", "cli_nets:slow", "--random-init", "--input-size", "3,16,16", "-o", "deep/er/o"]
    child, said = start(MAIN, *args, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert said.readline() == "here\n"
    child.send_signal(signal.SIGINT)
    stdout, stderr = child.communicate()
    assert (child.returncode, stdout, stderr.strip()) == (1, "", "Aborted!")
    assert tree(here) == before and not Path("deep").exists()


STEPS = [(injection, "take"), (splice, "apply"), (injection, "run_checks"), (whole, "read_weights")]
REMOVE = ["remove", "out", "--model", "cli_nets:make", "-o", "deep/er/o"]
INTERRUPTED = {
    **{f"convert {n}": (m, n, ["convert", *RANDOM, "-o", "deep/er/o"]) for m, n in STEPS},
    **{f"convert over another {n}": (m, n, ["convert", *RANDOM, "-o", "out", "--force"]) for m, n in STEPS},
    "remove": (splice, "remove", REMOVE),
    "remove-write": (write_module, "_build", REMOVE),
    "plan": (planning, "decide", ["plan", *TINY, "-o", "new.json"]),
    "plan-write": (Path, "replace", ["plan", *TINY, "-o", "new.json"]),
    "report": (Path, "replace", ["report", "out", "--json", "-o", "new.json"]),
    "verify": (verify_command, "keys", ["verify", "out", "--model", "cli_nets:make"]),
}


@pytest.mark.parametrize(("module", "name", "args"), INTERRUPTED.values(), ids=INTERRUPTED)
def test_interrupt_at_any_step_leaves_nothing(
    here: Path, monkeypatch: pytest.MonkeyPatch, module: Any, name: str, args: list[str]
) -> None:
    def interrupt(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    before = tree(here)
    monkeypatch.setattr(module, name, interrupt)
    result = run(*args)
    assert (result.exit_code, result.stdout, result.stderr.strip()) == (1, "", "Aborted!")
    assert tree(here) == before and not Path("deep").exists()


# --- refusals: arguments -> what the one line says ---

C = ["convert", *RANDOM, "-o", "o"]
T = ["convert", *TINY, "-o", "o"]
REFUSALS: dict[str, tuple[list[str], str]] = {
    "no weights": (T, "no weights: give one of --pretrained, --checkpoint, --random-init"),
    "two weights": ([*C, "--pretrained"], "--pretrained and --random-init are given"),
    "no zoo": (["convert", "resnet18", "--random-init", "-o", "o"], "Did you mean 'timm:resnet18'?"),
    "unknown timm": (["plan", "timm:resnet81"], "Did you mean 'resnet18'"),
    "unknown torchvision": (["plan", "torchvision:resnt18"], "Did you mean 'resnet18'"),
    "unknown weights": (["plan", "timm:resnet18.a9_in1k"], "Did you mean 'a3_in1k'"),
    "no module": (["plan", "nonesuch.nets:make"], "no module named 'nonesuch'"),
    "no factory": (["plan", "cli_nets:mkae"], "Did you mean 'make'"),
    "standard library": (["plan", "os:system"], "standard library"),
    "factory fails": (["plan", "cli_nets:broken"], "RuntimeError: no such hyperparameter"),
    "factory of a file": (["plan", "cli_nets.py:make"], "write a module as in an import: 'cli_nets'"),
    "factory is a number": (["plan", "cli_nets:WIDTH"], "is of type int; name a function or class"),
    "module with a wrong syntax": (["plan", "cli_syntax:make"], "SyntaxError: invalid syntax (cli_syntax.py, line 1)"),
    "module that exits": (["plan", "cli_exits:make"], "cannot be imported: SystemExit: 3"),
    "forward fails": (
        ["plan", "cli_nets:Keyed", "--input-size", "3,16,16"],
        "Keyed cannot be run on the example inputs (float32[2, 3, 16, 16]): KeyError: 'heads'.",
    ),
    "forward takes more": (
        ["plan", "cli_nets:Two", "--input-size", "3,16,16"],
        "missing 1 required positional",
    ),
    "constructor option": (["plan", "timm:resnet18", "--model-arg", "num_clases=10"], "'num_clases'"),
    "option without value": (["plan", "timm:resnet18", "--model-arg", "num_classes"], "expected NAME=VALUE"),
    "placement": ([*C, "--placement", "standrad"], "Did you mean 'standard'?"),
    "block": ([*C, "--block", "sse"], "'se'"),
    "init": ([*C, "--init", "absrob"], "Did you mean 'absorb'?"),
    "block option": ([*C, "--block-arg", "gat=sigmoid"], "'gate'"),
    "block option value": ([*C, "--block-arg", "gate=hardsigmod"], "hardsigmoid"),
    "block option form": ([*C, "--block-arg", "gate"], "--block-arg 'gate': expected NAME=VALUE, such as gate=hard"),
    "stages": ([*C, "--stages", "9"], "stage"),
    "stages form": ([*C, "--stages", "one"], "such as --stages 3,4"),
    "include": ([*C, "--include", "blcks.0"], "Did you mean 'blocks.0'"),
    "include form": ([*C, "--include", "re:("], "not a regular expression"),
    "min channels": ([*C, "--min-channels", "9999"], "9999"),
    "no residual blocks": ([*C, "--placement", "inner"], "inner"),
    "no rules file": ([*C, "--rules", "nonesuch.yaml"], "nonesuch.yaml"),
    "rules typo": ([*C, "--rules", "typo.yaml"], "unknown key 'placment'"),
    "rules empty": ([*C, "--rules", "empty.yaml"], "empty.yaml: is empty; write a rule"),
    "rules value": ([*C, "--rules", "value.yaml"], "Did you mean 'standard'?"),
    "rules syntax": ([*C, "--rules", "broken.yaml"], "broken.yaml: not the YAML"),
    "input size": ([*C, "--input-size", "abc"], "such as --input-size 3,224,224"),
    "input channels": ([*C, "--input-size", "4,16,16"], "expected input[2, 4, 16, 16] to have 3 channels"),
    "input rank": ([*C, "--input-size", "16"], "--input-size"),
    "input too large": ([*C, "--input-size", "3,100000,100000"], "more than"),
    "input size unknown": (["convert", "cli_nets:make", "--random-init", "-o", "o"], "--input-size 3,224,224"),
    "no convolution": (
        ["convert", "cli_nets:dense", "--random-init", "--input-size", "3,4,4", "-o", "o"],
        "list placements",
    ),
    "no checkpoint": ([*T, "--checkpoint", "god.pth"], "Did you mean 'good.pth'"),
    "empty checkpoint": ([*T, "--checkpoint", "empty.pth"], "empty file"),
    "web page": ([*T, "--checkpoint", "page.pth"], "web page"),
    "cut checkpoint": ([*T, "--checkpoint", "cut.pth"], "cut short"),
    "payload": ([*T, "--checkpoint", "payload.pth"], "would run posix.mkdir"),
    "bare pickle": ([*T, "--checkpoint", "payload.pkl"], "bare Python pickle"),
    "folder": ([*T, "--checkpoint", "out"], "this is a folder that se_inject wrote"),
    "classes": ([*T, "--checkpoint", "good.pth", "--model-arg", "classes=9"], "head.weight (file float32[5, 32]"),
    "allow missing": ([*C, "--allow-missing", "head.*"], "--checkpoint"),
    "allow missing nothing": (
        [*T, "--checkpoint", "good.pth", "--allow-missing", "haed.*"],
        "--allow-missing 'haed.*' fits no key of the model. Did you mean 'head.",
    ),
    "output exists": (["convert", *RANDOM, "-o", "out"], "--force"),
    "output is a file": (["convert", *RANDOM, "-o", "good.pth", "--force"], "is a file"),
    "output is the input": (["convert", *TINY, "--checkpoint", "good.pth", "-o", "good.pth"], "the input"),
    "output in the input": (["convert", *TINY, "--checkpoint", "good.pth", "-o", "good.pth/o"], "inside the input"),
    "output over the input": (
        ["convert", *TINY, "--checkpoint", "out/model.safetensors", "-o", "out", "--force"],
        "contains the input",
    ),
    "output over the plan": (
        [*RANDOM[:0], "convert", *RANDOM, "--plan", "out/plan.json", "-o", "out"],
        "contains the input",
    ),
    "no such disk": (["convert", *RANDOM, "-o", "/proc/nonesuch/o"], "cannot write /proc/nonesuch/o"),
    "plan file exists": (["plan", *TINY, "-o", "plan.json"], "--force"),
    "plan over rules": (["plan", *TINY, "--rules", "typo.yaml", "-o", "typo.yaml", "--force"], "is an input"),
    "plan into no folder": (["plan", *TINY, "-o", "nonesuch/p.json"], "no folder nonesuch"),
    "plan onto folder": (["plan", *TINY, "-o", "out"], "out is a folder"),
    "plan and rules": ([*C, "--plan", "plan.json", "--ratio", "8"], "--ratio cannot be given with it"),
    "plan of another model": ([*C, "--plan", "plan.json", "--model-arg", "width=8"], "Make the plan again"),
    "no plan": ([*C, "--plan", "nonesuch.json"], "nonesuch.json"),
    "plan is no JSON": ([*C, "--plan", "typo.yaml"], "not JSON"),
    "plan is a report": ([*C, "--plan", "out/report.json"], "unknown field"),
    "plan schema": ([*C, "--plan", "plan-schema.json"], "schema 99"),
    "plan field": ([*C, "--plan", "plan-unknown.json"], "frobnicate"),
    "plan type": ([*C, "--plan", "plan-kind.json"], "seed"),
    "plan fingerprint": ([*C, "--plan", "plan-other.json"], "fingerprint"),
    "plan width": ([*C, "--plan", "plan-width.json"], "plan"),
    "plan block": ([*C, "--plan", "plan-block.json"], "nonesuch"),
    "plan child": ([*C, "--plan", "plan-child.json"], "is not a name"),
    "plan owner": ([*C, "--plan", "plan-owner.json"], "nonesuch"),
    "verify nothing": (["verify", "nonesuch"], "nonesuch is not a folder written by se_inject"),
    "verify without factory": (["verify", "out"], "--model pkg.module:factory"),
    "verify another model": (["verify", "out", "--model", "cli_nets:make", "--model-arg", "width=8"], "fingerprint"),
    "remove nothing": (["remove", "nonesuch", "-o", "o"], "nonesuch is not a folder written by se_inject"),
    "remove onto itself": (
        ["remove", "out", "--model", "cli_nets:make", "-o", "out", "--force"],
        "is, or links to, the input",
    ),
    "report nothing": (["report", "nonesuch"], "nonesuch is not a folder written by se_inject"),
    "report of wrong sums": (["report", "sums"], "disagrees with itself"),
    "list no block": (["list", "blocks", "sse"], "no block is called 'sse'. Did you mean 'se'"),
    "list no model": (["list", "models", "nonesuch"], "no model is called 'nonesuch'"),
}


@pytest.mark.parametrize(("args", "says"), REFUSALS.values(), ids=REFUSALS)
def test_refusal_is_one_line_and_writes_nothing(here: Path, args: list[str], says: str) -> None:
    before, folders = tree(here), sorted(map(str, here.rglob("*")))
    result = run(*args)
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1, result.stderr
    assert says in result.stderr or (REWORDED and SIGN in result.stderr)
    assert tree(here) == before
    assert [p for p in sorted(map(str, here.rglob("*"))) if "__pycache__" not in p] == [
        p for p in folders if "__pycache__" not in p
    ]


USAGE: dict[str, tuple[list[str], str]] = {
    "nothing": ([], "Commands:"),
    "unknown command": (["convrt"], "No such command 'convrt'"),
    "no model": (["convert"], "Missing argument 'MODEL'"),
    "no output": (["convert", *RANDOM], "'--output'"),
    "unknown option": ([*C, "--placment", "auto"], "--placement"),
    "ratio zero": ([*C, "--ratio", "0"], "--ratio"),
    "ratio negative": ([*C, "--ratio", "-3"], "--ratio"),
    "ratio not a number": ([*C, "--ratio", "nan"], "--ratio"),
    "ratio a word": ([*C, "--ratio", "sixteen"], "'sixteen' is not a valid float"),
    "min channels": ([*C, "--min-channels", "-1"], "--min-channels"),
    "seed": ([*C, "--seed", "x"], "--seed"),
    "format": (["report", "out", "--format", "pdf"], "'pdf' is not one of"),
    "report two formats": (["report", "out", "--json", "--format", "md"], "--json is --format json"),
    "report terminal file": (["report", "out", "-o", "x"], "-o goes with --format"),
    "schema of blocks": (["list", "blocks", "--schema"], "--schema goes with rules, plan, report"),
    "list what": (["list", "modles"], "'modles' is not one of"),
}


@pytest.mark.parametrize(("args", "says"), USAGE.values(), ids=USAGE)
def test_wrong_usage_exits_with_2(here: Path, args: list[str], says: str) -> None:
    before = tree(here)
    result = run(*args)
    assert result.exit_code == 2 and result.stdout == ""
    assert says in result.stderr and "Traceback" not in result.stderr
    assert tree(here) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_folder_that_cannot_be_written_is_refused_first(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    locked(here / "locked", lambda: _not_writable(monkeypatch))


def test_folder_that_is_said_not_to_be_writable(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As above, for root, whom no mode stops."""
    Path("locked").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    _not_writable(monkeypatch)


def locked(folder: Path, check: Callable[[], None]) -> None:
    folder.mkdir()
    folder.chmod(0o500)
    try:
        check()
    finally:
        folder.chmod(0o700)


def _not_writable(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("se_inject.commands.model.load_model", never)
    result = run("convert", *RANDOM, "-o", "locked/a/b")
    assert result.exit_code == 1 and "locked is not writable" in result.stderr
    assert not list(Path("locked").iterdir())


def test_report_of_edited_inputs_is_refused(here: Path) -> None:
    found = json.loads(Path("out/report.json").read_text())
    found["plan"]["inputs"] = {"args": 3, "kwargs": []}
    Path("out/report.json").write_text(json.dumps(found))
    result = run("report", "out", "--format", "md")
    assert result.exit_code == 1 and "Report.plan.inputs: unknown field 'args'" in result.stderr


def test_names_from_files_do_not_reach_the_terminal_raw(here: Path) -> None:
    Path("rules.yaml").write_text('"plac\\e[31mment": standard\n')
    stderr = run(*C, "--rules", "rules.yaml").stderr
    assert "\\x1b[31m" in stderr and "\x1b" not in stderr
