"""Small files that would cost much."""

from __future__ import annotations

import gzip
import io
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from se_inject.checkpoints.checkpoint import read_state_dict
from tests.checkpoints.files import STATE, TORCH_FILES, legacy, refusal, same, write_zip

# Pickles that are small and cost much: (body, what is said)
STORAGE = b"((Vstorage\nctorch\nFloatStorage\nV0\nVcpu\nI4\ntQ"


def view(offset: int, size: str, stride: str) -> bytes:
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + STORAGE[1:] + f"I{offset}\n{size}{stride}I00\n}}tR.".encode()


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


def zipped(body: bytes) -> bytes:
    held = io.BytesIO()
    write_zip(b"\x80\x02" + body, held)
    return held.getvalue()


def deflated(size: int) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(size))
    return held.getvalue()


def tuples(depth: int) -> bytes:
    """A tuple of two tuples of two tuples, and so on: few bytes, 2**depth leaves."""
    return b")q\x00" + b"".join(b"h%ch%c\x86q%c" % (i, i, i + 1) for i in range(depth))


def header(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def index(size: int) -> bytes:
    entries = b",".join(b'"%d":"x%d.safetensors"' % (i, i) for i in range(size // 30))
    return b'{"weight_map":{' + entries + b"}}"


MIB = 1 << 20
# What is small and would cost much, or is at a limit: name -> what makes it
COSTLY: dict[str, Callable[[], bytes]] = {
    "pickle of 2 GiB": lambda: zipped(b"cbuiltins\nbytearray\n(I2147483648\ntR."),
    "tensor of 2 GiB": lambda: zipped(view(0, "(I536870912\nt", "(I1\nt") + b"."),
    "legacy pickle of 2 GiB": lambda: legacy(b"\x80\x02cbuiltins\nbytearray\n(I2147483648\ntR."),
    "deflated zip of 256 MiB": lambda: deflated(256 * MIB),
    "memo bomb": lambda: zipped(tuples(40) + b"."),
    "memo bomb as a key": lambda: zipped(b"}" + tuples(40) + b"Ns."),
    "lists 200,000 deep": lambda: zipped(b"]" * 200_000 + b"a" * 199_999 + b"."),
    "legacy lists 200,000 deep": lambda: legacy(b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b"."),
    "a million operations": lambda: zipped(b"N0" * 500_000 + b"N."),
    "as many in each legacy pickle": lambda: b"".join([legacy(b"")[:22], *[b"\x80\x02" + b"N0" * 499_990 + b"N."] * 4]),
    "a million names": lambda: zipped(b"".join(b"ca\nb%d\n0" % i for i in range(400_000)) + b"N."),
    "a long text": lambda: zipped(
        b"X" + (15 * MIB).to_bytes(4, "little") + "\N{GRINNING FACE}".encode() * (15 * MIB // 4) + b"."
    ),
    "too long a text": lambda: zipped(b"X" + (60 * MIB).to_bytes(4, "little") + b"x" * (60 * MIB) + b"."),
    "keys of one hash": lambda: zipped(b"}(" + b"".join(b"L%dL\nN" % (n * (2**61 - 1)) for n in range(50_000)) + b"u."),
    "header of 2**64 - 1 bytes": lambda: struct.pack("<Q", 2**64 - 1) + b"{}",
    "header of 100 MB": lambda: header(b"{" + b" " * (100 * MIB)),
    "header of metadata": lambda: header(
        b'{"__metadata__":{' + b",".join(b'"%d":""' % i for i in range(600_000)) + b"}}"
    ),
    "header of lists": lambda: header(b'{"a":[' + b"[]," * (2 * MIB) + b"[]]}"),
    "header of objects": lambda: header(b'{"a":[' + b"{}," * (2 * MIB) + b"{}]}"),
    "header 1,000,000 deep": lambda: header(b'{"a":' + b"[" * 1_000_000),
    "index of 11 MB": lambda: index(11 * MIB),
    "index of 7 MB": lambda: index(7 * MIB),
    "index of lists": lambda: b'{"weight_map":{"a":[' + b"[]," * (2 * MIB) + b"[]]}}",
    "gzip bomb": lambda: gzip.compress(bytes(64 * MIB)),
}
MEASURE = """
import os, sys, time
from se_inject.errors import LoadError
from se_inject.checkpoints.checkpoint import read_state_dict
from se_inject.checkpoints.safetensors_file import read_safetensors  # imports torch
import numpy, safetensors

def status(name):
    return next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith(name + ":"))

for path in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        before, start, said = status("VmRSS"), time.process_time(), "read"
        try:
            read_state_dict(path)
        except LoadError as error:
            said = "refused"
        except BaseException as error:
            said = type(error).__name__
        print(os.path.basename(path), said, time.process_time() - start, status("VmHWM") - before, sep="|", flush=True)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        print(os.path.basename(path), "killed", 0, 0, sep="|", flush=True)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs the process status of Linux")
def test_s5_small_files_cost_little(tmp_path: Path) -> None:
    """Each refused in a process of its own, in under 5 s of processor time and 300 MB."""
    for name, make in COSTLY.items():
        (tmp_path / name).write_bytes(make())
    command = [sys.executable, "-c", MEASURE, *[str(tmp_path / name) for name in COSTLY]]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    rows = [line.split("|") for line in done.stdout.splitlines()]
    assert [row[0] for row in rows] == list(COSTLY)
    bad = [row for row in rows if row[1] != "refused" or float(row[2]) > 5 or float(row[3]) > 300]
    assert not bad, done.stdout
