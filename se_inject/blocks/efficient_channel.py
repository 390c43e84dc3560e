"""Efficient Channel Attention, ECA (Wang et al., ECA-Net, arXiv 1910.03151, section 3.2).

    z = mean over space of x
    y = gate(conv1d_k(z)) * x             eq. 6; along the channels, k weights in all
    k = |log2(C) / gamma + beta / gamma|  eq. 12, to the nearest odd, at least 3: 64 -> 3, 128 ... 1024 -> 5, 2048 -> 7

Keys, arithmetic and the rule for k are those of timm's ``EcaModule``.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from se_inject.blocks import options as opt
from se_inject.blocks.block import Block, Timm
from se_inject.blocks.parts import GATES, ChannelGating

if TYPE_CHECKING:
    from se_inject.types import Site


class EfficientChannelAttention(ChannelGating):
    """Gate each channel by its neighbours among the squeezed channels.

    channels: C, which sets nothing here. kernel_size: k, odd. The others are those of ``SqueezeExcite``.
    """

    def __init__(
        self,
        channels: int,
        *,
        kernel_size: int,
        gate: str = "sigmoid",
        zero_init: bool = False,
        device: Any = None,
        dtype: Any = None,
        **gating: Any,
    ) -> None:
        super().__init__(**gating)
        self.conv = nn.Conv1d(1, 1, kernel_size, padding=kernel_size // 2, bias=False, device=device, dtype=dtype)
        self.gate = GATES[gate]()
        if zero_init:
            nn.init.zeros_(self.conv.weight)

    def excite(self, s: torch.Tensor) -> torch.Tensor:
        if self.squeeze_fp32:
            s = s.to(self.conv.weight.dtype)
        return self.gate(self.conv(s.flatten(1).unsqueeze(1))).reshape(s.shape)  # the convolution sees (N, 1, C)


def adaptive(channels: int, gamma: float = 2, beta: float = 1) -> int:
    """Eq. 12, with timm's rounding."""
    t = int(abs(math.log2(channels) + beta) / gamma)
    return max(t if t % 2 else t + 1, 3)


def resolve(site: Site, init: str, options: dict[str, Any]) -> dict[str, Any]:
    """Constructor arguments for a site, from rule options. Raises ``ValueError`` for a value out of range."""
    gate = opt.gating(options)
    gamma = opt.number(options, "gamma", 2, low=0, high=64)
    beta = opt.number(options, "beta", 1, low=-64, high=64)
    return {
        "channels": site.channels,
        "kernel_size": opt.whole(options, "kernel_size", adaptive(site.channels, gamma, beta), odd=True),
        "gate": gate,
        **opt.start(init, gate),
        **opt.layout(site),
        **opt.squeezing(options),
    }


BLOCK = Block(
    EfficientChannelAttention,
    resolve,
    {
        "kernel_size": "odd; by default it follows from the channels, eq. 12",
        "gamma": "of eq. 12",
        "beta": "of eq. 12",
        **opt.GATE,
        **opt.SQUEEZE,
    },
    "Wang et al., ECA-Net, arXiv 1910.03151",
    timm=Timm({"gate": "sigmoid"}, "conv.weight"),
)
