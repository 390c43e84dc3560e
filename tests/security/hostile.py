"""Names that would do harm wherever they are taken for code, a path, markup or a command to the terminal."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import nn


def names(canary: str) -> tuple[str, ...]:
    """What a module or parameter may be called: anything but a dot. Taken for code, some would make the canary."""
    call = f"getattr(__import__('os'),'mkdir')({canary!r})"
    return (
        f'a" if {call} else "b',
        "a' if " + call.replace("'", '"') + " else 'b",
        f'"""+{call}+"""',
        f"x\n    {call}\n    ",
        f"x;{call}#",
        f"{{{call}}}%s%(a)s{{0}}",
        "back\\slash\\",
        "\\x27\\n",
        "tab\tfeed\x0creturn\r",
        "NUL\0NUL",
        "\x1b[31mred\x1b]0;title\x07",
        "\u202eright to left",
        "\u2028line\u2029paragraph\x85",
        "<script>alert(1)</script>",
        "</style></script></title><b>",
        "<img src=x onerror=alert(1)>",
        "javascript:alert(1)",
        '=HYPERLINK("http://x")',
        "+cmd|' /C calc'!A0",
        "|a|b|",
        "`code` **bold** [a](b)",
        "class",
        "import",
        "None",
        "self",
        "se",
        "/etc/passwd",
        "CON",
        " ",
        "-rf",
        "é\u0301ﬁ",  # changes under normalisation, as identifiers do
    )


class Block(nn.Module):
    """A residual block whose layers have one hostile name each."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__()
        self.names = (first, second)
        for name in self.names:
            self.add_module(name, nn.Conv2d(4, 4, 3, padding=1, bias=False))
        self.bn = nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x
        for name in self.names:
            y = self.get_submodule(name)(y)
        return x + self.bn(y)


class Parameters(nn.Module):
    """A residual block that takes a parameter of a hostile name."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.register_parameter(name, nn.Parameter(torch.randn(4, 4, 3, 3)))
        self.register_buffer(name + "b", torch.ones(1))
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kernel = self._parameters[self.name] * self._buffers[self.name + "b"]
        return x + self.conv(nn.functional.conv2d(x, kernel, padding=1))


class Net(nn.Module):
    """A stem, two blocks under each of the names, a head."""

    def __init__(self, called: Sequence[str]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        blocks = [(name, Block(name, name + "2")) for name in called]
        blocks += [(name + "p", Parameters(name)) for name in called]
        self.blocks = nn.Sequential(OrderedDict(blocks))
        self.head = called[0] + "head"
        self.add_module(self.head, nn.Linear(4, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._modules[self.head](self.blocks(self.stem(x)).mean((2, 3)))


def net(canary: str, count: int = 100) -> Net:
    """A factory for the command line."""
    return Net(names(canary)[:count])


def harmless(count: int = 100) -> Net:
    """The same net under names of no interest."""
    return Net([f"n{i}" for i in range(len(names("")[:count]))])
