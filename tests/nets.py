"""Tiny networks that carry their own truth: the sites that a search must find in them, id -> channels.

``NETS`` is every network by name; a placement that a network does not name has no site in it. The comment of a class
says which rule it is for; those whose truth is empty are the negative twins.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn

Sites = dict[str, int]


class Net(nn.Module):
    shape: ClassVar[tuple[int, ...]] = (8, 8, 8)  # of the example input, without the batch
    standard: ClassVar[Sites] = {}
    inner: ClassVar[Sites] = {}
    nested: ClassVar[dict[str, int]] = {}  # site id -> residual blocks inside its branch


class Fn(Net):
    """A function as a network: ``Fn(fn, layer, ...)`` calls ``fn(x, layer, ...)``."""

    def __init__(self, fn: Any, *layers: nn.Module) -> None:
        super().__init__()
        self.fn = fn
        self.layers = nn.ModuleList(layers)

    def forward(self, x: torch.Tensor) -> Any:
        return self.fn(x, *self.layers)


def conv(i: int, o: int, k: int = 3, s: int = 1, g: int = 1, bias: bool = False) -> nn.Conv2d:
    return nn.Conv2d(i, o, k, s, k // 2, groups=g, bias=bias)


def unit(i: int, o: int, k: int = 3, s: int = 1, g: int = 1) -> nn.Sequential:
    """Convolution, norm, activation."""
    return nn.Sequential(conv(i, o, k, s, g), nn.BatchNorm2d(o), nn.ReLU())


def body(i: int, o: int, s: int = 1) -> nn.Sequential:
    """A residual branch of two convolutions."""
    return nn.Sequential(conv(i, o, s=s), nn.BatchNorm2d(o), nn.ReLU(), conv(o, o), nn.BatchNorm2d(o))


# -- residual joins -------------------------------------------------------------------------------------------------
class Basic(Net):
    standard: ClassVar[Sites] = {":standard": 8}

    def __init__(self, i: int = 8, o: int = 8, s: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu = conv(i, o, s=s), nn.BatchNorm2d(o), nn.ReLU(inplace=True)
        self.conv2, self.bn2 = conv(o, o), nn.BatchNorm2d(o)
        self.downsample = nn.Sequential(conv(i, o, 1, s), nn.BatchNorm2d(o)) if (i, s) != (o, 1) else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        if self.downsample is not None:
            shortcut = self.downsample(shortcut)
        x += shortcut
        return self.relu(x)


class Plain(Net):
    """The same layers, and no addition."""

    def __init__(self) -> None:
        super().__init__()
        self.body = body(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.body(x))


class Projection(Basic):
    """The shortcut is a strided 1x1 convolution."""

    standard: ClassVar[Sites] = {":standard": 16}

    def __init__(self) -> None:
        super().__init__(8, 16, 2)


class PooledProjection(Net):
    """ResNet-D: pool and 1x1 convolution on the shortcut."""

    standard: ClassVar[Sites] = {":standard": 16}

    def __init__(self) -> None:
        super().__init__()
        self.body = body(8, 16, 2)
        self.shortcut = nn.Sequential(nn.AvgPool2d(2), conv(8, 16, 1), nn.BatchNorm2d(16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


class PaddedShortcut(Net):
    """PyramidNet: pool, and new channels of zeros."""

    standard: ClassVar[Sites] = {":standard": 12}

    def __init__(self) -> None:
        super().__init__()
        self.body = body(8, 12, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x) + F.pad(F.avg_pool2d(x, 2), (0, 0, 0, 0, 0, 4))


class PreActivation(Net):
    """Norm and activation first; the shortcut leaves before them, or (in a projecting block) after."""

    standard: ClassVar[Sites] = {"a:standard": 16, "b:standard": 16}

    class Block(nn.Module):
        def __init__(self, i: int, o: int) -> None:
            super().__init__()
            self.bn1, self.conv1, self.bn2, self.conv2 = nn.BatchNorm2d(i), conv(i, o), nn.BatchNorm2d(o), conv(o, o)
            self.project = conv(i, o, 1) if i != o else None

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = F.relu(self.bn1(x))
            shortcut = x if self.project is None else self.project(y)
            return self.conv2(F.relu(self.bn2(self.conv1(y)))) + shortcut

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = self.Block(8, 16), self.Block(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x))


class OneLayer(Net):
    """One convolution beside the value itself."""

    standard: ClassVar[Sites] = {":standard": 8}

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv(x)


class ThreeOperands(Net):
    """One join of three operands: two deep branches and the value."""

    standard: ClassVar[Sites] = {":standard": 8, ":standard_2": 8}

    def __init__(self) -> None:
        super().__init__()
        self.f, self.g = body(8, 8), body(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.f(x) + self.g(x)


class SumOfList(Net):
    """Python's ``sum`` starts with ``0 + first``."""

    standard: ClassVar[Sites] = {":standard": 8}

    def __init__(self) -> None:
        super().__init__()
        self.f = body(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return sum([self.f(x), x])


class ChainedBlocks(Net):
    """Two blocks written out in one forward: two joins, because the first sum is used twice."""

    standard: ClassVar[Sites] = {":standard": 8, ":standard_2": 8}

    def __init__(self) -> None:
        super().__init__()
        self.f, self.g = body(8, 8), body(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.f(x)
        return x + self.g(x)


class TwoJoins(Net):
    """Token mixing and channel mixing, each with its own shortcut."""

    standard: ClassVar[Sites] = {"block:standard": 8, "block:standard_2": 8}

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.GroupNorm(1, 8), nn.GroupNorm(1, 8)
            self.mix = nn.Sequential(conv(8, 8, 5, g=8), nn.GELU())
            self.mlp = nn.Sequential(conv(8, 16, 1), nn.GELU(), conv(16, 8, 1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x + self.mix(self.norm1(x))
            x = x + self.mlp(self.norm2(x))
            return x

    def __init__(self) -> None:
        super().__init__()
        self.block = self.Block()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.block(x)


class Scaled(Net):
    """A factor on the branch, of every kind, stands between the site and the join."""

    standard: ClassVar[Sites] = {f"blocks.{i}:standard": 8 for i in range(6)}

    class Block(nn.Module):
        def __init__(self, how: str) -> None:
            super().__init__()
            self.how, self.alpha = how, 0.2
            self.body = body(8, 8)
            self.gamma = nn.Parameter(torch.ones(8, 1, 1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.body(x)
            if self.how == "number":
                return x + 0.2 * y
            if self.how == "division":
                return y / 2 + x
            if self.how == "parameter":
                return y * self.gamma + x
            if self.how == "in place":
                return y.mul_(self.alpha).add_(x)
            if self.how == "both":
                return 0.5 * x + 0.5 * y
            return torch.add(x, y, alpha=0.2)

    def __init__(self) -> None:
        super().__init__()
        kinds = ("number", "division", "parameter", "in place", "both", "alpha")
        self.blocks = nn.Sequential(*(self.Block(kind) for kind in kinds))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks(x)


class DropPath(nn.Module):
    """Drops whole samples in training; in eval its argument comes back."""

    def __init__(self, p: float = 0.2) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return x
        keep = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(1 - self.p)
        return x * keep / (1 - self.p)


class LayerScale(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((channels, 1, 1), 0.1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gamma


class Regularised(Net):
    """Layer scale, dropout and drop path between the branch and the join, in the block's own source."""

    standard: ClassVar[Sites] = {":standard": 8}

    def __init__(self) -> None:
        super().__init__()
        self.body, self.scale, self.drop, self.drop_path = body(8, 8), LayerScale(8), nn.Dropout(0.1), DropPath()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.body(x)
        return x + self.drop_path(self.drop(self.scale(y)))


class PassedShortcut(Net):
    """DLA: the shortcut comes in as an argument of its own."""

    standard: ClassVar[Sites] = {"block:standard": 8}

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = body(8, 8)

        def forward(self, x: torch.Tensor, shortcut: torch.Tensor | None = None) -> torch.Tensor:
            return F.relu(self.body(x) + (x if shortcut is None else shortcut))

    def __init__(self) -> None:
        super().__init__()
        self.before, self.project, self.block = unit(8, 8), conv(8, 8, 1), self.Block()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.block(self.before(x), shortcut=self.project(x))


class AdditiveUNet(Net):
    """A shortcut around a whole network of blocks: residual, and said to hold a block of its own."""

    standard: ClassVar[Sites] = {":standard": 8, "middle:standard": 8}
    nested: ClassVar[dict[str, int]] = {":standard": 1}

    def __init__(self) -> None:
        super().__init__()
        self.down, self.middle, self.up = unit(8, 8, s=2), Basic(), nn.Upsample(scale_factor=2)
        self.out = unit(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.down(x)
        y = self.middle(y)
        y = self.out(self.up(y))
        return x + y


# -- additions that are no residual join -----------------------------------------------------------------------------
class RepVGG(Net):
    """Three parallel branches of one layer at most."""

    def __init__(self) -> None:
        super().__init__()
        self.big = nn.Sequential(conv(8, 8), nn.BatchNorm2d(8))
        self.small = nn.Sequential(conv(8, 8, 1), nn.BatchNorm2d(8))
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.big(x) + self.small(x) + self.norm(x))


class TwoDeepBranches(Net):
    """Two branches of equal weight."""

    def __init__(self) -> None:
        super().__init__()
        self.f, self.g = body(8, 8), body(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.f(x) + self.g(x)


class TwoPaths(Net):
    """A chain and a deeper chain, both with an activation: no shortcut either."""

    def __init__(self) -> None:
        super().__init__()
        self.f, self.g = body(8, 8), unit(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.f(x) + self.g(x)


class FPN(Net):
    """Lateral convolutions and an upsampled map of the level above; the deepest lateral follows a 3x3 convolution."""

    inner: ClassVar[Sites] = {":inner": 16}

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.c2 = unit(8, 8, s=2), unit(8, 16, s=2)
        self.lateral1, self.lateral2, self.out = conv(8, 8, 1), conv(16, 8, 1), conv(8, 8)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        c1 = self.c1(x)
        c2 = self.c2(c1)
        p2 = self.lateral2(c2)
        p1 = self.lateral1(c1) + F.interpolate(p2, scale_factor=2.0)
        return [self.out(p1), p2]


class HRNet(Net):
    """Maps of two resolutions, each the sum of what comes from both."""

    class Fuse(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.Sequential(conv(16, 8, 1), nn.BatchNorm2d(8), nn.Upsample(scale_factor=2))
            self.down = nn.Sequential(conv(8, 16, s=2), nn.BatchNorm2d(16))

        def forward(self, maps: list[torch.Tensor]) -> list[torch.Tensor]:
            high, low = maps
            return [F.relu(high + self.up(low)), F.relu(self.down(high) + low)]

    def __init__(self) -> None:
        super().__init__()
        self.high, self.low, self.fuse = unit(8, 8), unit(8, 16, s=2), self.Fuse()

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return self.fuse([self.high(x), self.low(x)])


class Res2Net(Net):
    """Inside, each part of a split is added to the result of the part before: other values, no shortcut."""

    standard: ClassVar[Sites] = {":standard": 8}
    inner: ClassVar[Sites] = {}

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = unit(8, 8, 1), nn.Sequential(conv(8, 8, 1), nn.BatchNorm2d(8))
        self.convs = nn.ModuleList([unit(4, 4), unit(4, 4)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = torch.split(self.first(x), 4, 1)
        a = self.convs[0](parts[0])
        b = self.convs[1](a + parts[1])
        return x + self.last(torch.cat([a, b], 1))


class NotAJoin(Net):
    """A parameter, a vector for each sample, a maximum, a product: none is an addition of two maps."""

    def __init__(self) -> None:
        super().__init__()
        self.f, self.bias, self.fc = body(8, 8), nn.Parameter(torch.zeros(1, 8, 8, 8)), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.f(x) + self.bias
        y = y + self.fc(x[:, :, 0, 0])[:, :, None, None]
        return torch.cat([torch.maximum(x, y), x * y], 1)


# -- the inner place ------------------------------------------------------------------------------------------------
class Bottleneck(Net):
    standard: ClassVar[Sites] = {":standard": 16}
    inner: ClassVar[Sites] = {":inner": 4}
    shape: ClassVar[tuple[int, ...]] = (16, 8, 8)

    def __init__(self, groups: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(16, 4, 1), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = conv(4, 4, g=groups), nn.BatchNorm2d(4)
        self.conv3, self.bn3 = conv(4, 16, 1), nn.BatchNorm2d(16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(y + x)


class Grouped(Bottleneck):
    """RegNet and ResNeXt: a grouped convolution."""

    def __init__(self) -> None:
        super().__init__(groups=2)


class MBConv(Net):
    """Expansion, depthwise convolution, projection."""

    standard: ClassVar[Sites] = {":standard": 8}
    inner: ClassVar[Sites] = {":inner": 32}

    def __init__(self, i: int = 8, o: int = 8, expansion: int = 4, s: int = 1) -> None:
        super().__init__()
        middle = i * expansion
        self.expand = unit(i, middle, 1) if expansion > 1 else nn.Identity()
        self.depthwise, self.bn = conv(middle, middle, s=s, g=middle), nn.BatchNorm2d(middle)
        self.project, self.bn2 = conv(middle, o, 1), nn.BatchNorm2d(o)
        self.skip = (i, s) == (o, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.expand(x)
        y = F.relu6(self.bn(self.depthwise(y)))
        y = self.bn2(self.project(y))
        return x + y if self.skip else y


class MBConvStrided(MBConv):
    """No shortcut: a block of its own all the same."""

    standard: ClassVar[Sites] = {}

    def __init__(self) -> None:
        super().__init__(o=16, s=2)


class MBConvUnexpanded(MBConv):
    inner: ClassVar[Sites] = {":inner": 8}

    def __init__(self) -> None:
        super().__init__(expansion=1)


class SequentialMBConv(Net):
    """torchvision's form: everything stands in one ``Sequential``."""

    standard: ClassVar[Sites] = {":standard": 8}
    inner: ClassVar[Sites] = {"conv.1:inner": 32}

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(unit(8, 32, 1), unit(32, 32, g=32), conv(32, 8, 1), nn.BatchNorm2d(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv(x)


class FlatMBConv(Net):
    """torchvision's MNASNet: the layers one by one in a ``Sequential``; the activation carries the block."""

    standard: ClassVar[Sites] = {":standard": 8}
    inner: ClassVar[Sites] = {"layers.5:inner": 16}

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*unit(8, 16, 1), *unit(16, 16, g=16), conv(16, 8, 1), nn.BatchNorm2d(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.layers(x)


class BatchNormAct(nn.BatchNorm2d):
    """timm's form: norm and activation in one module, a subclass of the norm."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, self.training, 0.1, self.eps)
        return self.act(self.drop(x))


class NormAct(Net):
    standard: ClassVar[Sites] = {":standard": 8}
    inner: ClassVar[Sites] = {":inner": 16}

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1, self.conv2, self.bn2 = conv(8, 16, 1), BatchNormAct(16), conv(16, 16), BatchNormAct(16)
        self.conv3, self.bn3 = conv(16, 8, 1), nn.BatchNorm2d(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn1(self.conv1(x))
        y = self.bn2(self.conv2(y))
        return x + self.bn3(self.conv3(y))


class Blurred(Net):
    """A fixed filter between the activation and the 1x1 convolution is anti-aliasing, not a layer."""

    standard: ClassVar[Sites] = {":standard": 8}
    inner: ClassVar[Sites] = {":inner": 16}

    class Blur(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.register_buffer("filter", torch.full((channels, 1, 3, 3), 1 / 9))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.conv2d(F.pad(x, (1, 1, 1, 1), "reflect"), self.filter, stride=2, groups=x.shape[1])

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.blur, self.conv3 = unit(8, 16, 1), unit(16, 16), self.Blur(16), conv(16, 8, 1)
        self.shortcut = nn.AvgPool2d(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv2(self.conv1(x))
        return self.shortcut(x) + self.conv3(self.blur(y))


class Functional(Net):
    """No module but the root: own parameters, and functions."""

    standard: ClassVar[Sites] = {":standard": 8}
    inner: ClassVar[Sites] = {":inner": 16}

    def __init__(self) -> None:
        super().__init__()
        self.w1 = nn.Parameter(torch.randn(16, 8, 1, 1))
        self.w2 = nn.Parameter(torch.randn(16, 1, 3, 3))
        self.w3 = nn.Parameter(torch.randn(8, 16, 1, 1))
        self.gamma, self.beta = nn.Parameter(torch.ones(16)), nn.Parameter(torch.zeros(16))
        self.register_buffer("mean", torch.zeros(16))
        self.register_buffer("var", torch.ones(16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(F.conv2d(x, self.w1))
        y = F.conv2d(y, self.w2, padding=1, groups=16)
        y = F.batch_norm(y, self.mean, self.var, self.gamma, self.beta)
        y = F.relu(y)
        return x + F.conv2d(y, self.w3)


class StemThenBlock(Net):
    """The 1x1 convolution after the stem begins a block: the stem's value is the shortcut too."""

    shape: ClassVar[tuple[int, ...]] = (3, 16, 16)
    standard: ClassVar[Sites] = {"block:standard": 16}
    inner: ClassVar[Sites] = {"block:inner": 4}

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block = unit(3, 16), Bottleneck()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.block(self.stem(x))


class PoolBetween(Net):
    """A 3x3 convolution, a pool, a 1x1 convolution: the pool ends the first layer's place."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.pool, self.b = unit(8, 8), nn.MaxPool2d(2), conv(8, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.pool(self.a(x)))


class Shared(Net):
    """The value before the 1x1 convolution is used elsewhere too."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = unit(8, 8), conv(8, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.a(x)
        return torch.cat([y, self.b(y)], 1)


class SpatialAfterSpatial(Net):
    """A 3x3 convolution follows, not a 1x1; and a 1x1 that follows a 1x1."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = unit(8, 8), unit(8, 8, 5), nn.MaxPool2d(2), unit(8, 8, 1)
        self.e = conv(8, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.e(self.d(self.c(self.b(self.a(x)))))


class DynamicWeights(Net):
    """The kernel that follows is computed from the input: nobody knows it to be a 1x1 layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.fc = unit(8, 8), nn.Linear(8, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.fc(x.mean((0, 2, 3))).view(8, 8, 1, 1)
        return F.conv2d(self.a(x), weight)


NETS: dict[str, type[Net]] = {
    net.__name__: net
    for net in (
        Basic, Plain, Projection, PooledProjection, PaddedShortcut, PreActivation, OneLayer, ThreeOperands, SumOfList,
        ChainedBlocks, TwoJoins, Scaled, Regularised, PassedShortcut, AdditiveUNet, RepVGG, TwoDeepBranches, TwoPaths,
        FPN, HRNet, Res2Net, NotAJoin, Bottleneck, Grouped, MBConv, MBConvStrided, MBConvUnexpanded, SequentialMBConv,
        FlatMBConv, NormAct, Blurred, Functional, StemThenBlock, PoolBetween, Shared, SpatialAfterSpatial,
        DynamicWeights,
    )
}  # fmt: skip


# -- networks of networks -------------------------------------------------------------------------------------------
class Chain(Net):
    def __init__(self, nets: list[Net]) -> None:
        super().__init__()
        self.nets = nn.Sequential(*nets)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.nets(x)


class Skip(Net):
    """A shortcut around a network."""

    def __init__(self, inside: Net) -> None:
        super().__init__()
        self.inside = inside

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.inside(x)


class Pair(Net):
    """The sum of two deep networks."""

    def __init__(self, a: Net, b: Net) -> None:
        super().__init__()
        self.a, self.b = a, b

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.a(x) + self.b(x)


@dataclass(frozen=True)
class Truth:
    """The sites of a network, and how many residual joins it has."""

    sites: Sites
    nested: dict[str, int]
    joins: int

    def at(self, path: str) -> Truth:
        def name(site: str) -> str:
            return path + site if site.startswith(":") else f"{path}.{site}"

        return Truth(
            {name(s): c for s, c in self.sites.items()}, {name(s): n for s, n in self.nested.items()}, self.joins
        )


def truth(net: Net) -> Truth:
    """What the network itself says, or what follows from those that it is made of."""
    if isinstance(net, Skip):
        inside = truth(net.inside).at("inside")
        nested = {":standard": inside.joins} if inside.joins else {}
        return Truth({**inside.sites, ":standard": 8}, {**inside.nested, **nested}, inside.joins + 1)
    parts: list[Truth] = []
    if isinstance(net, Chain):
        parts = [truth(inside).at(f"nets.{i}") for i, inside in enumerate(net.nets)]  # type: ignore[arg-type]
    elif isinstance(net, Pair):
        parts = [truth(net.a).at("a"), truth(net.b).at("b")]
    else:
        own = len(net.standard) - isinstance(net, ThreeOperands)
        return Truth({**net.standard, **net.inner}, net.nested, own)
    return Truth(
        {s: c for part in parts for s, c in part.sites.items()},
        {s: n for part in parts for s, n in part.nested.items()},
        sum(part.joins for part in parts),
    )
