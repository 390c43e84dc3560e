"""Containers that run all their children: what they return is carried by their caller, and never run as a layer."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models import densenet121
from torchvision.models.densenet import DenseNet

import se_inject
from tests.helpers import randomise, says
from tests.nets import Fn, conv, unit
from tests.search.test_sites import sites
from tests.tiny import image, inject, open_gates

SIZE = (3, 32, 32)
LAYERS = {"growth_rate": 8, "block_config": (2, 2), "num_init_features": 8, "num_classes": 5}


def small() -> nn.Module:
    torch.manual_seed(0)
    return randomise(DenseNet(**LAYERS).eval())


class Branches(nn.ModuleList):
    """Runs all that it holds, and concatenates."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([branch(x) for branch in self], 1)


class Named(nn.Module):
    """In a forward that names the container: one call more in its source, as everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.branches, self.last = Branches([unit(3, 4), unit(3, 4)]), conv(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.branches(x)
        return self.last(x)


def test_behind_a_dense_block() -> None:
    model = small()
    result = inject(model, "concat", SIZE)
    assert all(check.passed for check in result.report.checks), result.report.checks
    assert [d.key for d in result.plan.insertions] == ["features.denseblock1_se", "features.denseblock2_se"]
    assert {d.site.carrier.kind for d in result.plan.insertions if d.site.carrier} == {"sequential_after"}
    features = list(result.model.features._modules)
    assert features[features.index("denseblock1") + 1] == "denseblock1_se"
    assert [name for name in features if not name.endswith("_se")] == list(model.features._modules)
    assert list(result.model.features.denseblock1) == list(model.features.denseblock1)  # its layers
    x = image(size=SIZE)
    opened = open_gates(result.model)
    assert not torch.equal(opened(x), model(x))
    back = se_inject.remove(opened)
    assert torch.equal(back(x), model(x)) and list(back.state_dict()) == list(model.state_dict())


def test_modeling_puts_it_in_the_same_place(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = densenet121(num_classes=5).eval()
    result = se_inject.inject(
        model, SIZE, "concat", verify=False, name="torchvision:densenet121", model_args={"num_classes": 5}
    )
    se_inject.save(result, tmp_path / "out")
    spec = importlib.util.spec_from_file_location("modeling", tmp_path / "out/modeling.py")
    assert spec is not None and spec.loader is not None
    modeling = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(modeling)
    again, x = modeling.load(), image(size=SIZE)
    assert list(again.features._modules) == list(result.model.features._modules)
    opened = open_gates(result.model)
    again.load_state_dict(opened.state_dict())
    assert torch.equal(again(x), opened(x))
    assert list(se_inject.load(tmp_path / "out").features._modules) == list(opened.features._modules)


def test_a_plan_that_names_no_child() -> None:
    plan = inject(small(), "concat", SIZE, verify=False).plan
    text = json.dumps(se_inject.types.to_dict(plan)).replace('"node": "denseblock1"', '"node": "nonesuch"')
    wrong, model = se_inject.types.from_dict(se_inject.Plan, json.loads(text)), small()
    before = list(model.state_dict())
    with pytest.raises(se_inject.PlanMismatchError, match="has no child 'nonesuch', behind which"):
        se_inject.apply(model, wrong, inplace=True)
    assert list(model.state_dict()) == before


def test_in_a_forward_that_names_it() -> None:
    model = randomise(Named().eval())
    result = inject(model, "concat", SIZE)
    assert [(d.key, d.site.owner, d.site.carrier.kind) for d in result.plan.insertions if d.site.carrier] == [
        ("se", "", "source")
    ]
    assert not torch.equal(open_gates(result.model)(image(size=SIZE)), model(image(size=SIZE)))


def test_places_in_a_numbered_sequential_are_counted_on() -> None:
    """``features[1]`` means a layer to somebody: nothing is put between numbers."""
    numbered = nn.Sequential(Branches([unit(3, 4), unit(3, 4)]), conv(8, 4))
    (site,) = sites(numbered, torch.zeros(2, *SIZE), placements=("concat",)).values()
    assert site.carrier is None
    assert says(site.obstacle, "torch-loop", "Branches runs all its children, and would run a new one too")
    named = nn.Sequential(OrderedDict(a=numbered[0], b=numbered[1]))
    (site,) = sites(named, torch.zeros(2, *SIZE), placements=("concat",)).values()
    assert site.carrier is not None and (site.carrier.name, site.carrier.node) == ("a_se", "a")


# -- several results --------------------------------------------------------------------------------------------------
class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        return self.attention(x, x, x, need_weights=False)


class Encoder(nn.Module):
    """torchvision's: one of two values of a child, then dropout, which has an expression of its own."""

    def __init__(self, dropout: bool) -> None:
        super().__init__()
        self.stem, self.body = nn.Linear(8, 8), Attention()
        self.dropout = nn.Dropout(0.5) if dropout else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        y, _ = self.body(x)
        if self.dropout is not None:
            y = self.dropout(y)
        return x + y


def test_what_passes_one_of_several_values_on_carries() -> None:
    model = Encoder(True).eval()
    result = inject(model, "standard", (torch.randn(2, 5, 8),))
    assert all(check.passed for check in result.report.checks)
    (decision,) = result.plan.insertions
    assert decision.site.layout == "NLC"
    assert "y = self.se(self.dropout(y))" in next(iter(result.report.rewritten.values())).after


def test_without_it_the_addition_carries() -> None:
    result = inject(Encoder(False).eval(), "standard", (torch.randn(2, 5, 8),))
    assert all(check.passed for check in result.report.checks)
    assert "return x + self.se(y)" in next(iter(result.report.rewritten.values())).after


def test_the_axis_of_one_of_several_values() -> None:
    class Patches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.proj = nn.Conv2d(3, 8, 4, 4)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, list[int]]:
            x = self.proj(x)
            return x.flatten(2).transpose(1, 2), list(x.shape[2:])

    def forward(x: torch.Tensor, patches: nn.Module, a: nn.Module, b: nn.Module) -> torch.Tensor:
        tokens, _ = patches(x)
        return tokens + b(a(tokens).relu())

    net = Fn(forward, Patches(), nn.Linear(8, 8), nn.Linear(8, 8))
    found = sites(net, torch.zeros(2, 3, 16, 16), placements=("pre", "standard", "identity"))
    assert {(s.axis, s.layout) for s in found.values()} == {(2, "NLC")} and len(found) == 3


# -- the network's input ----------------------------------------------------------------------------------------------
def test_the_input_of_a_part_is_not_the_network_s() -> None:
    """Parts that ask for the mode are recorded once more in train mode, each by itself."""

    class Asking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = unit(3, 3), unit(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.training:
                return self.b(x)
            return self.a(x)

    found = se_inject.plan(nn.Sequential(unit(3, 3), Asking(), Asking()).eval(), SIZE, {"placement": ["input", "conv"]})
    assert [d.site.id for d in found.decisions if d.site.placement == "input"] == [":input"]


class Comprehension(nn.Module):
    """A residual branch that is computed, once or more often, in a comprehension."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.first, self.second, self.times = unit(8, 8), conv(8, 8), times

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        (branch, *_) = [self.second(self.first(value)) * 2 for value in (x,) * self.times]
        return torch.relu(x + branch)


def test_in_a_comprehension() -> None:
    """It was a function of its own until Python 3.12; from then on its expressions are the method's."""
    (often,), (once,) = (sites(Comprehension(times)).values() for times in (2, 1))
    assert often.carrier is None and often.obstacle
    inlined = sys.version_info >= (3, 12)
    assert once.carrier.kind == ("source" if inlined else "wrap_output")
    result = inject(Comprehension(1).eval(), "standard", (torch.randn(2, 8, 8, 8),))
    (rewritten,) = result.report.rewritten.values()
    assert ("[self.se(self.second(self.first(value))) * 2 for value" in rewritten.after) == inlined
    assert all(check.passed for check in result.report.checks)
