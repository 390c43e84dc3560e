"""What is fuzzed: a reader, the name of its file, and a strategy that makes nearly right files."""

from __future__ import annotations

import argparse
import functools
import io
import json
import pickle
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from hypothesis import strategies as st
from safetensors.torch import save

import se_inject
from se_inject.checkpoints.checkpoint import blocked_globals, read_state_dict
from se_inject.output.plan_file import read_plan
from se_inject.rules.presets import PRESETS
from se_inject.rules.schema import FIELDS, PLACEMENTS, read
from se_inject.types import INITS
from tests.checkpoints.files import STATE, legacy, save_shards, write_zip


@dataclass(frozen=True)
class Target:
    """``read`` takes a path, and raises a refusal or returns."""

    read: Callable[[Path], object]
    suffix: str
    inputs: st.SearchStrategy[bytes]


@st.composite
def changed(draw: st.DrawFn, corpus: Callable[[], list[bytes]]) -> bytes:
    """A file of the corpus with up to six places cut, replaced, doubled or moved."""
    data = draw(st.sampled_from(corpus()))
    for _ in range(draw(st.integers(0, 6))):
        at, length = draw(st.integers(0, len(data))), draw(st.integers(0, 12))
        match draw(st.sampled_from(["replace", "flip", "double", "cut"])):
            case "replace":
                new = draw(st.binary(max_size=8) | st.sampled_from([b"\xff" * 8, bytes(8), b"{", b"..", b"/", b'"']))
                data = data[:at] + new + data[at + length :]
            case "flip" if at < len(data):
                data = data[:at] + bytes([data[at] ^ (1 << draw(st.integers(0, 7)))]) + data[at + 1 :]
            case "double":
                data = data[:at] + data[at : at + length] * 2 + data[at + length :]
            case "cut":
                data = data[: max(at, len(data) // 2)]
    return data


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**66), 2**66) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


# Checkpoints: files of every kind, and pickles of opcodes that the scanner knows


@functools.cache
def checkpoints() -> list[bytes]:
    value = {"state_dict": STATE, "args": argparse.Namespace(lr=0.1), "epoch": 3, "names": ["a", None, 2.5, {1}]}
    files = []
    for content in (STATE, value, torch.nn.BatchNorm2d(2).state_dict()):
        for new in (True, False):
            held = io.BytesIO()
            torch.save(content, held, _use_new_zipfile_serialization=new)
            files.append(held.getvalue())
    starts = [b"version https://git-lfs", b"<html>", b"\x1f\x8b\x08", b"\x08\x08\x12\x07pytorch", b"GGUF", b""]
    return [*files, save(STATE), pickle.dumps({"a": 1}), *starts]


OPCODES = st.sampled_from(
    [b"N", b"\x88", b"\x89", b"]", b"}", b")", b"(", b"t", b"\x85", b"\x86", b"\x87", b"a", b"e", b"s", b"u", b"R",
     b"b", b"Q", b"\x81", b"\x8f", b"K\x01", b"M\x01\x01", b"J\x01\0\0\0", b"q\0", b"h\0", b"q\1", b"h\1", b"0", b"2",
     b"X\1\0\0\0a", b"X\7\0\0\0storage", b"X\3\0\0\0cpu", b"ctorch\nFloatStorage\n", b"\x8a\x01\x02", b"G" + bytes(8),
     b"ctorch._utils\n_rebuild_tensor_v2\n", b"ccollections\nOrderedDict\n", b"cargparse\nNamespace\n",
     b"cbuiltins\nbytearray\n", b"c_codecs\nencode\n", b"cbuiltins\nset\n", b"ctorch\nfloat32\n", b"cos\nsystem\n",
     b"ctorch._tensor\n_rebuild_from_type_v2\n", b"ctorch._utils\n_rebuild_parameter\n", b"ctorch\nSize\n"]
)  # fmt: skip


@st.composite
def pickles(draw: st.DrawFn) -> bytes:
    body = b"\x80\x02" + b"".join(draw(st.lists(OPCODES, max_size=30))) + b"."
    if draw(st.booleans()):
        return legacy(body)
    held = io.BytesIO()
    write_zip(body, held)
    return held.getvalue()


def read_checkpoint(path: Path) -> None:
    blocked_globals(path)
    read_state_dict(path)


# Safetensors headers


@st.composite
def headers(draw: st.DrawFn) -> bytes:
    sizes = st.integers(0, 16) | st.sampled_from([-1, 2**31, 2**32, 2**62, 2**63, 2**64 - 1, 2**64])
    entry = st.fixed_dictionaries(
        {},
        optional={
            "dtype": st.sampled_from(["F32", "F64", "BF16", "I8", "BOOL", "F8_E4M3", "C64", "F4", "X"]) | JSON,
            "shape": st.lists(sizes, max_size=4) | JSON,
            "data_offsets": st.lists(sizes, min_size=2, max_size=2) | JSON,
        },
    )
    header = draw(st.dictionaries(st.text(max_size=4) | st.just("__metadata__"), entry | JSON, max_size=4))
    text = json.dumps(header).encode() + b" " * draw(st.integers(0, 8))
    length = max(0, len(text) + draw(st.sampled_from([0, 0, 0, 0, -1, 1, 2**40])))
    return length.to_bytes(8, "little") + text + draw(st.binary(max_size=32))


# Indexes of shards; the shards that they may name lie beside them


@functools.cache
def shards() -> tempfile.TemporaryDirectory[str]:
    folder = tempfile.TemporaryDirectory()
    save_shards({**STATE, "c": torch.ones(2)}, Path(folder.name))
    return folder


def read_index(path: Path) -> None:
    beside = Path(shards().name) / path.name
    beside.write_bytes(path.read_bytes())
    try:
        read_state_dict(beside)
    finally:
        beside.unlink()


def indexes() -> list[bytes]:
    return [(Path(shards().name) / "model.safetensors.index.json").read_bytes()]


SHARDS = st.sampled_from(
    ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "../x.safetensors", "/x", "C:\\x", "x.bin"]
)
INDEX = st.fixed_dictionaries(
    {"weight_map": st.dictionaries(st.sampled_from("abc") | st.text(max_size=3), SHARDS | JSON, max_size=4) | JSON},
    optional={"metadata": JSON},
)


# Rules and plans


def yaml_of(value: Any) -> bytes:
    return yaml.safe_dump(value, allow_unicode=True).encode()


VALUES = st.sampled_from([*PLACEMENTS, *INITS, *PRESETS, "auto", "se", "re:(", "*", "layer1.*", "16", 0.5, 16]) | JSON
BLOCK = st.dictionaries(st.sampled_from(["name", "rd_ratio", "gate", "bias", "act"]) | st.text(max_size=3), VALUES)
RULES = st.dictionaries(
    st.sampled_from(list(FIELDS)) | st.text(max_size=4), VALUES | st.lists(VALUES) | BLOCK, max_size=5
)
WORDS = [
    "placement", "sites", ": ", "- ", "\n", "\n  ", "[", "]", "{", "}", "&a ", "*a", "!!python/name:os", "|", "<<", "x",
]  # fmt: skip
YAML = st.lists(st.sampled_from(WORDS) | st.text(max_size=2), max_size=20).map("".join)


def yaml_files() -> list[bytes]:
    return [
        b"placement: standard\nratio: 16\nsites:\n  - {include: 'a.*', block: {name: se, gate: sigmoid}}\n",
        b"inner\n",
    ]


@functools.cache
def plans() -> list[bytes]:
    from se_inject.types import dump
    from tests.tiny import SIZE, Net

    return [dump(se_inject.plan(Net(), SIZE, "standard")).encode()]


@st.composite
def edited_plans(draw: st.DrawFn) -> bytes:
    """A plan with one value somewhere in it exchanged."""
    plan = json.loads(plans()[0])
    place, value = plan, draw(JSON)
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = draw(st.sampled_from(keys))
        if isinstance(place[key], dict | list) and place[key] and draw(st.integers(0, 3)):
            place = place[key]
            continue
        place[key] = value
        return json.dumps(plan).encode()


TARGETS = {
    "checkpoint": Target(read_checkpoint, ".pt", changed(checkpoints) | pickles()),
    "safetensors": Target(read_state_dict, ".safetensors", headers() | changed(lambda: [save(STATE)])),
    "index": Target(read_index, ".json", changed(indexes) | INDEX.map(lambda value: json.dumps(value).encode())),
    "rules": Target(
        read,
        ".yaml",
        changed(yaml_files) | RULES.map(yaml_of) | YAML.map(lambda text: text.encode("utf-8", "surrogatepass")),
    ),
    "plan": Target(read_plan, ".json", changed(plans) | edited_plans()),
}
