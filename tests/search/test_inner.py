"""The placement `inner` where the spatial convolution is no single module: depthwise convolutions side by side, what
follows in a child or past a shortcut, weights that are computed. Each with a twin that is no such place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import se_inject
from se_inject.types import Reason, Site
from tests.helpers import randomise
from tests.nets import Fn, RepVGG, conv, unit
from tests.search.test_sites import sites

SIZE = (8, 8, 8)


def inner(net: nn.Module) -> dict[str, Site]:
    return sites(net, placements=("inner",))


class Ghost(nn.Module):
    """GhostNet's module: a 1x1 convolution, and a cheap depthwise one of its outputs beside them."""

    def __init__(self, i: int, o: int, cheap: Callable[[int], nn.Module] = lambda c: unit(c, c, g=c)) -> None:
        super().__init__()
        self.primary, self.cheap, self.o = unit(i, o // 2, 1), cheap(o // 2), o

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.primary(x)
        return torch.cat([y, self.cheap(y)], 1)[:, : self.o]


class RepGhost(nn.Module):
    """The same, summed and not concatenated, the value itself behind a norm."""

    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.primary, self.cheap, self.skip = unit(i, o, 1), conv(o, o, g=o), nn.BatchNorm2d(o)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.primary(x)
        return F.relu(self.cheap(y) + self.skip(y))


class Gated(Ghost):
    """GhostNetV2: times a map of the same size that a sigmoid made of the block's input, at half the resolution."""

    squash = staticmethod(torch.sigmoid)

    def __init__(self, i: int, o: int) -> None:
        super().__init__(i, o)
        self.far = conv(i, o, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        far = self.squash(self.far(F.avg_pool2d(x, 2)))
        return super().forward(x) * F.interpolate(far, size=x.shape[-2:], mode="nearest")


class Unsquashed(Gated):
    squash = staticmethod(F.relu)


class Parallel(nn.Module):
    """MobileOne's layer: convolutions side by side, summed; pointwise with ``k`` 1, depthwise else."""

    def __init__(self, i: int, o: int, k: int, g: int = 1, kernels: tuple[int, ...] | None = None) -> None:
        super().__init__()
        self.convs = nn.ModuleList(conv(i, o, k, g=g) for k in (kernels or (k, 1)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(sum(c(x) for c in self.convs))


class Residual(nn.Module):
    def __init__(self, f: nn.Module) -> None:
        super().__init__()
        self.f = f

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.f(x)


class CondConv(nn.Module):
    """A convolution whose weight is a mixture, another one for each sample."""

    def __init__(self, i: int, o: int, k: int, g: int = 1) -> None:
        super().__init__()
        self.o, self.g, self.k = o, g, k
        self.experts = nn.Parameter(torch.randn(3, o * (i // g) * k * k) / k)

    def forward(self, x: torch.Tensor, mixture: torch.Tensor) -> torch.Tensor:
        n, c, h, w = x.shape
        weight = (mixture @ self.experts).view(n * self.o, c // self.g, self.k, self.k)
        y = F.conv2d(x.reshape(1, n * c, h, w), weight, padding=self.k // 2, groups=self.g * n)
        return y.view(n, self.o, h, w)


class CondBlock(nn.Module):
    def __init__(self, groups: int = 16) -> None:
        super().__init__()
        self.routing = nn.Linear(8, 3)
        self.expand, self.middle, self.project = CondConv(8, 16, 1), CondConv(16, 16, 3, groups), CondConv(16, 8, 1)
        self.bn1, self.bn2, self.bn3 = nn.BatchNorm2d(16), nn.BatchNorm2d(16), nn.BatchNorm2d(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mixture = torch.sigmoid(self.routing(x.mean((2, 3))))
        y = F.relu(self.bn1(self.expand(x, mixture)))
        y = F.relu(self.bn2(self.middle(y, mixture)))
        return x + self.bn3(self.project(y, mixture))


def block(first: nn.Module, *others: nn.Module) -> Fn:
    """A residual block of modules one after another."""

    def forward(x: torch.Tensor, *layers: nn.Module) -> torch.Tensor:
        y = x
        for layer in layers:
            y = layer(y)
        return x + y

    return Fn(forward, first, *others)


def mlp() -> nn.Sequential:
    return nn.Sequential(conv(8, 32, 1), nn.GELU(), conv(32, 8, 1))


def grouped(i: int, o: int) -> nn.Module:
    return conv(i, o, g=2)


# name -> the network; the one place as id, its channels, whether the next layer projects, channels entering the block.
PLACES: dict[str, tuple[Callable[[], nn.Module], tuple[str, int, bool, int]]] = {
    "concatenated": (lambda: block(Ghost(8, 16), Ghost(16, 8)), ("layers.0:inner", 16, True, 8)),
    "summed": (lambda: block(RepGhost(8, 16), RepGhost(16, 8)), ("layers.0:inner", 16, True, 8)),
    "times a map of a sigmoid": (lambda: block(Gated(8, 16), Ghost(16, 8)), ("layers.0:inner", 16, True, 8)),
    "before 1x1 convolutions side by side": (
        lambda: block(Parallel(8, 8, 3, 8), Parallel(8, 16, 1), conv(16, 8, 1)),
        ("layers.0:inner", 8, False, 8),
    ),
    "before a child": (lambda: block(unit(8, 8, g=8), mlp()), ("layers.0:inner", 8, False, 8)),
    "at the end of a child": (
        lambda: block(nn.Sequential(unit(8, 16, 1), unit(16, 16, g=16)), conv(16, 8, 1)),
        ("layers.0:inner", 16, True, 8),
    ),
    "before a residual child": (
        lambda: Fn(lambda x, a, b: b(a(x)), unit(8, 8, g=8), Residual(mlp())),
        ("layers.0:inner", 8, False, 8),
    ),
    "before a shortcut": (
        lambda: Fn(lambda x, a, f: (y := a(x)) + f(y), Parallel(8, 8, 3, 8), mlp()),
        ("layers.0:inner", 8, False, 8),
    ),
    "computed weights": (CondBlock, (":inner", 16, True, 8)),
}  # fmt: skip


@pytest.mark.parametrize("name", PLACES)
def test_the_place(name: str) -> None:
    make, expected = PLACES[name]
    (site,) = inner(make()).values()
    assert (site.id, site.channels, site.projects, site.block_channels) == expected
    assert site.depthwise and not site.obstacle


@pytest.mark.parametrize("name", PLACES)
def test_a_block_stands_there(name: str) -> None:
    torch.manual_seed(0)
    model = randomise(PLACES[name][0]().eval())
    result = se_inject.inject(model, SIZE, "inner")
    assert len(result.plan.insertions) == 1
    assert all(check.passed for check in result.report.checks)
    x, y = torch.randn(2, *SIZE), []
    block = next(m for n, m in result.model.named_modules() if n == result.plan.insertions[0].key)
    block.register_forward_hook(lambda module, args, out: y.append(args[0]))
    assert torch.equal(result.model(x), model(x))
    assert y[0].shape == (2, PLACES[name][1][1], 8, 8)


NOT_PLACES: dict[str, Callable[[], nn.Module]] = {
    "full convolutions side by side (RepVGG)": lambda: Fn(lambda x, a, b: b(a(x)), RepVGG(), conv(8, 4, 1)),
    "a full convolution at a child's end": lambda: block(nn.Sequential(unit(8, 8), unit(8, 8)), mlp()),
    "a full convolution before a child": lambda: block(unit(8, 8), mlp()),
    "a full convolution before a shortcut": lambda: Fn(lambda x, a, f: (y := a(x)) + f(y), unit(8, 8), conv(8, 8, 1)),
    "an inception branch": lambda: block(Ghost(8, 16, lambda c: unit(c, c)), conv(16, 8, 1)),
    "grouped, but not depthwise": lambda: block(Ghost(8, 16, lambda c: grouped(c, c)), Ghost(16, 8)),
    "two layers in a branch": lambda: block(
        Ghost(8, 16, lambda c: nn.Sequential(unit(c, c, g=c), unit(c, c, g=c))), mlp_of(16)
    ),
    "times a map without a sigmoid": lambda: block(Unsquashed(8, 16), Ghost(16, 8)),
    "a 1x1 and a 3x3 convolution follow": lambda: block(
        Parallel(8, 8, 3, 8), Parallel(8, 16, 1, kernels=(3, 1)), conv(16, 8, 1)
    ),
    "used elsewhere too": lambda: Fn(
        lambda x, a, f, g: (y := a(x)) + f(y) * g(y), unit(8, 8, g=8), conv(8, 8, 1), conv(8, 8, 1)
    ),
    "another value is added": lambda: Fn(
        lambda x, a, b, f: b(x) + f(y := a(x)) * y, unit(8, 8, g=8), unit(8, 8, g=8), conv(8, 8, 1)
    ),
    "computed, but the next layer is not 1x1": lambda: spatial_at_last(CondBlock()),
}


def mlp_of(channels: int) -> nn.Sequential:
    return nn.Sequential(conv(channels, 8, 1), nn.GELU(), conv(8, 8, 1))


def spatial_at_last(net: Any) -> nn.Module:
    net.project = CondConv(16, 8, 3)
    return net


@pytest.mark.parametrize("name", NOT_PLACES)
def test_no_place(name: str) -> None:
    assert inner(NOT_PLACES[name]()) == {}


def test_a_full_convolution_may_be_the_last_of_its_block() -> None:
    """Two blocks, and not one: the 1x1 convolution is the first of the next."""
    net = Fn(
        lambda x, a, b: b(a(x)), nn.Sequential(conv(8, 8, 1), unit(8, 8)), nn.Sequential(conv(8, 8, 1), unit(8, 8))
    )
    assert inner(net) == {}


def test_the_gate_of_a_ghost_block_is_met() -> None:
    class SE(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = conv(16, 4, 1), conv(4, 16, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * torch.sigmoid(self.b(F.relu(self.a(x.mean((2, 3), keepdim=True)))))

    (site,) = inner(block(Ghost(8, 16), SE(), Ghost(16, 8))).values()
    assert site.gated == Reason("gated", "already gated by layers.1")
    (site,) = inner(block(Ghost(8, 16), nn.Identity(), Ghost(16, 8))).values()
    assert not site.gated
