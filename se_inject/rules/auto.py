"""Which sites the asked placements take, before any other rule: site id -> (whether it is taken, and why)."""

from __future__ import annotations

from se_inject.types import Reason, Site

AUTO = ("standard", "inner", "concat", "conv")  # what `auto` chooses from
Answer = tuple[bool, Reason]
Answers = dict[str, Answer]


def needed(placement: tuple[str, ...]) -> tuple[str, ...]:
    """The placements whose sites must be found."""
    return tuple(dict.fromkeys(p for asked in placement for p in (AUTO if asked == "auto" else (asked,))))


def choose(placement: tuple[str, ...], sites: tuple[Site, ...]) -> Answers:
    """The answer for every site that is looked at: of an asked placement, or what ``auto`` says of it."""
    answers = auto(sites) if "auto" in placement else {}
    for site in sites:
        if site.placement in placement:
            answers[site.id] = (True, Reason("placement", f"placement {site.placement}"))
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
    gates: dict[str, Reason] = {}
    for site in sites:
        if (gate := site.gated or site.gate_on_branch) and site.placement in ("inner", "standard"):
            gates.setdefault(site.block, gate)
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
            answers[site.id] = (False, fused[site.concat_id])
        elif site.obstacle:
            answers[site.id] = (False, no_way(site.obstacle))
        elif site.id in tokens:
            text = f"auto: layout {site.layout} is a transformer's; placement {site.placement} takes it"
            answers[site.id] = (False, site.gated or Reason("transformer", text))
        elif site.placement == "inner":
            answers[site.id] = _inner(site, site.id in inner, site.block in residual)
        elif site.placement == "standard":
            answers[site.id] = _standard(site, by_inner, gates)
        elif site.placement == "concat":
            answers[site.id] = _concat(site, branches, by_inner, standard, gates)
    blocks = [site for site in sites if site.placement != "conv" and answers[site.id][0] and not site.obstacle]
    if blocks or gates or fused or tokens:
        return answers
    plain = Reason("plain-chain", "convolution of a plain chain")
    return answers | {site.id: (True, plain) for site in sites if site.placement == "conv"}


def no_way(obstacle: Reason) -> Reason:
    """That nothing can carry a block, under the code of what stands in the way."""
    return Reason(obstacle.code, f"no way to insert: {obstacle}")


def _inner(site: Site, taken: bool, residual: bool) -> Answer:
    kernel = "x".join(map(str, site.kernel))
    if taken:
        return True, Reason("depthwise-block", f"depthwise {kernel} followed by a 1x1 projection")
    why = "expands after its depthwise convolution" if site.depthwise else f"has a full {kernel} convolution"
    if residual:
        return False, Reason("takes-standard", f"auto: the block {why}, so it takes standard")
    return False, Reason("no-block", f"auto: it {why}, in no residual block")


def _standard(site: Site, by_inner: set[str], gates: dict[str, Reason]) -> Answer:
    if site.block in by_inner:
        return False, Reason("takes-inner", "auto: the block takes inner, before its 1x1 projection")
    if site.nested:
        return False, Reason("nested", f"auto: its branch holds {site.nested} residual blocks of their own")
    if site.block in gates:
        return False, gates[site.block]
    return True, Reason("residual-block", "residual block")


def _concat(site: Site, branches: set[str], by_inner: set[str], standard: set[str], gates: dict[str, Reason]) -> Answer:
    if site.id in branches:
        return False, Reason("takes-branches", "auto: its branches hold blocks of their own")
    if site.block in gates:
        return False, gates[site.block]
    if site.block in by_inner:
        return False, Reason("takes-inner", "auto: the block around it takes inner")
    if site.block in standard:
        return False, Reason("takes-standard", "auto: the residual block around it takes standard")
    return True, Reason("concatenated-branches", "concatenated branches")
