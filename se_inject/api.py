"""The Python API: each function is one line of the data flow, from a model to a checked result on disk."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import fx, nn

from se_inject.checks import trained
from se_inject.checks.cost import measure
from se_inject.checks.gates import Gates, statistics
from se_inject.checks.reference import digests
from se_inject.copying import independent_copy
from se_inject.errors import SEInjectError
from se_inject.guard import unwrap
from se_inject.injection.graph import whole
from se_inject.injection.inject import Injection, realise
from se_inject.injection.plan import make_plan
from se_inject.inputs import resolve
from se_inject.output import folder
from se_inject.output.formats import adapter
from se_inject.report.html.notebook import show
from se_inject.surgery import splice
from se_inject.types import Cost, Plan, Report, Shown

Shown.renderer = show


def plan(model: nn.Module, example_inputs: Any = None, rules: Any = "auto", *, seed: int = 0, name: str = "") -> Plan:
    """Where blocks would go, and why: a dry run that changes nothing and needs no weights.

    ``example_inputs``: a tensor, a tuple of arguments, a dict of keyword arguments, or a shape such as
    ``(3, 224, 224)``; None takes the size in the model's own configuration. ``rules``: a placement's name, a dict, or
    a YAML file. ``seed``: of the new blocks' weights. Raises ``TraceError``, ``RulesError``.

    >>> plan(timm.create_model("resnet18")).insertions[0].site.id
    'layer1.0:standard'
    """
    return make_plan(unwrap(model), example_inputs, rules, seed=seed, name=name).plan


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


def gates(model: nn.Module, batch: Any) -> Gates:
    """What the gates of the inserted blocks do on a batch: mean, spread, dead and saturated channels of each.

    One forward in eval mode; the model is left as it was. ``batch``: a tensor, a tuple of arguments, a dict of keyword
    arguments, or a shape, for noise. A block without a channel gate has no figures, and its ``note`` says why. Raises
    ``TraceError`` when the model does not run on the batch.

    >>> print(gates(model, images))
    >>> gates(model, images).plot("gates.svg")
    """
    model = unwrap(model)
    return statistics(model, resolve(model, batch))


def to_graph(model: nn.Module, example_inputs: Any = None) -> fx.GraphModule:
    """The model, rewritten or not, as one ``fx.GraphModule`` with the same outputs on the example, to the bit.

    For tools that take a graph; nothing else here needs one. Made by ``torch.fx`` where that can follow the model:
    layers of torch.nn are modules under their keys, and sizes stay open. Elsewhere by ``torch.export``: functions on
    the same keys, with the sizes of the example. Either way what one run does is all that is left: the mode that the
    model is in, the flags and branches that were taken. Class, methods, hooks and autocast contexts are gone, and
    ``remove`` does not work on it. Weights are shared with ``model``, which stays as it is. ``example_inputs``: as for
    ``plan``. Raises ``TraceError`` with the reasons when the model is not one graph (detectors).

    >>> to_graph(result.model, (3, 224, 224)).graph.print_tabular()
    """
    model = unwrap(model)
    return whole(model, resolve(model, example_inputs))


def read_plan(path: str | Path) -> Plan:
    """The plan in a ``plan.json``; nothing it names is imported. Raises ``PlanMismatchError`` for another schema."""
    return folder.read_plan(Path(path))


def save(
    injection: Injection,
    out: str | Path,
    *,
    formats: str | Iterable[str] = "safetensors",
    max_shard_size: str | int | None = None,
    force: bool = False,
    discard_changes: bool = False,
    source: dict[str, Any] | None = None,
    inputs: Any = (),
) -> Report:
    """Write the model in the formats, with ``plan.json``, ``modeling.py`` and the reports (JSON, Markdown, HTML).

    All or nothing: built beside ``out``, read back and compared, then renamed. ``formats``: of ``safetensors``,
    ``adapter``, ``pt2``, ``onnx`` and ``timm``, a list or with commas. ``max_shard_size``: bytes or ``"5GB"``, above
    which ``model.safetensors`` becomes several files; None is no limit. ``force``: replace an earlier output, unless
    something in it was changed or added since; ``discard_changes``: replace it all the same. ``source``: where the
    weights came from, for the report. ``inputs``: files that the output must not touch. A model that was trained
    meanwhile is saved as it is, and the report says so. Raises ``WriteError``, ``VerifyError``, and ``SpliceError`` for
    a block that was taken out by hand.

    >>> save(result, "out", formats=("safetensors", "onnx"))
    """
    read = [Path(p) for p in inputs]
    hashes = digests(injection.model)
    report = trained.up_to_date(injection.report, injection.model, injection.inputs, hashes)
    injection = replace(injection, plan=report.plan, report=report)
    return folder.save(
        injection, Path(out), formats=formats, max_shard_size=max_shard_size, force=force, source=source, inputs=read,
        hashes=hashes, discard_changes=discard_changes,
    )  # fmt: skip


def load(out: str | Path, model: nn.Module | None = None) -> nn.Module:
    """The rewritten model of an output folder, in eval mode.

    ``timm:`` and ``torchvision:`` models are built here; for others pass a fresh base model as ``model``, which is not
    changed. ``modeling.py`` is never imported. Raises ``LoadError``, ``PlanMismatchError``.
    """
    return folder.load(Path(out), independent_copy(model, {}) if model is not None else None)


def save_adapter(
    model: nn.Module, out: str | Path, *, changed: bool = False, force: bool = False, discard_changes: bool = False
) -> None:
    """Write the new weights of a rewritten model alone, for instance after training, with the plan to the folder.

    ``changed``: write tensors of the base that training moved as well (a new head, running statistics); without it
    they are refused, since the adapter would not give the model back. ``force``, ``discard_changes``: as for ``save``.
    Raises ``WriteError``, ``SpliceError``.

    >>> save_adapter(result.model, "adapter")
    """
    adapter.save(unwrap(model), Path(out), changed=changed, force=force, discard_changes=discard_changes)


def load_adapter(model: nn.Module, folder: str | Path, *, inplace: bool = False, strict: bool = True) -> nn.Module:
    """The blocks of an adapter, with their weights, on a fresh base: what ``save_adapter`` or a format wrote.

    ``model``: the base with its original weights, which stays as it was unless ``inplace``; under `absorb` its norms
    are doubled here, once. ``strict``: refuse a base whose tensors are not those of the plan. Raises ``LoadError``,
    ``PlanMismatchError``.

    >>> load_adapter(timm.create_model("resnet18", pretrained=True), "adapter")
    """
    return adapter.load(unwrap(model), Path(folder), inplace=inplace, strict=strict)


__all__ = [
    "Injection", "SEInjectError", "apply", "cost", "gates", "inject", "load", "load_adapter", "plan",
    "read_plan", "remove", "save", "save_adapter",
]  # fmt: skip
