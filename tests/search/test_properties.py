"""Random networks that are generated together with their truth."""

from __future__ import annotations

import json
from collections import Counter

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import se_inject
from se_inject.types import Plan, dump, from_dict, to_dict
from tests.helpers import randomise
from tests.nets import body, conv, unit

SIZE = (8, 8, 8)
QUICK = settings(max_examples=25)


class Residual(nn.Module):
    def __init__(self, channels: int, out: int, stride: int, order: int) -> None:
        super().__init__()
        self.body = body(channels, out, stride)
        same = (channels, stride) == (out, 1)
        self.shortcut = nn.Identity() if same else nn.Sequential(conv(channels, out, 1, stride), nn.BatchNorm2d(out))
        self.order = order

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.body(x) + self.shortcut(x) if self.order else self.shortcut(x) + self.body(x)
        return y.relu()


class Bottleneck(nn.Module):
    def __init__(self, channels: int, out: int, stride: int, order: int) -> None:
        super().__init__()
        self.reduce, self.conv = unit(channels, 4, 1), unit(4, 4, s=stride)
        self.expand = nn.Sequential(conv(4, out, 1), nn.BatchNorm2d(out))
        self.shortcut = nn.Sequential(conv(channels, out, 1, stride), nn.BatchNorm2d(out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(self.reduce(x))
        y = self.expand(y)
        return torch.add(y, self.shortcut(x)).relu()


class Inception(nn.Module):
    def __init__(self, channels: int, out: int, stride: int, order: int) -> None:
        super().__init__()
        self.a, self.b = (
            unit(channels, out // 2, 1, stride),
            nn.Sequential(unit(channels, 4), unit(4, out // 2, s=stride)),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat((self.a(x), self.b(x)), dim=1)


class Parallel(nn.Module):
    def __init__(self, channels: int, out: int, stride: int, order: int) -> None:
        super().__init__()
        self.a = nn.Sequential(conv(channels, out, 3, stride), nn.BatchNorm2d(out))
        self.b = nn.Sequential(conv(channels, out, 1, stride), nn.BatchNorm2d(out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.a(x) + self.b(x)).relu()


def plain(channels: int, out: int, stride: int, order: int) -> nn.Module:
    return unit(channels, out, s=stride)


# kind -> how to build it, and the sites it has by placement
KINDS = {
    "plain": (plain, {"conv": 1}),
    "residual": (Residual, {"standard": 1, "post": 1, "identity": 1, "pre": 1}),
    "bottleneck": (Bottleneck, {"standard": 1, "post": 1, "identity": 1, "pre": 1, "inner": 1}),
    "inception": (Inception, {"concat": 1}),
    "parallel": (Parallel, {"sum": 1}),
}
layers = st.tuples(
    st.sampled_from(sorted(KINDS)), st.sampled_from([8, 16]), st.sampled_from([1, 1, 2]), st.integers(0, 1)
)


def network(spec: list[tuple[str, int, int, int]]) -> tuple[nn.Module, Counter[str]]:
    modules: list[nn.Module] = []
    truth: Counter[str] = Counter()
    channels, side = SIZE[0], SIZE[1]
    for kind, out, stride, order in spec:
        stride = stride if side > 2 else 1
        make, sites = KINDS[kind]
        modules.append(make(channels, out, stride, order))
        truth.update(sites)
        channels, side = out, side // stride
    return randomise(nn.Sequential(*modules)).eval(), truth


@QUICK
@given(st.lists(layers, min_size=1, max_size=5))
def test_sites_found_are_the_truth(spec: list[tuple[str, int, int, int]]) -> None:
    model, truth = network(spec)
    for placement in ("standard", "inner", "pre", "post", "identity", "concat", "sum", "conv"):
        try:
            found = len(se_inject.plan(model, SIZE, placement).insertions)
        except se_inject.RulesError as error:
            assert error.code == "no-sites"
            found = 0
        assert found == truth[placement], placement


@QUICK
@given(st.lists(layers, min_size=1, max_size=4), st.sampled_from(["auto", "standard", "concat", "sum", "post"]))
def test_splice_and_remove(spec: list[tuple[str, int, int, int]], placement: str) -> None:
    model, _ = network(spec)
    try:
        plan = se_inject.plan(model, SIZE, placement)
    except se_inject.RulesError:
        return
    again = from_dict(Plan, json.loads(dump(plan)))
    assert again == plan and json.loads(dump(plan)) == to_dict(plan)

    first, second = se_inject.apply(model, plan), se_inject.apply(model, again)
    x = torch.randn(2, *SIZE)
    with torch.no_grad():
        want = model(x)
        assert torch.equal(first(x), want)
        assert torch.equal(se_inject.remove(first)(x), want)
    state = second.state_dict()
    assert all(torch.equal(tensor, state[key]) for key, tensor in first.state_dict().items())
    assert se_inject.remove(first).state_dict().keys() == model.state_dict().keys()
    assert [type(m) for m in se_inject.remove(first).modules()] == [type(m) for m in model.modules()]


@QUICK
@given(st.lists(layers, min_size=2, max_size=5), st.permutations(["[01]", "[12]", "*"]))
def test_the_first_entry_that_matches_decides(spec: list[tuple[str, int, int, int]], order: list[str]) -> None:
    model, truth = network(spec)
    placement = "standard" if truth["standard"] else "conv" if truth["conv"] else "sum"
    if not truth[placement]:
        return
    heads = {d.site.carrier.path[0] for d in se_inject.plan(model, SIZE, placement).insertions if d.site.carrier}
    order = [pattern for pattern in order if pattern == "*" or heads & set(pattern)]  # others would be an error
    ratios = {pattern: 2.0 ** (i + 1) for i, pattern in enumerate(order)}
    entries = [{"include": f"{pattern}*", "ratio": ratios[pattern]} for pattern in order]
    plan = se_inject.plan(model, SIZE, {"placement": placement, "block": {"rd_divisor": 1}, "sites": entries})
    for decision in plan.insertions:
        path = decision.site.carrier.path  # type: ignore[union-attr]
        first = next(p for p in order if p == "*" or path[0] in p)
        assert decision.kwargs["rd_channels"] == max(1, int(decision.site.channels / ratios[first] + 0.5))
