"""(sites, rules) -> decisions. Pure: everything is decided here, skips and their reasons included."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from se_inject.blocks import BLOCKS
from se_inject.errors import RulesError, closest
from se_inject.rules import Rules, included, select
from se_inject.types import Decision, Site

# `inner` under `auto`: a quarter of the block's input channels, the convention of MBConv and RegNetY.
INNER_DEFAULTS = {"rd_ratio": 0.25, "rd_base": "block"}


def decide(sites: Iterable[Site], rules: Rules, *, half: bool = False) -> tuple[Decision, ...]:
    """One decision for every site. ``half``: the model is in fp16, where ``absorb`` is not exact.

    Raises ``RulesError`` when nothing is to be inserted, with the nearest paths or the commonest reason.
    """
    sites = tuple(sites)
    chosen = POLICIES[rules.placement](sites)
    decisions = tuple(_decide(site, rules, *chosen[site.id], half) for site in sites)
    if not any(d.status == "insert" for d in decisions):
        raise RulesError(_nothing(sites, rules, decisions))
    return decisions


def _only(placement: str) -> Callable[[tuple[Site, ...]], dict[str, tuple[str, str]]]:
    def policy(sites: tuple[Site, ...]) -> dict[str, tuple[str, str]]:
        return {
            site.id: (f"placement {placement}", "")
            if site.placement == placement
            else ("", f"the rules ask for placement {placement}")
            for site in sites
        }

    return policy


def auto(sites: tuple[Site, ...]) -> dict[str, tuple[str, str]]:
    """Per block: a depthwise convolution with a 1x1 projection takes ``inner``, any other residual block ``standard``.

    Returns id -> (why it is taken, "") or ("", why not).
    """
    answer: dict[str, tuple[str, str]] = {}
    taken: dict[str, Site] = {}
    gates: dict[str, str] = {}
    for site in sites:
        if site.gated:
            gates.setdefault(site.block, site.gated)
        if site.placement == "inner" and site.depthwise and site.projects:
            taken.setdefault(site.block, site)
            kernel = "x".join(map(str, site.kernel))
            answer[site.id] = (f"depthwise {kernel} followed by a 1x1 projection", "")
        elif site.placement == "inner":
            why = "expands" if site.depthwise else "is not depthwise"
            answer[site.id] = ("", f"auto: the block takes standard, its {site.kernel[0]}-wide convolution {why}")
    for site in sites:
        if site.placement != "standard":
            continue
        if site.id in taken or site.block in taken:
            answer[site.id] = ("", "auto: the block takes inner, before its 1x1 projection")
        elif site.nested:
            answer[site.id] = ("", f"auto: its branch holds {site.nested} residual blocks of their own")
        elif site.block in gates:
            answer[site.id] = ("", gates[site.block])
        else:
            answer[site.id] = ("residual block", "")
    return answer


POLICIES: dict[str, Callable[[tuple[Site, ...]], dict[str, tuple[str, str]]]] = {
    "auto": auto,
    "standard": _only("standard"),
    "inner": _only("inner"),
}


def _decide(site: Site, rules: Rules, why: str, why_not: str, half: bool) -> Decision:
    if why_not:
        return Decision(site, "skip", why_not)
    match, reason = select(rules, site)
    defaults: dict[str, Any] = INNER_DEFAULTS if rules.placement == "auto" and site.placement == "inner" else {}
    spec = rules.spec(match, defaults)
    init = (match.init if match else "") or rules.init
    reason = reason or _impossible(site, spec.name, init, half)
    if reason:
        return Decision(site, "skip", reason)
    block = BLOCKS[spec.name]
    try:
        kwargs = block.resolve(site, init, spec.options)
    except ValueError as error:
        raise RulesError(f"block {spec.name} at {site.id}: {error}.") from error
    return Decision(site, "insert", why, spec.name, init, kwargs)


def _impossible(site: Site, block: str, init: str, half: bool) -> str:
    if site.gated:
        return site.gated
    if site.obstacle:
        return f"no way to insert: {site.obstacle}"
    if site.layout not in BLOCKS[block].layouts:
        layouts = ", ".join(BLOCKS[block].layouts)
        return f"layout {site.layout} (shape {list(site.shape)}); block {block} takes {layouts}"
    if init not in BLOCKS[block].inits:
        return f"block {block} cannot start as {init}"
    if init == "absorb" and half:
        return "absorb is not exact in float16 (subnormals and overflow); use identity"
    if init == "absorb" and not site.absorb:
        return f"absorb: {site.absorb_obstacle}"
    return ""


def _nothing(sites: tuple[Site, ...], rules: Rules, decisions: tuple[Decision, ...]) -> str:
    if not sites:
        return (
            "no site found: the model has no residual block and no convolution followed by a 1x1 projection. "
            "`se-inject list placements` says what is looked for."
        )
    patterns = [*rules.include, *(p for entry in rules.sites for p in entry.include)]
    unmatched = [p for p in patterns if all(included(Rules(include=(p,)), site) for site in sites)]
    if unmatched:
        near = closest(unmatched[0].removeprefix("re:"), {site.owner for site in sites})
        return f"include {unmatched[0]!r} matches none of the {len(sites)} sites.{near}"
    reasons: dict[str, int] = {}
    for decision in decisions:
        reasons[decision.reason] = reasons.get(decision.reason, 0) + 1
    reason, count = max(reasons.items(), key=lambda item: item[1])
    return f"the rules select none of the {len(sites)} sites; most often ({count}): {reason}."
