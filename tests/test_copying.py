"""The result goes on without the original: closures, partials, bound methods and compiled code are its own."""

from __future__ import annotations

import contextlib
import functools
import threading
import types
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import se_inject
from se_inject.checks.independent import independent
from se_inject.errors import CopyError, SEInjectError
from se_inject.inputs import resolve
from se_inject.object_graph import held
from tests.nets import NETS
from tests.tiny import SIZE, Layers, Net, Residual, image, inject, net, open_gates

pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute")  # dynamo's own


def state(model: nn.Module) -> list[Any]:
    """All that a run could leave behind in a model: values, gradients, modes, classes, hooks and attributes."""
    found = held(model)
    tensors = [(t, t.detach().clone(), None if t.grad is None else t.grad.clone()) for t in found.tensors.values()]
    modules = [(m, type(m), m.training, sorted(vars(m))) for m in found.modules.values()]
    hooks = [(name, dict(value)) for m in found.modules.values() for name, value in vars(m).items() if "hooks" in name
             and isinstance(value, dict)]  # fmt: skip
    return [tensors, modules, hooks]


def same(before: list[Any], after: list[Any]) -> bool:
    tensors = zip(before[0], after[0], strict=True)
    return before[1:] == after[1:] and all(
        a[0] is b[0] and torch.equal(a[1], b[1]) and (a[2] is None if b[2] is None else torch.equal(a[2], b[2]))
        for a, b in tensors
    )


def train(model: nn.Module) -> None:
    """One step that moves every parameter and every running statistic."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.train()(image()).square().sum().backward()
    optimizer.step()


# -- functions that hold a part of the model --------------------------------------------------------------------------
class Held(Layers):
    """A residual block whose branch is reached through ``self.body``."""

    body: Any

    def __init__(self, how: Callable[[Any], Any] | None = None) -> None:
        super().__init__()
        self.body = how(self) if how is not None else None

    def branch(self, x):
        return self.conv2(F.relu(self.bn1(self.conv1(self.bn2(x)))))

    def scaled(self, scale, x):
        return scale * self.branch(x)

    def run(self, x):
        body = self.body
        return body[0](x) if isinstance(body, list | tuple) else body["f"](x) if isinstance(body, dict) else body(x)

    def forward(self, x):
        return F.relu(x + self.run(x))


class Caller:
    """Not a module: calls what it keeps in plain attributes."""

    def __init__(self, *layers: Any) -> None:
        self.layers = list(layers)

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


class Slotted:
    __slots__ = ("function",)

    def __init__(self, function: Any) -> None:
        self.function = function

    def __call__(self, x):
        return self.function(x)


def nested(block: Any) -> Any:
    def outer(x):
        def inner(y):
            return block.branch(y)

        return inner(x)

    return outer


def recursive(block: Any) -> Any:
    def again(x, depth=1):
        return again(x, depth - 1) if depth else block.branch(x)

    return again


def keywords(block: Any) -> Any:
    def function(x, *, inner=block):
        return inner.branch(x)

    return function


def attribute(block: Any) -> Any:
    def function(x):
        return function.block.branch(x)  # type: ignore[attr-defined]

    function.block = block  # type: ignore[attr-defined]
    return function


def compiled(function: Any) -> Any:
    return torch.compile(function, backend="eager")


HOW: dict[str, Callable[[Any], Any]] = {
    "lambda": lambda block: lambda x: block.branch(x),
    "lambda over layers": lambda b: lambda x: b.conv2(F.relu(b.bn1(b.conv1(b.bn2(x))))),
    "lambda over one layer each": lambda b: (
        lambda c, n, d, m: lambda x: d(F.relu(n(c(m(x)))))
    )(b.conv1, b.bn1, b.conv2, b.bn2),
    "nested": nested,
    "recursive": recursive,
    "default": lambda block: lambda x, inner=block: inner.branch(x),
    "keyword default": keywords,
    "attribute of a function": attribute,
    "partial": lambda block: functools.partial(block.scaled, 1.0),
    "partial of a function": lambda block: functools.partial(Held.scaled, block, 1.0),
    "partial of a lambda": lambda block: functools.partial(lambda s, x: s * block.branch(x), 1.0),
    "bound method": lambda block: block.branch,
    "bound method in a list": lambda block: [block.branch],
    "lambda in a tuple": lambda block: (lambda x: block.branch(x),),
    "lambda in a dict": lambda block: {"f": lambda x: block.branch(x)},
    "own method": lambda block: types.MethodType(lambda self, x: block.branch(x), block),
    "object": lambda b: Caller(b.bn2, b.conv1, b.bn1, F.relu, b.conv2),
    "object over a lambda": lambda block: Caller(lambda x: block.branch(x)),
    "object with slots": lambda block: Slotted(lambda x: block.branch(x)),
    "method of an object": lambda b: Caller(b.bn2, b.conv1, b.bn1, F.relu, b.conv2).__call__,
    "cached": lambda block: functools.lru_cache(maxsize=2)(lambda: block),
    "weak reference": lambda block: weakref.ref(block),
    "compiled method": lambda block: compiled(block.branch),
    "compiled lambda": lambda block: compiled(lambda x: block.branch(x)),
}  # fmt: skip


class Indirect(Held):
    """What it keeps gives the block itself back."""

    def run(self, x):
        return self.body().branch(x)


def held_by(how: str) -> nn.Module:
    return net(Indirect if how in ("cached", "weak reference") else Held, how=HOW[how])


@pytest.mark.parametrize("how", HOW)
def test_the_result_is_independent(how: str) -> None:
    model, x = held_by(how), image()
    before, y = state(model), model(x)
    result = inject(model)
    assert result.plan.insertions and all(check.passed for check in result.report.checks)
    assert same(before, state(model))
    assert torch.equal(result.model(x), y)
    ours = held(model)
    assert not {*ours.modules, *ours.tensors} & {*held(result.model).modules, *held(result.model).tensors}
    train(open_gates(result.model))
    assert all(p.grad is not None and p.grad.any() for n, p in result.model.named_parameters() if ".se." not in n)
    assert any(p.grad.any() for n, p in result.model.named_parameters() if ".se." in n)
    assert same(before, state(model)) and torch.equal(model(x), y)


@pytest.mark.parametrize("how", HOW)
def test_in_place_and_back(how: str) -> None:
    model, x = held_by(how), image()
    y, classes = model(x), [type(module) for module in model.modules()]
    result = inject(model, inplace=True)
    assert result.model is model and torch.equal(model(x), y)
    assert not torch.equal(open_gates(model)(x), y)  # the block runs, wherever its function is kept
    copied = se_inject.remove(model)
    assert torch.equal(copied(x), y) and not torch.equal(model(x), y)
    se_inject.remove(model, inplace=True)
    assert torch.equal(model(x), y) and [type(module) for module in model.modules()] == classes


def plain(x: Any) -> Any:
    return F.relu(x)


def closed(x: Any) -> Callable[[Any], Any]:
    return lambda y: y + x


class Functions(Residual):
    """The negative twin: functions, and what they hold, that are nothing of the model."""

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[int] = []
        self.functions = [
            plain,
            F.relu,
            torch.relu,
            closed(1),
            len,
            self.notes.append,
            functools.partial(plain),
            Caller,
        ]


def test_what_holds_nothing_of_the_model_stays_the_same_object() -> None:
    model = net(Functions)
    old, new = model.blocks[0].functions, inject(model).model.blocks[0].functions
    assert [a is b for a, b in zip(old, new, strict=True)] == [True, True, True, True, True, True, False, True]


def test_a_hook_keeps_the_users_list() -> None:
    model, seen = net(), []
    model.blocks[0].conv1.register_forward_hook(lambda module, args, output: seen.append(output))
    model(image())
    assert len(seen) == 1
    result = inject(model).model  # the checks run it
    seen.clear()
    result(image())
    assert len(seen) == 1


def test_a_hook_over_a_layer_is_made_again() -> None:
    model = net()
    block = model.blocks[0]
    block.extra = nn.Conv2d(8, 8, 1)
    block.conv1.register_forward_hook(lambda module, args, output: output + block.extra(output))
    before, result = state(model), inject(model).model
    assert torch.equal(result(image()), model(image()))
    train(result)
    assert result.blocks[0].extra.weight.grad.any() and same(before, state(model))


# -- what is refused --------------------------------------------------------------------------------------------------
LAYER: list[nn.Module] = []
TABLE: dict[str, nn.Module] = {}


class Global(Residual):
    def __init__(self) -> None:
        super().__init__()
        LAYER[:] = [self.conv2]

    def forward(self, x):
        return F.relu(x + self.bn2(LAYER[0](F.relu(self.bn1(self.conv1(x))))))


class GlobalLambda(Held):
    def __init__(self) -> None:
        super().__init__()
        TABLE["layer"] = self.conv2
        self.body = lambda x: self.bn2(_second(F.relu(self.bn1(self.conv1(x)))))


def _second(x: Any) -> Any:
    return TABLE["layer"](x)


def outer() -> nn.Module:
    conv = nn.Conv2d(8, 8, 3, padding=1)

    class Outer(Layers):
        def __init__(self) -> None:
            super().__init__()
            self.conv2 = conv

        def forward(self, x):
            return F.relu(x + self.bn2(conv(F.relu(self.bn1(self.conv1(x))))))

    return net(Outer)


class Stubborn(Caller):
    def __deepcopy__(self, memo: Any) -> Any:
        return self


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "a global": (lambda: net(Global), r"Global.forward takes blocks.0.conv2 \(Conv2d\) of the model from .*'LAYER'"),
    "a global of a helper": (lambda: net(GlobalLambda), r"takes blocks.0.conv2 \(Conv2d\) .* the variable 'TABLE'"),
    "an outer function": (outer, r"Outer.forward takes blocks.0.conv2 \(Conv2d\) .* the variable 'conv'"),
    "an object that is its own copy": (
        lambda: net(Held, how=lambda b: Stubborn(b.bn2, b.conv1, b.bn1, b.conv2)),
        "the copy would go on with the original's blocks.0.*Let its __deepcopy__ make a copy",
    ),
    "a lock": (
        lambda: net(Held, how=lambda b: (lambda lock: lambda x: b.branch(x) if lock[0] else lock[1].branch(x))(
            [threading.Lock(), b])),
        "cannot copy Net: TypeError: cannot pickle '_thread.lock' object",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_copied_is_refused(kind: str) -> None:
    make, message = REFUSED[kind]
    model = make()
    before = state(model)
    plan = se_inject.plan(net(), SIZE, "standard")
    for entry in (inject, lambda m: se_inject.plan(m, SIZE), lambda m: se_inject.cost(m, SIZE)):
        with pytest.raises(CopyError, match=message) as error:
            entry(model)
        assert "\n" not in str(error.value)
        assert same(before, state(model))
    assert plan.insertions


class Named(Residual):
    """The negative twin: its attributes are called like globals that hold a layer of it."""

    def __init__(self) -> None:
        super().__init__()
        LAYER[:] = [self.conv2]
        self.LAYER = self.conv2

    def forward(self, x):
        return F.relu(x + self.bn2(self.LAYER(F.relu(self.bn1(self.conv1(x))))))


def test_an_attribute_called_like_a_global_is_none() -> None:
    assert inject(net(Named)).plan.insertions


# -- compiled code and forwards on instances ------------------------------------------------------------------------
class Decorated(Layers):
    @compiled
    def forward(self, x):
        return F.relu(x + self.conv2(F.relu(self.bn1(self.conv1(self.bn2(x))))))


class Counter:
    """A backend that counts the graphs that it is given."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: Any, inputs: Any) -> Any:
        self.graphs += 1
        return graph.forward

    def __deepcopy__(self, memo: Any) -> Counter:
        return self


COUNTER = Counter()


def in_place_of(model: Any, what: str) -> nn.Module:
    """``model`` with one of its parts compiled, or one forward set on an instance."""
    block = model.blocks[0]
    compiled = functools.partial(torch.compile, backend=COUNTER)
    if what == "a child":
        model.blocks = compiled(model.blocks)
    elif what == "a block":
        model.blocks[0] = compiled(block)
    elif what == "a block's forward":
        block.forward = compiled(block.forward)
    elif what == "the model's forward":
        model.forward = compiled(model.forward)
    elif what == "a block in place":
        block.compile(backend=COUNTER)
    return model


COMPILED = ["a child", "a block", "a block's forward", "the model's forward", "a block in place"]


@pytest.mark.parametrize("what", COMPILED)
def test_what_is_compiled_is_rewritten_inside_and_still_compiled(what: str) -> None:
    torch._dynamo.reset()
    x, model = image(), net(n=2)
    y, before = model(x), COUNTER.graphs
    model = in_place_of(model, what)
    result = inject(model)
    assert COUNTER.graphs == before  # neither the search nor the checks compile
    assert [d.key.replace("._orig_mod", "") for d in result.plan.insertions] == ["blocks.0.se", "blocks.1.se"]
    assert torch.equal(result.model(x), y) and COUNTER.graphs > before
    gated = open_gates(result.model)(x)
    assert not torch.equal(gated, y) and torch.equal(model(x), y)
    inject(model, inplace=True)
    torch._dynamo.reset()  # or it would take what was compiled for the copy
    before = COUNTER.graphs
    assert torch.equal(open_gates(model)(x), gated) and COUNTER.graphs > before
    assert torch.equal(se_inject.remove(model, inplace=True)(x), y)


@pytest.mark.parametrize("set_forward", [
    lambda block: None,
    lambda block: setattr(block, "forward", block.forward),
    lambda block: setattr(block, "forward", types.MethodType(Residual.forward, block)),
], ids=["not set", "bound", "a MethodType"])  # fmt: skip
def test_the_classs_own_forward_on_an_instance(set_forward: Any) -> None:
    model, x = net(), image()
    set_forward(model.blocks[0])
    result, y = inject(model).model, model(x)
    assert torch.equal(result(x), y) and not torch.equal(open_gates(result)(x), y)
    assert torch.equal(model(x), y) and torch.equal(se_inject.remove(result)(x), y)


def test_a_compiled_forward_in_the_class() -> None:
    model, x = net(Decorated), image()
    y, result = model(x), inject(model)
    assert torch.equal(result.model(x), y) and not torch.equal(open_gates(result.model)(x), y)
    assert (
        type(result.model.blocks[0]).forward._torchdynamo_orig_callable
        is type(result.model.blocks[0]).forward.__wrapped__
    )


# -- a graph for each mode --------------------------------------------------------------------------------------------
class Stage(nn.Module):
    """Its branch is the same in both modes, unless ``other``."""

    def __init__(self, other: bool) -> None:
        super().__init__()
        self.conv1, self.conv2, self.other = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1), other

    def forward(self, x):
        y = self.conv1(x)
        if self.other and self.training:
            y = F.relu(self.conv2(x))
        return F.relu(x + F.dropout(self.conv2(y), 0.5, self.training))


def extractor(other: bool) -> Any:
    from torchvision.models.feature_extraction import create_feature_extractor

    return create_feature_extractor(Stage(other).eval(), ["relu"]).eval()


def test_both_graphs_get_the_block() -> None:
    model, x = extractor(False), image()
    y, result = model(x)["relu"], inject(model)
    (decision,) = result.plan.insertions
    assert result.model.training is model.training is False
    for training in (False, True):
        result.model.train(training)
        assert [n.target for n in result.model.graph.nodes if n.target == decision.key]
    for training in (False, True):
        assert [n.target for n in se_inject.remove(result.model).train(training).graph.nodes] == [
            n.target for n in model.train(training).graph.nodes
        ]
    assert torch.equal(result.model.eval()(x)["relu"], y) and not torch.equal(open_gates(result.model)(x)["relu"], y)


@pytest.mark.filterwarnings("ignore:The nodes obtained by tracing")
def test_what_differs_between_the_graphs_is_a_reason() -> None:
    with pytest.raises(SEInjectError, match=r"a graph for each mode, and .* is not the same in both"):
        inject(extractor(True))


# -- the check ------------------------------------------------------------------------------------------------------
def test_the_check_fails_for_what_is_shared() -> None:
    model, probe = net(), resolve(net(), SIZE)
    result = inject(model).model
    assert independent(model, result, probe, 0).passed
    alias = inject(model).model
    alias.stem.weight = model.stem.weight
    view = inject(model).model
    view.stem.bias = nn.Parameter(model.stem.bias[:])
    child = inject(model).model
    child.hidden = [model.fc]
    run = inject(model).model
    run.stem.register_forward_hook(lambda module, args, output: LAYER[0](args[0]))
    LAYER[:] = [model.stem]
    for wrong, part in ((alias, "stem.weight"), (view, "stem.bias"), (child, "fc"), (run, "stem.weight")):
        check = independent(model, wrong, probe, 0)
        assert check.passed is False and check.detail.endswith(f"the first is {part}")
    assert "independent" in [check.name for check in inject(model).report.checks]
    assert "independent" not in [check.name for check in inject(model, inplace=True).report.checks]


# -- every net of the suite -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", NETS)
def test_no_net_of_the_suite_is_touched(name: str) -> None:
    model = NETS[name]().train()
    for i, parameter in enumerate(model.parameters()):
        if parameter.requires_grad:
            parameter.grad = torch.full_like(parameter, float(i))
    before = state(model)
    for entry in (se_inject.plan, se_inject.inject):
        with contextlib.suppress(SEInjectError):
            entry(model, NETS[name].shape)
        assert same(before, state(model))


@pytest.mark.parametrize(
    "name", ["timm:resnet10t", "timm:regnetx_002", "torchvision:resnet18", "torchvision:mobilenet_v3_small"]
)
def test_no_model_of_the_zoos_is_touched(name: str) -> None:
    import timm
    import torchvision

    zoo, _, name = name.partition(":")
    model = timm.create_model(name) if zoo == "timm" else torchvision.models.get_model(name)
    before = state(model.train())
    result = se_inject.inject(model, (3, 64, 64))
    assert same(before, state(model))
    result.model.train()(image(size=(3, 64, 64))).sum().backward()
    assert same(before, state(model))


def test_the_tests_comparison_can_fail() -> None:
    model = Net()
    before = state(model)
    assert same(before, state(model))
    model.eval()
    assert not same(before, state(model))
    model.train()
    model.stem.weight.data += 1
    assert not same(before, state(model))
