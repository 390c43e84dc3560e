"""What the checks of inputs share: savers, makers of every kind of file, payloads and the containers they hide in.

Bad files are generated, never kept; a payload only ever makes a canary.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import pickle
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from se_inject.checkpoints.checkpoint import read_state_dict
from se_inject.errors import LoadError
from tests.helpers import run

STATE = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([7])}


def same(tensors: dict[str, Any], expected: dict[str, torch.Tensor]) -> bool:
    return tensors.keys() == expected.keys() and all(torch.equal(tensors[key], expected[key]) for key in expected)


def refusal(path: Path, **kwargs: Any) -> str:
    """The one line with which ``path`` is refused."""
    with pytest.raises(LoadError) as caught:
        read_state_dict(path, **kwargs)
    assert str(caught.value).startswith(str(path))
    text = str(caught.value).removeprefix(str(path))
    assert "\n" not in text and "weights_only" not in text
    return text


def refused(path: Path, *options: str, spec: str = "timm:resnet18") -> str:
    """The one line with which ``se-inject convert`` refuses ``path``; nothing is written."""
    out = path.parent / "out"
    result = run("convert", spec, "--checkpoint", str(path), "-o", str(out), *options)
    assert result.exit_code == 1 and result.stdout == "", (result.exit_code, result.output)
    assert isinstance(result.exception, SystemExit), result.exception  # a refusal, and not a traceback
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1 and result.stderr.splitlines()[-1:] == errors, result.stderr
    assert "weights_only" not in result.stderr and not out.exists()
    return errors[0]


def save_legacy(value: Any, path: Path, **kwargs: Any) -> None:
    torch.save(value, path, _use_new_zipfile_serialization=False, **kwargs)


def save_safetensors(value: Any, path: Path) -> None:
    save_file(value, path)


SAVERS = {"torch-zip": torch.save, "torch-legacy": save_legacy, "safetensors": save_safetensors}


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x)


def make_torchscript(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # tracing is on its way out; its files stay
        torch.jit.save(torch.jit.trace(Tiny(), torch.zeros(1, 2)), path)


def make_pt2(path: Path) -> None:
    with path.open("wb") as file:
        torch.export.save(torch.export.export(Tiny(), (torch.zeros(1, 2),)), file)


def make_package(path: Path) -> None:
    with torch.package.PackageExporter(path) as exporter:
        exporter.save_pickle("m", "m.pkl", {"a": 1})


def make_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("weights.bin", b"x")


def make_tar(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("storages"), io.BytesIO())


def make_distributed(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch.distributed.checkpoint

        torch.distributed.checkpoint.save(STATE, checkpoint_id=path, no_dist=True)


def save_shards(value: dict[str, torch.Tensor], folder: Path, count: int = 2, suffix: str = "safetensors") -> Path:
    """``value`` in ``count`` shards in ``folder``, as Hugging Face libraries write them; returns the index."""
    folder.mkdir(exist_ok=True)
    names = [f"model-{i:05}-of-{count:05}.{suffix}" for i in range(1, count + 1)]
    placed = {key: names[i % count] for i, key in enumerate(value)}
    for name in names:
        (save_file if suffix == "safetensors" else torch.save)(
            {key: value[key] for key in value if placed[key] == name}, folder / name
        )
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": placed}, indent=2))
    return index


def make_output(path: Path) -> None:
    path.mkdir()
    (path / "plan.json").write_text("{}")
    save_file(STATE, path / "model.safetensors")


def make_numpy(path: Path) -> None:
    with path.open("wb") as file:
        numpy.save(file, numpy.zeros(2))


def content(data: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(data)


MAKERS: dict[str, Callable[[Path], object]] = {
    "torchscript": make_torchscript,
    "pt2": make_pt2,
    "package": make_package,
    "zip": make_zip,
    "protobuf": content(b"\x08\x08\x12\x07pytorch\x1a\x052.0.0"),
    "pickle": content(pickle.dumps({"a": 1})),
    "tar": make_tar,
    "gzip": content(gzip.compress(b"x")),
    "compressed": content(bz2.compress(b"x")),
    "hdf5": content(b"\x89HDF\r\n\x1a\n"),
    "numpy": make_numpy,
    "gguf": content(b"GGUF\x03\0\0\0"),
    "lfs": content(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"),
    "html": content(b"\n<!DOCTYPE html><html></html>"),
    "json": content(b'{"architecture": "resnet18"}'),
    "empty": content(b""),
    "distributed": make_distributed,
    "hub-cache": lambda path: (path / "snapshots").mkdir(parents=True),
    "output": make_output,
    "tensorflow": lambda path: path.mkdir() or (path / "saved_model.pb").touch(),
    "folder": Path.mkdir,
    "unknown": content(b"hello"),
}


class Call:
    """Pickles as a call of ``function`` with ``args``."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


def write_zip(data: bytes, path: Path | io.BytesIO) -> None:
    """A torch.save archive around a pickle of one's own."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, value in (("data.pkl", data), ("byteorder", b"little"), ("version", b"3\n")):
            archive.writestr(f"archive/{name}", value)


def legacy(data: bytes) -> bytes:
    """A torch.save file of the old format around a pickle of one's own."""
    heads = [pickle.dumps(head, 2) for head in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    return b"".join([*heads, data, pickle.dumps([], 2)])


def write_legacy(data: bytes, path: Path) -> None:
    path.write_bytes(legacy(data))


TORCH_FILES: dict[str, Callable[[bytes, Path], object]] = {"zip": write_zip, "legacy": write_legacy}
