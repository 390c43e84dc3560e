"""The graphs as specification: what the rewritten modules must look like when they are recorded again.

Two graphs are equal when they compute the same from the same children, in whatever order independent steps stand and
however many ``Identity`` modules lie between.
"""

from __future__ import annotations

import hashlib
from typing import Any

from torch import fx, nn

from se_inject.search.ops import module_of, name_of, op, result
from se_inject.search.sites import Found
from se_inject.trace.calls import Call, Trace
from se_inject.types import Decision

# (value, the one user it is for or None) -> names of the children between them, the first innermost
Insertions = dict[tuple[fx.Node, fx.Node | None], list[str]]


def differences(before: Trace, found: Found, decisions: tuple[Decision, ...], after: Trace) -> list[str]:
    """Paths of the modules whose recorded graph is not the planned one; empty when all are as planned."""
    inserted: dict[str, Insertions] = {}  # module path -> what its graphs must gain
    wrapped: dict[str, list[str]] = {}  # module path -> children behind its result
    taken: dict[str, list[str]] = {}  # module path -> children behind its first argument
    for decision in decisions:
        carrier = decision.site.carrier
        assert carrier is not None
        if carrier.kind == "wrap_input":
            taken.setdefault(carrier.path, []).append(carrier.name)
            continue
        if carrier.kind in ("append", "wrap_output"):
            wrapped.setdefault(carrier.path, []).append(carrier.name)
            continue
        for call, node, user in found.places[decision.site.id]:
            inserted.setdefault(call.path, {}).setdefault((node, user), []).append(carrier.name)
    touched = {*inserted, *wrapped, *taken}
    old, new = _by_path(before, touched), _by_path(after, touched)
    wrong = []
    for path in sorted(touched):
        if path not in old:  # one of torch.nn's own classes: a single node before, looked into now
            names = wrapped.get(path, []), taken.get(path, [])
            ok = bool(new.get(path)) and all(_wraps(call, names[0]) and _takes(call, names[1]) for call in new[path])
        else:
            want = [
                canonical(call, _with_taken(call, inserted.get(path, {}), taken.get(path, [])), wrapped.get(path, []))
                for call in old[path]
            ]
            ok = want == [canonical(call, {}, []) for call in new.get(path, [])]
        if not ok:
            wrong.append(path)
    return wrong


def _by_path(trace: Trace, paths: set[str]) -> dict[str, list[Call]]:
    calls: dict[str, list[Call]] = {}
    for call in trace.calls:
        if call.path in paths:
            calls.setdefault(call.path, []).append(call)
    return calls


def _wraps(call: Call, names: list[str]) -> bool:
    """Whether the call's result comes out of these children, the last one outermost."""
    node = result(call)
    for name in reversed(names):
        if node is None or node.op != "call_module" or node.target != name:
            return False
        node = node.all_input_nodes[0]
    return True


def _takes(call: Call, names: list[str]) -> bool:
    """Whether the call's first argument goes into these children, the first one innermost, and nowhere else."""
    node: fx.Node | None = _argument(call)
    for name in names:
        users = list(node.users) if node is not None else []
        if len(users) != 1 or users[0].op != "call_module" or users[0].target != name:
            return False
        node = users[0]
    return True


def _argument(call: Call) -> fx.Node | None:
    return next((node for node in call.graph.nodes if node.op == "placeholder"), None)


def _with_taken(call: Call, inserted: Insertions, names: list[str]) -> Insertions:
    first = _argument(call)
    return {**inserted, (first, None): names} if names and first is not None else inserted


def _nothing(node: fx.Node) -> bool:
    """An ``Identity``, or ``x + 0``: before it or behind it is the same place."""
    if node.op == "call_module":
        return type(module_of(node)) is nn.Identity
    return node.op in ("call_function", "call_method") and name_of(node) == "add" and op(node).kind == "pass"


def canonical(call: Call, inserted: Insertions, wrapped: list[str]) -> list[str]:
    """A hash for each node, made from what it does and from the hashes of its inputs; sorted."""
    known: dict[fx.Node, str] = {}
    hashes: list[str] = []

    def put(*parts: Any) -> str:
        digest = hashlib.sha256(repr(parts).encode()).hexdigest()
        hashes.append(digest)
        return digest

    def behind(value: str, names: list[str]) -> str:
        for name in names:
            value = put("call_module", name, 0, (value,), ())
        return value

    def argument(value: Any, user: fx.Node) -> Any:
        if isinstance(value, fx.Node):
            return behind(known[value], inserted.get((value, user), []))
        if isinstance(value, list | tuple):
            return tuple(argument(item, user) for item in value)
        if isinstance(value, dict):
            return tuple(sorted((key, argument(item, user)) for key, item in value.items()))
        if isinstance(value, slice):
            return "slice", *(argument(part, user) for part in (value.start, value.stop, value.step))
        return repr(value)

    last = result(call)
    for node in call.graph.nodes:
        names = inserted.get((node, None), [])
        if node is last:
            names = [*names, *wrapped]
        if _nothing(node):
            known[node] = known[node.all_input_nodes[0]]
        else:
            target = name_of(node) if node.op in ("call_function", "call_method") else str(node.target)
            target = "" if node.op in ("placeholder", "output") else target
            place = len(known) if node.op == "placeholder" else 0
            known[node] = put(node.op, target, place, argument(node.args, node), argument(node.kwargs, node))
        known[node] = behind(known[node], names)
    return sorted(hashes)
