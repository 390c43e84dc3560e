"""A safetensors file is whole and as the format says, or it is refused in one clear line."""

from __future__ import annotations

import json
import struct
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from se_inject.checkpoints.checkpoint import read_state_dict
from se_inject.errors import LoadError
from tests.checkpoints.files import refusal, refused, same

ENTRY = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
PAIR = json.dumps(ENTRY).encode()


def entry(**changes: Any) -> dict[str, Any]:
    return {"a": {**ENTRY, **changes}}


def without(field: str) -> dict[str, Any]:
    return {"a": {key: value for key, value in ENTRY.items() if key != field}}


def whole(header: bytes | dict[str, Any], data: bytes) -> bytes:
    """A file with this header, its length before it."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


# What is wrong -> header (as bytes, or what becomes JSON) and data
HEADERS: dict[str, tuple[bytes | dict[str, Any], bytes]] = {
    "not JSON": (b"{nonsense", bytes(4)),
    "not closed": (b'{"a":' + PAIR, bytes(4)),
    "trailing comma": (b'{"a":' + PAIR + b",}", bytes(4)),
    "trailing text": (b'{"a":' + PAIR + b"} x", bytes(4)),
    "two objects": (b'{"a":' + PAIR + b"}{}", bytes(4)),
    "comment": (b'{/* */"a":' + PAIR + b"}", bytes(4)),
    "single quotes": (b"{'a':" + PAIR + b"}", bytes(4)),
    "not UTF-8": (b'{"\xff":' + PAIR + b"}", bytes(4)),
    "UTF-16": ('{"a":1}'.encode("utf-16-le"), bytes(4)),
    "half a surrogate": (b'{"\\ud800":' + PAIR + b"}", bytes(4)),
    "raw newline in a name": (b'{"a\n":' + PAIR + b"}", bytes(4)),
    "deep objects": (b'{"a":' * 5000 + b"1" + b"}" * 5000, b""),
    "deep lists": (b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}", b""),
    "duplicate key": (b'{"a":' + PAIR + b',"a":' + PAIR + b"}", bytes(4)),
    "duplicate key, escaped": (b'{"a":' + PAIR + b',"\\u0061":' + PAIR + b"}", bytes(4)),
    "duplicate field": (b'{"a":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}}', bytes(4)),
    "duplicate metadata": (b'{"__metadata__":{"a":"1","a":"2"},"a":' + PAIR + b"}", bytes(4)),
    "metadata number": ({"__metadata__": {"a": 1}, "a": ENTRY}, bytes(4)),
    "metadata list": ({"__metadata__": ["a"], "a": ENTRY}, bytes(4)),
    "entry is a number": ({"a": 3}, bytes(4)),
    "entry is a list": ({"a": [1]}, bytes(4)),
    "entry is null": ({"a": None}, bytes(4)),
    "no dtype": (without("dtype"), bytes(4)),
    "no shape": (without("shape"), bytes(4)),
    "no offsets": (without("data_offsets"), bytes(4)),
    "dtype unknown": (entry(dtype="X9"), bytes(4)),
    "dtype in lower case": (entry(dtype="f32"), bytes(4)),
    "dtype is a number": (entry(dtype=32), bytes(4)),
    "shape too large": (entry(shape=[2]), bytes(4)),
    "shape too small": (entry(shape=[0]), bytes(4)),
    "shape negative": (entry(shape=[-1]), bytes(4)),
    "shape of two negatives": (entry(shape=[-1, -1]), bytes(4)),
    "shape is a fraction": (entry(shape=[1.0]), bytes(4)),
    "shape is a number": (entry(shape=1), bytes(4)),
    "shape of text": (entry(shape=["1"]), bytes(4)),
    "shape nested": (entry(shape=[[1]]), bytes(4)),
    "shape overflows": (entry(shape=[2**62, 2**62]), bytes(4)),
    "shape overflows to the size": (entry(shape=[2**32, 2**32, 1]), b""),
    "shape above 64 bits": (entry(shape=[2**64]), bytes(4)),
    "offsets reversed": (entry(data_offsets=[4, 0]), bytes(4)),
    "offsets negative": (entry(data_offsets=[-4, 0]), bytes(4)),
    "offsets past the end": (entry(data_offsets=[4, 8]), bytes(4)),
    "offsets overflow": (entry(data_offsets=[0, 2**64 + 4]), bytes(4)),
    "offsets near the limit": (entry(data_offsets=[2**64 - 4, 2**64 - 1]), bytes(4)),
    "three offsets": (entry(data_offsets=[0, 4, 8]), bytes(4)),
    "one offset": (entry(data_offsets=[4]), bytes(4)),
    "offsets of text": (entry(data_offsets=["0", "4"]), bytes(4)),
    "offset is a fraction": (entry(data_offsets=[0, 4.5]), bytes(4)),
    "overlap": ({"a": ENTRY, "b": ENTRY}, bytes(4)),
    "part overlap": ({"a": ENTRY, "b": {**ENTRY, "data_offsets": [2, 6]}}, bytes(6)),
    "hole": ({"a": ENTRY, "b": {**ENTRY, "data_offsets": [8, 12]}}, bytes(12)),
    "hole before": (entry(data_offsets=[4, 8]), bytes(8)),
    "data missing": ({"a": ENTRY}, b""),
    "data short": ({"a": ENTRY}, bytes(3)),
    "data trailing": ({"a": ENTRY}, bytes(5)),
    "nothing but trailing data": ({}, bytes(4)),
    "half a byte": (entry(dtype="F4", shape=[1]), bytes(4)),
}
# Files that are not a length and a header of that length
FILES: dict[str, bytes] = {
    "seven bytes": bytes(7),
    "length alone": struct.pack("<Q", 2),
    "length 0": struct.pack("<Q", 0) + b"{}",
    "length 1": struct.pack("<Q", 1) + b"{}",
    "longer than the file": struct.pack("<Q", 50) + b"{}",
    "over 100 MB": struct.pack("<Q", (100 << 20) + 1) + b"{}",
    "2**63": struct.pack("<Q", 2**63) + b"{}",
    "2**64 - 1": struct.pack("<Q", 2**64 - 1) + b"{}",
    "big endian": struct.pack(">Q", 2) + b"{}",
    "a list": whole(b"[1]", bytes(4)),
    "a number": whole(b"1", bytes(4)),
    "blanks before": whole(b' {"a":' + PAIR + b"}", bytes(4)),
    "byte order mark": whole(b'\xef\xbb\xbf{"a":' + PAIR + b"}", bytes(4)),
}


@pytest.mark.parametrize("case", HEADERS)
def test_s6_headers(tmp_path: Path, case: str) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(whole(*HEADERS[case]))
    assert "a safetensors file that is cut short or damaged: " in refusal(path)
    assert "cut short or damaged" in refused(path)


@pytest.mark.parametrize("case", FILES)
def test_s6_files_without_a_header(tmp_path: Path, case: str) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(FILES[case])
    assert refusal(path).startswith((": a safetensors file that is cut short", ": this is "))


def test_s6_a_header_over_100_mb_is_not_read(tmp_path: Path) -> None:
    """A file of that size, sparse on disk."""
    with (tmp_path / "x").open("wb") as file:
        file.write(struct.pack("<Q", 101 << 20) + b"{")
        file.truncate(102 << 20)
    assert "its header is 105,906,176 bytes" in refusal(tmp_path / "x")


def test_s6_no_tensors(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(whole(b"{}", b""))
    assert "no weights found" in refusal(tmp_path / "x")


@pytest.mark.parametrize("name", ["a", "../../x", "/etc/x", "a\0b", "\x1b[31m", "\u202e", "", "é" * 1000, "<script>"])
def test_s6_a_name_is_only_a_name(tmp_path: Path, name: str) -> None:
    """The negative twin of the headers: whatever it is called, the tensor is read, and nothing else is touched."""
    (tmp_path / "x").write_bytes(whole({name: ENTRY}, struct.pack("<f", 2.0)))
    assert same(read_state_dict(tmp_path / "x").tensors, {name: torch.tensor([2.0])})
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize(
    ("header", "data", "value"),
    [
        ({"a": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}}, bytes(4), torch.tensor(0.0)),
        ({"a": {"dtype": "F32", "shape": [0, 7], "data_offsets": [0, 0]}}, b"", torch.zeros(0, 7)),
        ({"a": {"dtype": "I8", "shape": [2], "data_offsets": [0, 2]}}, b"\1\2", torch.tensor([1, 2], dtype=torch.int8)),
        ({"__metadata__": {"format": "pt"}, "a": ENTRY}, bytes(4), torch.tensor([0.0])),
        (b'{"a":' + PAIR + b"}" + b" " * 20, bytes(4), torch.tensor([0.0])),
    ],
)
def test_s6_headers_that_are_right(tmp_path: Path, header: Any, data: bytes, value: torch.Tensor) -> None:
    (tmp_path / "x").write_bytes(whole(header, data))
    assert same(read_state_dict(tmp_path / "x").tensors, {"a": value})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**66), 2**66) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
SIZES = st.one_of(st.integers(0, 16), st.sampled_from([-1, 2**31, 2**32, 2**62, 2**63, 2**64 - 1, 2**64]))
ENTRIES = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "F64", "BF16", "I8", "BOOL", "U64", "F8_E4M3", "C64", "F4", "X"]) | JSON,
        "shape": st.lists(SIZES, max_size=4) | JSON,
        "data_offsets": st.lists(SIZES, min_size=2, max_size=2) | JSON,
        "more": JSON,
    },
)
FUZZED = st.dictionaries(st.text(max_size=4) | st.just("__metadata__"), ENTRIES | JSON, max_size=3)


@settings(max_examples=60)
@given(header=FUZZED, data=st.binary(max_size=32), blanks=st.integers(0, 9), off=st.integers(-9, 9))
@example(header={"a": ENTRY}, data=bytes(4), blanks=0, off=0)
def test_s6_any_header_is_read_or_refused(header: Any, data: bytes, blanks: int, off: int) -> None:
    text = json.dumps(header).encode() + b" " * blanks
    read_or_refuse(struct.pack("<Q", max(0, len(text) + off)) + text + data)


@settings(max_examples=60)
@given(at=st.integers(0, 200), new=st.binary(max_size=3), old=st.integers(0, 3))
def test_s6_any_change_is_read_or_refused(at: int, new: bytes, old: int) -> None:
    data = whole({"a": ENTRY, "b": {"dtype": "I64", "shape": [1, 2], "data_offsets": [4, 20]}}, bytes(20))
    read_or_refuse(data[:at] + new + data[at + old :])


def read_or_refuse(data: bytes) -> None:
    """Either the tensors cover the data to the byte, or there is one clear line."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x"
        path.write_bytes(data)
        try:
            file = read_state_dict(path)
        except LoadError as error:
            assert "\n" not in str(error)
        else:
            length = int.from_bytes(data[:8], "little")
            assert file.kind == "safetensors"
            assert sum(t.numel() * t.element_size() for t in file.tensors.values()) == len(data) - 8 - length
