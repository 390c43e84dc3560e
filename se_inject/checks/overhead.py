"""Parameters and MACs grew by what was planned."""

from __future__ import annotations

from se_inject.checks.spliced import Spliced
from se_inject.types import Check, Cost, SiteCost


def check(spliced: Spliced) -> tuple[Check, ...]:
    return (overhead(spliced.before, spliced.after, spliced.sites),)


def overhead(before: Cost, after: Cost, sites: tuple[SiteCost, ...]) -> Check:
    """Parameters and MACs grew by exactly what the inserted blocks account for."""
    grown = (after.parameters - before.parameters, after.macs - before.macs)
    planned = (sum(s.parameters for s in sites), sum(s.macs for s in sites))
    if grown != planned:
        detail = f"grew by {grown[0]:,} parameters and {grown[1]:,} MACs, planned {planned[0]:,} and {planned[1]:,}"
        return Check("overhead", False, detail, "overhead")
    return Check("overhead", True, f"grew by exactly {grown[0]:,} parameters and {grown[1]:,} MACs")
