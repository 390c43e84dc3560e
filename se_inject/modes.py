"""Places that exist in one mode only: a forward that asks ``self.training`` is recorded in train mode too."""

from __future__ import annotations

from dataclasses import replace

from se_inject.inputs import Inputs
from se_inject.sites import Found, find
from se_inject.trace import Names, Trace, methods, record
from se_inject.types import Site


def train_only(trace: Trace, found: Found) -> Found:
    """``found`` with a note on every site that does not run in train mode; sites that run only there are added,
    with that as their obstacle."""
    owners = {site.owner for site in found.sites}
    names = Names(trace.root)
    notes: dict[str, str] = {}
    extra: list[Site] = []
    done: set[str] = set()
    for call in trace.calls:
        if call.path not in owners or call.path in done or not _asks_mode(type(call.module)):
            continue
        done.add(call.path)
        own = [site for site in found.sites if site.owner == call.path]
        modes = [(module, module.training) for module in call.module.modules()]
        try:
            call.module.train()
            calls = record(names, call.module, Inputs(call.args, call.kwargs))
        except Exception:  # needs targets, or draws on something that the skeleton lacks: said by the output check
            continue
        finally:
            for module, mode in modes:
                module.training = mode
        spots = {(n.meta.get("spot"), n.target) for n in calls[0].graph.nodes}
        for site in own:
            node = found.places[site.id][0][1]
            if (node.meta.get("spot"), node.target) not in spots:
                notes[site.id] = "runs in eval mode only"
        known = {(s.placement, s.id) for s in found.sites}
        for site in find(Trace(trace.root, trace.inputs, calls)).sites:
            if site.owner == call.path and (site.placement, site.id) not in known:
                extra.append(replace(site, obstacle="it runs in train mode only"))
    sites = [replace(site, note=notes.get(site.id, "")) for site in found.sites]
    return Found((*sites, *extra), found.places)


def _asks_mode(cls: type) -> bool:
    return any("training" in code.co_names for code in methods(cls))
