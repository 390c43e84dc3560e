"""A copy of a model without its weights: every parameter and buffer on the meta device.

The tool looks at the copy, so the user's model sees no hook, no buffer write and no new attribute; and a forward
on meta tensors computes shapes only, in milliseconds.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from se_inject.copying import independent_copy
from se_inject.errors import TraceError
from se_inject.object_graph import HOOKS, held

# transformers hooks its models at their first forward, to collect hidden states, and remembers it in this attribute: a
# copy without the hooks must forget it, and is hooked anew.
HOOKED = "_output_capturing_hooks_installed"


def tensors(model: nn.Module) -> Iterable[torch.Tensor]:
    """Every tensor a model holds: parameters, buffers, and those in attributes of any kind and in closures."""
    return held(model).tensors.values()


def to_meta(tensor: torch.Tensor) -> torch.Tensor:
    """The same shape, strides, dtype and class (parameter or not), without data."""
    if str(tensor.layout).startswith("torch.sparse"):  # has no strides
        meta = torch.empty_like(tensor, device="meta")
    else:
        meta = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(meta, requires_grad=tensor.requires_grad)
    return meta


def share(tensor: torch.Tensor) -> torch.Tensor:
    """Parameters as they are, all else cloned: for a real run that must not write the user's buffers."""
    return tensor if isinstance(tensor, nn.Parameter) else tensor.detach().clone()


def skeleton(
    model: nn.Module, keep: Callable[[torch.Tensor], torch.Tensor] = to_meta, *, hooks: bool = False
) -> nn.Module:
    """A deep copy of ``model`` whose tensors went through ``keep``, without the user's hooks unless ``hooks``.

    Raises ``TraceError`` when the model holds something that cannot be copied.
    """
    memo: dict[int, Any] = {}
    skip = () if hooks else HOOKS
    old = held(model, skip)
    for key, tensor in old.tensors.items():
        try:
            memo[key] = keep(tensor)
        except (RuntimeError, NotImplementedError) as error:  # quantized tensors, for instance
            raise TraceError(
                f"cannot copy {type(model).__name__} to look at it: it holds a tensor of {tensor.dtype} "
                f"({tensor.layout}), which has no weightless form. Give the float model."
            ) from error
    for module in old.modules.values():
        for name in skip:
            if name in module.__dict__:
                memo[id(module.__dict__[name])] = OrderedDict()
    new: nn.Module = independent_copy(model, memo, old, skip)
    for module in () if hooks else new.modules():
        module.__dict__.pop(HOOKED, None)
    return new
