"""Which sites the asked placements take, before any other rule: site id -> (why it is taken, why not)."""

from __future__ import annotations

from se_inject.types import Site

AUTO = ("standard", "inner", "concat", "conv")  # what `auto` chooses from
Answers = dict[str, tuple[str, str]]


def needed(placement: tuple[str, ...]) -> tuple[str, ...]:
    """The placements whose sites must be found."""
    return tuple(dict.fromkeys(p for asked in placement for p in (AUTO if asked == "auto" else (asked,))))


def choose(placement: tuple[str, ...], sites: tuple[Site, ...]) -> Answers:
    """The answer for every site that is looked at: of an asked placement, or what ``auto`` says of it."""
    answers = auto(sites) if "auto" in placement else {}
    for site in sites:
        if site.placement in placement:
            answers[site.id] = (f"placement {site.placement}", "")
    return answers


def auto(sites: tuple[Site, ...]) -> Answers:
    """Per block: a depthwise convolution with a 1x1 projection takes ``inner``, any other residual block ``standard``,
    a block of concatenated branches ``concat``; ``conv`` only in a model that has none of these. Transformers, whose
    channels are last, are left alone."""
    fused = {site.id: site.gated for site in sites if site.placement == "concat" and site.gated}
    inner = {
        site.id: site
        for site in sites
        if site.placement == "inner" and site.depthwise and site.projects and site.concat_id not in fused
        if not site.obstacle
    }
    by_inner = {site.block for site in inner.values()}
    # What holds a gate already: the block, or the concatenation that it is a branch of.
    gates: dict[str, str] = {}
    for site in sites:
        if (site.gated or site.gate_on_branch) and site.placement in ("inner", "standard"):
            gates.setdefault(site.block, site.gated or site.gate_on_branch)
    standard = {
        site.id
        for site in sites
        if site.placement == "standard" and site.block not in by_inner and not site.nested and site.block not in gates
    }
    tokens = {site.id for site in sites if site.placement in ("standard", "concat") and site.axis != 1}
    residual = {site.block for site in sites if site.placement == "standard"}
    branches = {site.concat_id for site in sites if site.id in inner or site.id in standard}
    answers: Answers = {}
    for site in sites:
        if site.concat_id in fused:
            answers[site.id] = ("", fused[site.concat_id])
        elif site.obstacle:
            answers[site.id] = ("", f"no way to insert: {site.obstacle}")
        elif site.id in tokens:
            reason = f"auto: layout {site.layout} is a transformer's; placement {site.placement} takes it"
            answers[site.id] = ("", site.gated or reason)
        elif site.placement == "inner":
            answers[site.id] = _inner(site, site.id in inner, site.block in residual)
        elif site.placement == "standard":
            answers[site.id] = _standard(site, by_inner, gates)
        elif site.placement == "concat":
            answers[site.id] = _concat(site, branches, by_inner, standard, gates)
    blocks = [site for site in sites if site.placement != "conv" and answers[site.id][0] and not site.obstacle]
    if blocks or gates or fused or tokens:
        return answers
    return answers | {site.id: ("convolution of a plain chain", "") for site in sites if site.placement == "conv"}


def _inner(site: Site, taken: bool, residual: bool) -> tuple[str, str]:
    kernel = "x".join(map(str, site.kernel))
    if taken:
        return f"depthwise {kernel} followed by a 1x1 projection", ""
    why = "expands after its depthwise convolution" if site.depthwise else f"has a full {kernel} convolution"
    return "", f"auto: the block {why}, so it takes standard" if residual else f"auto: it {why}, in no residual block"


def _standard(site: Site, by_inner: set[str], gates: dict[str, str]) -> tuple[str, str]:
    if site.block in by_inner:
        return "", "auto: the block takes inner, before its 1x1 projection"
    if site.nested:
        return "", f"auto: its branch holds {site.nested} residual blocks of their own"
    if site.block in gates:
        return "", gates[site.block]
    return "residual block", ""


def _concat(
    site: Site, branches: set[str], by_inner: set[str], standard: set[str], gates: dict[str, str]
) -> tuple[str, str]:
    if site.id in branches:
        return "", "auto: its branches hold blocks of their own"
    if site.block in gates:
        return "", gates[site.block]
    if site.block in by_inner:
        return "", "auto: the block around it takes inner"
    if site.block in standard:
        return "", "auto: the residual block around it takes standard"
    return "concatenated branches", ""
