"""Which modules are the head of a model: those that are made anew for other classes."""

from __future__ import annotations

from collections.abc import Iterable
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
    if callable(classifier):  # timm's; a distilled model has two
        found = classifier()
        offered = list(found) if isinstance(found, tuple | list) else [found]
    else:
        offered = [child for name, child in model.named_children() if name in NAMES] or _last_linear(model)
    head = [module for module in offered if isinstance(module, nn.Module) and _learns(module)]
    if not head:
        raise SEInjectError(
            f"found no head in {type(model).__name__}: say which modules train beside the blocks "
            "(train_head='path'), or that none does (train_head=False)."
        )
    return head


def _last_linear(model: nn.Module) -> list[nn.Module]:
    """The last layer that has parameters, if it is linear and the model ends with it alone: a linear layer before
    others is no head, one inside a part, or of several (classes and boxes), may be half of one.
    """
    parts = [model] if isinstance(model, nn.Sequential) else [part for part in model.children() if _learns(part)]
    ends = [end for end in map(_end, parts) if isinstance(end, nn.Linear)]
    return [end for end in ends if len(ends) == 1 and end is _end(parts[-1])]


def _end(part: nn.Module) -> nn.Module:
    """The last module that has parameters in a sequence, of sequences too; any other module is its own end."""
    while isinstance(part, nn.Sequential) and (inner := [child for child in part if _learns(child)]):
        part = inner[-1]
    return part


def _learns(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())
