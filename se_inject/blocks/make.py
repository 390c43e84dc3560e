"""From a decision to its block, with weights."""

from __future__ import annotations

import zlib

import torch
from torch import nn

from se_inject.blocks.table import find_block
from se_inject.errors import PlanMismatchError
from se_inject.random_state import forked_rng
from se_inject.types import Decision

DTYPES = {str(t).removeprefix("torch."): t for t in (torch.float16, torch.bfloat16, torch.float32, torch.float64)}


def make_block(decision: Decision, seed: int, like: nn.Module | None) -> nn.Module:
    """The block of a decision, on the device of ``like`` and in its dtype or the site's, from its own random stream."""
    try:
        block = find_block(decision.block)
    except ValueError as error:
        raise PlanMismatchError(f"the plan inserts at {decision.site.id}, but {error}") from error
    tensor = next((p for p in like.parameters() if p.is_floating_point()), None) if like is not None else None
    # The seed of a site does not depend on the other sites, nor on the state of the global generator.
    with forked_rng(seed ^ zlib.crc32(decision.site.id.encode("utf-8", "surrogatepass"))):
        try:
            module = block.module(**decision.kwargs)
        except (TypeError, KeyError, ValueError, RuntimeError, OverflowError) as error:
            raise PlanMismatchError(
                f"the plan's block {decision.block} at {decision.site.id} cannot be built from {decision.kwargs}: "
                f"{type(error).__name__}: {error}."
            ) from error
    module.train(like.training if like is not None else False)
    if tensor is None:
        return module
    dtype = DTYPES.get(decision.site.dtype) if decision.site.dtype else tensor.dtype
    if dtype is None:
        raise PlanMismatchError(
            f"the plan gives {decision.site.id} the dtype {decision.site.dtype!r}; it can be {', '.join(DTYPES)}."
        )
    return module.to(device=tensor.device, dtype=dtype)
