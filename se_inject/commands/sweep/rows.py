"""What blocks would cost: one model at every point of a grid of rules, from one trace and no splice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from se_inject.blocks.custom import named
from se_inject.commands.sweep.grid import Point
from se_inject.errors import RulesError
from se_inject.injection.plan import decided, survey
from se_inject.inputs import Inputs
from se_inject.rules.auto import needed
from se_inject.types import Reason


@dataclass(frozen=True)
class Row:
    """One model under one set of rules; without blocks, ``reason`` says why. A model that failed has one row."""

    model: str
    rules: str = ""  # the preset or file, if any
    placement: str = ""
    block: str = ""
    ratio: float | None = None  # channels / reduced channels; None: the default of the block, or a budget's choice
    init: str = ""
    blocks: int = 0
    base_parameters: int = 0
    base_macs: int = 0
    added_parameters: int = 0
    added_macs: int = 0
    reason: Reason | None = None

    @property
    def failed(self) -> bool:
        return not self.placement

    @property
    def shares(self) -> tuple[float, float]:
        """Added MACs and parameters, as parts of the base's."""
        return self.added_macs / max(1, self.base_macs), self.added_parameters / max(1, self.base_parameters)


def rows_of(spec: str, model: nn.Module, inputs: Inputs, points: Sequence[Point]) -> list[Row]:
    """A row for each point; the model stays as it is, and may be without data.

    Costs are those that ``inject`` reports. Raises ``TraceError`` when the model does not run on the inputs.
    """
    placements = needed(tuple(placement for point in points for placement in point.rules.placement))
    surveyed = survey(model, inputs, placements, 0)
    base = surveyed.base
    found = []
    for point in points:
        named({"block": point.rules.block})  # a class of the user's is not known yet in a process of its own
        head = (spec, point.source, "+".join(point.rules.placement), point.block, point.ratio, point.rules.init)
        try:
            taken = decided(surveyed, point.rules).plan.insertions
        except RulesError as error:
            found.append(Row(*head, 0, base.parameters, base.macs, reason=Reason(error.code, str(error))))
            continue
        parameters, macs = map(sum, zip(*map(surveyed.price, taken), strict=True))
        found.append(Row(*head, len(taken), base.parameters, base.macs, parameters, macs))
    return found
