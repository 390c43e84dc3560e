"""The models that every row runs on, injected once a session, and how a row says where it does not hold."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import pytest
import timm
import torch
from torch import nn
from torchvision.models.resnet import Bottleneck, ResNet

import se_inject
from se_inject.types import Plan
from tests.helpers import randomise


# One for each way in which a block comes to run: torchvision's bottleneck and timm's RegNetX and ConvNeXt get another
# forward, timm's ResNet and EfficientNet have a slot. The stages are cut short, because compiling costs by the block.
def resnet50(**options: Any) -> nn.Module:
    return ResNet(Bottleneck, [1, 1, 1, 1], **options)


def resnet18(**options: Any) -> nn.Module:
    return timm.create_model("resnet18", layers=(2, 1, 1, 1), **options)


def efficientnet_lite0(**options: Any) -> nn.Module:
    model = timm.create_model("efficientnet_lite0", **options)
    for number, stage in enumerate(model.blocks):
        del stage[2 if number == 1 else 1 :]
    return model


def convnext_atto(**options: Any) -> nn.Module:
    return timm.create_model("convnext_atto", depths=(1, 1, 2, 1), **options)


def regnetx_002(**options: Any) -> nn.Module:
    model = timm.create_model("regnetx_002", **options)
    for stage in (model.s3, model.s4):
        for name in [name for name in stage._modules if name not in ("b1", "b2")]:
            delattr(stage, name)
    return model


MODELS = {make.__name__: make for make in (resnet50, resnet18, efficientnet_lite0, convnext_atto, regnetx_002)}
TORCHVISION = ("resnet50",)
SIZE = (3, 64, 64)


@dataclass(frozen=True)
class Case:
    """A model with open gates in it, in eval mode, and what it says."""

    name: str
    base: nn.Module  # never changed
    model: nn.Module  # a copy for each test
    plan: Plan
    x: torch.Tensor  # (2, 3, 64, 64)
    y: torch.Tensor  # model(x)
    injected: bool = True  # False: `model` is the base, to see whether it fails in the same way

    @cached_property
    def blocks(self) -> list[str]:
        """The paths of the inserted blocks."""
        return [decision.key for decision in self.plan.insertions] if self.injected else []

    @cached_property
    def owners(self) -> list[str]:
        """The paths of the modules that hold a block."""
        return [path.rpartition(".")[0] for path in self.blocks]

    @cached_property
    def added(self) -> list[str]:
        """The keys of the blocks, in the order of the state dict."""
        return [key for key in self.model.state_dict() if key.rpartition(".")[0].rpartition(".")[0] in self.blocks]


def _half_open(model: nn.Module, plan: Plan) -> nn.Module:
    """Gates that differ from channel to channel, none of them saturated."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for decision in plan.insertions:
            for parameter in model.get_submodule(decision.key).parameters():
                fan_in = parameter[0].numel()
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / fan_in**0.5)
    return model


@cache
def _made(name: str) -> tuple[nn.Module, nn.Module, Plan, torch.Tensor, torch.Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        base = randomise(MODELS[name](num_classes=10)).eval()
        x = torch.randn(2, *SIZE)
        result = se_inject.inject(base, SIZE, verify=False)
    model = _half_open(result.model, result.plan)
    with torch.no_grad():
        return base, model, result.plan, x, model(x)


def case(name: str, injected: bool = True) -> Case:
    """The case of this name: nothing in it is shared with another test but the base and the tensors."""
    base, model, plan, x, y = _made(name)
    if injected:
        return Case(name, base, copy.deepcopy(model), plan, x, y)
    with torch.no_grad():
        return Case(name, base, copy.deepcopy(base), plan, x, base(x), injected=False)


@dataclass(frozen=True)
class Fails:
    """Why a cell does not hold: it raises this, and the model without blocks does so too."""

    raises: type[BaseException]
    reason: str
    base: bool = True


@dataclass(frozen=True)
class Cell:
    """What `docs/ecosystem.md` says of a row and a model."""

    text: str
    reason: str = ""


def over(
    *, absent: Mapping[str, str] | None = None, fails: Mapping[str, Fails] | None = None, only: tuple[str, ...] = ()
) -> Callable[[Any], Any]:
    """Run a row on every model. ``absent``: models that do not have it, and why; ``fails``: strict xfails, each run on
    the base too when it is said to fail there; ``only``: these models, where they show all that there is to see."""
    absent, fails = absent or {}, fails or {}
    params, cells = [], {}
    for name in only or MODELS:
        if name in absent:
            cells[name] = Cell("none", absent[name])
            continue
        marks: list[Any] = []
        cells[name] = Cell("yes")
        if why := fails.get(name):
            marks = [pytest.mark.xfail(raises=why.raises, reason=why.reason, strict=True)]
            cells[name] = Cell("as base" if why.base else "no", why.reason)
            if why.base:
                params.append(pytest.param((name, False), id=f"{name}-base", marks=marks))
        params.append(pytest.param((name, True), id=name, marks=marks))

    def row(test: Any) -> Any:
        test.cells = cells
        return pytest.mark.parametrize("case", params, indirect=True)(test)

    return row


def close(found: torch.Tensor, wanted: torch.Tensor, bound: float) -> bool:
    """Whether the largest difference is within ``bound``, relative to the largest value."""
    return bool((found - wanted).abs().max() <= bound * wanted.abs().max())


def out(model: Any, *args: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(*args)
