"""``se-inject convert``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from se_inject.blocks.custom import import_block
from se_inject.commands.folder import trusting
from se_inject.commands.outputs import read_by
from se_inject.commands.request import RULE_OPTIONS, inputs_from, load, rules_from
from se_inject.commands.screen import Screen
from se_inject.errors import RulesError
from se_inject.guard import unwrap
from se_inject.injection.inject import realise
from se_inject.injection.plan import follow_plan, make_plan
from se_inject.output import folder as store
from se_inject.output.atomic import check_output
from se_inject.output.formats import format_names
from se_inject.output.weights import parse_size
from se_inject.types import Report


def convert(
    spec: str,
    given: Mapping[str, Any],
    output: Path,
    *,
    formats: str,
    max_shard_size: str | None,
    force: bool,
    check: bool,
    screen: Screen,
    origin: Mapping[str, Any] | None = None,
) -> Report:
    """Load, plan or read a plan, splice, check, write; ``origin`` is told beside where the weights are from."""
    wanted, limit = format_names(formats), parse_size(max_shard_size)
    read_files = read_by(given, "checkpoint", "rules", "plan_file")
    check_output(output, force=force, inputs=read_files)
    rules = None if given["plan_file"] else rules_from(given)
    plan_read = store.read_plan(given["plan_file"]) if given["plan_file"] else None
    if plan_read is not None and ":" in (given["block"] or ""):
        import_block(given["block"])  # a class that the plan names
        given = {**given, "block": None}
    if plan_read is not None and (named := [k for k in RULE_OPTIONS if given[k]]):
        raise RulesError(f"--plan decides everything; --{named[0].replace('_', '-')} cannot be given with it.")
    loaded = load(spec, given, screen, weights_needed=True)
    model = unwrap(loaded.model)
    screen.step("plan")
    inputs = inputs_from(given, loaded)
    with trusting(given["plan_file"]):
        if plan_read is not None:
            planned = follow_plan(model, inputs, plan_read)
        else:
            planned = make_plan(model, inputs, rules, seed=given["seed"], name=spec, model_args=loaded.model_args)
        injection = realise(model, planned, inplace=True, check=check, progress=screen.step)
        screen.step("write")
        return store.save(
            injection,
            output,
            formats=wanted,
            max_shard_size=limit,
            force=force,
            source={**loaded.source, **(origin or {})},
            inputs=read_files,
            advance=screen.advance,
        )
