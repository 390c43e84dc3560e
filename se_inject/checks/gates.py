"""What the inserted gates do on a batch: how far they are open, by block."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from se_inject.blocks import block_of, is_block
from se_inject.blocks.block import Gate
from se_inject.checks import reference
from se_inject.inputs import Inputs
from se_inject.types import GateStats, Reason

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DEAD, SATURATED = 0.1, 0.9  # of the range


@dataclass(frozen=True)
class Gates:
    """What the gates of a model do on a batch, block by block in the order of the modules.

    Iterates over its ``sites``. Printed it is a table, in a notebook too; ``plot`` draws it.
    """

    sites: tuple[GateStats, ...]

    def __iter__(self) -> Iterator[GateStats]:
        return iter(self.sites)

    def __len__(self) -> int:
        return len(self.sites)

    def __getitem__(self, index: int) -> GateStats:
        return self.sites[index]

    def __str__(self) -> str:
        from se_inject.report.tables import NO_BLOCKS
        from se_inject.report.text import as_text, render_gates

        return as_text(lambda console: render_gates(self, console)) if self.sites else NO_BLOCKS

    def _repr_html_(self) -> str:
        from se_inject.report.html.notebook import gates

        return gates(self)

    def plot(self, path: str | Path | None = None) -> Figure:
        """A matplotlib figure: mean, standard deviation and range of each gate, and its dead and saturated channels.

        ``path``: where to write it as well; the ending chooses the format. Raises ``SEInjectError`` without matplotlib,
        and for a format that it does not write.
        """
        from se_inject.report.plot import gates, write

        figure = gates(self)
        if path is not None:
            write(figure, Path(path))
        return figure


def statistics(model: nn.Module, inputs: Inputs) -> Gates:
    """One forward in eval mode, without gradients; the model is afterwards what it was.

    Raises ``TraceError`` when the model does not run on the inputs.
    """
    blocks = _outermost(model)
    found: dict[str, list[torch.Tensor]] = {path: [] for path, _ in blocks}
    gates = {path: _gate(block) for path, block in blocks}
    hooks = [(gate.module, _keep(found[path], gate.follow)) for path, gate in gates.items() if gate is not None]
    if hooks:
        reference.watch(model, inputs, 0, hooks)
    return Gates(tuple(_summary(path, block, gates[path], found[path]) for path, block in blocks))


def _outermost(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The inserted blocks with their paths; a module that is shared counts once."""
    return [(path, module) for path, module in model.named_modules() if is_block(module)]


def _gate(block: nn.Module) -> Gate | None:
    """Where the gate of a block can be seen, as the block says."""
    known = block_of(block)
    return known.gate(block) if known is not None else None


def _keep(values: list[torch.Tensor], follow: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    def hook(module: nn.Module, args: Any, output: torch.Tensor) -> None:
        values.append(follow(output.detach().cpu().double()))  # there are devices without float64

    return hook


def _summary(path: str, block: nn.Module, gate: Gate | None, values: list[torch.Tensor]) -> GateStats:
    kind = type(block).__name__
    if gate is None:
        return GateStats(path, kind, note=Reason("no-gate", "it has no channel gate"))
    if not values:
        return GateStats(path, kind, note=Reason("gate-unused", "its channel gate did not run"))
    if any(sum(n > 1 for n in v.shape[1:]) > 1 for v in values):
        return GateStats(path, kind, note=Reason("gate-per-position", "its gate is not one value for each channel"))
    rows = torch.cat([v.flatten(1) for v in values])  # (samples and calls, channels)
    if not torch.isfinite(rows).all():
        return GateStats(path, kind, note=Reason("gate-not-finite", "its gate is NaN or infinite"))
    share = rows.mean(0) / gate.highest
    numbers = (rows.mean(), rows.std(correction=0), rows.min(), rows.max(), *_shares(share))
    mean, std, low, high, dead, saturated = (float(f"{float(n):.6g}") for n in numbers)
    return GateStats(path, kind, float(gate.highest), mean, std, low, high, dead, saturated)


def _shares(channels: torch.Tensor) -> Iterable[torch.Tensor]:
    return (channels < DEAD).double().mean(), (channels > SATURATED).double().mean()
