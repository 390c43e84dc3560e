"""S5: small files that would cost much."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch

from tests.checks.files import CONTAINERS, refusal, write_zip

# Pickles that are small and cost much: (body, what is said)
STORAGE = b"((Vstorage\nctorch\nFloatStorage\nV0\nVcpu\nI4\ntQ"


def view(offset: int, size: str, stride: str) -> bytes:
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + STORAGE[1:] + f"I{offset}\n{size}{stride}I00\n}}tR.".encode()


VIEWS = ("long view", "offset", "stride", "negative", "odd view")
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
    "tuple key": (b"}((I1\ntI1\ns.", "a key is neither a string nor a number"),
    "tuple in set": (b"cbuiltins\nset\n((l(I1\ntatR.", "a set holds something other than"),
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


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("bomb", BOMBS)
def test_s5_costly_pickles_are_refused_before_they_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, container: str, bomb: str
) -> None:
    monkeypatch.setattr(torch, "load", lambda *a, **k: pytest.fail("torch.load was reached"))
    body, said = BOMBS[bomb]
    CONTAINERS[container](b"\x80\x02" + body, tmp_path / "x.pt")
    text = refusal(tmp_path / "x.pt")
    if bomb in VIEWS:  # the files here hold no storage, which is seen first
        said = {"zip": "the storage '0' is missing", "legacy": "declare 24 bytes and 0 follow"}[container]
    assert said in text


def test_s5_a_view_within_its_storage_is_no_bomb() -> None:
    """The negative twin of the views above."""
    from se_inject.files.picklescan import scan

    for offset, size, stride in ((0, "(I4\nt", "(I1\nt"), (3, "(I1\nt", "(I9\nt"), (0, "(I2\nI2\nt", "(I2\nI1\nt")):
        found = scan(io.BytesIO(b"\x80\x02" + view(offset, size, stride)))
        assert found.records == {"0": ("torch.FloatStorage", 16)}
        assert not [p for p in found.problems if "does not write by default" not in p]
    for bomb in VIEWS:
        body, said = BOMBS[bomb]
        assert said in scan(io.BytesIO(b"\x80\x02" + body)).problems


def test_s5_long_pickles_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_zip(b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b".", tmp_path / "deep.pt")
    assert "holds a list, not a state dict" in refusal(tmp_path / "deep.pt")
    monkeypatch.setattr("se_inject.files.picklescan.OPERATIONS", 1000)
    assert "more than 1,000 operations" in refusal(tmp_path / "deep.pt")
