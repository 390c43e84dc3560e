"""Global Context, GC (Cao et al., GCNet, arXiv 1904.11492, section 3.3).

    a = softmax over space of (w . x)     ``conv_attn``
    z = sum over space of a * x           context: a weighted squeeze
    t = W2 act(LN(W1 z))                  ``mlp_add``, ``mlp_scale``
    y = x + t                             fusion ``add``, eq. 5 of the paper
    y = gate(t) * x                       fusion ``scale``, section 3.3's alternative, and timm's default

Keys and arithmetic are those of timm's ``GlobalContext``. The bias of ``conv_attn`` moves no output (softmax does not
see it), so its gradient is zero from start to end; the key is there because timm's weights have it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from se_inject.blocks import options as opt
from se_inject.blocks.block import Block, Timm
from se_inject.blocks.parts import ACTIVATIONS, CONVS, GATES, zero

if TYPE_CHECKING:
    from se_inject.types import Site

FUSIONS = ("scale", "add", "both")
NARROWEST = 3  # a layer norm over one channel gives 0 whatever comes in, over two only signs: fc1 would not learn


class ContextMlp(nn.Module):
    """Two 1x1 layers with a layer norm over the channels between them. ``(N, C, 1, ...)`` in and out."""

    def __init__(self, dims: int, channels: int, rd_channels: int, act: str, **kw: Any) -> None:
        super().__init__()
        self.fc1 = CONVS[dims](channels, rd_channels, 1, **kw)
        self.norm = nn.LayerNorm(rd_channels, eps=1e-6, **kw)
        self.act = ACTIVATIONS[act]()
        self.fc2 = CONVS[dims](rd_channels, channels, 1, **kw)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.fc1(x).movedim(1, -1)).movedim(-1, 1)
        return self.fc2(self.act(x))


class GlobalContext(nn.Module):
    """Scale each channel by, or add to it, what the positions that matter hold.

    channels: C. rd_channels: width of the bottleneck, 3 or more. fusion: ``scale``, ``add``, or ``both``. attn: weigh
    the positions, else take their mean. act, gate, gain, layout: as in ``SqueezeExcite``. zero_init: zero the last
    layers.
    """

    def __init__(
        self,
        channels: int,
        *,
        rd_channels: int,
        fusion: str = "scale",
        attn: bool = True,
        act: str = "relu",
        gate: str = "sigmoid",
        gain: float = 1.0,
        zero_init: bool = False,
        layout: str = "NCHW",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        kw, dims = {"device": device, "dtype": dtype}, len(layout) - 2
        self.dims = dims
        self.last = layout.endswith("C")
        self.conv_attn = CONVS[dims](channels, 1, kernel_size=1, **kw) if attn else None
        self.mlp_add = None if fusion == "scale" else ContextMlp(dims, channels, rd_channels, act, **kw)
        self.mlp_scale = None if fusion == "add" else ContextMlp(dims, channels, rd_channels, act, **kw)
        self.gate = GATES[gate]()
        self.gain = gain
        if self.conv_attn is not None:
            nn.init.kaiming_normal_(self.conv_attn.weight, mode="fan_in", nonlinearity="relu")
        if self.mlp_add is not None:  # the authors' own start, and timm's
            nn.init.zeros_(self.mlp_add.fc2.weight)
        for mlp in (self.mlp_add, self.mlp_scale):
            if zero_init and mlp is not None:
                zero(mlp.fc2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.last:  # views: the map lies in memory as a channels_last one
            return self.fuse(x.movedim(-1, 1)).movedim(1, -1)
        return self.fuse(x)

    def fuse(self, x: torch.Tensor) -> torch.Tensor:
        z = self.context(x)
        if self.mlp_scale is not None:
            s = self.gate(self.mlp_scale(z))
            if self.gain != 1.0:
                s = s * self.gain
            x = x * s
        if self.mlp_add is not None:
            x = x + self.mlp_add(z)
        return x

    def context(self, x: torch.Tensor) -> torch.Tensor:
        """``(N, C, 1, ...)``: the positions' mean, weighted where there is attention."""
        z = x.flatten(2)  # (N, C, L)
        if self.conv_attn is not None:
            a = self.conv_attn(x).flatten(2).softmax(dim=-1).unsqueeze(3)  # (N, 1, L, 1)
            z = (z.unsqueeze(1) @ a).squeeze(1)  # (N, C, 1)
        else:
            z = z.mean(2, keepdim=True)
        for _ in range(self.dims - 1):
            z = z.unsqueeze(-1)
        return z

    def extra_repr(self) -> str:
        return "" if self.gain == 1.0 else f"gain={self.gain:g}"


def resolve(site: Site, init: str, options: dict[str, Any]) -> dict[str, Any]:
    """Constructor arguments for a site, from rule options. Raises ``ValueError`` for a value out of range."""
    gate, fusion = opt.gating(options), opt.choice(options, "fusion", FUSIONS, "scale")
    if init == "absorb" and fusion == "add":
        raise ValueError("fusion: add has no gate for absorb to halve; take init identity, or fusion scale")
    reduced = opt.width(site, options, ratio=1 / 8, divisor=1, minimum=NARROWEST)
    if reduced < NARROWEST:
        raise ValueError(f"rd_channels: {reduced} is too narrow for the layer norm, take {NARROWEST} or more")
    return {
        "channels": site.channels,
        "rd_channels": reduced,
        "fusion": fusion,
        "attn": opt.flag(options, "attn", True),
        "act": opt.choice(options, "act", ACTIVATIONS, "relu"),
        "gate": gate,
        **opt.start(init, gate),
        **opt.layout(site),
    }


BLOCK = Block(
    GlobalContext,
    resolve,
    {
        **opt.WIDTH,
        "fusion": "`scale`, `add` or `both`",
        "attn": "`false`: a plain mean instead of the weighted squeeze",
        **opt.ACT,
        **opt.GATE,
    },
    "Cao et al., GCNet, arXiv 1904.11492",
    timm=Timm({"fusion": "scale", "attn": True, "act": "relu", "gate": "sigmoid"}),
)
