"""Weights that moved since the blocks were inserted: the checks of the insertion speak of the start, what is saved is
described by itself, so that ``verify`` can compare a folder with what went into it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import nn

from se_inject.blocks.make import make_block
from se_inject.checks import reference
from se_inject.checks.keys import absorbed
from se_inject.checks.outputs import same
from se_inject.errors import SpliceError
from se_inject.inputs import Inputs, dtype_of
from se_inject.types import Check, Plan, Report

Tensors = dict[str, torch.Tensor]
Hashes = Mapping[str, str]  # name -> SHA-256, as ``reference.digests`` gives them


def up_to_date(report: Report, model: nn.Module, inputs: Inputs, hashes: Hashes) -> Report:
    """The report, with what the model is now in its plan if it was trained after the checks, and a line that says so.

    ``inputs``: the example that the blocks were inserted with. ``hashes``: of the model's tensors. Without checks there
    is nothing to compare with. Raises ``SpliceError`` for a block that is not there any more.
    """
    plan = replace(report.plan, trained=None)
    blocks = _blocks(model, plan)
    moved = [*moved_base(model, plan, hashes), *_moved_blocks(blocks)] if plan.baseline.tensors else []
    if not moved:
        return replace(report, plan=plan)
    probe = reference.probe_of(plan, dtype_of(model)) or inputs
    outputs = reference.run_forward(model, probe, False, plan.seed).outputs if probe is not None else []
    now = reference.describe(dict(hashes), plan.baseline.probe, outputs)
    detail = (
        f"{len(moved)} of {len(now.tensors)} tensors moved since the blocks were inserted; "
        "the checks above are of then, verify compares with what is saved here"
    )
    check = Check("trained", None, detail, "trained")
    return replace(report, plan=replace(plan, trained=now), checks=(*report.checks, check))


def unchanged(model: nn.Module, plan: Plan) -> Check:
    """The tensors of a trained model against those that were saved."""
    assert plan.trained is not None
    before, after = plan.trained.tensors, reference.digests(model)
    wrong = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    if wrong:
        detail = f"{len(wrong)} tensors are not those that were saved, the first is {wrong[0]}"
        return Check("keys", False, detail, "differs")
    return Check("keys", True, f"{len(after)} tensors identical to those saved after training")


def moved_base(model: nn.Module, plan: Plan, hashes: Hashes) -> list[str]:
    """Tensors of the original that are not what they were when the blocks were put in; doubled norms count as such."""
    known, doubled, state = plan.baseline.tensors, absorbed(plan), model.state_dict()
    return [
        name
        for name, value in hashes.items()
        if name in known and (reference.digest(state[name] * 0.5) if name in doubled else value) != known[name]
    ]


def _blocks(model: nn.Module, plan: Plan) -> dict[str, tuple[Tensors, Tensors]]:
    """Path of each block -> its tensors, and those that it starts from. Raises ``SpliceError`` for one that is gone."""
    known = dict(model.named_modules(remove_duplicate=False))
    found = {}
    for decision in plan.insertions:
        block = known.get(decision.key, nn.Identity())
        own, start = block.state_dict(), make_block(decision, plan.seed, block).state_dict()
        if decision.key not in known or _shapes(own) != _shapes(start):
            raise SpliceError(
                f"the block {decision.key} was replaced or removed since it was inserted, and the plan cannot give "
                "this model back: take blocks out with se_inject.prune or se_inject.remove."
            )
        found[decision.key] = own, start
    return found


def _moved_blocks(blocks: dict[str, tuple[Tensors, Tensors]]) -> list[str]:
    """Tensors of the blocks that are not what they start from."""
    return [f"{k}.{name}" for k, (own, start) in blocks.items() for name in own if not same(own[name], start[name])]


def _shapes(state: Tensors) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in state.items()}
