"""Effective Squeeze-and-Excitation, eSE (Lee and Park, CenterMask and VoVNetV2, arXiv 1911.06667, section 3.3).

    z = mean over space of x
    y = gate(W z) * x                     eq. 4; W is ``fc``, C to C: no channels are lost on the way

Keys and arithmetic are those of timm's ``EffectiveSEModule``. ``hardsigmoid(0)`` is 1/2 as ``sigmoid(0)`` is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from se_inject.blocks import options as opt
from se_inject.blocks.block import Block, Timm
from se_inject.blocks.parts import CONVS, GATES, ChannelGating, zero

if TYPE_CHECKING:
    from se_inject.types import Site


class EffectiveSE(ChannelGating):
    """Gate each channel by one full layer on the squeezed map; the arguments are those of ``SqueezeExcite``."""

    def __init__(
        self,
        channels: int,
        *,
        gate: str = "hardsigmoid",
        zero_init: bool = False,
        device: Any = None,
        dtype: Any = None,
        **gating: Any,
    ) -> None:
        super().__init__(**gating)
        self.fc = CONVS[len(self.space)](channels, channels, kernel_size=1, device=device, dtype=dtype)
        self.gate = GATES[gate]()
        if zero_init:
            zero(self.fc)

    def excite(self, s: torch.Tensor) -> torch.Tensor:
        if self.squeeze_fp32:
            s = s.to(self.fc.weight.dtype)
        return self.gate(self.fc(s))


def resolve(site: Site, init: str, options: dict[str, Any]) -> dict[str, Any]:
    """Constructor arguments for a site, from rule options. Raises ``ValueError`` for a value out of range."""
    gate = opt.gating(options, "hardsigmoid")
    return {
        "channels": site.channels,
        "gate": gate,
        **opt.start(init, gate),
        **opt.layout(site),
        **opt.squeezing(options),
    }


BLOCK = Block(
    EffectiveSE,
    resolve,
    {**opt.GATE, **opt.SQUEEZE},
    "Lee and Park, CenterMask, arXiv 1911.06667",
    timm=Timm({"gate": "hardsigmoid"}, "fc.weight"),
)
