"""Places that exist in one mode only: a forward that asks ``self.training`` is recorded in train mode too."""

from __future__ import annotations

import dis
import functools
from collections.abc import Collection
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from se_inject.inputs import Inputs
from se_inject.random_state import seed_all, undisturbed
from se_inject.search.additions import added
from se_inject.search.ops import data, module_of, op
from se_inject.search.sites import Found, find_sites
from se_inject.trace.calls import Call, Names, Trace, record_of
from se_inject.trace.recorder import record
from se_inject.trace.source import methods
from se_inject.types import Reason, Site

EVAL_ONLY = Reason("eval-mode-only", "it runs in eval mode only: a gate here would not learn")
TRAIN_ONLY = Reason("train-mode-only", "it runs in train mode only")
ATTEMPTS = 8  # forwards in train mode before a place counts as missing there: a random one may pass it by


def train_only(trace: Trace, found: Found, placements: Collection[str]) -> Found:
    """``found`` in view of train mode. A place that both sides of a branch have gets one child for both; a site that
    does not run in train mode has ``no_gradient``; sites of ``placements`` that run only there are added, with that as
    their obstacle."""
    owners = {site.owner for site in found.sites}
    changed: dict[str, Site] = {}
    extra: dict[str, Site] = {}
    same: set[Any] = set()  # kinds of modules that go the same way in both modes: of each, one is recorded
    by_path: dict[str, list[Call]] = {}
    for call in trace.calls:
        by_path.setdefault(call.path, []).append(call)
    for call, *others in by_path.values():
        cls: Any = type(call.module)
        if not (branches_on_training(cls) or (call.path in owners and mentions_training(cls))):
            continue
        in_eval = {place for c in (call, *others) for place in _places(c)}
        kind = (cls, _flags(call.module), frozenset(in_eval))
        if kind in same or (not others and _own_places(trace.names, call) == in_eval):
            continue
        training = _in_training(trace.names, call)
        if training is None:
            continue
        in_training = _places(training[0])
        trained = Trace(trace.root, trace.inputs, training)
        again = find_sites(trained, placements) if in_training - in_eval else Found((), {})
        own = [s for s in found.sites if s.owner == call.path]
        for attempt in range(1, ATTEMPTS):
            if all(_made(site, found) <= in_training for site in own):
                break
            in_training |= _places((_in_training(trace.names, call, seed=attempt) or training)[0])
        missing = [site for site in own if not _made(site, found) <= in_training]
        gated = {place for site in own for place in _made(site, found)}
        new = [
            site
            for site in again.sites
            if site.owner == call.path and not _made(site, again) <= gated
            if not _made(site, again) | defining_span(site, again) <= in_eval
        ]
        pairs = _pairs(missing, [site for site in new if not _made(site, again) & in_eval])
        for site in missing:
            changed[site.id] = pairs.get(site.id) or replace(site, no_gradient=EVAL_ONLY)
        for site in new if len(pairs) < len(new) else ():
            name = site.id if all(site.id != s.id for s in found.sites) else f"{site.id}_train"
            extra.setdefault(name, replace(site, id=name, obstacle=TRAIN_ONLY))
        if not missing and not new:
            same.add(kind)
    sites = [changed.get(site.id, site) for site in found.sites]
    return Found((*sites, *extra.values()), found.places)


def _pairs(missing: list[Site], new: list[Site]) -> dict[str, Site]:
    """The sites of eval mode whose like train mode has on the other side of a branch, with both places: none where
    one of them has no like, for then nothing tells which belong together."""
    if [_like(site) for site in missing] != [_like(site) for site in new]:
        return {}
    pairs = {}
    for site, other in zip(missing, new, strict=True):
        carrier, beyond = site.carrier, other.carrier
        if carrier is None or beyond is None or site.obstacle or other.obstacle or carrier.path != beyond.path:
            return {}
        if carrier.kind == beyond.kind == "source":
            assert beyond.position is not None
            carrier = replace(carrier, others=(*carrier.others, beyond.position))
        elif (carrier.kind, carrier.node, carrier.user) != (beyond.kind, beyond.node, beyond.user):
            return {}
        pairs[site.id] = replace(site, carrier=carrier, note=None)  # no path passes by it any more
    return pairs


def _like(site: Site) -> tuple[Any, ...]:
    return site.placement, site.axis, site.shape, site.calls


def _in_training(
    names: Names, call: Call, within: Collection[nn.Module] = (), seed: int | None = None
) -> list[Call] | None:
    """The calls that the module makes in train mode, itself first; None when it does not run so."""
    modes = [(module, module.training) for module in call.module.modules()]
    try:
        call.module.train()
        with undisturbed():
            if seed is not None:
                seed_all(seed)
            return record(names, call.module, Inputs(call.args, call.kwargs), within)
    except Exception:  # needs targets, or draws on something that the skeleton lacks: said by the output check
        return None
    finally:
        for module, mode in modes:
            module.training = mode


def _own_places(names: Names, call: Call) -> set[Any] | None:
    """The places of the module's own graph in train mode, when its children return what they did in eval mode: most
    modules only hand their mode on, and need no second forward of all that is below them."""
    answers: dict[nn.Module, list[Any]] = {}
    for child in call.children:
        answers.setdefault(child.module, []).append(child.output)
    if any("forward" in module.__dict__ for module in (call.module, *answers)):
        return None
    leaves = {module_of(node) for node in call.graph.nodes if node.op == "call_module"}
    try:
        for module, outputs in answers.items():
            left = iter(outputs)
            module.__dict__["forward"] = lambda *args, left=left, **kwargs: realias(next(left))
        alone = _in_training(names, call, {call.module, *leaves, *answers})
    finally:
        for module in answers:
            del module.__dict__["forward"]
    return _places(alone[0]) if alone is not None else None


def realias(value: Any) -> Any:
    """The same tensors under new names, as another forward would make them."""
    return pytree.tree_map_only(torch.Tensor, lambda t: t.detach(), value)


def _flags(module: nn.Module) -> frozenset[Any]:
    """The plain attributes of a module, by which two of one class may go different ways; of numbers, whether zero."""
    plain = {k: v for k, v in vars(module).items() if isinstance(v, bool | int | float | str | None)}
    return frozenset((k, bool(v) if isinstance(v, int | float) else v) for k, v in plain.items())


def _places(call: Call) -> set[Any]:
    return {(record_of(node).span, node.target) for node in call.graph.nodes if node.op.startswith("call")}


def _made(site: Site, found: Found) -> set[Any]:
    """The expressions around which a block at the site would stand."""
    nodes = [user or node for _, node, user in found.places[site.id]]
    return {(record_of(node).span, node.target) for node in nodes if node.op.startswith("call")}


def defining_span(site: Site, found: Found) -> set[Any]:
    """The expression that makes a site what it is: its value's, or for the end of a branch that of the addition."""
    node: fx.Node = found.places[site.id][0][1]
    todo, seen = [node], {node}
    while site.placement == "standard" and todo:
        current = todo.pop(0)
        if current.op.startswith("call") and (added(current) or (op(current).kind == "add" and len(data(current)) > 1)):
            return {(record_of(current).span, current.target)}
        new = [user for user in current.users if user not in seen]
        seen.update(new)
        todo += new
    return {(record_of(node).span, node.target)}


@functools.cache
def mentions_training(cls: type) -> bool:
    return any("training" in code.co_names for code in methods(cls))


@functools.cache
def branches_on_training(cls: type) -> bool:
    """Whether a method goes one way or the other by ``self.training``, and does not merely hand it on."""
    for code in methods(cls):
        if "training" not in code.co_names:
            continue
        for step, following in pairwise(dis.get_instructions(code)):
            if step.opname == "LOAD_ATTR" and step.argval == "training" and "JUMP" in following.opname:
                return True
    return False
