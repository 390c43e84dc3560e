"""Squeeze-and-Excitation as tutorials write it (Hu et al., arXiv 1709.01507, section 3).

    y = sigmoid(up(relu(down(mean over space of x)))) * x

The keys are ``down`` and ``up``, 1x1 layers with bias, and the inner width is a number of its own, not rounded to the
zoos' multiples. Tutorials squeeze with ``avg_pool2d(x, kernel_size=x.size(3))``, which needs a square map: the mean
over space is the same there, and right on every other map too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from se_inject.blocks import options as opt
from se_inject.blocks.block import Block, Gate
from se_inject.blocks.parts import CONVS, ChannelGating, zero

if TYPE_CHECKING:
    from se_inject.types import Site


class PlainSE(ChannelGating):
    """Gate each channel by what the whole map holds; the arguments are those of ``SqueezeExcite``."""

    def __init__(
        self,
        channels: int,
        *,
        rd_channels: int,
        gain: float = 1.0,
        zero_init: bool = False,
        layout: str = "NCHW",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(gain=gain, layout=layout)
        conv = CONVS[len(self.space)]
        self.down = conv(channels, rd_channels, kernel_size=1, bias=True, device=device, dtype=dtype)
        self.up = conv(rd_channels, channels, kernel_size=1, bias=True, device=device, dtype=dtype)
        if zero_init:
            zero(self.up)

    def excite(self, s: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.up(torch.relu(self.down(s))))


def resolve(site: Site, init: str, options: dict[str, Any]) -> dict[str, Any]:
    """Constructor arguments for a site, from rule options. Raises ``ValueError`` for a value out of range."""
    ratio = opt.number(options, "rd_ratio", 1 / 16, low=0, high=8, hint=" (1/16 is 0.0625)")
    return {
        "channels": site.channels,
        "rd_channels": opt.whole(options, "rd_channels", max(1, int(opt.base(site, options) * ratio))),
        **opt.start(init, "sigmoid"),
        **opt.layout(site),
    }


BLOCK = Block(
    PlainSE,
    resolve,
    {name: opt.WIDTH[name] for name in ("rd_channels", "rd_ratio", "rd_base")},
    "Hu et al., Squeeze-and-Excitation Networks, arXiv 1709.01507",
    gate=lambda block: Gate(block.up, lambda t: torch.sigmoid(t) * block.gain, block.gain),
)
