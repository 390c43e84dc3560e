"""``se-inject batch``: what is done, what is recognised, what is reported; and all of it again after kills."""

from __future__ import annotations

import csv
import hashlib
import html
import io
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from safetensors.torch import load_file, save_file

from se_inject.commands import files
from se_inject.commands.batch import jobs, summary
from se_inject.commands.batch.jobs import Options, job_of
from se_inject.commands.batch.manifest import Entry
from se_inject.commands.batch.memory import architecture, footprint, need
from se_inject.commands.batch.summary import Row
from se_inject.commands.report import read_report
from se_inject.commands.request import ModelRequest
from se_inject.output.sums import SUMS, users_work
from se_inject.parallel import pool
from se_inject.rules.schema import Rules
from se_inject.types import Reason
from tests.helpers import ROOT, randomise, run, says
from tests.processes import Started
from tests.tiny import Net

MODEL = 'model: "tests.tiny:Net", input_size: "3,16,16"'


def checkpoints(folder: Path, count: int) -> list[Path]:
    folder.mkdir(exist_ok=True)
    files = [folder / f"net{i:03}.pth" for i in range(count)]
    for i, file in enumerate(files):
        torch.manual_seed(i)
        torch.save(randomise(Net(), i).state_dict(), file)
    return files


def batched(folder: Path, *options: str, out: str = "out") -> Result:
    """``folder/m.yaml`` converted into ``folder/out``."""
    return run("batch", str(folder / "m.yaml"), "-o", str(folder / out), "--factory", "tests.tiny", *options)


def batch(folder: Path, *options: str, code: int = 0) -> dict[str, dict[str, Any]]:
    """Name -> row, of ``folder/m.yaml`` converted into ``folder/out``."""
    result = batched(folder, "--json", *options)
    assert result.exit_code == code, result.stderr or result.exception
    found = json.loads(result.stdout)
    assert Counter(row["status"] for row in found["entries"]) == found["counts"]
    return {row["name"]: row for row in found["entries"]}


def told(row: dict[str, Any], code: str, text: str) -> bool:
    """Whether a row failed for a reason of this code, with the text in it."""
    return says(Reason(**row["reason"]), code, text)


def statuses(rows: dict[str, dict[str, Any]]) -> dict[str, str]:
    return {name: row["status"] for name, row in rows.items()}


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("converted")
    checkpoints(folder, 2)
    (folder / "m.yaml").write_text(f'- {{{MODEL}, checkpoint: "*.pth"}}')
    assert statuses(batch(folder)) == {"net000": "converted", "net001": "converted"}
    return folder


@pytest.fixture
def two(converted: Path, tmp_path: Path) -> Path:
    """A folder with a manifest of two checkpoints, both converted."""
    return Path(shutil.copytree(converted, tmp_path, dirs_exist_ok=True))


# -- what is done, and what is recognised -----------------------------------------------------------------------------
@pytest.mark.wording  # the processes of a batch are not reworded
def test_outputs_are_those_of_convert(two: Path) -> None:
    out = two / "out" / "net001"
    command = ["convert", "tests.tiny:Net", "--input-size", "3,16,16", "--checkpoint", str(two / "net001.pth")]
    assert run(*command, "-o", str(two / "one")).exit_code == 0
    for name in ("model.safetensors", "modeling.py"):
        assert (out / name).read_bytes() == (two / "one" / name).read_bytes()
    ours, theirs = read_report(out), read_report(two / "one")
    key = ours.source.pop("job")
    assert ours == theirs and len(key) == 64 and "job" not in theirs.source


def test_one_failure_does_not_stop_the_rest(tmp_path: Path) -> None:
    checkpoints(tmp_path, 2)
    lines = (f'{{{MODEL}, checkpoint: "net000.pth", model_args: "n=2"}}', f'{{{MODEL}, checkpoint: "no.pth"}}')
    (tmp_path / "m.yaml").write_text(
        "\n".join(f"- {line}" for line in (*lines, f"{{{MODEL}, checkpoint: net001.pth}}"))
    )
    rows = batch(tmp_path, code=1)
    assert statuses(rows) == {"net000": "failed", "no": "failed", "net001": "converted"}
    assert told(rows["no"], "load", "no such file") and told(rows["net000"], "load", "does not fit the model")
    assert rows["net001"]["blocks"] == 1 and rows["no"]["blocks"] is None
    with (tmp_path / "out" / "summary.csv").open(newline="") as file:
        table = {row["name"]: row for row in csv.DictReader(file)}
    assert {name: row["status"] for name, row in table.items()} == statuses(rows)
    assert {"code": table["no"]["code"], "text": table["no"]["reason"]} == rows["no"]["reason"] and table["no"][
        "weights"
    ] == "no.pth"
    page = (tmp_path / "out" / "summary.html").read_text()
    assert 'href="net001/report.html"' in page and "net000/report.html" not in page
    assert rows["no"]["reason"]["text"] in html.unescape(page)


def test_what_is_done_is_not_done_again_whatever_its_name(two: Path) -> None:
    (two / "out" / "net000").rename(two / "out" / "renamed")
    (two / "net001.pth").rename(two / "other.pth")
    before = {path: path.stat().st_mtime_ns for path in (two / "out").glob("*/*")}
    rows = batch(two)
    assert statuses(rows) == {"net000": "done before", "other": "done before"}
    assert (rows["net000"]["folder"], rows["other"]["folder"]) == ("renamed", "net001")
    assert {path: path.stat().st_mtime_ns for path in (two / "out").glob("*/*")} == before
    assert 'href="renamed/report.html"' in (two / "out" / "summary.html").read_text()


def test_what_has_changed_is_done_again_if_it_may_be_replaced(two: Path) -> None:
    torch.save(randomise(Net(), 7).state_dict(), two / "net000.pth")
    rows = batch(two, code=1)
    assert statuses(rows) == {"net000": "failed", "net001": "done before"}
    assert told(rows["net000"], "write", "other weights") and told(rows["net000"], "write", "--force")
    assert statuses(batch(two, "--force")) == {"net000": "converted", "net001": "done before"}
    assert statuses(batch(two)) == {"net000": "done before", "net001": "done before"}


@pytest.mark.parametrize("damage", ["changed", "missing", "failed"])
def test_a_damaged_output_is_not_taken_for_done(two: Path, damage: str) -> None:
    file = two / "out" / "net000" / ("report.json" if damage == "failed" else "model.safetensors")
    if damage == "changed":
        file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    elif damage == "missing":
        file.unlink()
    else:
        report = json.loads(file.read_text())
        report["checks"][0]["passed"] = False
        file.write_text(json.dumps(report))
    assert statuses(batch(two, code=1)) == {"net000": "failed", "net001": "done before"}
    if damage != "missing":  # who changed it may want to keep it
        before = file.read_bytes()
        assert told(batch(two, "--force", code=1)["net000"], "write", f"{file.name!r}, which is not ours")
        assert file.read_bytes() == before
    how = "--force" if damage == "missing" else "--discard-changes"
    assert statuses(batch(two, how)) == {"net000": "converted", "net001": "done before"}


def test_a_damaged_report_can_be_replaced(two: Path) -> None:
    (two / "out" / "net000" / "report.json").write_text("{")
    assert statuses(batch(two, code=1))["net000"] == "failed"
    assert statuses(batch(two, "--discard-changes"))["net000"] == "converted"


def test_notes_in_an_output_are_no_damage(two: Path) -> None:
    (two / "out" / "net000" / "notes.txt").write_text("mine")
    assert statuses(batch(two)) == {"net000": "done before", "net001": "done before"}


def test_checkpoints_that_swap_their_names_are_recognised(two: Path) -> None:
    for old, new in (("net000", "third"), ("net001", "net000"), ("third", "net001")):
        (two / f"{old}.pth").rename(two / f"{new}.pth")
    rows = batch(two)
    assert {name: (row["status"], row["folder"]) for name, row in rows.items()} == {
        "net000": ("done before", "net001"),
        "net001": ("done before", "net000"),
    }
    assert statuses(batch(two, "--force")) == {"net000": "converted", "net001": "converted"}
    assert {name: row["folder"] for name, row in batch(two).items()} == {"net000": "net000", "net001": "net001"}


def test_globs_do_not_stand_for_outputs(two: Path) -> None:
    (two / "m.yaml").write_text(f'- {{{MODEL}, checkpoint: "**/*[hs]", name: "{{folder}}-{{stem}}"}}')
    checkpoints(two / "a", 1)
    assert len(statuses(batch(two))) == 3
    assert len(statuses(batch(two))) == 3
    save_file(randomise(Net()).state_dict(), two / "out" / "mine.safetensors")
    assert len(statuses(batch(two))) == 4  # it is beside the outputs, and none of them


@pytest.mark.parametrize("name", ["summary.csv", "summary.html"])
def test_a_summary_of_somebody_else_stays(two: Path, name: str) -> None:
    batch(two)
    (two / "out" / name).write_text("precious")
    result = batched(two)
    assert result.exit_code == 1 and f"{name!r}, which is not ours" in result.stderr
    assert batched(two, "--force").exit_code == 1
    assert (two / "out" / name).read_text() == "precious"
    batch(two, "--discard-changes")
    assert users_work(two / "out") == ("net000", "net001")  # which have sums of their own
    assert (two / "out" / name).read_text() != "precious"


def test_quiet_is_not_silent_about_failures(two: Path) -> None:
    (two / "net000.pth").write_bytes(b"no checkpoint")
    result = batched(two, "--quiet")
    assert result.exit_code == 1 and not result.stdout
    assert result.stderr.startswith("net000 (line 1): ") and len(result.stderr.splitlines()) == 1


def test_a_shard_that_is_missing_is_named(two: Path) -> None:
    from benchmarks.bench import save_shards

    save_shards(Net().state_dict(), two / "shards")
    shard = sorted((two / "shards").glob("*.safetensors"))[-1]
    shard.unlink()
    (two / "m.yaml").write_text(f"- {{{MODEL}, checkpoint: shards}}")
    assert told(batch(two, code=1)["shards"], "load", shard.name)


def test_more_memory_than_planned_is_said(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints(two, 3)
    monkeypatch.setattr("se_inject.commands.batch.run.need", lambda job, found: 1)
    result = batched(two)
    assert result.exit_code == 0 and re.search(
        r"net002: took [\d.]+ GB of memory, planned were 0\.00 GB", result.stderr
    )


# A run that sends a signal to its whole group, itself too, as soon as there are so many outputs.
STOPPED = """
import os, sys
from pathlib import Path
from se_inject.cli import main
from se_inject.cli.terminal import Terminal

number, enough = int(sys.argv.pop(1)), int(sys.argv.pop(1))

def advance(self, done, total, unit):
    if len(list(Path("out").glob("[!.]*/report.json"))) >= enough:
        os.killpg(0, number)

Terminal.advance = advance
main()
"""


@pytest.mark.slow
def test_ctrl_c_leaves_a_summary_and_nothing_half_written(tmp_path: Path, start: Callable[..., Started]) -> None:
    checkpoints(tmp_path, 40)
    (tmp_path / "m.yaml").write_text(f'- {{{MODEL}, checkpoint: "*.pth"}}')
    command = ["batch", "m.yaml", "-o", "out", "--factory", "tests.tiny"]
    stop = [str(signal.SIGINT.value), "4"]
    running, _ = start(STOPPED, *stop, *command, cwd=tmp_path, stderr=subprocess.PIPE)
    _, said = running.communicate()
    assert running.returncode == 1 and "the same command does what is left" in said and "Traceback" not in said
    assert not list(tmp_path.glob("out/.*"))
    with (tmp_path / "out" / "summary.csv").open(newline="") as file:
        counts = Counter(row["status"] for row in csv.DictReader(file))
    done = len(list(tmp_path.glob("out/net*")))
    assert counts["to do"] > 0 and 0 < counts["converted"] <= done and counts.total() == 40
    rows = batch(tmp_path)
    assert Counter(statuses(rows).values()) == {"done before": done, "converted": 40 - done}


def test_the_same_job_under_two_names_is_done_for_each(two: Path) -> None:
    shutil.copy(two / "net000.pth", two / "twin.pth")
    assert statuses(batch(two)) == {"net000": "done before", "net001": "done before", "twin": "converted"}
    assert {row["folder"] for row in batch(two).values()} == {"net000", "net001", "twin"}


def test_a_dry_run_changes_nothing(two: Path) -> None:
    checkpoints(two, 3)
    before = sorted(two.rglob("*"))
    assert statuses(batch(two, "--dry-run")) == {"net000": "done before", "net001": "done before", "net002": "to do"}
    assert sorted(two.rglob("*")) == before
    shutil.rmtree(two / "out")
    assert set(statuses(batch(two, "--dry-run")).values()) == {"to do"} and not (two / "out").exists()


def test_what_a_killed_run_left_goes(two: Path) -> None:
    from se_inject.output.atomic import _prefix

    left = two / "out" / f"{_prefix(two / 'out' / 'net000')}0123abcd.new"
    left.mkdir()
    (left / "model.safetensors").touch()
    foreign = two / "out" / ".se-inject-of-another-name.new"
    foreign.mkdir()
    batch(two)
    assert not left.exists() and foreign.exists()


def test_a_file_in_the_way_and_the_manifest_itself_stay(two: Path) -> None:
    (two / "out" / "net000").rename(two / "kept")
    (two / "out" / "net000").touch()
    assert told(batch(two, "--force", code=1)["net000"], "write", "is a file")
    manifest = two / "out" / "summary.csv"
    manifest.write_text("model,random_init\ntimm:resnet18,true\n")
    result = run("batch", str(manifest), "-o", str(two / "out"))
    assert result.exit_code == 1 and "is an input of this run" in result.stderr
    assert manifest.read_text().startswith("model,random_init")


def test_code_in_a_checkpoint_runs_by_the_flag_alone(tmp_path: Path) -> None:
    state = Net().state_dict()
    torch.save({"state_dict": state, "epoch": Harmless()}, tmp_path / "a.pth")
    (tmp_path / "m.yaml").write_text(f"- {{{MODEL}, checkpoint: a.pth}}")
    assert told(batch(tmp_path, code=1)["a"], "load", "Harmless")
    result = batched(tmp_path, "--allow-pickle")
    assert result.exit_code == 0 and "a: --allow-pickle: a.pth runs" in result.stderr


class Harmless:
    """What a weights file has no need of."""


def test_options_are_checked(tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text("- {model: timm:resnet18, random_init: true}")
    command = ["batch", str(tmp_path / "m.yaml"), "-o", str(tmp_path / "out")]
    for options, code, said in (
        (["--memory", "much"], 1, "--memory 'much': expected a size"),
        (["--ray", "auto", "--jobs", "2"], 2, "with --ray the cluster decides"),
        (["--jobs", "0"], 2, "0 is not in the range"),
    ):
        result = run(*command, *options)
        assert result.exit_code == code and said in result.stderr
    assert not (tmp_path / "out").exists()


def test_memory_that_does_not_suffice_is_said(two: Path) -> None:
    checkpoints(two, 3)
    rows = batch(two, "--memory", "100MB", code=1)
    assert statuses(rows) == {"net000": "done before", "net001": "done before", "net002": "failed"}
    assert told(rows["net002"], "memory", "and the limit is 0.10 GB (--memory)")


def test_a_checkpoint_must_have_the_hash_that_the_manifest_says(two: Path) -> None:
    right, wrong = (hashlib.sha256((two / f"net00{i}.pth").read_bytes()).hexdigest() for i in (0, 1))
    shutil.rmtree(two / "out")
    line = f"- {{{MODEL}, checkpoint: net000.pth, sha256: HEX}}"
    (two / "m.yaml").write_text(line.replace("HEX", f'"{wrong}"'))
    said = f"its SHA-256 is {right}, and --sha256 wants {wrong}"
    assert told(batch(two, code=1)["net000"], "load", said)
    (two / "m.yaml").write_text(line.replace("HEX", f'"{right.upper()}"'))
    assert statuses(batch(two)) == {"net000": "converted"}
    for text, said in (
        (line.replace("HEX", '"12ab"'), "sha256: '12ab' is no SHA-256"),
        (f'- {{{MODEL}, checkpoint: "*.pth", sha256: "{right}"}}', "sha256 is of one checkpoint, and there are 2"),
        (f'- {{{MODEL}, random_init: true, sha256: "{right}"}}', "sha256 is of one checkpoint, and there are 0"),
    ):
        (two / "m.yaml").write_text(text)
        result = batched(two, out="o")
        assert result.exit_code == 1 and said in result.stderr and not (two / "o").exists()


# -- the key ----------------------------------------------------------------------------------------------------------
def key(entry: Entry, **options: Any) -> str:
    return job_of(entry, Path("out"), Options(**options)).key


def entry_of(model: str, rules: Rules, **asked: Any) -> Entry:
    return Entry(1, "a", ModelRequest.of(model=model, rules=rules, **asked))


def test_the_key_is_that_of_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = checkpoints(tmp_path, 2)
    shutil.copy(first, tmp_path / "copy.pth")
    asked = {"model": "tests.tiny:Net", "rules": Rules(), "checkpoint": first}
    entry = entry_of(**asked)
    same = (
        replace(entry, line=2, name="b"),
        entry_of(**{**asked, "checkpoint": tmp_path / "copy.pth"}),
        replace(entry, formats=("safetensors",)),
    )
    assert {key(e) for e in same} == {key(entry)} == {key(entry, force=True, allow_pickle=True)}
    others = (
        entry_of(**{**asked, "model": "tests.tiny:Other"}),
        entry_of(**{**asked, "model": "tests.helpers:Net"}),  # another module: other code
        entry_of(**{**asked, "model_args": {"n": 2}}),
        entry_of(**{**asked, "checkpoint": second}),
        entry_of(**{**asked, "checkpoint": None, "random_init": True}),
        entry_of(**{**asked, "checkpoint": None, "pretrained": True}),
        entry_of(**{**asked, "allow_missing": ("fc.*",)}),
        entry_of(**{**asked, "ema": True}),
        entry_of(**{**asked, "input_size": (3, 32, 32)}),
        entry_of(**{**asked, "input_kind": "pair"}),
        entry_of(**{**asked, "rules": Rules(ratio=8)}),
        replace(entry, formats=("safetensors", "pt2")),
        entry_of(**{**asked, "seed": 1}),
    )
    assert len({key(entry), *map(key, others)}) == 1 + len(others)
    before = key(entry)
    monkeypatch.setattr(jobs, "__version__", "9")
    assert key(entry) != before


def test_the_key_follows_shards_and_the_code_of_a_factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.bench import save_shards

    save_shards(Net().state_dict(), tmp_path / "shards")
    entry = entry_of("some_net:make", Rules(), checkpoint=tmp_path / "shards")
    whole = key(entry)
    shard = sorted((tmp_path / "shards").glob("*.safetensors"))[-1]
    shard.write_bytes(shard.read_bytes()[:-1] + b"\x01")
    assert key(entry) != whole
    whole = key(entry)
    monkeypatch.chdir(tmp_path)  # as the worker will find it
    for file, module in (("some_net.py", "some_net"), ("pkg/part.py", "pkg.part"), ("pkg/__init__.py", "pkg")):
        entry = entry_of(f"{module}:make", Rules(), checkpoint=tmp_path / "shards")
        before = key(entry)
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / "pkg/__init__.py").touch() if "part" in file else None
        (tmp_path / file).write_text("raise ImportError('not imported for a hash')")
        assert key(entry) != before


# -- the summary ------------------------------------------------------------------------------------------------------
def test_cells_are_no_formulas_and_pages_hold_no_markup() -> None:
    evil = '=HYPERLINK("http://x")<script>alert(1)</script>\u202e'
    rows = [
        Row(1, evil, "+1", "-2", "failed", reason=Reason("error", "@sum")),
        Row(2, "b", "m", "w", "converted", "javascript:a b"),
    ]
    cells = next(iter(list(csv.reader(io.StringIO(summary.to_csv(rows))))[1:]))
    assert not any(cell.startswith(files.FORMULA) for cell in cells) and cells[1] == f"'{evil}"
    page = summary.to_html(rows)
    assert "<script>" not in page and "\u202e" not in page and "&lt;script&gt;" in page
    assert 'href="javascript%3Aa%20b/report.html"' in page and "default-src &#39;none&#39;" in page
    assert summary.headline(rows) == "2 entries: 1 converted, 1 failed"


# -- memory -----------------------------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "size", "formats"),
    [
        ("resnet18", "3,224,224", "safetensors"),
        ("resnet50", "3,448,448", "safetensors"),
        ("vgg11_bn", "3,224,224", "safetensors"),
        ("densenet121", "3,224,224", "safetensors,pt2"),
        ("vgg11_bn", "3,224,224", "safetensors,pt2"),
    ],
)
def test_a_job_stays_within_the_memory_that_is_planned(model: str, size: str, formats: str, tmp_path: Path) -> None:
    import torchvision

    torch.save(
        torchvision.models.get_model(model).state_dict(), tmp_path / "w.pth", _use_new_zipfile_serialization=False
    )
    rules, sides = Rules(placement=("standard", "conv")), tuple(map(int, size.split(",")))
    entry = entry_of(f"torchvision:{model}", rules, checkpoint=tmp_path / "w.pth", input_size=sides)
    entry = replace(entry, formats=tuple(formats.split(",")))
    job = job_of(entry, tmp_path / "out", Options())
    [(_, found)] = pool.run([architecture(entry)], footprint)
    [(_, done)] = pool.run([job], jobs.run_job)
    planned = need(job, found)
    assert 0.5 * planned < done.peak <= planned


# -- many, killed -----------------------------------------------------------------------------------------------------
def spoil(files: Sequence[Path]) -> dict[str, str]:
    """Break five checkpoints, each in its way: name -> what is said of it."""
    truncated, other, code, empty, lacking = files
    truncated.write_bytes(truncated.read_bytes()[:1000])
    torch.save(Net(n=2).state_dict(), other)
    with code.open("wb") as file:
        pickle.dump({"state_dict": Net().state_dict(), "run": Harmless()}, file)
    empty.write_bytes(b"")
    torch.save({k: v for k, v in Net().state_dict().items() if "bn1" not in k}, lacking)
    said = ("cut short", "does not fit the model", "pickle", "empty file", "missing")
    return {file.stem: text for file, text in zip(files, said, strict=True)}


def check_all(folder: Path, rows: dict[str, dict[str, Any]], broken: dict[str, str]) -> None:
    """Every good one is there and verified, with the weights of its checkpoint; every bad one is reported."""
    out = folder / "out"
    for name, row in rows.items():
        if name in broken:
            assert row["status"] == "failed" and told(row, "load", broken[name]), row
            assert not (out / name).exists()
        else:
            assert row["status"] in ("converted", "done before")
            checks = read_report(out / name).checks
            assert len(checks) == 7 and all(check.passed for check in checks)
            written = load_file(out / name / "model.safetensors")
            for tensor, value in torch.load(folder / f"{name}.pth", weights_only=True).items():
                assert torch.equal(written[tensor], value)
    assert {path.name for path in out.iterdir()} == {*rows} - {*broken} | {SUMS, "summary.csv", "summary.html"}


def inodes(out: Path) -> dict[str, int]:
    """Name -> what changes when an output is written again."""
    return {path.parent.name: path.stat().st_ino for path in out.glob("[!.]*/report.json")}


@pytest.mark.slow
def test_two_hundred_with_five_broken_killed_twice(tmp_path: Path, start: Callable[..., Started]) -> None:
    files = checkpoints(tmp_path, 200)
    broken = spoil(files[7::41])
    (tmp_path / "m.yaml").write_text(f'- {{{MODEL}, checkpoint: "*.pth"}}')
    command = ["batch", "m.yaml", "-o", "out", "--factory", "tests.tiny", "--quiet"]
    before: dict[str, int] = {}
    for enough in (40, 110):
        running, said = start(STOPPED, str(signal.SIGKILL.value), str(enough), *command, cwd=tmp_path)
        assert said.read() == "" and running.wait() == -signal.SIGKILL
        now = inodes(tmp_path / "out")
        assert enough <= len(now) < 195 and before.items() <= now.items()
        before = now
    rows = batch(tmp_path, code=1)
    assert Counter(statuses(rows).values()) == {"done before": len(before), "converted": 195 - len(before), "failed": 5}
    assert {name for name, row in rows.items() if row["status"] == "done before"} == set(before)
    after = inodes(tmp_path / "out")
    assert before.items() <= after.items()
    check_all(tmp_path, rows, broken)
    again = batch(tmp_path, code=1)
    assert Counter(statuses(again).values()) == {"done before": 195, "failed": 5} and inodes(tmp_path / "out") == after


# -- on Ray -----------------------------------------------------------------------------------------------------------
@pytest.fixture
def cluster() -> Iterator[Any]:
    """Two nodes of one core on this machine."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Ray about its own defaults, and of sockets that it leaves to the collector
        ray = pytest.importorskip("ray")
        from ray.cluster_utils import Cluster

        node = {"num_cpus": 1, "object_store_memory": 80 << 20, "include_dashboard": False}
        made = Cluster(initialize_head=True, head_node_args=node)
        try:
            made.extra = made.add_node(num_cpus=1, object_store_memory=80 << 20)
            yield made
        finally:
            ray.shutdown()
            made.shutdown()


@pytest.mark.slow
def test_a_lost_node_of_a_ray_cluster_costs_nothing(cluster: Any, tmp_path: Path) -> None:
    from se_inject.cli.terminal import Terminal
    from se_inject.commands.batch.run import batch as work

    files = checkpoints(tmp_path, 40)
    broken = spoil(files[3::8])
    (tmp_path / "m.yaml").write_text(f'- {{{MODEL}, checkpoint: "*.pth"}}')

    class Killer(Terminal):
        def advance(self, done: int, total: int, unit: str) -> None:
            if (done, unit) == (12, "models"):
                cluster.remove_node(cluster.extra, allow_graceful=False)

    with Killer(quiet=True) as screen:
        rows = work(
            tmp_path / "m.yaml", tmp_path / "out", factories=["tests.tiny"], options=Options(), ray=cluster.address,
            screen=screen,
        )  # fmt: skip
    assert len(cluster.list_all_nodes()) == 1
    assert Counter(row.status for row in rows) == {"converted": 35, "failed": 5}
    check_all(tmp_path, {row.name: asdict(row) for row in rows}, broken)


def test_without_ray_the_line_that_installs_it(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    result = batched(two, "--ray", "auto", out="other")
    assert result.exit_code == 1 and "pip install se_inject[ray]" in result.stderr


@pytest.mark.slow
def test_an_address_without_a_cluster_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text("- {model: timm:resnet18, random_init: true}")
    command = [sys.executable, "-m", "se_inject", "batch", "m.yaml", "-o", "out", "--ray"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    for address in ("127.0.0.1:1", "auto", "somewhere"):
        found = subprocess.run([*command, address], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert found.returncode == 1
        assert f"--ray {address}: no Ray cluster answers there" in found.stderr.splitlines()[-1]
