"""What a trace is made of: the calls of modules, each with its own small graph, what is known of each node of it, and
where tensors and modules sit."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils import parametrize

from se_inject.guard import wrapped_in
from se_inject.inputs import Inputs
from se_inject.trace.skeleton import tensors
from se_inject.trace.source import CodeSpan
from se_inject.types import Reason

KEY = "se_inject"  # the one key of ``fx.Node.meta`` that is ours
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@dataclass(eq=False)
class Call:
    """One call of one module: its graph, and what is needed to run it again alone."""

    path: str
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    parent: Call | None
    order: int
    graph: fx.Graph = field(default_factory=fx.Graph)
    nodes: dict[int, tuple[torch.Tensor, fx.Node]] = field(default_factory=dict)
    children: dict[Call, fx.Node] = field(default_factory=dict)
    output: Any = None
    hidden: list[fx.Node] = field(default_factory=list)  # of the parent's graph: what came in inside an object
    node: fx.Node | None = None  # this call, in the parent's graph

    def ancestors(self) -> Iterator[Call]:
        call: Call | None = self
        while call is not None:
            yield call
            call = call.parent


@dataclass(slots=True)
class NodeRecord:
    """What is known of a node, beside the operator and the operands that fx keeps."""

    shape: tuple[int, ...] = ()
    dtype: torch.dtype | None = None
    order: int | None = None  # in the order of execution of the whole forward; None for the arguments of a call
    span: CodeSpan | None = None  # the expression that made it
    fx_node: str = ""  # the node of the interpreted GraphModule that made it
    module: nn.Module | None = None  # call_module: what runs
    path: str = ""  # call_module: its path from the root
    call: Call | None = None  # call_module: its own graph, when it was looked into
    identity: bool = False  # it hands its argument on, unchanged
    outer: fx.Node | None = None  # placeholder: what it is in the caller's graph
    alone: bool = False  # placeholder: an argument by itself, not in a list
    parameter: bool = False  # get_attr: a parameter, and no buffer or constant
    constant: bool | None = None  # made from parameters, buffers and numbers alone; None until the search has asked
    answers: dict[Callable[[fx.Node], Any], Any] = field(default_factory=dict)  # what the search computed once


def record_of(node: fx.Node) -> NodeRecord:
    """The record of a node; a node that was not recorded gets an empty one."""
    record = node.meta.get(KEY)
    if record is None:
        record = node.meta[KEY] = NodeRecord()
    return record


def place(call: Call, node: fx.Node) -> tuple[Any, ...]:
    """What names a value in every forward: whose code makes it, by which expression, out of what it calls."""
    record = record_of(node)
    return call.path, record.span, node.target, record.fx_node


@dataclass
class Trace:
    """All calls of one forward, in the order in which they began."""

    root: nn.Module  # the skeleton
    inputs: Inputs
    calls: list[Call]
    notes: list[Reason] = field(default_factory=list)

    @functools.cached_property
    def names(self) -> Names:
        return Names(self.root)


class Names:
    """Where each module and each tensor of a model sits."""

    def __init__(self, root: nn.Module, *, meta: bool | None = None) -> None:
        self.meta = any(t.is_meta for t in tensors(root)) if meta is None else meta
        self.paths = {id(module): path for path, module in root.named_modules()}
        self.constants: dict[int, str] = {}
        for path, module in root.named_modules():
            for group in (module._parameters, module._buffers, module.__dict__):
                for name, value in group.items():
                    if isinstance(value, torch.Tensor):
                        self.constants.setdefault(id(value), f"{path}.{name}" if path else name)


def is_leaf(module: nn.Module) -> bool:
    """torch.nn's own modules are single nodes; containers and everybody else's classes are looked into."""
    if isinstance(module, (*CONTAINERS, fx.GraphModule)) or wrapped_in(module):
        return False
    cls = type(module)
    if parametrize.is_parametrized(module):  # its class was made by torch; what it was is one up
        cls = cls.__mro__[1]
    return cls.__module__.startswith("torch.")


def graphs_of(module: nn.Module) -> list[fx.Graph]:
    """The graph of a ``GraphModule``, or both of one with a graph for each mode (torchvision's feature extractors)."""
    if not isinstance(module, fx.GraphModule):
        return []
    both = [module.__dict__.get(name) for name in ("train_graph", "eval_graph")]
    return [graph for graph in both if isinstance(graph, fx.Graph)] or [module.graph]
