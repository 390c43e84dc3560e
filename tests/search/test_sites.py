"""Sites: found where the networks say, nowhere else, each with what the rules ask about it and with a way to insert."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx, nn

import se_inject
from se_inject.injection.plan import make_plan
from se_inject.inputs import Inputs, resolve
from se_inject.search.sites import Found, find_sites
from se_inject.search.train_mode import train_only
from se_inject.trace.record import trace
from se_inject.types import Carrier, Reason, Site
from tests.helpers import code, randomise, says
from tests.nets import (
    NETS,
    Basic,
    BatchNormAct,
    Bottleneck,
    Chain,
    DropPath,
    Fn,
    MBConv,
    Net,
    Pair,
    SequentialMBConv,
    Skip,
    Truth,
    body,
    conv,
    truth,
    unit,
)

BOTH = ("standard", "inner")


def found(net: nn.Module, *inputs: torch.Tensor, placements: tuple[str, ...] = BOTH) -> Found:
    given = Inputs(inputs, {}) if inputs else resolve(net, getattr(net, "shape", (8, 8, 8)))
    return find_sites(trace(net, given), placements)


def sites(net: nn.Module, *inputs: torch.Tensor, placements: tuple[str, ...] = BOTH) -> dict[str, Site]:
    return {site.id: site for site in found(net, *inputs, placements=placements).sites}


def site(net: nn.Module, *inputs: torch.Tensor, placement: str = "standard") -> Site:
    """The one site of a placement."""
    (only,) = sites(net, *inputs, placements=(placement,)).values()
    return only


def channels(net: nn.Module) -> dict[str, int]:
    return {name: s.channels for name, s in sites(net).items()}


# -- the networks' own truth ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", NETS)
def test_sites_are_where_the_network_says(name: str) -> None:
    net = NETS[name]()
    assert channels(net) == {**net.standard, **net.inner}
    assert {name: s.nested for name, s in sites(net).items() if s.nested} == net.nested


@pytest.mark.parametrize("name", [name for name, net in NETS.items() if net.standard or net.inner])
def test_every_site_has_a_way_to_insert(name: str) -> None:
    assert {s.obstacle for s in sites(NETS[name]()).values()} == {None}


INSERTED = [
    (name, placement)
    for name in ("Basic", "TwoJoins", "Scaled", "FlatMBConv", "NormAct", "PassedShortcut", "Functional")
    for placement in BOTH
    if getattr(NETS[name], placement)
]


@pytest.mark.parametrize(("name", "placement"), INSERTED)
def test_what_is_inserted_there_runs_and_changes_nothing(name: str, placement: str) -> None:
    net = randomise(NETS[name]().eval())
    report = se_inject.inject(net, net.shape, placement).report
    assert [check.name for check in report.checks if check.passed is not True] == []


# -- random networks ------------------------------------------------------------------------------------------------
PARTS = [
    "Basic", "Plain", "OneLayer", "ThreeOperands", "SumOfList", "ChainedBlocks", "TwoJoins", "Regularised",
    "PassedShortcut", "AdditiveUNet", "RepVGG", "TwoDeepBranches", "TwoPaths", "Res2Net", "MBConv", "MBConvUnexpanded",
    "SequentialMBConv", "FlatMBConv", "NormAct", "Functional",
]  # fmt: skip


def trees(depth: int) -> st.SearchStrategy[Any]:
    """A network as nested data: a name, a chain of networks, a shortcut around one, or the sum of two deep ones."""
    leaf = st.sampled_from(PARTS)
    if depth == 0:
        return leaf
    inside = trees(depth - 1)
    return st.one_of(
        leaf,
        st.tuples(st.just("chain"), st.lists(inside, min_size=1, max_size=3)),
        st.tuples(st.just("skip"), inside),
        st.tuples(
            st.just("pair"), st.sampled_from(["Basic", "Plain", "MBConv"]), st.sampled_from(["Plain", "Res2Net"])
        ),
    )


def build(tree: Any) -> Net:
    if isinstance(tree, str):
        return NETS[tree]()
    kind, *inside = tree
    if kind == "chain":
        return Chain([build(item) for item in inside[0]])
    return {"skip": Skip, "pair": Pair}[kind](*(build(item) for item in inside))


@settings(max_examples=40)
@given(trees(2))
def test_random_networks(tree: Any) -> None:
    net = build(tree)
    expected: Truth = truth(net)
    actual = sites(net)
    assert {name: s.channels for name, s in actual.items()} == expected.sites
    assert {name: s.nested for name, s in actual.items() if s.nested} == expected.nested
    assert list(actual.values()) == sorted(actual.values(), key=lambda s: s.order)


# -- what a site records --------------------------------------------------------------------------------------------
class Staged(Net):
    """Two resolutions, two blocks each."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(Basic(), MBConv(), Basic(8, 16, 2), Bottleneck())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def test_fields_of_a_site() -> None:
    assert [
        (s.id, s.owner, s.cls, s.shape, s.axis, s.layout, s.stage, s.block_channels, s.calls)
        for s in sites(Staged()).values()
    ] == [
        ("layers.0:standard", "layers.0", "Basic", (2, 8, 8, 8), 1, "NCHW", 1, 8, 1),
        ("layers.1:inner", "layers.1", "MBConv", (2, 32, 8, 8), 1, "NCHW", 1, 8, 1),
        ("layers.1:standard", "layers.1", "MBConv", (2, 8, 8, 8), 1, "NCHW", 1, 8, 1),
        ("layers.2:standard", "layers.2", "Basic", (2, 16, 4, 4), 1, "NCHW", 2, 8, 1),
        ("layers.3:inner", "layers.3", "Bottleneck", (2, 4, 4, 4), 1, "NCHW", 2, 16, 1),
        ("layers.3:standard", "layers.3", "Bottleneck", (2, 16, 4, 4), 1, "NCHW", 2, 16, 1),
    ]


def test_a_site_names_the_block_around_it() -> None:
    found = sites(Staged())
    assert found["layers.1:inner"].block == found["layers.1:standard"].block == "layers.1:standard"
    assert sites(NETS["MBConvStrided"]())[":inner"].block == ""


@pytest.mark.parametrize(
    ("name", "kernel", "depthwise", "projects", "entering"),
    [
        ("Bottleneck", (3, 3), False, False, 16),
        ("Grouped", (3, 3), False, False, 16),
        ("MBConv", (3, 3), True, True, 8),
        ("MBConvStrided", (3, 3), True, True, 8),
        ("MBConvUnexpanded", (3, 3), True, True, 8),
        ("SequentialMBConv", (3, 3), True, True, 8),
        ("FlatMBConv", (3, 3), True, True, 8),
        ("NormAct", (3, 3), False, True, 8),
        ("Functional", (3, 3), True, True, 8),
        ("StemThenBlock", (3, 3), False, False, 16),
    ],
)
def test_inner_sites_tell_of_the_convolutions(
    name: str, kernel: tuple[int, ...], depthwise: bool, projects: bool, entering: int
) -> None:
    s = site(NETS[name](), placement="inner")
    assert (s.kernel, s.depthwise, s.projects, s.block_channels) == (kernel, depthwise, projects, entering)


def test_a_depthwise_convolution_before_an_expansion_does_not_project() -> None:
    net = Fn(lambda x, a, b, c: x + c(F.gelu(b(a(x)))), unit(8, 8, g=8), conv(8, 32, 1), conv(32, 8, 1))
    inner = site(net, placement="inner")
    assert (inner.depthwise, inner.projects) == (True, False)


def test_what_follows_a_full_convolution_must_be_one_layer() -> None:
    mlp = nn.Sequential(conv(8, 32, 1), nn.GELU(), conv(32, 8, 1))
    net = Fn(lambda x, a, b: x + b(a(x)), unit(8, 8), mlp)
    assert [s.placement for s in sites(net).values()] == ["standard"]


def test_two_calls_of_one_block_are_one_site() -> None:
    s = site(Fn(lambda x, block: block(block(x)), Basic()))
    assert (s.id, s.calls) == ("layers.0:standard", 2)


def test_a_place_that_is_one_in_some_calls_only_is_refused() -> None:
    class Sometimes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = body(8, 8)

        def forward(self, x: torch.Tensor, skip: bool) -> torch.Tensor:
            y = self.body(x)
            return x + y if skip else y

    s = site(Fn(lambda x, block: block(block(x, skip=True), skip=False), Sometimes()))
    assert (s.calls, s.obstacle) == (
        1,
        Reason("other-calls", "layers.0 runs it 2 times, and it is such a place in 1 of them"),
    )
    assert site(Fn(lambda x, block: block(block(x, skip=True), skip=True), Sometimes())).obstacle is None


def test_different_channels_in_different_calls_are_refused() -> None:
    class Shared(nn.Module):
        def forward(self, x: torch.Tensor, layers: nn.Module) -> torch.Tensor:
            return x + F.relu(layers(x))

    def forward(x: torch.Tensor, add: nn.Module, a: nn.Module, b: nn.Module, widen: nn.Module) -> torch.Tensor:
        return add(widen(add(x, a)), b)

    s = site(Fn(forward, Shared(), body(8, 8), body(16, 16), conv(8, 16, 1)))
    assert (s.calls, s.obstacle) == (
        2,
        Reason("channels-vary", "it has different channels in different calls: [8, 16]"),
    )


# -- layouts --------------------------------------------------------------------------------------------------------
class ConvNeXt(Net):
    """torchvision's order: convolution, permute, layers on the last axis, permute back."""

    def __init__(self, back: bool = True) -> None:
        super().__init__()
        self.back = back
        self.dwconv, self.norm = conv(8, 8, 7, g=8), nn.LayerNorm(8)
        self.mlp = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8))
        self.scale = nn.Parameter(torch.ones(8, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.mlp(self.norm(self.dwconv(x).permute(0, 2, 3, 1)))
        if self.back:
            return x + y.permute(0, 3, 1, 2) * self.scale
        return (x.permute(0, 2, 3, 1) + y).permute(0, 3, 1, 2)


class Tokens(Net):
    """A transformer block's MLP, on tokens."""

    shape: ClassVar[tuple[int, ...]] = (16, 8)

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mlp = nn.LayerNorm(8), nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.mlp(self.norm(x))


@pytest.mark.parametrize(
    ("net", "layout", "axis", "count"),
    [
        (ConvNeXt(), "NCHW", 1, 8),
        (ConvNeXt(back=False), "NHWC", 3, 8),
        (Tokens(), "NLC", 2, 8),
        (Basic(), "NCHW", 1, 8),
    ],
    ids=["permuted back", "channels last", "tokens", "channels first"],
)
def test_layouts(net: Net, layout: str, axis: int, count: int) -> None:
    s = site(net)
    assert (s.layout, s.axis, s.channels, s.obstacle) == (layout, axis, count, None)


def test_other_ranks() -> None:
    one = Fn(lambda x, f: x + f(x), nn.Sequential(nn.Conv1d(8, 8, 3, 1, 1), nn.ReLU()))
    three = Fn(lambda x, f: x + f(x), nn.Sequential(nn.Conv3d(8, 8, 3, 1, 1), nn.ReLU()))
    vector = Fn(lambda x, f: x + f(x), nn.Sequential(nn.Linear(8, 8), nn.ReLU()))
    assert site(one, torch.zeros(2, 8, 9)).layout == "NCL"
    assert site(three, torch.zeros(2, 8, 3, 4, 5)).layout == "NCDHW"
    assert site(vector, torch.zeros(2, 8)).layout == "NC"


def test_an_unknown_axis_and_a_missing_batch_are_obstacles() -> None:
    def shuffle(x: torch.Tensor) -> torch.Tensor:
        return x.view(2, 2, 4, 8, 8).transpose(1, 2).reshape(2, 8, 8, 8)

    shuffled = Fn(lambda x, f: shuffle(x) + shuffle(f(x)), body(8, 8))
    assert site(shuffled).obstacle == Reason("axis-unknown", "the channel axis of shape [2, 8, 8, 8] is not known")
    beside = Fn(lambda x, f: x + f(x).view(2, 2, 4, 8, 8).transpose(1, 2).reshape(2, 8, 8, 8), body(8, 8))
    assert site(beside).axis == 1  # that of what it is added to
    single = Fn(lambda x, f: x + f(x), nn.Sequential(conv(8, 8), nn.ReLU()))
    batchless = Reason("no-batch-axis", "the value of shape [8, 6, 6] has no batch axis")
    assert site(single, torch.zeros(8, 6, 6)).obstacle == batchless


# -- gated already --------------------------------------------------------------------------------------------------
class SE(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(c, 4, 1), nn.Conv2d(4, c, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.fc2(F.relu(self.fc1(x.mean((2, 3), keepdim=True)))).sigmoid()


class Gated(Net):
    """A gate at the branch's end, or after the depthwise convolution, as a child or written out."""

    def __init__(self, where: str, inline: bool) -> None:
        super().__init__()
        self.where, self.inline = where, inline
        self.expand, self.depthwise, self.project = unit(8, 16, 1), unit(16, 16, g=16), conv(16, 8, 1)
        self.gate = SE(16 if where == "inner" else 8)

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        if not self.inline:
            return self.gate(x)
        s = self.gate.fc2(F.relu(self.gate.fc1(x.mean((2, 3), keepdim=True))))
        return x * s.sigmoid()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.depthwise(self.expand(x))
        if self.where == "inner":
            y = self.attend(y)
        y = self.project(y)
        if self.where == "standard":
            y = self.attend(y)
        return x + y


BY_GATE = [Reason("gated", f"already gated by {name}") for name in ("gate", "mul")]


@pytest.mark.parametrize("inline", [False, True])
def test_a_gate_at_the_end_of_a_branch(inline: bool) -> None:
    found = sites(Gated("standard", inline))
    assert found[":inner"].gated is None
    assert found[":standard"].gated in BY_GATE


@pytest.mark.parametrize("inline", [False, True])
def test_a_gate_before_the_projection(inline: bool) -> None:
    found = sites(Gated("inner", inline))
    assert found[":standard"].gated is None
    assert found[":inner"].gated in BY_GATE
    assert found[":inner"].shape == (2, 16, 8, 8)


def test_a_gate_in_front_of_the_activation() -> None:
    """RexNet: depthwise convolution, norm, gate, activation, projection."""

    def forward(x: torch.Tensor, dw: nn.Module, bn: nn.Module, gate: nn.Module, project: nn.Module) -> torch.Tensor:
        return x + project(F.relu6(gate(bn(dw(x)))))

    net = Fn(forward, conv(8, 8, g=8), nn.BatchNorm2d(8), SE(8), conv(8, 8, 1))
    assert site(net, placement="inner").gated == Reason("gated", "already gated by layers.2")
    assert site(net).gated is None


@pytest.mark.parametrize(
    ("build", "placement"),
    [
        (lambda: timm.create_model("seresnet18"), "standard"),
        (lambda: timm.create_model("mobilenetv3_small_100").blocks[3], "inner"),
        (lambda: torchvision.models.regnet_y_400mf().trunk_output.block1, "inner"),
        (lambda: torchvision.models.efficientnet_b0().features[3], "inner"),
    ],
)
def test_gates_of_the_zoos(build: Callable[[], nn.Module], placement: str) -> None:
    net = build()
    width = next(p.shape[1] for p in net.parameters())
    found = sites(net, torch.zeros(2, width, 32, 32), placements=(placement,))
    assert found
    assert [name for name, s in found.items() if not s.gated] == []


# -- carriers -------------------------------------------------------------------------------------------------------
class WithSlot(Net):
    """``se`` is an attribute that the forward calls when it is there; ``how`` says what stands in it."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.body = body(8, 8)
        if how == "child":
            self.register_module("se", None)
        else:
            self.se = {"none": None, "identity": nn.Identity(), "taken": nn.ReLU()}[how]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.body(x)
        if self.se is not None:
            y = self.se(y)
        return x + y


class Elsewhere(WithSlot):
    """The slot runs before the branch, not at its end."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x
        if self.se is not None:
            y = self.se(y)
        return x + self.body(y)


class Unread(Net):
    """A ``None`` called ``se`` that no method reads."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.se = body(8, 8), None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x)


class Method(Unread):
    def se_1(self) -> None:
        """Takes the name."""


class Flag(Net):
    """``se`` is read, but is no module."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.se = body(8, 8), 0.5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.se * self.body(x)


class Constants(WithSlot):
    """Makes a tensor on the way: the trial of the slot must run on the meta device too."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x + torch.zeros(1))


@pytest.mark.parametrize(
    ("net", "kind", "name"),
    [
        (WithSlot("none"), "slot", "se"),
        (WithSlot("child"), "slot", "se"),
        (WithSlot("identity"), "slot", "se"),
        (Constants("none"), "slot", "se"),
        (WithSlot("taken"), "source", "se_1"),
        (Elsewhere("none"), "source", "se_1"),
        (Elsewhere("identity"), "source", "se_1"),
        (Unread(), "source", "se"),
        (Method(), "source", "se"),
        (Flag(), "source", "se_1"),
        (Basic(), "source", "se"),
    ],
    ids=lambda value: f"{type(value).__name__}" if isinstance(value, nn.Module) else value,
)
def test_slots_and_names(net: Net, kind: str, name: str) -> None:
    (decision,) = make_plan(net, net.shape, "standard").plan.insertions
    assert (decision.site.carrier.kind, decision.site.carrier.path, decision.key) == (kind, "", name)


def test_a_slot_is_put_back_after_its_trial() -> None:
    for how in ("none", "child"):
        net = WithSlot(how)
        before = (dict(vars(net)), dict(net._modules))
        found = find_sites(recorded := trace(net, resolve(net, net.shape)), ("standard",))
        assert found.sites[0].carrier.kind == "slot"
        assert (dict(vars(net)), dict(net._modules)) == before
        assert recorded.root.se is None
        assert ("se" in recorded.root._modules) is (how == "child")


def test_several_sites_of_one_owner_have_names_of_their_own() -> None:
    net = NETS["TwoJoins"]()
    keys = {d.site.id: d.key for d in make_plan(net, net.shape, "standard").plan.insertions}
    assert keys == {"block:standard": "block.se", "block:standard_2": "block.se_1"}


def test_methods_that_are_overridden_or_set_on_the_instance() -> None:
    class Derived(Basic):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * 2

    class Inherits(Basic):
        pass

    overridden = site(Derived())
    assert overridden.carrier is None and says(overridden.obstacle, "overridden", "overridden in Derived")
    text = "bn2 is a BatchNorm2d, which conversions replace, and the block with it"
    assert says(overridden.obstacle, "overridden", text)
    assert site(Inherits()).carrier.kind == "source"
    net = Basic()
    net.forward = lambda x: Basic.forward(net, x)
    assert says(site(net).obstacle, "own-forward", "forward is set on the instance of Basic")


def test_forward_on_the_instance_and_no_child_to_go_to() -> None:
    net = NETS["Functional"]()
    net.forward = lambda x: type(net).forward(net, x)
    text = "forward is set on the instance of Functional, and is not its class's: give it in a subclass"
    assert {s.obstacle for s in sites(net).values()} == {Reason("own-forward", text)}
    child = conv(8, 8)
    child.forward = lambda x: nn.Conv2d.forward(child, x)
    s = site(Fn(lambda x, f: x + f(x), child))
    assert says(s.obstacle, "helper", "forward is set on the instance of Conv2d")


class Private(Net):
    def __init__(self) -> None:
        super().__init__()
        self.f, self.__factor = body(8, 8), 2.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + F.relu(self.f(x)) * self.__factor


def from_outside(self: Any, x: torch.Tensor) -> torch.Tensor:
    return x + F.relu(self.f(x)) * self.__dict__.get("__factor", self.__factor)


class Foreign(Net):
    """Its forward was written outside of any class: there ``self.__x`` is not mangled."""

    def __init__(self) -> None:
        super().__init__()
        self.f = body(8, 8)
        setattr(self, "__factor", 2.0)

    forward = from_outside


def test_private_names() -> None:
    assert site(Private()).carrier.kind == "source"
    s = site(Foreign())
    assert (s.carrier, s.obstacle) == (
        None,
        Reason("no-source", "Foreign.forward uses private names (self.__x), which a subclass cannot"),
    )


class Loop(Net):
    """A loop over children in the owner's own forward: the child carries the block."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x
        for layer in self.layers:
            y = layer(y)
        return x + y


@pytest.mark.parametrize(
    ("layers", "carrier"),
    [
        ((conv(8, 8), nn.ReLU(), nn.Tanh()), Carrier("wrap_output", "layers.2", "se")),
        ((unit(8, 8), body(8, 8)), Carrier("append", "layers.1", "se")),
        ((unit(8, 8), MBConv()), Carrier("wrap_output", "layers.1", "se")),
    ],
)
def test_a_loop_goes_to_the_child(layers: tuple[nn.Module, ...], carrier: Carrier) -> None:
    (outer,) = [s for s in sites(Loop(*layers), placements=("standard",)).values() if s.owner == ""]
    assert outer.carrier == carrier


def test_a_child_that_runs_elsewhere_too_carries_nothing() -> None:
    relu = nn.ReLU()
    s = site(Loop(conv(8, 8), relu, conv(8, 8), relu))
    assert s.carrier is None
    text = (
        "Loop.forward runs the expression more than once in one forward (a loop); "
        "layers.1 (ReLU) is called 2 times in one forward, and not only here"
    )
    assert says(s.obstacle, "loop", text)


def test_torch_s_own_loop_goes_to_the_child() -> None:
    inner = site(SequentialMBConv(), placement="inner")
    assert (inner.id, inner.owner, inner.carrier) == ("conv.1:inner", "conv", Carrier("append", "conv.1", "se"))
    shared = nn.ReLU()
    layers = nn.Sequential(conv(8, 16, 1), shared, conv(16, 16, g=16), shared, conv(16, 8, 1))
    s = site(Fn(lambda x, f: x + f(x), layers), placement="inner")
    assert s.carrier is None
    text = "Sequential runs it in a loop of torch's own; layers.0.1 (ReLU) is called 2 times"
    assert says(s.obstacle, "torch-loop", text)


def test_a_sequential_of_another_class_runs_what_is_appended_only_if_its_forward_is_the_same() -> None:
    class Doubles(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * 2

    s = site(Loop(unit(8, 8), Doubles(*body(8, 8))))
    assert s.carrier is None
    assert says(s.obstacle, "loop", "Doubles runs all its children, and would run a new one too")
    assert site(Loop(unit(8, 8), torchvision.ops.Conv2dNormActivation(8, 8))).carrier.kind == "append"


class Several(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.f = body(8, 8)

    def forward(self, x: torch.Tensor) -> Any:
        return self.f(x), {"shape": x.shape}


def test_one_of_several_values_of_a_child() -> None:
    s = site(Fn(lambda x, child: x + F.relu(child(x)[0]), Several()))
    assert s.obstacle == Reason("helper", "it is computed inside a function that Fn.forward calls")
    s = site(Fn(lambda x, child: x + child(x)[0], Several()))  # a gate in the addition would be in the function, too
    assert s.obstacle == Reason("helper", "it is computed inside a function that Fn.forward calls")


def helper(x: torch.Tensor, f: nn.Module) -> torch.Tensor:
    return F.relu(f(x))


class ByHelper(Net):
    def __init__(self) -> None:
        super().__init__()
        self.f = body(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + helper(x, self.f)


def test_a_helper_function_hides_the_expression() -> None:
    s = site(ByHelper())
    hidden = Reason("helper", "it is computed inside a function that ByHelper.forward calls")
    assert (s.carrier, s.obstacle) == (None, hidden)


class Statements(Net):
    """The activation is a statement: a call around it would change nothing."""

    def __init__(self, assign: bool) -> None:
        super().__init__()
        self.f, self.assign = body(8, 8), assign

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.f(x)
        if self.assign:
            y = y.relu_()
        else:
            y.relu_()
        return x + y


def test_a_statement_whose_value_is_dropped() -> None:
    s = site(Statements(assign=False))
    dropped = Reason("value-dropped", "Statements.forward makes it by a statement whose value is dropped")
    assert (s.carrier, s.obstacle) == (None, dropped)
    assert site(Statements(assign=True)).carrier.kind == "source"


def test_classes_without_source() -> None:
    namespace: dict[str, Any] = {"Net": Net, "body": body, "F": F}
    text = """
        class Made(Net):
            def __init__(self):
                super().__init__()
                self.f = body(8, 8)
            def forward(self, x):
                return x + {value}
    """
    for value, expected in (("self.f(x)", Carrier("append", "f", "se")), ("F.relu(self.f(x))", None)):
        exec(textwrap.dedent(text).format(value=value), namespace)
        s = site(namespace["Made"]())
        assert s.carrier == expected
        assert bool(s.obstacle) is (expected is None)
    assert says(s.obstacle, "no-source", "the source of Made.forward cannot be read")


class Lambda(Net):
    def __init__(self) -> None:
        super().__init__()
        self.f = body(8, 8)

    forward = lambda self, x: x + F.relu(self.f(x))  # noqa: E731


def test_a_lambda_is_no_method_to_rewrite() -> None:
    s = site(Lambda())
    assert s.carrier is None
    assert s.obstacle.code == "no-source"


def test_a_graph_module_is_its_own_carrier() -> None:
    s = site(fx.symbolic_trace(Basic().eval()))
    assert s.carrier == Carrier("graph", "", "se", node="bn2")
    nested = nn.Sequential(unit(8, 8), fx.symbolic_trace(Basic().eval()))
    carrier = site(nested).carrier
    assert (carrier.kind, carrier.path, carrier.node) == ("graph", "1", "bn2")


# -- absorb ---------------------------------------------------------------------------------------------------------
def affine(**kwargs: Any) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(8, **kwargs)


def tied() -> nn.Sequential:
    first, second = affine(), affine()
    second.weight = first.weight
    return nn.Sequential(conv(8, 8), first, nn.ReLU(), conv(8, 8), second)


def parametrized() -> nn.Sequential:
    norm = affine()
    nn.utils.parametrize.register_parametrization(norm, "weight", nn.Identity())
    return nn.Sequential(conv(8, 8), nn.ReLU(), norm)


def twice() -> nn.Sequential:
    norm = affine()
    return nn.Sequential(conv(8, 8), norm, nn.ReLU(), conv(8, 8), norm)


def scales_not(name: str) -> Reason:
    return Reason("not-scaling", f"between it and a batch norm stands {name}, which does not scale with its input")


ABSORB: dict[str, tuple[Callable[[], nn.Module], str, Reason | None]] = {
    "norm": (lambda: nn.Sequential(conv(8, 8), nn.ReLU(), affine()), "layers.0.2", None),
    "relu": (lambda: nn.Sequential(conv(8, 8), affine(), nn.ReLU()), "layers.0.1", None),
    "leaky relu": (lambda: nn.Sequential(conv(8, 8), affine(), nn.LeakyReLU()), "layers.0.1", None),
    "pool": (lambda: nn.Sequential(conv(8, 8), affine(), nn.ReLU(), nn.MaxPool2d(3, 1, 1)), "layers.0.1", None),
    "norm and activation": (lambda: nn.Sequential(conv(8, 8), BatchNormAct(8)), "layers.0.1", None),
    "relu6": (
        lambda: nn.Sequential(conv(8, 8), affine(), nn.ReLU6()),
        "",
        scales_not("ReLU6"),
    ),
    "silu": (
        lambda: nn.Sequential(conv(8, 8), affine(), nn.SiLU()),
        "",
        scales_not("SiLU"),
    ),
    "layer": (
        lambda: nn.Sequential(affine(), nn.ReLU(), conv(8, 8)),
        "",
        scales_not("Conv2d"),
    ),
    "shift": (
        lambda: Fn(lambda x, f, n: n(f(x)) + 1, unit(8, 8), affine()),
        "",
        scales_not("add"),
    ),
    "group norm": (
        lambda: nn.Sequential(conv(8, 8), nn.ReLU(), nn.GroupNorm(2, 8)),
        "",
        Reason("not-affine", "layers.0.2 (GroupNorm) is not a batch norm with weight and bias"),
    ),
    "no affine": (
        lambda: nn.Sequential(conv(8, 8), nn.ReLU(), affine(affine=False)),
        "",
        Reason("not-affine", "layers.0.2 (BatchNorm2d) has no weight and bias"),
    ),
    "tied": (tied, "", Reason("shared-weight", "layers.0.4 (BatchNorm2d) shares its weight with another module")),
    "twice": (twice, "", Reason("called-again", "layers.0.1 (BatchNorm2d) is called 2 times in one forward")),
    "parametrized": (parametrized, "", Reason("parametrized", "layers.0.2 (ParametrizedBatchNorm2d) is parametrized")),
    "function": (
        lambda: Fn(
            lambda x, f, n: F.batch_norm(f(x), n.running_mean, n.running_var, n.weight, n.bias), unit(8, 8), affine()
        ),
        "",
        Reason("called-again", "layers.0.layers.1 (BatchNorm2d) is called 0 times in one forward"),
    ),
}


@pytest.mark.parametrize("name", ABSORB)
def test_which_norm_absorb_doubles(name: str) -> None:
    build, path, reason = ABSORB[name]
    s = site(Fn(lambda x, f: x + f(x), build()))
    assert (s.absorb, s.absorb_obstacle) == (path, reason)


@pytest.mark.parametrize("act", [nn.ReLU(), Fn(lambda x: x.relu())], ids=["leaf", "own class"])
def test_a_norm_whose_value_goes_elsewhere_too(act: nn.Module) -> None:
    def forward(x: torch.Tensor, f: nn.Module, norm: nn.Module, act: nn.Module) -> Any:
        y = norm(f(x))
        return x + act(y), y

    s = site(Fn(forward, unit(8, 8), affine(), act))
    assert (s.absorb, s.absorb_obstacle) == ("", Reason("used-elsewhere", "the value before it is used elsewhere too"))


def test_a_norm_in_a_branch_of_the_whole_block_is_not_the_branch_s() -> None:
    """The value before the activation is the fork of a later join."""

    def forward(x: torch.Tensor, f: nn.Module, norm: nn.Module, g: nn.Module) -> torch.Tensor:
        y = norm(f(x))
        return F.relu(y) + g(y)

    s = site(Fn(forward, unit(8, 8), affine(), body(8, 8)))
    assert s.absorb == "layers.2.4"


# -- modes ----------------------------------------------------------------------------------------------------------
class Moded(Net):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.f, self.g, self.drop = how, body(8, 8), body(8, 8), DropPath()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.how == "train first" and self.training:
            x = x + self.drop(self.g(x))
        y = self.f(x)
        if self.how == "eval" and self.training:
            return y
        if self.how == "train" and not self.training:
            return y
        if self.how == "inline drop path" and self.training:
            y = y * y.new_empty((y.shape[0], 1, 1, 1)).bernoulli_(0.8) / 0.8
        return x + self.drop(y)


class Handed(Moded):
    """Hands its mode on, and goes no other way by it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + F.dropout(self.f(x), 0.1, self.training)


TRAIN, EVAL = "train-mode-only", "eval-mode-only"


@pytest.mark.parametrize(
    ("net", "expected"),
    [
        (Moded("both"), {":standard": (None, None)}),
        (Moded("inline drop path"), {":standard": (None, None)}),
        (Moded("eval"), {":standard": (None, None)}),
        (Moded("train"), {":standard": (TRAIN, "one-path")}),
        (Moded("train first"), {":standard": (None, None), ":standard_train": (TRAIN, "one-path")}),
        (Handed(""), {":standard": (None, None)}),
    ],
    ids=lambda value: value.how or "handed on" if isinstance(value, nn.Module) else "",
)
def test_sites_of_one_mode_only(net: Net, expected: dict[str, tuple[str | None, str | None]]) -> None:
    for model, prefix in ((net, ""), (nn.Sequential(nn.ReLU(), net), "1")):
        recorded = trace(model.train(), resolve(model, net.shape))
        before = [m.training for m in recorded.root.modules()]
        found = train_only(recorded, find_sites(recorded, BOTH), BOTH)
        assert {s.id.removeprefix(prefix): (code(s.obstacle), code(s.note)) for s in found.sites} == expected
        assert [m.training for m in recorded.root.modules()] == before


def test_a_forward_that_needs_targets_in_train_mode_is_left_alone() -> None:
    class Detector(Moded):
        def forward(self, x: torch.Tensor, targets: Any = None) -> torch.Tensor:
            if self.training and targets is None:
                raise ValueError("targets")
            return x + self.f(x)

    net = Detector("")
    recorded = trace(net, resolve(net, net.shape))
    assert [(s.id, s.note) for s in train_only(recorded, find_sites(recorded, BOTH), BOTH).sites] == [
        (":standard", None)
    ]
