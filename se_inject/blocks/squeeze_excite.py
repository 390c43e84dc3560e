"""Squeeze-and-Excitation (Hu et al., arXiv 1709.01507, section 3).

    z = mean over space of x              squeeze,    eq. 2
    s = gate(W2 act(W1 z))                excitation, eq. 3; W1 is ``fc1``, W2 is ``fc2``
    y = s * x                             scale,      eq. 4

Keys and arithmetic are those of timm's ``SEModule``, so its weights load as they are. The start ``identity`` is
``2 * sigmoid`` with a zeroed last layer: the gate is exactly 1 in every floating-point format.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from se_inject.blocks import options as opt
from se_inject.blocks.block import Block, Timm
from se_inject.blocks.parts import ACTIVATIONS, CONVS, GATES, NORMS, ChannelGating, zero

if TYPE_CHECKING:
    from se_inject.types import Site

make_divisible = opt.make_divisible


class SqueezeExcite(ChannelGating):
    """Gate each channel by what the whole map holds: ``(N, C, H, W)`` in and out, or as ``layout`` says.

    channels: C. rd_channels: width of the bottleneck. bias: of both layers. act: between them. gate: ``sigmoid``,
    ``hardsigmoid`` or ``tanh1`` (1 + tanh). zero_init: zero the last layer. norm: a batch norm in the bottleneck, as
    RexNet has it. The others are those of ``ChannelGating``.
    """

    def __init__(
        self,
        channels: int,
        *,
        rd_channels: int,
        bias: bool = True,
        act: str = "relu",
        gate: str = "sigmoid",
        zero_init: bool = False,
        norm: bool = False,
        device: Any = None,
        dtype: Any = None,
        **gating: Any,
    ) -> None:
        super().__init__(**gating)
        conv = CONVS[len(self.space)]
        self.fc1 = conv(channels, rd_channels, kernel_size=1, bias=bias, device=device, dtype=dtype)
        self.bn = NORMS[len(self.space)](rd_channels, device=device, dtype=dtype) if norm else None
        self.act = ACTIVATIONS[act]()
        self.fc2 = conv(rd_channels, channels, kernel_size=1, bias=bias, device=device, dtype=dtype)
        self.gate = GATES[gate]()
        if zero_init:
            zero(self.fc2)

    def excite(self, s: torch.Tensor) -> torch.Tensor:
        if self.squeeze_fp32:
            s = s.to(self.fc1.weight.dtype)
        s = self.fc1(s)
        if self.bn is not None:
            s = self.bn(s)
        return self.gate(self.fc2(self.act(s)))


def resolve(site: Site, init: str, options: dict[str, Any]) -> dict[str, Any]:
    """Constructor arguments for a site, from rule options. Raises ``ValueError`` for a value out of range."""
    gate = opt.gating(options)
    return {
        "channels": site.channels,
        "rd_channels": opt.width(site, options),
        "bias": opt.flag(options, "bias", True),
        "act": opt.choice(options, "act", ACTIVATIONS, "relu"),
        "gate": gate,
        **opt.start(init, gate),
        **opt.layout(site),
        **opt.squeezing(options),
        **({"norm": True} if opt.flag(options, "norm", False) else {}),
    }


BLOCK = Block(
    SqueezeExcite,
    resolve,
    {
        **opt.WIDTH,
        "bias": "whether both layers have one",
        **opt.ACT,
        **opt.GATE,
        **opt.SQUEEZE,
        "norm": "a batch norm between the layers (RexNet)",
    },
    "Hu et al., Squeeze-and-Excitation Networks, arXiv 1709.01507",
    timm=Timm({"bias": True, "act": "relu", "gate": "sigmoid"}, "fc1.weight"),
)
