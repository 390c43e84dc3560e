"""``se-inject plan`` and ``se-inject convert``: from a request to a plan, and on to a checked folder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from se_inject.blocks.custom import import_block
from se_inject.commands.files import check_file, existing, write_file
from se_inject.commands.model import Screen, example_inputs, load, read_rules, trusting, without_weights
from se_inject.commands.request import ModelRequest
from se_inject.errors import RulesError
from se_inject.guard import unwrap
from se_inject.injection.inject import realise
from se_inject.injection.plan import Planned, follow_plan, make_plan
from se_inject.models.loading import Loaded
from se_inject.output.atomic import check_output
from se_inject.output.folder import read_plan, save
from se_inject.output.formats import format_names
from se_inject.output.weights import parse_size
from se_inject.rules.schema import Rules
from se_inject.search.explain import Explanation
from se_inject.search.explain import explain as explain_module
from se_inject.types import Plan, Report, dump


def plan(request: ModelRequest, output: Path | None, *, force: bool, screen: Screen) -> Plan:
    """Load the structure, plan, and write the plan on request."""
    if output is not None:
        check_file(output, force, existing(request.weights.checkpoint, request.rules.rules))
    made = _planned(request, screen).plan
    if output is not None:
        write_file(output, dump(made))
    return made


def explain(request: ModelRequest, path: str, *, screen: Screen) -> Explanation:
    """Plan, and show what was seen in one module and decided there."""
    made = _planned(request, screen)
    return explain_module(made.trace, made.found, made.plan.decisions, path)


def _planned(request: ModelRequest, screen: Screen) -> Planned:
    """A plan with the trace that it was made from."""
    rules = read_rules(request.rules)

    def look(loaded: Loaded) -> Planned:
        screen.step("plan")
        return _make(request, loaded, rules)

    return without_weights(request, screen, look)


def _make(request: ModelRequest, loaded: Loaded, rules: Rules) -> Planned:
    model, inputs = unwrap(loaded.model), example_inputs(request, loaded)
    return make_plan(model, inputs, rules, seed=request.seed, name=loaded.spec, model_args=loaded.model_args)


def convert(
    request: ModelRequest,
    output: Path,
    *,
    plan_file: Path | None = None,
    formats: str | Iterable[str] = "safetensors",
    max_shard_size: str | None = None,
    force: bool = False,
    discard_changes: bool = False,
    check: bool = True,
    screen: Screen,
    origin: Mapping[str, Any] | None = None,
) -> Report:
    """Load, plan or read a plan, splice, check, write; ``origin``: what the report says beside their source."""
    wanted, limit = format_names(formats), parse_size(max_shard_size)
    read_files = existing(request.weights.checkpoint, request.rules.rules, plan_file)
    check_output(output, force=force, discard_changes=discard_changes, inputs=read_files)
    given = _followed(request, plan_file) if plan_file else read_rules(request.rules)
    loaded = load(request, screen, weights_needed=True)
    model = unwrap(loaded.model)
    screen.step("plan")
    with trusting(plan_file):
        if isinstance(given, Plan):
            planned = follow_plan(model, example_inputs(request, loaded), given)
        else:
            planned = _make(request, loaded, given)
        injection = realise(model, planned, inplace=True, check=check, progress=screen.step)
        screen.step("write")
        return save(
            injection,
            output,
            formats=wanted,
            max_shard_size=limit,
            force=force,
            discard_changes=discard_changes,
            source={**loaded.source, **(origin or {})},
            inputs=read_files,
            advance=screen.advance,
        )


def _followed(request: ModelRequest, plan_file: Path) -> Plan:
    """The plan in a file, which leaves nothing to rules; a class that it names as a block may be given with it."""
    made, rules = read_plan(plan_file), request.rules
    if ":" in (rules.block or ""):
        import_block(rules.block or "")
        rules = replace(rules, block=None)
    if asked := rules.asked():
        raise RulesError(f"--plan decides everything; {asked[0]} cannot be given with it.")
    return made
