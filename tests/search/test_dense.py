"""Dense blocks: a layer takes all before it and is concatenated with them, so `standard` stands at its end."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import se_inject
from se_inject.types import Reason
from tests.helpers import randomise
from tests.nets import Fn, conv, unit
from tests.search.test_sites import sites

SIZE = (8, 8, 8)


class Layer(nn.Module):
    """A list of maps in, four new channels out (torchvision's and timm's form)."""

    def __init__(self, i: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.BatchNorm2d(i), nn.ReLU(), conv(i, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 4))

    def forward(self, maps: list[torch.Tensor]) -> torch.Tensor:
        return self.body(torch.cat(maps, 1))


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Layer(8), Layer(12), Layer(16)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = [x]
        for layer in self.layers:
            maps.append(layer(maps))
        return torch.cat(maps, 1)


class Growing(nn.Module):
    """The other form: each layer concatenates on its own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = unit(8, 4), unit(12, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.cat([x, self.a(x)], 1)
        return torch.cat([x, self.b(x)], 1)


def test_the_end_of_each_layer() -> None:
    found = sites(Dense(), placements=("standard", "concat"))
    assert [(name, s.channels) for name, s in found.items()] == [
        ("layers.0:standard", 4), ("layers.1:standard", 4), ("layers.2:standard", 4), (":concat", 20)
    ]  # fmt: skip
    assert [s.block_channels for s in found.values()][:3] == [8, 12, 16]
    assert {s.block for s in found.values()} == {*list(found)[:3], ""}  # each layer is a block of its own


def test_auto_takes_the_layers_and_not_the_concatenation() -> None:
    plan = se_inject.plan(Dense().eval(), SIZE)
    assert [d.site.id for d in plan.insertions] == [f"layers.{i}:standard" for i in range(3)]
    (other,) = [d for d in plan.decisions if d.site.placement == "concat"]
    assert other.reason == Reason("takes-branches", "auto: its branches hold blocks of their own")


def test_a_layer_that_concatenates_on_its_own() -> None:
    assert [s.channels for s in sites(Growing(), placements=("standard",)).values()] == [4, 4]


@pytest.mark.parametrize("make", [Dense, Growing])
def test_blocks_stand_there(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = randomise(make().eval())
    result = se_inject.inject(model, SIZE, "standard")
    assert all(check.passed for check in result.report.checks)
    x = torch.randn(2, *SIZE)
    assert torch.equal(result.model(x), model(x))
    back = se_inject.remove(result.model)
    assert back.state_dict().keys() == model.state_dict().keys()


def gate(x: torch.Tensor, f: nn.Module) -> torch.Tensor:
    return x * torch.sigmoid(f(x.mean((2, 3), keepdim=True)))


def test_a_gated_layer_is_told() -> None:
    net = Fn(lambda x, a, f: torch.cat([x, gate(a(x), f)], 1), unit(8, 8), conv(8, 8, 1))
    (site,) = sites(net, placements=("standard",)).values()
    assert site.gated == Reason("gated", "already gated by mul")


# Concatenations that are no dense blocks.
OTHERS: dict[str, Callable[[], nn.Module]] = {
    "a chain (VoVNet)": lambda: Fn(lambda x, a, b: torch.cat([x, y := a(x), b(y)], 1), unit(8, 4), unit(4, 4)),
    "branches (Inception)": lambda: Fn(lambda x, a, b: torch.cat([a(x), b(x)], 1), unit(8, 4), unit(8, 4)),
    "a cheap depthwise layer (GhostNet)": lambda: Fn(lambda x, a: torch.cat([x, a(x)], 1), unit(8, 8, g=8)),
    "no activation": lambda: Fn(
        lambda x, a: torch.cat([x, a(x)], 1), nn.Sequential(conv(8, 8, g=8), conv(8, 8, g=4), nn.BatchNorm2d(8))
    ),
    "a part of the value (ShuffleNet)": lambda: Fn(
        lambda x, a: torch.cat([x[:, :4], a(x[:, 4:])], 1), nn.Sequential(unit(4, 4, 1), unit(4, 4))
    ),
    "a U-Net's skip": lambda: Fn(
        lambda x, a, b: torch.cat([x, b(a(x))], 1), unit(8, 8, s=2), nn.ConvTranspose2d(8, 8, 2, 2)
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_no_dense_block(name: str) -> None:
    assert sites(OTHERS[name](), placements=("standard",)) == {}
