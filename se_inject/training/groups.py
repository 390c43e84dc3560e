"""Parameter groups for an optimizer: a rate for the new blocks, and weight decay where it belongs."""

from __future__ import annotations

from typing import Any

from torch import nn

from se_inject.blocks import is_block
from se_inject.errors import SEInjectError
from se_inject.guard import inside

BLOCKS, DECAY, NO_DECAY = "blocks", "base", "base without decay"


def param_groups(
    model: nn.Module, lr: float, *, block_lr: float | None = None, weight_decay: float | None = None
) -> list[dict[str, Any]]:
    """What trains, each parameter once, in up to three groups: ``base``, ``base without decay`` and ``blocks``.

    ``lr``: of the base and its head; ``block_lr``: of the inserted blocks, by default the same. ``weight_decay``: of
    the base's weights, by default the optimizer's own. Biases, parameters of one dimension (norms, layer scales), what
    the model's ``no_weight_decay()`` names, and the inserted gates get none (He et al., Bag of Tricks, arXiv
    1812.01187, section 3.1). Frozen parameters are left out. Raises ``SEInjectError`` when nothing trains, or when
    there is a ``block_lr`` and no inserted block trains.

    >>> torch.optim.AdamW(param_groups(model, lr=1e-4, block_lr=1e-3, weight_decay=0.05))
    """
    model = inside(model)
    blocks = {id(p) for module in model.modules() if is_block(module) for p in module.parameters()}
    spared = _spared(model)
    found: dict[str, list[nn.Parameter]] = {DECAY: [], NO_DECAY: [], BLOCKS: []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays = parameter.ndim > 1 and name.rpartition(".")[2] != "bias" and name not in spared
            found[BLOCKS if id(parameter) in blocks else DECAY if decays else NO_DECAY].append(parameter)
    if not any(found.values()):
        raise SEInjectError(f"every parameter of {type(model).__name__} is frozen: there is nothing to train.")
    if block_lr is not None and not found[BLOCKS]:
        raise SEInjectError(f"block_lr={block_lr}, and {type(model).__name__} holds no inserted block that trains.")
    decay = {} if weight_decay is None else {"weight_decay": weight_decay}
    options = {
        DECAY: {"lr": lr, **decay},
        NO_DECAY: {"lr": lr, "weight_decay": 0.0},
        BLOCKS: {"lr": lr if block_lr is None else block_lr, "weight_decay": 0.0},
    }
    return [{"name": name, "params": params, **options[name]} for name, params in found.items() if params]


def _spared(model: nn.Module) -> set[str]:
    """What timm's models say of themselves, and of those inside: names of position embeddings, class tokens, ..."""
    return {
        f"{path}.{name}".lstrip(".")
        for path, module in model.named_modules()
        if callable(names := getattr(module, "no_weight_decay", None))
        for name in names()
    }
