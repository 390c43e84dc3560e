"""A gradient of zero is told apart from a missing one, and chance from both."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

import se_inject
from se_inject.checks.reached import SEEDS, ZERO, _once, reached
from se_inject.errors import VerifyError
from se_inject.types import Check
from tests.helpers import randomise
from tests.tiny import SIZE, Layers, Net, inject, net

STANDARD = {"placement": "standard"}


def check(result: se_inject.Injection) -> Check:
    return next(check for check in result.report.checks if check.name == "reached")


def test_paper_starts_in_a_model_whose_values_explode_in_eval_mode() -> None:
    """mobileone_s0 without weights: each block multiplies its value, batch norms that have seen nothing divide by one,
    and at the end a sigmoid of 1e5 has no gradient. In train mode they normalise, as they do in training."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = timm.create_model("mobileone_s0", num_classes=5).eval()
    result = se_inject.inject(model, (3, 64, 64), {"placement": "sum", "init": "paper"})
    assert check(result).passed is True and check(result).detail.startswith("43 blocks ran in train mode")
    owners = {d.key: d.site.owner for d in result.plan.insertions}
    assert _once(result.model, result.inputs, owners, 0, training=False).of(ZERO)


class Saturated(Layers):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(x + self.bn2(self.conv2(self.first(x))) * 1e12)


def test_saturated_gates_are_said() -> None:
    result = inject(net(Saturated), {"placement": "standard", "init": "paper"}, verify=False)
    kept = {key: p.detach().clone() for key, p in result.model.named_parameters()}
    with torch.no_grad():
        result.model.blocks[0].se.fc2.bias.fill_(1e4)
    found = reached(result.model, result.inputs, result.plan)
    assert found.passed is True and found.detail.endswith("; 1 have saturated gates on this probe")
    assert torch.equal(kept["blocks.0.se.fc1.weight"], result.model.blocks[0].se.fc1.weight)


class ZeroHead(Net):
    def __init__(self) -> None:
        super().__init__()
        nn.init.zeros_(self.fc.weight)


def test_a_zeroed_head_is_said() -> None:
    found = check(inject(ZeroHead().eval(), STANDARD))
    assert found.passed is True and found.detail.endswith("; 1 are multiplied by a parameter that is zero")


class NothingFound(Net):
    """A detector that finds nothing on noise: the path is there, and no value on it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x)
        return y[y > 1e9]


def test_empty_outputs_are_said() -> None:
    found = check(inject(NothingFound().eval(), STANDARD))
    assert found.passed is True
    assert found.detail.endswith("; 1 get it from their own module's value, not from the outputs on this probe")


class Multiplied(Layers):
    """By a zero that is no parameter: it will never be another."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(x + self.bn2(self.conv2(self.first(x))) * 0.0)


def test_a_constant_zero_is_no_start() -> None:
    with pytest.raises(VerifyError, match=r"reached: the gradient of 1 blocks is zero in train mode, the first is blo"):
        inject(net(Multiplied), STANDARD)


class Dropping(Layers):
    """Drop path for the whole batch, more often than not."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(self.first(x)))
        if self.training:
            Dropping.forwards += 1
            y = y * (torch.rand(1) < 0.4)
        return x + y

    forwards = 0


def test_a_branch_that_chance_drops_is_tried_again() -> None:
    Dropping.forwards = 0
    assert check(inject(net(Dropping), STANDARD)).passed is True
    assert Dropping.forwards <= 4 * SEEDS


class NoTensor(Net):
    def forward(self, x: torch.Tensor) -> Any:
        return {"label": super().forward(x).argmax(1)}


def test_outputs_without_gradients_prove_nothing() -> None:
    found = check(inject(NoTensor().eval(), STANDARD))
    assert found.passed is True and "asked of the modules that carry them" in found.detail


def test_gradients_and_weights_are_left_as_they_are() -> None:
    model = randomise(ZeroHead()).eval()
    nn.init.zeros_(model.fc.weight)
    model(torch.randn(2, *SIZE)).sum().backward()
    before = {key: (p, p.clone(), p.grad.clone()) for key, p in model.named_parameters() if p.grad is not None}
    result = inject(model, STANDARD, inplace=True)
    for key, (parameter, value, gradient) in before.items():
        now = result.model.get_parameter(key)
        assert now is parameter and torch.equal(now, value) and torch.equal(now.grad, gradient)
