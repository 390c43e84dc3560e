"""Small networks for the engine's tests: a stem, blocks of one kind, a head; and plans made by hand."""

from __future__ import annotations

import difflib
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import se_inject
from se_inject import Injection
from se_inject.surgery.fingerprint import fingerprint
from se_inject.types import Carrier, Decision, Plan, Position

SIZE = (3, 16, 16)
KWARGS = {"rd_channels": 4, "bias": True, "act": "relu", "gate": "sigmoid"}


class Layers(nn.Module):
    """The layers of a residual block; subclasses write the forward."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def first(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.bn1(self.conv1(x)))


class Residual(Layers):
    """The plainest residual block: ``self.bn2(...)`` is the end of its branch."""

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(x + y)


class Dropped(Residual):
    """A residual block with something random in train mode."""

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.dropout(self.bn2(self.conv2(y)), 0.5, self.training)
        return F.relu(x + y)


class Private(Layers):
    """A private name, which the class that wrote it alone can read."""

    def __init__(self) -> None:
        super().__init__()
        self.__scale = 0.5

    def forward(self, x):
        return F.relu(x + self.bn2(self.conv2(self.first(x))) * self.__scale)


def outside(self, x):
    return F.relu(x + self.bn2(self.conv2(self.first(x))))


class Borrowed(Layers):
    """A function of the module as its forward."""

    forward = outside


class Net(nn.Module):
    """``n`` blocks of a kind between a stem and a head."""

    def __init__(self, block: Any = Residual, n: int = 1, **options: Any) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.blocks = nn.Sequential(*[block(**options) for _ in range(n)])
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        return self.fc(self.blocks(self.stem(x)).mean((2, 3)))


class Chain(nn.Module):
    """A VGG: one plain ``Sequential`` of convolution, batch norm, ReLU, whose loop hides every expression."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i in (3, 8):
            layers += [nn.Conv2d(i, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True)]
        self.features = nn.Sequential(*layers)
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        return self.fc(self.features(x).mean((2, 3)))


def net(block: Any = Residual, n: int = 1, **options: Any) -> Net:
    """A ``Net`` with batch norms that do something, in eval mode."""
    from tests.helpers import randomise

    model = Net(block, n, **options)
    randomise(model)
    return model.eval()


def inject(model: nn.Module, rules: Any = "standard", size: Any = SIZE, **options: Any) -> Injection:
    return se_inject.inject(model, size, rules, **options)


def open_gates(model: nn.Module, seed: int = 1) -> nn.Module:
    """Random weights in every inserted block, so that a gate shows in the output."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if type(module).__name__ == "SqueezeExcite":
                for parameter in module.parameters():
                    parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def image(batch: int = 2, size: tuple[int, ...] = SIZE, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, *size, generator=torch.Generator().manual_seed(seed))


def by_hand(
    model: nn.Module, *carriers: Carrier, channels: int = 8, init: str = "identity", absorb: str = "", **kwargs: Any
) -> Plan:
    """A plan that inserts at exactly these carriers, whatever a placement would select."""
    start = {"gain": 2.0 if init == "identity" else 1.0, "zero_init": True} if init != "paper" else {}
    found = se_inject.plan(Net(), SIZE, "standard").insertions[0].site
    decisions = []
    for order, carrier in enumerate(carriers):
        site = replace(
            found,
            id=f"{carrier.path}:{carrier.name}:by-hand",
            owner=carrier.path,
            channels=channels,
            order=order,
            block=carrier.path,
            carrier=carrier,
            absorb=absorb,
        )
        options = {"channels": channels, **KWARGS, **start, **kwargs}
        decisions.append(Decision(site, "insert", "by hand", "se", init, options))
    return Plan(type(model).__name__, {}, {}, fingerprint(model), {}, 0, tuple(decisions))


def with_carrier(plan: Plan, **changes: Any) -> Plan:
    """The plan with its first insertion's carrier changed: what a hand on ``plan.json`` could do."""
    first = next(d for d in plan.decisions if d.status == "insert")
    carrier = replace(first.site.carrier, **changes)
    changed = replace(first, site=replace(first.site, carrier=carrier))
    return replace(plan, decisions=tuple(changed if d is first else d for d in plan.decisions))


def at(text: str, snippet: str, nth: int = 0, digest: str = "", method: str = "forward") -> Position:
    """The position of the ``nth`` ``snippet`` in a method's text: lines from 0, columns in UTF-8 bytes."""
    start = -1
    for _ in range(nth + 1):
        start = text.index(snippet, start + 1)
    end = start + len(snippet)

    def place(offset: int) -> tuple[int, int]:
        before = text[:offset].encode()
        return before.count(b"\n"), len(before) - (before.rfind(b"\n") + 1)

    return Position("m", "C", method, *place(start), *place(end), digest)


def changes(before: str, after: str) -> list[tuple[str, str]]:
    """The lines that differ, as (old, new); an assertion when lines were added or taken away."""
    old, new = before.splitlines(), after.splitlines()
    assert len(old) == len(new), "\n".join(difflib.unified_diff(old, new, lineterm=""))
    return [(a.strip(), b.strip()) for a, b in zip(old, new, strict=True) if a != b]
