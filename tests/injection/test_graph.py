"""One graph of a whole model, for those who want it: the same outputs, or a reason."""

from __future__ import annotations

import copy

import pytest
import torch
import torchvision
from torch import fx, nn
from torch.nn import functional as F

import se_inject
from tests.helpers import randomise
from tests.tiny import SIZE, Dropped, image, inject, net, open_gates


class Sized(nn.Module):
    """A branch on the size, which symbolic tracing cannot take and exporting can."""

    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x if x.mean(0).shape[-1] > 8 and x.shape[0] else -x)


class Valued(Sized):
    """A branch on a value, which neither takes."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x if x.sum() > 0 else -x)


def test_a_rewritten_model_as_one_graph() -> None:
    model = open_gates(inject(randomise(torchvision.models.resnet18(num_classes=10).eval()), size=(3, 64, 64)).model)
    before = copy.deepcopy(model.state_dict())
    graph = se_inject.to_graph(model, (3, 64, 64))
    assert type(graph).__mro__[1] is fx.GraphModule and not graph.training
    x = image(size=(3, 64, 64))
    assert torch.equal(graph(x), model(x))
    assert torch.equal(graph(image(3, (3, 96, 64))), model(image(3, (3, 96, 64))))  # sizes stay open
    assert {*graph.state_dict()} == {*model.state_dict()}
    assert graph.get_submodule("layer1.0.se.fc1").weight is model.layer1[0].se.fc1.weight
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_the_mode_is_the_model_s() -> None:
    model = inject(net(Dropped)).model.train()
    graph = se_inject.to_graph(model, SIZE)
    for seed in range(3):
        outputs = []
        for module in (model, graph):
            torch.manual_seed(seed)
            outputs.append(module(image()))
        assert torch.equal(*outputs)
    assert model.training and not torch.equal(graph(image()), graph(image()))
    with pytest.raises(se_inject.SpliceError, match="nothing to remove"):
        se_inject.remove(graph)


def test_what_fx_cannot_follow_is_exported() -> None:
    model = open_gates(inject(Sized().eval()).model)
    with pytest.raises(fx.proxy.TraceError):
        fx.symbolic_trace(model)
    graph = se_inject.to_graph(model, SIZE)
    assert any(str(node.target).startswith("aten.") for node in graph.graph.nodes)
    assert torch.equal(graph(image()), model(image()))
    assert {*graph.state_dict()} == {*model.state_dict()}


def test_what_is_no_graph_says_why() -> None:
    with pytest.raises(
        se_inject.TraceError, match=r"Valued is not one graph: torch\.fx: .*; torch\.export: .*need none"
    ):
        se_inject.to_graph(Valued().eval(), SIZE)
    with pytest.raises(se_inject.TraceError, match="cannot be run on the example inputs"):
        se_inject.to_graph(net(), (4, 16, 16))


def test_a_graph_with_other_outputs_is_not_handed_out() -> None:
    class Counting(nn.Module):
        """What Python computes beside the tensors is a constant in every graph."""

        def __init__(self) -> None:
            super().__init__()
            self.calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return x * self.calls

    with pytest.raises(se_inject.TraceError, match=r"torch\.fx: the graph gives other outputs"):
        se_inject.to_graph(Counting(), SIZE)


def test_names_that_fx_would_run_are_refused() -> None:
    model = nn.Module()
    model.forward = F.relu  # type: ignore[method-assign]
    model.add_module('a" if print("run") else "b', nn.ReLU())
    with pytest.raises(se_inject.TraceError, match="which is no name in code"):
        se_inject.to_graph(model, SIZE)


def test_without_weights() -> None:
    with torch.device("meta"):
        model = torchvision.models.resnet18().eval()
    plan = se_inject.plan(model, (3, 64, 64))
    graph = se_inject.to_graph(se_inject.apply(model, plan), (3, 64, 64))
    assert sum(str(node.target).endswith("se.fc2") for node in graph.graph.nodes) == 8
    assert graph(torch.empty(2, 3, 64, 64, device="meta")).shape == (2, 1000)
