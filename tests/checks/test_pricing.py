"""What an insertion would cost is what the report says that it costs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import se_inject
from se_inject.blocks.make import make_block
from se_inject.checks.cost import batch_size
from se_inject.checks.pricing import pricing
from se_inject.injection.plan import make_plan
from tests.nets import Basic, Fn, Net, conv


class Pyramid(Net):
    """One head for maps of three sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.head = Basic(8, 8)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [self.head(x[..., ::step, ::step]) for step in (1, 2, 4)]


def windows(x: torch.Tensor, block: nn.Module) -> torch.Tensor:
    """Quarters of the map, in the batch axis."""
    n, c, h, w = x.shape
    parts = x.view(n, c, 2, h // 2, 2, w // 2).permute(0, 2, 4, 1, 3, 5).reshape(4 * n, c, h // 2, w // 2)
    return block(parts).mean((2, 3))


CASES: dict[str, tuple[nn.Module, Any]] = {
    "once": (nn.Sequential(Basic(8, 16, 2), Basic(16, 16)), {"placement": "standard", "ratio": 4}),
    "maps of three sizes": (Pyramid(), {"placement": "standard", "block": "cbam"}),
    "windows": (Fn(windows, Basic()), {"placement": "standard", "ratio": 2}),
    "no reduced channels": (nn.Sequential(Basic(8, 8), Basic(8, 8)), {"placement": "standard", "block": "eca"}),
    "plain": (nn.Sequential(conv(8, 8), nn.ReLU(), conv(8, 24), nn.ReLU()), {"placement": "conv"}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_prices_are_those_of_the_report(name: str) -> None:
    model, rules = CASES[name]
    planned = make_plan(model, (8, 16, 16), rules)
    price = pricing(planned.found, batch_size(planned.inputs))
    sites = se_inject.inject(model, (8, 16, 16), rules).report.sites
    assert [price(d) for d in planned.plan.insertions] == [(s.parameters, s.macs) for s in sites] != []


@pytest.mark.parametrize("name", ["maps of three sizes", "windows"])
def test_the_first_call_alone_does_not_tell(name: str) -> None:
    """The cases differ from the cost at the shape of the site, times its calls."""
    model, rules = CASES[name]
    planned = make_plan(model, (8, 16, 16), rules)
    (decision,) = planned.plan.insertions
    block = make_block(decision, 0, None)
    alone = se_inject.cost(block, torch.empty(decision.site.shape)).macs
    assert pricing(planned.found, batch_size(planned.inputs))(decision)[1] != alone * decision.site.calls
