"""Plans and reports of earlier schemas, brought up to the present one: plain data in, plain data out."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

CARRIERS_1 = {"after": "sequential_after", "callee": "wrap_output", "taker": "wrap_input"}
SITES_1 = {"beside": "concat_id", "holds": "gate_on_branch"}


def upgrade(data: Any) -> Any:
    """A plan or report of an earlier schema in the present one; anything else as it is.

    Raises ``ValueError`` when it is malformed.
    """
    if not isinstance(data, dict) or type(data.get("schema")) is not int or data["schema"] not in STEPS:
        return data
    try:
        return upgrade(STEPS[data["schema"]](data))
    except (AttributeError, IndexError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"schema {data['schema']}, and not as that says ({type(error).__name__}: {error})") from error


def _from_1(data: dict[str, Any]) -> dict[str, Any]:
    """Carriers and two fields of a site got other names, inputs became data, and the text before a rewrite is kept."""
    if "plan" in data:
        rewritten = {cls: {"before": "", "after": text} for cls, text in data.get("rewritten", {}).items()}
        return {**data, "schema": 2, "plan": upgrade(data["plan"]), "rewritten": rewritten}
    decisions = [{**decision, "site": _site_from_1(decision["site"])} for decision in data["decisions"]]
    inputs = _inputs_from_1(**data["inputs"], shaped=bool(data.get("baseline", {}).get("probe")))
    return {**data, "schema": 2, "decisions": decisions, "inputs": inputs}


def _site_from_1(site: dict[str, Any]) -> dict[str, Any]:
    site = {SITES_1.get(name, name): value for name, value in site.items()}
    if carrier := site.get("carrier"):
        site["carrier"] = {**carrier, "kind": CARRIERS_1.get(carrier["kind"], carrier["kind"])}
    return site


def _inputs_from_1(args: list[Any], kwargs: dict[str, Any], shaped: bool) -> dict[str, Any]:
    """Inputs were nested data with ``float32[2, 3, 224, 224]`` for a tensor; ``shaped``: made from a shape."""
    arguments = [leaf for part in (dict(enumerate(args)), kwargs) for leaf in _arguments_from_1("", part)]
    if not shaped:
        return {"arguments": arguments}
    kind = "pair" if len(args) == 2 else "list" if isinstance(args[0], list) else "batch"
    shape = arguments[0]["shape"]
    return {"kind": kind, "shape": shape if kind == "list" else shape[1:], "arguments": arguments}


def _arguments_from_1(path: str, value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _arguments_from_1(f"{path}.{key}" if path else str(key), item)
    elif isinstance(value, str) and (tensor := re.fullmatch(r"(\w+)\[([\d, ]*)\]", value)):
        yield {"path": path, "dtype": tensor[1], "shape": [int(n) for n in re.findall(r"\d+", tensor[2])]}
    else:
        yield {"path": path, "value": value}


STEPS = {1: _from_1}  # schema -> what brings its data to the next one
