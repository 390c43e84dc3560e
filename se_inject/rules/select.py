"""Which sites the rules take: one function for each condition, None or the reason why it says no."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable

from se_inject.rules.schema import Match, Rule, Rules
from se_inject.types import Reason, Site

# The entry that takes the site (None without entries), or why it is not taken.
Answer = tuple[Match | None, Reason | None]


def matches(pattern: str, names: Iterable[str]) -> bool:
    """Whether a glob, or a ``re:`` full match, names one of ``names``."""
    if pattern.startswith("re:"):
        return any(re.fullmatch(pattern[3:], name) for name in names)
    return any(fnmatch.fnmatchcase(name, pattern) for name in names)


def names_of(site: Site) -> set[str]:
    """What a path pattern may name: the owner, the module that carries the block, and the id."""
    carrier = {site.carrier.path} if site.carrier is not None else set()
    return {site.owner, site.id, *carrier}


def resolution(site: Site) -> int:
    """The smaller side of the site's map; 0 when it has none."""
    sides = [n for i, n in enumerate(site.shape) if i not in (0, site.axis)]
    return min(sides, default=0)


def included(rule: Rule, site: Site) -> Reason | None:
    if rule.include and not any(matches(p, names_of(site)) for p in rule.include):
        return Reason("not-included", f"not included by {', '.join(rule.include)}")
    return None


def excluded(rule: Rule, site: Site) -> Reason | None:
    return next((Reason("excluded", f"excluded by {p}") for p in rule.exclude if matches(p, names_of(site))), None)


def of_class(rule: Rule, site: Site) -> Reason | None:
    if rule.classes and not any(matches(p, [site.cls]) for p in rule.classes):
        return Reason("other-class", f"class {site.cls} is not among {', '.join(rule.classes)}")
    return None


def at_placement(rule: Rule, site: Site) -> Reason | None:
    """Of an entry; the placements of the rules themselves are a matter of policy."""
    if isinstance(rule, Match) and rule.placement and not {site.placement, "auto"} & set(rule.placement):
        return Reason("other-placement", f"placement {site.placement} is not among {', '.join(rule.placement)}")
    return None


def in_stage(rule: Rule, site: Site) -> Reason | None:
    if rule.stages and site.stage not in rule.stages:
        return Reason("other-stage", f"stage {site.stage} is not among stages {', '.join(map(str, rule.stages))}")
    return None


def wide_enough(rule: Rule, site: Site) -> Reason | None:
    if site.channels < rule.min_channels:
        return Reason("too-narrow", f"{site.channels} channels, fewer than min_channels {rule.min_channels}")
    if rule.max_channels and site.channels > rule.max_channels:
        return Reason("too-wide", f"{site.channels} channels, more than max_channels {rule.max_channels}")
    return None


def resolved(rule: Rule, site: Site) -> Reason | None:
    side = resolution(site)
    if side < rule.min_resolution:
        return Reason("too-small", f"resolution {side}, below min_resolution {rule.min_resolution}")
    if rule.max_resolution and side > rule.max_resolution:
        return Reason("too-large", f"resolution {side}, above max_resolution {rule.max_resolution}")
    return None


def of_kernel(rule: Rule, site: Site) -> Reason | None:
    if rule.kernel and not set(site.kernel) & set(rule.kernel):
        kernel = "x".join(map(str, site.kernel)) or "unknown"
        return Reason("other-kernel", f"kernel {kernel} is not among {', '.join(map(str, rule.kernel))}")
    if rule.depthwise is not None and site.depthwise is not rule.depthwise:
        return Reason("other-depthwise", f"its convolution is {'' if site.depthwise else 'not '}depthwise")
    return None


def named(rules: Rules, entry: Match | None, site: Site) -> bool:
    """Whether an include asks for the site by its name."""
    asked: tuple[Rule, ...] = (rules, entry) if entry is not None else (rules,)
    return any(rule.include and not included(rule, site) for rule in asked)


CONDITIONS: tuple[Callable[[Rule, Site], Reason | None], ...] = (
    included,
    excluded,
    of_class,
    at_placement,
    in_stage,
    wide_enough,
    resolved,
    of_kernel,
)


def refusal(rule: Rule, site: Site) -> Reason | None:
    """Why the first condition that says no does so; None when all agree."""
    return next((reason for check in CONDITIONS if (reason := check(rule, site))), None)


def thinned(rule: Rule, sites: list[Site]) -> dict[str, Reason]:
    """Site id -> why it is left out by its place in the order: ``last`` of each stage, then ``every`` n-th."""
    reasons: dict[str, Reason] = {}
    if rule.last:
        last = {site.stage: site.id for site in sites}
        left_out = [site for site in sites if last[site.stage] != site.id]
        reasons = {s.id: Reason("not-last", f"not the last of stage {s.stage}") for s in left_out}
    left = [site for site in sites if site.id not in reasons]
    for i, site in enumerate(left):
        if (i + 1) % rule.every:
            reasons[site.id] = Reason("every", f"every {rule.every}: number {i + 1} in order is left out")
    return reasons


def select(rules: Rules, sites: Iterable[Site]) -> dict[str, Answer]:
    """The answer for every site, by id: the rules' own conditions first, then the first entry that matches."""
    answers: dict[str, Answer] = {}
    left = []
    for site in sites:
        if reason := refusal(rules, site):
            answers[site.id] = (None, reason)
        else:
            left.append(site)
    answers |= {id: (None, reason) for id, reason in thinned(rules, left).items()}
    left = [site for site in left if site.id not in answers]
    for entry in rules.sites:
        leaves_out = bool(entry.exclude) and entry == Match(exclude=entry.exclude)  # that alone is a refusal
        if leaves_out:
            taken = [site for site in left if excluded(entry, site)]
            answers |= {site.id: (None, excluded(entry, site)) for site in taken}
        else:
            taken = [site for site in left if not refusal(entry, site)]
            thin = thinned(entry, taken)
            answers |= {site.id: (None, thin[site.id]) if site.id in thin else (entry, None) for site in taken}
        left = [site for site in left if site.id not in answers]
    only_excludes = all(e == Match(exclude=e.exclude) for e in rules.sites)
    reason = None if only_excludes else Reason("no-entry", "no entry of sites matches it")
    return answers | {site.id: (None, reason) for site in left}
