"""What each command does, from its options to a result; the command line parses before and prints after."""

from __future__ import annotations

import contextlib
import fnmatch
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from se_inject import api
from se_inject.blocks.custom import import_block
from se_inject.checks import baseline
from se_inject.checks import verify as checking
from se_inject.checks.measure import measure
from se_inject.errors import LoadError, PlanMismatchError, RulesError, SEInjectError, TraceError, WriteError
from se_inject.files import store
from se_inject.files.tensorfile import tensors_writer
from se_inject.files.write import check_output, write
from se_inject.guard import unwrap
from se_inject.models.factories import one_line
from se_inject.models.loading import Loaded, blocked_globals, load_model, parse_model_args
from se_inject.rules.schema import read
from se_inject.search.explain import Explanation
from se_inject.search.explain import explain as explain_module
from se_inject.search.inputs import Inputs, dtype_of, from_shape
from se_inject.types import Check, Plan, Report, SiteCost


class Screen(Protocol):
    """Where progress and warnings go."""

    def step(self, name: str) -> None: ...

    def warn(self, text: str) -> None: ...


def convert(spec: str, given: Mapping[str, Any], output: Path, *, force: bool, check: bool, screen: Screen) -> Report:
    """Load, plan or read a plan, splice, check, write."""
    read_files = _read_by(given, "checkpoint", "rules", "plan_file")
    check_output(output, force=force, inputs=read_files)
    rules = None if given["plan_file"] else rules_from(given)
    plan_read = store.read_plan(given["plan_file"]) if given["plan_file"] else None
    if plan_read is not None and ":" in (given["block"] or ""):
        import_block(given["block"])  # a class that the plan names
        given = {**given, "block": None}
    if plan_read is not None and (named := [k for k in RULE_OPTIONS if given[k]]):
        raise RulesError(f"--plan decides everything; --{named[0].replace('_', '-')} cannot be given with it.")
    loaded = _load(spec, given, screen, weights_needed=True)
    model = unwrap(loaded.model)
    screen.step("plan")
    inputs = _input_size(given["input_size"], loaded)
    with _trusting(given["plan_file"]):
        if plan_read is not None:
            planned = api.follow_plan(model, inputs, plan_read)
        else:
            planned = api.make_plan(model, inputs, rules, seed=given["seed"], name=spec, model_args=loaded.model_args)
        injection = api.realise(model, planned, inplace=True, check=check, progress=screen.step)
        screen.step("write")
        return store.save(injection, output, force=force, source=loaded.source, inputs=read_files)


@contextlib.contextmanager
def _trusting(path: Path | None) -> Iterator[None]:
    """What is read from ``path`` has the right types, but an edited file may hold any value in them."""
    try:
        yield
    except SEInjectError:
        raise
    except Exception as error:
        if path is None:
            raise
        raise PlanMismatchError(
            f"{path} was edited, or is not for this model: {one_line(error)}. Make the plan again."
        ) from error


def plan(spec: str, given: Mapping[str, Any], output: Path | None, *, force: bool, screen: Screen) -> Plan:
    """Load the structure, plan, and write the plan on request."""
    if output is not None:
        _check_file(output, force, _read_by(given, "checkpoint", "rules"))
    made = planned(spec, given, screen=screen).plan
    if output is not None:
        _write_file(output, api.dump(made))
    return made


def explain(spec: str, given: Mapping[str, Any], path: str, *, screen: Screen) -> Explanation:
    """Plan, and show what was seen in one module and decided there."""
    made = planned(spec, given, screen=screen)
    return explain_module(made.trace, made.found, made.plan.decisions, path)


def planned(spec: str, given: Mapping[str, Any], *, screen: Screen) -> api.Planned:
    """A plan with the trace that it was made from."""
    rules = rules_from(given)
    loaded = _load(spec, given, screen, weights_needed=False)
    screen.step("plan")

    def make() -> api.Planned:
        size = _input_size(given["input_size"], loaded)
        model, args = unwrap(loaded.model), loaded.model_args
        return api.make_plan(model, size, rules, seed=given["seed"], name=spec, model_args=args)

    try:
        return make()
    except TraceError:
        if loaded.source["weights"] != "none":
            raise
        # The forward needs numbers (NMS, data-dependent shapes): random weights will do for a plan.
        loaded = _load(spec, {**given, "random_init": True}, screen, weights_needed=False)
        return make()


def _read_by(given: Mapping[str, Any], *names: str) -> list[Path]:
    """The files among these options; rules may also be the name of a preset."""
    return [Path(given[name]) for name in names if given[name] is not None and Path(given[name]).exists()]


def _check_file(output: Path, force: bool, inputs: Iterable[Path]) -> None:
    if output.is_dir():
        raise WriteError(f"{output} is a folder; give a file in it, such as {output / store.PLAN}.")
    if not output.parent.is_dir():
        raise WriteError(f"cannot write {output}: there is no folder {output.parent}.")
    if any(output.exists() and path.samefile(output) for path in inputs):
        raise WriteError(f"output {output} is an input of this run; choose another file.")
    if output.exists() and not force:
        raise WriteError(f"{output} exists; choose another file, or replace it with --force.")


def _write_file(output: Path, text: str) -> None:
    """All or nothing, as a folder is written."""
    new = output.with_name(f".{output.name}.{os.getpid()}.new")
    try:
        new.write_bytes(text.encode())  # the same bytes under every locale
        new.replace(output)
    except OSError as error:
        raise WriteError(f"cannot write {output}: {error.strerror}.") from error
    finally:
        new.unlink(missing_ok=True)


def verify(folder: Path, spec: str | None, model_arg: Iterable[str], *, screen: Screen) -> tuple[Check, ...]:
    """Check an output folder by itself: against the hashes, the probe and the figures that it carries."""
    screen.step("load")
    report = read_report(folder)
    with _trusting(folder):
        model, made = _open(folder, spec, model_arg)
        return _verify(folder, report, model, made, screen)


def _verify(folder: Path, report: Report, model: nn.Module, made: Plan, screen: Screen) -> tuple[Check, ...]:
    screen.step("checks")
    checks = [_files(folder, report)]
    if not made.baseline.tensors:
        reason = "the folder was written without checks (--no-verify)"
        return (*checks, Check("keys", None, reason), Check("outputs (eval)", None, reason))
    probe = inputs_of(made, model)
    checks.append(checking.keys(made.baseline.tensors, model, made))
    checks.append(checking.against_baseline(model, probe, made))
    if probe is not None:
        checks.append(checking.reached(model, probe, made))
    measured = measure(model, _size(made), [d.key for d in made.insertions]) if _size(made) else None
    if measured is not None:
        sites = tuple(
            SiteCost(d.site.id, c.parameters, c.macs, c.elementwise, c.activation_bytes)
            for d in made.insertions
            for c in [measured.by_module[d.key]]
        )
        checks.append(checking.overhead(report.before, measured.cost, sites))
    return tuple(checks)


def inputs_of(made: Plan, model: nn.Module) -> Inputs | None:
    """The probe of a plan: seeded noise of the size that it names."""
    shape = made.baseline.probe
    return from_shape(tuple(shape), dtype_of(model), made.seed) if shape else None


def _size(made: Plan) -> tuple[int, ...] | None:
    """The input size for which the costs were counted, if it was given as a shape."""
    args = made.inputs.get("args", []) if isinstance(made.inputs, dict) else []
    if len(args) != 1 or not isinstance(args[0], str) or "[" not in args[0] or not made.baseline.probe:
        return None
    return tuple(int(n) for n in args[0].partition("[")[2].rstrip("]").split(","))[1:]


def _files(folder: Path, report: Report) -> Check:
    import hashlib

    for artifact in report.artifacts:
        path = folder / artifact.path
        if not path.is_file():
            return Check("files", False, f"{artifact.path} is missing")
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != artifact.sha256:
                return Check("files", False, f"{artifact.path} is not the file that was written")
    return Check("files", True, f"{len(report.artifacts)} files have the hashes of the report")


def require(checks: tuple[Check, ...]) -> None:
    checking.require(checks)


def remove(
    folder: Path, output: Path, spec: str | None, model_arg: Iterable[str], *, force: bool, screen: Screen
) -> dict[str, Any]:
    """Write the base model's weights from an output folder."""
    files = [folder / name for name in (store.TENSORS, store.PLAN)]
    check_output(output, force=force, inputs=files)
    screen.step("load")
    with _trusting(folder):
        model, made = _open(folder, spec, model_arg)
        screen.step("remove")
        base = api.remove(model, inplace=True)
    state = base.state_dict()
    same = sum(baseline.digest(t) == made.baseline.tensors.get(name) for name, t in state.items())
    write(output, {store.TENSORS: tensors_writer(state)}, force=force, inputs=files)
    total = len(state)
    known = (
        f"{same} of {total} tensors have the hashes of the original" if made.baseline.tensors else f"{total} tensors"
    )
    return {
        "output": str(output),
        "removed": len(made.insertions),
        "tensors": total,
        "identical": same,
        "summary": f"{len(made.insertions)} blocks removed; {known}; written {output / store.TENSORS}",
    }


def _open(folder: Path, spec: str | None, model_arg: Iterable[str]) -> tuple[nn.Module, Plan]:
    made = store.read_plan(folder / store.PLAN) if folder.is_dir() else None
    if made is None:
        raise LoadError(f"{folder} is not a folder written by se_inject.")
    base = None
    if spec is not None:
        args = {**made.model_args, **parse_model_args(model_arg)}
        base = load_model(spec, model_args=args, random_init=True, allow_factory=True).model
    return store.load(folder, base), made


def read_report(folder: Path) -> Report:
    from se_inject.report.formats import from_json

    path = folder / store.REPORT
    if not path.is_file():
        raise LoadError(f"{folder} is not a folder written by se_inject: it has no {store.REPORT}.")
    return from_json(path.read_text())


def render(folder: Path, kind: str) -> str:
    from se_inject.report import formats as renderers

    found = read_report(folder)
    if kind == "html":
        from se_inject.report.html.page import to_html

        return to_html(found)
    return {"md": renderers.to_markdown, "json": renderers.to_json}[kind](found)


def write_report(folder: Path, kind: str, output: Path, *, force: bool) -> None:
    """The rendered report as a file of its own."""
    _check_file(output, force, [folder / name for name in (store.REPORT, store.PLAN, store.TENSORS)])
    _write_file(output, render(folder, kind))


def listing(what: str, pattern: str) -> list[dict[str, str]]:
    """Rows of ``se-inject list``."""
    if what == "placements":
        from se_inject.search.placements import PLACEMENTS

        rows = [{"placement": "auto", "where": "inner for depthwise blocks, standard for other residual blocks"}]
        return rows + [{"placement": n, "where": " ".join((p.__doc__ or "").split())} for n, p in PLACEMENTS.items()]
    if what == "presets":
        from se_inject.rules.presets import PRESETS

        return [{"preset": name, "selects": p.selects, "paper": p.paper} for name, p in PRESETS.items()]
    if what == "rules":
        from se_inject.rules.schema import FIELDS

        return [{"key": name, "what": f.doc} for name, f in FIELDS.items()]
    if what == "blocks":
        from se_inject.blocks import BLOCKS

        return [
            {
                "block": name,
                "layouts": ", ".join(block.layouts),
                "starts": ", ".join(block.inits),
                "options": ", ".join(block.options),
                "paper": block.paper,
            }
            for name, block in BLOCKS.items()
        ]
    from se_inject.models.zoos import known_models

    names = [name for name in known_models() if fnmatch.fnmatch(name, pattern) or fnmatch.fnmatch(name, f"*:{pattern}")]
    if not names:
        raise LoadError(f"no model is called {pattern!r}; patterns are globs, such as '*resnet50*'.")
    return [{"model": name} for name in names]


LARGEST_INPUT = 1 << 28  # values of one sample: 1 GiB

RULE_OPTIONS = (
    "rules", "placement", "block", "block_arg", "ratio", "init", "include", "exclude", "min_channels", "stages",
    "budget", "again",
)  # fmt: skip


def rules_from(given: Mapping[str, Any]) -> Any:
    """Rules from a file, with the options of the command line over it."""
    rules = read(given["rules"])
    block = dict(rules.block)
    if given["block"]:
        block = {"name": given["block"]}
    block |= parse_model_args(given["block_arg"], "--block-arg", "gate=hardsigmoid")
    changes: dict[str, Any] = {"block": block} if block else {}
    for name in ("placement", "ratio", "init", "include", "exclude", "min_channels", "again"):
        if given[name]:
            changes[name] = given[name]
    if given["budget"]:
        changes["budget"] = dict(part.partition("=")[::2] for part in given["budget"].split(","))
    if given["stages"]:
        changes["stages"] = _numbers(given["stages"], "--stages", "3,4")
    checked = read(dict(changes))  # the same checks as for a file
    return replace(rules, **{name: getattr(checked, name) for name in changes})


def _numbers(text: str, option: str, example: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 1:
        raise RulesError(f"{option} {text!r}: expected whole numbers above 0, such as {option} {example}.")
    return numbers


def _input_size(text: str | None, loaded: Loaded) -> tuple[int, ...] | None:
    if not text:
        return loaded.input_size
    size = _numbers(text, "--input-size", "3,224,224")
    if math.prod(size) > LARGEST_INPUT:
        raise RulesError(f"--input-size {text}: {math.prod(size):,} values, more than {LARGEST_INPUT:,}.")
    return size


def _load(spec: str, given: Mapping[str, Any], screen: Screen, *, weights_needed: bool) -> Loaded:
    screen.step("load")
    if given["allow_pickle"] and given["checkpoint"] is not None:
        names = blocked_globals(given["checkpoint"])
        if names:
            screen.warn(f"--allow-pickle: {given['checkpoint'].name} runs {', '.join(names)}")
    torch.manual_seed(given["seed"])  # random weights come from the global generator
    return load_model(
        spec,
        model_args=parse_model_args(given["model_arg"]),
        pretrained=given["pretrained"],
        checkpoint=given["checkpoint"],
        random_init=given["random_init"],
        allow_missing=given["allow_missing"],
        allow_factory=True,
        allow_pickle=given["allow_pickle"],
        ema=given["ema"],
        weights_needed=weights_needed,
    )
