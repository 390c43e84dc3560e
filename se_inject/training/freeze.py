"""The base frozen, its new blocks trained: ``freeze_base`` and ``unfreeze``, in place.

What was frozen is remembered where it was, in the ``__dict__`` of the modules: it survives deep copies, pickles and
wrappers, and any part of the model can be unfrozen alone. Of a norm, its parent remembers it too. A graph that is
traced anew keeps the norm and not the parent; a conversion to synchronised norms keeps the parent and not the norm.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from functools import partial

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from se_inject.blocks import is_block
from se_inject.errors import SEInjectError
from se_inject.guard import inside
from se_inject.training.head import heads

FROZEN = "_se_inject_frozen"  # attribute of a module: the names of the parameters that `freeze_base` froze
TRAIN = "train"  # a norm that stays in eval, and its parent, have one of their own before that of the class


def freeze_base(model: nn.Module, train_head: bool | str | Iterable[str] = True) -> None:
    """Freeze all but the inserted blocks and the head, in place; a later ``.train()`` leaves the base's norms in eval.

    ``train_head``: True finds the head (timm's ``get_classifier()``, a child ``fc``, ``classifier``, ``head`` or
    ``heads``, or the one ``nn.Linear`` that the model ends with), a path or several name what trains beside the
    blocks, False leaves it frozen. Norms with running statistics neither use nor learn those of a batch; dropout and
    stochastic depth of the base go on as the mode says. Freezing again starts anew. Raises ``SEInjectError`` when there
    is no inserted block, no head, no module of that path, or a ``DistributedDataParallel`` around the model.

    >>> freeze_base(result.model, train_head="fc")
    """
    model = _unwrapped(model)
    blocks = [module for module in model.modules() if is_block(module)]
    if not blocks:
        raise SEInjectError(
            f"{type(model).__name__} holds no inserted block, so there is nothing new to train. "
            "Give the model that was injected: inject(...).model."
        )
    trained = [*blocks, *heads(model, train_head)]
    unfreeze(model)
    learning = {parameter for module in trained for parameter in module.parameters()}
    moving = {module for root in trained for module in root.modules()}
    frozen = {module: _freeze(module, learning) for module in model.modules()}
    held = {module for module in frozen if module not in moving and _learns_in_forward(module)}
    for module, names in frozen.items():
        children = {path: child for path, child in module.named_children() if child in held}
        names += [f"{path}.{name}" for path, child in children.items() for name in frozen[child]]
        if names:
            module.__dict__[FROZEN] = tuple(names)
        if paths := ("",) * (module in held) + tuple(children):
            module.__dict__[TRAIN] = partial(_train_but, module, paths)
    for norm in held:
        norm.training = False


def unfreeze(model: nn.Module, *, norms: bool = True) -> None:
    """Undo ``freeze_base``, in place: what was trained before it is trained again, and norms go by the mode again.

    ``model``: the whole, or a part of it (``model.layer4``), to unfreeze stage by stage. ``norms=False`` leaves the
    norms in eval while their weights train: for short trainings and small batches. What was frozen before
    ``freeze_base`` stays so. Make the optimizer after it. Raises ``SEInjectError`` when a ``DistributedDataParallel``
    is around the model.
    """
    model = _unwrapped(model)
    for module in model.modules():
        for name in module.__dict__.pop(FROZEN, ()):
            with suppress(AttributeError):  # it is gone since
                module.get_parameter(name).requires_grad_(True)
    own = {module: module.__dict__.pop(TRAIN) for module in model.modules() if norms and _is_ours(module)}
    for parent, train in own.items():
        for norm in _at(parent, train.args[1]):
            norm.training = parent.training


def _unwrapped(model: nn.Module) -> nn.Module:
    found = inside(model)
    if any(isinstance(module, DistributedDataParallel) for module in model.modules()):
        # Its reducer knows the parameters that trained when it was made; others would drift apart on the ranks, unseen.
        raise SEInjectError(
            "the model is wrapped in DistributedDataParallel, which does not synchronise what is unfrozen later: "
            "freeze or unfreeze the model itself, then wrap it anew."
        )
    return found


def _freeze(module: nn.Module, learning: set[nn.Parameter]) -> list[str]:
    """Freeze a module's own parameters but those that are to learn; the names of those that were not frozen yet."""
    names = []
    for name, parameter in module._parameters.items():
        if parameter is not None and parameter.requires_grad and parameter not in learning:
            parameter.requires_grad_(False)
            parameter.grad = None  # what is left of one would still move it
            names.append(name)
    return names


def _train_but(module: nn.Module, paths: tuple[str, ...], mode: bool = True) -> nn.Module:
    """``module.train(mode)`` that leaves the norms at these paths in eval; their children, as dropout, go by the mode.

    An attribute, not a subclass: what goes by the exact class (tracing, fusion, quantization) sees the class. As a
    ``partial`` of a module's function it is copied and pickled with its module.
    """
    type(module).train(module, mode)
    for norm in _at(module, paths):
        norm.training = False
    return module


def _is_ours(module: nn.Module) -> bool:
    own = module.__dict__.get(TRAIN)
    return isinstance(own, partial) and own.func is _train_but


def _at(module: nn.Module, paths: tuple[str, ...]) -> list[nn.Module]:
    """The module itself ("") and its children of these names, those that are still there."""
    found = (module._modules.get(path) if path else module for path in paths)
    return [child for child in found if child is not None]


def _learns_in_forward(module: nn.Module) -> bool:
    """Whether it has running statistics: every batch norm, instance norms that track them, timm's EvoNorm."""
    return any(name.startswith("running_") and buffer is not None for name, buffer in module._buffers.items())
