"""Weights files: their kinds, their wrappers, and the files that must be refused without running anything."""

from __future__ import annotations

import argparse
import bz2
import gzip
import io
import json
import os
import pickle
import random
import struct
import tarfile
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from se_inject.errors import LoadError
from se_inject.files import checkpoint, filekind
from se_inject.files.checkpoint import blocked_globals, read_state_dict

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


def save_legacy(value: Any, path: Path, **kwargs: Any) -> None:
    torch.save(value, path, _use_new_zipfile_serialization=False, **kwargs)


def save_safetensors(value: Any, path: Path) -> None:
    save_file(value, path)


SAVERS = {"torch-zip": torch.save, "torch-legacy": save_legacy, "safetensors": save_safetensors}


@pytest.mark.parametrize("kind", SAVERS)
@pytest.mark.parametrize("name", ["weights", "weights.pt", "weights.onnx"])
def test_the_bytes_decide(tmp_path: Path, kind: str, name: str) -> None:
    SAVERS[kind](STATE, tmp_path / name)
    file = read_state_dict(tmp_path / name)
    assert file.kind == kind and same(file.tensors, STATE)
    assert (file.unwrapped, file.ignored, file.ema, file.globals) == ((), (), False, ())


@pytest.mark.parametrize("kind", ["torch-zip", "torch-legacy"])
def test_a_pickle_is_never_reached_from_a_safetensors_name(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "weights.safetensors"
    SAVERS[kind](STATE, path)
    assert "named .safetensors" in refusal(path)
    assert "named .safetensors" in refusal(path, allow_pickle=True)


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
    "json": content(b'{"weight_map": {}}'),
    "empty": content(b""),
    "distributed": make_distributed,
    "folder": Path.mkdir,
    "unknown": content(b"hello"),
}


@pytest.mark.parametrize("kind", filekind.KINDS)
def test_other_kinds_are_named_with_their_remedy(tmp_path: Path, kind: str) -> None:
    if kind in SAVERS:
        assert not filekind.KINDS[kind].remedy
        return
    MAKERS[kind](tmp_path / "weights.pt")
    for allow_pickle in (False, True):
        text = refusal(tmp_path / "weights.pt", allow_pickle=allow_pickle)
        assert text == f": this is {filekind.KINDS[kind].title}; {filekind.KINDS[kind].remedy}."


def test_no_such_file_names_the_nearest(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "resnet18.pth")
    assert refusal(tmp_path / "resnet81.pth") == ": no such file. Did you mean 'resnet18.pth'?"
    assert refusal(tmp_path / "none" / "x.pth") == ": no such file."


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes")
def test_a_pipe_is_refused_before_it_is_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert refusal(tmp_path / "pipe") == ": neither a file nor a folder."


# Wrappers


@pytest.mark.parametrize(
    ("value", "unwrapped", "ema", "ignored"),
    [
        ({"state_dict": STATE, "epoch": 3, "optimizer": {"state": {0: STATE}}}, ("state_dict",), False, ()),
        ({"model": STATE, "args": argparse.Namespace(lr=0.1, layers=[1], tags={"x"})}, ("model",), False, ()),
        ({"model_state_dict": STATE}, ("model_state_dict",), False, ()),
        ({"state_dict_ema": STATE}, ("state_dict_ema",), True, ()),
        ({"model_ema": STATE, "model": None}, ("model_ema",), True, ()),
        ({"model": {"state_dict": STATE}}, ("model", "state_dict"), False, ()),
        ({**STATE, "epoch": 3}, (), False, ("epoch",)),
        (OrderedDict(STATE), (), False, ()),
    ],
)
def test_wrappers(tmp_path: Path, value: Any, unwrapped: tuple[str, ...], ema: bool, ignored: tuple[str, ...]) -> None:
    for kind in ("torch-zip", "torch-legacy"):
        SAVERS[kind](value, tmp_path / kind)
        file = read_state_dict(tmp_path / kind)
        assert same(file.tensors, STATE)
        assert (file.unwrapped, file.ema, file.ignored) == (unwrapped, ema, ignored)


def test_averaged_and_raw_weights_ask_for_a_choice(tmp_path: Path) -> None:
    path, other = tmp_path / "both.pt", {"a": torch.ones(1)}
    torch.save({"state_dict": STATE, "state_dict_ema": other}, path)
    assert "under 'state_dict' and 'state_dict_ema'; choose with --ema or --no-ema" in refusal(path)
    assert same(read_state_dict(path, ema=True).tensors, other)
    assert same(read_state_dict(path, ema=False).tensors, STATE)
    torch.save({"state_dict": STATE}, path)
    assert "--ema was asked" in refusal(path, ema=True)
    torch.save({"state_dict_ema": STATE}, path)
    assert "--no-ema was asked" in refusal(path, ema=False)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"net": STATE, 3: 4}, "Its keys are 'net', 3;"),
        ({}, "Its keys are none"),
        ({"state_dict": {}}, "Its keys are 'state_dict'"),
        ({"\x1b[31m": 1}, "Its keys are '\\x1b[31m'"),
        ([STATE], "holds a list, not a state dict"),
        (torch.zeros(2), "holds a Tensor, not a state dict"),
        ({"model": STATE, "state_dict": STATE}, "holds weights under 'state_dict' and 'model'"),
    ],
)
def test_files_without_one_state_dict(tmp_path: Path, value: Any, said: str) -> None:
    torch.save(value, tmp_path / "x.pt")
    assert said in refusal(tmp_path / "x.pt")


def test_a_dict_inside_itself_ends(tmp_path: Path) -> None:
    value: dict[str, Any] = {}
    value["model"] = value
    torch.save(value, tmp_path / "x.pt")
    assert "no weights found" in refusal(tmp_path / "x.pt")


def test_versions_of_modules_are_kept(tmp_path: Path) -> None:
    torch.save({"model": nn.BatchNorm2d(2).state_dict()}, tmp_path / "x.pt")
    assert read_state_dict(tmp_path / "x.pt").versions == {"": {"version": 2}}


def test_all_that_torch_save_writes_of_plain_data(tmp_path: Path) -> None:
    plain = {
        "dtypes": [torch.ones(2, dtype=d) for d in (torch.float16, torch.bfloat16, torch.float64, torch.bool)],
        "parameter": nn.Parameter(torch.ones(2)),
        "view": torch.arange(10)[2:8:2],
        "strided": torch.ones(2, 3).t(),
        "expanded": torch.ones(1).expand(3),
        "bytes": [b"ab", bytearray(b"cd"), {1, "a"}, torch.Size([2]), torch.device("cpu"), torch.strided, 1j, 2**70],
        "nothing": torch.ones(0, 3),
    }
    for kind in ("torch-zip", "torch-legacy"):
        SAVERS[kind]({"state_dict": STATE, "extra": plain}, tmp_path / kind)
        assert same(read_state_dict(tmp_path / kind).tensors, STATE), kind
    untyped = {"a": torch.ones(2, dtype=torch.uint16), "b": torch.ones(2).to(torch.float8_e4m3fn)}
    torch.save(untyped, tmp_path / "x.pt")  # the old format writes these, and torch cannot read them back
    assert read_state_dict(tmp_path / "x.pt").tensors["a"].equal(untyped["a"])


# Trust


class Call:
    """Pickles as a call of ``function`` with ``args``."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


def named_call(module: str, name: str, text: str) -> bytes:
    """A protocol 0 pickle that calls ``module.name(text)``; nothing is imported to write it."""
    return f"c{module}\n{name}\n(V{text}\ntR.".encode()


FUNCTIONS = [
    ("os", "system"),
    ("posix", "system"),
    ("nt", "system"),
    ("subprocess", "Popen"),
    ("subprocess", "getoutput"),
    ("builtins", "eval"),
    ("builtins", "exec"),
    ("builtins", "getattr"),
    ("__builtin__", "eval"),
    ("runpy", "run_path"),
    ("ctypes", "CDLL"),
    ("importlib", "import_module"),
    ("pickle", "loads"),
    ("torch", "load"),
    ("torch.hub", "load"),
    ("torch.fx.graph_module", "reduce_graph_module"),
    ("torch.fx._symbolic_trace", "symbolic_trace"),
    ("torch._inductor.codecache", "compile_file"),
    ("torch.utils._config_module", "load_config"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("argparse", "Namespace.__init__"),
    ("copyreg", "_reconstructor"),
]


def write_zip(data: bytes, path: Path) -> None:
    """A torch.save archive around a pickle of one's own."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, value in (("data.pkl", data), ("byteorder", b"little"), ("version", b"3\n")):
            archive.writestr(f"archive/{name}", value)


def write_legacy(data: bytes, path: Path) -> None:
    heads = [pickle.dumps(head, 2) for head in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    path.write_bytes(b"".join([*heads, data, pickle.dumps([], 2)]))


CONTAINERS: dict[str, Callable[[bytes, Path], object]] = {"zip": write_zip, "legacy": write_legacy}


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize(("module", "name"), FUNCTIONS)
def test_named_code_is_listed_and_never_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, container: str, module: str, name: str
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    path, canary = tmp_path / "x.pt", tmp_path / "canary"
    CONTAINERS[container](named_call(module, name, f"touch {canary}"), path)
    listed = f"{module.replace('__builtin__', 'builtins')}.{name}"
    assert f"loading it would run {listed}. " in refusal(path)
    assert blocked_globals(path) == (listed,)
    assert not canary.exists()


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("container", [*CONTAINERS, "bare"])
@pytest.mark.parametrize("place", ["top", "ema", "tensor"])
def test_payloads_of_every_protocol(tmp_path: Path, protocol: int, container: str, place: str) -> None:
    path, canary = tmp_path / "x.pt", tmp_path / "canary"
    call = Call(os.mkdir, str(canary))
    value = {"top": call, "ema": {"state_dict": {}, "state_dict_ema": {"a": call}}, "tensor": [STATE["a"], call]}[place]
    if container == "bare":
        path.write_bytes(pickle.dumps(call, protocol))
        text = refusal(path)
        assert "bare Python pickle" in text or "no known kind" in text  # protocols 0 and 1 have no mark
        assert not canary.exists()
        return
    torch.save(value, path, pickle_protocol=protocol, _use_new_zipfile_serialization=container == "zip")
    if protocol < 2 and container == "legacy":
        assert "no known kind" in refusal(path)
    elif protocol > 2 and container == "legacy":
        assert "bare Python pickle" in refusal(path)
    else:
        assert f"loading it would run {os.mkdir.__module__}.mkdir. " in refusal(path)
    assert not canary.exists()


def test_the_canary_sings_when_asked(tmp_path: Path) -> None:
    """The negative twin: these payloads do run where pickles are trusted."""
    path, canary = tmp_path / "x.pt", tmp_path / "canary"
    pickle.loads(pickle.dumps(Call(os.mkdir, str(canary))))
    canary.rmdir()
    torch.save({"state_dict": STATE, "extra": Call(os.mkdir, str(canary))}, path)
    assert blocked_globals(path) == (f"{os.mkdir.__module__}.mkdir",) and not canary.exists()
    file = read_state_dict(path, allow_pickle=True)
    assert canary.exists() and same(file.tensors, STATE)
    assert file.globals == (f"{os.mkdir.__module__}.mkdir",)


def test_names_of_globals_are_printable(tmp_path: Path) -> None:
    write_zip(b"\x80\x02cbad\x1b[31m\nname\n.", tmp_path / "x.pt")
    assert blocked_globals(tmp_path / "x.pt") == ("bad\\x1b[31m.name",)
    assert "would run bad\\x1b[31m.name. " in refusal(tmp_path / "x.pt")


def test_a_whole_model_needs_the_flag(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    torch.save({"model": model}, tmp_path / "x.pt")
    assert "torch.nn.modules.linear.Linear" in refusal(tmp_path / "x.pt")
    file = read_state_dict(tmp_path / "x.pt", allow_pickle=True)
    assert file.unwrapped == ("model", "Linear") and same(file.tensors, model.state_dict())


@pytest.mark.parametrize("kind", ["torch-zip", "torch-legacy"])
def test_weights_only_is_passed_and_tried_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    calls = []

    def load(*args: Any, **kwargs: Any) -> Any:
        calls.append(kwargs["weights_only"])
        raise pickle.UnpicklingError("you can turn weights_only off")

    SAVERS[kind](STATE, tmp_path / "x.pt")
    monkeypatch.setattr(torch, "load", load)
    for allow_pickle in (False, True):  # a plain file is read safely, flag or not
        assert "torch could not read" in refusal(tmp_path / "x.pt", allow_pickle=allow_pickle)
    assert calls == [True, True]


@pytest.mark.parametrize("known", [[], [argparse.Namespace]])
def test_safe_globals_are_as_before(tmp_path: Path, known: list[Any]) -> None:
    torch.save({"state_dict": STATE, "args": argparse.Namespace(a=1)}, tmp_path / "x.pt")
    with torch.serialization.safe_globals(known):
        before = set(torch.serialization.get_safe_globals())
        read_state_dict(tmp_path / "x.pt")
        assert set(torch.serialization.get_safe_globals()) == before
    with torch.serialization.safe_globals([Call]):  # what others allowed is not allowed here
        torch.save({"state_dict": STATE, "x": Path("a")}, tmp_path / "x.pt")
        assert "pathlib" in refusal(tmp_path / "x.pt")


# Pickles that are small and cost much: (body, what is said)
STORAGE = b"((Vstorage\nctorch\nFloatStorage\nV0\nVcpu\nI4\ntQ"


def view(offset: int, size: str, stride: str) -> bytes:
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + STORAGE[1:] + f"I{offset}\n{size}{stride}I00\n}}tR.".encode()


VIEWS = ("long view", "offset", "stride", "negative", "odd view")
BOMBS = {
    "bytearray": (b"cbuiltins\nbytearray\n(I2147483648\ntR.", "bytearray is called with a size"),
    "tensor class": (b"ctorch\nFloatTensor\n(I536870912\ntR.", "loading it would run torch.FloatTensor"),
    "storage class": (b"ctorch\nFloatStorage\n(I536870912\ntR.", "it calls torch.FloatStorage"),
    "long view": (view(0, "(I536870912\nt", "(I1\nt"), "a tensor reaches past the end of its storage"),
    "offset": (view(4, "(I1\nt", "(I1\nt"), "a tensor reaches past the end of its storage"),
    "stride": (view(0, "(I2\nt", "(I4\nt"), "a tensor reaches past the end of its storage"),
    "negative": (view(0, "(I-1\nt", "(I1\nt"), "a tensor has a negative or odd shape"),
    "odd view": (view(0, "(I1\nt", "(t"), "a tensor is not made as torch.save makes it"),
    "codec": (b"c_codecs\nencode\n(Vx\nVzlib\ntR.", "an odd encoding"),
    "tuple key": (b"}((I1\ntI1\ns.", "a key is neither a string nor a number"),
    "tuple in set": (b"cbuiltins\nset\n((l(I1\ntatR.", "a set holds something other than"),
    "result called": (b"ccollections\nOrderedDict\n(tR(tR.", "it calls the result of a call"),
    "odd storage": (b"(Vstorage\nctorch\nFloatStorage\nI0\ntQ.", "a storage is not declared"),
    "rebuild in rebuild": (
        b"ctorch._tensor\n_rebuild_from_type_v2\n(ctorch._tensor\n_rebuild_from_type_v2\nNNNtR.",
        "a tensor is not made as torch.save makes it",
    ),
    "rebuild by bytearray": (
        b"ctorch._tensor\n_rebuild_from_type_v2\n(cbuiltins\nbytearray\nN(I2147483648\ntNtR.",
        "bytearray is called with a size",
    ),
    "missing operand": (b"\x85R.", "its pickle is cut short or damaged"),
    "no end": (b"}", "its pickle is cut short or damaged"),
    "unknown memo": (b"h\x05.", "its pickle is cut short or damaged"),
    "long string": (b"X\xff\xff\xff\xff.", "its pickle is cut short or damaged"),
    "long decimal": (b"I" + b"9" * 100_000 + b"\n.", "its pickle is cut short or damaged"),
}


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("bomb", BOMBS)
def test_costly_pickles_are_refused_before_they_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, container: str, bomb: str
) -> None:
    monkeypatch.setattr(torch, "load", lambda *a, **k: pytest.fail("torch.load was reached"))
    body, said = BOMBS[bomb]
    CONTAINERS[container](b"\x80\x02" + body, tmp_path / "x.pt")
    text = refusal(tmp_path / "x.pt")
    if bomb in VIEWS:  # the files here hold no storage, which is seen first
        said = {"zip": "the storage '0' is missing", "legacy": "declare 24 bytes and 0 follow"}[container]
    assert said in text


def test_a_view_within_its_storage_is_no_bomb() -> None:
    """The negative twin of the views above."""
    from se_inject.files.picklescan import scan

    for offset, size, stride in ((0, "(I4\nt", "(I1\nt"), (3, "(I1\nt", "(I9\nt"), (0, "(I2\nI2\nt", "(I2\nI1\nt")):
        found = scan(io.BytesIO(b"\x80\x02" + view(offset, size, stride)))
        assert found.records == {"0": ("torch.FloatStorage", 16)}
        assert not [p for p in found.problems if "does not write by default" not in p]
    for bomb in VIEWS:
        body, said = BOMBS[bomb]
        assert said in scan(io.BytesIO(b"\x80\x02" + body)).problems


def test_long_pickles_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_zip(b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b".", tmp_path / "deep.pt")
    assert "holds a list, not a state dict" in refusal(tmp_path / "deep.pt")
    monkeypatch.setattr("se_inject.files.picklescan.OPERATIONS", 1000)
    assert "more than 1,000 operations" in refusal(tmp_path / "deep.pt")


# Archives


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
def test_archives_that_torch_save_did_not_write(tmp_path: Path, case: str) -> None:
    path = tmp_path / "x.pt"
    torch.save(STATE, path)
    assert same(read_state_dict(path).tensors, STATE)
    damage, said = ARCHIVES[case]
    damage(path)
    assert said in refusal(path)


def test_archives_without_checksums_are_read(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(STATE, tmp_path / "x.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert same(read_state_dict(tmp_path / "x.pt").tensors, STATE)


def test_old_format_sizes(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    save_legacy(STATE, path)
    for data in (path.read_bytes()[:-1], path.read_bytes() + b"0"):
        path.write_bytes(data)
        assert "follow; download it again" in refusal(path)


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
def test_safetensors_headers(tmp_path: Path, case: str) -> None:
    path = tmp_path / "x.safetensors"
    header, data = HEADERS[case]
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    if not header.startswith(b"{"):
        header = b"{" + header
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    text = refusal(path)
    assert "cut short or damaged" in text or (case == "no tensors" and "no weights found" in text)


def test_safetensors_header_lengths(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    for length in (2**64 - 1, 101 << 20, 50):
        path.write_bytes(struct.pack("<Q", length) + b"{}")
        assert f"its header is {length:,} bytes" in refusal(path)


def test_safetensors_entry_is_read(tmp_path: Path) -> None:
    """The negative twin of the headers above, odd key included: a key is only a name."""
    header = json.dumps({"../../x\0": ENTRY}).encode()
    (tmp_path / "x").write_bytes(struct.pack("<Q", len(header)) + header + struct.pack("<f", 2.0))
    assert same(read_state_dict(tmp_path / "x").tensors, {"../../x\0": torch.tensor([2.0])})


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs the memory map of Linux")
@pytest.mark.parametrize("kind", ["torch-zip", "safetensors"])
def test_tensors_lie_in_the_file(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "weights"
    SAVERS[kind]({"a": torch.zeros(1 << 20)}, path)
    address = read_state_dict_kept(path).data_ptr()
    lines = [line for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(str(path))]
    ranges = [tuple(int(n, 16) for n in line.split()[0].split("-")) for line in lines]
    assert any(start <= address < end for start, end in ranges)


KEPT: list[torch.Tensor] = []


def read_state_dict_kept(path: Path) -> torch.Tensor:
    KEPT.append(read_state_dict(path).tensors["a"])
    return KEPT[-1]


def test_damaged_files_are_read_or_refused(tmp_path: Path) -> None:
    value = {"state_dict": nn.BatchNorm2d(3).state_dict(), "other": [1, 2.5, None, {"a"}]}
    for i, kind in enumerate(SAVERS):
        SAVERS[kind](value if "torch" in kind else value["state_dict"], tmp_path / "whole")
        whole = (tmp_path / "whole").read_bytes()
        choose, refused = random.Random(i), 0
        for n in range(150):
            data, at = bytearray(whole), choose.randrange(len(whole))
            data[at : at + choose.randrange(3)] = choose.randbytes(choose.randrange(3))
            path = tmp_path / f"{kind}{n}"
            path.write_bytes(data)
            try:
                read_state_dict(path)
            except LoadError as error:
                refused += 1
                assert "\n" not in str(error) and "weights_only" not in str(error)
        assert refused > 50


def test_every_reader_has_a_kind() -> None:
    assert set(checkpoint.READERS) == {name for name, kind in filekind.KINDS.items() if not kind.remedy}
    assert {name for name, _ in (*filekind.MARKS, *filekind.ZIP_MARKS)} <= set(filekind.KINDS)
