"""What a recorded forward holds: a graph for each call, each node with its source; and that it leaves no mark."""

from __future__ import annotations

import linecache
import random
import sys
import threading
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.utils.checkpoint import checkpoint

from se_inject.errors import TraceError
from se_inject.inputs import Inputs, resolve
from se_inject.search.chains import chain
from se_inject.search.joins import joins
from se_inject.search.ops import data, name_of, op, result
from se_inject.search.sites import find_sites
from se_inject.trace.calls import Call, Trace, record_of
from se_inject.trace.record import trace
from se_inject.trace.source import CodeSpan
from tests.helpers import says
from tests.nets import NETS, Basic, DropPath, Fn, Functional, Net, body, conv, unit


def recorded(net: nn.Module, *args: Any, **kwargs: Any) -> Trace:
    """The trace of ``net`` on the given arguments, or on its own shape."""
    return trace(net, Inputs(args, kwargs) if args or kwargs else resolve(net, net.shape))


def nodes(call: Call) -> list[fx.Node]:
    return [node for node in call.graph.nodes if node.op.startswith("call")]


def text(span: CodeSpan) -> str:
    """The source at a span."""
    line, end_line, column, end_column = span.extent
    lines = [text.encode() for text in linecache.getlines(span.code.co_filename)[line - 1 : end_line]]
    lines[-1] = lines[-1][:end_column]
    lines[0] = lines[0][column:]
    return b"".join(lines).decode()


def sources(call: Call) -> list[str]:
    return [text(record_of(node).span) for node in nodes(call)]


def outside(x: torch.Tensor) -> torch.Tensor:
    return x * 3


# -- positions ------------------------------------------------------------------------------------------------------
class Expressions(Net):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act = conv(8, 8), nn.ReLU(inplace=True)

    def helper(self, x: torch.Tensor) -> torch.Tensor:
        return x - 1

    # fmt: off
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        größe = self.conv(x); größe = größe.abs()  # zwölf Spalten weiter  # noqa: E702
        y = F.relu(
            self.act(größe),
        )
        y += x
        y = self.helper(y)
        y.mul_(2)
        y[:, 0] = 0
        y = y.permute(0, 1, 3, 2).contiguous() if y.ndim == 4 else y
        y = y @ y.mT + 1
        return self.conv(self.conv(y) / 2)
    # fmt: on


def test_every_node_knows_its_expression() -> None:
    (call, *_) = recorded(Expressions()).calls
    assert [(name_of(n), text(record_of(n).span)) for n in nodes(call)] == [
        ("conv", "self.conv(x)"),
        ("abs", "größe.abs()"),
        ("act", "self.act(größe)"),
        ("relu", "F.relu(\n            self.act(größe),\n        )"),
        ("add", "y += x"),
        ("sub", "x - 1"),
        ("mul", "y.mul_(2)"),
        ("setitem", "y[:, 0]"),
        ("permute", "y.permute(0, 1, 3, 2)"),
        ("contiguous", "y.permute(0, 1, 3, 2).contiguous()"),
        ("getattr", "y.mT"),
        ("matmul", "y @ y.mT"),
        ("add", "y @ y.mT + 1"),
        ("conv", "self.conv(y)"),
        ("div", "self.conv(y) / 2"),
        ("conv", "self.conv(self.conv(y) / 2)"),
    ]
    assert [record_of(n).span.method for n in nodes(call)] == ["forward"] * 5 + ["helper"] + ["forward"] * 10
    assert all(record_of(n).span.direct for n in nodes(call))


class Helpers(Net):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.double = conv(8, 8), lambda x: x + x

    @property
    def scaled(self) -> torch.Tensor:
        return self.conv.weight * 2

    @staticmethod
    def static(x: torch.Tensor) -> torch.Tensor:
        return x / 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = outside(x)
        x = self.double(x)
        x = self.static(x)
        values = [self.conv(value) for value in (x,)]
        x = values[0]
        x = F.conv2d(x, self.scaled, padding=1)
        x = nn.ReLU()(x)
        return F.batch_norm(x, None, None, training=True)


def test_the_value_of_a_helper_function_is_not_the_expression_s_own() -> None:
    (call, *_) = recorded(Helpers()).calls
    # a comprehension was a function of its own until Python 3.12
    inlined = sys.version_info >= (3, 12)
    assert [(text(record_of(n).span), record_of(n).span.direct) for n in nodes(call)] == [
        ("outside(x)", False),
        ("self.double(x)", False),
        ("self.static(x)", False),
        ("self.conv(value)", True) if inlined else ("[self.conv(value) for value in (x,)]", False),
        ("self.scaled", False),
        ("F.conv2d(x, self.scaled, padding=1)", True),
        ("nn.ReLU()(x)", True),
        ("F.batch_norm(x, None, None, training=True)", True),
    ]


class Base(Net):
    def __init__(self) -> None:
        super().__init__()
        self.conv = conv(8, 8)

    @torch.no_grad()
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)


class Derived(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(super().forward(x))


def test_an_inherited_method_belongs_to_the_class_that_defines_it() -> None:
    (call, *_) = recorded(Derived()).calls
    first, second = (record_of(node).span for node in nodes(call))
    assert (first.cls, first.method, text(first)) == (Base, "forward", "self.conv(x)")
    assert (second.cls, second.method, text(second)) == (Derived, "forward", "F.relu(super().forward(x))")


def test_a_decorated_forward_is_looked_through() -> None:
    (call, *_) = recorded(Base()).calls
    assert sources(call) == ["self.conv(x)"]


class Loop(Net):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([conv(8, 8) for _ in range(3)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def test_a_loop_is_one_expression_and_many_nodes() -> None:
    (call, *_) = recorded(Loop()).calls
    assert sources(call) == ["layer(x)"] * 3
    assert [record_of(n).path for n in nodes(call)] == ["layers.0", "layers.1", "layers.2"]


class Checkpointed(Net):
    def __init__(self) -> None:
        super().__init__()
        self.conv = conv(8, 8)

    def run(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return checkpoint(self.run, x, use_reentrant=False)


def test_checkpointing_and_autocast_hide_nothing() -> None:
    (call, *_) = recorded(Checkpointed()).calls
    used = [node for node in nodes(call) if node.users]  # torch 2.9 makes two empty tensors as marks
    assert [text(record_of(node).span) for node in used] == ["self.conv(x)"]


# -- arguments and results ------------------------------------------------------------------------------------------
@dataclass
class Pair:
    high: torch.Tensor
    low: torch.Tensor


class Takes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = conv(8, 8)

    def forward(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {"out": self.conv(value["x"]), "name": "kept"}
        if isinstance(value, Pair):
            return Pair(self.conv(value.high), value.low)
        return [self.conv(value[0]), value[1]]


class Carries(Net):
    """A value goes through a child inside a list, a dict or an object, and is added to itself."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.child, self.how = Takes(), how

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.how == "list":
            y, z = self.child([x, 1])
            assert z == 1
        elif self.how == "dict":
            y = self.child({"x": x})["out"]
        else:
            y = self.child(Pair(x, x)).high
        return x + y


@pytest.mark.parametrize("how", ["list", "dict", "dataclass"])
def test_values_inside_containers_and_objects_keep_their_way(how: str) -> None:
    call, inside = recorded(Carries(how)).calls
    last = result(call)
    assert last is not None
    assert op(last).kind == "add"
    x, y = data(last)
    assert x.op == "placeholder"
    assert y.target is not None and y.all_input_nodes[0].target == "child"
    (layer,) = nodes(inside)
    assert layer.args[0].op == "placeholder"
    assert record_of(y).shape == (2, 8, 8, 8)


class Keywords(Net):
    def __init__(self) -> None:
        super().__init__()
        self.child = self.Child()

    class Child(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = conv(8, 8)

        def forward(self, *, x: torch.Tensor, rate: float, name: str = "", other: object = None) -> torch.Tensor:
            return self.conv(x) * rate

    def forward(self, x: torch.Tensor, flag: bool = False) -> torch.Tensor:
        return self.child(x=x, rate=0.5, name="n", other=self) if flag else x


def test_keyword_and_plain_arguments_stay_as_they_are() -> None:
    call, child = recorded(Keywords(), torch.zeros(1, 8, 4, 4), flag=True).calls
    (node,) = nodes(call)
    assert node.args == ()
    assert {k: v for k, v in node.kwargs.items() if k != "x"} == {"rate": 0.5, "name": "n", "other": "<Keywords>"}
    assert node.kwargs["x"].op == "placeholder"
    assert child.kwargs["other"] is call.module


def test_only_what_ran_is_recorded() -> None:
    assert len(recorded(Keywords(), torch.zeros(1, 8, 4, 4), flag=False).calls) == 1


class Twice(Net):
    def __init__(self) -> None:
        super().__init__()
        self.child = self.Child()

    class Child(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = conv(8, 8)

        def forward(self, x: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
            x = self.conv(x)
            return x if y is None else x + y

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.child(self.child(x), x)


def test_a_module_called_twice_has_a_graph_for_each_signature() -> None:
    trace = recorded(Twice())
    assert [call.path for call in trace.calls] == ["", "child", "child"]
    _, first, second = trace.calls
    assert [name_of(n) for n in nodes(first)] == ["conv"]
    assert [name_of(n) for n in nodes(second)] == ["conv", "add"]
    assert [len([n for n in c.graph.nodes if n.op == "placeholder"]) for c in (first, second)] == [1, 2]


def test_a_tensor_from_nowhere_is_an_argument() -> None:
    class Cached(Net):
        def __init__(self) -> None:
            super().__init__()
            self.child, self.cache = self.Child(), {}

        class Child(nn.Module):
            def forward(self, cache: dict[str, Any], key: str) -> torch.Tensor:
                return cache["of"].cache[key] * 2

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.cache["x"] = x.abs()
            return self.child({"of": self}, key="x")

    _, child = recorded(Cached()).calls
    (node,) = nodes(child)
    assert [n.op for n in node.all_input_nodes] == ["placeholder"]


# -- identity, by behaviour -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("module", "identity"),
    [
        (nn.Identity(), True),
        (nn.Dropout(0.5), True),
        (DropPath(), True),
        (nn.Sequential(), True),
        (nn.ReLU(inplace=True), False),
        (nn.ReLU(), False),
        (Fn(lambda x: x.relu_()), False),
        (Fn(lambda x: x + 0), False),
        (Fn(lambda x: (x, x)[0]), True),
    ],
)
def test_identity_is_what_returns_its_argument_unwritten(module: nn.Module, identity: bool) -> None:
    (call, *_) = recorded(Fn(lambda x, child: child(x.abs()), module).eval(), torch.zeros(2, 8, 4, 4)).calls
    assert record_of(nodes(call)[-1]).identity is identity


def test_a_value_written_in_place_is_a_node_of_its_own() -> None:
    def forward(x: torch.Tensor, act: nn.Module) -> torch.Tensor:
        y = x.abs()
        z = act(y)
        return torch.cat([y, z])

    (call, *_) = recorded(Fn(forward, nn.ReLU(inplace=True)), torch.zeros(2, 8, 4, 4)).calls
    before, after, last = nodes(call)
    assert data(last) == (before, after)


@pytest.mark.parametrize(
    "statement",
    [
        lambda x, y: x.add_(y),
        lambda x, y: torch.relu_(x),
        lambda x, y: F.relu_(x),
        lambda x, y: torch.add(x, y, out=x),
        lambda x, y: x.__setitem__((slice(None), 0), y[:, 0]),
    ],
)
def test_a_statement_that_writes_is_the_value_from_then_on(statement: Any) -> None:
    def forward(x: torch.Tensor) -> torch.Tensor:
        x = x.abs()
        statement(x, x)
        return x * 2

    (call, *_) = recorded(Fn(forward), torch.zeros(2, 8, 4, 4)).calls
    *_, written, last = nodes(call)
    assert data(last) == (written,)
    assert name_of(written) != "abs"


# -- the model is not touched ---------------------------------------------------------------------------------------
class Stateful(Net):
    """Counts its calls, draws random numbers, and writes an attribute."""

    def __init__(self, item: bool) -> None:
        super().__init__()
        self.body, self.drop, self.item = body(8, 8), nn.Dropout(0.5), item
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.last = random.random()
        x.relu_()
        if self.item and x.sum().item() == 12345:
            return x
        return x + self.drop(self.body(x)) + torch.rand(())


def attributes(model: nn.Module) -> list[Any]:
    return [(path, sorted(vars(m)), m.training, len(m._forward_hooks)) for path, m in model.named_modules()]


@pytest.mark.parametrize("item", [False, True], ids=["on meta", "on real tensors"])
@pytest.mark.parametrize("training", [False, True])
def test_nothing_is_left_behind(item: bool, training: bool) -> None:
    net = Stateful(item).train()
    net.drop.eval()
    net.body[0].register_forward_pre_hook(lambda *_: pytest.fail("the user's hook ran"))
    net.body[1].register_forward_hook(lambda *_: pytest.fail("the user's hook ran"))
    net.register_state_dict_post_hook(lambda *_: None)
    x = torch.randn(2, 8, 4, 4)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    kept, held, state, python = x.clone(), attributes(net), torch.get_rng_state(), random.getstate()

    notes = trace(net, Inputs((x,), {}), training=training).notes

    assert [note.code for note in notes] == ["hooks", *["real-run"] * item]
    assert torch.equal(x, kept)
    assert attributes(net) == held
    assert torch.equal(torch.get_rng_state(), state)
    assert random.getstate() == python
    after = net.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert all(p.grad is None and not p.is_meta for p in net.parameters())


def test_the_fallback_says_why() -> None:
    (note,) = recorded(Stateful(item=True)).notes
    assert says(note, "real-run", "run on real tensors, because the model cannot run on meta tensors: ")
    assert "\n" not in note.text


def test_no_note_without_a_fallback() -> None:
    assert recorded(Stateful(item=False)).notes == []


def test_the_meta_device_reaches_what_the_forward_makes() -> None:
    class Makes(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            grid = torch.arange(x.shape[-1]) + torch.zeros(1)
            return x + grid + torch.ones(8, device=x.device) + torch.tensor([1.0])

    trace = recorded(Makes())
    assert trace.notes == []
    assert record_of(result(trace.calls[0])).shape == (2, 8, 8, 8)


def test_a_caller_in_inference_mode() -> None:
    with torch.inference_mode():
        trace = recorded(Basic())
    assert trace.notes == []
    assert [s.id for s in find_sites(trace, ("standard",)).sites] == [":standard"]


def test_an_inference_mode_of_the_model_s_own() -> None:
    class Inferring(Basic):
        @torch.inference_mode()
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x)

    (call, *_) = recorded(Inferring()).calls
    (join,) = joins(call.graph)
    assert [len(b.nodes) for b in join.branches] == [5, 0]


def test_an_exception_that_the_forward_catches() -> None:
    class Child(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = conv(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.conv(x)
            raise NotImplementedError

    class Tries(Net):
        def __init__(self) -> None:
            super().__init__()
            self.bad, self.leaf, self.good = Child(), conv(3, 8), conv(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for child in (self.bad, self.leaf):
                try:
                    return child(x)
                except (NotImplementedError, RuntimeError):
                    pass
            return self.good(x)

    call, child = recorded(Tries()).calls
    assert [n.target for n in nodes(call)] == ["bad", "leaf", "good"]
    assert [n.target for n in nodes(child)] == ["conv"]
    assert data(result(call))[0].op == "placeholder"


# -- errors ---------------------------------------------------------------------------------------------------------
def sentence(error: pytest.ExceptionInfo[TraceError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    assert message.endswith(".") and ".." not in message
    assert len(message) < 700
    return message


def test_inputs_that_do_not_fit() -> None:
    with pytest.raises(TraceError) as error:
        recorded(Basic(), torch.zeros(2, 3, 8, 8))
    message = sentence(error)
    assert message.startswith("Basic cannot be run on the example inputs")
    assert "float32[2, 3, 8, 8]" in message and "--input-size" in message


def test_arguments_that_do_not_fit() -> None:
    with pytest.raises(TraceError) as error:
        recorded(Basic(), x=torch.zeros(2, 8, 8, 8), y=1)
    assert "unexpected keyword argument 'y'" in sentence(error)


def test_a_model_without_weights_that_needs_numbers() -> None:
    net = Stateful(item=True).to_empty(device="meta")
    with pytest.raises(TraceError) as error:
        recorded(net, torch.zeros(2, 8, 4, 4))
    assert "has no weights" in sentence(error)


def test_a_model_that_cannot_be_copied() -> None:
    net = Basic()
    net.lock = threading.Lock()
    with pytest.raises(TraceError) as error:
        recorded(net)
    assert "copy.deepcopy" in sentence(error)


# -- kinds of models ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("wrap", [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm])
def test_parametrized_weights(wrap: Any) -> None:
    net = Basic().eval()
    wrap(net.conv2)
    trace = recorded(net)
    (site,) = find_sites(trace, ("standard",)).sites
    assert (site.id, site.channels, site.absorb) == (":standard", 8, "bn2")


def test_old_weight_norm_is_a_hook_and_is_not_run() -> None:
    net = Basic()
    with pytest.warns(FutureWarning):
        nn.utils.weight_norm(net.conv2)
    assert [s.channels for s in find_sites(recorded(net), ("standard",)).sites] == [8]


def test_a_subclass_of_a_layer_is_still_that_layer() -> None:
    class Standardised(nn.Conv2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
            return F.conv2d(F.pad(x, (1, 1, 1, 1)), weight, self.bias)

    (call, *_) = recorded(Fn(lambda x, layer: layer(x), Standardised(8, 16, 3)), torch.zeros(2, 8, 4, 4)).calls
    pad, layer = chain(nodes(call)[0])
    assert pad.kind == "pad"
    assert (layer.kind, layer.kernel, layer.inputs, layer.outputs) == ("conv", (3, 3), 8, 16)
    assert layer.path == "layers.0"


def test_a_functional_network_names_the_owner_of_each_weight() -> None:
    (call,) = recorded(Functional()).calls
    layers = [op(n) for n in nodes(call) if op(n).kind == "conv"]
    assert [(o.kernel, o.inputs, o.outputs, o.groups) for o in layers] == [
        ((1, 1), 8, 16, 1),
        ((3, 3), 16, 16, 16),
        ((1, 1), 16, 8, 1),
    ]
    assert [op(n).kind for n in nodes(call)] == ["conv", "act", "conv", "norm", "act", "conv", "add"]


def graph_module() -> fx.GraphModule:
    return fx.symbolic_trace(Basic().eval())


def test_a_graph_module_is_read_node_by_node() -> None:
    module = graph_module()
    trace = recorded(module, torch.zeros(2, 8, 8, 8))
    (call, *_) = trace.calls
    names = {n.name for n in module.graph.nodes}
    assert {record_of(n).fx_node for n in nodes(call)} <= names
    (site,) = find_sites(trace, ("standard",)).sites
    assert (site.carrier.kind, site.carrier.node, site.carrier.name) == ("graph", "bn2", "se")
    assert "forward" not in vars(module)


def test_a_graph_module_inside_a_module_is_given_back_as_it_was() -> None:
    net = Fn(lambda x, inside: inside(x) * 2, graph_module())
    first, second = recorded(net).calls[:2]
    assert [record_of(n).fx_node for n in nodes(first)] == ["", ""]
    assert all(record_of(n).fx_node for n in nodes(second))
    assert torch.equal(net(x := torch.randn(2, 8, 8, 8)), net.layers[0](x) * 2)


def test_an_exported_program_is_a_graph_too() -> None:
    net = Basic().eval()
    module = torch.export.export(net, (torch.randn(2, 8, 8, 8),)).module()
    sites = find_sites(recorded(module, torch.zeros(2, 8, 8, 8)), ("standard",)).sites
    assert [(s.id, s.channels, s.carrier.kind) for s in sites] == [(":standard", 8, "graph")]


def test_a_chain_longer_than_python_s_stack() -> None:
    graph = fx.Graph()
    value = x = graph.placeholder("x")
    for _ in range(1500):
        value = graph.call_method("abs", (value,))
    graph.output(graph.call_function(torch.add, (value, x)))
    net = Fn(lambda x, chain: chain(x).relu(), fx.GraphModule(nn.Module(), graph))
    assert find_sites(recorded(net), ("standard",)).sites == ()


@pytest.mark.parametrize("name", NETS)
def test_two_recordings_are_the_same(name: str) -> None:
    net = NETS[name]()
    first, second = ([str(call.graph) for call in recorded(net).calls] for _ in range(2))
    assert first == second


def test_the_trace_is_in_the_order_of_execution() -> None:
    calls = recorded(Fn(lambda x, a, b: b(a(x)), unit(8, 8), unit(8, 8))).calls
    assert [c.path for c in calls] == ["", "layers.0", "layers.1"]
    assert [c.order for c in calls] == sorted(c.order for c in calls)
    assert [list(c.ancestors()) for c in calls] == [[calls[0]], [calls[1], calls[0]], [calls[2], calls[0]]]
