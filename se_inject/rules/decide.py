"""(sites, rules) -> decisions. Pure: everything is decided here, skips and their reasons included."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import chain, count
from typing import Any

from se_inject.blocks import Block, find_block
from se_inject.errors import NothingSelectedError, RulesError, closest
from se_inject.rules.auto import choose, no_way
from se_inject.rules.budget import RATIOS
from se_inject.rules.schema import Rules
from se_inject.rules.select import Answer, included, named, refusal, select
from se_inject.types import Decision, Reason, Site

# `inner` under `auto`: a quarter of the block's input channels, the convention of MBConv and RegNetY.
INNER_DEFAULTS = {"rd_ratio": 0.25, "rd_base": "block"}
# For options alone: no width is too narrow here.
WIDE = Site(
    "", "standard", "", "", 1 << 16, 1, (1, 1 << 16, 1, 1), stage=1, order=0, block_channels=1 << 16, block="", calls=1
)
Alternatives = Callable[[Decision], list[tuple[float, Decision]]]
Budget = Callable[[tuple[Decision, ...], Alternatives], tuple[Decision, ...]]


def decide(
    sites: Iterable[Site],
    rules: Rules,
    *,
    half: bool = False,
    budget: Budget | None = None,
    free: Callable[[str], bool] = lambda path: True,
) -> tuple[Decision, ...]:
    """One decision for every site. ``half``: the model is in fp16, where ``absorb`` is not exact. ``budget``: chooses
    among what the rules take, when they set one. ``free``: whether the model has room for a new module at a path.

    Raises ``RulesError`` when nothing is to be inserted, with the nearest paths or the commonest reason.
    """
    sites = tuple(sites)
    chosen = choose(rules.placement, sites)
    sites = tuple(site for site in sites if site.id in chosen)
    selected = select(rules, [site for site in sites if chosen[site.id][0]])
    decisions = tuple(_decide(site, rules, chosen[site.id], selected.get(site.id), half) for site in sites)
    if budget is not None:

        def alternatives(planned: Decision) -> list[tuple[float, Decision]]:
            site, found = planned.site, {}
            for ratio in rules.budget.get("ratios", RATIOS) if "rd_ratio" in find_block(planned.block).options else ():
                changed = replace(rules, ratio=ratio, ratio_by_stage={})
                other = _decide(site, changed, chosen[site.id], selected.get(site.id), half)
                found[str(other.kwargs)] = (ratio, other)  # two ratios may round to one width
            return list(found.values()) or [(0.0, planned)]

        decisions = budget(decisions, alternatives)
    if unmatched := _unmatched(sites, rules):
        raise NothingSelectedError(unmatched, Reason("unmatched", unmatched))
    if not any(d.status == "insert" for d in decisions):
        offered = tuple(d for d in decisions if chosen[d.site.id][0])
        raise _nothing(sites, rules, offered or decisions)
    return tuple(_named(decisions, free))


def _named(decisions: Iterable[Decision], free: Callable[[str], bool]) -> Iterator[Decision]:
    """What is inserted gets the first free name of its parent: ``se``, or ``se_1`` and so on."""
    taken: set[str] = set()
    for decision in decisions:
        carrier = decision.site.carrier
        if decision.status == "insert" and carrier is not None and carrier.kind != "slot":
            key = decision.key
            numbers = chain([""], (f"_{n}" for n in count(1)))
            number = next(n for n in numbers if f"{key}{n}" not in taken and free(f"{key}{n}"))
            taken.add(f"{key}{number}")
            if number:
                carrier = replace(carrier, name=f"{carrier.name}{number}")
                decision = replace(decision, site=replace(decision.site, carrier=carrier))
        yield decision


def _decide(site: Site, rules: Rules, chosen: tuple[bool, Reason], selected: Answer | None, half: bool) -> Decision:
    taken, why = chosen
    if selected is None or not taken:
        return Decision(site, "skip", why)
    match, reason = selected
    defaults: dict[str, Any] = INNER_DEFAULTS if site.placement == "inner" and "auto" in rules.placement else {}
    spec = rules.spec(match, defaults, site)
    init = (match.init if match else "") or rules.init
    block = find_block(spec.name)
    reason = reason or _impossible(site, rules, spec.name, init, half)
    if site.no_gradient and not reason:  # whoever names the site gets it, and is told
        if not named(rules, match, site):
            return Decision(site, "skip", site.no_gradient)
        text = "; ".join(str(reason) for reason in (site.note, site.no_gradient) if reason)
        site = replace(site, note=Reason(site.no_gradient.code, text))
    if reason:
        return Decision(site, "skip", reason)
    try:
        kwargs = block.resolve(site, init, _known(spec.options, block))
    except ValueError as error:
        raise RulesError(f"block {spec.name} at {site.id}: {error}.") from error
    if reason := block.refusal(site, init, kwargs):
        return Decision(site, "skip", reason)
    if site.note:
        why = Reason(why.code, f"{why} ({site.note})")
    return Decision(site, "insert", why, spec.name, init, kwargs)


def require_options(rules: Rules) -> None:
    """Raise ``RulesError`` for an option of a block that is out of range whatever the model."""
    for match in rules.sites or (None,):
        spec, init = rules.spec(match, {}, WIDE), (match.init if match else "") or rules.init
        block = find_block(spec.name)
        try:
            if init in block.inits:
                block.resolve(WIDE, init, _known(spec.options, block))
        except ValueError as error:
            raise RulesError(f"block {spec.name}: {error}.") from error


def _known(options: dict[str, Any], block: Block) -> dict[str, Any]:
    """Without the defaults and ratios that a block has no use for; what the user wrote in `block` was checked."""
    return {name: value for name, value in options.items() if name in block.options}


def _impossible(site: Site, rules: Rules, block: str, init: str, half: bool) -> Reason | None:
    if site.gated and not rules.again:
        return site.gated
    if site.obstacle:
        return no_way(site.obstacle)
    layouts = find_block(block).layouts
    if layouts and site.layout not in layouts:
        text = f"layout {site.layout} (shape {list(site.shape)}); block {block} takes {', '.join(layouts)}"
        return Reason("layout", text)
    if init not in find_block(block).inits:
        return Reason("start", f"block {block} cannot start as {init}")
    if init == "absorb" and half:
        return Reason("float16", "absorb is not exact in float16 (subnormals and overflow); use identity")
    if init == "absorb" and not site.absorb:
        obstacle = site.absorb_obstacle or Reason("no-batch-norm", "no batch norm is known there")
        return Reason(obstacle.code, f"absorb: {obstacle}")
    return None


def _unmatched(sites: tuple[Site, ...], rules: Rules) -> str:
    """What the user named that is nowhere: an include, or an entry that no site meets. Never passed over in silence."""
    for pattern in (*rules.include, *(p for entry in rules.sites for p in entry.include)):
        if sites and all(included(Rules(include=(pattern,)), site) for site in sites):
            near = closest(pattern.removeprefix("re:"), {site.owner for site in sites})
            return f"include {pattern!r} matches none of the {len(sites)} sites.{near}"
    for i, entry in enumerate(rules.sites):
        if sites and not entry.exclude and all(refusal(entry, site) for site in sites):
            return f"sites[{i}] matches none of the {len(sites)} sites: {refusal(entry, sites[0])}."
    return ""


def _nothing(sites: tuple[Site, ...], rules: Rules, decisions: tuple[Decision, ...]) -> NothingSelectedError:
    if not sites:
        text = (
            f"no place for {' or '.join(rules.placement)} found in this model. `se-inject list placements` says what "
            "is looked for; RepVGG and its like have `sum`, plain chains `conv`."
        )
        return NothingSelectedError(text, Reason("no-sites", text))
    kinds: dict[str, list[Reason]] = {}
    for decision in decisions:
        kinds.setdefault(decision.reason.code, []).append(decision.reason)
    # That another placement takes the block tells nothing when that one does not.
    told = {code: found for code, found in kinds.items() if code != "takes-standard"} or kinds
    found = max(told.values(), key=lambda found: (len(found), found[0].code == "gated"))
    often = f"most often ({len(found)}{', for instance' if len(set(found)) > 1 else ''})"
    return NothingSelectedError(f"the rules select none of the {len(sites)} sites; {often}: {found[0]}.", found[0])
