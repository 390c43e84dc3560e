"""What training scripts put around the weights: dicts above the state dict, and prefixes of its keys."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from se_inject.errors import LoadError

# Keys under which the weights are kept, and whether these are a moving average (EMA).
WRAPPERS: dict[str, bool] = {
    "state_dict": False,
    "model": False,
    "model_state_dict": False,
    "state_dict_ema": True,
    "model_ema": True,
    "module": False,  # DeepSpeed
    "params": False,  # BasicSR
    "params_ema": True,
    "current_model_state": False,  # Lightning's WeightAveraging, which keeps the average under "state_dict"
}
NESTING = 4  # wrappers inside wrappers

# Path components that a wrapper module adds to keys, anywhere in them; kept when the model itself has them.
COMPONENTS: dict[str, str] = {
    "module": "DataParallel, DistributedDataParallel, AveragedModel",
    "_orig_mod": "torch.compile",
    "_fsdp_wrapped_module": "FSDP",
    "_checkpoint_wrapped_module": "activation checkpointing",
}
LEADING = ("model", "net")  # attribute of a Lightning module; taken off when every key has it and the model has not
DROPPED = ("n_averaged",)  # the counter of AveragedModel


@dataclass(frozen=True)
class Keys:
    """A state dict under the model's names, and what was taken off: component -> number of keys."""

    tensors: dict[str, Any]
    versions: dict[str, Any]
    stripped: dict[str, int]
    dropped: tuple[str, ...]


def unwrap(
    path: str | os.PathLike[str], content: Any, ema: bool | None = None
) -> tuple[Mapping[Any, Any], tuple[str, ...], bool]:
    """The mapping that holds the tensors, what was above it (outermost first), and whether it is the average.

    ``ema`` chooses where a file has both. Raises ``LoadError`` when there are no weights, or more than one set.
    """
    unwrapped: list[str] = []
    averaged = False
    for _ in range(NESTING + 1):
        if isinstance(content, torch.nn.Module):  # only unsafe loading makes one
            unwrapped.append(type(content).__name__)
            content = content.state_dict()
        if not isinstance(content, Mapping):
            raise LoadError(f"{path}: holds a {type(content).__name__}, not a state dict.")
        found = {key: _is_average(key, content) for key in WRAPPERS if _has_weights(content.get(key), NESTING)}
        if not found:
            break
        key = _choose(path, found, ema)
        unwrapped.append(key)
        averaged = averaged or found[key]
        content = content[key]
    if not any(isinstance(value, torch.Tensor) for value in content.values()):
        keys = ", ".join(ascii(key) for key in list(content)[:10])
        raise LoadError(
            f"{path}: no weights found. Its keys are {keys or 'none'}; weights are looked for in the file itself and "
            f"under {', '.join(WRAPPERS)}."
        )
    if ema and not averaged:
        raise LoadError(f"{path}: --ema was asked, but the file holds no averaged weights.")
    return content, tuple(unwrapped), averaged


def _is_average(key: str, content: Mapping[Any, Any]) -> bool:
    return WRAPPERS[key] or (key == "state_dict" and "averaging_state" in content)


def _has_weights(value: Any, depth: int) -> bool:
    if isinstance(value, torch.nn.Module):
        return True
    if depth == 0 or not isinstance(value, Mapping):
        return False
    inner = (value.get(key) for key in WRAPPERS)
    return any(isinstance(v, torch.Tensor) for v in value.values()) or any(_has_weights(v, depth - 1) for v in inner)


def _choose(path: str | os.PathLike[str], found: dict[str, bool], ema: bool | None) -> str:
    """The key of the weights that are meant, of those ``found``, each with whether it is an average."""
    if ema is None and len(set(found.values())) == 2:
        names = " and ".join(map(repr, found))
        raise LoadError(f"{path}: holds averaged and raw weights, under {names}; choose with --ema or --no-ema.")
    fitting = [key for key, average in found.items() if ema is None or average == ema]
    if not fitting and ema is False:
        names = " and ".join(map(repr, found))
        raise LoadError(f"{path}: --no-ema was asked, but the file holds averaged weights only, under {names}.")
    if len(fitting) > 1:
        names = " and ".join(map(repr, fitting))
        raise LoadError(f"{path}: holds weights under {names}; save the ones you mean in a file of their own.")
    return next(iter(fitting or found))


def match_keys(
    tensors: Mapping[str, Any],
    versions: Mapping[str, Any],
    model_keys: Collection[str],
    *,
    what: str = "the state dict",
) -> Keys:
    """The state dict with the prefixes of wrapper modules taken off its keys, as far as the model does not have them.

    ``model_keys``: the keys of the model's own state dict. Raises ``LoadError`` naming both keys when two of them
    become one.
    """
    own = {component for key in model_keys for component in key.split(".")}
    foreign = set(COMPONENTS) - own
    stripped: dict[str, int] = {}

    def without(path: str, *, last: bool) -> str:
        parts = path.split(".")
        kept = [part for i, part in enumerate(parts) if part not in foreign or (last and i == len(parts) - 1)]
        return ".".join(kept)

    names = {key: without(key, last=True) for key in tensors}
    for key, name in names.items():
        for part in set(key.split(".")) & foreign if name != key else ():
            stripped[part] = stripped.get(part, 0) + 1
    dropped = tuple(key for key, name in names.items() if name in DROPPED and name not in model_keys)
    for key in dropped:
        del names[key]
    paths = {path: without(path, last=False) for path in versions if isinstance(path, str)}
    while prefix := _leading(names.values(), model_keys):
        stripped[prefix] = len(names)
        names = {key: name.removeprefix(f"{prefix}.") for key, name in names.items()}
        paths = {key: "" if name == prefix else name.removeprefix(f"{prefix}.") for key, name in paths.items()}

    sources: dict[str, str] = {}
    for key, name in names.items():
        if name in sources:
            raise LoadError(f"{what}: the keys {sources[name]!r} and {key!r} become one, {name!r}; remove one of them.")
        sources[name] = key
    return Keys(
        tensors={name: tensors[key] for name, key in sources.items()},
        versions={name: versions[path] for path, name in paths.items()},
        stripped=stripped,
        dropped=dropped,
    )


def _leading(names: Collection[str], model_keys: Collection[str]) -> str:
    for prefix in LEADING:
        start = f"{prefix}."
        if names and all(name.startswith(start) for name in names) and not any(k.startswith(start) for k in model_keys):
            return prefix
    return ""
