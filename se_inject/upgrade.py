"""Plans and reports of earlier schemas, brought up to the present one: plain data in, plain data out."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

CARRIERS_1 = {"after": "sequential_after", "callee": "wrap_output", "taker": "wrap_input"}
SITES_1 = {"beside": "concat_id", "holds": "gate_on_branch"}
REASONS_1 = ("gated", "gate_on_branch", "obstacle", "absorb_obstacle", "note")  # of a site
# What schema 1 wrote as text alone -> its code; the first that fits the beginning. "{}" is a name, a number, a list.
TEXTS: tuple[tuple[str, str], ...] = (
    ("placement {} is not among", "other-placement"),
    ("placement ", "placement"),
    ("residual block", "residual-block"),
    ("depthwise {} followed by a 1x1 projection", "depthwise-block"),
    ("concatenated branches", "concatenated-branches"),
    ("convolution of a plain chain", "plain-chain"),
    ("already gated by ", "gated"),
    ("auto: the block takes inner", "takes-inner"),
    ("auto: the block around it takes inner", "takes-inner"),
    ("auto: the residual block around it takes standard", "takes-standard"),
    ("auto: the block {}, so it takes standard", "takes-standard"),
    ("auto: it {}, in no residual block", "no-block"),
    ("auto: its branch holds ", "nested"),
    ("auto: its branches hold blocks", "takes-branches"),
    ("auto: layout ", "transformer"),
    ("not included by ", "not-included"),
    ("excluded by ", "excluded"),
    ("class {} is not among", "other-class"),
    ("stage {} is not among", "other-stage"),
    ("{} channels, fewer than", "too-narrow"),
    ("{} channels, more than", "too-wide"),
    ("resolution {}, below", "too-small"),
    ("resolution {}, above", "too-large"),
    ("kernel {} is not among", "other-kernel"),
    ("its convolution is ", "other-depthwise"),
    ("not the last of stage", "not-last"),
    ("every {}: number", "every"),
    ("no entry of sites", "no-entry"),
    ("budget {}: other sites gain more", "over-budget"),
    ("pruned: ", "pruned"),
    ("layout {}; block", "layout"),
    ("block {} cannot start as", "start"),
    ("block {} does not start as the identity", "not-identity"),
    ("block ", "block-fails"),
    ("it has different channels", "channels-vary"),
    ("the channel axis of shape", "axis-unknown"),
    ("the value of shape {} has no batch axis", "no-batch-axis"),
    ("{} and it is such a place in", "other-calls"),
    ("it runs in train mode only", "train-mode-only"),
    ("runs in eval mode only", "eval-mode-only"),
    ("on one path of ", "one-path"),
    ("run on real tensors", "real-run"),
    ("{} takes the value {} times", "taken-twice"),
    ("it is one of several values", "one-of-several"),
    ("Python kept no position", "no-position"),
    ("it is computed inside a function", "helper"),
    ("absorb is not exact in float16", "float16"),
    ("between it and a batch norm", "not-scaling"),
    ("the value before it is used elsewhere", "used-elsewhere"),
    ("other values than the gated one", "other-values"),
    ("no batch norm stands before it", "no-batch-norm"),
    ("it has no channel gate", "no-gate"),
    ("its channel gate did not run", "gate-unused"),
    ("its gate is not one value", "gate-per-position"),
    ("its gate is NaN", "gate-not-finite"),
    ("{} runs it in a loop of torch's own", "torch-loop"),
    ("{} runs the expression more than once", "loop"),
    ("{} runs all its children", "container"),
    ("{} is overridden in ", "overridden"),
    ("{} makes it by a statement", "value-dropped"),
    ("forward is set on the instance", "own-forward"),
    ("{} is parametrized", "parametrized"),
    ("{} is called {} times in one forward", "called-again"),
    ("{} which conversions replace", "replaced"),
    ("{} is not a batch norm with", "not-affine"),
    ("{} has no weight and bias", "not-affine"),
    ("{} shares its weight", "shared-weight"),
    ("{} the source of ", "no-source"),
)
PATTERNS = tuple((re.compile(re.escape(text).replace(r"\{\}", ".*?"), re.DOTALL), code) for text, code in TEXTS)
LONGEST = 2000  # characters that are looked at: a file may hold any text
PREFIX = re.compile("no way to insert: |absorb: ")  # before the text of an obstacle


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
    """Carriers and two fields of a site got other names, reasons a code, inputs became data, the text before a rewrite
    is kept, and the hashes of the files went to ``SHA256SUMS``."""
    if "plan" in data:
        rewritten = {cls: {"before": "", "after": text} for cls, text in data.get("rewritten", {}).items()}
        gates = [{**gate, "note": _reason_from_1(gate.get("note", ""))} for gate in data.get("gates", [])]
        files = [{"path": file["path"], "bytes": file["bytes"]} for file in data.get("artifacts", [])]
        changed = {"plan": upgrade(data["plan"]), "rewritten": rewritten, "gates": gates, "artifacts": files}
        return {**data, "schema": 2, **changed}
    decisions = [
        {**decision, "site": _site_from_1(decision["site"]), "reason": _reason_from_1(decision["reason"])}
        for decision in data["decisions"]
    ]
    notes = [_reason_from_1(note) for note in data.get("notes", [])]
    inputs = _inputs_from_1(**data["inputs"], shaped=bool(data.get("baseline", {}).get("probe")))
    return {**data, "schema": 2, "decisions": decisions, "inputs": inputs, "notes": notes}


def _site_from_1(site: dict[str, Any]) -> dict[str, Any]:
    site = {SITES_1.get(name, name): value for name, value in site.items()}
    if carrier := site.get("carrier"):
        site["carrier"] = {**carrier, "kind": CARRIERS_1.get(carrier["kind"], carrier["kind"])}
    return {name: _reason_from_1(value) if name in REASONS_1 else value for name, value in site.items()}


def _reason_from_1(text: str) -> dict[str, str] | None:
    """Reasons were texts alone, and empty ones stood for none."""
    start = PREFIX.match(text)
    begin = start.end() if start else 0
    found = (code for pattern, code in PATTERNS if pattern.match(text, begin, begin + LONGEST))
    return {"code": next(found, "other"), "text": text} if text else None


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
