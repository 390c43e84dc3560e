"""Small files that would cost much."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from se_inject.checkpoints.checkpoint import read_state_dict
from tests.checkpoints.files import STATE, TORCH_FILES, refusal, same, write_zip
from tests.helpers import ROOT
from tests.security.costly import COSTLY, view

# Pickles that are small and cost much: (body, what is said)
VIEWS = ("long view", "offset", "stride", "negative", "odd view", "many axes")
BOMBS = {
    "bytearray": (b"cbuiltins\nbytearray\n(I2147483648\ntR.", "bytearray is called with a size"),
    "tensor class": (b"ctorch\nFloatTensor\n(I536870912\ntR.", "loading it would run torch.FloatTensor"),
    "storage class": (b"ctorch\nFloatStorage\n(I536870912\ntR.", "it calls torch.FloatStorage"),
    "long view": (view(0, "(I536870912\nt", "(I1\nt"), "a tensor reaches past the end of its storage"),
    "offset": (view(4, "(I1\nt", "(I1\nt"), "a tensor reaches past the end of its storage"),
    "stride": (view(0, "(I2\nt", "(I4\nt"), "a tensor reaches past the end of its storage"),
    "negative": (view(0, "(I-1\nt", "(I1\nt"), "a tensor has a negative or odd shape"),
    "odd view": (view(0, "(I1\nt", "(t"), "a tensor is not made as torch.save makes it"),
    "codec": (b"c_codecs\nencode\n(Vx\nVzlib\ntR.", "an odd encoding"),
    "tuple key": (b"}((I1\ntI1\ns.", "a key is neither a string nor a usual number"),
    "tuple in set": (b"cbuiltins\nset\n((l(I1\ntatR.", "a set holds something other than"),
    "keys of one hash": (b"}(" + b"".join(b"L%dL\nN" % (n * (2**61 - 1)) for n in range(3)) + b"u.", "a usual number"),
    "many axes": (view(0, "(" + "I1\n" * 65 + "t", "(" + "I1\n" * 65 + "t"), "a tensor has a negative or odd shape"),
    "result called": (b"ccollections\nOrderedDict\n(tR(tR.", "it calls the result of a call"),
    "odd storage": (b"(Vstorage\nctorch\nFloatStorage\nI0\ntQ.", "a storage is not declared"),
    "rebuild in rebuild": (
        b"ctorch._tensor\n_rebuild_from_type_v2\n(ctorch._tensor\n_rebuild_from_type_v2\nNNNtR.",
        "a tensor is not made as torch.save makes it",
    ),
    "rebuild by bytearray": (
        b"ctorch._tensor\n_rebuild_from_type_v2\n(cbuiltins\nbytearray\nN(I2147483648\ntNtR.",
        "bytearray is called with a size",
    ),
    "missing operand": (b"\x85R.", "its pickle is cut short or damaged"),
    "no end": (b"}", "its pickle is cut short or damaged"),
    "unknown memo": (b"h\x05.", "its pickle is cut short or damaged"),
    "long string": (b"X\xff\xff\xff\xff.", "its pickle is cut short or damaged"),
    "long decimal": (b"I" + b"9" * 100_000 + b"\n.", "its pickle is cut short or damaged"),
}


@pytest.mark.parametrize("container", TORCH_FILES)
@pytest.mark.parametrize("bomb", BOMBS)
def test_s5_costly_pickles_are_refused_before_they_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, container: str, bomb: str
) -> None:
    monkeypatch.setattr(torch, "load", lambda *a, **k: pytest.fail("torch.load was reached"))
    body, said = BOMBS[bomb]
    TORCH_FILES[container](b"\x80\x02" + body, tmp_path / "x.pt")
    text = refusal(tmp_path / "x.pt")
    if bomb in VIEWS:  # the files here hold no storage, which is seen first
        said = {"zip": "the storage '0' is missing", "legacy": "declare 24 bytes and 0 follow"}[container]
    assert said in text


def test_s5_a_view_within_its_storage_is_no_bomb() -> None:
    """The negative twin of the views above."""
    from se_inject.checkpoints.pickle_scan import scan

    for offset, size, stride in ((0, "(I4\nt", "(I1\nt"), (3, "(I1\nt", "(I9\nt"), (0, "(I2\nI2\nt", "(I2\nI1\nt")):
        found = scan(io.BytesIO(b"\x80\x02" + view(offset, size, stride)))
        assert found.records == {"0": ("torch.FloatStorage", 16)}
        assert not [p for p in found.problems if "does not write by default" not in p]
    for bomb in VIEWS:
        body, said = BOMBS[bomb]
        assert said in scan(io.BytesIO(b"\x80\x02" + body)).problems


def test_s5_usual_keys_are_read(tmp_path: Path) -> None:
    """The negative twin of the keys above, with the largest that has a hash of its own."""
    torch.save(
        {"state_dict": STATE, "optimizer": {0: 1, -1: 2, 2**61 - 2: 3, 0.5: 4, None: 5, True: 6}}, tmp_path / "x"
    )
    assert same(read_state_dict(tmp_path / "x").tensors, STATE)


def test_s5_long_pickles_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_zip(b"\x80\x02" + b"]" * 20_000 + b"a" * 19_999 + b".", tmp_path / "deep.pt")
    assert "holds a list, not a state dict" in refusal(tmp_path / "deep.pt")
    monkeypatch.setattr("se_inject.checkpoints.pickle_scan.OPERATIONS", 1000)
    assert "more than 1,000 operations" in refusal(tmp_path / "deep.pt")


MEASURE = """
import os, sys
from se_inject.errors import LoadError
from se_inject.checkpoints.checkpoint import read_state_dict
from se_inject.checkpoints.safetensors_file import read_safetensors  # imports torch
import numpy, safetensors
from tests.helpers import calls

def status(name):
    return next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith(name + ":"))

for path in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        before, said = status("VmRSS"), "read"
        def read():
            global said
            try:
                read_state_dict(path)
            except LoadError as error:
                said = "refused"
            except BaseException as error:
                said = type(error).__name__
        made = calls(read)
        print(os.path.basename(path), said, made, status("VmHWM") - before, sep="|", flush=True)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        print(os.path.basename(path), "killed", 0, 0, sep="|", flush=True)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs the process status of Linux")
def test_s5_small_files_cost_little(tmp_path: Path) -> None:
    """Each refused in a process of its own, with at most 20 million calls and in 300 MB; `make bench` times them."""
    for name, make in COSTLY.items():
        (tmp_path / name).write_bytes(make())
    command = [sys.executable, "-c", MEASURE, *[str(tmp_path / name) for name in COSTLY]]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    rows = [line.split("|") for line in done.stdout.splitlines()]
    assert [row[0] for row in rows] == list(COSTLY)
    bad = [row for row in rows if row[1] != "refused" or int(row[2]) > 20_000_000 or float(row[3]) > 300]
    assert not bad, done.stdout
