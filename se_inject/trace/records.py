"""What is known of one node of a recorded graph, beside the operator and the operands that fx keeps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn

from se_inject.trace.calls import Call
from se_inject.trace.source import CodeSpan

KEY = "se_inject"  # the one key of ``fx.Node.meta`` that is ours


@dataclass(slots=True)
class NodeRecord:
    shape: tuple[int, ...] = ()
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
