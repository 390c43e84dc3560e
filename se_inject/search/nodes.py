"""What one node of a recorded graph does, not looked into: its operator, what it takes, and its shape."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import fx, nn
from torch.nn.modules import conv

from se_inject.blocks import is_block
from se_inject.search.words import FILES, FUNCTIONS, MODULES, Op
from se_inject.trace.calls import Call
from se_inject.trace.records import record_of

T = TypeVar("T")


def per_node(fn: Callable[[fx.Node], T]) -> Callable[[fx.Node], T]:
    """Compute once for each node, and keep the answer in the node's record."""

    @functools.wraps(fn)
    def cached(node: fx.Node) -> T:
        answers = record_of(node).answers
        if cached not in answers:
            answers[cached] = fn(node)
        return answers[cached]

    return cached


def module_of(node: fx.Node) -> nn.Module:
    """The module that a ``call_module`` node runs."""
    module = record_of(node).module
    assert module is not None
    return module


def label(node: fx.Node) -> str:
    """The path of the module that the node runs, or the node's own name."""
    return record_of(node).path or node.name


def name_of(node: fx.Node) -> str:
    """The bare name of a function or method: ``aten.add_.Tensor`` and ``Tensor.add_`` are both ``add``."""
    target = node.target
    name = target if isinstance(target, str) else getattr(target, "_opname", "") or getattr(target, "__name__", "")
    if isinstance(target, torch._ops.OpOverload):
        name = target.overloadpacket.__name__
    return name.strip("_") if name.startswith("__") else name.removesuffix("_")


def constant(node: fx.Node) -> bool:
    """Made from parameters, buffers and numbers alone."""
    if record_of(node).constant is None:  # the whole graph in order: a chain may be longer than Python's stack
        for n in node.graph.nodes:
            made = n.op not in ("placeholder", "output")
            record_of(n).constant = made and all(record_of(i).constant for i in n.all_input_nodes)
    return bool(record_of(node).constant)


@per_node
def data(node: fx.Node) -> tuple[fx.Node, ...]:
    """The inputs that carry data of this forward, each once."""
    return tuple(n for n in node.all_input_nodes if not constant(n))


def shape(node: fx.Node) -> tuple[int, ...]:
    return record_of(node).shape


def result(call: Call) -> fx.Node | None:
    """The node that the call returns, if it returns one tensor."""
    output = call.graph.output_node().args[0]
    while isinstance(output, tuple) and len(output) == 1:
        output = output[0]
    return output if isinstance(output, fx.Node) else None


@per_node
def op(node: fx.Node) -> Op:
    """The operator of a node that is not looked into."""
    if node.op == "call_module":
        module, path = module_of(node), record_of(node).path
        name = type(module).__name__
        if is_block(module):
            return Op("gate", name, path)
        if isinstance(module, conv._ConvNd):
            groups, kernel = module.groups, tuple(module.kernel_size)
            return Op("conv", name, path, kernel, module.in_channels, module.out_channels, groups)
        for classes, kind in MODULES:
            if isinstance(module, classes):
                return Op(kind, name, path)
        for base in type(module).__mro__:
            if base.__module__ in FILES and "Softmax" not in base.__name__:
                return Op(FILES[base.__module__], base.__name__, path)
        return Op("block", name, path)
    if node.op in ("placeholder", "get_attr", "output"):
        return Op(node.op, node.name)
    name = name_of(node)
    kind = FUNCTIONS.get(name, "other")
    if name == "getattr":
        kind = {"T": "permute", "H": "permute", "mT": "permute", "mH": "permute", "data": "pass"}.get(
            str(node.args[1]), kind
        )
    constants = [n for n in node.all_input_nodes if constant(n)]
    path = next((_owner(n) for n in constants if _owner(n)), "")
    if kind == "conv":
        return _convolution(node, name, path, constants)
    if kind in ("add", "mul", "div") and len(data(node)) < 2:
        kind = "bias" if kind == "add" else "scale"
        if kind == "bias" and any(type(a) is int and a == 0 for a in node.args):  # sum([x, y]) begins with 0 + x
            kind = "pass"
    return Op(kind, name, path)


def _owner(node: fx.Node) -> str:
    """Path of the module that holds the parameter behind a constant."""
    while node.op != "get_attr" and node.all_input_nodes:
        node = node.all_input_nodes[0]
    target = str(node.target) if node.op == "get_attr" else ""
    return target.rpartition(".")[0]


def _convolution(node: fx.Node, name: str, path: str, constants: list[fx.Node]) -> Op:
    weight = constants[0] if constants else None
    if weight is None:
        return Op("conv", name, path)
    base = weight
    while base.op != "get_attr" and base.all_input_nodes:
        base = base.all_input_nodes[0]
    if base.op == "get_attr" and not record_of(base).parameter:
        return Op("blur", name)  # a fixed filter: anti-aliasing, not a layer
    out, into, *kernel = shape(weight)
    source = data(node)
    channels = shape(source[0])[1] if source and len(shape(source[0])) > 1 else into
    if "transpose" in name:  # the weight of a transposed convolution is (in, out / groups, ...)
        return Op("conv", name, path, tuple(kernel), channels, shape(node)[1], max(1, shape(node)[1] // max(into, 1)))
    return Op("conv", name, path, tuple(kernel), channels, out, max(1, channels // max(into, 1)))
