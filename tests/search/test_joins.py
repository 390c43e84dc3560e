"""Joins, forks, branches and dominators, on written-out networks and on random graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx, nn

from se_inject.inputs import Inputs, resolve
from se_inject.search.gated import gated
from se_inject.search.joins import Join, dominators, end, joins
from se_inject.search.ops import data, name_of
from se_inject.trace.record import trace
from se_inject.types import Reason
from tests.nets import NETS, DropPath, Fn, LayerScale, Net, body, conv, unit

SHAPE = (2, 8, 4, 4)


def graph(net: nn.Module, *inputs: torch.Tensor) -> fx.Graph:
    given = Inputs(inputs, {}) if inputs else resolve(net, getattr(net, "shape", SHAPE[1:]))
    return trace(net, given).calls[0].graph


def join(fn: Callable[..., Any], *layers: nn.Module) -> Join:
    """The one join of ``fn(x, *layers)``."""
    (found,) = joins(graph(Fn(fn, *layers)))
    return found


# -- what is a join -------------------------------------------------------------------------------------------------
FORMS: dict[str, Callable[[torch.Tensor, nn.Module], torch.Tensor]] = {
    "operator": lambda x, f: x + f(x),
    "operator, turned": lambda x, f: f(x) + x,
    "torch.add": lambda x, f: torch.add(x, f(x)),
    "with alpha": lambda x, f: torch.add(x, f(x), alpha=0.5),
    "out": lambda x, f: torch.add(x, y := f(x), out=y),
    "method": lambda x, f: f(x).add(x),
    "in place": lambda x, f: f(x).add_(x),
    "overload": lambda x, f: torch.ops.aten.add.Tensor(x, f(x)),
    "sum of a list": lambda x, f: sum([x, f(x)]),
    "difference": lambda x, f: x - f(x),
    "between both": lambda x, f: torch.lerp(x, f(x), 0.5),
    "with a factor": lambda x, f: torch.addcmul(x, f(x), torch.ones(8, 1, 1)),
    "sum of a stack": lambda x, f: torch.stack((x, f(x))).sum(0),
    "activation after": lambda x, f: F.relu(x + f(x), inplace=True),
    "scaled": lambda x, f: 0.5 * x + f(x) / 2,
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_addition(form: str) -> None:
    found = join(FORMS[form], body(8, 8))
    assert found.fork is not None and found.fork.op == "placeholder"
    (deep,) = found.residual
    assert {name_of(n) for n in deep.nodes} <= {"layers.0", "add", "div"}
    assert end(deep).target == "layers.0"
    (shortcut,) = found.shortcuts
    assert shortcut.weight == 0


def test_augmented_assignment_and_float_functional() -> None:
    class Augmented(Net):
        def __init__(self) -> None:
            super().__init__()
            self.f, self.g, self.ff = body(8, 8), body(8, 8), torch.ao.nn.quantized.FloatFunctional()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.f(x)
            y += x
            return self.ff.add_relu(self.g(y), y)

    first, second = joins(graph(Augmented()))
    assert [end(b).target for j in (first, second) for b in j.residual] == ["f", "g"]


NO_JOINS: dict[str, Callable[[torch.Tensor, nn.Module], torch.Tensor]] = {
    "larger": lambda x, f: torch.maximum(x, f(x)),
    "product": lambda x, f: x * f(x),
    "concatenation": lambda x, f: torch.cat([x, f(x)], 1),
    "a number": lambda x, f: f(x) + 1,
    "a constant": lambda x, f: f(x) + torch.ones(8, 1, 1),
    "another shape": lambda x, f: f(x) + x.mean((2, 3), keepdim=True),
    "itself": lambda x, f: (y := f(x)) + y,
    "vectors": lambda x, f: (f(x).sum((0, 2, 3))) + x.sum((0, 2, 3)),
    "a convolution with a bias": lambda x, f: f(x),
}


@pytest.mark.parametrize("form", NO_JOINS)
def test_no_joins(form: str) -> None:
    assert joins(graph(Fn(NO_JOINS[form], conv(8, 8, bias=True)))) == []


# -- chained additions are one join ---------------------------------------------------------------------------------
def test_operands_of_a_chained_sum() -> None:
    found = join(lambda x, f, g, h: f(x) + (x + g(x)) + h(x), body(8, 8), body(8, 8), conv(8, 8, 1))
    assert [b.operand.target for b in found.branches] == ["layers.0", "arg0", "layers.1", "layers.2"]
    assert [b.weight for b in found.branches] == [2, 0, 2, 1]
    assert [b.operand.target for b in found.residual] == ["layers.0", "layers.1"]
    assert [b.operand.target for b in found.shortcuts] == ["arg0", "layers.2"]


def test_a_sum_that_is_used_twice_is_a_join_of_its_own() -> None:
    def forward(x: torch.Tensor, f: nn.Module, g: nn.Module) -> torch.Tensor:
        x = x + f(x)
        return x + g(x)

    first, second = joins(graph(Fn(forward, body(8, 8), body(8, 8))))
    assert second.fork is first.node
    assert [b.operand.target for b in second.branches] == ["add", "layers.1"]


def test_an_activation_between_ends_the_chain() -> None:
    found = joins(graph(Fn(lambda x, f, g: F.relu(x + f(x)) + g(x), body(8, 8), body(8, 8))))
    assert [len(j.branches) for j in found] == [2, 2]


# -- branches -------------------------------------------------------------------------------------------------------
WEIGHTS: list[tuple[int, tuple[nn.Module, ...]]] = [
    (0, ()),
    (0, (nn.BatchNorm2d(8),)),
    (0, (nn.ReLU(), nn.AvgPool2d(1))),
    (1, (conv(8, 8, 1),)),
    (1, (conv(8, 8), nn.BatchNorm2d(8))),
    (2, (unit(8, 8),)),
    (2, (conv(8, 8), nn.ReLU())),
    (1, (conv(8, 8, g=8), conv(8, 8, 1))),  # GhostNet: linear, and ends with a projection
    (1, (nn.BatchNorm2d(8), nn.ReLU(), conv(8, 8, 1))),  # DPN: a projection of the activated value
    (2, (nn.ReLU(), conv(8, 8))),
    (2, (conv(8, 8), conv(8, 8))),
    (2, (body(8, 8), body(8, 8))),
]


@pytest.mark.parametrize(("weight", "layers"), WEIGHTS)
def test_weight_of_a_branch(weight: int, layers: tuple[nn.Module, ...]) -> None:
    def forward(x: torch.Tensor, other: nn.Module, *branch: nn.Module) -> torch.Tensor:
        y = x
        for layer in branch:
            y = layer(y)
        return y + other(x)

    found = join(forward, body(8, 8), *layers)
    assert [b.weight for b in found.branches] == [weight, 2]
    assert bool(found.residual) is (weight < 2)


def test_layers_side_by_side_do_not_add_up() -> None:
    parallel = Fn(lambda x, a, b: torch.cat([a(x), b(x)], 1), conv(8, 4), conv(8, 4))
    assert [b.weight for b in join(lambda x, p, f: p(x) + f(x), parallel, body(8, 8)).branches] == [1, 2]


def test_the_fork_is_where_all_branches_part() -> None:
    def forward(x: torch.Tensor, before: nn.Module, f: nn.Module) -> torch.Tensor:
        x = before(x)
        y = F.relu(x)
        return f(y) + x

    found = join(forward, unit(8, 8), body(8, 8))
    assert found.fork.target == "layers.0"
    assert [sorted(name_of(n) for n in b.nodes) for b in found.branches] == [["layers.1", "relu"], []]
    assert [b.direct for b in found.branches] == [False, True]


def test_a_shared_stem_is_before_the_fork() -> None:
    def forward(x: torch.Tensor, stem: nn.Module, f: nn.Module, g: nn.Module) -> torch.Tensor:
        x = stem(x)
        return f(x) + g(x)

    found = join(forward, body(8, 8), body(8, 8), conv(8, 8, 1))
    assert found.fork.target == "layers.0"
    assert [b.weight for b in found.branches] == [2, 1]


class Arguments(Net):
    """A block that takes two values."""

    def __init__(self, fn: Callable[..., Any], *layers: nn.Module) -> None:
        super().__init__()
        self.fn, self.layers = fn, nn.ModuleList(layers)

    def forward(self, x: Any, y: Any = None) -> Any:
        return self.fn(x, y, *self.layers)


@pytest.mark.parametrize(
    ("branch", "residual"),
    [
        (conv(8, 8), True),
        (conv(8, 8, 1), True),
        (conv(8, 8, g=8), False),  # ConvPosEnc of CoaT, DaViT and Twins
        (nn.Sequential(conv(8, 8, g=8), nn.BatchNorm2d(8)), False),
        (nn.Sequential(conv(8, 8, g=8), nn.ReLU()), True),
        (Fn(lambda x, a, b: a(x) + b(x), conv(8, 8, g=8), conv(8, 8, 1, g=8)), False),  # RepMixer of FastViT
    ],
)
def test_one_layer_beside_the_value(branch: nn.Module, residual: bool) -> None:
    assert bool(join(lambda x, f: x + f(x), branch).residual) is residual


def test_two_layers_side_by_side_and_the_value_are_a_sum() -> None:
    assert join(lambda x, f, g: f(x) + g(x) + x, conv(8, 8), conv(8, 8, 1)).residual == ()


def test_a_shortcut_that_is_passed_in() -> None:
    x = torch.zeros(SHAPE)
    (found,) = joins(graph(Arguments(lambda x, y, f: f(x) + y, body(8, 8)), x, x.clone()))
    assert found.fork is None
    assert [b.operand.target for b in found.residual] == ["layers.0"]
    assert [(b.direct, len(b.nodes)) for b in found.shortcuts] == [(True, 1)]


@pytest.mark.parametrize("pack", [list, tuple])
def test_maps_in_a_list_are_no_shortcuts(pack: Any) -> None:
    maps = pack([torch.zeros(SHAPE), torch.zeros(SHAPE)])
    net = Arguments(lambda maps, _, f: f(maps[0]) + maps[1], body(8, 8))
    (found,) = joins(trace(net, Inputs((maps,), {})).calls[0].graph)
    assert found.fork is None
    assert found.residual == ()


@pytest.mark.parametrize(
    "parts",
    [
        lambda x: torch.split(x, 4, 1),
        lambda x: torch.chunk(x, 2, 1),
        lambda x: x.unbind(0),
        lambda x: (x[:, :4], x[:, 4:]),
    ],
)
def test_parts_of_a_split_are_other_values(parts: Callable[..., Any]) -> None:
    def forward(x: torch.Tensor, f: nn.Module) -> torch.Tensor:
        a, b = parts(x)
        channels = a.shape[-3]
        layers = f if channels == 4 else nn.Sequential()
        return layers(a) + b

    (found,) = joins(graph(Fn(forward, body(4, 4)), torch.zeros(SHAPE)))
    assert found.residual == ()


@pytest.mark.parametrize("name", ["FPN", "HRNet", "RepVGG", "TwoDeepBranches", "TwoPaths", "Res2Net"])
def test_sums_that_are_not_residual(name: str) -> None:
    net = NETS[name]()
    found = [j for call in trace(net, resolve(net, net.shape)).calls for j in joins(call.graph)]
    assert [j for j in found if not j.residual]
    assert len([j for j in found if j.residual]) == len(net.standard)


# -- the end of a branch --------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "after",
    [
        DropPath(),
        nn.Dropout(0.5),
        LayerScale(8),
        nn.Identity(),
        nn.Sequential(LayerScale(8), DropPath()),
        Fn(lambda y: y * 0.2),
        Fn(lambda y: y.div_(2)),
        Fn(lambda y: y.contiguous()),
        Fn(lambda y: y.to(torch.float32)),
    ],
    ids=str,
)
def test_what_passes_is_looked_through(after: nn.Module) -> None:
    net = Fn(lambda x, f, after: x + after(f(x)), body(8, 8), after).eval()
    (found,) = joins(graph(net))
    assert end(found.residual[0]).target == "layers.0"


@pytest.mark.parametrize("after", [nn.ReLU(), nn.BatchNorm2d(8), Fn(lambda y: y + 1), nn.AvgPool2d(1)], ids=str)
def test_what_does_not_pass_is_the_end(after: nn.Module) -> None:
    found = join(lambda x, f, after: x + after(f(x)), body(8, 8), after)
    assert end(found.residual[0]).target == "layers.1"


def test_a_branch_of_nothing_has_no_end() -> None:
    (shortcut,) = join(lambda x, f: 0.5 * x + f(x), body(8, 8)).shortcuts
    assert end(shortcut) is None


# -- gated already --------------------------------------------------------------------------------------------------
def squeeze(x: torch.Tensor, fc: nn.Module) -> torch.Tensor:
    return x * fc(x.mean((2, 3), keepdim=True)).sigmoid()


def test_a_gated_branch_on_a_map_of_one_position_is_still_added() -> None:
    def forward(x: torch.Tensor, f: nn.Module, fc: nn.Module) -> torch.Tensor:
        return x + squeeze(f(x), fc)

    (found,) = joins(graph(Fn(forward, body(8, 8), nn.Conv2d(8, 8, 1)), torch.zeros(2, 8, 1, 1)))
    assert gated(found.residual[0].operand) == Reason("gated", "already gated by mul")


@pytest.mark.parametrize(
    ("after", "found"),
    [
        ((), True),
        ((nn.ReLU(),), True),
        ((nn.BatchNorm2d(8), nn.ReLU()), True),
        ((DropPath(), LayerScale(8)), True),
        ((conv(8, 8, 1),), False),
        ((nn.AvgPool2d(1),), False),
        ((body(8, 8),), False),
    ],
)
def test_a_gate_counts_until_the_next_layer(after: tuple[nn.Module, ...], found: bool) -> None:
    gate = Fn(squeeze, nn.Conv2d(8, 8, 1))
    for net in (
        Fn(lambda x, *layers: nn.Sequential(*layers)(x), body(8, 8), gate, *after),
        Fn(lambda x, layers: layers(x), nn.Sequential(body(8, 8), gate, *after)),
    ):
        (node,) = graph(net.eval()).output_node().all_input_nodes
        assert bool(gated(node)) is found
    if found:
        assert gated(node) == Reason("gated", "already gated by layers.0")


def test_the_reason_names_the_gate() -> None:
    gate = Fn(squeeze, nn.Conv2d(8, 8, 1))
    (node,) = graph(Fn(lambda x, f, g: F.relu(g(f(x))), body(8, 8), gate)).output_node().all_input_nodes
    assert gated(node) == Reason("gated", "already gated by layers.1")


# -- dominators -----------------------------------------------------------------------------------------------------
@st.composite
def graphs(draw: st.DrawFn) -> fx.Graph:
    """A random graph of additions, with constants among the operands."""
    made = fx.Graph()
    values = [made.placeholder(f"x{i}") for i in range(draw(st.integers(1, 3)))]
    values.append(made.get_attr("weight"))
    for _ in range(draw(st.integers(1, 14))):
        picked = draw(st.lists(st.integers(0, len(values) - 1), min_size=1, max_size=3))
        values.append(made.call_function(torch.add, tuple(values[-1 - i] for i in picked)))
    made.output(values[-1])
    return made


@settings(max_examples=150)
@given(graphs())
def test_dominators_are_what_the_definition_says(made: fx.Graph) -> None:
    def reached(without: fx.Node | None) -> set[fx.Node]:
        """Nodes to which data of some argument comes when one node is taken out."""
        found: set[fx.Node] = set()
        for node in made.nodes:
            if node is not without and (node.op == "placeholder" or any(n in found for n in data(node))):
                found.add(node)
        return found

    everything = reached(None)
    strict = {n: {d for d in everything if d is not n and n not in reached(d)} for n in everything}
    above = dominators(made)
    for node in everything:
        nearest = above[node]
        assert strict[node] == ({nearest} | strict[nearest] if nearest is not None else set())
