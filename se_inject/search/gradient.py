"""Where a gate could not learn: sites whose value is made without gradients, or which the outputs do not depend on.

Each site's value is multiplied by a one that requires a gradient, in a forward of the skeleton. The autograd graph of
the outputs leads back to every one of them that a gate in its place would learn at, whether or not parameters are
frozen by hand (``requires_grad=False``).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx, nn
from torch.autograd.function import BackwardCFunction

from se_inject.inputs import tensors_in
from se_inject.random_state import seed_all, undisturbed
from se_inject.search.ops import result
from se_inject.search.sites import Found
from se_inject.trace.calls import Call, Trace, graphs_of, place, record_of
from se_inject.trace.recorder import record
from se_inject.types import Reason, Site

ATTEMPTS = 4  # forwards that must agree: a random one may pass a value by
WITHOUT = Reason("no-grad", "it is computed without gradients (no_grad, inference_mode): a gate here would not learn")
UNUSED = Reason(
    "no-gradient", "no gradient leads from the outputs to it (detached, or not used): a gate here would not learn"
)
UNTOLD = Reason(
    "untold-gradient", "in eval mode no gradient leads to it, and train mode does not run without more inputs"
)


@dataclass
class Marks:
    """The values that are marked in one forward, by their place, and what was found out about each."""

    places: set[tuple[Any, ...]]
    probes: dict[tuple[Any, ...], list[torch.Tensor]] = field(default_factory=dict)
    without: set[tuple[Any, ...]] = field(default_factory=set)  # made where gradients are off
    reached: set[tuple[Any, ...]] = field(default_factory=set)

    def __call__(self, call: Call, node: fx.Node, value: torch.Tensor) -> torch.Tensor:
        key = place(call, node)
        if key not in self.places or not value.is_floating_point():
            return value
        if not torch.is_grad_enabled():
            # What an autograd.Function runs (a checkpoint, a reversible block), it differentiates by itself.
            (self.reached if _in_function() else self.without).add(key)
            return value
        probe = torch.ones((), dtype=value.dtype, device=value.device, requires_grad=True)
        self.probes.setdefault(key, []).append(probe)
        return value * probe

    def follow(self, output: Any) -> None:
        """Walk from the outputs back to the probes."""
        tensors = [t for t in tensors_in(output) if t.is_floating_point() or t.is_complex()]
        if not tensors:  # what is returned is not known: nothing can be said
            self.probes.clear()
        outputs = [t for t in tensors if t.requires_grad]
        found, by_hand = _leaves(outputs)
        wanted = [probe for probes in self.probes.values() for probe in probes if id(probe) in found]
        if by_hand and wanted:  # one written by hand may return None for its input
            try:
                ones = [torch.ones_like(t) for t in outputs]
                gradients = torch.autograd.grad(outputs, wanted, ones, allow_unused=True)
                found = {id(p) for p, g in zip(wanted, gradients, strict=True) if g is not None}
            except Exception:  # no such kernel for meta tensors, or a checkpoint: the graph alone tells
                pass
        self.reached |= {key for key, probes in self.probes.items() if any(id(p) in found for p in probes)}


def learnable(trace: Trace, found: Found) -> Found:
    """``found``, with ``no_gradient`` on every site where a gate could not learn in train mode; where the model does
    not run in train mode, with a note on those that get no gradient in eval mode, which may be otherwise."""
    places = {site.id: _places(found, site) for site in found.sites if not site.obstacle}
    every = {key for keys in places.values() for key in keys}
    if not every:
        return found
    marks = _marked(trace, every, True)
    training = marks is not None
    if marks is None and trace.names.meta:
        marks = _marked(trace, every, False)
        training = False
    if marks is None:
        return found
    sites = []
    for site in found.sites:
        reason = _reason(marks, places.get(site.id, set()))
        if reason and training:
            site = replace(site, no_gradient=reason)
        elif reason and marks.reached:
            site = replace(site, note=Reason(UNTOLD.code, f"{site.note}; {UNTOLD}") if site.note else UNTOLD)
        sites.append(site)
    return Found(tuple(sites), found.places)


def _reason(marks: Marks, keys: set[tuple[Any, ...]]) -> Reason | None:
    """Why none of the places gets a gradient; None where one does, or none was met (in this mode)."""
    if keys & marks.reached:
        return None
    return WITHOUT if keys & marks.without else UNUSED if keys & marks.probes.keys() else None


def _places(found: Found, site: Site) -> set[tuple[Any, ...]]:
    """The places whose values a block at the site would make, or be the first to use."""
    keys = set()
    for call, node, user in found.places[site.id]:
        inner = record_of(node).call
        if user is not None:
            node = user
        elif site.carrier is not None and site.carrier.kind in ("wrap_output", "append") and inner is not None:
            made = result(inner)  # the block runs inside, where gradients may be off
            call, node = (inner, made) if made is not None and made.op.startswith("call") else (call, node)
        keys |= {place(call, n) for n in ([node] if node.op.startswith("call") else node.users)}
    return keys


def _marked(trace: Trace, places: set[tuple[Any, ...]], training: bool) -> Marks | None:
    """What forwards with marks at these places say; None when the model does not run so."""
    marks = None
    for attempt in range(ATTEMPTS if training else 1):
        again = Marks(places)
        try:
            with _mode(trace.root, training), undisturbed():
                seed_all(attempt)
                again.follow(record(trace.names, trace.root, trace.inputs, mark=again)[0].output)
        except Exception:  # needs targets, or writes what gradients forbid to write
            again.probes.clear()
            return marks or (again if again.without else None)
        again.reached |= marks.reached if marks is not None else set()
        marks = again
        if marks.reached >= {*marks.without, *marks.probes}:
            break
    return marks


@contextmanager
def _mode(root: nn.Module, training: bool) -> Iterator[None]:
    modes = [(module, module.training) for module in root.modules()]
    try:
        root.train(training)
        yield
    finally:
        for module, mode in modes:
            if len(graphs_of(module)) > 1 and module.training is not mode:
                module.train(mode)  # which changes its graph; what is inside comes after it
            module.training = mode


def _in_function() -> bool:
    """Whether the forward of a ``torch.autograd.Function`` is running: its first argument is the context."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        names = frame.f_code.co_varnames
        if names and isinstance(frame.f_locals.get(names[0]), BackwardCFunction):
            return True
        frame = frame.f_back
    return False


def _leaves(outputs: list[torch.Tensor]) -> tuple[set[int], bool]:
    """The ids of the leaf tensors behind these outputs, and whether a function written by hand is on the way."""
    todo: list[Any] = [t.grad_fn for t in outputs]
    seen, found, by_hand = set(todo), set(), False
    while todo:
        node = todo.pop()
        if (variable := getattr(node, "variable", None)) is not None:
            found.add(id(variable))
        by_hand = by_hand or isinstance(node, BackwardCFunction)
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                todo.append(following)
    return found, by_hand
