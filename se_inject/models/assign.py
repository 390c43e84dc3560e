"""Put the tensors of a state dict into a model without copying them, and say exactly what does not fit."""

from __future__ import annotations

import fnmatch
import warnings
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from se_inject.checkpoints.wrappers import Keys
from se_inject.errors import LoadError, closest
from se_inject.inputs import tensor_leaves

OWN = ("_parameters", "_buffers", "_modules")
LISTED = 10  # keys that a message names


def build_empty(build: Callable[[], nn.Module]) -> nn.Module:
    """The model that ``build`` makes, without data (on the meta device) where that works.

    It does not where the constructor reads values, or computes tensors that are neither parameter nor buffer.
    """
    try:
        with warnings.catch_warnings(), torch.device("meta"):
            warnings.simplefilter("ignore")  # if they matter, the real build gives them again
            model = build()
    except LoadError:  # a constructor that reads values; anything else that is wrong comes again
        return build()
    return build() if any(tensor.is_meta for tensor in loose(model)) else model


def lacks_values(model: nn.Module, filled: Collection[str]) -> bool:
    """Whether a model without data needs more than the tensors in ``filled``: non-persistent buffers, missing keys.

    So does one with tied parameters: assigning would untie them.
    """
    empty = {name for name, tensor in _named(model) if tensor.is_meta}
    return bool(empty) and (not empty <= set(filled) or bool(tied(model)))


def loose(model: nn.Module) -> Iterator[torch.Tensor]:
    """Tensors that modules hold beside their parameters and buffers: as attributes, or in lists and dicts."""
    for module in model.modules():
        for name, value in vars(module).items():
            if name not in OWN and isinstance(value, torch.Tensor | list | tuple | dict):
                yield from tensor_leaves(value)


def tied(model: nn.Module) -> list[list[str]]:
    """Names of parameters and buffers that are one tensor under several names."""
    groups: dict[int, list[str]] = {}
    for name, tensor in _named(model):
        groups.setdefault(id(tensor), []).append(name)
    return [names for names in groups.values() if len(names) > 1]


@dataclass(frozen=True)
class Fit:
    """How a state dict went into a model."""

    missing: tuple[str, ...]  # accepted; these kept the values that the constructor gave
    dtypes: dict[str, int]  # floating-point dtypes of the file -> number of tensors


def assign(model: nn.Module, keys: Keys, allow_missing: Sequence[str] = (), *, what: str = "the state dict") -> Fit:
    """Give ``model`` the tensors of ``keys``, in the file's floating-point dtypes; ``model`` is changed.

    ``allow_missing``: globs of keys that the file may lack. Parameters keep their ``requires_grad``. Tied parameters
    stay tied; they are copied. Raises ``LoadError`` that lists missing and unexpected keys and other shapes; the
    model is then of no use.
    """
    own: dict[str, Any] = model.state_dict()
    for glob in allow_missing:
        if not any(fnmatch.fnmatchcase(key, glob) for key in own):
            raise LoadError(f"--allow-missing {glob!r} fits no key of the model.{closest(glob, own)}")
    by_copy = bool(tied(model)) or not {id(t) for _, t in _named(model)}.isdisjoint(map(id, loose(model)))
    given = {name: _fitting(what, name, value, own.get(name)) for name, value in keys.tensors.items()}
    state: OrderedDict[str, Any] = OrderedDict(given if by_copy else _apart(given, own))
    versions = keys.versions or (own._metadata if given.keys() == own.keys() else {})  # type: ignore[attr-defined]
    if versions:  # those of the model, where all keys are its own: nothing is from an older version
        state._metadata = {k: dict(v) for k, v in versions.items() if isinstance(v, dict)}  # type: ignore[attr-defined]
    _check_tied(model, state, what)
    if by_copy:
        for name, tensor in _named(model):
            if name in state and state[name].dtype != tensor.dtype:
                tensor.data = tensor.data.to(state[name].dtype)
    other = [_difference(n, t, own[n]) for n, t in state.items() if n in own and not _same_kind(t, own[n])]
    failed = None
    if not other:
        try:
            result = model.load_state_dict(state, strict=False, assign=not by_copy)
        except (RuntimeError, TypeError, ValueError, KeyError, AttributeError) as error:  # of hooks, too
            failed = error
    if other or failed:
        missing, unexpected = [k for k in own if k not in state], [k for k in state if k not in own]
    else:
        missing, unexpected = result.missing_keys, result.unexpected_keys
    partners = {name for group in tied(model) for name in group if any(n in state for n in group)}
    missing = [key for key in missing if key not in partners]
    refused = [key for key in missing if not any(fnmatch.fnmatchcase(key, glob) for glob in allow_missing)]
    if refused or unexpected or other or failed:
        shapes = other or [_difference(n, t, own[n]) for n, t in state.items() if n in own and t.shape != own[n].shape]
        raise LoadError(_misfit(what, refused, unexpected, shapes, failed))
    dtypes = Counter(str(t.dtype).removeprefix("torch.") for t in state.values() if _is_float(t))
    _follow_dtype(model, state)
    return Fit(tuple(missing), dict(dtypes))


def _named(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _is_float(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def _fitting(what: str, name: str, value: Any, own: Any) -> Any:
    """The tensor as the model can take it: plain, detached, integers in the model's dtype."""
    if not isinstance(value, torch.Tensor):
        return value
    odd = {
        "quantized": value.is_quantized,
        "sparse": value.layout is not torch.strided,
        "without data (meta)": value.is_meta,
    }
    if kind := next((kind for kind, is_so in odd.items() if is_so), ""):
        raise LoadError(f"{what}: {name!r} is {kind}; only plain tensors can be loaded.")
    value = value.detach()
    if isinstance(own, torch.Tensor) and own.shape == value.shape and not _is_float(own) and _same_kind(value, own):
        return value.to(own.dtype)
    return value


def _apart(given: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Tensors that share memory, with each other or within themselves, copied: what is assigned must be its own."""
    taken: set[int] = set()
    out = {}
    for name, value in given.items():
        if isinstance(value, torch.Tensor) and value.numel() and name in own and own[name].shape == value.shape:
            storage = value.untyped_storage()
            if storage.data_ptr() in taken or storage.nbytes() != value.numel() * value.element_size():
                value = value.clone()
            taken.add(storage.data_ptr())
        out[name] = value
    return out


def _check_tied(model: nn.Module, state: dict[str, Any], what: str) -> None:
    for group in tied(model):
        first, *others = [name for name in group if name in state] or [""]
        for name in others:
            if not torch.equal(state[first], state[name]):
                raise LoadError(f"{what}: {first!r} and {name!r} are one tensor in the model, and differ in the file.")


def _same_kind(value: Any, own: Any) -> bool:
    """Whether both are floating point, both complex, or both neither."""
    if not isinstance(value, torch.Tensor) or not isinstance(own, torch.Tensor):
        return isinstance(value, torch.Tensor) == isinstance(own, torch.Tensor)
    return (value.is_floating_point(), value.is_complex()) == (own.is_floating_point(), own.is_complex())


def _follow_dtype(model: nn.Module, state: dict[str, Any]) -> None:
    """What the file does not hold goes along when all that it holds has one dtype: a half model has no float masks."""
    dtypes = {t.dtype for t in state.values() if _is_float(t)}
    if len(dtypes) == 1:
        for name, tensor in _named(model):
            if name not in state and tensor.is_floating_point():
                tensor.data = tensor.data.to(next(iter(dtypes)))


def _difference(name: str, value: Any, own: Any) -> str:
    def shape(tensor: Any) -> str:
        if not isinstance(tensor, torch.Tensor):
            return type(tensor).__name__
        return f"{str(tensor.dtype).removeprefix('torch.')}[{', '.join(map(str, tensor.shape))}]"

    return f"{ascii(name)[1:-1]} (file {shape(value)}, model {shape(own)})"


def _misfit(
    what: str, missing: Sequence[str], unexpected: Sequence[str], shapes: Sequence[str], error: Exception | None
) -> str:
    def some(names: Sequence[str]) -> str:
        more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
        return ", ".join(names[:LISTED]) + more

    parts, hints = [], []
    if missing:
        parts.append(f"{len(missing)} missing: {some([ascii(key)[1:-1] for key in missing])}")
        hints.append("--allow-missing GLOB accepts missing keys")
    if unexpected:
        parts.append(f"{len(unexpected)} unexpected: {some([ascii(key)[1:-1] for key in unexpected])}")
        if len(first := {key.partition(".")[0] for key in unexpected}) == 1 and missing:
            hints.append(f"all unexpected keys start with {first.pop()!a}")
    if shapes:
        parts.append(f"{len(shapes)} of another shape or dtype: {some(shapes)}")
        hints.append("a model arg such as num_classes=10 changes shapes")
    if not parts:
        parts.append(f"{type(error).__name__} while loading")
    return f"{what} does not fit the model: {'; '.join(parts)}.{''.join(f' ({hint}.)' for hint in hints)}"
