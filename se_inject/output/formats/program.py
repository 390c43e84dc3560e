"""``model.pt2``: the model as a torch.export program, for serving without its source.

It is loaded back in a process of its own that knows neither this tool nor the model's library, and compared there at
batches 1, 2 and 7 and at two sizes. Loading a .pt2 file can run code, so ``verify`` reads the weights in it as plain
bytes and leaves the program alone, unless the file may be run.
"""

from __future__ import annotations

import json
import math
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from se_inject.checks.keys import absorbed
from se_inject.checks.reference import digest, run_forward
from se_inject.errors import LoadError
from se_inject.output.formats.child import run_in_child
from se_inject.output.formats.exporting import PROGRAM, batched, cases, close, in_words, label
from se_inject.output.formats.subject import Content, Format, Subject
from se_inject.types import Check

NAME = "model.pt2"
CHECK = "model.pt2"
ABOUT = "about.json"
LARGEST_INDEX = 64 << 20  # bytes of the list of weights
NOT_RUN = "not run, as a .pt2 can run code: --run-pt2 does, for a file of your own"
LOAD = "call = torch.export.load(path).module()"


def write(subject: Subject) -> Mapping[str, Content]:
    """The exported program."""
    exported = subject.exported

    def save(path: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            about = json.dumps(label(subject.plan, exported), indent=1, sort_keys=True)
            torch.export.save(exported.program, path, extra_files={ABOUT: about})

    return {NAME: save}


def check(folder: Path, subject: Subject) -> Check:
    """The file, loaded in a clean process, against the model at other batches and another size."""
    model, seed = subject.whole, subject.plan.seed
    if subject.inputs is None:
        return Check(CHECK, None, "not run: there are no inputs to compare it on", "nothing-to-compare")
    free = _free(folder / NAME)
    compared = list(cases(model, batched(subject.inputs), free, seed))
    outputs, failure, _ = run_in_child(folder / NAME, LOAD, [(None, case) for case in compared])
    if failure:
        return Check(CHECK, False, f"does not run in a clean process: {failure}", "fails")
    worst = 0.0
    for case, got in zip(compared, outputs, strict=True):
        fits, apart = close(run_forward(model, case, False, seed).outputs, got, PROGRAM)
        if not fits:
            return Check(CHECK, False, f"outputs differ by {apart:.2g} of their size, in a clean process", "differs")
        worst = max(worst, apart)
    how = "bit-equal" if worst == 0 else f"within {worst:.2g}"
    return Check(CHECK, True, f"loaded in a clean process: {len(outputs)} inputs {how}; {in_words(free)}")


def inspect(folder: Path, subject: Subject) -> Check:
    """A file of earlier: the weights in it against the model's, or against the hashes of the original's."""
    if "pt2" in subject.runs and subject.model is not None:
        return check(folder, subject)
    try:
        hashes = {name: digest(tensor) for name, tensor in weights_in(folder / NAME)}
    except LoadError as error:
        return Check(CHECK, False, str(error), error.code)
    if subject.model is not None:
        what, known = "the model's", subject.hashes
    else:
        what, doubled = subject.plan.whose, absorbed(subject.plan)
        known = {name: value for name, value in subject.plan.saved.tensors.items() if name not in doubled}
    if not known:
        detail = f"not run, and there are no weights to compare it with; {NOT_RUN}"
        return Check(CHECK, None, detail, "nothing-to-compare")
    if wrong := sorted(name for name, value in known.items() if hashes.get(name) != value):
        detail = f"{len(wrong)} tensors in it are not {what}, the first is {ascii(wrong[0])[1:-1]}"
        return Check(CHECK, False, detail, "differs")
    return Check(CHECK, True, f"{len(known)} tensors in it are {what}; {NOT_RUN}")


def _free(path: Path) -> tuple[int, ...]:
    """The sizes that are free, as the file says of itself."""
    try:
        with zipfile.ZipFile(path) as archive:
            (name,) = (n for n in archive.namelist() if n.endswith(f"/extra/{ABOUT}"))
            return tuple(map(int, json.loads(json.loads(archive.read(name))["free"])))
    except (OSError, zipfile.BadZipFile, ValueError, TypeError, KeyError) as error:
        raise LoadError(f"{path}: it does not say what it is; it is not from this tool.") from error


def weights_in(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights in a .pt2 archive, read as bytes and JSON: nothing in it is run. Raises ``LoadError``."""
    from torch._export.serde.serialize import _SERIALIZE_TO_TORCH_DTYPE as CODES

    try:
        with zipfile.ZipFile(path) as archive:
            members = {"/".join(info.filename.split("/")[1:]): info for info in archive.infolist()}
            if any(info.compress_type != zipfile.ZIP_STORED for info in members.values()):
                raise ValueError("a member is compressed")
            index = members["data/weights/model_weights_config.json"]
            if index.file_size > LARGEST_INDEX:
                raise ValueError("its list of weights is too long")
            for name, entry in json.loads(archive.read(index))["config"].items():
                meta = entry["tensor_meta"]
                sizes, strides = ([n["as_int"] for n in meta[key]] for key in ("sizes", "strides"))
                data = bytearray(archive.read(members[f"data/weights/{entry['path_name']}"]))
                dtype = CODES[meta["dtype"]]
                if math.prod(sizes) * dtype.itemsize > len(data):
                    raise ValueError(f"{name!a} is larger than its data")
                flat = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
                yield name, flat.as_strided(sizes, strides, meta["storage_offset"]["as_int"])
    except (OSError, zipfile.BadZipFile, ValueError, TypeError, KeyError, RuntimeError, RecursionError) as error:
        raise LoadError(f"{path}: its weights cannot be read ({type(error).__name__}: {error}).") from error


FORMAT = Format("a torch.export program", (NAME,), write, check, inspect)
