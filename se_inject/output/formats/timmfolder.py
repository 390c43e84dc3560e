"""``timm/``: a folder that ``timm.create_model("local-dir:out/timm", pretrained=True)`` loads, without any of our code.

It is for models whose timm architecture has a place for the block and an argument that fills it. timm's gates are
plain sigmoids. The start `identity` has gates of twice a sigmoid, x · 2 · sigmoid(f(x)). With the norm before the gate
doubled, and the first layer of f halved, a plain gate gives the same values exactly: factors of two round nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from se_inject.blocks import BLOCKS, find_block
from se_inject.checks import reference
from se_inject.checks.outputs import against_outputs, same
from se_inject.errors import WriteError, first_line
from se_inject.inputs import Inputs
from se_inject.output.formats.child import run_in_child
from se_inject.output.formats.subject import Content, Format, Subject, unlogged
from se_inject.output.weights import WHOLE, weights_files
from se_inject.random_state import forked_rng
from se_inject.trace.skeleton import share, skeleton
from se_inject.types import Check, Decision, Plan

FOLDER = "timm"
CONFIG = f"{FOLDER}/config.json"
CHECK = "timm"
NO_INPUTS = "not loaded: there are no inputs to run it on"
LOAD = "import timm; call = timm.create_model('local-dir:' + path, pretrained=True).eval()"
GIVEN = ("channels", "rd_channels", "kernel_size", "gain", "zero_init")  # arguments that shapes and weights tell
# What of the library's own description of the weights is passed on
DESCRIPTION = ("input_size", "fixed_input_size", "pool_size", "interpolation", "crop_pct", "crop_mode", "mean", "std",
               "first_conv", "classifier", "license")  # fmt: skip


def _squeeze_ratio(decision: Decision) -> dict[str, Any]:
    if decision.block != "se":
        raise _refusal("timm's RegNet takes no other block than se")
    return {"se_ratio": decision.kwargs["rd_channels"] / decision.site.block_channels}


def _attention_layer(decision: Decision) -> dict[str, Any]:
    arguments: dict[str, Any] = {"attn_layer": decision.block}
    if "rd_channels" in decision.kwargs:
        arguments["attn_kwargs"] = {"rd_ratio": decision.kwargs["rd_channels"] / decision.kwargs["channels"]}
    return arguments


# class of a timm model -> the arguments that fill its places. Whether they do is found by building it.
SLOTS: dict[str, Callable[[Decision], dict[str, Any]]] = {
    "ResNet": lambda decision: {"block_args": {"attn_layer": decision.block}},
    "RegNet": _squeeze_ratio,
    "VovNet": lambda decision: {"attn": decision.block},
    "ByobNet": _attention_layer,
}


def write(subject: Subject) -> Mapping[str, Content]:
    """``config.json`` with the arguments, and the weights under timm's names."""
    plan = subject.plan
    name = _architecture(plan)
    arguments = {**plan.model_args, **_arguments(subject)}
    theirs = _build(name, arguments)
    names = _names(subject, theirs, name)
    state = _folded(subject.whole.state_dict(), plan)
    _require_shapes(state, names, theirs)
    _require_same(subject, theirs, names)
    described = getattr(subject.base, "pretrained_cfg", None) or {}
    config = {
        "architecture": name,
        "num_classes": getattr(theirs, "num_classes", None),
        "num_features": getattr(theirs, "num_features", None),
        "model_args": arguments,
        "pretrained_cfg": {key: described[key] for key in DESCRIPTION if described.get(key) is not None}
        | {"num_classes": getattr(theirs, "num_classes", None), "custom_load": False},
    }
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    renamed = {names.get(key, key): tensor for key, tensor in state.items()}
    return {
        CONFIG: text.encode(),
        f"{FOLDER}/{WHOLE}": weights_files(renamed, advance=subject.advance)[WHOLE],
    }


def check(folder: Path, subject: Subject) -> Check:
    """What timm makes of the folder that was just written, against the model."""
    import timm

    with unlogged("timm"):
        try:
            loaded = timm.create_model(f"local-dir:{folder / FOLDER}", pretrained=True)
        except Exception as error:  # of timm, whatever a file makes it meet
            return Check(CHECK, False, f"timm does not load the folder: {first_line(error)}", "fails")
    if subject.inputs is None:
        return Check(CHECK, None, NO_INPUTS, "nothing-to-compare")
    got = reference.run_forward(loaded, _probe(subject, subject.inputs), False, subject.plan.seed)
    if got.failure:
        return Check(CHECK, False, f"timm loads the folder, and it does not run: {got.failure}", "fails")
    return _compared(got.outputs, subject)


def inspect(folder: Path, subject: Subject) -> Check:
    """A folder of earlier, in a process with limits, since its ``config.json`` says how large a net timm builds;
    against the model, or against the outputs that the plan remembers."""
    if foreign := sorted({p.name for p in (folder / FOLDER).iterdir()} - {"config.json", WHOLE}):
        return Check(CHECK, False, f"{FOLDER} holds {foreign[0]!a}, which is not ours; not loaded", "foreign")
    if subject.inputs is None:
        return Check(CHECK, None, NO_INPUTS, "nothing-to-compare")
    outputs, failure, _ = run_in_child(folder / FOLDER, LOAD, [(None, _probe(subject, subject.inputs))])
    if failure:
        return Check(CHECK, False, f"timm does not load and run the folder: {failure}", "fails")
    if subject.model is None:
        return against_outputs(CHECK, outputs[0], subject.plan)
    return _compared(outputs[0], subject)


def _probe(subject: Subject, inputs: Inputs) -> Inputs:
    return reference.shrink(subject.model, inputs, subject.plan.seed) if subject.model is not None else inputs


def _compared(outputs: Sequence[torch.Tensor], subject: Subject) -> Check:
    assert subject.inputs is not None
    want = reference.run_forward(subject.whole, _probe(subject, subject.inputs), False, subject.plan.seed)
    equal = len(want.outputs) == len(outputs) and all(map(same, want.outputs, outputs))
    detail = f"timm.create_model loads the folder, outputs {'bit-equal' if equal else 'differ'}"
    return Check(CHECK, equal, detail, "" if equal else "differs")


def _refusal(why: str) -> WriteError:
    return WriteError(f"format timm: {why}. Leave it out; modeling.py rebuilds any model.")


def _architecture(plan: Plan) -> str:
    library, _, name = plan.model.partition(":")
    if library != "timm" or not name or ":" in name:
        raise _refusal(f"{plan.model} is not built by timm")
    return name.partition(".")[0]  # without the tag of its weights


def _arguments(subject: Subject) -> dict[str, Any]:
    """Arguments of the architecture that put the plan's blocks in, as far as the plan alone can tell."""
    first, *others = subject.plan.insertions
    kind = type(subject.base).__name__
    if kind not in SLOTS:
        raise _refusal(f"timm's {kind} takes no argument that puts blocks in ({', '.join(SLOTS)} do)")
    if other := next((d for d in others if d.block != first.block), None):
        raise _refusal(
            f"{first.key} is {first.block}, {other.key} is {other.block}; timm takes one kind for all places"
        )
    timm = find_block(first.block).timm
    if timm is None:
        built = ", ".join(name for name, block in BLOCKS.items() if block.timm)
        raise _refusal(f"timm has no block {first.block!r} ({built})")
    defaults = timm.arguments
    for decision in subject.plan.insertions:
        rest = {key: value for key, value in decision.kwargs.items() if key not in GIVEN}
        if odd := sorted(key for key in rest.keys() | defaults.keys() if rest.get(key) != defaults.get(key)):
            raise _refusal(f"{decision.key} has {odd[0]}={rest.get(odd[0])!r}, timm's {first.block} another")
    if any(t.is_floating_point() and t.dtype != torch.float32 for t in subject.whole.state_dict().values()):
        raise _refusal("timm builds float32 models, and this one is not")
    widest = max(subject.plan.insertions, key=lambda decision: decision.site.channels)  # where rounding moves least
    return SLOTS[kind](widest)


def _build(name: str, arguments: dict[str, Any]) -> nn.Module:
    import timm

    try:
        with unlogged("timm"), torch.random.fork_rng(devices=[]):
            return timm.create_model(name, **arguments)
    except Exception as error:  # a constructor raises whatever it meets
        raise _refusal(f"timm does not build {name} with {arguments}: {first_line(error)}") from error


def _names(subject: Subject, theirs: nn.Module, name: str) -> dict[str, str]:
    """Our name -> timm's, for the tensors of blocks that timm calls otherwise."""
    assert subject.base is not None
    old = {path for path, module in subject.base.named_modules() if any(True for _ in module.parameters())}
    new = {path for path, module in theirs.named_modules() if any(True for _ in module.parameters())} - old
    places = {path.rpartition(".")[0]: path for path in new if path.rpartition(".")[0] not in new}
    ours = {decision.key.rpartition(".")[0]: decision.key for decision in subject.plan.insertions}
    if left := sorted(places.keys() - ours.keys()):
        raise _refusal(f"{name} fills every place of its kind, and the plan has no block in {left[0]}")
    if more := sorted(ours.keys() - places.keys()):
        raise _refusal(f"{name} has no place for a block in {more[0]}, where the plan puts one")
    renamed = {}
    for key in subject.whole.state_dict():
        for parent, path in ours.items():
            if key.startswith(f"{path}."):
                renamed[key] = places[parent] + key.removeprefix(path)
    return renamed


def _folded(state: Mapping[str, torch.Tensor], plan: Plan) -> dict[str, torch.Tensor]:
    """The weights with which plain gates compute what those of the plan do."""
    folded = dict(state)
    norms: set[str] = set()
    for decision in plan.insertions:
        if decision.kwargs.get("gain", 1.0) == 1.0:
            continue
        timm = find_block(decision.block).timm
        norm, first = decision.site.absorb, timm.linear if timm else ""
        if not norm or norm in norms or not first:
            why = decision.site.absorb_obstacle or ("a block of this kind" if not first else "its norm is not its own")
            raise _refusal(f"the gate of {decision.key} is twice timm's, and no norm can take the factor over ({why})")
        norms.add(norm)
        for name, factor in ((f"{norm}.weight", 2.0), (f"{norm}.bias", 2.0), (f"{decision.key}.{first}", 0.5)):
            folded[name] = state[name].detach() * factor
    return folded


def _require_shapes(state: Mapping[str, torch.Tensor], names: Mapping[str, str], theirs: nn.Module) -> None:
    ours = {names.get(key, key): list(tensor.shape) for key, tensor in state.items()}
    wanted = {key: list(tensor.shape) for key, tensor in theirs.state_dict().items()}
    for key in sorted(ours.keys() | wanted.keys()):
        if ours.get(key) != wanted.get(key):
            raise _refusal(f"{key} is {wanted.get(key, 'not there')} in timm, {ours.get(key, 'not there')} in the plan")


def _require_same(subject: Subject, theirs: nn.Module, names: Mapping[str, str]) -> None:
    """Refuse unless both compute the same with open gates: with new gates any wiring would look right."""
    if subject.inputs is None:
        raise _refusal("there are no inputs to compare the two models on")
    seed = subject.plan.seed
    ours = skeleton(subject.whole, keep=share)
    with forked_rng(seed):
        for decision in subject.plan.insertions:
            for module in ours.get_submodule(decision.key).modules():
                for name, parameter in module.named_parameters(recurse=False):
                    setattr(module, name, nn.Parameter(torch.randn_like(parameter)))
    state = _folded(ours.state_dict(), subject.plan)
    theirs.load_state_dict({names.get(key, key): tensor for key, tensor in state.items()})
    probe = reference.shrink(ours, subject.inputs, seed)
    want, got = reference.run_forward(ours, probe, False, seed), reference.run_forward(theirs, probe, False, seed)
    if want.failure or got.failure or not all(map(same, want.outputs, got.outputs)):
        raise _refusal(f"timm's model computes something else ({got.failure or 'other outputs with open gates'})")


FORMAT = Format("a folder for timm.create_model", (CONFIG,), write, check, inspect)
