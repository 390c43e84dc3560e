"""The base frozen, its new blocks trained: ``freeze_base`` and ``unfreeze``, in place.

What was frozen is remembered by each module for itself, under two names in its ``__dict__``. So it survives deep
copies, pickles and wrappers, and any part of the model can be unfrozen alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from se_inject.blocks import is_block
from se_inject.errors import SEInjectError, closest
from se_inject.guard import inside

FROZEN = "_se_inject_frozen"  # attribute of a module: the names of its parameters that `freeze_base` froze
TRAIN = "train"  # a frozen norm has one of its own, before that of its class
HEADS = ("fc", "classifier", "head", "heads")  # what torchvision, and most others, call the last layers


def freeze_base(model: nn.Module, train_head: bool | str | Iterable[str] = True) -> None:
    """Freeze all but the inserted blocks and the head, in place; a later ``.train()`` leaves the base's norms in eval.

    ``train_head``: True finds the head (timm's ``get_classifier()``, a child ``fc``, ``classifier``, ``head`` or
    ``heads``, or a last layer that is an ``nn.Linear``), a path or several name what trains beside the blocks, False
    leaves it frozen. Norms with running statistics neither use nor learn those of a batch; dropout and stochastic depth
    of the base go on as the mode says. Freezing again starts anew. Raises ``SEInjectError`` when there is no inserted
    block, no head, no module of that path, or a ``DistributedDataParallel`` around the model.

    >>> freeze_base(result.model, train_head="fc")
    """
    model = _unwrapped(model)
    blocks = [module for module in model.modules() if is_block(module)]
    if not blocks:
        raise SEInjectError(
            f"{type(model).__name__} holds no inserted block, so there is nothing new to train. "
            "Give the model that was injected: inject(...).model."
        )
    trained = [*blocks, *_heads(model, train_head)]
    unfreeze(model)
    learning = {id(parameter) for module in trained for parameter in module.parameters()}
    moving = {id(module) for root in trained for module in root.modules()}
    for module in model.modules():
        frozen = {n: p for n, p in module._parameters.items() if p is not None and p.requires_grad}
        frozen = {name: parameter for name, parameter in frozen.items() if id(parameter) not in learning}
        for parameter in frozen.values():
            parameter.requires_grad_(False)
            parameter.grad = None  # what is left of one would still move it, and an optimizer's momentum with it
        if frozen:
            module.__dict__[FROZEN] = tuple(frozen)
        if id(module) not in moving and _learns_in_forward(module):
            module.__dict__[TRAIN] = partial(_stay_in_eval, module)
            module.train(module.training)


def unfreeze(model: nn.Module) -> None:
    """Undo ``freeze_base``, in place: what was trained before it is trained again, and norms go by the mode again.

    ``model``: the whole, or a part of it (``model.layer4``), to unfreeze stage by stage. What was frozen before
    ``freeze_base`` stays so. Make the optimizer after it, or add the parameters to the one there is. Raises
    ``SEInjectError`` when a ``DistributedDataParallel`` is around the model.
    """
    model = _unwrapped(model)
    for module in model.modules():
        for name in module.__dict__.pop(FROZEN, ()):
            parameter = module._parameters.get(name)
            if parameter is not None:
                parameter.requires_grad_(True)
    for parent in model.modules():
        for module in (parent, *parent.children()):
            if _stays(module):
                del module.__dict__[TRAIN]
                module.train(parent.training)


def _unwrapped(model: nn.Module) -> nn.Module:
    found = inside(model)
    if any(isinstance(module, DistributedDataParallel) for module in model.modules()):
        # Its reducer knows the parameters that trained when it was made; others would drift apart on the ranks, unseen.
        raise SEInjectError(
            "the model is wrapped in DistributedDataParallel, which does not synchronise what is unfrozen later: "
            "freeze or unfreeze the model itself, then wrap it anew."
        )
    return found


def _stay_in_eval(norm: nn.Module, mode: bool = True) -> nn.Module:
    """``norm.train(mode)`` for its children (dropout, activation), eval for itself.

    An attribute, not a subclass: what goes by the exact class (tracing, fusion, quantization) sees the class. As a
    ``partial`` of a module's function it is copied and pickled with its norm.
    """
    type(norm).train(norm, mode)
    norm.training = False
    return norm


def _stays(module: nn.Module) -> bool:
    own = module.__dict__.get(TRAIN)
    return isinstance(own, partial) and own.func is _stay_in_eval


def _learns_in_forward(module: nn.Module) -> bool:
    """Whether it has running statistics: every batch norm, instance norms that track them, timm's EvoNorm."""
    return any(name.startswith("running_") and buffer is not None for name, buffer in module._buffers.items())


def _heads(model: nn.Module, wanted: bool | str | Iterable[str]) -> list[nn.Module]:
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
        named = [child for name, child in model.named_children() if name in HEADS]
    heads = [module for module in named if isinstance(module, nn.Module) and any(True for _ in module.parameters())]
    if not heads and not callable(classifier) and isinstance(last := next(_layers_from_last(model), None), nn.Linear):
        heads = [last]
    if not heads:
        raise SEInjectError(
            f"found no head in {type(model).__name__}: say which modules train beside the blocks "
            f"(train_head='path'), or that none does (train_head=False)."
        )
    return heads


def _layers_from_last(model: nn.Module) -> Iterator[nn.Module]:
    """The modules with parameters of their own, the last first."""
    return (module for module in reversed(list(model.modules())) if any(True for _ in module.parameters(recurse=False)))
