"""What ``apply`` does to a model: slots, own sources, wrapped outputs, graphs; and what it leaves alone."""

from __future__ import annotations

import copy
import random
from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import fx, nn
from torch.nn import functional as F

import se_inject
from se_inject.checks import overhead
from se_inject.errors import PlanMismatchError, VerifyError
from se_inject.types import Carrier, Check
from tests.helpers import randomise, refused
from tests.tiny import (
    Chain,
    Dropped,
    Layers,
    Residual,
    by_hand,
    image,
    inject,
    net,
    open_gates,
    with_carrier,
)


def names(model: nn.Module, path: str) -> list[str]:
    return [name for name, _ in model.get_submodule(path).named_children()]


def carriers(injection: se_inject.Injection) -> list[tuple[str, str]]:
    return [(d.site.carrier.kind, d.key) for d in injection.plan.insertions if d.site.carrier is not None]


# -- slots ----------------------------------------------------------------------------------------------------------
def test_a_none_that_the_forward_reads_is_filled_and_the_class_stays() -> None:
    model = randomise(timm.create_model("resnet10t").eval())
    result = inject(model, size=(3, 64, 64))
    assert {kind for kind, _ in carriers(result)} == {"slot"}
    block = result.model.layer1[0]
    assert type(block) is timm.models.resnet.BasicBlock
    assert "se" in block._modules and "se" not in vars(block)
    assert vars(model.layer1[0])["se"] is None
    assert vars(se_inject.remove(result.model).layer1[0])["se"] is None


def test_an_identity_at_the_place_is_filled() -> None:
    model = randomise(timm.create_model("mobilenetv2_035").eval())
    result = inject(model, "inner", size=(3, 64, 64), verify=False)
    assert torch.equal(result.model(image(size=(3, 64, 64))), model(image(size=(3, 64, 64))))
    kinds = {key: kind for kind, key in carriers(result)}
    assert kinds["blocks.1.1.se"] == "slot"
    block, original = result.model.blocks[1][1], model.blocks[1][1]
    assert type(block) is type(original) and type(original.se) is nn.Identity
    assert type(block.se).__name__ == "SqueezeExcite"
    assert names(result.model, "blocks.1.1") == names(model, "blocks.1.1")
    back = se_inject.remove(result.model)
    assert type(back.blocks[1][1].se) is nn.Identity
    assert names(back, "blocks.1.1") == names(model, "blocks.1.1")  # the order too


def test_an_identity_that_runs_elsewhere_is_no_slot() -> None:
    model = randomise(timm.create_model("mobilenetv2_035").eval())
    result = inject(model, {"placement": "standard", "include": "blocks.1.1"}, size=(3, 64, 64), verify=False)
    assert carriers(result) == [("source", "blocks.1.1.se_1")]
    assert type(result.model.blocks[1][1].se) is nn.Identity


class Unread(Residual):
    def __init__(self) -> None:
        super().__init__()
        self.se = None


class UnreadChild(Residual):
    def __init__(self) -> None:
        super().__init__()
        self.register_module("se", None)


class Taken(Residual):
    def __init__(self) -> None:
        super().__init__()
        self.se = 3
        self.se_1 = nn.Identity()


class Method(Residual):
    def se(self) -> None: ...


class ReadElsewhere(Residual):
    """A ``None`` that a method reads is not free, even if the forward does not."""

    def __init__(self) -> None:
        super().__init__()
        self.se = None

    def describe(self) -> str:
        return "gated" if self.se is not None else "plain"


class OnTheClass(Residual):
    se: Any = None  # an attribute of the class would hide the child


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (Residual, "se"),
        (Unread, "se"),
        (UnreadChild, "se"),
        (Taken, "se_2"),
        (Method, "se_1"),
        (ReadElsewhere, "se_1"),
        (OnTheClass, "se_1"),
    ],
)
def test_the_name_of_the_new_child(kind: type[nn.Module], name: str) -> None:
    model = net(kind)
    before = dict(vars(model.blocks[0]))
    result = inject(model)
    block = result.model.blocks[0]
    assert carriers(result) == [("source", f"blocks.0.{name}")]
    assert type(getattr(block, name)).__name__ == "SqueezeExcite"
    for other in ("se", "se_1"):
        if other != name and hasattr(model.blocks[0], other):
            assert type(getattr(block, other)) is type(getattr(model.blocks[0], other))
    back = se_inject.remove(result.model).blocks[0]
    assert type(back) is kind and set(vars(back)) == set(before)
    assert list(back._modules) == list(model.blocks[0]._modules)
    assert vars(back).get("se", "absent") == before.get("se", "absent")


def test_an_attribute_set_after_the_plan_is_not_overwritten() -> None:
    """The fingerprint does not see plain attributes: the refusal comes while inserting, and nothing stays changed."""
    model = net(Residual, 3)
    plan = se_inject.plan(model, (3, 16, 16), {"placement": "standard", "init": "absorb"})
    model.blocks[1].se = "mine"
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(PlanMismatchError, match="already has an attribute 'se', which the plan would set"):
        se_inject.apply(model, plan, inplace=True)
    assert [type(block) for block in model.blocks] == [Residual] * 3
    assert model.blocks[1].se == "mine" and not hasattr(model.blocks[0], "se")
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    with pytest.raises(se_inject.SpliceError, match="nothing to remove"):
        se_inject.remove(model)


# -- Sequential owners ----------------------------------------------------------------------------------------------
def test_mobilenet_v2_inner_sites_are_carried_by_the_activation() -> None:
    model = randomise(torchvision.models.mobilenet_v2(width_mult=0.25).eval())
    result = inject(model, "inner", size=(3, 64, 64))
    assert len(result.plan.insertions) == 17
    kinds = {kind for kind, _ in carriers(result)}
    assert kinds <= {"append", "wrap_output"}
    old, new = model.state_dict(), result.model.state_dict()
    assert list(new.keys() - old.keys()) and not old.keys() - new.keys()
    assert all(torch.equal(value, new[key]) for key, value in old.items())
    assert [type(m) for m in result.model.features] == [type(m) for m in model.features]
    assert len(result.model.features[:10]) == 10
    back = se_inject.remove(result.model)
    assert str(back) == str(model) and list(back.state_dict()) == list(old)


def test_efficientnet_keeps_its_own_gates_and_gets_none_beside_them() -> None:
    model = randomise(torchvision.models.efficientnet_b0().eval())
    with refused("gated", r"select none of the 16 sites; .*already gated by features"):
        se_inject.plan(model, (3, 64, 64), "inner")
    result = inject(model, size=(3, 64, 64), verify=False)
    assert len(result.plan.insertions) == 9  # blocks with a shortcut
    assert {key.rpartition(".")[2] for _, key in carriers(result)} == {"se"}
    assert torch.equal(result.model(image(size=(3, 64, 64))), model(image(size=(3, 64, 64))))


# -- wrapped outputs ------------------------------------------------------------------------------------------------
def test_a_relu_in_a_sequential_carries_the_block() -> None:
    model = randomise(Chain()).eval()
    plan = by_hand(model, Carrier("wrap_output", "features.2", "se"), Carrier("wrap_output", "features.5", "se"))
    after = open_gates(se_inject.apply(model, plan))
    assert type(after.features[2]).__name__ == "SEReLU" and isinstance(after.features[2], nn.ReLU)
    assert "result = self.se(F.relu(" in type(after.features[2]).se_rewrite.after.replace("return ", "result = ")
    assert len(after.features) == 6 and [type(m) for m in after.features[:2]] == [nn.Conv2d, nn.BatchNorm2d]
    assert all(key.startswith("features.") for key in after.state_dict().keys() - model.state_dict().keys())
    x = image()
    y = model.features[:3](x)
    assert torch.equal(after.features[:3](x), after.features[2].se(y))
    assert not torch.equal(after(x), model(x))


def test_vgg16_bn() -> None:
    with torch.device("meta"):
        model: Any = torchvision.models.vgg16_bn()
    model.classifier = nn.Flatten()  # the largest part of it by far, and not what this is about
    model = randomise(model.to_empty(device="cpu")).eval()
    for parameter in model.features.parameters():
        nn.init.normal_(parameter, std=0.05)
    relus = [i for i, m in enumerate(model.features) if isinstance(m, nn.ReLU)]
    channels = [model.features[i - 2].out_channels for i in relus]
    plan = by_hand(model, *[Carrier("wrap_output", f"features.{i}", "se") for i in relus])
    decisions = tuple(
        replace(d, site=replace(d.site, channels=c), kwargs={**d.kwargs, "channels": c})
        for d, c in zip(plan.decisions, channels, strict=True)
    )
    after = se_inject.apply(model, replace(plan, decisions=decisions))
    assert len({type(after.features[i]) for i in relus}) == 1
    assert [k for k in after.state_dict() if ".se." not in k] == list(model.state_dict())
    assert len(after.features) == len(model.features)
    assert [type(m) for m in after.features[:2]] == [type(m) for m in model.features[:2]]
    after.load_state_dict(model.state_dict(), strict=False)
    x = image(1, (3, 32, 32))
    assert torch.equal(after(x), model(x))
    assert not torch.equal(open_gates(after)(x), model(x))
    assert list(se_inject.remove(after).state_dict()) == list(model.state_dict())


def test_a_sequential_carries_the_block_as_its_last_child() -> None:
    model = randomise(Chain()).eval()
    after = open_gates(se_inject.apply(model, by_hand(model, Carrier("append", "features", "se"))))
    assert type(after.features) is nn.Sequential and names(after, "features")[-1] == "se"
    assert torch.equal(after(image()), after.fc(after.features.se(model.features(image())).mean((2, 3))))


class Unreadable(nn.Module):
    exec("def forward(self, x):\n    return x.relu()\n")


def test_a_wrapped_output_without_source_is_wrapped() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), Unreadable()).eval()
    after = open_gates(se_inject.apply(model, by_hand(model, Carrier("wrap_output", "1", "se"))))
    assert isinstance(after[1], Unreadable)
    assert torch.equal(after(image()), after[1].se(model(image())))


# -- graphs ---------------------------------------------------------------------------------------------------------
def test_a_graph_module_is_spliced_in_its_graph() -> None:
    plain = randomise(torchvision.models.resnet18(num_classes=10).eval())
    model = fx.symbolic_trace(plain)
    code = model.code
    result = inject(model, size=(3, 64, 64))
    assert isinstance(result.model, fx.GraphModule)
    assert {kind for kind, _ in carriers(result)} == {"graph"}
    assert [d.key for d in result.plan.insertions] == [
        d.key for d in inject(plain, size=(3, 64, 64), verify=False).plan.insertions
    ]
    calls = [n for n in result.model.graph.nodes if n.op == "call_module" and str(n.target).endswith(".se")]
    assert len(calls) == len(result.plan.insertions) == 8
    x = image(size=(3, 64, 64))
    assert torch.equal(result.model(x), plain(x))
    assert not torch.equal(open_gates(result.model)(x), plain(x))
    assert model.code == code and not [k for k in model.state_dict() if ".se." in k]
    back = se_inject.remove(result.model)
    assert back.code == code and list(back.state_dict()) == list(model.state_dict())
    assert torch.equal(back(x), plain(x))


def test_a_copy_of_a_spliced_graph_module_can_be_undone_too() -> None:
    model = fx.symbolic_trace(net())
    result = inject(model)
    again = copy.deepcopy(copy.deepcopy(result.model))
    assert se_inject.remove(again).code == model.code
    assert se_inject.remove(result.model, inplace=True) is result.model
    with pytest.raises(se_inject.SpliceError, match="nothing to remove"):
        se_inject.remove(copy.deepcopy(result.model))


def test_two_blocks_behind_one_node_the_first_is_the_innermost() -> None:
    model = fx.symbolic_trace(net())
    (carrier,) = [d.site.carrier for d in se_inject.plan(model, (3, 16, 16), "standard").insertions]
    assert carrier is not None
    parent = carrier.name.rpartition(".")[0]
    plan = by_hand(model, *[replace(carrier, name=f"{parent}.{name}") for name in ("a", "b")])
    after = se_inject.apply(model, plan)
    order = [str(n.target) for n in after.graph.nodes if n.op == "call_module"]
    assert order[order.index(f"{parent}.a") + 1] == f"{parent}.b"
    assert se_inject.remove(after).code == model.code


class Rooted(nn.Module):
    """A ``GraphModule`` that is a child of a plain module."""

    def __init__(self) -> None:
        super().__init__()
        self.graph_part = fx.symbolic_trace(net())

    def forward(self, x):
        return self.graph_part(x) * 2


def test_a_graph_module_inside_a_plain_one() -> None:
    model = Rooted().eval()
    result = inject(model)
    assert carriers(result) == [("graph", "graph_part.blocks.0.se")]
    assert torch.equal(result.model(image()), model(image()))
    assert not torch.equal(open_gates(result.model)(image()), model(image()))
    assert torch.equal(se_inject.remove(result.model)(image()), model(image()))


class InPlace(Layers):
    """In a graph, a call that writes and returns nothing that is used must not be swept away."""

    def forward(self, x):
        y = self.bn2(self.conv2(self.first(x)))
        y.mul_(0.5)
        return F.relu(x + y)


def test_writes_in_a_graph_are_kept() -> None:
    model = fx.symbolic_trace(net(InPlace))
    result = inject(model)
    assert [n.target for n in result.model.graph.nodes].count("mul_") == 1
    assert torch.equal(result.model(image()), model(image()))


# -- the given model ------------------------------------------------------------------------------------------------
def snapshot(model: nn.Module) -> dict[str, Any]:
    return {
        "state": {key: value.clone() for key, value in model.state_dict().items()},
        "buffers": {key: value.clone() for key, value in model.named_buffers()},
        "objects": [id(t) for t in (*model.parameters(), *model.buffers())],
        "grads": {key: None if p.grad is None else p.grad.clone() for key, p in model.named_parameters()},
        "modules": [
            (path, type(m), m.training, sorted(vars(m)), list(m._modules)) for path, m in model.named_modules()
        ],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        "requires": [p.requires_grad for p in model.parameters()],
        "rng": torch.get_rng_state(),
        "python": random.getstate(),
    }


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    return bool(a == b)


class Counting(Residual):
    """Its forward replaces a buffer instead of writing it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(1), persistent=False)

    def forward(self, x):
        self.seen = self.seen + 1
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.dropout(self.bn2(self.conv2(y)), 0.5, self.training)
        return F.relu(x + y)


@pytest.mark.parametrize("rules", [{"placement": "standard", "init": init} for init in ("identity", "absorb", "paper")])
def test_the_given_model_is_not_touched(rules: dict[str, str]) -> None:
    model = net(Counting, 2)
    model(image()).sum().backward()
    model.train()
    model.blocks[0].bn1.eval()
    model.stem.weight.requires_grad_(False)
    model.blocks.register_forward_hook(lambda module, args, output: None)
    before = snapshot(model)
    result = inject(model, rules)
    for key, value in snapshot(model).items():
        assert same(before[key], value), key
    assert result.model is not model
    assert result.model.training and not result.model.blocks[0].bn1.training
    assert result.model.blocks[1].se.training and not result.model.stem.weight.requires_grad
    shared = {id(t) for t in (*model.parameters(), *model.buffers())}
    assert not shared & {id(t) for t in (*result.model.parameters(), *result.model.buffers())}
    assert torch.equal(result.model.blocks[0].seen, before["buffers"]["blocks.0.seen"])


def test_in_place_is_the_same_object_with_the_same_parameters() -> None:
    model = net(Residual, 2)
    parameters = dict(model.named_parameters())
    y = model(image())
    result = inject(model, {"placement": "standard", "init": "absorb"}, inplace=True)
    assert result.model is model
    assert {key: id(p) for key, p in model.named_parameters() if ".se." not in key} == {
        key: id(p) for key, p in parameters.items()
    }
    assert torch.equal(model(image()), y)
    assert se_inject.remove(model, inplace=True) is model
    assert {key: id(p) for key, p in model.named_parameters()} == {key: id(p) for key, p in parameters.items()}


@pytest.mark.parametrize("init", ["identity", "absorb"])
def test_a_check_that_fails_puts_the_model_back(init: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overhead, "overhead", lambda *args: Check("overhead", False, "made to fail"))
    model = net(Unread, 2)
    before = snapshot(model)
    with pytest.raises(VerifyError, match="overhead: made to fail"):
        inject(model, {"placement": "standard", "init": init}, inplace=True)
    for key, value in snapshot(model).items():
        assert same(before[key], value), key


def test_the_seed_decides_the_weights_and_the_global_generator_does_not() -> None:
    model = net()
    paper = {"placement": "standard", "init": "paper"}
    a = inject(model, paper).model.blocks[0].se
    torch.manual_seed(99)
    b = inject(model, paper).model.blocks[0].se
    c = inject(model, paper, seed=1).model.blocks[0].se
    assert torch.equal(a.fc1.weight, b.fc1.weight) and not torch.equal(a.fc1.weight, c.fc1.weight)
    some = {**paper, "include": "blocks.1"}
    alone, all_of_them = inject(net(n=2), some).model, inject(net(n=2), paper).model
    assert torch.equal(alone.blocks[1].se.fc1.weight, all_of_them.blocks[1].se.fc1.weight)
    assert not torch.equal(all_of_them.blocks[0].se.fc1.weight, all_of_them.blocks[1].se.fc1.weight)


# -- the starting point ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_identity_is_bit_equal(dtype: torch.dtype) -> None:
    model = net(Dropped, 3).to(dtype)
    result = inject(model)
    assert result.model.blocks[0].se.fc1.weight.dtype is dtype
    x = image(4).to(dtype)
    assert torch.equal(result.model(x), model(x))
    for net_ in (model, result.model):
        net_.train()
    torch.manual_seed(5)
    a = model(x)
    torch.manual_seed(5)
    b = result.model(x)
    assert torch.equal(a, b)
    assert all(torch.equal(v, result.model.get_buffer(k)) for k, v in model.named_buffers())
    torch.manual_seed(6)
    assert not torch.equal(model(x), b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_absorb_is_bit_equal_and_doubles_the_norm(dtype: torch.dtype) -> None:
    model = net(Residual, 3).to(dtype)
    result = inject(model, {"placement": "standard", "init": "absorb"})
    x = image(4).to(dtype)
    assert torch.equal(result.model(x), model(x))
    for a, b in zip(model.blocks, result.model.blocks, strict=True):
        for name in ("weight", "bias"):
            assert torch.equal(getattr(b.bn2, name), 2 * getattr(a.bn2, name))
            assert torch.equal(getattr(b.bn1, name), getattr(a.bn1, name))
        assert b.se.gain == 1.0
    assert torch.equal(model.train()(x), result.model.train()(x))


class ReLUSix(Layers):
    def forward(self, x):
        return x + F.relu6(self.bn2(self.conv2(self.first(x))))


class Silu(Layers):
    def forward(self, x):
        return x + F.silu(self.bn2(self.conv2(self.first(x))))


class Relu(Layers):
    def forward(self, x):
        return x + F.relu(self.bn2(self.conv2(self.first(x))))


class Used(Layers):
    def forward(self, x):
        y = self.bn2(self.conv2(self.first(x)))
        return x + F.relu(y) * y.mean()


class Tied(Residual):
    def __init__(self) -> None:
        super().__init__()
        self.bn1.weight = self.bn2.weight


class NotAffine(Residual):
    def __init__(self) -> None:
        super().__init__()
        self.bn2 = nn.BatchNorm2d(8, affine=False)


class Parametrized(Residual):
    def __init__(self) -> None:
        super().__init__()
        nn.utils.parametrize.register_parametrization(self.bn2, "weight", nn.Identity())


class Grouped(Residual):
    def __init__(self) -> None:
        super().__init__()
        self.bn2 = nn.GroupNorm(2, 8)


@pytest.mark.parametrize(
    ("kind", "code", "text"),
    [
        (ReLUSix, "not-scaling", "between it and a batch norm stands relu6, which does not scale with its input"),
        (Silu, "not-scaling", "between it and a batch norm stands silu, which does not scale with its input"),
        (Tied, "shared-weight", r"blocks.0.bn2 \(BatchNorm2d\) shares its weight with another module"),
        (NotAffine, "not-affine", r"blocks.0.bn2 \(BatchNorm2d\) has no weight and bias"),
        (Parametrized, "parametrized", r"blocks.0.bn2 \(ParametrizedBatchNorm2d\) is parametrized"),
        (Grouped, "not-affine", r"blocks.0.bn2 \(GroupNorm\) is not a batch norm"),
    ],
)
def test_absorb_is_refused_with_the_reason(kind: type[nn.Module], code: str, text: str) -> None:
    with refused(code, f"absorb: {text}"):
        inject(net(kind), {"placement": "standard", "init": "absorb"})
    assert inject(net(kind)).plan.insertions  # identity asks for nothing


def test_absorb_through_a_relu() -> None:
    model = net(Relu)
    assert torch.equal(inject(model, {"placement": "standard", "init": "absorb"}).model(image()), model(image()))


def test_absorb_is_refused_in_half_precision() -> None:
    with refused("float16", "absorb is not exact in float16"):
        inject(net().half(), {"placement": "standard", "init": "absorb"})


def test_paper_changes_the_outputs() -> None:
    model = net()
    result = inject(model, {"placement": "standard", "init": "paper"})
    assert not torch.equal(result.model(image()), model(image()))
    assert result.model.blocks[0].se.fc2.weight.any()
    (check,) = [c for c in result.report.checks if c.name == "outputs (eval)"]
    assert check.passed is None and "by design" in check.detail


@pytest.mark.parametrize("init", ["identity", "absorb"])
def test_the_last_layer_learns_at_once_and_the_first_after_a_step(init: str) -> None:
    model = inject(net(), {"placement": "standard", "init": init}).model.train()
    se = model.blocks[0].se
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(image()).square().sum().backward()
    assert se.fc2.weight.grad.any() and se.fc2.bias.grad.any()
    assert not se.fc1.weight.grad.any()
    optimizer.step()
    optimizer.zero_grad()
    model(image()).square().sum().backward()
    assert se.fc1.weight.grad.any()


# -- plans that a hand has changed ------------------------------------------------------------------------------------
def test_what_a_plan_says_must_fit() -> None:
    model = net()
    plan = se_inject.plan(model, (3, 16, 16), "standard")
    (decision,) = plan.insertions
    for wrong, reason in (
        (with_carrier(plan, path="blocks.7"), "has no module 'blocks.7'"),
        (with_carrier(plan, name="a.b.c d"), "is not a name"),
        (with_carrier(plan, name="bn1"), "already has an attribute 'bn1'"),
        (with_carrier(plan, kind="graph", node="x", name="se"), "which has none"),
        (replace(plan, decisions=(replace(decision, kwargs={"channels": 8}),)), "cannot be built from"),
        (replace(plan, decisions=(replace(decision, kwargs={**decision.kwargs, "act": "os"}),)), "cannot be built"),
        (
            replace(plan, decisions=(replace(decision, init="absorb", site=replace(decision.site, absorb="stem")),)),
            "no batch norm with weight and bias",
        ),
        (replace(plan, decisions=(replace(decision, site=replace(decision.site, carrier=None)),)), "says not how"),
    ):
        keys, classes = list(model.state_dict()), [type(m) for m in model.modules()]
        with pytest.raises(PlanMismatchError, match=reason):
            se_inject.apply(model, wrong, inplace=True)
        assert (list(model.state_dict()), [type(m) for m in model.modules()]) == (keys, classes)


def test_a_node_that_the_graph_does_not_have() -> None:
    model = fx.symbolic_trace(net())
    code, keys = model.code, list(model.state_dict())
    plan = with_carrier(se_inject.plan(model, (3, 16, 16), "standard"), node="nowhere")
    with pytest.raises(PlanMismatchError, match="has no node 'nowhere'"):
        se_inject.apply(model, plan, inplace=True)
    assert model.code == code and list(model.state_dict()) == keys


def test_another_model() -> None:
    plan = se_inject.plan(net(), (3, 16, 16), "standard")
    for other in (net(n=2), net(Unread), net(Dropped)):
        with pytest.raises(PlanMismatchError, match="other classes, keys or shapes"):
            se_inject.apply(other, plan)
