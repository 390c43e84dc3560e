"""Which modules are the head of a model: those that are made anew for other classes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn

from se_inject.errors import SEInjectError, closest

NAMES = ("fc", "classifier", "head", "heads")  # what torchvision, and most others, call the last layers


def heads(model: nn.Module, wanted: bool | str | Iterable[str]) -> list[nn.Module]:
    """The modules at the paths, or those that are found when ``wanted`` is True. Raises ``SEInjectError`` for none."""
    if wanted is False:
        return []
    if wanted is True:
        return _find_head(model)
    paths = [wanted] if isinstance(wanted, str) else list(wanted)
    known = dict(model.named_modules())
    for path in paths:
        if path not in known or path == "":
            raise SEInjectError(f"train_head: {type(model).__name__} has no module {path!r}.{closest(path, known)}")
    return [known[path] for path in paths]


def _find_head(model: nn.Module) -> list[nn.Module]:
    classifier: Any = getattr(model, "get_classifier", None)
    if callable(classifier):
        found = classifier()
        named = list(found) if isinstance(found, tuple | list) else [found]
    else:
        named = [child for name, child in model.named_children() if name in NAMES]
    heads = [module for module in named if isinstance(module, nn.Module) and any(True for _ in module.parameters())]
    if not heads and not callable(classifier) and isinstance(last := next(_layers_from_last(model), None), nn.Linear):
        heads = [last]
    if not heads:
        raise SEInjectError(
            f"found no head in {type(model).__name__}: say which modules train beside the blocks "
            "(train_head='path'), or that none does (train_head=False)."
        )
    return heads


def _layers_from_last(model: nn.Module) -> Iterator[nn.Module]:
    """The modules with parameters of their own, the last first."""
    return (module for module in reversed(list(model.modules())) if any(True for _ in module.parameters(recurse=False)))
