"""An index of shards names files beside it, each tensor once, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from se_inject.checkpoints import kind as filekind
from se_inject.checkpoints.checkpoint import read_state_dict
from se_inject.errors import LoadError
from tests.checkpoints.files import STATE, refusal, refused, same, save_shards

THREE = {**STATE, "c": torch.ones(2)}
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def move(index: Path, name: str) -> None:
    """The index names the first shard ``name``."""
    data = json.loads(index.read_text())
    data["weight_map"] = {key: name if shard == FIRST else shard for key, shard in data["weight_map"].items()}
    index.write_text(json.dumps(data))


def place(index: Path, **placed: str) -> None:
    data = json.loads(index.read_text())
    data["weight_map"] |= placed
    index.write_text(json.dumps(data))


def lose(index: Path, key: str) -> None:
    data = json.loads(index.read_text())
    del data["weight_map"][key]
    index.write_text(json.dumps(data))


NAMES = [
    "../x", "/x", "C:\\x", "C:x", "\\\\srv\\x", "a/b", "a\\b", "..", ".", ".hidden", "", " x", "x\0", "x\n", "~x", "é",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("suffix", ["", ".safetensors"])
def test_s8_shards_lie_beside_their_index(tmp_path: Path, name: str, suffix: str) -> None:
    index = save_shards(STATE, tmp_path / "model")
    save_file({"a": STATE["a"]}, tmp_path / "x.safetensors")  # what ../x.safetensors would be
    move(index, name + suffix)
    assert f"{name + suffix!a} is not the name of a .safetensors file beside the index" in refusal(index)
    assert "beside the index" in refused(index.parent)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "bin": (lambda i: move(i, "pytorch_model-00001-of-00002.bin"), "its shards are pickles"),
    "missing": (lambda i: (i.parent / FIRST).unlink(), f"{FIRST}: no such file"),
    "folder": (lambda i: ((i.parent / FIRST).unlink(), (i.parent / FIRST).mkdir()), "this is a folder without weights"),
    "empty": (lambda i: (i.parent / FIRST).write_bytes(b""), "this is an empty file"),
    "index in index": (lambda i: (i.parent / FIRST).write_bytes(i.read_bytes()), "but this is an index"),
    "cut short": (
        lambda i: (i.parent / FIRST).write_bytes((i.parent / FIRST).read_bytes()[:-1]),
        "cut short or damaged",
    ),
    "in two shards": (
        lambda i: save_file({**THREE, "b": torch.ones(1)}, i.parent / FIRST),
        f"the shard {FIRST} holds 'b', which its index places in '{SECOND}'",
    ),
    "misplaced": (
        lambda i: place(i, a=SECOND),
        f"the shard {FIRST} holds 'a', which its index places in '{SECOND}'",
    ),
    "in no shard": (lambda i: place(i, d=FIRST), f"the index places 'd' in {FIRST}, which does not hold it"),
    "not in the index": (lambda i: lose(i, "a"), f"the shard {FIRST} holds 'a', which its index places in none"),
    "odd key": (lambda i: place(i, **{"\x1b[31m": FIRST}), "the index places '\\x1b[31m' in"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_s8_every_tensor_lies_where_the_index_says(tmp_path: Path, case: str) -> None:
    index = save_shards(THREE, tmp_path)
    assert same(read_state_dict(index).tensors, THREE)
    damage, said = DAMAGE[case]
    damage(index)
    with pytest.raises(LoadError) as caught:
        read_state_dict(index)
    assert said in str(caught.value) and "\n" not in str(caught.value)


INDEXES: dict[str, tuple[bytes, str]] = {
    "list": (b'["weight_map"]', "weight_map is no mapping, or empty"),
    "no map": (b'{"x": "weight_map", "weight_map": 3}', "weight_map is no mapping, or empty"),
    "empty map": (b'{"weight_map": {}}', "weight_map is no mapping, or empty"),
    "map of lists": (b'{"weight_map": {"a": ["x.safetensors"]}}', "is not the name of a .safetensors file"),
    "map of nothing": (b'{"weight_map": {"a": null}}', "'None' is not the name of a .safetensors file"),
    "twice": (b'{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}', "a key stands twice"),
    "two maps": (b'{"weight_map": {"a": "x.safetensors"}, "weight_map": {}}', "a key stands twice"),
    "cut short": (b'{"weight_map": {"a": "x.safet', "damaged"),
    "not utf-8": (b'{"weight_map": {"\xff": "x.safetensors"}}', "damaged"),
    "deep": (b'{"weight_map":' * 100_000, "damaged"),
    "deep lists": (b'{"weight_map":' + b"[" * 100_000, "damaged"),
    "long number": (b'{"weight_map": ' + b"9" * 100_000 + b"}", "damaged"),
    "nan": (b'{"weight_map": NaN}', "weight_map is no mapping, or empty"),
    "11 MB": (b'{"weight_map": {' + b" " * (11 << 20), "more than 8,388,608 bytes"),
}


@pytest.mark.parametrize("case", INDEXES)
def test_s8_indexes_that_are_none(tmp_path: Path, case: str) -> None:
    data, said = INDEXES[case]
    (tmp_path / "model.safetensors.index.json").write_bytes(data)
    assert said in refusal(tmp_path / "model.safetensors.index.json")


def test_s8_a_byte_order_mark_is_read_over(tmp_path: Path) -> None:
    index = save_shards(STATE, tmp_path)
    index.write_bytes(b"\xef\xbb\xbf" + index.read_bytes())
    assert same(read_state_dict(index).tensors, STATE)


def hugging_face_cache(value: dict[str, torch.Tensor], root: Path, save: Callable[[Any, Path], object]) -> Path:
    """A model in the cache of huggingface_hub: a snapshot of links into a folder of blobs; returns the snapshot."""
    blobs, snapshot = root / "blobs", root / "snapshots" / "5c3c9a9"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    save(value, snapshot)
    for number, file in enumerate(sorted(snapshot.iterdir())):
        file.rename(blobs / f"{number:064x}")
        file.symlink_to(Path("../../blobs") / f"{number:064x}")
    return snapshot


@pytest.mark.parametrize("given", ["folder", "index"])
def test_s8_a_hugging_face_cache_of_links_is_read(tmp_path: Path, given: str) -> None:
    snapshot = hugging_face_cache(STATE, tmp_path / "models--org--net", save_shards)
    path = snapshot / "model.safetensors.index.json" if given == "index" else snapshot
    file = read_state_dict(path)
    assert same(file.tensors, STATE)
    assert file.shards == (snapshot / SECOND, snapshot / FIRST) or file.shards == (snapshot / FIRST, snapshot / SECOND)
    assert all(shard.is_symlink() for shard in file.shards)
    assert "give the folder of a revision in snapshots/" in refusal(tmp_path / "models--org--net")


def test_s8_one_file_in_a_hugging_face_cache(tmp_path: Path) -> None:
    snapshot = hugging_face_cache(STATE, tmp_path, lambda value, at: save_file(value, at / "model.safetensors"))
    (snapshot / "config.json").write_text("{}")
    file = read_state_dict(snapshot)
    assert same(file.tensors, STATE) and file.file == snapshot / "model.safetensors"
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").symlink_to("../../blobs/none")
    assert "a folder without weights" in refusal(snapshot)


def test_s8_the_order_of_names_in_a_folder(tmp_path: Path) -> None:
    """One safetensors file before shards, and these before a pickle, as Hugging Face libraries look."""
    torch.save({"a": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    assert read_state_dict(tmp_path).kind == "torch-zip"
    save_shards(STATE, tmp_path)
    assert read_state_dict(tmp_path).kind == "shards"
    save_file(STATE, tmp_path / "model.safetensors")
    assert read_state_dict(tmp_path).kind == "safetensors"
    assert [(tmp_path / name).is_file() for name in filekind.WEIGHTS] == [True] * 3
