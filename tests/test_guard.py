"""Wrappers are taken off; what cannot be rewritten is refused by its name and its place."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

import se_inject
from se_inject.errors import SEInjectError
from se_inject.guard import unwrap
from tests.tiny import SIZE, Residual, inject, net


class DistributedDataParallel(nn.Module):
    """Stands for torch's, which needs a process group."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


DistributedDataParallel.__module__ = "torch.nn.parallel.distributed"


class Mine(DistributedDataParallel):
    """A user's own subclass of a wrapper."""


class NoWrapper(nn.Module):
    """An attribute called ``module`` does not make a wrapper."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


def compiled(model: nn.Module) -> Any:
    return torch.compile(model, backend="eager")


WRAPPED = {
    "compiled": compiled,
    "DDP": DistributedDataParallel,
    "a subclass of DDP": Mine,
    "averaged": AveragedModel,
    "data parallel": nn.DataParallel,
    "compiled around DDP": lambda m: compiled(DistributedDataParallel(m)),
    "DDP around compiled": lambda m: DistributedDataParallel(compiled(m)),
    "plain": lambda m: m,
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_wrappers_are_taken_off(kind: str) -> None:
    model = net()
    inner = unwrap(WRAPPED[kind](model))
    assert type(inner) is type(model)
    assert list(inner.state_dict()) == list(model.state_dict())
    if kind != "averaged":  # it holds a copy
        assert inner is model


def test_what_only_looks_like_a_wrapper_is_kept() -> None:
    wrapper = NoWrapper(net())
    assert unwrap(wrapper) is wrapper


@pytest.mark.parametrize("kind", ["compiled", "averaged", "DDP"])
def test_every_entry_unwraps(kind: str) -> None:
    wrapper = WRAPPED[kind](net())
    result = inject(wrapper)
    assert type(result.model).__name__ == "Net" and result.plan.insertions[0].key == "blocks.0.se"
    assert se_inject.plan(wrapper, SIZE, "standard").insertions == result.plan.insertions
    assert se_inject.cost(wrapper, SIZE) == result.report.before
    plan = se_inject.plan(net(), SIZE, "standard")
    assert type(se_inject.remove(WRAPPED[kind](se_inject.apply(wrapper, plan))).blocks[0]) is Residual


def test_in_place_changes_what_is_inside() -> None:
    model = net()
    wrapper = compiled(model)
    assert inject(wrapper, inplace=True).model is model
    assert "_orig_mod.blocks.0.se.fc1.weight" in wrapper.state_dict()


class FSDPModule(nn.Module):
    """Stands for torch's, which needs a process group."""


FSDPModule.__module__ = "torch.distributed.fsdp"


class Sharded(FSDPModule):
    pass


class UsersOwn(nn.Module):
    """The user's package may be called fsdp_tools, or quantized."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 1)


UsersOwn.__module__ = "fsdp_tools.quantized.nn"


def holding(child: nn.Module) -> nn.Module:
    model = net()
    model.blocks.append(child)
    return model


@pytest.mark.filterwarnings("ignore:.*is deprecated")
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (
            lambda: torch.jit.script(nn.Linear(2, 2)),
            "ScriptModule holds a ScriptModule, which has no Python source",
        ),
        (lambda: holding(torch.jit.script(nn.Linear(2, 2))), "Net holds a ScriptModule, .* at blocks.1"),
        (lambda: torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), "holds a ScriptModule"),
        (lambda: holding(Sharded()), "Net holds an FSDP module: inject first, then shard at blocks.1"),
        (lambda: holding(nn.LazyConv2d(8, 3)), "an uninitialised LazyConv2d: run one forward first, .* at blocks.1"),
        (lambda: nn.LazyLinear(2), "LazyLinear holds an uninitialised LazyLinear"),
        (lambda: holding(torch.ao.nn.quantized.ReLU6()), "a quantized ReLU6: inject into the float model"),
        (lambda: "resnet18", "expected an nn.Module, found str"),
        (lambda: net().state_dict(), "expected an nn.Module, found OrderedDict"),
    ],
)
def test_refusals(make: Any, reason: str) -> None:
    model = make()
    for entry in (
        unwrap,
        inject,
        lambda m: se_inject.plan(m, SIZE),
        se_inject.remove,
        lambda m: se_inject.cost(m, SIZE),
    ):
        with pytest.raises(SEInjectError, match=reason):
            entry(model)


def test_what_is_not_refused() -> None:
    assert unwrap(holding(UsersOwn()))
    lazy = nn.Sequential(nn.LazyConv2d(8, 3))
    lazy(torch.zeros(1, 3, 4, 4))
    assert unwrap(lazy) is lazy
    assert unwrap(holding(torch.ao.nn.quantized.FloatFunctional()))
