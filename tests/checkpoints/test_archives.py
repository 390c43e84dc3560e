"""Archives that are not as torch.save writes them; torch's own reader verifies no checksum."""

from __future__ import annotations

import re
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from se_inject.checkpoints.checkpoint import read_state_dict
from se_inject.errors import LoadError
from tests.checkpoints.files import STATE, refusal, refused, same, save_legacy


def rewrite(
    path: Path, change: Callable[[str, bytes], bytes | None], compression: int = zipfile.ZIP_STORED, root: str = "x"
) -> None:
    with zipfile.ZipFile(path) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members:
            if (new := change(name, data)) is not None:
                archive.writestr(root + name.removeprefix("x"), new)


def central(data: bytes, member: str) -> int:
    """Where the archive's directory has its entry of the member."""
    name = data.rindex(f"x/{member}".encode())
    return data.rindex(b"PK\x01\x02", 0, name)


def patch(path: Path, member: str, offset: int, new: bytes) -> None:
    """Other bytes in the member's entry of the directory."""
    data = bytearray(path.read_bytes())
    at = central(bytes(data), member) + offset
    data[at : at + len(new)] = new
    path.write_bytes(data)


def resize(path: Path, member: str, more: int) -> None:
    """Both sizes of the member, in its entry of the directory."""
    data = path.read_bytes()
    at = central(data, member)
    (size,) = struct.unpack("<I", data[at + 24 : at + 28])
    patch(path, member, 20, struct.pack("<II", size + more, size + more))


def comment(path: Path) -> None:
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = b"a comment"


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def add(path: Path, name: str) -> None:
    with warnings.catch_warnings(), zipfile.ZipFile(path, "a") as archive:
        warnings.simplefilter("ignore")  # zipfile warns of a duplicate name
        archive.writestr(name, b"x")


ARCHIVES: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut short": (lambda p: p.write_bytes(p.read_bytes()[:-200]), "cut short or damaged"),
    "flipped weight": (lambda p: flip(p, p.read_bytes().index(struct.pack("<f", 5.0))), "does not match its checksum"),
    "flipped pickle": (lambda p: flip(p, p.read_bytes().index(b"_rebuild")), "does not match its checksum"),
    "duplicate": (lambda p: add(p, "x/data.pkl"), "holds 'x/data.pkl' twice"),
    "duplicate in case": (lambda p: add(p, "x/DATA.pkl"), "twice"),
    "second root": (lambda p: add(p, "y/other"), "2 root folders"),
    "deflated": (lambda p: rewrite(p, lambda n, d: d, zipfile.ZIP_DEFLATED), "compressed"),
    "short record": (
        lambda p: rewrite(p, lambda n, d: d[:-4] if n == "x/data/0" else d),
        "declares 24 bytes and holds",
    ),
    "long record": (
        lambda p: rewrite(p, lambda n, d: d + b"0" if n == "x/data/0" else d),
        "declares 24 bytes and holds",
    ),
    "no record": (lambda p: rewrite(p, lambda n, d: None if n == "x/data/1" else d), "the storage '1' is missing"),
    "declared shorter": (lambda p: resize(p, "data/0", -4), "does not match its checksum"),
    "declared longer": (lambda p: resize(p, "data/0", 64), "overlaps what follows it"),
    "encrypted": (lambda p: patch(p, "data/0", 8, b"\x01"), "compressed or encrypted"),
    "method in the directory": (lambda p: patch(p, "data/0", 10, b"\x08"), "compressed or encrypted"),
    "checksum in the directory": (lambda p: patch(p, "data/0", 16, b"\0\0\0\0"), "does not match its checksum"),
    "place in the directory": (lambda p: patch(p, "data/0", 42, b"\x01\0\0\0"), "overlaps what follows it"),
    "comment": (lambda p: comment(p), "bytes after its end"),
    "pickle in a subfolder": (lambda p: rewrite(p, lambda n, d: d, root="x/y"), "did not write"),
    "no pickle": (lambda p: rewrite(p, lambda n, d: None if n.endswith("data.pkl") else d), "did not write"),
    "before": (lambda p: p.write_bytes(b"PK\x03\x04" + p.read_bytes()), "bytes before its first member"),
    "behind": (lambda p: p.write_bytes(p.read_bytes() + b"behind"), "bytes after its end"),
    "local name": (lambda p: flip(p, 30), "is not where the archive's directory says"),
    "local length": (lambda p: flip(p, 29), "overlaps what follows it"),
}


@pytest.mark.parametrize("case", ARCHIVES)
def test_s7_archives_that_torch_save_did_not_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    path = tmp_path / "x.pt"
    torch.save(STATE, path)
    assert same(read_state_dict(path).tensors, STATE)
    damage, said = ARCHIVES[case]
    damage(path)
    monkeypatch.setattr(torch, "load", lambda *a, **k: pytest.fail("torch.load was reached"))
    assert re.search(said, refusal(path))
    assert re.search(said, refused(path))


def test_s7_torch_alone_reads_a_flipped_weight(tmp_path: Path) -> None:
    """Why the checksums are verified here: torch does not."""
    torch.save(STATE, tmp_path / "x.pt")
    ARCHIVES["flipped weight"][0](tmp_path / "x.pt")
    assert not torch.equal(torch.load(tmp_path / "x.pt", weights_only=True)["a"], STATE["a"])


def test_s7_any_flipped_byte_is_refused_or_means_nothing(tmp_path: Path) -> None:
    """Padding and times are the bytes that no checksum covers."""
    torch.save(STATE, tmp_path / "whole.pt")
    whole, read = (tmp_path / "whole.pt").read_bytes(), 0
    for at in range(0, len(whole), 3):
        path = tmp_path / f"{at}.pt"
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x41]) + whole[at + 1 :])
        try:
            tensors = read_state_dict(path).tensors
        except LoadError:
            continue
        assert same(tensors, STATE), at
        read += 1
    assert 0 < read < len(whole) / 6


@pytest.mark.parametrize(("order", "read"), [(b"little", True), (b"big", True), (b"middle", False), (b"", False)])
def test_s7_the_order_of_bytes(tmp_path: Path, order: bytes, read: bool) -> None:
    torch.save(STATE, tmp_path / "x.pt")

    def change(name: str, data: bytes) -> bytes:
        if name == "x/byteorder":
            return order
        sizes = {"x/data/0": 4, "x/data/1": 8}
        if order == b"big" and name in sizes:
            return b"".join(data[i : i + sizes[name]][::-1] for i in range(0, len(data), sizes[name]))
        return data

    rewrite(tmp_path / "x.pt", change)
    if read:
        assert same(read_state_dict(tmp_path / "x.pt").tensors, STATE)
    else:
        assert "torch could not read" in refusal(tmp_path / "x.pt")


def test_s7_archives_without_checksums_are_read(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(STATE, tmp_path / "x.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert same(read_state_dict(tmp_path / "x.pt").tensors, STATE)


def test_s7_old_format_sizes(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    save_legacy(STATE, path)
    for data in (path.read_bytes()[:-1], path.read_bytes() + b"0"):
        path.write_bytes(data)
        assert "follow; download it again" in refusal(path)
