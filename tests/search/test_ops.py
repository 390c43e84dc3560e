"""What a node does: operators by what they compute, gates by data flow, and the axis of the channels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import fx, nn

from se_inject.inputs import Inputs
from se_inject.search.axes import channel_axis
from se_inject.search.chains import chain, depth, gate, nonlinear, passes
from se_inject.search.ops import Op, constant, data, op, result, shape
from se_inject.trace.calls import record_of
from se_inject.trace.record import trace
from tests.nets import Basic, BatchNormAct, Blurred, DropPath, Fn, LayerScale, body, conv, unit

NCHW, NHWC, NLC = (2, 8, 6, 6), (2, 6, 6, 8), (2, 8, 8)  # as many tokens as channels: shapes alone do not tell


def graph(fn: Callable[..., Any], *layers: nn.Module, at: tuple[int, ...] = NCHW, others: int = 0) -> fx.Graph:
    """The graph of ``fn(x, *layers)`` on an argument of the shape ``at``, and on ``others`` more of the same."""
    inputs = tuple(torch.zeros(at) for _ in range(1 + others))
    net = Fn(fn, *layers).eval() if not others else Many(fn, *layers).eval()
    return trace(net, Inputs(inputs, {})).calls[0].graph


class Many(Fn):
    def forward(self, *inputs: torch.Tensor) -> Any:
        return self.fn(*inputs, *self.layers)


def last(graph: fx.Graph) -> fx.Node:
    (node,) = graph.output_node().all_input_nodes
    return node


def node(fn: Callable[..., Any], *layers: nn.Module, at: tuple[int, ...] = NCHW, others: int = 0) -> fx.Node:
    """The node that ``fn`` returns."""
    return last(graph(fn, *layers, at=at, others=others))


# -- one word for each operator -------------------------------------------------------------------------------------
FUNCTIONS: list[tuple[str, Callable[[torch.Tensor], Any]]] = [
    ("act", F.relu),
    ("act", torch.relu),
    ("act", torch.Tensor.relu),
    ("act", torch.relu_),
    ("act", lambda x: F.relu(x, inplace=True)),
    ("act", lambda x: x.sigmoid()),
    ("act", lambda x: torch.ops.aten.relu(x)),
    ("act", lambda x: torch.ops.aten.relu.default(x)),
    ("act", lambda x: x.clamp(0, 6)),
    ("pass", lambda x: x.contiguous()),
    ("pass", lambda x: x.clone()),
    ("pass", lambda x: x.to(torch.float64)),
    ("pass", lambda x: F.dropout(x, 0.5, False)),
    ("pass", lambda x: x + 0),
    ("pass", lambda x: 0 + x),
    ("pass", lambda x: x.data),
    ("bias", lambda x: x + 1),
    ("bias", lambda x: x + torch.ones(8, 1, 1)),
    ("scale", lambda x: x * 2),
    ("scale", lambda x: 2 * x),
    ("scale", lambda x: x.mul_(2)),
    ("scale", lambda x: x / 2),
    ("scale", lambda x: torch.mul(x, 2)),
    ("scale", lambda x: x * torch.ones(8, 1, 1)),
    ("add", lambda x: x + x.abs()),
    ("add", lambda x: torch.add(x, x.abs())),
    ("add", lambda x: x.add_(x.abs())),
    ("add", lambda x: torch.ops.aten.add.Tensor(x, x.abs())),
    ("add", lambda x: x - x.abs()),
    ("bias", lambda x: x - 1),
    ("mul", lambda x: x * x.abs()),
    ("mul", lambda x: torch.einsum("nchw,nc->nchw", x, x.mean((2, 3)))),
    ("scale", lambda x: torch.einsum("nchw,c->nchw", x, torch.ones(8))),
    ("pool", lambda x: F.max_pool2d(x, 2)),
    ("pool", lambda x: F.adaptive_avg_pool2d(x, 1)),
    ("resample", lambda x: F.interpolate(x, scale_factor=2.0)),
    ("resample", lambda x: F.pixel_shuffle(x, 2)),
    ("norm", lambda x: F.batch_norm(x, None, None, training=True)),
    ("norm", lambda x: F.group_norm(x, 2)),
    ("cat", lambda x: torch.cat([x, x])),
    ("pad", lambda x: F.pad(x, (1, 1))),
    ("permute", lambda x: x.permute(0, 2, 3, 1)),
    ("permute", lambda x: x.mT),
    ("slice", lambda x: x[:, 1:]),
    ("expand", lambda x: x[:, :1].expand_as(x)),
    ("reshape", lambda x: x.flatten(1)),
    ("other", lambda x: torch.maximum(x, x.abs())),
    ("other", lambda x: torch.einsum("nchw,nchw->nc", x, x.abs())),
    ("other", lambda x: x.mean((2, 3))),
    ("other", lambda x: x.softmax(1)),
]


@pytest.mark.parametrize(("kind", "fn"), FUNCTIONS, ids=[f"{i}-{kind}" for i, (kind, _) in enumerate(FUNCTIONS)])
def test_functions(kind: str, fn: Callable[[torch.Tensor], Any]) -> None:
    assert op(node(lambda x: fn(x.abs()))).kind == kind


@pytest.mark.parametrize(
    ("kind", "module"),
    [
        ("conv", nn.Conv2d(8, 8, 1)),
        ("conv", nn.ConvTranspose2d(8, 8, 2)),
        ("linear", nn.Linear(6, 6)),
        ("norm", nn.BatchNorm2d(8)),
        ("norm", nn.SyncBatchNorm(8)),
        ("norm", nn.GroupNorm(2, 8)),
        ("norm", nn.InstanceNorm2d(8)),
        ("norm", nn.LayerNorm(6)),
        ("act", nn.ReLU()),
        ("act", nn.Hardswish()),
        ("act", nn.PReLU()),
        ("pool", nn.MaxPool2d(2)),
        ("pool", nn.AdaptiveAvgPool2d(1)),
        ("pad", nn.ZeroPad2d(1)),
        ("pass", nn.Dropout2d(0.5)),
        ("pass", nn.Identity()),
        ("resample", nn.Upsample(scale_factor=2)),
        ("block", nn.Softmax(1)),
        ("block", Basic()),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else value,
)
def test_modules(kind: str, module: nn.Module) -> None:
    assert op(node(lambda x, m: m(x), module)).kind == kind


@pytest.mark.parametrize(
    ("layer", "inputs", "outputs", "groups", "kernel"),
    [
        (nn.Conv2d(8, 16, 3, groups=2), 8, 16, 2, (3, 3)),
        (nn.ConvTranspose2d(8, 16, 2, groups=4), 8, 16, 4, (2, 2)),
        (nn.Conv2d(8, 16, 1), 8, 16, 1, (1, 1)),
    ],
)
def test_a_convolution_is_the_same_as_module_and_as_function(
    layer: Any, inputs: int, outputs: int, groups: int, kernel: tuple[int, ...]
) -> None:
    function = F.conv_transpose2d if layer.transposed else F.conv2d
    for found in (
        op(node(lambda x, m: m(x), layer)),
        op(node(lambda x, m: function(x, m.weight, m.bias, groups=groups), layer)),
    ):
        assert found.kind == "conv"
        assert (found.inputs, found.outputs, found.groups, found.kernel) == (inputs, outputs, groups, kernel)


def test_a_deformable_convolution_is_a_convolution() -> None:
    def forward(x: torch.Tensor, offset: nn.Module, deform: nn.Module) -> torch.Tensor:
        return deform(x, offset(x))

    layer = torchvision.ops.DeformConv2d(8, 16, 3, padding=1)
    (call,) = [record_of(n).call for n in graph(forward, conv(8, 18), layer).nodes if record_of(n).call]
    found = op(result(call))
    assert (found.kind, found.kernel, found.inputs, found.outputs) == ("conv", (3, 3), 8, 16)


def test_kinds_of_kernels() -> None:
    depthwise, grouped = Op("conv", kernel=(3, 3), inputs=8, outputs=8, groups=8), Op("conv", kernel=(3, 3), groups=2)
    pointwise, unknown = Op("conv", kernel=(1, 1)), Op("conv")
    assert [o.depthwise for o in (depthwise, grouped, pointwise, unknown)] == [True, False, False, False]
    assert [o.spatial for o in (depthwise, grouped, pointwise, unknown)] == [True, True, False, False]
    assert [o.pointwise for o in (depthwise, grouped, pointwise, unknown)] == [False, False, True, False]
    assert not Op("conv", kernel=(1, 1), inputs=8, groups=2).pointwise
    assert Op("conv", kernel=(1, 7)).spatial


def test_a_fixed_filter_is_no_layer() -> None:
    assert [o.kind for o in chain(node(lambda x, m: m(x), Blurred.Blur(8)))] == ["pad", "blur"]
    learned = nn.Conv2d(8, 8, 3, groups=8)
    assert op(node(lambda x, m: F.conv2d(x, m.weight, groups=8), learned)).kind == "conv"


# -- constants and data ---------------------------------------------------------------------------------------------
def test_what_is_made_from_parameters_alone_is_constant() -> None:
    layer = LayerScale(8)
    found = node(lambda x, m: x * (m.gamma.exp() + torch.ones(1)), layer)
    assert op(found).kind == "scale"
    assert op(found).path == "layers.0"
    value, factor = found.all_input_nodes
    assert (constant(value), constant(factor)) == (False, True)
    assert data(found) == (value,)
    assert not constant(node(lambda x, m: m.gamma * x.mean(), layer))


# -- chains ---------------------------------------------------------------------------------------------------------
def kinds(fn: Callable[..., Any], *layers: nn.Module, at: tuple[int, ...] = NCHW) -> list[str]:
    return [o.kind for o in chain(node(fn, *layers, at=at))]


def test_a_child_that_is_a_chain_is_looked_into() -> None:
    assert kinds(lambda x, m: m(x), unit(8, 8)) == ["conv", "norm", "act"]
    nested = nn.Sequential(unit(8, 8), nn.Sequential(conv(8, 8)))
    assert kinds(lambda x, m: m(x), nested) == ["conv", "norm", "act", "conv"]
    assert kinds(lambda x, m: m(x), BatchNormAct(8)) == ["norm", "pass", "act"]
    assert kinds(lambda x, m: m(x), LayerScale(8)) == ["scale"]
    assert kinds(lambda x, m: m(x), DropPath()) == ["pass"]


def test_a_child_with_branches_is_one_block() -> None:
    assert kinds(lambda x, m: m(x), Basic()) == ["block"]
    assert kinds(lambda x, m: m(x), Fn(lambda x: x.mean() + x.flatten(2))) == ["block"]
    assert kinds(lambda x, m: m(x), nn.Sequential(unit(8, 8), Basic())) == ["conv", "norm", "act", "block"]


def test_convolutions_of_parts_of_the_channels_are_one() -> None:
    def mixed(x: torch.Tensor, *layers: nn.Module) -> torch.Tensor:
        parts = x.split(4, 1)
        return torch.cat([layer(part) for layer, part in zip(layers, parts, strict=True)], 1)

    (found,) = chain(node(lambda x, m: m(x), Fn(mixed, conv(4, 4, 3, g=4), conv(4, 4, 5, g=4))))
    assert (found.kind, found.kernel, found.inputs, found.outputs, found.depthwise) == ("conv", (5, 5), 8, 8, True)
    (found,) = chain(node(lambda x, m: m(x), Fn(mixed, conv(4, 2, 1), conv(4, 4, 1))))
    assert (found.pointwise, found.outputs) == (True, 6)
    inception = Fn(lambda x, a, b: torch.cat([a(x), b(x)], 1), conv(8, 4, 1), conv(8, 4))
    assert kinds(lambda x, m: m(x), inception) == ["block"]


def test_a_child_without_a_layer_that_keeps_the_shape_is_a_norm() -> None:
    assert kinds(lambda x, m: m(x), Fn(lambda x: x / (x.var((1, 2, 3), keepdim=True) + 1e-5).sqrt())) == ["norm"]
    assert kinds(lambda x, m: m(x), Fn(lambda x: x * F.relu6(x + 3) / 6)) == ["norm"]
    assert kinds(lambda x, m: m(x), Fn(lambda x: (x * x.mean())[:, :4])) == ["block"]


def test_depth_counts_layers_one_after_another() -> None:
    assert depth(node(lambda x, m: m(x), body(8, 8))) == 2
    assert depth(node(lambda x, m: m(x), Basic())) == 2
    assert depth(node(lambda x, m: m(x), nn.ReLU())) == 0
    parallel = Fn(lambda x, a, b: a(x) + b(x), conv(8, 8), conv(8, 8))
    assert depth(node(lambda x, m: m(x), parallel)) == 1
    gated = Fn(se, nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1))
    assert depth(node(lambda x, m: m(x), nn.Sequential(conv(8, 8), gated))) == 1


def test_nonlinear() -> None:
    assert nonlinear(node(lambda x, m: m(x), Basic()))
    assert nonlinear(node(lambda x, m: m(x), unit(8, 8)))
    assert not nonlinear(node(lambda x, m: m(x), nn.Sequential(conv(8, 8), nn.BatchNorm2d(8))))


def test_passes() -> None:
    for module in (nn.Dropout(0.5), DropPath(), LayerScale(8), nn.Sequential(), nn.Sequential(LayerScale(8))):
        assert passes(node(lambda x, m: m(x), module)), module
    for fn in (lambda x: x * 2, lambda x: x / 2, lambda x: x.contiguous(), lambda x: 0 + x):
        assert passes(node(fn))
    for module in (nn.ReLU(), nn.BatchNorm2d(8), conv(8, 8), nn.Sequential(LayerScale(8), nn.ReLU())):
        assert not passes(node(lambda x, m: m(x), module)), module
    for fn in (lambda x: x + 1, lambda x: x * x.abs(), lambda x: x.flip(1)):
        assert not passes(node(fn))


# -- gates ----------------------------------------------------------------------------------------------------------
def se(x: torch.Tensor, fc1: nn.Module, fc2: nn.Module) -> torch.Tensor:
    return x * torch.sigmoid(fc2(F.relu(fc1(x.mean((2, 3), keepdim=True)))))


def se_linear(x: torch.Tensor, fc1: nn.Module, fc2: nn.Module) -> torch.Tensor:
    n, c, _, _ = x.shape
    s = F.adaptive_avg_pool2d(x, 1).view(n, c)
    s = fc2(F.relu(fc1(s))).sigmoid().view(n, c, 1, 1)
    return s * x


def eca(x: torch.Tensor, layer: nn.Module) -> torch.Tensor:
    s = layer(x.mean((2, 3)).unsqueeze(1)).sigmoid()
    return x * s.view(x.shape[0], -1, 1, 1).expand_as(x)


def cbam_channel(x: torch.Tensor, fc: nn.Module) -> torch.Tensor:
    return x * torch.sigmoid(fc(x.mean((2, 3), keepdim=True)) + fc(x.amax((2, 3), keepdim=True)))


def cbam_spatial(x: torch.Tensor, layer: nn.Module) -> torch.Tensor:
    pooled = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
    return x * layer(pooled).sigmoid()


def global_context(x: torch.Tensor, mask: nn.Module, fc: nn.Module) -> torch.Tensor:
    n, c, h, w = x.shape
    weights = mask(x).reshape(n, 1, h * w).softmax(2)
    context = (x.reshape(n, c, h * w) * weights).sum(2).view(n, c, 1, 1)
    return x + fc(context)


def se_last(x: torch.Tensor, fc: nn.Module) -> torch.Tensor:
    return x * fc(x.mean((1, 2), keepdim=True)).sigmoid()


def se_tokens(x: torch.Tensor, fc: nn.Module) -> torch.Tensor:
    return x * fc(x.mean(1, keepdim=True)).sigmoid()


GATES: dict[str, tuple[Any, ...]] = {
    "se": (se, NCHW, nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)),
    "se with linear layers": (se_linear, NCHW, nn.Linear(8, 4), nn.Linear(4, 8)),
    "eca": (eca, NCHW, nn.Conv1d(1, 1, 3, padding=1, bias=False)),
    "cbam, channels": (cbam_channel, NCHW, nn.Conv2d(8, 8, 1)),
    "cbam, space": (cbam_spatial, NCHW, nn.Conv2d(2, 1, 7, padding=3)),
    "global context, added": (global_context, NCHW, nn.Conv2d(8, 1, 1), nn.Conv2d(8, 8, 1)),
    "se, channels last": (se_last, NHWC, nn.Linear(8, 8)),
    "se, tokens": (se_tokens, NLC, nn.Linear(8, 8)),
    "hard sigmoid": (lambda x: x * F.hardsigmoid(x.mean((2, 3), keepdim=True)), NCHW),
    "gain": (lambda x, fc: x * (2 * fc(x.mean((2, 3), keepdim=True)).sigmoid()), NCHW, nn.Conv2d(8, 8, 1)),
}


@pytest.mark.parametrize("name", GATES)
def test_gates(name: str) -> None:
    fn, at, *layers = GATES[name]
    found = graph(lambda x, *ls: fn(x.abs(), *ls), *layers, at=at)
    value = next(n for n in found.nodes if n.target == "abs")
    assert gate(last(found)) is value
    assert [n for n in found.nodes if gate(n) is not None] == [last(found)]


@pytest.mark.parametrize("name", ["se", "se with linear layers", "eca", "cbam, channels"])
def test_gates_on_a_map_of_one_position(name: str) -> None:
    fn, _, *layers = GATES[name]
    found = graph(lambda x, *ls: fn(x.abs(), *ls), *layers, at=(2, 8, 1, 1))
    assert [n for n in found.nodes if gate(n) is not None] == [last(found)]


@pytest.mark.parametrize("name", ["swish", "two maps added", "gated linear unit"])
def test_no_gates_on_a_map_of_one_position(name: str) -> None:
    fn, _, *layers = NO_GATES[name]
    assert [n for n in graph(fn, *layers, at=(2, 8, 1, 1)).nodes if gate(n) is not None] == []


@pytest.mark.parametrize("name", GATES)
def test_a_gate_as_a_child_is_one_gate(name: str) -> None:
    fn, at, *layers = GATES[name]
    assert kinds(lambda x, m: m(x), Fn(fn, *layers), at=at) == ["gate"]


def test_a_gate_squeezed_after_the_activation_that_it_multiplies_before() -> None:
    """RexNet's cousins: the squeeze sees ``relu(y)``, the product takes ``relu(y)`` or ``y``."""

    def forward(x: torch.Tensor, fc: nn.Module) -> torch.Tensor:
        y = x.abs()
        return F.relu(y) * fc(y.mean((2, 3), keepdim=True)).sigmoid()

    assert gate(node(forward, nn.Conv2d(8, 8, 1))) is not None


def rms_norm(x: torch.Tensor, axis: int) -> torch.Tensor:
    return x * torch.rsqrt(x.pow(2).mean(axis, keepdim=True) + 1e-6)


NO_GATES: dict[str, tuple[Any, ...]] = {
    "rms norm, channels first": (lambda x: rms_norm(x, 1), NCHW),
    "rms norm, channels last": (lambda x: rms_norm(x, 3), NHWC),
    "rms norm, tokens": (lambda x: rms_norm(x, 2), NLC),
    "instance norm by hand": (lambda x: x * torch.rsqrt(x.var((2, 3), keepdim=True) + 1e-6), NCHW),
    "global response norm": (lambda x: x * (x.norm(2, (2, 3), True) / (x.norm() + 1)), NCHW),
    "mean added": (lambda x: x + x.mean((2, 3), keepdim=True), NCHW),
    "swish": (lambda x: x * x.sigmoid(), NCHW),
    "gated linear unit": (lambda x, a, b: a(x) * b(x).sigmoid(), NCHW, conv(8, 8), conv(8, 8)),
    "layer scale": (lambda x, m: m(x), NCHW, LayerScale(8)),
    "one number for a sample": (lambda x, fc: x * fc(x.mean((2, 3), keepdim=True)).sigmoid(), NCHW, conv(8, 1, 1)),
    "spatial, without a sigmoid": (lambda x, m: x * m(x), NCHW, conv(8, 1, 1)),
    "a vector of 2-d features": (lambda x, fc: x * fc(x).sigmoid(), (2, 8), nn.Linear(8, 8)),
    "two maps added": (lambda x, m: x + m(x), NCHW, conv(8, 8)),
}


@pytest.mark.parametrize("name", NO_GATES)
def test_no_gates(name: str) -> None:
    fn, at, *layers = NO_GATES[name]
    found = graph(lambda x, *ls: fn(x.abs(), *ls), *layers, at=at)
    assert [n for n in found.nodes if gate(n) is not None] == []


def test_a_factor_made_from_another_value_is_no_gate() -> None:
    def film(x: torch.Tensor, other: torch.Tensor, fc: nn.Module) -> torch.Tensor:
        return x * fc(other.mean((2, 3), keepdim=True)).sigmoid()

    assert gate(node(film, nn.Conv2d(8, 8, 1), others=1)) is None


# -- the channel axis -----------------------------------------------------------------------------------------------


def swish(x: torch.Tensor) -> torch.Tensor:
    return x * x.sigmoid()


AXES: dict[str, tuple[Any, ...]] = {
    "convolution": (1, lambda x, m: m(x), NCHW, conv(8, 8)),
    "1-d convolution": (1, lambda x, m: m(x), NLC, nn.Conv1d(8, 8, 1)),
    "convolution without a batch": (0, lambda x, m: m(x), (8, 6, 6), conv(8, 8)),
    "batch norm": (1, lambda x, m: m(x), NCHW, nn.BatchNorm2d(8)),
    "group norm": (1, lambda x, m: m(x), NLC, nn.GroupNorm(2, 8)),
    "linear layer": (3, lambda x, m: m(x), NHWC, nn.Linear(8, 8)),
    "layer norm": (3, lambda x, m: m(x), NHWC, nn.LayerNorm(8)),
    "layer norm, function": (3, lambda x: F.layer_norm(x, (8,)), NHWC),
    "rms norm": (2, lambda x, m: m(x), NLC, nn.RMSNorm(8)),
    "layer norm over the whole map": (1, lambda x, m, n: n(m(x)), NCHW, conv(8, 8), nn.LayerNorm([8, 6, 6])),
    "the same, function": (1, lambda x, m: F.layer_norm(m(x), (8, 6, 6)), NCHW, conv(8, 8)),
    "activation after a linear layer": (3, lambda x, m: F.gelu(m(x)), NHWC, nn.Linear(8, 8)),
    "permuted to channels first": (1, lambda x, m: m(x).permute(0, 3, 1, 2), NHWC, nn.Linear(8, 8)),
    "permuted by name": (1, lambda x, m: m(x).permute(dims=(0, 3, 1, 2)), NHWC, nn.Linear(8, 8)),
    "permuted by a list": (1, lambda x, m: torch.permute(m(x), [0, 3, 1, 2]), NHWC, nn.Linear(8, 8)),
    "permuted by a module": (1, lambda x, m, p: p(m(x)), NHWC, nn.Linear(8, 8), torchvision.ops.Permute([0, 3, 1, 2])),
    "permuted to channels last": (3, lambda x, m: m(x).permute(0, 2, 3, 1), NCHW, conv(8, 8)),
    "transposed": (1, lambda x, m: m(x).transpose(1, 2), NLC, nn.Linear(8, 8)),
    "transposed from the end": (1, lambda x, m: m(x).transpose(-1, -2), NLC, nn.Linear(8, 8)),
    "transposed elsewhere": (1, lambda x, m: m(x).transpose(2, 3), NCHW, conv(8, 8)),
    "moved": (1, lambda x, m: m(x).movedim(-1, 1), NHWC, nn.Linear(8, 8)),
    "mT": (1, lambda x, m: m(x).mT, NLC, nn.Linear(8, 8)),
    "mT of another axis": (1, lambda x, m: m(x).mT, NCHW, conv(8, 8)),
    "back and forth": (1, lambda x, m, n: n(m(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2), NCHW, conv(8, 8), nn.GELU()),
    "convolution and swapped axes": (2, lambda x, m: m(x).transpose(1, 2), NLC, nn.Conv1d(8, 8, 1)),
    "an argument": (1, lambda x: x.abs(), NCHW),
    "an argument of three axes": (None, lambda x: x.abs(), NLC),
    "a reshape of the same rank": (None, lambda x, m: m(x).view(2, 6, 6, 8), NCHW, conv(8, 8)),
    "a reshape of nothing": (1, lambda x, m: m(x).view(2, 8, 6, 6), NCHW, conv(8, 8)),
    "a reshape to another rank": (None, lambda x, m: m(x).view(2, 2, 4, 6, 6), NCHW, conv(8, 8)),
    "einsum that moves axes": (None, lambda x, m: torch.einsum("nchw->nhcw", m(x)), NCHW, conv(8, 8)),
    "a function that keeps the shape": (1, lambda x, m: m(x).roll(1, 2), NCHW, conv(8, 8)),
    "a gate before the value": (
        3,
        lambda x, m: m(x).mean((1, 2), keepdim=True).sigmoid() * m(x),
        NHWC,
        nn.Linear(8, 8),
    ),
    "a subclass of a norm that moves axes": (1, lambda x, m: m(x), NCHW, torchvision.models.convnext.LayerNorm2d(8)),
    "an own activation, channels last": (
        3,
        lambda x, m, a: a(m(x)),
        NHWC,
        nn.Linear(8, 8),
        Fn(swish),
    ),
    "an own activation, channels first": (1, lambda x, m, a: a(m(x)), NCHW, conv(8, 8), Fn(swish)),
    "two children deep": (
        3,
        lambda x, m, a: a(m(x)),
        NHWC,
        nn.Linear(8, 8),
        Fn(lambda x, inside: inside(x) * 2, Fn(lambda x: x.abs())),
    ),
    "through a residual block": (3, lambda x, m, f: f(m(x)), NHWC, nn.Linear(8, 8), Fn(lambda x: x + x.abs())),
}


@pytest.mark.parametrize("name", AXES)
def test_channel_axis(name: str) -> None:
    axis, fn, at, *layers = AXES[name]
    found = node(fn, *layers, at=at)
    assert channel_axis(found) == axis
    if axis is not None:
        assert shape(found)[axis] == 8


def test_the_axis_of_a_long_chain_of_sums_is_found_without_deep_recursion() -> None:
    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(Fn(lambda x, m: m(x) + x, conv(2, 2, 1)) for _ in range(400))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for block in self.blocks:
                x = block(x)
            return x.abs()

    calls = trace(Chain(), Inputs((torch.zeros(1, 2, 2, 2),), {})).calls
    assert channel_axis(result(calls[0])) == 1
