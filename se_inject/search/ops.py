"""What one node of a recorded graph does, not looked into: its operator, what it takes, and its shape.

The few words that the search has for what is applied to a value stand in one table for functions and one for modules;
nothing here knows the class or attribute names of a model library.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import fx, nn
from torch.nn.modules import activation, conv, dropout, padding, pooling

from se_inject.blocks import is_block
from se_inject.trace.calls import Call, record_of

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
        "add": "add sub subtract rsub lerp addcmul",
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
    if name == "einsum" and _elementwise(str(node.args[0])):
        kind, name = "mul", "mul"
    if kind in ("add", "mul", "div") and len(data(node)) < 2:
        kind = "bias" if kind == "add" else "scale"
        if kind == "bias" and any(type(a) is int and a == 0 for a in node.args):  # sum([x, y]) begins with 0 + x
            kind = "pass"
    return Op(kind, name, path)


def _elementwise(equation: str) -> bool:
    """Whether an einsum only multiplies: its axes are those of one operand, and hold the other's."""
    operands, _, result = equation.replace(" ", "").partition("->")
    sides = operands.split(",")
    return len(sides) == 2 and result in sides and "." not in result and set("".join(sides)) == set(result)


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
