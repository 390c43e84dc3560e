"""Nets as people write them by hand, each with its truth: where gates must be, or the code of the refusal.

A class is one net and its truth is the line above it: ``@gates("f", ...)`` the owners of the blocks that ``standard``
inserts, the model itself being ``""``; ``@refused(code)`` the code of the one reason why there is none. All parameters
of ``zero`` set to zero, the branch f of the residual sum is zero: what a net with blocks that give zero must equal.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from tests.nets import body, conv, unit

NETS: dict[str, type[Hand]] = {}


class Hand(nn.Module):
    """The layers that the nets are written with, made when a net names them."""

    shape: ClassVar[tuple[int, ...]] = (8, 8, 8)
    at: ClassVar[tuple[str, ...]] = ()
    code: ClassVar[str] = ""
    batched: ClassVar[bool] = True  # or the forward takes one image
    zero: ClassVar[tuple[str, ...]] = ("f",)  # their parameters at zero make f(x) zero
    layers: ClassVar[dict[str, Callable[[], Any]]] = {}

    def __init__(self) -> None:
        super().__init__()
        for name, make in {"f": lambda: body(8, 8), **self.layers}.items():
            setattr(self, name, make())

    def forward(self, x: torch.Tensor) -> Any:
        return x + self.f(x)


def gates(*at: str, **options: Any) -> Callable[[type[Hand]], type[Hand]]:
    """Register a net: the owners of its blocks, in order of execution."""

    def register(cls: type[Hand]) -> type[Hand]:
        cls.at = at
        for name, value in options.items():
            setattr(cls, name, value)
        NETS[cls.__name__] = cls
        return cls

    return register


def refused(code: str, **options: Any) -> Callable[[type[Hand]], type[Hand]]:
    return gates(code=code, **options)


# -- how the sum is written -------------------------------------------------------------------------------------------
@gates("")
class Plus(Hand):
    def forward(self, x):
        return x + self.f(x)


@gates("")
class Turned(Hand):
    def forward(self, x):
        return self.f(x) + x


@gates("")
class Named(Hand):
    def forward(self, x):
        shortcut, y = x, self.f(x)
        y = y + shortcut
        return F.relu(y)


@gates("")
class Augmented(Hand):
    def forward(self, x):
        y = self.f(x)
        y += x
        return y


@gates("")
class Method(Hand):
    def forward(self, x):
        return self.f(x).add(x)


@gates("")
class InPlace(Hand):
    def forward(self, x):
        return self.f(x).add_(x)


@gates("")
class TorchAdd(Hand):
    def forward(self, x):
        return torch.add(x, self.f(x))


@gates("")
class Alpha(Hand):
    def forward(self, x):
        return torch.add(x, self.f(x), alpha=0.5)


@gates("")
class Overload(Hand):
    def forward(self, x):
        return torch.ops.aten.add.Tensor(x, self.f(x))


@gates("")
class Minus(Hand):
    def forward(self, x):
        return x - self.f(x)


@gates("")
class MinusInPlace(Hand):
    def forward(self, x):
        y = x.clone()
        y -= self.f(x)
        return y


@gates("")
class Sub(Hand):
    def forward(self, x):
        return torch.sub(x, self.f(x))


@gates("")
class Subtract(Hand):
    def forward(self, x):
        return torch.subtract(x, self.f(x), alpha=0.5)


@gates("")
class Rsub(Hand):
    def forward(self, x):
        return torch.rsub(self.f(x), x)


@gates("")
class MinusShortcut(Hand):
    def forward(self, x):
        return self.f(x) - x


@gates("")
class Lerp(Hand):
    def forward(self, x):
        return torch.lerp(x, self.f(x), 0.25)


@gates("")
class LerpMethod(Hand):
    def forward(self, x):
        return x.lerp(self.f(x), 0.5)


@gates("", layers={"w": lambda: nn.Parameter(torch.full((8, 1, 1), 0.3))})
class LerpWeight(Hand):
    def forward(self, x):
        return torch.lerp(x, self.f(x), self.w)


@gates("", layers={"gamma": lambda: nn.Parameter(torch.full((8, 1, 1), 0.5))})
class Addcmul(Hand):
    def forward(self, x):
        return torch.addcmul(x, self.f(x), self.gamma)


@gates("", layers={"gamma": lambda: nn.Parameter(torch.full((8, 1, 1), 0.5))})
class AddcmulMethod(Hand):
    def forward(self, x):
        return x.addcmul(self.gamma, self.f(x), value=0.5)


@gates("")
class StackSum(Hand):
    def forward(self, x):
        return torch.stack((x, self.f(x))).sum(0)


@gates("")
class StackSumInside(Hand):
    def forward(self, x):
        return torch.sum(torch.stack([self.f(x), x], dim=1), dim=1)


@gates("")
class StackSumKeyword(Hand):
    def forward(self, x):
        return torch.stack([x, self.f(x)], -1).sum(dim=-1)


@gates("")
class CatSum(Hand):
    def forward(self, x):
        return torch.cat([x[None], self.f(x)[None]]).sum(0)


@gates("")
class CatUnsqueezed(Hand):
    def forward(self, x):
        return torch.cat([x.unsqueeze(1), self.f(x).unsqueeze(1)], 1).sum(1)


@gates("")
class CatViewSum(Hand):
    def forward(self, x):
        n, c, h, w = x.shape
        return torch.cat([x, self.f(x)], 1).view(n, 2, c, h, w).sum(1)


@gates("")
class CatUnflattenSum(Hand):
    def forward(self, x):
        return torch.cat([x, self.f(x)], dim=1).unflatten(1, (2, 8)).sum(dim=1)


@gates("")
class CatViewOtherSum(Hand):
    """Neighbouring channels are summed, and no value with another: a layer of a dense block."""

    def forward(self, x):
        n, c, h, w = x.shape
        return torch.cat([x, self.f(x)], 1).view(n, c, 2, h, w).sum(2)


@gates("")
class AddOut(Hand):
    def forward(self, x):
        y = self.f(x)
        return y if self.training else torch.add(x, y, out=torch.empty_like(x))


@gates("")
class SumOfList(Hand):
    def forward(self, x):
        return sum([x, self.f(x)])


@gates("")
class SumWithStart(Hand):
    def forward(self, x):
        return sum((self.f(x),), x)


@gates("f")
class SumOfGenerator(Hand):
    def forward(self, x):
        return x + sum(f(x) for f in [self.f])


@gates("branches.0", "branches.1", zero=("branches",), layers={
    "f": nn.Identity, "branches": lambda: nn.ModuleList([body(8, 8), body(8, 8)])})  # fmt: skip
class SumOverChildren(Hand):
    def forward(self, x):
        return sum((m(x) for m in self.branches), x)


@gates("", layers={"ff": torch.ao.nn.quantized.FloatFunctional})
class FloatFunctional(Hand):
    def forward(self, x):
        return self.ff.add(x, self.f(x))


@gates("", layers={"ff": torch.ao.nn.quantized.FloatFunctional})
class FloatFunctionalRelu(Hand):
    def forward(self, x):
        return self.ff.add_relu(self.f(x), x)


# -- the sum in a child -----------------------------------------------------------------------------------------------
class Add(nn.Module):
    def forward(self, a, b):
        return a + b


class AddRelu(nn.Module):
    def forward(self, a, b):
        return F.relu(a + b)


class AddPair(nn.Module):
    def forward(self, pair):
        return pair[0] + pair[1]


class AddList(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU()

    def forward(self, values):
        total = values[0]
        for value in values[1:]:
            total = total + value
        return self.act(total)


class AddMany(nn.Module):
    def forward(self, *values):
        return sum(values)


class AddWrapped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.add = Add()

    def forward(self, a, b):
        return self.add(a, b)


class Sum3(nn.Module):
    def forward(self, a, b, c):
        return a + b + c


@gates("", layers={"add": Add})
class AddChild(Hand):
    def forward(self, x):
        return self.add(self.f(x), x)


@gates("", layers={"add": Add})
class AddChildKeywords(Hand):
    def forward(self, x):
        return self.add(b=self.f(x), a=x)


@gates("", layers={"add": AddRelu})
class AddReluChild(Hand):
    def forward(self, x):
        return self.add(self.f(x), x)


@gates("", layers={"add": AddPair})
class AddPairChild(Hand):
    def forward(self, x):
        return self.add((x, self.f(x)))


@gates("", layers={"add": AddList})
class AddListChild(Hand):
    def forward(self, x):
        return self.add([x, self.f(x)])


@gates("", layers={"add": AddMany})
class AddManyChild(Hand):
    def forward(self, x):
        return self.add(x, self.f(x))


@gates("", layers={"add": AddWrapped})
class AddInTwoChildren(Hand):
    def forward(self, x):
        return self.add(x, self.f(x))


@gates("", "", zero=("f", "g"), layers={"g": lambda: body(8, 8), "add": Sum3})
class ThreeInAChild(Hand):
    def forward(self, x):
        return self.add(x, self.f(x), self.g(x))


@gates("", "", zero=("f", "g"), layers={"g": lambda: body(8, 8), "add": Add})
class OneAddChildTwice(Hand):
    def forward(self, x):
        x = self.add(x, self.f(x))
        return self.add(x, self.g(x))


@gates("", layers={"add": Add, "skip": lambda: conv(8, 8, 1)})
class AddChildProjection(Hand):
    def forward(self, x):
        return self.add(self.f(x), self.skip(x))


@refused("no-sites", layers={"g": lambda: body(8, 8), "add": Add})
class TwoDeepInAChild(Hand):
    def forward(self, x):
        return self.add(self.f(x), self.g(x))


class Joined(nn.Module):
    """A wrapper that adds what it wraps."""

    def __init__(self) -> None:
        super().__init__()
        self.fn = body(8, 8)

    def forward(self, x):
        return self.fn(x) + x


@gates("f.0", "f.1", zero=("f.0.fn", "f.1.fn"), layers={"f": lambda: nn.Sequential(Joined(), Joined())})
class Wrapper(Hand):
    def forward(self, x):
        return self.f(x)


# -- bodies that return several values --------------------------------------------------------------------------------
class Before(nn.Module):
    """The value and what came before it, as PreResNet's bodies return them."""

    def __init__(self) -> None:
        super().__init__()
        self.bn, self.body = nn.BatchNorm2d(8), body(8, 8)

    def forward(self, x):
        before = F.relu(self.bn(x))
        return self.body(before), before


class AsDict(Before):
    def forward(self, x):
        return {"out": self.body(x), "before": x}


class AsList(Before):
    def forward(self, x):
        return [x, self.body(x)]


class Used(Before):
    """The value is used in the body again."""

    def forward(self, x):
        y = self.body(x)
        return y, y.mean((2, 3))


@gates("", zero=("f.body",), layers={"f": Before})
class TupleIdentity(Hand):
    def forward(self, x):
        y, _ = self.f(x)
        return x + y


@gates("", zero=("f.body",), layers={"f": Before, "skip": lambda: conv(8, 8, 1)})
class TuplePreactivated(Hand):
    def forward(self, x):
        identity = x
        x, before = self.f(x)
        identity = self.skip(before)
        x = x + identity
        return x


@gates("", zero=("f.body",), layers={"f": Before})
class TupleAugmented(Hand):
    def forward(self, x):
        y, _ = self.f(x)
        y += x
        return y


@gates("", zero=("f.body",), layers={"f": Before})
class TupleIndexed(Hand):
    def forward(self, x):
        return x + self.f(x)[0]


@gates("", zero=("f.body",), layers={"f": Before})
class TupleAddMethod(Hand):
    def forward(self, x):
        y, _ = self.f(x)
        return x.add(y)


@gates("", zero=("f.body",), layers={"f": Before})
class TupleTorchAdd(Hand):
    def forward(self, x):
        y, _ = self.f(x)
        return torch.add(x, y)


@gates("", zero=("f.body",), layers={"f": Before})
class TupleMinus(Hand):
    def forward(self, x):
        y, _ = self.f(x)
        return x - y


@gates("", zero=("f.body",), layers={"f": AsDict})
class DictBody(Hand):
    def forward(self, x):
        out = self.f(x)
        return out["before"] + out["out"]


@gates("", zero=("f.body",), layers={"f": AsList})
class ListBody(Hand):
    def forward(self, x):
        shortcut, y = self.f(x)
        return y + shortcut


@gates("", zero=("f.body",), layers={"f": Used})
class TupleUsedInside(Hand):
    def forward(self, x):
        y, pooled = self.f(x)
        return x + y, pooled


@gates("", zero=("f.body",), layers={"f": Before, "drop": lambda: nn.Dropout(0.0)})
class TupleDropped(Hand):
    def forward(self, x):
        y, _ = self.f(x)
        return x + self.drop(y)


@refused("loop", layers={"f": Before})
class TupleInAList(Hand):
    def forward(self, x):
        y, _ = self.f(x)
        return sum([x, y])


@refused("taken-twice", layers={"f": Before, "add": AddPair})
class TupleInAPair(Hand):
    def forward(self, x):
        y, _ = self.f(x)
        return self.add((x, y))


@gates("", zero=("f.body",), layers={"f": Before, "add": Add})
class TupleInAnAddChild(Hand):
    def forward(self, x):
        y, _ = self.f(x)
        return self.add(x, y)


# -- loops over children ----------------------------------------------------------------------------------------------
def _two() -> nn.ModuleList:
    return nn.ModuleList([body(8, 8), body(8, 8)])


def _named() -> nn.ModuleDict:
    return nn.ModuleDict({"a": body(8, 8), "b": body(8, 8)})


LOOP: dict[str, Any] = {"zero": ("branches",), "layers": {"f": nn.Identity, "branches": _named}}


@gates("branches.a", "branches.b", **LOOP)
class LoopOverValues(Hand):
    def forward(self, x):
        out = x
        for m in self.branches.values():
            out = out + m(x)
        return out


@gates("branches.a", "branches.b", **LOOP)
class LoopOverItems(Hand):
    def forward(self, x):
        out = x
        for _, m in self.branches.items():
            y = m(x)
            out = y + out
        return F.relu(out)


@gates("branches.a", "branches.b", **LOOP)
class LoopInPlace(Hand):
    def forward(self, x):
        out = x.clone()
        for m in self.branches.values():
            out += m(x)
        return out


@gates("branches.a", "branches.b", **LOOP)
class LoopOneAfterAnother(Hand):
    def forward(self, x):
        for m in self.branches.values():
            x = x + m(x)
        return x


@gates("branches.a", "branches.b", **LOOP)
class LoopWithActivation(Hand):
    def forward(self, x):
        for m in self.branches.values():
            x = F.relu(x + m(x))
        return x


@gates("branches.b", zero=("branches.b",), layers={
    "f": nn.Identity, "branches": lambda: nn.ModuleDict({"a": nn.Identity(), "b": body(8, 8)})})  # fmt: skip
class LoopWithIdentity(Hand):
    def forward(self, x):
        out = 0
        for m in self.branches.values():
            out = out + m(x)
        return out


@gates("branches.b", zero=("branches.b",), layers={
    "f": nn.Identity, "branches": lambda: nn.ModuleDict({"a": conv(8, 8, 1), "b": body(8, 8)})})  # fmt: skip
class LoopWithProjection(Hand):
    def forward(self, x):
        out = 0
        for m in self.branches.values():
            out = out + m(x)
        return out


@gates("f.0", "f.1", layers={"f": _two})
class LoopOverIndices(Hand):
    def forward(self, x):
        for i in range(len(self.f)):
            x = x + self.f[i](x)
        return x


@gates("f.0", "f.1", layers={"f": _two})
class Comprehension(Hand):
    def forward(self, x):
        return sum([m(x) for m in self.f]) + x


@gates("", layers={"f": lambda: nn.ModuleList([body(8, 8)])})
class LoopWithScale(Hand):
    def forward(self, x):
        for m in self.f:
            x = x + 0.5 * m(x)
        return x


@refused("loop", layers={"f": lambda: nn.ModuleList([nn.Sequential(conv(8, 8), nn.ReLU()), conv(8, 8)])})
class LoopWithFunctions(Hand):
    """What is added is an expression of the loop, and no child's value."""

    def forward(self, x):
        for m in self.f:
            x = x + F.relu(self.f[0](m(x)))
        return x


# -- gates, scales, shapes ---------------------------------------------------------------------------------------------
class GatedByEinsum(nn.Module):
    def __init__(self, equation: str) -> None:
        super().__init__()
        self.body, self.fc, self.equation = body(8, 8), nn.Linear(8, 8), equation

    def forward(self, x):
        y = self.body(x)
        return torch.einsum(self.equation, y, self.fc(y.mean((2, 3))).sigmoid())


@refused("gated", layers={"f": lambda: GatedByEinsum("nchw,nc->nchw")})
class EinsumGate(Hand):
    pass


@refused("gated", layers={"f": lambda: GatedByEinsum("b c h w, b c -> b c h w")})
class EinsumGateSpaced(Hand):
    pass


@gates("", layers={"gamma": lambda: nn.Parameter(torch.full((8,), 0.5))})
class EinsumScale(Hand):
    def forward(self, x):
        return x + torch.einsum("nchw,c->nchw", self.f(x), self.gamma)


@gates("", layers={"gamma": lambda: nn.Parameter(torch.full((8, 1, 1), 0.5))})
class LayerScale(Hand):
    def forward(self, x):
        return x + self.gamma * self.f(x)


@gates("")
class Dropped(Hand):
    def forward(self, x):
        return x + F.dropout(self.f(x), 0.0, self.training)


@gates("", zero=("c2",), layers={"f": nn.Identity, "c1": lambda: unit(8, 8), "c2": lambda: conv(8, 8)})
class Inline(Hand):
    def forward(self, x):
        return x + self.c2(self.c1(x))


@gates("", zero=("c2",), layers={"f": nn.Identity, "c1": lambda: unit(8, 8), "c2": lambda: conv(8, 8)})
class Walrus(Hand):
    def forward(self, x):
        return x + (y := self.c2(self.c1(x))) if self.c2.bias is None else y


@gates("", layers={"skip": lambda: nn.Sequential(conv(8, 8, 1), nn.BatchNorm2d(8))})
class Projected(Hand):
    def forward(self, x):
        return self.f(x) + self.skip(x)


@gates("", shape=(8, 16), layers={"f": lambda: nn.Sequential(
    nn.Conv1d(8, 8, 3, 1, 1, bias=False), nn.ReLU(), nn.Conv1d(8, 8, 3, 1, 1, bias=False))})  # fmt: skip
class OneDimension(Hand):
    def forward(self, x):
        return x - self.f(x)


@gates("", shape=(8, 4, 4, 4), layers={"f": lambda: nn.Sequential(
    nn.Conv3d(8, 8, 3, 1, 1, bias=False), nn.ReLU(), nn.Conv3d(8, 8, 3, 1, 1, bias=False))})  # fmt: skip
class ThreeDimensions(Hand):
    def forward(self, x):
        return torch.stack((x, self.f(x))).sum(0)


@gates("", batched=False)
class Unbatched(Hand):
    """One image, which gets its batch in the forward."""

    def forward(self, x):
        x = x[None]
        return (x + self.f(x))[0]


@gates("", batched=False)
class UnbatchedReshaped(Hand):
    def forward(self, x):
        x = x.reshape(1, *x.shape)
        return x - self.f(x)


class InHalf(nn.Module):
    """Convolutions in bfloat16, norms in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.c2 = conv(8, 8).bfloat16(), conv(8, 8).bfloat16()
        self.n1, self.n2 = nn.BatchNorm2d(8), nn.BatchNorm2d(8)

    def forward(self, x):
        x = F.relu(self.n1(self.c1(x.bfloat16()).float()))
        return self.n2(self.c2(x.bfloat16()).float())


@gates("", zero=("f.n2",), layers={"f": InHalf})
class TwoTypes(Hand):
    def forward(self, x):
        x = x.float()
        return x + self.f(x)


@refused("no-sites")
class Chained(Hand):
    def forward(self, x):
        return self.f(x)


@refused("no-sites", layers={"g": lambda: body(8, 8)})
class TwoDeep(Hand):
    def forward(self, x):
        return self.f(x) - self.g(x)


@refused("no-sites")
class DifferenceOfPools(Hand):
    def forward(self, x):
        return F.avg_pool2d(x, 3, 1, 1) - x


@refused("no-sites")
class LerpByData(Hand):
    """Mixed by a weight that the data make: a gate, and no sum."""

    def forward(self, x):
        return torch.lerp(x, x.flip(1), self.f(x).sigmoid())


@refused("no-sites")
class Product(Hand):
    def forward(self, x):
        return x * self.f(x)


@refused("no-sites")
class MaxOfBoth(Hand):
    def forward(self, x):
        return torch.stack((x, self.f(x))).amax(0)


@refused("no-gradient")
class DetachedSum(Hand):
    def forward(self, x):
        return x + self.f(x).detach()


@refused("no-grad")
class WithoutGradient(Hand):
    def forward(self, x):
        with torch.no_grad():
            y = self.f(x)
        return x + y
