"""The bytes of a file decide what it is; what cannot be read is named, with what to do instead."""

from __future__ import annotations

import os
import struct
import warnings
from pathlib import Path

import pytest
import torch

from se_inject.checkpoints import checkpoint
from se_inject.checkpoints import kind as filekind
from se_inject.checkpoints.checkpoint import read_state_dict
from se_inject.errors import LoadError
from tests.checkpoints.files import MAKERS, SAVERS, STATE, make_distributed, refusal, refused, same, save_shards

READABLE = {*SAVERS, "shards"}


@pytest.mark.parametrize("kind", [kind for kind in filekind.KINDS if kind not in READABLE])
def test_a3_other_kinds_are_named_with_their_remedy(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "weights.pt"
    MAKERS[kind](path)
    said = f": this is {filekind.KINDS[kind].title}; {filekind.KINDS[kind].remedy}."
    for allow_pickle in (False, True):
        assert refusal(path, allow_pickle=allow_pickle) == said
    assert refused(path) == f"Error: {path}{said}"
    assert len(filekind.KINDS[kind].remedy) > 10


def test_a3_every_kind_has_a_reader_or_a_remedy() -> None:
    assert set(checkpoint.READERS) == READABLE == {name for name, kind in filekind.KINDS.items() if not kind.remedy}
    marks = (*filekind.MARKS, *filekind.ZIP_MARKS, *((kind, mark) for mark, kind in filekind.FOLDER_MARKS))
    assert {name for name, _ in marks} <= set(filekind.KINDS)


def test_a3_the_remedy_of_a_distributed_checkpoint_works(tmp_path: Path) -> None:
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    make_distributed(tmp_path / "folder")
    assert "dcp_to_torch_save(FOLDER, FILE)" in refusal(tmp_path / "folder")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp_to_torch_save(tmp_path / "folder", tmp_path / "weights.pt")
    assert same(read_state_dict(tmp_path / "weights.pt").tensors, STATE)


def test_a3_a_folder_names_what_it_holds(tmp_path: Path) -> None:
    for name in ("config.json", "net.pth", "best.ckpt"):
        (tmp_path / name).touch()
    assert refusal(tmp_path) == (
        ": this is a folder without weights; give the weights file, or a folder with model.safetensors or "
        "model.safetensors.index.json or pytorch_model.bin. It holds 'best.ckpt'."
    )


def test_a3_no_such_file_names_the_nearest(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "resnet18.pth")
    assert refusal(tmp_path / "resnet81.pth") == ": no such file. Did you mean 'resnet18.pth'?"
    assert refusal(tmp_path / "none" / "x.pth") == ": no such file."


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes")
def test_a3_a_pipe_is_refused_before_it_is_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert refusal(tmp_path / "pipe") == ": neither a file nor a folder."
    os.mkfifo(tmp_path / "model.safetensors")
    assert "a folder without weights" in refusal(tmp_path)


@pytest.mark.parametrize("kind", SAVERS)
@pytest.mark.parametrize("name", ["weights", "weights.pt", "weights.onnx", "weights.json", "weights.html"])
def test_a4_the_bytes_decide(tmp_path: Path, kind: str, name: str) -> None:
    SAVERS[kind](STATE, tmp_path / name)
    file = read_state_dict(tmp_path / name)
    assert file.kind == kind and same(file.tensors, STATE) and file.file == tmp_path / name
    assert (file.unwrapped, file.ignored, file.ema, file.globals, file.shards) == ((), (), False, (), ())


def test_a4_an_index_of_any_name(tmp_path: Path) -> None:
    index = save_shards(STATE, tmp_path)
    file = read_state_dict(index.rename(tmp_path / "weights.pt"))
    assert file.kind == "shards" and same(file.tensors, STATE)
    assert "named .safetensors, but this is an index" in refusal(file.file.rename(tmp_path / "x.safetensors"))


@pytest.mark.parametrize("kind", ["torch-zip", "torch-legacy"])
@pytest.mark.parametrize("place", ["file", "folder", "shard"])
def test_a4_a_pickle_is_never_reached_from_a_safetensors_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, place: str
) -> None:
    monkeypatch.setattr(torch, "load", lambda *a, **k: pytest.fail("torch.load was reached"))
    path = tmp_path / "model.safetensors"
    SAVERS[kind](STATE, path)
    if place == "shard":
        save_shards(STATE, tmp_path / "folder")
        path = path.rename(tmp_path / "folder" / "model-00002-of-00002.safetensors")
    given = {"file": path, "folder": tmp_path, "shard": path.parent}[place]
    for allow_pickle in (False, True):
        with pytest.raises(LoadError) as caught:
            read_state_dict(given, allow_pickle=allow_pickle)
        assert str(caught.value).startswith(f"{path}: named .safetensors, but this is a torch.save file")
    assert "named .safetensors" in refused(given, "--allow-pickle")


@pytest.mark.parametrize("length", [0x3C, 0x5B, 0x7B, 0x0A7B])
def test_a4_a_length_that_reads_as_text(tmp_path: Path, length: int) -> None:
    """The length before a safetensors header may begin with ``<``, ``[`` or ``{``."""
    header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'.ljust(length)
    (tmp_path / "x").write_bytes(struct.pack("<Q", length) + header + struct.pack("<f", 2.0))
    assert same(read_state_dict(tmp_path / "x").tensors, {"a": torch.tensor([2.0])})
