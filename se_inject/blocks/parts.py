"""What the blocks share inside their forwards: layouts, squeeze, activations, gates. Needs torch alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

MAPS = ("NCL", "NCHW", "NCDHW", "NHWC", "NDHWC")
LAYOUTS = (*MAPS, "NLC")  # tokens: their mean is the squeeze, class token and all
CONVS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}  # by the number of axes of space
NORMS: dict[int, Any] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
is_scripting = torch.jit.is_scripting  # type: ignore[attr-defined]


class TanhPlusOne(nn.Module):
    """``1 + tanh(x)``: between 0 and 2, and exactly 1 at zero."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 1.0 + torch.tanh(x)


ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "silu": nn.SiLU, "gelu": nn.GELU, "hardswish": nn.Hardswish}
GATES: dict[str, type[nn.Module]] = {"sigmoid": nn.Sigmoid, "hardsigmoid": nn.Hardsigmoid, "tanh1": TanhPlusOne}


def space(layout: str) -> list[int]:
    """The axes of space: 2 and 3 of ``NCHW``, 1 and 2 of ``NHWC``."""
    return [i for i, letter in enumerate(layout) if letter not in "NC"]


def squeeze(x: torch.Tensor, axes: list[int], how: str, fp32: bool) -> torch.Tensor:
    """``mean``, ``max``, or half of each (``mean+max``, as timm's ``add_maxpool``) over space; its axes stay as 1."""
    if how == "max":
        s = x.amax(axes, keepdim=True)
        return s.float() if fp32 else s
    s = x.mean(axes, keepdim=True, dtype=torch.float32 if fp32 else None)
    return s if how == "mean" else 0.5 * s + 0.5 * x.amax(axes, keepdim=True)


def zero(layer: Any) -> None:
    """Zero a layer, its bias too where it has one."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def autocast_runs(x: torch.Tensor) -> bool:
    """Whether autocast is on for the device of ``x``; the meta device has none."""
    kind = x.device.type
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


class ChannelGating(nn.Module):
    """What gates each channel by an ``excite`` of its own on the squeezed map: ``(N, C, 1, 1)`` in and out.

    gain: factor on the gate, 2 makes ``sigmoid(0)`` the identity. layout: of the map. squeeze: ``mean``, ``max`` or
    ``mean+max``. squeeze_fp32: squeeze and excite in fp32, also under autocast.
    """

    def __init__(
        self, *, gain: float = 1.0, layout: str = "NCHW", squeeze: str = "mean", squeeze_fp32: bool = False
    ) -> None:
        super().__init__()
        self.space = space(layout)
        self.last = layout.endswith("C")
        self.gain = gain
        self.squeeze = squeeze
        self.squeeze_fp32 = squeeze_fp32

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not is_scripting():  # noqa: SIM102  (TorchScript leaves out what stands under it alone)
            if self.squeeze_fp32 and autocast_runs(x):
                with torch.autocast(x.device.type, enabled=False):
                    return x * self.scale(x)
        return x * self.scale(x)

    def scale(self, x: torch.Tensor) -> torch.Tensor:
        """The gate of each channel, broadcast over space."""
        s = squeeze(x, self.space, self.squeeze, self.squeeze_fp32)
        if self.last:
            s = s.movedim(-1, 1)  # (N, C, 1, 1)
        s = self.excite(s)
        if self.gain != 1.0:
            s = s * self.gain
        return (s.movedim(1, -1) if self.last else s).to(x.dtype)

    def excite(self, s: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def extra_repr(self) -> str:
        return "" if self.gain == 1.0 else f"gain={self.gain:g}"
