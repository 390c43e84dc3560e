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

if TYPE_CHECKING:  # the file needs torch alone: modeling.py carries a copy of the class
    from se_inject.types import Site

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "silu": nn.SiLU, "gelu": nn.GELU, "hardswish": nn.Hardswish}
GATES: dict[str, type[nn.Module]] = {"sigmoid": nn.Sigmoid, "hardsigmoid": nn.Hardsigmoid}


class SqueezeExcite(nn.Module):
    """Gate each channel by what the whole map holds: ``(N, C, H, W)`` in and out.

    channels: C. rd_channels: width of the bottleneck. bias: of both layers. act: between them. gate: ``sigmoid`` or
    ``hardsigmoid``. gain: factor on the gate, 2 makes ``sigmoid(0)`` the identity. zero_init: zero the last layer.
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
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, rd_channels, kernel_size=1, bias=bias, device=device, dtype=dtype)
        self.act = ACTIVATIONS[act]()
        self.fc2 = nn.Conv2d(rd_channels, channels, kernel_size=1, bias=bias, device=device, dtype=dtype)
        self.gate = GATES[gate]()
        self.gain = gain
        if zero_init:
            nn.init.zeros_(self.fc2.weight)
            if self.fc2.bias is not None:
                nn.init.zeros_(self.fc2.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        s = x.mean((2, 3), keepdim=True)  # (N, C, 1, 1)
        s = self.gate(self.fc2(self.act(self.fc1(s))))
        if self.gain != 1.0:
            s = s * self.gain
        return x * s

    def extra_repr(self) -> str:
        return "" if self.gain == 1.0 else f"gain={self.gain:g}"


OPTIONS = ("rd_ratio", "rd_channels", "rd_divisor", "rd_min", "rd_base", "bias", "act", "gate")


def make_divisible(value: float, divisor: int = 8, minimum: int = 0, round_limit: float = 0.0) -> int:
    """``value`` rounded to a multiple of ``divisor``, at least ``minimum`` (the zoos' rule; timm's SE has limit 0)."""
    new = max(minimum or divisor, int(value + divisor / 2) // divisor * divisor)
    return new + divisor if new < round_limit * value else new


def resolve(site: Site, init: str, options: dict[str, Any]) -> dict[str, Any]:
    """Constructor arguments for a site, from rule options. Raises ``ValueError`` for a value out of range."""
    for name, table in (("act", ACTIVATIONS), ("gate", GATES)):
        if name in options and options[name] not in table:
            raise ValueError(f"{name}: {options[name]!r} is none of {', '.join(table)}")
    for name, kind, low in (("rd_channels", int, 1), ("rd_divisor", int, 1), ("rd_min", int, 1), ("bias", bool, 0)):
        value = options.get(name)
        if value is not None and (type(value) is not kind or value < low):
            raise ValueError(f"{name}: {value!r} is not {'true or false' if kind is bool else 'an integer above 0'}")
    ratio = options.get("rd_ratio", 1 / 16)
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 < ratio <= 8:
        raise ValueError(f"rd_ratio: {ratio!r} is not a number above 0 (1/16 is 0.0625)")
    base = options.get("rd_base", "site")
    if base not in ("site", "block"):
        raise ValueError(f"rd_base: {base!r} is none of site (its own channels), block (the block's input channels)")
    width = options.get("rd_channels")
    if width is None:
        source = site.block_channels if base == "block" else site.channels
        width = make_divisible(source * ratio, options.get("rd_divisor", 8), options.get("rd_min", 0))
    gate = options.get("gate", "sigmoid")
    kwargs: dict[str, Any] = {
        "channels": site.channels,
        "rd_channels": width,
        "bias": options.get("bias", True),
        "act": options.get("act", "relu"),
        "gate": gate,
    }
    if init in ("identity", "absorb"):
        # sigmoid(0) and hardsigmoid(0) are 1/2: doubled here, or by the batch norm before the site.
        kwargs |= {"gain": 2.0 if init == "identity" else 1.0, "zero_init": True}
    return kwargs
