"""Effective Squeeze-and-Excitation, eSE (Lee and Park, CenterMask and VoVNetV2, arXiv 1911.06667, section 3.3).

    z = mean over space of x
    y = gate(W z) * x                     eq. 4; W is ``fc``, C to C: no channels are lost on the way

Keys and arithmetic are those of timm's ``EffectiveSEModule``. ``hardsigmoid(0)`` is 1/2 as ``sigmoid(0)`` is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from se_inject.blocks import options as opt
from se_inject.blocks.block import Block, Timm
from se_inject.blocks.parts import CONVS, GATES, autocast_runs, is_scripting, space, squeeze

if TYPE_CHECKING:
    from se_inject.types import Site


class EffectiveSE(nn.Module):
    """Gate each channel by one full layer on the squeezed map; the arguments are those of ``SqueezeExcite``."""

    def __init__(
        self,
        channels: int,
        *,
        gate: str = "hardsigmoid",
        gain: float = 1.0,
        zero_init: bool = False,
        layout: str = "NCHW",
        squeeze: str = "mean",
        squeeze_fp32: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.space = space(layout)
        self.last = layout.endswith("C")
        self.fc = CONVS[len(self.space)](channels, channels, kernel_size=1, device=device, dtype=dtype)
        self.gate = GATES[gate]()
        self.gain = gain
        self.squeeze = squeeze
        self.squeeze_fp32 = squeeze_fp32
        if zero_init:
            nn.init.zeros_(self.fc.weight)
            nn.init.zeros_(self.fc.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not is_scripting():  # noqa: SIM102  (TorchScript leaves out what stands under it alone)
            if self.squeeze_fp32 and autocast_runs(x):
                with torch.autocast(x.device.type, enabled=False):
                    return x * self.scale(x)
        return x * self.scale(x)

    def scale(self, x: torch.Tensor) -> torch.Tensor:
        """The gate of each channel, broadcast over space."""
        s = squeeze(x, self.space, self.squeeze, self.squeeze_fp32)
        if self.squeeze_fp32:
            s = s.to(self.fc.weight.dtype)
        if self.last:
            s = s.movedim(-1, 1)  # (N, C, 1, 1)
        s = self.gate(self.fc(s))
        if self.gain != 1.0:
            s = s * self.gain
        return (s.movedim(1, -1) if self.last else s).to(x.dtype)

    def extra_repr(self) -> str:
        return "" if self.gain == 1.0 else f"gain={self.gain:g}"


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
