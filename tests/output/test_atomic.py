"""The output folder is complete or not there, whatever happens; and the tensors in it are the ones given."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import resource
import signal
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch
from torch import nn

from se_inject.errors import LoadError, WriteError
from se_inject.output.atomic import check_output, read_tensors, tensors_writer, write
from se_inject.output.sums import SUMS, compare, read_sums

FILES = {"plan.json": b"{}\n", "model.safetensors": b"weights", "report.md": b""}
NEWER = {"plan.json": b'{"new": 1}\n', "model.safetensors": b"other weights", "modeling.py": b"x = 1\n"}


def content(folder: Path) -> dict[str, bytes]:
    """Path -> bytes; sums are left out when they are right, as they must be."""
    found = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    if SUMS in found:
        assert not compare(folder, read_sums(folder) or {}).changed
        found.pop(SUMS)
    return found


# ---------------------------------------------------------------- what is written


def test_writes_and_lists(tmp_path: Path) -> None:
    out = tmp_path / "out"
    files = {**FILES, "sub/notes.txt": lambda path: path.write_text("hello")}
    sums = write(out, files)
    assert content(out) == {**FILES, "sub/notes.txt": b"hello"}
    assert list(sums) == sorted(files) and sums == read_sums(out)
    assert sums["plan.json"] == hashlib.sha256(b"{}\n").hexdigest()
    assert os.listdir(tmp_path) == ["out"]


def test_parents_are_made(tmp_path: Path) -> None:
    write(tmp_path / "a/b/out", FILES)
    assert content(tmp_path / "a/b/out") == FILES


def test_later_writers_see_earlier_files(tmp_path: Path) -> None:
    files = {"b": b"first", "a": lambda path: path.write_bytes(path.with_name("b").read_bytes() + b", second")}
    assert list(write(tmp_path / "out", files)) == ["a", "b"]
    assert content(tmp_path / "out") == {"b": b"first", "a": b"first, second"}


def test_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("out"), FILES)
    assert content(tmp_path / "out") == FILES


@pytest.mark.parametrize("name", ["", "/etc/x", "../x", "a/../../x", "./x", "a//b", "a\\b", "x\0", "a\nb", " a", SUMS])
def test_names_outside_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(WriteError, match="inside the output folder"):
        write(tmp_path / "out", {name: b""})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_modes_follow_the_umask(tmp_path: Path, umask: int) -> None:
    def private(path: Path) -> None:
        path.touch(mode=0o600)

    before = os.umask(umask)
    try:
        write(tmp_path / "out", {"a": b"", "sub/b": private, "model.safetensors": tensors_writer({})})
    finally:
        os.umask(before)
    for path in (tmp_path / "out").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o777 if path.is_dir() else 0o666) & ~umask


# ---------------------------------------------------------------- what is refused


def test_existing_output_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "out", FILES)
    with pytest.raises(WriteError, match=r"exists \(folder\).*--force"):
        write(tmp_path / "out", NEWER)
    assert content(tmp_path / "out") == FILES


@pytest.mark.parametrize("force", [False, True])
def test_a_file_is_never_replaced(tmp_path: Path, force: bool) -> None:
    (tmp_path / "resnet.pth").write_bytes(b"precious")
    with pytest.raises(WriteError, match="is a file"):
        write(tmp_path / "resnet.pth", FILES, force=force)
    assert (tmp_path / "resnet.pth").read_bytes() == b"precious"


@pytest.mark.parametrize("dangling", [False, True])
def test_a_link_keeps_its_target(tmp_path: Path, dangling: bool) -> None:
    if not dangling:
        (tmp_path / "target").mkdir()
        (tmp_path / "target/data").write_bytes(b"kept")
    (tmp_path / "out").symlink_to("target")
    with pytest.raises(WriteError, match=r"exists \(link\)"):
        write(tmp_path / "out", FILES)
    write(tmp_path / "out", FILES, force=True)
    assert not (tmp_path / "out").is_symlink() and content(tmp_path / "out") == FILES
    assert dangling or content(tmp_path / "target") == {"data": b"kept"}
    assert sorted(os.listdir(tmp_path)) == (["out"] if dangling else ["out", "target"])


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize(
    ("out", "given", "how"),
    [
        ("in", "in", "is, or links to"),
        ("in/model.safetensors", "in/model.safetensors", "is, or links to"),
        ("in/../in", "in", "is, or links to"),
        ("link", "in", "is, or links to"),
        ("in", "link", "is, or links to"),
        ("in/out", "in", "is inside"),
        ("link/out", "in", "is inside"),
        ("sublink/out", "in", "is inside"),
        ("in/model.safetensors/out", "in/model.safetensors", "is inside"),
        ("in", "in/model.safetensors", "contains"),
        ("link", "in/model.safetensors", "contains"),
        ("in", "in/to_blob", "contains"),
        ("in", "to_in", "contains"),
    ],
)
def test_inputs_are_not_touched(tmp_path: Path, out: str, given: str, how: str, force: bool) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/model.safetensors").write_bytes(b"precious")
    (tmp_path / "blob").write_bytes(b"blob")
    (tmp_path / "in/to_blob").symlink_to("../blob")
    (tmp_path / "to_in").symlink_to("in/model.safetensors")
    (tmp_path / "link").symlink_to("in")
    (tmp_path / "in/sub").mkdir()
    (tmp_path / "sublink").symlink_to("in/sub")
    with pytest.raises(WriteError, match=how):
        write(tmp_path / out, FILES, force=force, inputs=[tmp_path / given])
    assert content(tmp_path / "in") == {"model.safetensors": b"precious", "to_blob": b"blob"}


def test_an_input_nearby_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "in.pth").write_bytes(b"precious")
    write(tmp_path / "out", FILES, inputs=[tmp_path / "in.pth", tmp_path / "missing"])
    assert content(tmp_path / "out") == FILES


def test_check_output_says_the_same_without_writing(tmp_path: Path) -> None:
    check_output(tmp_path / "a/out")
    assert os.listdir(tmp_path) == []
    write(tmp_path / "out", FILES)
    with pytest.raises(WriteError, match="exists"):
        check_output(tmp_path / "out")
    check_output(tmp_path / "out", force=True)


@pytest.mark.parametrize(
    ("writer", "message"),
    [
        (lambda path: None, "made no file"),
        (lambda path: path.mkdir(), "made no file"),
        (lambda path: path.symlink_to("plan.json"), "made no file"),
        (lambda path: (path.touch(), path.with_suffix(".data").touch()), "not asked for: 'x.data'"),
    ],
)
def test_writers_that_do_something_else(tmp_path: Path, writer: Callable[[Path], None], message: str) -> None:
    with pytest.raises(WriteError, match=message):
        write(tmp_path / "out", {"x": writer, "plan.json": b"{}"})
    assert os.listdir(tmp_path) == []


def test_parent_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(WriteError, match="Not a directory"):
        write(tmp_path / "file/out", FILES)


# ---------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt(), SystemExit(3)])
def test_nothing_is_left_after_an_exception(tmp_path: Path, error: BaseException) -> None:
    def fail(path: Path) -> None:
        path.write_bytes(b"half")
        raise error

    with pytest.raises(type(error)):
        write(tmp_path / "deep/er/out", {"a": b"", "b": fail})
    assert os.listdir(tmp_path) == []
    write(tmp_path / "out", FILES)
    with pytest.raises(type(error)):
        write(tmp_path / "out", {"plan.json": fail}, force=True)
    assert os.listdir(tmp_path) == ["out"] and content(tmp_path / "out") == FILES


def test_rename_that_fails_restores_the_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "out", FILES)
    rename = os.rename

    def fail(source: Path, target: Path) -> None:
        if str(source).endswith(".new"):
            raise OSError(errno.EIO, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(WriteError, match="Input/output error"):
        write(tmp_path / "out", NEWER, force=True)
    assert os.listdir(tmp_path) == ["out"] and content(tmp_path / "out") == FILES


def test_output_that_appears_meanwhile(tmp_path: Path) -> None:
    def slow(path: Path) -> None:
        path.touch()
        write(tmp_path / "out", FILES)

    with pytest.raises(WriteError, match="exists"):
        write(tmp_path / "out", {"a": slow})
    assert os.listdir(tmp_path) == ["out"] and content(tmp_path / "out") == FILES


def test_disk_full(tmp_path: Path) -> None:
    """No file over 64 KiB, as a limit of the process: the write fails like one on a full disk."""

    def body() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, 2**16))
        with pytest.raises(WriteError, match="File too large"):
            write(tmp_path / "out", {"model.safetensors": tensors_writer({"x": torch.zeros(2**20)})})

    assert in_child(body) == 0
    assert os.listdir(tmp_path) == []


def test_two_runs_for_one_target(tmp_path: Path) -> None:
    """A run does not take the folder of a living one for a leftover."""
    reached, go = threading.Event(), threading.Event()
    errors: list[WriteError] = []

    def wait(path: Path) -> None:
        path.write_bytes(b"slow")
        reached.set()
        go.wait()

    def slow() -> None:
        try:
            write(tmp_path / "out", {"plan.json": wait})
        except WriteError as error:
            errors.append(error)
        finally:
            reached.set()

    thread = threading.Thread(target=slow)
    thread.start()
    try:
        reached.wait()
        write(tmp_path / "out", FILES)
        assert len(os.listdir(tmp_path)) == 2
    finally:
        go.set()
        thread.join()
    assert len(errors) == 1 and "exists" in str(errors[0])
    assert os.listdir(tmp_path) == ["out"] and content(tmp_path / "out") == FILES


# ---------------------------------------------------------------- killed, or interrupted, at every point
# An audit hook sees each file operation before it happens. It cannot be removed, so it lives in a forked child.

pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork\\(\\) may lead to deadlocks:DeprecationWarning")
OPERATIONS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "os.listdir", "os.scandir")
FINISHED, INTERRUPTED, FAILED = 0, 7, 8


def in_child(body: Callable[[], None]) -> int:
    """The exit status of a forked child that runs ``body``; minus the signal that ended it."""
    pid = os.fork()
    if pid == 0:
        status = FAILED
        try:
            body()
            status = FINISHED
        except KeyboardInterrupt:
            status = INTERRUPTED
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def stopped_at(n: int, act: Callable[[], None], folder: Path, **options: bool) -> int:
    """Exit status of a ``write`` in which ``act`` happens just before its n-th file operation."""

    def slow(path: Path) -> None:
        with path.open("wb") as file:
            for chunk in (b"other", b" ", b"weights"):
                file.write(chunk)
                file.flush()
                sys.audit("open", str(path), None, 0)  # a point in the middle of a file

    def body() -> None:
        left = n

        def hook(event: str, args: tuple[object, ...]) -> None:
            nonlocal left
            if event in OPERATIONS:
                left -= 1
                if left == -1:
                    act()

        sys.addaudithook(hook)
        write(folder / "out", {**NEWER, "model.safetensors": slow}, **options)

    return in_child(body)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def interrupt() -> None:
    raise KeyboardInterrupt


def folders(tmp_path: Path) -> Iterator[tuple[int, Path]]:
    for n in range(1000):
        folder = tmp_path / str(n)
        folder.mkdir()
        yield n, folder


@pytest.mark.parametrize("force", [False, True])
def test_sigkill_at_every_operation(tmp_path: Path, force: bool) -> None:
    """The output is absent or complete, and the next run leaves no litter; the old one is never lost."""
    states = set()
    for n, folder in folders(tmp_path):
        if force:
            write(folder / "out", FILES)
        status = stopped_at(n, kill, folder, force=force)
        if status == FINISHED:
            break
        assert status == -signal.SIGKILL
        found = content(folder / "out") if (folder / "out").exists() else None
        assert found in ([FILES, NEWER, None] if force else [NEWER, None]), n
        states.add(None if found is None else "new" if found == NEWER else "old")
        if force:
            check_output(folder / "out", force=True)  # puts the old one back
            assert content(folder / "out") == (found or FILES)
            write(folder / "out", NEWER, force=True)
        elif found is None:
            write(folder / "out", NEWER)
        else:
            with pytest.raises(WriteError, match="exists"):
                write(folder / "out", NEWER)
        assert os.listdir(folder) == ["out"] and content(folder / "out") == NEWER
    assert n >= 20, "too few points to show anything"
    assert states == ({"old", None, "new"} if force else {None, "new"})


@pytest.mark.parametrize("force", [False, True])
def test_interrupt_at_every_operation(tmp_path: Path, force: bool) -> None:
    """Ctrl-C: the folder is as before or complete, at once."""
    for n, folder in folders(tmp_path):
        if force:
            write(folder / "out", FILES)
        status = stopped_at(n, interrupt, folder, force=force)
        if status == FINISHED:
            break
        assert status == INTERRUPTED
        assert os.listdir(folder) in (["out"], [] if not force else ["out"]), n
        if (folder / "out").exists():
            assert content(folder / "out") in ([FILES, NEWER] if force else [NEWER]), n
    assert n >= 20


def test_leftovers_of_other_targets_stay(tmp_path: Path) -> None:
    status = stopped_at(12, kill, tmp_path)
    assert status == -signal.SIGKILL
    (litter,) = os.listdir(tmp_path)
    (tmp_path / ".se-inject-notes").mkdir()
    write(tmp_path / "another", FILES)
    assert sorted(os.listdir(tmp_path)) == sorted([litter, ".se-inject-notes", "another"])
    write(tmp_path / "out", FILES)
    assert sorted(os.listdir(tmp_path)) == [".se-inject-notes", "another", "out"]


# ---------------------------------------------------------------- tensors


def save(tmp_path: Path, state: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> Path:
    path = tmp_path / "x.safetensors"
    tensors_writer(state, metadata)(path)
    return path


MIXED = {
    "b.weight": torch.arange(15.0).reshape(3, 5),
    "a": torch.arange(7.0),
    "n": torch.tensor(3),
    "half": torch.arange(3.0).half(),
    "mask": torch.tensor([True, False, True]),
    "empty": torch.zeros(0, 4),
    "größe": torch.zeros(1),
    "conv.weight": torch.arange(64.0),
    "conv.bias": torch.arange(16.0),
    "codes": torch.arange(64, dtype=torch.uint8),
}


def test_the_library_reads_it(tmp_path: Path) -> None:
    back = safetensors.torch.load_file(save(tmp_path, MIXED))
    assert back.keys() == MIXED.keys()
    assert all(torch.equal(back[name], value) and back[name].dtype == value.dtype for name, value in MIXED.items())


def test_tensors_lie_where_torch_would_put_them(tmp_path: Path) -> None:
    """Whole multiples of 64 bytes first; what follows is aligned to its own element."""
    path = save(tmp_path, MIXED)
    back = read_tensors(path)
    assert {name for name, t in back.items() if t.data_ptr() % 64 == 0} >= {"conv.weight", "conv.bias", "codes"}
    length = int.from_bytes(path.read_bytes()[:8], "little")
    header = json.loads(path.read_bytes()[8 : 8 + length])
    assert (8 + length) % 64 == 0
    assert all(header[n]["data_offsets"][0] % t.element_size() == 0 for n, t in MIXED.items())


def test_same_bytes_whatever_the_order(tmp_path: Path) -> None:
    state = {name: torch.full((4,), float(i)) for i, name in enumerate("dacbe")}
    metadata = {name: name for name in "zyxwv"}
    first = save(tmp_path, state, metadata).read_bytes()
    again = save(tmp_path, dict(reversed(state.items())), dict(reversed(metadata.items()))).read_bytes()
    assert first == again
    with safetensors.safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", **metadata}


DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.int64, torch.int32]
DTYPES += [torch.int16, torch.int8, torch.uint8, torch.uint16, torch.bool, torch.float8_e4m3fn, torch.float8_e5m2]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes_round_trip(tmp_path: Path, dtype: torch.dtype) -> None:
    value = torch.arange(6).reshape(2, 3).to(dtype)
    back = read_tensors(save(tmp_path, {"x": value}))["x"]
    assert back.dtype == dtype and back.shape == (2, 3)
    assert torch.equal(back.view(torch.uint8), value.view(torch.uint8))
    assert torch.equal(
        safetensors.torch.load_file(tmp_path / "x.safetensors")["x"].view(torch.uint8), back.view(torch.uint8)
    )


def test_views_are_written_as_they_look(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    image = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    state = {
        "t": base.T,
        "column": base[:, 1],
        "row": base[1],  # overlaps the others, is none of them
        "image": image,
        "conj": torch.complex(base, base).conj(),
        "negative": torch.complex(base, base).conj().imag,
        "wide": torch.ones(1).expand(1000),
        "parameter": nn.Parameter(base.clone()),
    }
    back = read_tensors(save(tmp_path, state))
    assert list(back) == sorted(state)
    for name, value in state.items():
        assert torch.equal(back[name], value), name


def test_tied_tensors_are_stored_once_and_tied_again(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(300, 300, bias=False), nn.Linear(300, 300, bias=False))
    model[1].weight = model[0].weight
    path = save(tmp_path, model.state_dict())
    assert path.stat().st_size < 300 * 300 * 4 + 1000
    with safetensors.safe_open(path, "pt") as file:
        assert list(file.keys()) == ["0.weight"]
        assert json.loads(file.metadata()["aliases"]) == {"1.weight": "0.weight"}
    back = read_tensors(path)
    assert back["1.weight"] is back["0.weight"]
    model.load_state_dict(back)


def test_equal_but_separate_tensors_stay_separate(tmp_path: Path) -> None:
    back = read_tensors(
        save(tmp_path, {"a": torch.ones(3), "b": torch.ones(3), "c": torch.ones(0), "d": torch.ones(0)})
    )
    assert back["a"].data_ptr() != back["b"].data_ptr()
    assert list(back) == ["a", "b", "c", "d"]


def quantized() -> torch.Tensor:
    return torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: torch.empty(3, device="meta"), "meta device"),
        (lambda: torch.eye(3).to_sparse(), "is sparse"),
        (quantized, "is quantized"),
        (lambda: torch.zeros(3, dtype=torch.complex128), "complex128"),
        (lambda: torch.zeros(1).expand(2**20, 2**12), "4 bytes in memory would become 17,179,869,184"),
        (lambda: {"epoch": 3}, "a dict, not a tensor"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*quantize.*deprecated")
def test_refused_by_name(tmp_path: Path, make: Callable[[], torch.Tensor], message: str) -> None:
    with pytest.raises(WriteError, match=f"'layer.x'.*{message}"):
        tensors_writer({"layer.x": make(), "fine": torch.ones(1)})


@pytest.mark.parametrize("name", ["__metadata__", "\ud800"])
def test_names_that_cannot_be_kept(name: str) -> None:
    with pytest.raises(WriteError, match="name that safetensors cannot keep"):
        tensors_writer({name: torch.ones(1)})


@pytest.mark.parametrize("name", ['a"b', "a\\b", "a\nb", "\x1b[31m", "../../x", "\u202eabc", ""])
def test_odd_names_round_trip(tmp_path: Path, name: str) -> None:
    assert torch.equal(read_tensors(save(tmp_path, {name: torch.ones(2)}))[name], torch.ones(2))


@pytest.mark.parametrize(
    "aliases", ["no json", "[]", '{"b": "missing"}', '{"b": 3}', '{"a": "a"}', '{"b": "c", "c": "a"}', "[" * 100_000]
)
def test_aliases_that_do_not_fit(tmp_path: Path, aliases: str) -> None:
    safetensors.torch.save_file({"a": torch.ones(1)}, tmp_path / "x", metadata={"aliases": aliases})
    with pytest.raises(LoadError, match="alias"):
        read_tensors(tmp_path / "x")


def test_not_a_safetensors_file(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"<html>")
    for name in ("x", "missing"):
        with pytest.raises(LoadError, match="cannot read"):
            read_tensors(tmp_path / name)
