"""A model stays in the mode that it is in; what is random in train mode, and auxiliary heads, are kept."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import timm
import torch
import torchvision
from torch import nn

import se_inject
from tests.helpers import randomise
from tests.tiny import open_gates

SMALL = torchvision.models.densenet.DenseNet
RANDOM: dict[str, Callable[[], nn.Module]] = {
    "drop path": lambda: timm.create_model("test_resnet", drop_path_rate=0.4),
    "dropout and drop block": lambda: timm.create_model("test_resnet", drop_rate=0.4, drop_block_rate=0.2),
    "layer scale and drop path": lambda: timm.create_model("test_convnext", drop_path_rate=0.4),
    "dropout in dense layers": lambda: SMALL(8, (2, 2), 8, drop_rate=0.3, num_classes=5),
    "stochastic depth": lambda: torchvision.models.convnext_tiny(stochastic_depth_prob=0.5, num_classes=5),
    "dropout before the head": lambda: torchvision.models.mobilenet_v3_small(num_classes=5),
}
SLOW = {"stochastic depth", "dropout before the head"}


def build(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return randomise(make())


def outputs(model: nn.Module, x: torch.Tensor, seed: int) -> torch.Tensor:
    torch.manual_seed(seed)
    with torch.no_grad():
        return model(x)


@pytest.mark.parametrize("kind", [pytest.param(k, marks=[pytest.mark.slow] if k in SLOW else []) for k in RANDOM])
@pytest.mark.parametrize("training", [True, False])
def test_mode_and_randomness(kind: str, training: bool) -> None:
    model = build(RANDOM[kind]).train(training)
    x = torch.randn(4, 3, 64, 64)
    result = se_inject.inject(model, (x,))
    assert all(check.passed for check in result.report.checks), result.report.checks
    rewritten = result.model
    assert all(module.training == training for m in (model, rewritten) for module in m.modules())
    model.eval(), rewritten.eval()
    assert torch.equal(outputs(model, x, 0), outputs(rewritten, x, 1))
    model.train(), rewritten.train()
    for seed in (1, 2):
        assert torch.equal(outputs(model, x, seed), outputs(rewritten, x, seed))
    assert not torch.equal(outputs(rewritten, x, 3), outputs(rewritten, x, 4))


def test_single_modules_in_another_mode_stay_in_it() -> None:
    model = build(RANDOM["drop path"]).train()
    model.layer1.eval()
    modes = {path: module.training for path, module in model.named_modules()}
    rewritten = se_inject.inject(model, (3, 64, 64)).model
    kept = {path: module.training for path, module in rewritten.named_modules()}
    assert {path: kept[path] for path in modes} == modes and len(set(modes.values())) == 2
    assert not any(kept[path] for path in kept if path.startswith("layer1."))


# Auxiliary heads, which run in train mode alone, on the size that they need.
AUXILIARY = {"googlenet": (("aux1.", "aux2."), 96), "inception_v3": (("AuxLogits.",), 299)}


@pytest.mark.slow
@pytest.mark.parametrize("name", AUXILIARY)
def test_auxiliary_heads_are_not_lost(name: str) -> None:
    prefixes, side = AUXILIARY[name]
    options = {"weights": None, "aux_logits": True, "init_weights": False, "num_classes": 5}
    model = build(lambda: torchvision.models.get_model(name, **options)).train()
    x = torch.randn(2, 3, side, side)
    result = se_inject.inject(model, (x,))
    checks = {check.name: check for check in result.report.checks}
    assert all(check.passed for check in checks.values())
    assert checks["outputs (train)"].detail.startswith(f"{1 + len(prefixes)} tensors bit-equal")
    for prefix in prefixes:
        heads = [key for key in model.state_dict() if key.startswith(prefix)]
        assert heads and set(heads) <= set(result.model.state_dict())
    assert result.model.training
    torch.manual_seed(0)
    want = model(x)
    torch.manual_seed(0)
    got = result.model(x)
    assert type(got) is type(want) and all(torch.equal(a, b) for a, b in zip(want, got, strict=True))
    got.logits.sum().backward()
    assert all(p.grad is not None for d in result.plan.insertions for p in grown(result.model, d.key))


def grown(model: nn.Module, key: str) -> list[nn.Parameter]:
    return list(model.get_submodule(key).parameters())


def test_the_gate_shows_in_train_mode_too() -> None:
    model = build(RANDOM["drop path"]).train()
    rewritten = open_gates(se_inject.inject(model, (3, 64, 64)).model)
    x = torch.randn(2, 3, 64, 64)
    assert not torch.equal(outputs(model, x, 0), outputs(rewritten, x, 0))
