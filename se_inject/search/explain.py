"""What was seen in one module, and what was decided there: its recorded graph, its joins with their forks and
branches, and every site with the rule that took or refused it. A pure function of trace, sites and decisions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import fx

from se_inject.errors import RulesError, closest
from se_inject.search.candidates import Flow
from se_inject.search.chains import chain
from se_inject.search.joins import Branch, Join
from se_inject.search.ops import module_of, name_of, result, shape
from se_inject.search.sites import Found
from se_inject.trace.calls import Call, Trace, record_of
from se_inject.types import Decision

WEIGHTS = {0: "no layer", 1: "linear", 2: "deep"}


@dataclass(frozen=True)
class Step:
    """One node: what it runs, on what, and the shape of what comes out."""

    name: str
    runs: str
    inputs: tuple[str, ...]
    shape: tuple[int, ...]
    means: str  # in the words of the search: "conv norm act"


@dataclass(frozen=True)
class Side:
    """One operand of a join: its part (``branch``, ``shortcut``), and the nodes from the fork to it."""

    part: str
    weight: str
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class Meeting:
    kind: str  # residual join, sum, concatenation
    node: str
    fork: str  # empty: the operands come from different arguments
    sides: tuple[Side, ...]


@dataclass(frozen=True)
class Explanation:
    path: str
    cls: str
    calls: int
    steps: tuple[Step, ...]
    meetings: tuple[Meeting, ...]
    decisions: tuple[Decision, ...]


def explain(trace: Trace, found: Found, decisions: Iterable[Decision], path: str) -> Explanation:
    """The module at ``path`` (empty or ``.``: the model itself), by the graph of its first call.

    Raises ``RulesError`` when no module of that path has a graph of its own, with the nearest that have.
    """
    path = "" if path == "." else path
    calls = [call for call in trace.calls if call.path == path]
    if not calls:
        raise RulesError(_missing(trace, path))
    call = calls[0]
    flow = Flow(trace.calls)
    kinds = (("residual join", flow.joins), ("sum", flow.sums), ("concatenation", flow.concats))
    meetings = [_meeting(kind, join) for kind, joins in kinds for join in joins[call]]
    here = [d for d in decisions if _touches(found, d, path)]
    steps = tuple(_step(node) for node in call.graph.nodes if node.op != "output")
    cls = type(call.module)
    return Explanation(
        path,
        f"{cls.__module__}.{cls.__qualname__}",
        len(calls),
        (*steps, _returned(call)),
        tuple(meetings),
        tuple(here),
    )


def _touches(found: Found, decision: Decision, path: str) -> bool:
    """The site is a value in this module's graph, or the module carries its block."""
    carrier = decision.site.carrier
    places = found.places.get(decision.site.id, ())
    return any(call.path == path for call, _, _ in places) or (carrier is not None and carrier.path == path)


def _missing(trace: Trace, path: str) -> str:
    modules = dict(trace.root.named_modules())
    known = {call.path for call in trace.calls if call.path}
    if path not in modules:
        return f"no module is called {path!r}.{closest(path, known)}"
    name, parent = type(modules[path]).__name__, path.rpartition(".")[0]
    if any(record_of(node).path == path for call in trace.calls for node in call.graph.nodes):
        return f"{path} is one {name} of torch.nn, a single node: explain its parent, {parent or '.'}."
    return f"{path} ({name}) does not run in this forward.{closest(path, known)}"


def _step(node: fx.Node) -> Step:
    words = "" if node.op in ("placeholder", "get_attr") else " ".join(o.kind for o in chain(node))
    return Step(node.name, _runs(node), tuple(n.name for n in node.all_input_nodes), shape(node), words)


def _runs(node: fx.Node) -> str:
    if node.op == "call_module":
        return f"{node.target} ({type(module_of(node)).__name__})"
    if node.op == "placeholder":
        return "argument"
    return str(node.target) if node.op == "get_attr" else name_of(node)


def _returned(call: Call) -> Step:
    output = call.graph.output_node()
    only = result(call)
    return Step("output", "return", tuple(n.name for n in output.all_input_nodes), shape(only) if only else (), "")


def _meeting(kind: str, join: Join) -> Meeting:
    return Meeting(
        kind, join.node.name, join.fork.name if join.fork is not None else "",
        tuple(_side(kind, join, branch) for branch in join.branches),
    )  # fmt: skip


def _side(kind: str, join: Join, branch: Branch) -> Side:
    residual = kind == "residual join"
    part = "shortcut" if residual and branch not in join.residual else "branch"
    return Side(part, WEIGHTS.get(branch.weight, "deep"), tuple(node.name for node in sorted(branch.nodes)))
