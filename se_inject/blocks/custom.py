"""A block that is a class of the user's own: ``register_block(Cls)``, then its name is as good as any other.

Names in files import nothing: a rules file or a plan may name such a block only after it was registered. The Python
API and the options of the command line may name ``pkg.mod:Cls`` directly, which imports and registers it.
"""

from __future__ import annotations

import functools
import inspect
import json
from typing import Any

import torch
from torch import nn

from se_inject.blocks.block import Block
from se_inject.blocks.table import BLOCKS, REGISTERED
from se_inject.errors import LoadError, RulesError, one_line
from se_inject.importing import find
from se_inject.types import BlockSpec, Reason, Site

SIDE = 9  # of the map on which a block is tried


def register_block(cls: type[nn.Module], name: str = "") -> str:
    """Make a class known as a block, and return its name: ``pkg.mod:Cls`` unless given.

    ``cls``: an ``nn.Module`` whose first constructor argument is the number of channels, and whose output has the
    shape of its input. Its other arguments are the options that rules may set; they must be plain data. A name
    registered before is replaced. Raises ``RulesError`` for what cannot be a block.

    >>> register_block(MyAttention)
    'my_package.attention:MyAttention'
    """
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise RulesError(f"block: expected an nn.Module class, found {cls!r}.")
    name = name or f"{cls.__module__}:{cls.__qualname__}"
    if name in BLOCKS:
        raise RulesError(f"block {name!r} is of the table; give yours another name.")
    parameters = [p for p in inspect.signature(cls).parameters.values() if p.kind not in (p.VAR_KEYWORD,)]
    if not parameters or parameters[0].kind not in (inspect.Parameter.POSITIONAL_OR_KEYWORD,):
        raise RulesError(f"block {name}: the first argument of its constructor must be the number of channels.")
    channels = parameters[0].name
    options = {p.name: "" for p in parameters[1:] if p.kind is not p.VAR_POSITIONAL}

    def resolve(site: Site, init: str, given: dict[str, Any]) -> dict[str, Any]:
        try:
            plain = json.loads(json.dumps(given, allow_nan=False)) == given
        except (TypeError, ValueError):
            plain = False
        if not plain:
            raise ValueError(f"options must be plain data (numbers, strings, lists), as a plan holds them: {given!r}")
        return {channels: site.channels, **given}

    def refusal(site: Site, init: str, kwargs: dict[str, Any]) -> Reason | None:
        shape = tuple(2 if i == 0 else n if i == site.axis else min(n, SIDE - i) for i, n in enumerate(site.shape))
        kind: Any = cls  # as a key, which mypy denies classes with __hash__ of their own
        failure, moved = _tried(kind, json.dumps(kwargs, sort_keys=True), shape)
        if failure:
            return Reason("block-fails", f"block {name}: {failure}")
        if init == "identity" and moved:
            text = f"does not start as the identity (it moves its input by {moved:.3g}); init paper takes it"
            return Reason("not-identity", f"block {name} {text}")
        return None

    doc = (inspect.getdoc(cls) or "").partition("\n")[0]
    REGISTERED[name] = Block(cls, resolve, options, doc, (), ("identity", "paper"), refusal=refusal)
    return name


@functools.cache
def _tried(cls: Any, arguments: str, shape: tuple[int, ...]) -> tuple[str, float]:
    """The block built and run once on a small map: why it cannot be one, and how far it moves its input."""
    what = f"{cls.__name__}({', '.join(f'{k}={v!r}' for k, v in json.loads(arguments).items())})"
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.default_generator.manual_seed(0)
        x = torch.randn(shape)
        given = x.clone()
        try:
            y = cls(**json.loads(arguments)).eval()(given)
        except Exception as error:  # foreign code may raise anything
            return f"{what} fails on shape {list(shape)} with {one_line(error)}", 0.0
    if not isinstance(y, torch.Tensor) or y.shape != x.shape or y.dtype != x.dtype:
        found = f"{y.dtype} {list(y.shape)}" if isinstance(y, torch.Tensor) else type(y).__name__
        return f"{what} returns {found} for {x.dtype} {list(shape)}; a block keeps shape and type", 0.0
    if not torch.equal(given, x):
        return f"{what} writes into its input, which others may still read", 0.0
    return "", 0.0 if torch.equal(x, y) else (x - y).abs().max().item() or float("nan")


def import_block(name: str) -> str:
    """Import ``pkg.mod:Cls`` and register it. Raises ``RulesError`` that says what could not be found."""
    module, _, attribute = name.partition(":")
    try:
        return register_block(find(name, module, attribute), name)
    except LoadError as error:
        raise RulesError(f"block {error}") from error


def named(rules: dict[str, Any]) -> dict[str, Any]:
    """Rules with every block as plain data; classes are registered, and ``pkg.mod:Cls`` is imported.

    Only for rules that the caller wrote as a dict, never for what was read from a file.
    """
    changed = dict(rules)
    if "block" in changed:
        changed["block"] = _named(changed["block"])
    if isinstance(entries := changed.get("sites"), list | tuple):
        changed["sites"] = [named(entry) if isinstance(entry, dict) else entry for entry in entries]
    return changed


def _named(value: Any) -> Any:
    if isinstance(value, BlockSpec):
        return _named({"name": value.name, **value.options})
    if isinstance(value, dict):
        return {**value, "name": _named(value["name"])} if "name" in value else value
    if isinstance(value, type):
        return register_block(value)
    if isinstance(value, str) and ":" in value and value not in REGISTERED:
        return import_block(value)
    return value
