"""From the options of a rule to a block's arguments. A value out of range is a ``ValueError`` that says so."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from se_inject.blocks.parts import GATES
from se_inject.types import Site

# What options mean, for those that several blocks have
WIDTH = {
    "rd_ratio": "reduced channels divided by channels; `ratio` in rules is its inverse",
    "rd_channels": "reduced channels, a whole number, instead of a ratio",
    "rd_divisor": "reduced channels are rounded to a multiple of it",
    "rd_min": "fewest reduced channels",
    "rd_base": "of which channels the ratio is taken: `site` (its own), `block` (those that enter the block)",
    "rd_round_limit": "rounding down never goes below this share of the exact value (MobileNetV3: 0.9)",
}
ACT = {"act": "between the layers: `relu`, `silu`, `gelu`, `hardswish`"}
GATE = {"gate": "`sigmoid`, `hardsigmoid`, or `tanh1` (1 + tanh)"}
SQUEEZE = {
    "squeeze": "`mean`, `max`, or `mean+max` (half of each)",
    "squeeze_fp32": "squeeze and excite in fp32, under autocast too",
}
SQUEEZES = ("mean", "max", "mean+max")
GATE_AT_ZERO = {"sigmoid": 0.5, "hardsigmoid": 0.5, "tanh1": 1.0}

Options = dict[str, Any]


def choice(options: Options, name: str, known: Iterable[str], default: str) -> str:
    value, known = options.get(name, default), tuple(known)
    if value not in known:
        raise ValueError(f"{name}: {value!r} is none of {', '.join(known)}")
    return value


def flag(options: Options, name: str, default: bool) -> bool:
    value = options.get(name)
    if value is not None and type(value) is not bool:
        raise ValueError(f"{name}: {value!r} is not true or false")
    return default if value is None else value


def whole(options: Options, name: str, default: int, *, odd: bool = False, high: int = 1 << 16) -> int:
    value = options.get(name)
    if value is not None and (type(value) is not int or not 0 < value <= high or (odd and value % 2 == 0)):
        up_to = "" if type(value) is not int or value <= high else f", at most {high}"
        raise ValueError(f"{name}: {value!r} is not an {'odd ' if odd else ''}integer above 0{up_to}")
    return default if value is None else value


def number(options: Options, name: str, default: float, *, low: float, high: float, hint: str = "") -> float:
    """A number above ``low``, at most ``high``."""
    value = options.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low < value <= high:
        raise ValueError(f"{name}: {value!r} is not a number above {low:g}{hint or f', at most {high:g}'}")
    return value


def make_divisible(value: float, divisor: int = 8, minimum: int = 0, round_limit: float = 0.0) -> int:
    """``value`` rounded to a multiple of ``divisor``, at least ``minimum`` (the zoos' rule; timm's SE has limit 0)."""
    new = max(minimum or divisor, int(value + divisor / 2) // divisor * divisor)
    return new + divisor if new < round_limit * value else new


def width(site: Site, options: Options, *, ratio: float = 1 / 16, divisor: int = 8, minimum: int = 0) -> int:
    """Channels of the bottleneck: ``rd_channels``, or ``rd_ratio`` of the site's (or the block's input) channels."""
    given = whole(options, "rd_channels", 0)
    divisor = whole(options, "rd_divisor", divisor)
    minimum = whole(options, "rd_min", minimum)
    ratio = number(options, "rd_ratio", ratio, low=0, high=8, hint=" (1/16 is 0.0625)")
    limit = number(options, "rd_round_limit", 1e-9, low=0, high=1, hint=", at most 1 (MobileNetV3 has 0.9)")
    return given or make_divisible(base(site, options) * ratio, divisor, minimum, limit)


def base(site: Site, options: Options) -> int:
    """Channels of which ``rd_ratio`` is taken."""
    known = {"site": site.channels, "block": site.block_channels}
    value = options.get("rd_base", "site")
    if value not in tuple(known):
        raise ValueError(f"rd_base: {value!r} is none of site (its own channels), block (the block's input channels)")
    return known[value]


def layout(site: Site) -> Options:
    """The layout as an argument, where it is not the default."""
    return {} if site.layout == "NCHW" else {"layout": site.layout}


def squeezing(options: Options) -> Options:
    """The arguments ``squeeze`` and ``squeeze_fp32``, where they are not the defaults."""
    how, fp32 = choice(options, "squeeze", SQUEEZES, "mean"), flag(options, "squeeze_fp32", False)
    return ({} if how == "mean" else {"squeeze": how}) | ({"squeeze_fp32": True} if fp32 else {})


def gating(options: Options, default: str = "sigmoid") -> str:
    return choice(options, "gate", GATES, default)


def start(init: str, gate: str) -> Options:
    """``gain`` and ``zero_init`` for a start: a zeroed last layer makes the gate 1, or 1/2 for ``absorb``."""
    at_zero = GATE_AT_ZERO[gate]
    if init == "paper":
        return {}
    if init == "absorb" and at_zero != 0.5:
        raise ValueError(f"gate: {gate} is {at_zero:g} at zero, and absorb needs 1/2; take init identity")
    return {"gain": 1.0 if init == "absorb" else 1.0 / at_zero, "zero_init": True}
