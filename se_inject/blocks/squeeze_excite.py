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
from torch import nn

from se_inject.blocks import options as opt
from se_inject.blocks.block import Block, Timm
from se_inject.blocks.parts import ACTIVATIONS, CONVS, GATES, NORMS, autocast_runs, is_scripting, space, squeeze

if TYPE_CHECKING:
    from se_inject.types import Site

make_divisible = opt.make_divisible


class SqueezeExcite(nn.Module):
    """Gate each channel by what the whole map holds: ``(N, C, H, W)`` in and out, or as ``layout`` says.

    channels: C. rd_channels: width of the bottleneck. bias: of both layers. act: between them. gate: ``sigmoid``,
    ``hardsigmoid`` or ``tanh1`` (1 + tanh). gain: factor on the gate, 2 makes ``sigmoid(0)`` the identity. zero_init:
    zero the last layer. squeeze: ``mean``, ``max`` or ``mean+max``. squeeze_fp32: squeeze and excite in fp32, also
    under autocast. norm: a batch norm in the bottleneck, as RexNet has it.
    """

    def __init__(
        self,
        channels: int,
        *,
        rd_channels: int,
        bias: bool = True,
        act: str = "relu",
        gate: str = "sigmoid",
        gain: float = 1.0,
        zero_init: bool = False,
        layout: str = "NCHW",
        squeeze: str = "mean",
        squeeze_fp32: bool = False,
        norm: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.space = space(layout)
        self.last = layout.endswith("C")
        conv = CONVS[len(self.space)]
        self.fc1 = conv(channels, rd_channels, kernel_size=1, bias=bias, device=device, dtype=dtype)
        self.bn = NORMS[len(self.space)](rd_channels, device=device, dtype=dtype) if norm else None
        self.act = ACTIVATIONS[act]()
        self.fc2 = conv(rd_channels, channels, kernel_size=1, bias=bias, device=device, dtype=dtype)
        self.gate = GATES[gate]()
        self.gain = gain
        self.squeeze = squeeze
        self.squeeze_fp32 = squeeze_fp32
        if zero_init:
            nn.init.zeros_(self.fc2.weight)
            if self.fc2.bias is not None:
                nn.init.zeros_(self.fc2.bias)

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
            s = s.to(self.fc1.weight.dtype)
        if self.last:
            s = s.movedim(-1, 1)  # (N, C, 1, 1)
        s = self.fc1(s)
        if self.bn is not None:
            s = self.bn(s)
        s = self.gate(self.fc2(self.act(s)))
        if self.gain != 1.0:
            s = s * self.gain
        return (s.movedim(1, -1) if self.last else s).to(x.dtype)

    def extra_repr(self) -> str:
        return "" if self.gain == 1.0 else f"gain={self.gain:g}"


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
