"""``adapter.safetensors``: the new weights alone, with the plan that says where they go on a fresh base.

Under `absorb` the plan doubles the norms of the base, once: a base that holds doubled norms already is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from se_inject.checks.keys import absorbed, planned_keys
from se_inject.checks.reference import digest, digests
from se_inject.checks.trained import moved_base
from se_inject.errors import LoadError, WriteError
from se_inject.output import atomic
from se_inject.output.formats.subject import Content, Format, Subject
from se_inject.output.plan_file import PLAN, read_plan
from se_inject.output.tensors import read_tensors, tensors_writer
from se_inject.surgery import splice
from se_inject.types import Check, Plan, dump

NAME = "adapter.safetensors"


def write(subject: Subject) -> Mapping[str, Content]:
    """The tensors that the plan adds."""
    return {NAME: tensors_writer(_new(subject.whole, subject.plan))}


def check(folder: Path, subject: Subject) -> Check:
    """The tensors in the file against those of the model, or against the names that the plan adds."""
    found = read_tensors(folder / NAME)
    if odd := sorted(planned_keys(subject.plan) ^ set(found)):
        detail = f"{len(odd)} tensors more or less than planned, the first is {ascii(odd[0])[1:-1]}"
        return Check(NAME, False, detail, "keys")
    if subject.model is None:
        return Check(NAME, True, f"{len(found)} tensors, exactly those that the plan adds; their base is not here")
    wrong = [name for name, tensor in found.items() if digest(tensor) != subject.hashes.get(name)]
    if wrong:
        detail = f"{len(wrong)} tensors are not the model's, the first is {ascii(wrong[0])[1:-1]}"
        return Check(NAME, False, detail, "differs")
    return Check(NAME, True, f"{len(found)} tensors identical to the model's, exactly those that the plan adds")


def _new(model: nn.Module, plan: Plan) -> dict[str, torch.Tensor]:
    state = model.state_dict()
    names = planned_keys(plan)
    if lost := sorted(names - state.keys()):
        raise WriteError(f"the model has no tensor {lost[0]!r}, which its plan added: it was changed since.")
    return {name: tensor for name, tensor in state.items() if name in names}


def save(
    model: nn.Module, out: Path, *, changed: bool = False, force: bool = False, discard_changes: bool = False
) -> None:
    """Write the new weights of ``model`` and its plan to the folder ``out``. See ``se_inject.save_adapter``."""
    plan = splice.plan_of(model)
    tensors = _new(model, plan)
    moved = [name for name in moved_base(model, plan, digests(model)) if name not in tensors]
    if moved and not changed:
        raise WriteError(
            f"{len(moved)} tensors of the base changed since the insertion, the first is {moved[0]!r}: the new weights "
            "alone do not give this model back. Train with the base frozen and its batch norms in eval mode, "
            "or write what changed as well: save_adapter(..., changed=True)."
        )
    state = model.state_dict()
    tensors |= {name: state[name] for name in moved}
    files: dict[str, Content] = {NAME: tensors_writer(tensors), PLAN: dump(plan).encode()}
    atomic.write(out, files, force=force, discard_changes=discard_changes)


def load(model: nn.Module, folder: Path, *, inplace: bool = False, strict: bool = True) -> nn.Module:
    """The blocks of an adapter with their weights on a fresh base. See ``se_inject.load_adapter``."""
    if not (folder / NAME).is_file():
        raise LoadError(f"{folder} holds no adapter: it has no {NAME}. Whole models are read by se_inject.load.")
    plan, tensors = read_plan(folder / PLAN), read_tensors(folder / NAME)
    if splice.RECORD in model.__dict__:
        raise LoadError(f"{type(model).__name__} holds inserted blocks already; an adapter goes onto a fresh base.")
    splice.require_fingerprint(model, plan)
    _require_base(model, plan, strict)
    result = splice.apply(model, plan, inplace=inplace)
    try:
        _fill(result, plan, tensors)
    except BaseException:
        if inplace:
            splice.remove_last(result)
        raise
    return result


def _fill(model: nn.Module, plan: Plan, tensors: Mapping[str, torch.Tensor]) -> None:
    own = model.state_dict()
    if missing := sorted(planned_keys(plan) - tensors.keys()):
        raise LoadError(f"the adapter has no tensor {missing[0]!r}, which its plan adds.")
    for name, tensor in tensors.items():
        if name not in own or own[name].shape != tensor.shape:
            found = list(own[name].shape) if name in own else "none"
            raise LoadError(f"the adapter holds {name!a} of shape {list(tensor.shape)}; the model has {found}.")
    with torch.no_grad():
        for name, tensor in tensors.items():
            own[name].copy_(tensor)


def _require_base(model: nn.Module, plan: Plan, strict: bool) -> None:
    """Raise ``LoadError`` when the base is not the one of the plan; doubled norms are never doubled again."""
    known = plan.baseline.tensors
    state = model.state_dict()
    for name in absorbed(plan) & known.keys() & state.keys():
        if digest(state[name]) != known[name] and digest(state[name] * 0.5) == known[name]:
            raise LoadError(
                f"the norm of {name!r} is doubled already: this base was absorbed before. Take the original weights."
            )
    hashes = digests(model)
    other = [name for name in known if hashes.get(name) != known[name]]
    if other and strict:
        raise LoadError(
            f"the base is not the one that the adapter was made on: {len(other)} of {len(known)} tensors differ, the "
            f"first is {other[0]!a}. Take the original weights; strict=False puts it on this base all the same."
        )


FORMAT = Format("the new weights alone, for a fresh base", (NAME,), write, check)
