"""Weights that moved since the blocks were inserted: the checks of the insertion speak of the start, what is saved is
described by itself, so that ``verify`` can compare a folder with what went into it."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from se_inject.checks import baseline
from se_inject.checks.verify import same
from se_inject.search.inputs import Inputs, dtype_of, from_shape
from se_inject.surgery.splice import make_block
from se_inject.types import Check, Plan, Report


def up_to_date(report: Report, model: nn.Module, inputs: Inputs | None) -> Report:
    """The report, with what the model is now in its plan if it was trained after the checks, and a line that says so.

    ``inputs``: the example that the blocks were inserted with. Without checks there is nothing to compare with.
    """
    plan = replace(report.plan, trained=None)
    moved = [*moved_base(model, plan), *_moved_blocks(model, plan)] if plan.baseline.tensors else []
    if not moved:
        return replace(report, plan=plan)
    if plan.baseline.probe and inputs is not None:
        inputs = from_shape(plan.baseline.probe, dtype_of(model), plan.seed, inputs.kind)
    outputs = baseline.run(model, inputs, False, plan.seed).outputs if inputs is not None else []
    now = baseline.describe(baseline.digests(model), plan.baseline.probe, outputs)
    detail = (
        f"{len(moved)} of {len(now.tensors)} tensors moved since the blocks were inserted; "
        "the checks above are of then, verify compares with what is saved here"
    )
    check = Check("trained", None, detail)
    return replace(report, plan=replace(plan, trained=now), checks=(*report.checks, check))


def unchanged(model: nn.Module, plan: Plan) -> Check:
    """The tensors of a trained model against those that were saved."""
    assert plan.trained is not None
    before, after = plan.trained.tensors, baseline.digests(model)
    wrong = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    if wrong:
        return Check("keys", False, f"{len(wrong)} tensors are not those that were saved, the first is {wrong[0]}")
    return Check("keys", True, f"{len(after)} tensors identical to those saved after training")


def moved_base(model: nn.Module, plan: Plan) -> list[str]:
    """Tensors of the original that are not what they were when the blocks were put in; doubled norms count as such."""
    known, doubled = plan.baseline.tensors, absorbed(plan)
    return [
        name
        for name, tensor in model.state_dict().items()
        if name in known and baseline.digest(tensor * 0.5 if name in doubled else tensor) != known[name]
    ]


def _moved_blocks(model: nn.Module, plan: Plan) -> list[str]:
    """Tensors of the blocks that are not what they start from."""
    moved = []
    for decision in plan.insertions:
        block = model.get_submodule(decision.key)
        own = block.state_dict()
        start = make_block(decision, plan.seed, block).state_dict()
        moved += [f"{decision.key}.{name}" for name in own if not same(own[name], start.get(name))]
    return moved


def absorbed(plan: Plan) -> set[str]:
    """The tensors that `absorb` doubled."""
    return {f"{d.site.absorb}.{n}" for d in plan.insertions if d.init == "absorb" for n in ("weight", "bias")}
