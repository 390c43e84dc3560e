"""A state dict as a safetensors file: the same bytes for the same tensors, shared tensors once, one copy at a time.

Layout: u64 length of the header, the header as JSON (name -> dtype, shape, offsets), padding to 64 bytes, the data.
The format allows no holes between tensors, so those whose size is a multiple of 64 come first: mapped from the file,
they lie where torch would put them (other addresses round otherwise, and are copied). The rest goes by element size.
The library's ``save_file`` is not used: it writes metadata in a random order, and refuses shared and strided tensors.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from se_inject.errors import LoadError, WriteError

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.complex64: "C64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e4m3fnuz: "F8_E4M3FNUZ",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e5m2fnuz: "F8_E5M2FNUZ",
}
# torch.zeros(1).expand(2**20, 2**12) is 1.5 KB in a checkpoint and 16 GiB on disk here: refused above this size.
EXPANDED_LIMIT = 2**20
ALIGNMENT = 64  # bytes, of torch's allocator
ALIASES = "aliases"  # metadata key: JSON of name -> the name under which the same tensor is stored


def tensors_writer(
    state_dict: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str] | None = None,
    written: Callable[[int], None] = lambda size: None,
) -> Callable[[Path], None]:
    """A function that writes ``state_dict`` at a path; the tensors are checked now and read when it runs.

    Tensors that are the same view of the same memory are stored once, under the first name in sorted order, and the
    others in the metadata ``aliases``; other views of shared memory are stored each for itself. ``written``:
    callback with the bytes of each tensor once they are handed to the disk. Raises ``WriteError`` naming the tensor for
    meta, sparse, quantized, and much expanded tensors, and dtypes without a code.

    >>> tensors_writer(model.state_dict(), {"plan": digest})(Path("model.safetensors"))
    """
    stored, aliases = distinct(state_dict)
    extra = {"format": "pt", **(metadata or {})}
    if aliases:
        extra[ALIASES] = json.dumps(aliases, sort_keys=True)
    names = sorted(stored, key=lambda name: (_bytes(stored[name]) % ALIGNMENT > 0, -stored[name].element_size(), name))

    def save(path: Path) -> None:
        header: dict[str, Any] = {"__metadata__": dict(sorted(extra.items()))}
        end = 0
        for name in names:
            tensor = stored[name]
            start, end = end, end + _bytes(tensor)
            header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-(8 + len(text)) % ALIGNMENT)
        with path.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for name in names:
                dense = stored[name].cpu().resolve_conj().resolve_neg().contiguous()
                file.write((ctypes.c_ubyte * dense.nbytes).from_address(dense.data_ptr()))  # the memory itself, no copy
                written(dense.nbytes)

    return save


def distinct(state_dict: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors that are to be stored, and name -> the name under which the same view of memory is stored.

    Raises ``WriteError`` for a tensor that safetensors cannot keep.
    """
    for name, tensor in state_dict.items():
        _check(name, tensor)
    aliases: dict[str, str] = {}
    first: dict[Any, str] = {}
    for name in sorted(state_dict):
        tensor = state_dict[name]
        place = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() and first.setdefault(place, name) != name:
            aliases[name] = first[place]
    return {name: tensor.detach() for name, tensor in state_dict.items() if name not in aliases}, aliases


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _check(name: str, tensor: object) -> None:
    why = ""
    if name == "__metadata__" or any("\ud800" <= c <= "\udfff" for c in name):
        why = "has a name that safetensors cannot keep"
    elif not isinstance(tensor, torch.Tensor):
        why = f"is a {type(tensor).__name__}, not a tensor"
    elif tensor.device.type == "meta":
        why = "is on the meta device: it has no data (load a checkpoint first)"
    elif tensor.layout != torch.strided or tensor.is_quantized:
        why = f"is {'quantized' if tensor.is_quantized else 'sparse'}; safetensors keeps dense tensors only"
    elif tensor.dtype not in DTYPES:
        why = f"is {tensor.dtype}, for which safetensors has no code"
    else:
        size = _bytes(tensor)
        if size > max(tensor.untyped_storage().nbytes(), EXPANDED_LIMIT):
            why = f"is expanded: {tensor.untyped_storage().nbytes():,} bytes in memory would become {size:,} on disk"
    if why:
        raise WriteError(f"cannot write tensor {name!r}: it {why}.")


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The state dict that ``tensors_writer`` wrote, sorted by name, with shared tensors shared again.

    The tensors are mapped from the file. Raises ``LoadError`` when it is not a safetensors file, or its aliases name
    tensors that are not there.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors: dict[str, torch.Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise LoadError(f"cannot read {path}: {error}.") from error
    try:
        aliases = json.loads(metadata.get(ALIASES, "{}"))
    except (ValueError, RecursionError) as error:
        raise LoadError(f"cannot read {path}: its metadata {ALIASES!r} is not JSON.") from error
    if not isinstance(aliases, dict):
        raise LoadError(f"cannot read {path}: its metadata {ALIASES!r} is not a mapping.")
    resolved = {name: tensors.get(kept) if isinstance(kept, str) else None for name, kept in aliases.items()}
    for name, tensor in resolved.items():
        if tensor is None or name in tensors:
            raise LoadError(f"cannot read {path}: alias {name!r} of {aliases[name]!r} does not fit its tensors.")
        tensors[name] = tensor
    return dict(sorted(tensors.items()))
