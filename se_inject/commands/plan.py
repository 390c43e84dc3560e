"""``se-inject plan``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from se_inject.commands.outputs import check_file, read_by, write_file
from se_inject.commands.request import inputs_from, rules_from, without_weights
from se_inject.commands.screen import Screen
from se_inject.guard import unwrap
from se_inject.injection.plan import Planned, make_plan
from se_inject.models.loading import Loaded
from se_inject.search.explain import Explanation
from se_inject.search.explain import explain as explain_module
from se_inject.types import Plan, dump


def plan(spec: str, given: Mapping[str, Any], output: Path | None, *, force: bool, screen: Screen) -> Plan:
    """Load the structure, plan, and write the plan on request."""
    if output is not None:
        check_file(output, force, read_by(given, "checkpoint", "rules"))
    made = planned(spec, given, screen=screen).plan
    if output is not None:
        write_file(output, dump(made))
    return made


def explain(spec: str, given: Mapping[str, Any], path: str, *, screen: Screen) -> Explanation:
    """Plan, and show what was seen in one module and decided there."""
    made = planned(spec, given, screen=screen)
    return explain_module(made.trace, made.found, made.plan.decisions, path)


def planned(spec: str, given: Mapping[str, Any], *, screen: Screen) -> Planned:
    """A plan with the trace that it was made from."""
    rules = rules_from(given)

    def look(loaded: Loaded) -> Planned:
        screen.step("plan")
        model, args = unwrap(loaded.model), loaded.model_args
        return make_plan(model, inputs_from(given, loaded), rules, seed=given["seed"], name=spec, model_args=args)

    return without_weights(spec, given, screen, look)
