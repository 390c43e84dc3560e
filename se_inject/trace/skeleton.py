"""A copy of a model without its weights: every parameter and buffer on the meta device.

The tool looks at the copy, so the user's model sees no hook, no buffer write and no new attribute; and a forward
on meta tensors computes shapes only, in milliseconds.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from se_inject.errors import TraceError

# What a copy must not carry along: the user's hooks would run on it, with their side effects.
HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)
# transformers hooks its models at their first forward, to collect hidden states, and remembers it in this attribute: a
# copy without the hooks must forget it, and is hooked anew.
HOOKED = "_output_capturing_hooks_installed"
OWN = ("_parameters", "_buffers", "_modules")


def tensors(model: nn.Module) -> Iterator[torch.Tensor]:
    """Every tensor a model holds: parameters, buffers, and plain attributes of its modules, in lists and dicts too."""
    for module in model.modules():
        for group in (module._parameters, module._buffers, module.__dict__):
            for name, value in group.items():
                if isinstance(value, torch.Tensor):
                    yield value
                elif isinstance(value, list | tuple | dict) and name not in OWN:
                    yield from (leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor))


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
    for tensor in tensors(model):
        if id(tensor) not in memo:
            try:
                memo[id(tensor)] = keep(tensor)
            except (RuntimeError, NotImplementedError) as error:  # quantized tensors, for instance
                raise TraceError(
                    f"cannot copy {type(model).__name__} to look at it: it holds a tensor of {tensor.dtype} "
                    f"({tensor.layout}), which has no weightless form. Give the float model."
                ) from error
    for module in () if hooks else model.modules():
        for name in HOOKS:
            if name in module.__dict__:
                memo[id(module.__dict__[name])] = OrderedDict()
    try:
        new = copy.deepcopy(model, memo)
    except Exception as error:  # whatever a foreign __deepcopy__ raises
        raise TraceError(
            f"cannot copy {type(model).__name__} to look at it: {type(error).__name__}: {error}. "
            "A module holds something that copy.deepcopy refuses (a lock, a file, a generator); remove it first."
        ) from error
    for module in () if hooks else new.modules():
        module.__dict__.pop(HOOKED, None)
    return new
