"""What an insertion would cost, before it is made: its block measured alone, at the shapes of its site."""

from __future__ import annotations

import torch

from se_inject.blocks.make import make_block
from se_inject.checks.cost import measure
from se_inject.rules.budget import Price
from se_inject.search.ops import shape
from se_inject.search.sites import Found
from se_inject.types import Cost, Decision


def pricing(found: Found, batch: int) -> Price:
    """A function from an insertion to its parameters and MACs, per sample of the batch and over all its calls.

    The sums are those of the report after the splice, exactly: maps of other sizes in other calls (the levels of a
    pyramid) and windows in the batch axis are counted as they come. Blocks that are alike are measured once.
    """
    known: dict[str, Cost] = {}

    def cost(decision: Decision, given: tuple[int, ...]) -> Cost:
        key = f"{decision.block} {decision.kwargs} {given}"
        if key not in known:
            known[key] = measure(make_block(decision, 0, None), torch.empty(given, device="meta")).cost
        return known[key]

    def price(decision: Decision) -> tuple[int, int]:
        shapes = [shape(node) for _, node, _ in found.places[decision.site.id]]
        macs = sum(given[0] * cost(decision, given).macs for given in shapes)
        return cost(decision, shapes[0]).parameters, macs // batch

    return price
