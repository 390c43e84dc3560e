"""What a weights file is: decided by its first bytes, never by its name; a folder, by what lies in it.

One table of kinds, and a table of marks for files, zip archives and folders. A kind with a remedy cannot be read; its
remedy says what to do instead.
"""

from __future__ import annotations

import os
import re
import stat
import zipfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from se_inject.errors import LoadError, closest


@dataclass(frozen=True)
class FileKind:
    """A kind of file, as the messages name it."""

    name: str
    title: str
    remedy: str = ""  # empty: this kind can be read


# The names under which a folder keeps its weights, as Hugging Face libraries and timm write it; the first one decides.
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")

KINDS = {
    kind.name: kind
    for kind in (
        FileKind("torch-zip", "a torch.save file"),
        FileKind("torch-legacy", "a torch.save file of the old format"),
        FileKind("safetensors", "a safetensors file"),
        FileKind("shards", "an index of safetensors shards"),
        FileKind("torchscript", "a TorchScript archive", "save its weights with torch.save(m.state_dict(), FILE)"),
        FileKind("pt2", "an exported program (.pt2)", "give the checkpoint of the model that it was exported from"),
        FileKind("package", "a torch.package archive", "save its weights with torch.save(m.state_dict(), FILE)"),
        FileKind("zip", "a zip archive that torch.save did not write", "unpack it and give the weights file inside"),
        FileKind("protobuf", "an ONNX or other protobuf file", "give the PyTorch checkpoint that it was exported from"),
        FileKind("pickle", "a bare Python pickle", "save the weights with torch.save(m.state_dict(), FILE)"),
        FileKind("tar", "a tar archive", "unpack it and give the weights file inside"),
        FileKind("gzip", "a gzip archive", "unpack it with gunzip"),
        FileKind("compressed", "a compressed archive", "unpack it and give the weights file inside"),
        FileKind("hdf5", "an HDF5 (Keras) file", "convert it to a PyTorch state dict"),
        FileKind("numpy", "a NumPy array file", "convert it to a PyTorch state dict"),
        FileKind("gguf", "a GGUF file", "convert it to a PyTorch state dict"),
        FileKind("lfs", "a Git LFS pointer and not the weights", "fetch the weights with git lfs pull"),
        FileKind("html", "a web page and not the weights", "download the file itself: the link led to a page"),
        FileKind("json", "a JSON file without a weight_map", "give the weights file, or the index of its shards"),
        FileKind("empty", "an empty file", "download it again"),
        FileKind(
            "distributed",
            "a distributed checkpoint (a folder with .metadata)",
            "convert it offline, if you trust it (.metadata is a pickle), with "
            "torch.distributed.checkpoint.format_utils.dcp_to_torch_save(FOLDER, FILE)",
        ),
        FileKind(
            "hub-cache", "a model's folder in the Hugging Face cache", "give the folder of a revision in snapshots/"
        ),
        FileKind("output", "a folder that se_inject wrote", "take the blocks out of it with se-inject remove"),
        FileKind("tensorflow", "a TensorFlow SavedModel folder", "convert it to a PyTorch state dict"),
        FileKind(
            "folder", "a folder without weights", f"give the weights file, or a folder with {' or '.join(WEIGHTS)}"
        ),
        FileKind("unknown", "a file of no known kind", "give a torch.save or safetensors file"),
    )
}

# The first mark that fits decides.
HEAD_BYTES = 512
MARKS: tuple[tuple[str, re.Pattern[bytes]], ...] = tuple(
    (name, re.compile(mark, re.DOTALL))
    for name, mark in (
        ("empty", rb"\Z"),
        ("zip", rb"PK\x03\x04|PK\x05\x06"),
        ("torch-legacy", rb"\x80\x02\x8a\x0al\xfc\x9cF\xf9"),
        ("safetensors", rb".{8}\{"),
        ("lfs", rb"version https://git-lfs"),
        ("gzip", rb"\x1f\x8b"),
        ("compressed", rb"BZh|\xfd7zXZ|\x28\xb5\x2f\xfd|7z\xbc\xaf|Rar!"),
        ("hdf5", rb"\x89HDF"),
        ("numpy", rb"\x93NUMPY"),
        ("gguf", rb"GGUF"),
        ("html", rb"(\xef\xbb\xbf)?\s*<"),
        ("json", rb"(\xef\xbb\xbf)?\s*[\[{]"),
        ("tar", rb".{257}ustar"),
        ("pickle", rb"\x80[\x00-\x05]"),
        ("protobuf", rb"\x08[\x01-\x20][\x12\x1a\x22\x2a\x32\x3a\x42]"),
    )
)

# Zip archives tell themselves apart by their members, named below the one root folder.
ZIP_MARKS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("package", re.compile(r"\.data/extern_modules")),
    ("pt2", re.compile(r"archive_format|models/.*\.json|serialized_exported_program\.json")),
    ("torchscript", re.compile(r"constants\.pkl|code/__torch__.*")),
    ("torch-zip", re.compile(r"data\.pkl")),
)

# Folders, by a file or folder in them.
FOLDER_MARKS = (
    (".metadata", "distributed"),
    ("snapshots", "hub-cache"),
    ("plan.json", "output"),
    ("saved_model.pb", "tensorflow"),
)
INDEX_LIMIT = 8 << 20  # bytes of an index of shards: of 80,000 tensors


def file_kind(path: str | os.PathLike[str]) -> FileKind:
    """The kind of the file or folder at ``path``.

    Raises ``LoadError`` when there is no such file, or it is neither a file nor a folder.
    """
    path = Path(path)
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            return KINDS[next((kind for mark, kind in FOLDER_MARKS if (path / mark).exists()), "folder")]
        if not stat.S_ISREG(mode):  # opening a pipe would wait for ever
            raise LoadError(f"{path}: neither a file nor a folder.")
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except FileNotFoundError:
        raise LoadError(f"{path}: no such file.{_nearby(path)}") from None
    except (OSError, ValueError) as error:
        raise LoadError(f"{path}: cannot be opened: {getattr(error, 'strerror', None) or error}.") from error
    name = next((name for name, mark in MARKS if mark.match(head)), "unknown")
    return KINDS[CLOSER[name](path) if name in CLOSER else name]


def locate(path: str | os.PathLike[str]) -> Path:
    """The weights file of a folder, by the names in ``WEIGHTS``; any other path is returned as it is."""
    path = Path(path)
    names = WEIGHTS if file_kind(path).name == "folder" else ()
    return next((path / name for name in names if (path / name).is_file()), path)


def readable(path: str | os.PathLike[str]) -> FileKind:
    """The kind of ``path``, when it can be read.

    Raises ``LoadError`` with the kind and the remedy when it cannot, and when the name says safetensors (which
    promises that no pickle is inside) and the bytes say otherwise.
    """
    kind = file_kind(path)
    if kind.remedy:
        held = _candidate(path) if kind.name == "folder" else ""
        raise LoadError(f"{path}: this is {kind.title}; {kind.remedy}.{held}")
    if Path(path).suffix == ".safetensors" and kind.name != "safetensors":
        raise LoadError(f"{path}: named .safetensors, but this is {kind.title}; rename it if you expect that.")
    return kind


def below_root(names: Collection[str]) -> list[str]:
    """Member names without the root folder that archives of torch have."""
    return [name.partition("/")[2] for name in names]


def _zip_kind(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            members = below_root(archive.namelist())
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError, EOFError) as error:
        raise LoadError(f"{path}: a zip archive that is cut short or damaged; download it again.") from error
    return next((kind for kind, mark in ZIP_MARKS if any(map(mark.fullmatch, members))), "zip")


def _json_kind(path: Path) -> str:
    """An index of shards maps the name of each tensor to a file, under ``weight_map``."""
    with path.open("rb") as file:
        data = file.read(INDEX_LIMIT + 1)
    if len(data) > INDEX_LIMIT:
        raise LoadError(f"{path}: a JSON file of more than {INDEX_LIMIT:,} bytes, which no index of shards needs.")
    return "shards" if b'"weight_map"' in data else "json"


CLOSER = {"zip": _zip_kind, "json": _json_kind}  # kinds whose mark is not all of it


def _candidate(folder: str | os.PathLike[str]) -> str:
    """A file in the folder that may be meant, by its name."""
    names = sorted(
        name for name in os.listdir(folder) if name.endswith((".safetensors", ".pth", ".pt", ".ckpt", ".bin"))
    )
    return f" It holds {names[0]!a}." if names else ""


def _nearby(path: Path) -> str:
    try:
        return closest(path.name, os.listdir(path.parent))
    except OSError:
        return ""
