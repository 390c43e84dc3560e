"""Every placement: tiny nets that carry their truth, counts on real nets, and the source that is written."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import nn

import se_inject
from se_inject.search.placements import PLACEMENTS, sentence
from tests.helpers import randomise, refused
from tests.nets import AdditiveUNet, Basic, Fn, MBConv, PassedShortcut, Projection, RepVGG, body, conv, unit

SIZE = (8, 8, 8)


def places(model: nn.Module, placement: Any, size: Any = SIZE, **rules: Any) -> list[str]:
    plan = se_inject.plan(model.eval(), size, {"placement": placement, **rules})
    return [d.site.id for d in plan.insertions]


def none(model: nn.Module, placement: str, size: Any = SIZE) -> bool:
    with refused("no-sites", "no place for"):
        se_inject.plan(model.eval(), size, placement)
    return True


class Branches(nn.Module):
    """An inception module: branches with a common fork, one with a concatenation of its own inside."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = unit(8, 4, 1), unit(8, 4), unit(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b = self.b(x)
        b = torch.cat([b, self.c(b)], 1)
        return torch.cat([self.a(x), b], 1)


class OneShot(nn.Module):
    """One-shot aggregation (VoVNet): outputs of a chain, concatenated and fused by a 1x1 convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.fuse = unit(8, 4), unit(4, 4), unit(16, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        return self.fuse(torch.cat([x, y, self.second(y)], 1))


class SkipConcat(nn.Module):
    """A U-Net's concatenation of an upsampled map and a skip: not branches of one block."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = unit(8, 8, s=2), nn.Upsample(scale_factor=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, self.up(self.down(x))], 1)


class Chain(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            conv(8, 8), nn.ReLU(), conv(8, 8), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(512, 2)
        )


class Stages(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.pool = body(8, 8), body(8, 8, s=2), nn.AdaptiveAvgPool2d(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.pool(self.two(self.one(x))).flatten(1)


def test_every_placement_has_a_description() -> None:
    assert all(map(sentence, PLACEMENTS))


def test_pre_takes_the_branch_and_not_the_shortcut() -> None:
    model = se_inject.inject(Basic(), SIZE, "pre").model
    assert "self.conv1(self.se(x))" in type(model).se_rewrite.after
    assert none(Chain(), "pre")


def test_pre_with_a_shortcut_that_is_passed_in() -> None:
    net = PassedShortcut()
    assert len(places(net, "pre", net.shape)) == len(places(net, "standard", net.shape))


def test_post_is_behind_the_activation() -> None:
    assert "self.se(self.relu(" in type(se_inject.inject(Basic(), SIZE, "post").model).se_rewrite.after
    assert none(Chain(), "post")


def test_post_of_an_augmented_assignment() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = body(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.body(x)
            y += x
            return y

    result = se_inject.inject(Block(), SIZE, "post")
    assert "y += x; y = self.se(y)" in type(result.model).se_rewrite.after


@pytest.mark.parametrize("net", [Basic, Projection])
def test_identity_gates_the_shortcut_alone(net: type[nn.Module]) -> None:
    plain = randomise(net()).eval()
    model = se_inject.inject(plain, SIZE, {"placement": "identity", "init": "paper"}).model
    model.se.fc2.bias.data.fill_(-1e4)  # closes the gate: what is left is the branch
    x = torch.randn(2, *SIZE)
    branch = plain.bn2(plain.conv2(plain.relu(plain.bn1(plain.conv1(x)))))
    assert torch.equal(model(x), branch.relu())


def test_identity_where_the_shortcut_is_the_target_of_an_assignment() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = body(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.body(x)
            x = x * 1
            x += y
            return x

    result = se_inject.inject(Block(), SIZE, "identity")
    assert "x = self.se(x); x += y" in type(result.model).se_rewrite.after


def test_identity_where_the_assignment_reads_its_target_is_refused() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = body(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x += self.body(x)
            return x

    with refused("no-source", "reads x on its right side too"):
        se_inject.inject(Block(), SIZE, "identity")


class Dark(nn.Module):
    """DarkNet's block: a 1x1 convolution, then a spatial one; ``k`` is the kernel of the second."""

    def __init__(self, k: int = 3, shortcut: bool = True) -> None:
        super().__init__()
        self.a, self.b, self.shortcut = unit(8, 4, 1), unit(4, 8, k), shortcut

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.b(self.a(x))
        return x + y if self.shortcut else y


def test_early_is_in_front_of_the_spatial_convolution() -> None:
    torch.manual_seed(0)
    result = se_inject.inject(randomise(Dark().eval()), SIZE, "early")
    (insertion,) = result.plan.insertions
    assert (insertion.site.id, insertion.site.channels, insertion.site.kernel) == (":early", 4, (3, 3))
    assert "self.b(self.se(self.a(x)))" in type(result.model).se_rewrite.after
    assert all(check.passed for check in result.report.checks)
    with refused("gated", "already gated by se"):
        se_inject.plan(result.model, SIZE, "early")


def test_no_early_without_a_spatial_convolution_or_a_shortcut() -> None:
    assert none(Dark(k=1), "early")
    assert none(Dark(shortcut=False), "early")
    assert none(Basic(), "early")


def test_conv_is_behind_norm_and_activation() -> None:
    assert places(Chain(), "conv") == ["1:conv", "4:conv"]
    assert none(Basic(), "conv")  # the convolutions of a block belong to the block


def test_concat_once_for_each_block() -> None:
    assert places(Branches(), "concat") == [":concat"]
    assert (
        "self.se(torch.cat([self.a(x), b], 1))"
        in type(se_inject.inject(Branches(), SIZE, "concat").model).se_rewrite.after
    )
    assert none(SkipConcat(), "concat")
    assert none(Basic(), "concat")


def test_concat_is_behind_the_convolution_that_fuses() -> None:
    result = se_inject.inject(OneShot(), SIZE, "concat")
    assert result.plan.insertions[0].site.channels == 8
    assert "self.se(self.fuse(" in type(result.model).se_rewrite.after


def test_sum_of_parallel_branches() -> None:
    net = RepVGG()
    assert len(places(net, "sum", net.shape)) == 1
    assert none(net, "standard", net.shape)
    assert none(Basic(), "sum")


def test_stage_is_where_the_resolution_drops() -> None:
    assert places(Stages(), "stage") == [":stage", ":stage_2"]
    assert none(Chain(), "stage")


def test_input_is_before_the_first_operation() -> None:
    result = se_inject.inject(Stages(), SIZE, "input")
    assert "self.one(self.stn(x))" in type(result.model).se_rewrite.after
    assert none(Basic(), "input")  # a block uses its input twice


def test_several_placements_compose_in_one_method() -> None:
    result = se_inject.inject(randomise(Basic()), SIZE, {"placement": ["pre", "standard", "identity", "post"]})
    names = [d.key for d in result.plan.insertions]
    assert len(set(names)) == 4
    assert all(check.passed for check in result.report.checks)
    assert type(se_inject.remove(result.model)) is Basic


def test_a_second_block_stands_behind_the_first() -> None:
    once = se_inject.inject(randomise(Basic()), SIZE, "standard").model
    twice = se_inject.inject(once, SIZE, {"placement": "standard", "again": True})
    assert [d.key for d in twice.plan.insertions] == ["se_1"]
    assert "self.se_1(self.se(" in type(twice.model).se_rewrite.after


# A network for each placement, and how many places it has there.
TWICE: dict[str, tuple[type[nn.Module], int]] = {
    "standard": (Basic, 1), "pre": (Basic, 1), "post": (Basic, 1), "identity": (Basic, 1), "inner": (MBConv, 1),
    "early": (Dark, 1), "conv": (Chain, 2), "concat": (Branches, 1), "sum": (RepVGG, 1), "stage": (Stages, 2),
    "input": (Stages, 1),
}  # fmt: skip


def test_every_placement_is_tried_twice() -> None:
    assert TWICE.keys() == PLACEMENTS.keys()


@pytest.mark.parametrize("placement", TWICE)
def test_a_second_run_at_every_placement(placement: str) -> None:
    """Found gated; with ``again`` the new block stands behind the old one, or before it where it takes one user's."""
    make, count = TWICE[placement]
    torch.manual_seed(0)
    net = randomise(make().eval())
    rules = {"placement": placement, **({"block": "stn"} if placement == "input" else {})}
    once = se_inject.inject(net, SIZE, rules)
    assert len(once.plan.insertions) == count
    with refused("gated", rf"select none of the {count} sites; .*already gated by"):
        se_inject.plan(once.model, SIZE, rules)
    twice = se_inject.inject(once.model, SIZE, {**rules, "again": True})
    assert len(twice.plan.insertions) == count and all(check.passed for check in twice.report.checks)
    x = torch.randn(2, *SIZE)
    assert torch.equal(twice.model(x), net(x))
    assert type(se_inject.remove(twice.model)) is make


def test_a_gate_before_the_fork_is_not_the_shortcuts() -> None:
    """`identity` asks what gates the shortcut of this block alone, and not what came before it."""
    net = Fn(lambda x, a, b: b(a(x)), se_inject.inject(Basic(), SIZE, "post").model, Basic())
    assert places(net, "identity") == ["layers.0:identity", "layers.1:identity"]
    assert places(net, "pre") == ["layers.0:pre", "layers.1:pre"]


class GatedFirst(nn.Module):
    def __init__(self, gated: bool) -> None:
        super().__init__()
        self.body, self.excite, self.gated = body(8, 8), conv(8, 8, 1), gated

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = torch.sigmoid(self.excite(x.mean((2, 3), keepdim=True)))
        return x + self.body(x * gate if self.gated else x)


def test_a_gate_written_out_at_the_start_of_the_branch() -> None:
    with refused("gated", "already gated by mul"):
        se_inject.plan(GatedFirst(True), SIZE, "pre")
    assert places(GatedFirst(False), "pre") == [":pre"]


def test_nested_blocks_are_left_to_the_inner_ones_by_auto() -> None:
    net = AdditiveUNet()
    plan = se_inject.plan(net, net.shape, "auto")
    assert any(d.reason.code == "nested" for d in plan.skips) or not net.nested


COUNTS = [
    ("torchvision:vgg16_bn", "conv", 13),
    ("torchvision:googlenet", "concat", 9),
    ("timm:inception_v3", "concat", 11),
    ("torchvision:squeezenet1_1", "concat", 8),
    ("timm:repvgg_a0", "sum", 22),
    ("timm:mobileone_s0", "sum", 43),
    ("timm:dla34", "pre", 12),
    ("torchvision:resnet50", "inner", 16),
    ("torchvision:resnet50", "early", 16),
    ("timm:efficientnet_b0", "early", 9),
    ("torchvision:resnet50", "stage", 4),
    ("torchvision:resnet50", "post", 16),
    ("torchvision:resnet50", "identity", 16),
    ("torchvision:resnet50", "conv", 1),
    ("timm:ese_vovnet19b_dw", "inner", 14),
]


def zoo(name: str) -> nn.Module:
    library, _, model = name.partition(":")
    with torch.device("meta"):
        if library == "timm":
            return timm.create_model(model)
        options = {"init_weights": False} if "google" in model else {}
        return torchvision.models.get_model(model, weights=None, **options)


@pytest.mark.parametrize(("name", "placement", "count"), COUNTS)
def test_counts_on_real_networks(name: str, placement: str, count: int) -> None:
    assert len(places(zoo(name), placement, (3, 224, 224) if "inception" not in name else (3, 299, 299))) == count


def test_se_3x3_weights_of_the_paper() -> None:
    plan = se_inject.plan(zoo("torchvision:resnet50"), (3, 224, 224), "se-resnet-3x3")
    assert sum(2 * d.kwargs["channels"] * d.kwargs["rd_channels"] for d in plan.insertions) == 157_184


@pytest.mark.parametrize(("ratio", "weights"), {2: 20_119_552, 4: 10_059_776, 8: 5_029_888, 16: 2_514_944}.items())
def test_weights_by_ratio(ratio: int, weights: int) -> None:
    plan = se_inject.plan(zoo("torchvision:resnet50"), (3, 64, 64), {"placement": "standard", "ratio": ratio})
    assert sum(2 * d.kwargs["channels"] * d.kwargs["rd_channels"] for d in plan.insertions) == weights


@pytest.mark.parametrize(("stage", "weights"), {1: 24_576, 2: 131_072, 3: 786_432, 4: 1_572_864}.items())
def test_weights_by_stage(stage: int, weights: int) -> None:
    plan = se_inject.plan(zoo("torchvision:resnet50"), (3, 64, 64), {"placement": "standard", "stages": [stage]})
    assert sum(2 * d.kwargs["channels"] * d.kwargs["rd_channels"] for d in plan.insertions) == weights


@pytest.mark.parametrize("placement", [p for p in PLACEMENTS if p not in ("concat", "sum")])
def test_real_network_at_every_placement(placement: str) -> None:
    model = randomise(torchvision.models.resnet50(width_per_group=16)).eval()
    block = {"block": "stn"} if placement == "input" else {}
    result = se_inject.inject(model, (3, 64, 64), {"placement": placement, **block})
    assert all(check.passed for check in result.report.checks)
    back = se_inject.remove(result.model)
    assert back.state_dict().keys() == model.state_dict().keys()
    assert type(back.layer1[0]) is type(model.layer1[0])
