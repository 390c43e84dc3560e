"""The placements, drawn from the recorded graphs of real blocks: ``pictures/PLACEMENT.svg`` for ``sites.md``."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import nn
from torchvision.models import resnet18
from torchvision.models.googlenet import Inception
from torchvision.models.mobilenetv2 import InvertedResidual
from torchvision.models.resnet import Bottleneck
from torchvision.models.vgg import make_layers

from se_inject.api import make_plan
from se_inject.report.drawing import drawings
from se_inject.report.html.graph import graph
from se_inject.types import Decision

Make = Callable[[], nn.Module]


class RepVgg(nn.Module):
    """A block of RepVGG that changes channels or stride, before its two branches are merged into one."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dense, self.dense_bn = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)
        self.point, self.point_bn = nn.Conv2d(channels, channels, 1), nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.dense_bn(self.dense(x)) + self.point_bn(self.point(x)))


def bottleneck() -> nn.Module:
    return Bottleneck(256, 64)


# Picture -> placement, block, channels, side of the map.
PLACES: dict[str, tuple[str, Make, int, int]] = {
    "standard": ("standard", bottleneck, 256, 14),
    "pre": ("pre", bottleneck, 256, 14),
    "post": ("post", bottleneck, 256, 14),
    "identity": ("identity", bottleneck, 256, 14),
    "inner": ("inner", bottleneck, 256, 14),
    "early": ("early", bottleneck, 256, 14),
    "auto": ("auto", lambda: InvertedResidual(32, 32, 1, 6), 32, 14),
    "conv": ("conv", lambda: make_layers([64, 64], batch_norm=True), 3, 32),
    "concat": ("concat", lambda: Inception(192, 64, 96, 128, 16, 32, 32), 192, 14),
    "sum": ("sum", lambda: RepVgg(64), 64, 14),
    "stage": ("stage", resnet18, 3, 64),
    "input": ("input", resnet18, 3, 64),
}

HEAD = """<svg xmlns="http://www.w3.org/2000/svg" """
STYLE = """<style>
svg { --paper: #fbfbf9; --ink: #1d2329; --soft: #5d6872; --line: #d5d8d4; --faint: #f1f2ef; --accent: #0f6e6a; }
@media (prefers-color-scheme: dark) {
svg { --paper: #14181b; --ink: #e3e7e8; --soft: #9aa6ad; --line: #3b444b; --faint: #20262a; --accent: #57bdb5; }
}
.paper { fill: var(--paper); }
text { font: 12px ui-sans-serif, system-ui, sans-serif; text-anchor: middle; fill: var(--ink); }
.wire { fill: none; stroke: var(--soft); stroke-width: 1.25; }
.box rect { fill: var(--faint); stroke: var(--line); }
.tip { fill: var(--soft); }
.new rect { fill: var(--accent); }
.new text { fill: var(--paper); font-weight: 600; }
</style><rect class="paper" width="100%" height="100%" rx="8"/>"""


def pictures() -> Iterator[tuple[str, str]]:
    """File name and SVG of each placement."""
    for name, (placement, make, channels, side) in PLACES.items():
        block = "stn" if placement == "input" else "se"
        planned = make_plan(make().eval(), (channels, side, side), {"placement": placement, "block": block})
        nodes = next(iter(drawings(planned.found, planned.plan.insertions).values()))
        svg = str(graph(nodes)).replace("<svg ", HEAD, 1).replace(">", f">{STYLE}", 1)
        yield f"{name}.svg", svg.replace("><", ">\n<") + "\n"


def decision(block: str, channels: int) -> Decision:
    """What the rules make of ``block`` at the end of a residual branch of that many channels."""
    model = Bottleneck(channels, channels // 4).eval()
    return make_plan(model, (channels, 14, 14), {"placement": "standard", "block": block}).plan.insertions[0]
