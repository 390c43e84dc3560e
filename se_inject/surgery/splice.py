"""(model, plan) -> model: the only file that changes a model. Does what the plan says, and nothing else."""

from __future__ import annotations

from typing import Any

from torch import fx, nn
from torch.fx.graph_module import _USER_PRESERVED_ATTRIBUTES_KEY

from se_inject.blocks.make import make_block
from se_inject.copying import independent_copy
from se_inject.errors import PlanMismatchError, SpliceError
from se_inject.object_graph import held
from se_inject.surgery.bound_methods import set_classes
from se_inject.surgery.classes import generated, is_generated
from se_inject.surgery.edit import Edit, edits, is_name
from se_inject.surgery.fingerprint import fingerprint
from se_inject.trace.calls import graphs_of
from se_inject.types import REWRITTEN, Decision, Plan

RECORD = "_se_inject"  # attribute of the root: what was done, so that `remove` can undo it


def apply(model: nn.Module, plan: Plan, *, inplace: bool = False) -> nn.Module:
    """The model with every planned block in it; a deep copy unless ``inplace``.

    Raises ``PlanMismatchError`` when the plan was made for another model; then nothing was changed.
    """
    require_fingerprint(model, plan)
    classes = _classes(model, plan)  # may refuse: before anything changes
    if not inplace:
        model = _copy(model)
    before = {path: type(_module(model, path)) for path in classes}
    records: list[dict[str, Any]] = []
    try:
        for decision in plan.insertions:
            records.append(_insert(model, decision, plan.seed))
        set_classes(model, classes)
        for path in dict.fromkeys(_carrier(d).path for d in plan.insertions if _carrier(d).kind == "graph"):
            _splice_graph(_module(model, path), [d for d in plan.insertions if _carrier(d).path == path])
    except BaseException:
        set_classes(model, before)
        for record in reversed(records):
            _take_out(model, record)
        raise
    earlier = model.__dict__.get(RECORD, ())
    run = earlier[-1]["run"] + 1 if earlier else 0
    if records:  # a plan without insertions leaves the model as it is
        _remember(model, (*earlier, *({**record, "run": run, "plan": plan} for record in records)))
    return model


def _copy(model: nn.Module) -> nn.Module:
    """A deep copy; a ``GraphModule`` copies what its graph names, and forgets the record.

    What a forward with gradients left in an attribute (RAFT's pyramid) has no deep copy: it goes without its history.
    """
    old = held(model)
    memo = {key: tensor.detach().clone() for key, tensor in old.tensors.items() if tensor.grad_fn is not None}
    new: nn.Module = independent_copy(model, memo, old)
    if RECORD in model.__dict__:
        _remember(new, model.__dict__[RECORD])
    return new


def _remember(model: nn.Module, records: tuple[dict[str, Any], ...]) -> None:
    model.__dict__[RECORD] = records
    if isinstance(model, fx.GraphModule):  # its own deep copy keeps what is named here
        model.meta.setdefault(_USER_PRESERVED_ATTRIBUTES_KEY, {})[RECORD] = records


def _forget(model: nn.Module) -> None:
    model.__dict__.pop(RECORD, None)
    if isinstance(model, fx.GraphModule):
        kept = model.meta.get(_USER_PRESERVED_ATTRIBUTES_KEY, {})
        kept.pop(RECORD, None)
        if not kept:
            model.meta.pop(_USER_PRESERVED_ATTRIBUTES_KEY, None)


def require_fingerprint(model: nn.Module, plan: Plan) -> None:
    """Raise ``PlanMismatchError`` when the plan was made for another model."""
    found = fingerprint(model)
    if found != plan.fingerprint:
        raise PlanMismatchError(
            f"the plan was made for {plan.model} with fingerprint {plan.fingerprint[:12]}; this model has "
            f"{found[:12]}: other classes, keys or shapes. Make the plan again for this model."
        )


def plan_of(model: nn.Module) -> Plan:
    """The plan that put the blocks into ``model``. Raises ``SpliceError`` when there is none, or more than one."""
    records = model.__dict__.get(RECORD, ())
    if not records or records[-1]["run"] > 0:
        found = f"{records[-1]['run'] + 1} insertions, one after the other" if records else "no inserted block"
        raise SpliceError(f"{type(model).__name__} holds {found}; expected the blocks of one plan.")
    plan: Plan = records[0]["plan"]
    return plan


def remove(model: nn.Module, *, inplace: bool = False) -> nn.Module:
    """The model without the blocks that this tool put in: classes, attributes and doubled norms as they were.

    Outputs equal the original's only if the blocks were not trained. Raises ``SpliceError`` when the model holds no
    such block, or a class is not the one that was generated; then nothing was changed.
    """
    records = model.__dict__.get(RECORD, ())
    if not records:
        raise SpliceError(f"{type(model).__name__} holds no block that se_inject inserted: nothing to remove.")
    for record in records:
        _require_ours(model, record)
    if not inplace:
        model = _copy(model)
    while RECORD in model.__dict__:
        remove_last(model)
    return model


def remove_last(model: nn.Module) -> None:
    """Undo the last of several insertions, in place."""
    records = model.__dict__[RECORD]
    last = [record for record in records if record["run"] == records[-1]["run"]]
    for record in reversed(last):
        _take_out(model, record)
    rewritten = dict.fromkeys(record["path"] for record in last if record["kind"] in REWRITTEN)
    classes: dict[str, Any] = {path: type(_module(model, path)) for path in rewritten}
    set_classes(model, {path: cls.se_base for path, cls in classes.items()})
    rest = records[: len(records) - len(last)]
    if rest:
        _remember(model, rest)
    else:
        _forget(model)


def _require_ours(model: nn.Module, record: dict[str, Any]) -> None:
    """Raise ``SpliceError`` unless what ``record`` tells of is still there."""
    try:
        module, parent = model.get_submodule(record["path"]), model.get_submodule(record["parent"])
        norm = model.get_submodule(record["absorb"]) if record["absorb"] else None
    except AttributeError as error:
        raise SpliceError(f"{error}: the model was changed since the insertion.") from error
    if record["kind"] in REWRITTEN and not is_generated(type(module)):
        raise SpliceError(
            f"{record['path']} is a {type(module).__name__}, not the class that was generated for it "
            "(wrapped by FSDP or swapped since?): unwrap it first."
        )
    if parent._modules.get(record["name"]) is None:
        raise SpliceError(f"{record['parent']} has no child {record['name']!r} any more, which was inserted.")
    if norm is not None and not _is_affine(norm):
        raise SpliceError(
            f"{record['absorb']} is a {type(norm).__name__}, not the batch norm that was doubled (fused since?)."
        )


def _is_affine(norm: nn.Module) -> bool:
    batch_norm: bool = isinstance(norm, nn.modules.batchnorm._BatchNorm)
    return batch_norm and norm.weight is not None and norm.bias is not None


def _carrier(decision: Decision) -> Any:
    carrier = decision.site.carrier
    if carrier is None:
        raise PlanMismatchError(f"the plan inserts at {decision.site.id}, but says not how")
    if not is_name(carrier.name.rpartition(".")[2]) and not (carrier.kind == "slot" and carrier.name.isdecimal()):
        raise PlanMismatchError(f"the plan names a new child {carrier.name!r}, which is not a name")
    return carrier


def _module(model: nn.Module, path: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError as error:
        raise PlanMismatchError(f"the model has no module {path!r}, which the plan changes") from error


def _classes(model: nn.Module, plan: Plan) -> dict[str, type]:
    changes: dict[str, tuple[Edit, ...]] = {}
    for decision in plan.insertions:
        carrier = _carrier(decision)
        if carrier.kind in REWRITTEN:
            changes[carrier.path] = (*changes.get(carrier.path, ()), *edits(carrier))
    return {path: generated(type(_module(model, path)), change) for path, change in changes.items()}


def _insert(model: nn.Module, decision: Decision, seed: int) -> dict[str, Any]:
    carrier = _carrier(decision)
    parent_path, _, name = decision.key.rpartition(".")
    parent = _module(model, parent_path)
    norm = _module(model, decision.site.absorb) if decision.init == "absorb" else None
    if norm is not None and not _is_affine(norm):
        raise PlanMismatchError(f"the plan doubles {decision.site.absorb!r}, no batch norm with weight and bias")
    has_weights = any(True for _ in parent.parameters())
    block = make_block(decision, seed, parent if has_weights else model)
    if carrier.kind == "sequential_after" and carrier.node not in parent._modules:
        raise PlanMismatchError(f"{type(parent).__name__} has no child {carrier.node!r}, behind which the plan inserts")
    previous = _clear(parent, name, carrier.kind)
    parent.add_module(name, block)
    if carrier.kind == "sequential_after":
        _move_behind(parent, name, carrier.node)
    if norm is not None:
        _scale(norm, 2.0)
    return {
        "path": carrier.path,
        "parent": parent_path,
        "name": name,
        "kind": carrier.kind,
        "previous": previous,
        "absorb": decision.site.absorb if decision.init == "absorb" else "",
    }


def _clear(parent: nn.Module, name: str, kind: str) -> str:
    """Make room for a child, and say what was there: nothing, a ``None``, or an Identity to be filled."""
    if name in parent.__dict__ and parent.__dict__[name] is None:
        del parent.__dict__[name]
        return "attribute"
    child = parent._modules.get(name)
    if name in parent._modules and child is None:
        return "child"
    if kind == "slot" and type(child) is nn.Identity:
        return "identity"
    if hasattr(parent, name):
        raise PlanMismatchError(f"{type(parent).__name__} already has an attribute {name!r}, which the plan would set")
    return "nothing"


def _move_behind(parent: nn.Module, name: str, before: str) -> None:
    """Give a new child the place behind another one, in the order in which a ``Sequential`` runs them."""
    names = [key for key in parent._modules if key != name]
    for key in names[names.index(before) + 1 :]:
        parent._modules[key] = parent._modules.pop(key)


def _scale(norm: nn.Module, factor: float) -> None:
    """Weight and bias times a power of two: exact. In memory of their own, because theirs may be mapped from a file;
    the parameters stay the same objects, because an optimizer may hold them."""
    for name in ("weight", "bias"):
        parameter = getattr(norm, name)
        parameter.data = parameter.detach() * factor


def _take_out(model: nn.Module, record: dict[str, Any]) -> None:
    """Undo one ``_insert``, and its node in a graph; not the class."""
    parent, name = _module(model, record["parent"]), record["name"]
    if record["previous"] == "child":  # by assignment: the child keeps its place among the others
        parent._modules[name] = None
    elif record["previous"] == "identity":
        parent._modules[name] = nn.Identity().train(parent.training)
    else:
        delattr(parent, name)
    if record["previous"] == "attribute":
        parent.__dict__[name] = None
    if record["absorb"]:
        _scale(_module(model, record["absorb"]), 0.5)
    if record["kind"] == "graph":
        key = f"{record['parent']}.{name}".removeprefix(f"{record['path']}.").strip(".")
        _unsplice_graph(_module(model, record["path"]), key)


def _splice_graph(module: nn.Module, decisions: list[Decision]) -> None:
    """Insert one ``call_module`` behind each planned node; every other user of the value gets the gated one."""
    if not isinstance(module, fx.GraphModule):
        raise PlanMismatchError(f"the plan splices into the graph of a {type(module).__name__}, which has none")
    for graph in graphs_of(module):
        _splice_into(graph, decisions)
        graph.lint()
    module.recompile()


def _splice_into(graph: fx.Graph, decisions: list[Decision]) -> None:
    nodes = {node.name: node for node in graph.nodes}
    for decision in decisions:
        carrier = _carrier(decision)
        node = nodes.get(carrier.node)
        if node is None:
            raise PlanMismatchError(f"the graph has no node {carrier.node!r}, behind which the plan inserts")
        only = nodes.get(carrier.user) if carrier.user is not None else None
        if carrier.user is not None and (only is None or node not in only.all_input_nodes):
            raise PlanMismatchError(f"the graph's node {carrier.user!r} does not use {carrier.node!r}, as planned")
        with graph.inserting_before(only) if only is not None else graph.inserting_after(node):
            new = graph.call_module(carrier.name, (node,))
        if only is not None:
            only.replace_input_with(node, new)
            continue
        node.replace_all_uses_with(new, delete_user_cb=lambda user, new=new: user is not new)
        nodes[carrier.node] = new  # a second insertion at the same place goes behind the first


def _unsplice_graph(module: nn.Module, target: str) -> None:
    if not isinstance(module, fx.GraphModule):  # a plan that said so was refused: there is nothing to undo
        return
    for graph in graphs_of(module):
        for node in list(graph.nodes):
            if node.op == "call_module" and node.target == target:
                node.replace_all_uses_with(node.args[0])
                graph.erase_node(node)
    module.recompile()
