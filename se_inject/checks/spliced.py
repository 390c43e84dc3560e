"""What a check after the splice looks at."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from se_inject.checks.reference import Reference
from se_inject.inputs import Inputs
from se_inject.search.sites import Found
from se_inject.trace.calls import Trace
from se_inject.types import Cost, Plan, SiteCost


@dataclass(frozen=True)
class Spliced:
    """A model before and after the splice, and what was planned and measured."""

    original: nn.Module | None  # None: the model was rewritten in place
    model: nn.Module
    plan: Plan
    trace: Trace  # of the original
    found: Found
    inputs: Inputs
    reference: Reference | None  # None: the model has no weights
    before: Cost
    after: Cost
    sites: tuple[SiteCost, ...]
