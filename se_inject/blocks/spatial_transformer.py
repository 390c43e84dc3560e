"""Spatial Transformer, STN (Jaderberg et al., arXiv 1506.02025, section 3).

    theta = localisation(x)               section 3.1: an affine map for each image
    G = theta [t; 1]                      eq. 1: where each output position t looks, in coordinates from -1 to 1
    w = bilinear samples of x at G        eq. 5
    y = x + a (w - x)                     a = 1 in the paper

Even an identity ``theta`` resamples, and is off by 1e-4. So the start ``identity`` blends: ``a`` is a parameter, zero
at first, which makes y equal x to the bit. The localisation net must then not start at the identity map, or ``w - x``
and with it the gradient of ``a`` would be rounding noise, and nothing would ever move: it starts at a random warp of
about a tenth of the image. ``a`` learns in the first step, the net from the second.
Positions outside the image give zeros that do not depend on ``theta``. Where weights that are far off, or an input of
pixels up to 255, throw every position out there, the whole localisation net has a gradient of zero, and ``a`` alone
learns. Normalise the input, and keep the net's learning rate low.
The start ``paper`` has a = 1, and the identity map by a zeroed last layer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from se_inject.blocks import options as opt
from se_inject.blocks.block import Block
from se_inject.blocks.parts import CONVS

if TYPE_CHECKING:
    from se_inject.types import Site

LAST = 4  # positions a side of the localisation net's last map
POOLS: dict[int, Any] = {2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}


class Localisation(nn.Module):
    """``(N, C, H, W)`` to ``(N, 2, 3)``: pooled to a size of its own, so that any size and shape will do, halved
    ``depth`` times by convolutions, then two layers."""

    def __init__(self, dims: int, channels: int, depth: int, width: int, hidden: int, warp: float, **kw: Any) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i in range(depth):
            out = min(width << i, 8 * width)
            layers += [CONVS[dims](channels, out, 3, stride=2, padding=1, **kw), nn.ReLU()]
            channels = out
        self.convs = nn.Sequential(*layers)
        self.dims = dims
        self.pool = POOLS[dims](LAST << depth)
        self.fc1 = nn.Linear(channels * LAST**dims, hidden, **kw)
        self.fc2 = nn.Linear(hidden, dims * (dims + 1), **kw)
        identity = torch.eye(dims, dims + 1, device=kw["device"], dtype=self.fc2.weight.dtype).flatten()
        with torch.no_grad():
            self.fc2.weight.mul_(warp)
            self.fc2.bias.uniform_(-warp, warp).add_(identity)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.convs(self.pool(x)).flatten(1)
        return self.fc2(F.relu(self.fc1(x))).unflatten(1, (self.dims, self.dims + 1))


class SpatialTransformer(nn.Module):
    """Warp each image as a small net on it says: ``(N, C, H, W)`` in and out, or as ``layout`` says.

    channels: C. depth: halvings in the localisation net, as many as the input's size bears. width: channels of its
    first convolution. hidden: of its layer before the map. blend: learn ``a`` from zero, else ``a`` is 1.
    """

    def __init__(
        self,
        channels: int,
        *,
        depth: int,
        width: int = 8,
        hidden: int = 32,
        blend: bool = False,
        layout: str = "NCHW",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        kw, self.dims = {"device": device, "dtype": dtype}, len(layout) - 2
        self.localisation = Localisation(self.dims, channels, depth, width, hidden, 0.1 if blend else 0.0, **kw)
        self.blend = nn.Parameter(torch.zeros(1, **kw)) if blend else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.float()  # positions need more bits than bf16 has
        grid = self.grid(self.localisation(x).float(), wide)
        warped = F.grid_sample(wide, grid, mode="bilinear", padding_mode="zeros", align_corners=False).to(x.dtype)
        if self.blend is None:
            return torch.lerp(x, warped, 1.0)  # warped, in the memory format of x
        return torch.lerp(x, warped, self.blend.to(x.dtype))

    def grid(self, theta: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Eq. 1, element by element: as a matrix product, autocast would round the positions to bf16."""
        positions = []
        for i in range(self.dims):  # from the last axis of x, which comes first in theta
            size = x.shape[x.dim() - 1 - i]
            t = (2.0 * torch.arange(size, device=x.device, dtype=torch.float32) + 1.0) / size - 1.0
            for _ in range(i):
                t = t.unsqueeze(-1)
            positions.append(t)
        for _ in range(self.dims):
            theta = theta.unsqueeze(-1)  # (N, 2, 3, 1, 1)
        rows = []
        for j in range(self.dims):
            row = theta[:, j, self.dims]
            for i in range(self.dims):
                row = row + theta[:, j, i] * positions[i]
            rows.append(row)
        return torch.stack(rows, dim=-1)  # (N, H, W, 2)


def resolve(site: Site, init: str, options: dict[str, Any]) -> dict[str, Any]:
    """Constructor arguments for a site, from rule options. Raises ``ValueError`` for a value out of range."""
    side = min(site.shape[2:])
    return {
        "channels": site.channels,
        "depth": opt.whole(options, "depth", max(1, (side // LAST).bit_length() - 1), high=10),
        "width": opt.whole(options, "width", 8),
        "hidden": opt.whole(options, "hidden", 32),
        "blend": init == "identity",
        **opt.layout(site),
    }


BLOCK = Block(
    SpatialTransformer,
    resolve,
    {
        "depth": "convolutions of the localisation net; by default it follows from the map's size",
        "width": "their channels",
        "hidden": "width of the layer behind them",
    },
    "Jaderberg et al., Spatial Transformer Networks, arXiv 1506.02025",
    layouts=("NCHW", "NCDHW"),  # an affine map of positions needs two axes of space
    inits=("identity", "paper"),  # it moves values, and has no gate
)
