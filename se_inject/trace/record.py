"""One forward of a skeleton, recorded as one small ``torch.fx.Graph`` for each call of each module.

Children are single nodes of their parent's graph, and every node remembers the expression of the owner's source that
made it (PEP 657 positions). The graphs are read and spliced; only the graph of a ``GraphModule`` is ever run.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from se_inject.errors import TraceError, first_line
from se_inject.inputs import Inputs
from se_inject.trace.calls import Names, Trace
from se_inject.trace.recorder import record
from se_inject.trace.skeleton import share, skeleton, to_meta
from se_inject.types import Reason


@torch.inference_mode(False)
def trace(model: nn.Module, inputs: Inputs, *, training: bool = False) -> Trace:
    """Record one forward of ``model`` on meta tensors, in eval mode unless ``training``; the model is not touched.

    Where an operator has no meta kernel (NMS), one real forward is run instead, on shared weights and cloned
    buffers, and ``Trace.notes`` says so. Raises ``TraceError`` when neither works.
    """
    notes = _hooks(model)
    root = skeleton(model).train(training)
    meta = inputs.map(to_meta)
    try:
        return Trace(root, meta, record(Names(root, meta=True), root, meta), notes)
    except Exception as error:
        reason = first_line(error)
        if any(t.is_meta for t in model.parameters()):
            raise TraceError(
                f"{type(model).__name__} cannot be run on meta tensors ({reason}), and it has no weights. "
                "Give it weights, or an example input that fits it."
            ) from error
    text = f"run on real tensors, because the model cannot run on meta tensors: {reason}"
    notes.append(Reason("real-run", text))
    root, real = skeleton(model, keep=share).train(training), inputs.map(share)  # a forward may write its arguments
    try:
        return Trace(root, real, record(Names(root), root, real), notes)
    except Exception as error:
        raise TraceError(
            f"{type(model).__name__} cannot be run on the example inputs ({inputs}): {first_line(error)}. "
            "Give inputs of the kind that it takes (--input-size, or example_inputs)."
        ) from error


def _hooks(model: nn.Module) -> list[Reason]:
    """That modules have forward hooks, which the copy is without: an addition in one is no place for a block."""
    hooked = [path or type(model).__name__ for path, module in model.named_modules() if module._forward_hooks]
    text = f"what forward hooks compute is not looked at, and gets no block: {', '.join(hooked[:3])}"
    more = f" and {len(hooked) - 3} more" if len(hooked) > 3 else ""
    return [Reason("hooks", text + more)] if hooked else []


@contextmanager
def uncollected() -> Iterator[None]:
    """Without the garbage collector: a trace makes many small objects and frees none, and each of its passes over
    all of them would cost more the larger the model is."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
