"""S6: safetensors headers."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch

from se_inject.files.checkpoint import read_state_dict
from tests.checks.files import refusal, same

# Safetensors headers: (header or raw bytes, data)
ENTRY = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
HEADERS: dict[str, tuple[Any, bytes]] = {
    "list": ([1], bytes(4)),
    "not json": (b"{nonsense", bytes(4)),
    "not utf-8": (b'{"\xff": 1}', bytes(4)),
    "deep": (b'{"a":' * 5000 + b"1" + b"}" * 5000, b""),
    "duplicate key": (b'{"a":%b,"a":%b}' % ((json.dumps(ENTRY).encode(),) * 2), bytes(4)),
    "short data": ({"a": ENTRY}, bytes(3)),
    "trailing data": ({"a": ENTRY}, bytes(5)),
    "overlap": ({"a": ENTRY, "b": ENTRY}, bytes(4)),
    "hole": ({"a": ENTRY, "b": {**ENTRY, "data_offsets": [8, 12]}}, bytes(12)),
    "shape": ({"a": {**ENTRY, "shape": [2]}}, bytes(4)),
    "negative": ({"a": {**ENTRY, "shape": [-1]}}, bytes(4)),
    "overflow": ({"a": {**ENTRY, "shape": [2**62, 2**62]}}, bytes(4)),
    "float shape": ({"a": {**ENTRY, "shape": [1.0]}}, bytes(4)),
    "reversed": ({"a": {**ENTRY, "data_offsets": [4, 0]}}, bytes(4)),
    "dtype": ({"a": {**ENTRY, "dtype": "X9"}}, bytes(4)),
    "field missing": ({"a": {"dtype": "F32", "shape": [1]}}, bytes(4)),
    "entry": ({"a": 3}, bytes(4)),
    "no tensors": ({}, b""),
}


@pytest.mark.parametrize("case", HEADERS)
def test_s6_safetensors_headers(tmp_path: Path, case: str) -> None:
    path = tmp_path / "x.safetensors"
    header, data = HEADERS[case]
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    if not header.startswith(b"{"):
        header = b"{" + header
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    text = refusal(path)
    assert "cut short or damaged" in text or (case == "no tensors" and "no weights found" in text)


def test_s6_safetensors_header_lengths(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    for length in (2**64 - 1, 101 << 20, 50):
        path.write_bytes(struct.pack("<Q", length) + b"{}")
        assert f"its header is {length:,} bytes" in refusal(path)


def test_s6_safetensors_entry_is_read(tmp_path: Path) -> None:
    """The negative twin of the headers above, odd key included: a key is only a name."""
    header = json.dumps({"../../x\0": ENTRY}).encode()
    (tmp_path / "x").write_bytes(struct.pack("<Q", len(header)) + header + struct.pack("<f", 2.0))
    assert same(read_state_dict(tmp_path / "x").tensors, {"../../x\0": torch.tensor([2.0])})
