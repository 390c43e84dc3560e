"""Models of every make: functions instead of layers, tied weights, hooks, parametrizations, half precision, graphs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import fx, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import se_inject
from se_inject.api import Injection
from tests.helpers import randomise
from tests.tiny import SIZE, Layers, Residual, image, inject, net, open_gates


def passed(result: Injection, *keys: str) -> Injection:
    assert all(check.passed for check in result.report.checks), result.report.checks
    assert tuple(d.key for d in result.plan.insertions) == keys
    return result


# -- how the forward is written ---------------------------------------------------------------------------------------
class Functional(nn.Module):
    """No layer at all: parameters and buffers, and functions that take them."""

    def __init__(self) -> None:
        super().__init__()
        self.weight1, self.weight2 = (nn.Parameter(torch.randn(8, 8, 3, 3) / 8) for _ in range(2))
        self.gamma, self.beta = nn.Parameter(0.5 + torch.rand(8)), nn.Parameter(torch.randn(8))
        self.register_buffer("mean", torch.randn(8))
        self.register_buffer("var", 0.5 + torch.rand(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(F.conv2d(x, self.weight1, padding=1))
        y = F.conv2d(y, self.weight2, padding=1)
        y = F.batch_norm(y, self.mean, self.var, self.gamma, self.beta, self.training)
        return F.relu(x + y)


class Nested(nn.Module):
    """Blocks deep inside containers of containers."""

    def __init__(self) -> None:
        super().__init__()
        deep = nn.Sequential(nn.Sequential(Residual(), nn.Sequential(Residual())), Residual())
        self.body = nn.ModuleDict({"a": nn.ModuleList([deep])})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for part in self.body["a"]:
            x = part(x)
        return x


class Tied(nn.Module):
    """Two blocks with one weight, and a third that is the first again."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = Residual(), Residual()
        self.two.conv2.weight = self.one.conv2.weight
        self.again = self.one

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.again(self.two(self.one(x)))


MAP = (8, 6, 6)
FORMS: dict[str, tuple[Callable[[], nn.Module], tuple[str, ...]]] = {
    "functional": (Functional, ("se",)),
    "nested": (Nested, ("body.a.0.0.0.se", "body.a.0.0.1.0.se", "body.a.0.1.se")),
    "tied": (Tied, ("one.se", "two.se")),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_a_forward(form: str) -> None:
    make, keys = FORMS[form]
    model = randomise(make().eval())
    result = passed(inject(model, size=MAP), *keys)
    assert not torch.equal(open_gates(result.model)(x := image(size=MAP)), model(x))
    assert torch.equal(se_inject.remove(result.model)(x), model(x))


def test_tied_weights_stay_tied() -> None:
    result = inject(randomise(Tied().eval()), size=MAP).model
    assert result.two.conv2.weight is result.one.conv2.weight
    assert result.again is result.one and type(result.again).__name__ == "SEResidual"


# -- what goes in and comes out ---------------------------------------------------------------------------------------
class Shaped(nn.Module):
    """The tensors of its arguments summed, through a block, in the asked form."""

    def __init__(self, out: Callable[[torch.Tensor], Any] = lambda x: x) -> None:
        super().__init__()
        self.block, self.out = Residual(), out

    def forward(self, *values: Any, scale: float = 1.0, **named: Any) -> Any:
        tensors = torch.utils._pytree.tree_leaves((values, named))
        return self.out(self.block(scale * sum(t for t in tensors if isinstance(t, torch.Tensor))))


class KeywordOnly(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = Residual()

    def forward(self, *, pixels: torch.Tensor, flip: bool = False) -> torch.Tensor:
        return self.block(pixels.flip(-1) if flip else pixels)


IN: dict[str, Any] = {
    "two tensors": (image(size=MAP), image(size=MAP, seed=1)),
    "a tuple": ((image(size=MAP), image(size=MAP, seed=1)),),
    "a list": ([image(size=MAP), image(size=MAP, seed=1)],),
    "a dict": ({"left": image(size=MAP), "right": [image(size=MAP, seed=1)]},),
    "keywords": {"left": image(size=MAP), "scale": 2.0},
}
OUT: dict[str, Callable[[torch.Tensor], Any]] = {
    "a tensor": lambda x: x,
    "a tuple": lambda x: (x, x.mean()),
    "a list": lambda x: [x, [x + 1]],
    "a dict": lambda x: {"map": x, "rest": (x.sum(), None, "text")},
}


@pytest.mark.parametrize("given", IN)
@pytest.mark.parametrize("out", OUT)
def test_arguments_and_results(given: str, out: str) -> None:
    model = randomise(Shaped(OUT[out]).eval())
    passed(inject(model, size=IN[given]), "block.se")


def test_keyword_only_arguments() -> None:
    model = randomise(KeywordOnly().eval())
    example = {"pixels": image(size=MAP), "flip": True}
    result = passed(inject(model, size=example), "block.se")
    assert torch.equal(result.model(**example), model(**example))
    assert list(map(str, result.plan.inputs.arguments)) == ["pixels=float32[2, 8, 6, 6]", "flip=true"]


# -- what hangs on the modules ----------------------------------------------------------------------------------------
def test_forward_hooks_are_kept_and_not_run_by_the_search() -> None:
    model, seen = net(n=2), []
    model.blocks[0].register_forward_hook(lambda module, args, output: seen.append(type(module).__name__))
    model.blocks[1].register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    want = model(image())
    seen.clear()
    se_inject.plan(model, SIZE, "standard")
    assert seen == []
    result = passed(inject(model), "blocks.0.se", "blocks.1.se")
    seen.clear()
    assert torch.equal(result.model(image()), want) and seen == ["SEResidual"]


PARAMETRIZATIONS = {"weight": parametrizations.weight_norm, "spectral": parametrizations.spectral_norm}


@pytest.mark.parametrize("kind", PARAMETRIZATIONS)
def test_parametrized_layers(kind: str) -> None:
    model = net(n=2)
    PARAMETRIZATIONS[kind](model.blocks[0].conv2)
    result = passed(inject(model), "blocks.0.se", "blocks.1.se")
    assert torch.nn.utils.parametrize.is_parametrized(result.model.blocks[0].conv2)
    assert set(result.model.state_dict()) > set(model.state_dict())
    want = model(image())
    # torch keeps the parametrization in the class, which a copy shares: the original is of no use after this
    torch.nn.utils.parametrize.remove_parametrizations(result.model.blocks[0].conv2, "weight")
    assert torch.equal(result.model(image()), want)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    model = net(n=2).to(dtype)
    result = passed(inject(model), "blocks.0.se", "blocks.1.se")
    assert {p.dtype for p in result.model.parameters()} == {dtype}
    x = image().to(dtype)
    assert torch.equal(result.model(x), model(x)) and result.model(x).dtype == dtype


def test_a_model_without_weights_has_a_plan_and_costs() -> None:
    with torch.device("meta"):
        model = torchvision.models.resnet50().eval()
    plan = se_inject.plan(model, (3, 224, 224))
    assert len(plan.insertions) == 16
    before, after = (se_inject.cost(m, (3, 224, 224)) for m in (model, se_inject.apply(model, plan)))
    assert (before.macs, before.parameters) == (4_089_184_256, 25_557_032)
    assert after.parameters - before.parameters == 2_530_992
    result = inject(model, size=(3, 224, 224))
    said = {check.name: check for check in result.report.checks}
    assert said["outputs"].passed is None and "no weights" in said["outputs"].detail
    assert said["structure"].passed and said["overhead"].passed


# -- graphs that were traced before -----------------------------------------------------------------------------------
def traced(model: nn.Module, x: torch.Tensor) -> nn.Module:
    return fx.symbolic_trace(model)


def exported(model: nn.Module, x: torch.Tensor) -> nn.Module:
    return torch.export.export(model, (x,)).module()


GRAPHS: dict[str, Callable[[nn.Module, torch.Tensor], nn.Module]] = {"fx": traced, "export": exported}
EAGER: dict[str, Callable[[], nn.Module]] = {
    "functional": lambda: nn.Sequential(nn.Conv2d(3, 8, 1), Functional()),
    "blocks": lambda: net(n=3),
    "resnet": lambda: torchvision.models.resnet18(num_classes=5),
    "mobilenet": lambda: torchvision.models.mobilenet_v2(num_classes=5),
}
SLOW = {"resnet", "mobilenet"}
CASES = [
    pytest.param(kind, name, marks=[pytest.mark.slow] if name in SLOW else []) for kind in GRAPHS for name in EAGER
]


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_a_graph_has_the_sites_of_the_eager_model(kind: str, name: str) -> None:
    """Aten functions of an exported program too: the same places, widths and results, spliced in the graph."""
    model = randomise(EAGER[name]().eval())
    x = image(size=(3, 32, 32))
    graph = GRAPHS[kind](model, x)
    eager, result = se_inject.plan(model, (x,)), se_inject.inject(graph, (x,))

    def places(plan: se_inject.Plan) -> list[Any]:
        return [(d.site.placement, d.site.channels, d.site.shape, d.kwargs) for d in plan.insertions]

    assert places(result.plan) == places(eager) and eager.insertions
    assert {d.site.carrier.kind for d in result.plan.insertions if d.site.carrier} == {"graph"}
    # An exported module has one mode: that check says so instead of passing.
    undone = {check.name: check.passed for check in result.report.checks if not check.passed}
    assert undone == ({"outputs (train)": None} if kind == "export" else {}), result.report.checks
    assert isinstance(result.model, fx.GraphModule) and torch.equal(result.model(x), model(x))
    assert not torch.equal(open_gates(copy.deepcopy(result.model))(x), model(x))
    assert torch.equal(se_inject.remove(result.model)(x), model(x))


class Keeping(Layers):
    """Leaves what it computed in a list of its own, as RAFT does; with its history no copy can be made of that."""

    def __init__(self) -> None:
        super().__init__()
        self.pyramid: list[torch.Tensor] = []

    def forward(self, x):
        self.pyramid = [F.relu(x + self.bn2(self.conv2(self.first(x))))]
        return self.pyramid[0] * 1.0


def test_values_that_a_forward_keeps() -> None:
    model = net(Keeping)
    model(image()).sum().backward()  # the user ran it before
    model.zero_grad()
    kept = model.blocks[0].pyramid
    result = passed(inject(model), "blocks.0.se")
    assert model.blocks[0].pyramid is kept and kept[0].grad_fn is not None
    copied = copy.deepcopy(result.model)  # the checks left nothing of theirs in it
    assert torch.equal(copied.blocks[0].pyramid[0], kept[0]) and torch.equal(copied(image()), model(image()))


class Counted(Layers):
    """Python state that changes with every call stays the instance's own."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        return F.relu(x + self.bn2(self.conv2(self.first(x))))


def test_state_of_the_user_s_instances_is_not_written_by_the_search() -> None:
    model = net(Counted)
    se_inject.plan(model, SIZE, "standard")
    assert model.blocks[0].calls == 0
