"""Convolutional Block Attention Module, CBAM (Woo et al., arXiv 1807.06521, section 3).

    c = gate(MLP(mean over space of x) + MLP(max over space of x))      eq. 2; ``channel``
    u = c * x
    p = gate(BN(conv_k([mean over channels of u; max over channels of u])))   eq. 3; ``spatial``
    y = p * u                                                           eq. 1

Keys and arithmetic are those of timm's ``CbamModule``, which has the authors' batch norm in the spatial gate. At
zero the two gates together are 1/4, so there is no start ``absorb``. ``identity`` zeroes the MLP's last layer and the
batch norm's weight and bias, as residual branches are started from zero: the convolution learns from the second step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from se_inject.blocks import options as opt
from se_inject.blocks.block import Block, Timm, own_gate
from se_inject.blocks.parts import ACTIVATIONS, CONVS, GATES, MAPS, NORMS, zero

if TYPE_CHECKING:
    from se_inject.types import Site


class ChannelGate(nn.Module):
    """Eq. 2. ``(N, C, space)`` in and out."""

    def __init__(
        self, dims: int, channels: int, rd_channels: int, bias: bool, act: str, gate: str, gain: float, **kw: Any
    ) -> None:
        super().__init__()
        self.space = list(range(2, 2 + dims))
        self.fc1 = CONVS[dims](channels, rd_channels, 1, bias=bias, **kw)
        self.act = ACTIVATIONS[act]()
        self.fc2 = CONVS[dims](rd_channels, channels, 1, bias=bias, **kw)
        self.gate = GATES[gate]()
        self.gain = gain

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = self.fc2(self.act(self.fc1(x.mean(self.space, keepdim=True))))
        peak = self.fc2(self.act(self.fc1(x.amax(self.space, keepdim=True))))
        s = self.gate(mean + peak)
        if self.gain != 1.0:
            s = s * self.gain
        return x * s


class ConvNorm(nn.Module):
    """Convolution and batch norm."""

    def __init__(self, dims: int, kernel_size: int, **kw: Any) -> None:
        super().__init__()
        self.conv = CONVS[dims](2, 1, kernel_size, padding=kernel_size // 2, bias=False, **kw)
        self.bn = NORMS[dims](1, **kw)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn(self.conv(x))


class SpatialGate(nn.Module):
    """Eq. 3. ``(N, C, space)`` in and out."""

    def __init__(self, dims: int, kernel_size: int, gate: str, gain: float, **kw: Any) -> None:
        super().__init__()
        self.conv = ConvNorm(dims, kernel_size, **kw)
        self.gate = GATES[gate]()
        self.gain = gain

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        s = torch.cat([x.mean(dim=1, keepdim=True), x.amax(dim=1, keepdim=True)], dim=1)
        s = self.gate(self.conv(s))
        if self.gain != 1.0:
            s = s * self.gain
        return x * s


class Cbam(nn.Module):
    """Gate each channel, then each position.

    channels: C. rd_channels: width of the MLP. spatial_kernel_size: k, odd. mlp_bias: of its two layers. act, gate,
    gain, layout: as in ``SqueezeExcite``; gate and gain hold for both gates. zero_init: zero the last layer of both.
    """

    def __init__(
        self,
        channels: int,
        *,
        rd_channels: int,
        spatial_kernel_size: int = 7,
        act: str = "relu",
        gate: str = "sigmoid",
        mlp_bias: bool = False,
        gain: float = 1.0,
        zero_init: bool = False,
        layout: str = "NCHW",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        kw, dims = {"device": device, "dtype": dtype}, len(layout) - 2
        self.last = layout.endswith("C")
        self.channel = ChannelGate(dims, channels, rd_channels, mlp_bias, act, gate, gain, **kw)
        self.spatial = SpatialGate(dims, spatial_kernel_size, gate, gain, **kw)
        if zero_init:
            for layer in (self.channel.fc2, self.spatial.conv.bn):
                zero(layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.last:  # views: the map lies in memory as a channels_last one
            return self.spatial(self.channel(x.movedim(-1, 1))).movedim(1, -1)
        return self.spatial(self.channel(x))


def resolve(site: Site, init: str, options: dict[str, Any]) -> dict[str, Any]:
    """Constructor arguments for a site, from rule options. Raises ``ValueError`` for a value out of range."""
    gate = opt.gating(options)
    return {
        "channels": site.channels,
        "rd_channels": opt.width(site, options, divisor=1),
        "spatial_kernel_size": opt.whole(options, "spatial_kernel_size", 7, odd=True),
        "act": opt.choice(options, "act", ACTIVATIONS, "relu"),
        "gate": gate,
        "mlp_bias": opt.flag(options, "mlp_bias", False),
        **opt.start(init, gate),
        **opt.layout(site),
    }


BLOCK = Block(
    Cbam,
    resolve,
    {
        **opt.WIDTH,
        "spatial_kernel_size": "of the spatial gate, odd",
        "mlp_bias": "whether both layers of the channel gate have one",
        **opt.ACT,
        **opt.GATE,
    },
    "Woo et al., CBAM: Convolutional Block Attention Module, arXiv 1807.06521",
    layouts=MAPS,  # its convolution over space would take tokens in a row for neighbours
    inits=("identity", "paper"),  # its two gates are 1/4 at zero
    gate=lambda block: own_gate(block.channel),
    timm=Timm({"spatial_kernel_size": 7, "act": "relu", "gate": "sigmoid", "mlp_bias": False}),
)
