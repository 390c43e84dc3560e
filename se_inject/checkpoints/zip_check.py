"""Checks of a torch.save archive before torch opens it.

torch reads the archive with its own zip reader: it takes the first of two members with one name, verifies no
checksum, and with ``mmap`` reads whatever lies at a member's offset. So the archive must be as torch.save writes it:
members stored, not compressed; each name once; one behind the other; every checksum right.
"""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections import Counter
from dataclasses import dataclass
from typing import IO

from se_inject.errors import LoadError

PICKLE_LIMIT = 16 << 20  # bytes of a pickle; that of resnet152 with EMA and Adam has 360,000
CHUNK = 1 << 20
END = struct.Struct("<4s18x")  # end of the central directory, without a comment
HEADER = struct.Struct("<4s22xHH")  # local file header: signature, length of the name, length of the extra field


@dataclass(frozen=True)
class Archive:
    """What a checked archive holds: its pickle, and the size in bytes of each storage record by key."""

    pickle: bytes
    records: dict[str, int]


def check_zip(path: str | os.PathLike[str]) -> Archive:
    """The pickle and the record sizes of the torch.save archive at ``path``, every byte checked.

    Raises ``LoadError`` when the archive is not as torch.save writes it.
    """
    try:
        with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
            file.seek(-END.size, os.SEEK_END)
            if file.read(4) != b"PK\x05\x06":
                raise LoadError(f"{path}: the archive has bytes after its end.")
            members = sorted(archive.infolist(), key=lambda member: member.header_offset)
            _check_members(path, members)
            # torch.serialization.set_crc32_options(False) leaves every checksum at zero
            summed = any(member.CRC for member in members)
            limits = [member.header_offset for member in members[1:]] + [archive.start_dir]
            pickle = b""
            for member, limit in zip(members, limits, strict=True):
                keep = member.filename.partition("/")[2] == "data.pkl"
                data = _read(path, file, member, limit, keep=keep, summed=summed)
                pickle = data if keep else pickle
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError, struct.error) as error:
        raise LoadError(f"{path}: a zip archive that is cut short or damaged; download it again.") from error
    root = members[0].filename.partition("/")[0]
    below = f"{root}/data/"
    records = {m.filename.removeprefix(below): m.file_size for m in members if m.filename.startswith(below)}
    return Archive(pickle, records)


def _check_members(path: str | os.PathLike[str], members: list[zipfile.ZipInfo]) -> None:
    names = Counter(member.filename.lower() for member in members)  # torch's reader compares without case
    if twice := [member.filename for member in members if names[member.filename.lower()] > 1]:
        raise LoadError(f"{path}: the archive holds {twice[0]!r} twice.")
    roots = {member.filename.partition("/")[0] for member in members}
    if len(roots) != 1:
        raise LoadError(f"{path}: the archive has {len(roots)} root folders, where torch.save writes one.")
    if members[0].header_offset != 0:
        raise LoadError(f"{path}: the archive has bytes before its first member.")
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
            raise LoadError(f"{path}: {member.filename!r} is compressed or encrypted, which torch.save never does.")
        if member.compress_size != member.file_size:
            raise LoadError(f"{path}: {member.filename!r} declares two sizes.")
        if member.filename.endswith("/data.pkl") and member.file_size > PICKLE_LIMIT:
            raise LoadError(f"{path}: its pickle has {member.file_size:,} bytes, more than {PICKLE_LIMIT:,}.")


def _read(
    path: str | os.PathLike[str], file: IO[bytes], member: zipfile.ZipInfo, limit: int, *, keep: bool, summed: bool
) -> bytes:
    """Read one member, which must end before ``limit``, to check it; its bytes are returned only with ``keep``."""
    file.seek(member.header_offset)
    signature, name, extra = HEADER.unpack(file.read(HEADER.size))
    if signature != b"PK\x03\x04" or file.read(name) != member.filename.encode():
        raise LoadError(f"{path}: {member.filename!r} is not where the archive's directory says.")
    if file.seek(extra, os.SEEK_CUR) + member.file_size > limit:
        raise LoadError(f"{path}: {member.filename!r} overlaps what follows it.")
    kept, total, left = [], 0, member.file_size
    while left and (keep or summed):
        chunk = file.read(min(left, CHUNK))
        if not chunk:
            raise LoadError(f"{path}: {member.filename!r} is cut short; download it again.")
        total, left = zlib.crc32(chunk, total), left - len(chunk)
        if keep:
            kept.append(chunk)
    if summed and total != member.CRC:
        raise LoadError(f"{path}: {member.filename!r} does not match its checksum; download the file again.")
    return b"".join(kept)
