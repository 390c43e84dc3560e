"""S7: archives that are not as torch.save writes them; torch's own reader verifies no checksum."""

from __future__ import annotations

import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from se_inject.files.checkpoint import read_state_dict
from tests.checks.files import STATE, refusal, same, save_legacy


def rewrite(path: Path, change: Callable[[str, bytes], bytes | None], compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members:
            if (new := change(name, data)) is not None:
                archive.writestr(name, new)


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
    "before": (lambda p: p.write_bytes(b"PK\x03\x04" + p.read_bytes()), "bytes before its first member"),
    "behind": (lambda p: p.write_bytes(p.read_bytes() + b"behind"), "bytes after its end"),
    "local name": (lambda p: flip(p, 30), "is not where the archive's directory says"),
    "local length": (lambda p: flip(p, 29), "overlaps what follows it"),
}


@pytest.mark.parametrize("case", ARCHIVES)
def test_s7_archives_that_torch_save_did_not_write(tmp_path: Path, case: str) -> None:
    path = tmp_path / "x.pt"
    torch.save(STATE, path)
    assert same(read_state_dict(path).tensors, STATE)
    damage, said = ARCHIVES[case]
    damage(path)
    assert said in refusal(path)


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
