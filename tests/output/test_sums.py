"""``SHA256SUMS`` says what is ours: everything else is the user's work, and stays unless a flag discards it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import se_inject
from se_inject.errors import LoadError, WriteError
from se_inject.output.adding import WAITING, add_files
from se_inject.output.atomic import check_output, write
from se_inject.output.sums import HEADER, SIGNATURE, SUMS, compare, files_check, read_sums, sums_text, users_work
from tests.helpers import run
from tests.output.test_atomic import in_child
from tests.tiny import inject, net

FILES = {"plan.json": b"{}\n", "model.safetensors": b"weights", "timm/config.json": b"{}"}
pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork\\(\\) may lead to deadlocks:DeprecationWarning")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    write(tmp_path / "out", FILES)
    return tmp_path / "out"


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# -- the file ---------------------------------------------------------------------------------------------------------
def test_sha256sum_reads_it(out: Path) -> None:
    tool = shutil.which("sha256sum")
    if tool is None:
        pytest.skip("no sha256sum here")
    check = [tool, "-c", "--strict", SUMS]
    done = subprocess.run(check, cwd=out, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.splitlines() == [f"{name}: OK" for name in sorted(FILES)], done
    (out / "plan.json").write_bytes(b"{} \n")
    assert subprocess.run(check, cwd=out, capture_output=True).returncode == 1


def test_every_file_is_listed_and_nothing_else(out: Path) -> None:
    assert read_sums(out) == {name: hashlib.sha256(data).hexdigest() for name, data in FILES.items()}
    assert compare(out, read_sums(out) or {}).right == tuple(sorted(FILES))
    assert users_work(out) == ()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0" * 64 + "  a\n",  # of a data set, say
        f"{HEADER}\n{'0' * 63}  a\n",
        f"{HEADER}\n{'0' * 64} a\n",
        f"{HEADER}\n{'0' * 64}  a\n{'1' * 64}  a\n",
        f"{HEADER}\n{'0' * 64}  ../a\n",
        f"{HEADER}\n{'0' * 64}  /a\n",
        f"{HEADER}\n\udcff\n",
    ],
)
def test_sums_of_others_are_refused_and_prove_nothing(out: Path, text: str) -> None:
    (out / SUMS).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(LoadError, match="not the sums of an output folder"):
        read_sums(out)
    assert users_work(out) == (SUMS,)
    with pytest.raises(WriteError, match="'SHA256SUMS', which is not ours"):
        write(out, FILES, force=True)
    assert (out / "model.safetensors").read_bytes() == b"weights"


def test_a_data_set_with_sums_of_its_own_is_not_ours(tmp_path: Path) -> None:
    """Every file in it is listed, by another hand."""
    data = tmp_path / "data"
    data.mkdir()
    (data / "a.bin").write_bytes(b"years of work")
    (data / SUMS).write_text(f"{hashlib.sha256(b'years of work').hexdigest()}  a.bin\n")
    before = tree(data)
    with pytest.raises(WriteError, match="not ours"):
        write(data, FILES, force=True)
    assert tree(data) == before


# -- whose a file is --------------------------------------------------------------------------------------------------
def link(path: Path) -> None:
    path.unlink()
    path.symlink_to("plan.json")


CHANGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a changed file": (lambda out: (out / "model.safetensors").write_bytes(b"weightz"), "model.safetensors"),
    "a changed file in a folder": (lambda out: (out / "timm/config.json").write_bytes(b"[]"), "timm/config.json"),
    "a file of a known name": (lambda out: (out / "modeling.py").write_text("mine"), "modeling.py"),
    "a shard's name": (lambda out: (out / "model-00001-of-00002.safetensors").touch(), "model-00001-of-00002"),
    "a folder of a known name": (lambda out: (out / "report.md").mkdir(), "report.md"),
    "a folder for a file": (lambda out: ((out / "plan.json").unlink(), (out / "plan.json").mkdir()), "plan.json"),
    "a file in our folder": (lambda out: (out / "timm/notes.txt").touch(), "timm/notes.txt"),
    "an empty folder": (lambda out: (out / "empty").mkdir(), "empty"),
    "a file": (lambda out: (out / "thesis.tex").write_text("three years of work"), "thesis.tex"),
    "a hidden file": (lambda out: (out / ".git").mkdir(), ".git"),
    "a link to something else": (lambda out: link(out / "model.safetensors"), "model.safetensors"),
    "a pipe": (lambda out: ((out / "plan.json").unlink(), os.mkfifo(out / "plan.json")), "plan.json"),
    "a script in the cache": (lambda out: ((out / "__pycache__").mkdir(), (out / "__pycache__/x.py").touch()), "x.py"),
    "a signature": (lambda out: (out / SIGNATURE).touch(), SIGNATURE),
    "no sums": (lambda out: (out / SUMS).unlink(), "model.safetensors"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_work_of_the_user_is_kept_and_named(out: Path, what: str) -> None:
    change, name = CHANGES[what]
    change(out)
    before = sorted(str(p) for p in out.rglob("*"))
    for act in (lambda: write(out, FILES, force=True), lambda: check_output(out, force=True)):
        with pytest.raises(WriteError, match=rf"{re.escape(name)}.*, which is not ours.*--discard-changes"):
            act()
    assert sorted(str(p) for p in out.rglob("*")) == before
    write(out, FILES, discard_changes=True)
    assert users_work(out) == () and set(tree(out)) == {*FILES, SUMS}


def test_what_is_wholly_ours_is_replaced(out: Path) -> None:
    """The negative twin, with what Python leaves there, and with a file that is gone."""
    (out / "__pycache__").mkdir()
    (out / "__pycache__/modeling.cpython-311.pyc").touch()
    (out / "plan.json").unlink()
    write(out, {"plan.json": b"new"}, force=True)
    assert os.listdir(out.parent) == ["out"]
    assert tree(out) == {"plan.json": b"new", SUMS: sums_text({"plan.json": hashlib.sha256(b"new").hexdigest()})}


def test_an_empty_folder_holds_nothing_to_lose(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(WriteError, match="exists"):
        write(tmp_path / "out", FILES)
    write(tmp_path / "out", FILES, force=True)


def test_discarding_stops_at_files_and_links(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "target").mkdir()
    (tmp_path / "target/mine").touch()
    (tmp_path / "link").symlink_to("target")
    with pytest.raises(WriteError, match="is a file"):
        write(tmp_path / "file", FILES, discard_changes=True)
    write(tmp_path / "link", FILES, discard_changes=True)
    assert (tmp_path / "target/mine").exists() and (tmp_path / "file").read_text() == "mine"


# -- every way to write one -------------------------------------------------------------------------------------------
def command(*args: str, code: int = 0) -> str:
    result = run(*args)
    assert result.exit_code == code, result.output
    assert code == 0 or result.stderr.count("\n") == 1
    return result.stderr


CONVERT = ("convert", "tests.tiny:Net", "--random-init", "--input-size", "3,16,16")


def test_convert_and_remove_keep_it(tmp_path: Path) -> None:
    out, base = str(tmp_path / "out"), str(tmp_path / "base")
    command(*CONVERT, "-o", out)
    command("remove", out, "--model", "tests.tiny:Net", "-o", base)
    for folder, args in (
        (out, (*CONVERT, "-o", out)),
        (base, ("remove", out, "--model", "tests.tiny:Net", "-o", base)),
    ):
        file = Path(folder, "model.safetensors")
        ours = file.read_bytes()
        file.write_bytes(b"mine")
        assert "'model.safetensors', which is not ours" in command(*args, "--force", code=1)
        assert file.read_bytes() == b"mine"
        command(*args, "--discard-changes")
        assert file.read_bytes() == ours
        command(*args, "--force")


def test_save_and_save_adapter_keep_it(tmp_path: Path) -> None:
    result = inject(net())
    for write_it, name in (
        (lambda **how: se_inject.save(result, tmp_path / "out", **how), "modeling.py"),
        (lambda **how: se_inject.save_adapter(result.model, tmp_path / "adapter", **how), "plan.json"),
    ):
        write_it()
        file = next(tmp_path.glob(f"*/{name}"))
        file.write_text("mine")
        with pytest.raises(WriteError, match=f"'{name}', which is not ours"):
            write_it(force=True)
        assert file.read_text() == "mine"
        write_it(discard_changes=True)
        assert file.read_text() != "mine"
        write_it(force=True)
        shutil.rmtree(file.parent)


def test_an_output_of_0_1_is_proven_by_its_report_but_for_the_reports(tmp_path: Path) -> None:
    out = tmp_path / "out"
    se_inject.save(inject(net()), out)
    (out / SUMS).unlink()
    report = json.loads((out / "report.json").read_text())
    for artifact in report["artifacts"]:
        artifact["sha256"] = hashlib.sha256((out / artifact["path"]).read_bytes()).hexdigest()
    (out / "report.json").write_text(json.dumps(report))
    assert users_work(out) == ("report.html", "report.json", "report.md")
    check, found = files_check(out)
    assert check.passed and "version 0.1 wrote no SHA256SUMS" in check.detail
    assert set(found.right) >= {"model.safetensors", "plan.json", "report.json"}  # of which nothing says otherwise
    with pytest.raises(WriteError, match=r"could be sealed anew: an output of 0\.1"):
        add_files(out, {"bench.json": b"{}"})
    (out / "modeling.py").write_text("mine")
    assert "modeling.py" in users_work(out)
    check, found = files_check(out)
    assert check.passed is False and check.detail == "modeling.py is not the file that was written"
    assert "modeling.py" not in found.right


# -- what comes later -------------------------------------------------------------------------------------------------
def test_added_files_are_sealed_and_a_signature_goes(out: Path) -> None:
    (out / "notes.txt").write_text("mine")
    assert add_files(out, {"bench.json": b"{}", "card.md": b"# Net"}) == ()
    assert set(read_sums(out) or {}) == {*FILES, "bench.json", "card.md"} and users_work(out) == ("notes.txt",)
    (out / SIGNATURE).touch()
    assert add_files(out, {"bench.json": b"{}"}, force=True) == ()  # nothing new, so it still holds
    (said,) = add_files(out, {"bench.json": b"[]"}, force=True)
    assert "sign the new SHA256SUMS" in said and not (out / SIGNATURE).exists()
    assert users_work(out) == ("notes.txt",) and (out / "bench.json").read_bytes() == b"[]"


def test_added_files_are_never_over_the_users(out: Path) -> None:
    add_files(out, {"bench.json": b"{}"})
    with pytest.raises(WriteError, match=r"exists.*--force"):
        add_files(out, {"bench.json": b"[]"})
    (out / "bench.json").write_bytes(b"mine")
    (out / "card.md").write_bytes(b"mine, too")
    before = tree(out)
    for name in ("bench.json", "card.md"):
        with pytest.raises(WriteError, match=f"'{name}', which is not ours"):
            add_files(out, {"new.txt": b"", name: b"[]"}, force=True)
        assert tree(out) == before
    add_files(out, {"bench.json": b"[]"}, discard_changes=True)
    assert users_work(out) == ("card.md",)


@pytest.mark.parametrize("name", ["", "timm/x", "../x", SUMS, SIGNATURE, ".hidden", "a\nb", "timm"])
def test_names_that_are_not_added(out: Path, name: str) -> None:
    before = tree(out)
    with pytest.raises(WriteError):
        add_files(out, {name: b""}, discard_changes=True)
    assert tree(out) == before


def test_a_killed_addition_is_completed_or_undone(tmp_path: Path) -> None:
    """At every file operation: the folder agrees with its sums after the next look at it."""
    new, states = {"bench.json": b"new", "card.md": b"new"}, set()
    for point in range(200):
        folder = tmp_path / str(point)
        write(folder, {**FILES, "bench.json": b"old"})

        def body(folder: Path = folder, point: int = point) -> None:
            left = point

            def hook(event: str, args: tuple[object, ...]) -> None:
                nonlocal left
                if event in ("open", "os.rename", "os.remove", "os.listdir"):
                    left -= 1
                    if left == -1:
                        os.kill(os.getpid(), signal.SIGKILL)

            sys.addaudithook(hook)
            add_files(folder, new, force=True)

        if in_child(body) == 0:
            break
        check_output(folder, force=True)  # what the next run does first
        assert users_work(folder) == () and not list(folder.glob(f"{WAITING}*"))
        found = {name: (folder / name).read_bytes() for name in new if (folder / name).exists()}
        assert found in (new, {"bench.json": b"old"}), point
        states.add(len(found))
    assert point > 8 and states == {1, 2}


def test_report_into_its_own_folder_is_sealed(tmp_path: Path) -> None:
    out = tmp_path / "out"
    se_inject.save(inject(net()), out)
    ask = ("report", str(out), "--format", "md", "-o", str(out / "report.md"))
    assert "--force" in command(*ask, code=1)
    (out / "report.md").write_text("mine")
    assert "'report.md', which is not ours" in command(*ask, "--force", code=1)
    assert (out / "report.md").read_text() == "mine"
    (out / SIGNATURE).touch()
    (out / SUMS).write_bytes((out / SUMS).read_bytes())
    command(*ask, "--discard-changes")
    command(*ask[:-1], str(out / "more.md"))
    assert users_work(out) == () and "more.md" in (read_sums(out) or {})
    beside = tmp_path / "mine.md"  # a file of the user's own folder is named in full, and --force is about it alone
    beside.write_text("mine")
    assert "--force" in command(*ask[:-1], str(beside), code=1) and beside.read_text() == "mine"


# -- a signature ------------------------------------------------------------------------------------------------------
def test_sums_are_signed_by_ssh_keygen(out: Path, tmp_path: Path) -> None:
    """The commands of docs/security.md."""
    tool = shutil.which("ssh-keygen")
    if tool is None:
        pytest.skip("no ssh-keygen here")

    def run(*args: str, stdin: bytes = b"") -> int:
        return subprocess.run([tool, *args], input=stdin, capture_output=True, cwd=tmp_path).returncode

    assert run("-q", "-t", "ed25519", "-N", "", "-f", "key") == 0
    (tmp_path / "signers").write_text("me@example.org " + (tmp_path / "key.pub").read_text())
    assert run("-Y", "sign", "-f", "key", "-n", "se_inject", str(out / SUMS)) == 0
    check = ("-Y", "verify", "-f", "signers", "-I", "me@example.org", "-n", "se_inject", "-s", str(out / SIGNATURE))
    sums = (out / SUMS).read_bytes()
    assert run(*check, stdin=sums) == 0
    assert run(*check, stdin=sums.replace(b"plan.json", b"plan.jsom")) != 0
