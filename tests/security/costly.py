"""Small files that would cost much, or that are at a limit."""

from __future__ import annotations

import gzip
import io
import struct
import zipfile
from collections.abc import Callable

from tests.checkpoints.files import legacy, write_zip

STORAGE = b"((Vstorage\nctorch\nFloatStorage\nV0\nVcpu\nI4\ntQ"


def view(offset: int, size: str, stride: str) -> bytes:
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + STORAGE[1:] + f"I{offset}\n{size}{stride}I00\n}}tR.".encode()


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
# name -> what makes it
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
