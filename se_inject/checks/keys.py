"""Every original tensor has its value, and the new ones are those that were planned."""

from __future__ import annotations

from torch import nn

from se_inject.blocks.make import make_block
from se_inject.checks.reference import digest, digests
from se_inject.checks.spliced import Spliced
from se_inject.types import Check, Plan


def check(spliced: Spliced) -> tuple[Check, ...]:
    return (keys(spliced.reference.tensors, spliced.model, spliced.plan),) if spliced.reference is not None else ()


def keys(before: dict[str, str], model: nn.Module, plan: Plan) -> Check:
    """Every original key (``before``: name -> hash) has the identical value; new keys are exactly the planned."""
    after = digests(model)
    planned = _aliases(model, planned_keys(plan))
    doubled = _aliases(model, absorbed(plan))
    state = model.state_dict()
    halves = sorted(k for k in doubled if k in after and digest(state[k] * 0.5) != before.get(k))
    lost = sorted((set(before) | planned) - set(after))
    changed = sorted(k for k in before if k in after and before[k] != after[k] and k not in doubled)
    foreign = sorted(set(after) - set(before) - planned)
    for what, found in (("lost", lost), ("changed", changed), ("not doubled", halves), ("not planned", foreign)):
        if found:
            return Check("keys", False, f"{len(found)} keys {what}, the first is {found[0]}", "keys")
    tail = f", {len(doubled)} of absorbed norms doubled" if doubled else ""
    new = len(after) - len(before)
    return Check("keys", True, f"{len(before) - len(doubled)} tensors identical{tail}, {new} new ones all planned")


def _aliases(model: nn.Module, names: set[str]) -> set[str]:
    """``names``, and those under which a shared module holds the same tensors again."""
    state = model.state_dict(keep_vars=True)
    same = {id(state[name]) for name in names if name in state}
    return names | {name for name, tensor in state.items() if id(tensor) in same}


def absorbed(plan: Plan) -> set[str]:
    """The tensors of the original that the plan doubles."""
    return {f"{d.site.absorb}.{n}" for d in plan.insertions if d.init == "absorb" for n in ("weight", "bias")}


def planned_keys(plan: Plan) -> set[str]:
    """The keys that the plan's blocks add to a state dict."""
    kinds: dict[tuple[str, str], list[str]] = {}
    found: set[str] = set()
    for decision in plan.insertions:
        kind = decision.block, repr(decision.kwargs)
        if kind not in kinds:
            kinds[kind] = list(make_block(decision, plan.seed, None).state_dict())
        found.update(f"{decision.key}.{name}" for name in kinds[kind])
    return found
