"""The Python API: each function is one line of the data flow, from a model to a checked result on disk."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from se_inject.checks import baseline, gates, verify
from se_inject.checks.measure import measure
from se_inject.errors import PlanMismatchError, SEInjectError, TraceError
from se_inject.guard import unwrap
from se_inject.report.drawing import drawings
from se_inject.rules import budget
from se_inject.rules.decide import Alternatives, Budget, decide
from se_inject.rules.policies import needed
from se_inject.rules.schema import Rules, given, read
from se_inject.search.calls import Trace
from se_inject.search.inputs import Inputs, dtype_of, resolve
from se_inject.search.modes import train_only
from se_inject.search.sites import Found, find
from se_inject.search.trace import trace, uncollected
from se_inject.surgery import splice
from se_inject.surgery.fingerprint import fingerprint
from se_inject.surgery.spec import differences
from se_inject.types import Check, Cost, Decision, GateStats, Plan, Report, SiteCost, to_dict


@dataclass
class Injection:
    """A rewritten model, the plan that made it, and the report on it."""

    model: nn.Module
    plan: Plan
    report: Report
    inputs: Inputs = field(repr=False)
    base: nn.Module = field(repr=False)  # a weightless copy of the original, for its source

    def __repr__(self) -> str:
        failed = [c.name for c in self.report.checks if c.passed is False]
        passed = sum(c.passed is True for c in self.report.checks)
        checks = f"FAILED {', '.join(failed)}" if failed else f"{passed} checks passed"
        before, after = self.report.before, self.report.after
        return (
            f"Injection({self.plan.model}: {len(self.plan.insertions)} blocks, {len(self.plan.skips)} skips, "
            f"parameters +{_percent(before.parameters, after.parameters)}, "
            f"MACs +{_percent(before.macs, after.macs)}, {checks})"
        )

    def _repr_html_(self) -> str:
        return self.report._repr_html_()


def _percent(before: int, after: int) -> str:
    return f"{100 * (after - before) / before:.2f} %" if before else "n/a"


@dataclass(frozen=True)
class Planned:
    """A plan with the trace it came from, for what follows in the same process."""

    plan: Plan
    trace: Trace
    found: Found
    inputs: Inputs


def plan(model: nn.Module, example_inputs: Any = None, rules: Any = "auto", *, seed: int = 0, name: str = "") -> Plan:
    """Where blocks would go, and why: a dry run that changes nothing and needs no weights.

    ``example_inputs``: a tensor, a tuple of arguments, a dict of keyword arguments, or a shape such as
    ``(3, 224, 224)``; None takes the size in the model's own configuration. ``rules``: a placement's name, a dict, or
    a YAML file. ``seed``: of the new blocks' weights. Raises ``TraceError``, ``RulesError``.

    >>> plan(timm.create_model("resnet18")).insertions[0].site.id
    'layer1.0:standard'
    """
    return make_plan(unwrap(model), example_inputs, rules, seed=seed, name=name).plan


def survey(
    model: nn.Module, example_inputs: Any, placements: Collection[str], seed: int
) -> tuple[Trace, Found, Inputs]:
    """Record one forward and find every site of the placements in it."""
    inputs = resolve(model, example_inputs, seed=seed)
    with uncollected():
        recorded = trace(model, inputs)
        return recorded, train_only(recorded, find(recorded, placements), placements), inputs


def make_plan(
    model: nn.Module,
    example_inputs: Any,
    rules: Any,
    *,
    seed: int = 0,
    name: str = "",
    model_args: dict[str, Any] | None = None,
) -> Planned:
    """Survey the model and decide by ``rules``."""
    parsed = read(rules)
    recorded, found, inputs = survey(model, example_inputs, needed(parsed.placement), seed)
    half = dtype_of(model) == torch.float16
    made = Plan(
        model=name or f"{type(model).__module__}.{type(model).__qualname__}",
        model_args=model_args or {},
        inputs=inputs.describe(),
        fingerprint=fingerprint(model),
        rules=given(parsed),
        seed=seed,
        decisions=decide(found.sites, parsed, half=half, budget=_budget(model, inputs, parsed)),
        notes=tuple(recorded.notes),
    )
    return Planned(made, recorded, found, inputs)


def _budget(model: nn.Module, inputs: Inputs, rules: Rules) -> Budget | None:
    """What chooses under the budget of the rules, with the cost of each block measured at its site."""
    if not rules.budget:
        return None
    base = measure(model, inputs).cost
    known: dict[str, tuple[int, int]] = {}

    def price(decision: Decision) -> tuple[int, int]:
        key = f"{decision.block} {decision.kwargs} {decision.site.shape}"
        if key not in known:
            block = splice.make_block(decision, 0, None)
            cost = measure(block, torch.empty(decision.site.shape, device="meta")).cost
            known[key] = (cost.parameters, cost.macs)
        parameters, macs = known[key]
        return parameters, macs * decision.site.calls

    def choose(decisions: tuple[Decision, ...], alternatives: Alternatives) -> tuple[Decision, ...]:
        return budget.choose(decisions, alternatives, rules.budget, base, price)

    return choose


def follow_plan(model: nn.Module, example_inputs: Any, made: Plan) -> Planned:
    """Survey the model for a plan that was made before; no rules. Raises ``PlanMismatchError``."""
    splice.require_fingerprint(model, made)
    recorded, found, inputs = survey(model, example_inputs, {d.site.placement for d in made.decisions}, made.seed)
    if lost := [d.site.id for d in made.insertions if d.site.id not in found.places]:
        raise PlanMismatchError(f"the plan inserts at {lost[0]}, where this model has no site. Make the plan again.")
    return Planned(made, recorded, found, inputs)


def inject(
    model: nn.Module,
    example_inputs: Any = None,
    rules: Any = "auto",
    *,
    inplace: bool = False,
    verify: bool = True,
    seed: int = 0,
    name: str = "",
    model_args: dict[str, Any] | None = None,
) -> Injection:
    """Insert attention blocks by ``rules``, check the result, and report on it.

    The model given stays as it was unless ``inplace``; mode, dtype and device are kept. ``verify=False`` skips the
    checks. Other arguments are those of ``plan``. Raises ``VerifyError`` when a check fails; an ``inplace`` model is
    then put back.

    >>> result = inject(torchvision.models.resnet50(), (3, 224, 224))
    >>> result.model, result.plan, result.report
    """
    model = unwrap(model)
    planned = make_plan(model, example_inputs, rules, seed=seed, name=name, model_args=model_args)
    return realise(model, planned, inplace=inplace, check=verify)


def realise(
    model: nn.Module,
    planned: Planned,
    *,
    inplace: bool = False,
    check: bool = True,
    progress: Callable[[str], None] = lambda step: None,
) -> Injection:
    """Apply a plan that was just made for ``model``, and report; ``progress`` hears the name of each step."""
    inputs, made = planned.inputs, planned.plan
    progress("reference outputs")
    has_weights = not any(p.is_meta for p in model.parameters())
    fits = partial(_meets, model, planned)
    reference = baseline.take(model, inputs, made.seed, fits) if check and has_weights else None
    if reference is not None:
        made = replace(made, baseline=reference.baseline())
    progress("cost before")
    before = measure(model, inputs).cost
    base = planned.trace.root
    progress("splice")
    result = splice.apply(model, made, inplace=inplace)
    try:
        progress("cost after")
        measured = measure(result, inputs, [d.key for d in made.insertions])
        after = measured.cost
        sites = tuple(
            SiteCost(d.site.id, c.parameters, c.macs, c.elementwise, c.activation_bytes)
            for d in made.insertions
            for c in [measured.by_module[d.key]]
        )
        checks: tuple[Check, ...] = ()
        if check:
            progress("checks")
            checks = _checks(result, replace(planned, plan=made), reference, before, after, sites)
            verify.require(checks)
    except BaseException:
        if inplace:
            splice.remove_last(result)
        raise
    report = Report(
        made, before, after, sites, checks, versions=versions(base), rewritten=rewritten(result),
        graphs=drawings(planned.found, made.insertions), gates=_gates(result, inputs) if has_weights else (),
    )  # fmt: skip
    return Injection(result, made, report, inputs, base)


def _meets(model: nn.Module, planned: Planned, probe: Inputs) -> bool:
    """Whether a forward of ``probe`` comes to every place of the plan."""
    met = {(c.path, n.meta.get("spot"), n.target) for c in trace(model, probe).calls for n in c.graph.nodes}
    places = [p for decision in planned.plan.insertions for p in planned.found.places[decision.site.id]]
    return all((call.path, node.meta.get("spot"), node.target) in met for call, node, _ in places)


def _gates(result: nn.Module, inputs: Inputs) -> tuple[GateStats, ...]:
    """Gate statistics of a batch that the user gave; noise made from a shape says nothing about the gates."""
    if inputs.shape is not None:
        return ()
    try:
        return gates.statistics(result, inputs)
    except TraceError:  # such a model runs in train mode only
        return ()


def _checks(
    result: nn.Module,
    planned: Planned,
    reference: baseline.Reference | None,
    before: Cost,
    after: Cost,
    sites: tuple[SiteCost, ...],
) -> tuple[Check, ...]:
    made = planned.plan
    again = trace(result, planned.inputs)
    wrong = differences(planned.trace, planned.found, made.insertions, again)
    checks = [verify.structure(wrong, len({d.site.carrier.path for d in made.insertions if d.site.carrier}))]
    if reference is not None:
        checks += verify.outputs(reference, result, made)
        checks.append(verify.reached(result, reference.probe, made))
        checks.append(verify.keys(reference.tensors, result, made))
    else:
        checks.append(Check("outputs", None, "the model has no weights (meta tensors)"))
    checks.append(verify.overhead(before, after, sites))
    return tuple(checks)


def rewritten(model: nn.Module) -> dict[str, str]:
    """Generated class -> its source, for every class in the model; from the second variant of a class on, numbered."""
    variants: dict[str, list[str]] = {}
    for module in model.modules():
        source = vars(type(module)).get("se_source")
        if source is not None:
            name = f"{type(module).__name__} ({vars(type(module))['se_base'].__module__})"
            if source not in variants.setdefault(name, []):
                variants[name].append(source)
    return {
        name if number == 1 else f"{name} {number}": source
        for name, sources in variants.items()
        for number, source in enumerate(sources, 1)
    }


def versions(model: nn.Module) -> dict[str, str]:
    """Versions of what the result depends on: torch, and the libraries that the model's classes come from."""
    from se_inject import __version__

    found = {"se_inject": __version__, "python": ".".join(map(str, sys.version_info[:3])), "torch": torch.__version__}
    for library in sorted({type(module).__module__.partition(".")[0] for module in model.modules()} - set(found)):
        version = getattr(sys.modules.get(library), "__version__", None)
        if isinstance(version, str):
            found[library] = version
    return found


def apply(model: nn.Module, plan: Plan, *, inplace: bool = False) -> nn.Module:
    """Insert what ``plan`` says into a fresh model of the same kind; no rules and no tracing needed.

    Raises ``PlanMismatchError`` when the model, or the source of its classes, is another; nothing was changed then.
    """
    return splice.apply(unwrap(model), plan, inplace=inplace)


def remove(model: nn.Module, *, inplace: bool = False) -> nn.Module:
    """Take the inserted blocks out again: classes, attributes, keys and absorbed norms are as they were.

    Outputs are the original's only if the blocks were not trained. Raises ``SpliceError`` when there are none.
    """
    return splice.remove(unwrap(model), inplace=inplace)


def cost(model: nn.Module, example_inputs: Any = None) -> Cost:
    """Parameters, MACs, element-wise ops and activation bytes of one forward, per sample; the model is not touched.

    Raises ``TraceError`` when the model does not run on the inputs.
    """
    return measure(unwrap(model), example_inputs).cost


def gate_statistics(model: nn.Module, batch: Any) -> tuple[GateStats, ...]:
    """How far the gates of the inserted blocks are open on a batch, in order; one forward in eval mode.

    ``batch``: a tensor, a tuple of arguments, a dict of keyword arguments, or a shape, for noise. A block without a
    channel gate has no figures, and its ``note`` says why. Raises ``TraceError`` when the model does not run on it.

    >>> gate_statistics(result.model, images)[0].mean
    1.0
    """
    model = unwrap(model)
    return gates.statistics(model, resolve(model, batch))


def read_plan(path: str | Path) -> Plan:
    """The plan in a ``plan.json``; nothing it names is imported. Raises ``PlanMismatchError`` for another schema."""
    from se_inject.files.store import read_plan as read_file

    return read_file(Path(path))


def save(
    injection: Injection,
    out: str | Path,
    *,
    force: bool = False,
    source: dict[str, Any] | None = None,
    inputs: Any = (),
) -> Report:
    """Write ``model.safetensors``, ``plan.json``, ``modeling.py`` and the reports (JSON, Markdown, HTML) to the folder.

    All or nothing: built beside ``out``, read back and compared, then renamed. ``source``: where the weights came
    from, for the report. ``inputs``: files that the output must not touch. Raises ``WriteError``, ``VerifyError``.
    """
    from se_inject.files.store import save as write

    return write(injection, Path(out), force=force, source=source or {}, inputs=[Path(p) for p in inputs])


def load(out: str | Path, model: nn.Module | None = None) -> nn.Module:
    """The rewritten model of an output folder, in eval mode.

    ``timm:`` and ``torchvision:`` models are built here; for others pass a fresh base model as ``model``, which is not
    changed. ``modeling.py`` is never imported. Raises ``LoadError``, ``PlanMismatchError``.
    """
    from se_inject.files.store import load as read_folder

    return read_folder(Path(out), copy.deepcopy(model) if model is not None else None)


def dump(plan: Plan) -> str:
    """The plan as JSON, the same text for the same plan."""
    return json.dumps(to_dict(plan), indent=1, sort_keys=True, allow_nan=False) + "\n"


__all__ = [
    "Injection", "SEInjectError", "apply", "cost", "gate_statistics", "inject", "load", "plan", "read_plan", "remove",
    "save",
]  # fmt: skip
