"""``model.safetensors``: all weights, in one file, or in shards with an index."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from se_inject.checks import reference
from se_inject.checks.outputs import same
from se_inject.output.formats.subject import Content, Format, Subject
from se_inject.output.tensors import ALIGNMENT
from se_inject.output.weights import INDEX, WHOLE, read_weights, shard_names, weights_files
from se_inject.trace.skeleton import share, skeleton, to_meta
from se_inject.types import Check


def write(subject: Subject) -> Mapping[str, Content]:
    """One file, or shards of at most the size that was asked for."""
    return weights_files(subject.whole.state_dict(), subject.max_shard_size, subject.advance)


def check(folder: Path, subject: Subject) -> Check:
    """6. What was written, read back, is the same tensors and gives the same outputs."""
    name = "read back"
    whole = subject.whole
    tensors = read_weights(folder)
    before = subject.hashes
    wrong = [key for key, digest in before.items() if key not in tensors or reference.digest(tensors[key]) != digest]
    if wrong or len(tensors) != len(before):
        return Check(name, False, f"{len(wrong)} tensors differ, the first is {wrong[:1]}", "differs")
    count = f"{len(before)} tensors identical"
    if len(shard_names(folder)) > 1:
        count += f" in {len(shard_names(folder)) - 1} shards"
    stored = {id(t) for t in whole.state_dict(keep_vars=True).values()}
    copy = skeleton(whole, keep=lambda t: to_meta(t) if id(t) in stored else t.detach().clone())
    model = skeleton(whole, keep=share)  # without the user's hooks, like the copy
    seed = subject.plan.seed
    if subject.inputs is None:
        return Check(name, None, f"{count}; there are no inputs to run the model on", "nothing-to-compare")
    probe = reference.shrink(model, subject.inputs, seed)
    want = reference.run_forward(model, probe, False, seed)
    if want.failure:
        return Check(name, None, f"{count}; the model does not run: {want.failure}", "fails")
    copy.load_state_dict(_versioned(model, aligned(tensors)), assign=True)
    got = reference.run_forward(copy, probe, False, seed)
    if not _equal(want, got):
        # The file holds values, not memory layouts: strides choose between kernels that round otherwise.
        own = model.state_dict()
        laid_out = {key: _laid_out(t, own[key]) for key, t in tensors.items()}
        copy.load_state_dict(_versioned(model, laid_out), assign=True)
        got = reference.run_forward(copy, probe, False, seed)
    equal = _equal(want, got)
    detail = got.failure or f"{count}, outputs {'bit-equal' if equal else 'differ'}"
    return Check(name, equal, detail, "fails" if got.failure else "" if equal else "differs")


def _equal(want: reference.Run, got: reference.Run) -> bool:
    return len(want.outputs) == len(got.outputs) and all(map(same, want.outputs, got.outputs))


def _versioned(model: nn.Module, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state dict with the versions of the model's modules, which MNASNet asks for and the file does not hold."""
    state: dict[str, torch.Tensor] = model.state_dict()
    state.clear()
    state.update(tensors)
    return state


def aligned(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What is mapped from a file where torch would not put it is copied: kernels round otherwise at other addresses."""
    copies: dict[int, torch.Tensor] = {}  # tensors that are one stay one
    return {n: copies.setdefault(id(t), t.clone() if t.data_ptr() % ALIGNMENT else t) for n, t in tensors.items()}


def _laid_out(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(like.shape, like.stride(), dtype=like.dtype).copy_(tensor)


FORMAT = Format("all weights, in one file or in shards", (WHOLE, INDEX), write, check)
