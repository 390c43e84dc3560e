"""What a node of a recorded graph does, in the few words that the search for sites needs.

``chain(node)`` reads a node backwards as operators (convolution, norm, activation, gate, ...), looking into children
that are a plain chain themselves. One table for functions and one for modules say which word applies; nothing here
knows the class or attribute names of a model library.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import fx, nn
from torch.nn.modules import activation, conv, dropout, padding, pooling

from se_inject.blocks import is_block
from se_inject.search.trace import Call

T = TypeVar("T")

# Functions and tensor methods by name; a trailing underscore (in place) is dropped before the look-up.
FUNCTIONS: dict[str, str] = {
    name: kind
    for kind, names in {
        "conv": "conv1d conv2d conv3d convolution deform_conv2d conv_transpose1d conv_transpose2d conv_transpose3d",
        "linear": "linear addmm multi_head_attention_forward scaled_dot_product_attention",
        "norm": "batch_norm layer_norm group_norm instance_norm rms_norm local_response_norm native_batch_norm "
        "_native_batch_norm_legit _native_batch_norm_legit_no_training native_layer_norm native_group_norm",
        "act": "relu relu6 silu gelu sigmoid hardswish hardsigmoid hardtanh tanh leaky_relu elu selu celu softplus "
        "mish prelu rrelu clamp clamp_min clamp_max softsign logsigmoid threshold",
        "pass": "dropout dropout1d dropout2d dropout3d alpha_dropout feature_dropout native_dropout contiguous clone "
        "to _to_copy float half bfloat16 double type type_as detach alias lift_fresh_copy",
        "pool": "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d "
        "adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d "
        "lp_pool1d lp_pool2d max_pool2d_with_indices _adaptive_avg_pool2d",
        "resample": "interpolate upsample upsample_nearest2d upsample_bilinear2d grid_sample pixel_shuffle "
        "pixel_unshuffle",
        "add": "add",
        "mul": "mul multiply",
        "div": "div true_divide",
        "cat": "cat concat concatenate",
        "pad": "pad constant_pad_nd",
        "permute": "permute transpose swapaxes movedim t",
        "slice": "getitem chunk split split_with_sizes narrow unbind tensor_split select",
        "expand": "expand expand_as broadcast_to unsqueeze squeeze",
        "reshape": "view reshape flatten unflatten",
    }.items()
    for name in names.split()
}

MODULES: tuple[tuple[Any, str], ...] = (
    (conv._ConvNd, "conv"),
    ((nn.Linear, nn.Bilinear, nn.RNNBase, nn.MultiheadAttention, nn.Transformer), "linear"),
    ((nn.TransformerEncoderLayer, nn.TransformerDecoderLayer, nn.TransformerEncoder), "linear"),
    ((nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.LocalResponseNorm, nn.RMSNorm), "norm"),
    ((nn.Identity, dropout._DropoutNd), "pass"),
    ((nn.Upsample, nn.PixelShuffle, nn.PixelUnshuffle), "resample"),
    ((nn.Flatten, nn.Unflatten), "reshape"),
)
# Whole files of torch.nn, where every class has the same word.
FILES = {activation.__name__: "act", pooling.__name__: "pool", padding.__name__: "pad"}

SIGMOIDS = {"sigmoid", "hardsigmoid", "Sigmoid", "Hardsigmoid"}
REDUCTIONS = {"mean", "sum", "amax", "max", "var", "std", "var_mean", "std_mean", "norm", "logsumexp"}
# Norms over the last axes; all others have the channels on axis 1.
LAST_AXES = {"LayerNorm", "layer_norm", "native_layer_norm", "RMSNorm", "rms_norm"}
# What multiplies values with each other: attention has no activation, and is not linear.
PRODUCTS = {
    *("matmul", "bmm", "einsum", "baddbmm", "softmax", "Softmax", "scaled_dot_product_attention"),
    *("multi_head_attention_forward", "MultiheadAttention", "TransformerEncoderLayer", "TransformerEncoder"),
}
# f(2x) = 2 f(x), exactly, for every x: what `absorb` may have between the doubled batch norm and the gate.
HOMOGENEOUS = {"relu", "leaky_relu", "prelu", "ReLU", "LeakyReLU", "PReLU"}


@dataclass(frozen=True)
class Op:
    """One operator of a chain."""

    kind: str
    name: str = ""  # function name or class name
    path: str = ""  # of the module that holds its weights
    kernel: tuple[int, ...] = ()
    inputs: int = 0
    outputs: int = 0
    groups: int = 1

    @property
    def spatial(self) -> bool:
        return self.kind == "conv" and any(k > 1 for k in self.kernel)

    @property
    def pointwise(self) -> bool:
        return self.kind == "conv" and self.groups == 1 and set(self.kernel) == {1}  # a kernel, and one that is known

    @property
    def depthwise(self) -> bool:
        return self.kind == "conv" and self.groups > 1 and self.groups == self.inputs


def per_node(fn: Callable[[fx.Node], T]) -> Callable[[fx.Node], T]:
    """Compute once for each node, and keep the answer in the node's ``meta``."""
    key = f"{fn.__module__}.{fn.__name__}"

    @functools.wraps(fn)
    def cached(node: fx.Node) -> T:
        if key not in node.meta:
            node.meta[key] = fn(node)
        return node.meta[key]

    return cached


def name_of(node: fx.Node) -> str:
    """The bare name of a function or method: ``aten.add_.Tensor`` and ``Tensor.add_`` are both ``add``."""
    target = node.target
    name = target if isinstance(target, str) else getattr(target, "_opname", "") or getattr(target, "__name__", "")
    if isinstance(target, torch._ops.OpOverload):
        name = target.overloadpacket.__name__
    return name.strip("_") if name.startswith("__") else name.removesuffix("_")


def constant(node: fx.Node) -> bool:
    """Made from parameters, buffers and numbers alone."""
    if "constant" not in node.meta:  # the whole graph in order: a chain of nodes may be longer than Python's stack
        for n in node.graph.nodes:
            made = n.op == "get_attr" or n.op not in ("placeholder", "output")
            n.meta["constant"] = made and all(i.meta["constant"] for i in n.all_input_nodes)
    return node.meta["constant"]


@per_node
def data(node: fx.Node) -> tuple[fx.Node, ...]:
    """The inputs that carry data of this forward, each once."""
    return tuple(n for n in node.all_input_nodes if not constant(n))


def shape(node: fx.Node) -> tuple[int, ...]:
    return node.meta.get("shape", ())


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
        module, path = node.meta["module"], node.meta["path"]
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
    if base.op == "get_attr" and not base.meta.get("parameter"):
        return Op("blur", name)  # a fixed filter: anti-aliasing, not a layer
    out, into, *kernel = shape(weight)
    source = data(node)
    channels = shape(source[0])[1] if source and len(shape(source[0])) > 1 else into
    if "transpose" in name:  # the weight of a transposed convolution is (in, out / groups, ...)
        return Op("conv", name, path, tuple(kernel), channels, shape(node)[1], max(1, shape(node)[1] // max(into, 1)))
    return Op("conv", name, path, tuple(kernel), channels, out, max(1, channels // max(into, 1)))


@per_node
def gate(node: fx.Node) -> fx.Node | None:
    """The value that ``node`` gates, or None.

    A gate multiplies (or, as the global context block does, adds) a value with something that a layer or activation
    made from the same value, and that has lost its space on the way: one number for each channel. A spatial gate (one
    number for each position, as in CBAM) counts when a sigmoid made it. Norms divide by statistics: those are no gates.
    """
    if op(node).kind not in ("mul", "add") or len(data(node)) != 2:
        return None
    first, second = data(node)
    for value, factor in ((first, second), (second, first)):
        while op(factor).kind in ("expand", "reshape") and data(factor):
            factor = data(factor)[0]
        if len(shape(value)) < 3 or not _pooled(factor, value):
            continue
        sources = {value, *_origins(value)}
        between = set(_ancestors(factor, sources))
        inside = between - sources
        if len(inside) == len(between) or not any(depth(n) or nonlinear(n) for n in inside):
            continue
        smaller = math.prod(shape(factor)[1:]) < math.prod(shape(value)[1:])
        if smaller or (op(node).kind == "mul" and any(reduces(n) for n in inside)):
            return value
    return None


def _pooled(factor: fx.Node, value: fx.Node) -> bool:
    """One number for each channel (all but batch and one axis are 1 or gone), or a sigmoid for each position."""
    small, large = shape(factor), shape(value)
    if math.prod(small[1:]) > math.prod(large[1:]):
        return False
    wide = [axis for axis, n in enumerate(small) if axis > 0 and n > 1]
    if len(small) >= 2 and len(wide) <= 1 and (len(small) != len(large) or channel_axis(value) in (None, *wide)):
        channels = max(small[1:])
        paths = {large[1] * large[2]} if len(large) == 5 else set()  # (N, paths, C, H, W): one for each path's channel
        return channels > 1 and channels in {*large[1:], *paths}
    if len(small) == len(large) == 5 and all(a in (b, 1) for a, b in zip(small, large, strict=True)):
        return small[3:] == (1, 1) and small[2] > 1
    spatial = len(small) == len(large) and small[1] == 1 and large[1] > 1 and bool(wide)
    return spatial and any(o.name in SIGMOIDS for o in chain(factor))


def _origins(node: fx.Node) -> Iterator[fx.Node]:
    """The value before activations and pass-throughs: RexNet squeezes before its activation, VoVNet after."""
    while len(data(node)) == 1 and {o.kind for o in chain(node)} <= {"act", "pass", "scale"}:
        node = data(node)[0]
        yield node


def _ancestors(node: fx.Node, stop: set[fx.Node]) -> Iterator[fx.Node]:
    seen, todo = set(), [node]
    while todo:
        current = todo.pop()
        if current in seen:
            continue
        seen.add(current)
        yield current
        if current not in stop:
            todo.extend(data(current))


@per_node
def steps(node: fx.Node) -> tuple[tuple[Op, fx.Node], ...]:
    """The node as operators in order of execution, each with the node (of this or a child's graph) that makes it.

    A child that is a plain chain from its input to its output is looked into; any other is one ``block``.
    """
    if gate(node) is not None:
        return ((Op("gate", name_of(node)), node),)
    own = op(node)
    call: Call | None = node.meta.get("call")
    if call is None or own.kind == "gate":
        return ((own, node),)
    found: tuple[tuple[Op, fx.Node], ...] = ()
    current = result(call)
    while current is not None and current.op != "placeholder":
        found = steps(current) + found
        gated = gate(current)
        if gated is None and len(data(current)) != 1:
            return ((_side_by_side(call, own) or _no_layer(node, call, own), node),)
        current = gated if gated is not None else data(current)[0]
    if current is None:
        return ((own, node),)
    return found or ((Op("pass", own.name, own.path), node),)


def _side_by_side(call: Call, own: Op) -> Op | None:
    """Convolutions of which each takes a part of the channels, concatenated (MixConv), are one convolution."""
    last = result(call)
    if last is None or op(last).kind != "cat" or channel_axis(last) != 1:
        return None
    layers, starts = [], set()
    for operand in data(last):
        ops = chain(operand)
        layers += [o for o in ops if o.kind == "conv"]
        if len(data(operand)) != 1 or [o.kind for o in ops if o.kind not in ("pad", "pass")] != ["conv"]:
            return None
        start = part = data(operand)[0]
        while op(start).kind == "slice" and data(start):
            start = data(start)[0]
        if start is part:
            return None  # each takes all of it: a block of several branches
        starts.add(start)
    if len(starts) != 1 or next(iter(starts)).op != "placeholder":
        return None
    kernel = max(o.kernel for o in layers)
    inputs, outputs = sum(o.inputs for o in layers), sum(o.outputs for o in layers)
    groups = inputs if all(o.depthwise for o in layers) else 1
    return Op("conv", own.name, own.path, kernel, inputs, outputs, groups)


def _no_layer(node: fx.Node, call: Call, own: Op) -> Op:
    """A child with branches but no layer, which keeps the shape, is a norm or an activation written out by hand."""
    sources = data(node)
    keeps = own.kind == "block" and len(sources) == 1 and shape(sources[0]) == shape(node)
    return Op("norm", own.name, own.path) if keeps and not longest(call.graph.nodes) else own


def chain(node: fx.Node) -> list[Op]:
    """``steps`` without the nodes."""
    return [o for o, _ in steps(node)]


@per_node
def depth(node: fx.Node) -> int:
    """Convolutions and linear layers one after another in a node: its longest path, gates left out."""
    count = 0
    for o, inner in steps(node):
        call: Call | None = inner.meta.get("call") if o.kind == "block" else None
        if o.kind in ("conv", "linear"):
            count += 1
        elif call is not None:
            count += longest(call.graph.nodes)
    return count


def longest(nodes: Iterable[fx.Node]) -> int:
    """``depth`` of a set of nodes in order of execution, along its longest path."""
    below: dict[fx.Node, int] = {}
    for node in nodes:
        before = max((below.get(n, 0) for n in data(node)), default=0)
        below[node] = before + (depth(node) if node.op.startswith("call") else 0)
    return max(below.values(), default=0)


@per_node
def nonlinear(node: fx.Node) -> bool:
    """Whether an activation is applied somewhere in the node, or two values are multiplied (attention)."""
    for o, inner in steps(node):
        if o.kind in ("act", "mul") or o.name in PRODUCTS:
            return True
        call: Call | None = inner.meta.get("call") if o.kind in ("block", "norm") else None
        if call is not None and any(nonlinear(n) for n in call.graph.nodes):
            return True
    return False


@per_node
def mixes(node: fx.Node) -> bool:
    """Whether a layer in the node makes new channels out of several, as all but depthwise convolutions do."""
    for o, inner in steps(node):
        call: Call | None = inner.meta.get("call") if o.kind in ("block", "norm") else None
        if (o.kind in ("conv", "linear") and not o.depthwise) or (
            call is not None and any(map(mixes, call.graph.nodes))
        ):
            return True
    return False


@per_node
def reduces(node: fx.Node) -> bool:
    """Whether something is pooled in the node: of a map of one position, the shape does not tell."""
    for o, inner in steps(node):
        call: Call | None = inner.meta.get("call") if o.kind == "block" else None
        if o.kind == "pool" or o.name in REDUCTIONS or (call is not None and any(map(reduces, call.graph.nodes))):
            return True
    return False


@per_node
def holds_gate(node: fx.Node) -> str:
    """The path (or name) of a gate in the node, at any depth; empty when there is none."""
    for o, inner in steps(node):
        call: Call | None = inner.meta.get("call") if o.kind == "block" else None
        if o.kind == "gate":
            return inner.meta.get("path") or node.meta.get("path") or inner.name
        if call is not None and (found := next(filter(None, map(holds_gate, call.graph.nodes)), "")):
            return found
    return ""


def passes(node: fx.Node) -> bool:
    """Dropout, drop path, layer scale, identity: by what they do, not by their names."""
    return bool(node.meta.get("identity")) or (
        len(data(node)) == 1 and {o.kind for o in chain(node)} <= {"pass", "scale"} and node.op != "placeholder"
    )


@per_node
def channel_axis(node: fx.Node) -> int | None:
    """The axis of the channels, from the operator that made them, followed through what keeps or permutes axes."""
    rank, o = len(shape(node)), op(node)
    call: Call | None = node.meta.get("call")
    inner = result(call) if call is not None else None
    if inner is not None:
        return channel_axis(inner)
    if node.op == "placeholder":
        outer = node.meta.get("outer")
        return channel_axis(outer) if outer is not None else 1 if rank >= 4 else None
    if o.kind == "conv":
        return rank - 1 - len(o.kernel) if o.kernel else 1  # 0 without a batch
    if o.kind == "linear":
        return rank - 1
    if o.kind == "norm" and o.name not in LAST_AXES:
        return 1
    if o.kind == "norm" and _normalised(node) == 1:
        return rank - 1
    sources = data(node)
    if not sources:
        return None
    if o.kind == "permute":
        return _permuted(node, channel_axis(sources[0]))
    if o.kind in ("reshape", "expand") and shape(node) != shape(sources[0]):
        return _reshaped(node, sources[0])
    if o.kind == "other":  # the axes may have moved, unless the shape is kept
        sources = tuple(n for n in sources if shape(n) == shape(node))
    # The latest first: of a sum that is the branch, whose layer is near, and not the way back through all shortcuts.
    for source in sorted(sources, key=lambda n: n.meta.get("order", 0), reverse=True):
        if len(shape(source)) == rank and (axis := channel_axis(source)) is not None:
            return axis
    return None


def settle_axis(node: fx.Node, axis: int) -> None:
    """Remember the axis of a value for which ``channel_axis`` finds none."""
    node.meta[f"{__name__}.channel_axis"] = axis


def _normalised(node: fx.Node) -> int:
    """How many axes a layer norm takes together: more than the last one leave open which is that of the channels."""
    module = node.meta.get("module")
    dims = module.normalized_shape if module is not None else [*node.args[1:2], node.kwargs.get("normalized_shape")][0]
    return len(dims) if isinstance(dims, list | tuple) else 1


def _reshaped(node: fx.Node, source: fx.Node) -> int | None:
    """The axis of the channels after a view: as long as before, and behind as many elements."""
    axis, old, new = channel_axis(source), shape(source), shape(node)
    if axis is None:
        return None
    before = math.prod(old[:axis])
    return next((i for i, n in enumerate(new) if n == old[axis] and math.prod(new[:i]) == before), None)


def _permuted(node: fx.Node, axis: int | None) -> int | None:
    rank, name = len(shape(node)), name_of(node)
    if axis is None:
        return None
    args = node.args[1:] or tuple(node.kwargs.values())
    if name == "getattr":  # x.T reverses all axes, x.mT swaps the last two
        name, args = ("permute", tuple(reversed(range(rank)))) if args[0] in ("T", "H") else ("transpose", (-2, -1))
    if len(args) == 1 and isinstance(args[0], list | tuple):
        args = tuple(args[0])
    if not all(isinstance(a, int) for a in args):
        return None
    dims = [int(a) % rank for a in args]  # type: ignore[arg-type]
    if name == "permute":
        return dims.index(axis)
    if name == "movedim" and len(dims) == 2:
        order = [i for i in range(rank) if i != dims[0]]
        order.insert(dims[1], dims[0])
        return order.index(axis)
    if name in ("transpose", "swapaxes") and len(dims) == 2:
        return {dims[0]: dims[1], dims[1]: dims[0]}.get(axis, axis)
    return None
