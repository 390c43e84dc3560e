"""One exported program for the formats that need one: in eval mode, for inference, with as many free sizes as work.

The batch is free where the model allows it, and the height and width too; what is free is found by trying, and by
running the program at other batches and another size. The example has a batch of at least 2, since torch.export takes
a 1 for a constant.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from se_inject.checks.outputs import relative
from se_inject.checks.reference import preserved, run_forward, shrink
from se_inject.errors import WriteError, first_line
from se_inject.inputs import BATCH, Inputs, noise, tensor_leaves, tensors_in
from se_inject.random_state import forked_rng
from se_inject.types import Plan

BATCHES = (1, 2, 7)  # at which a program with a free batch is compared
LARGER = (32, 64, 32)  # added to the sides for a second size
HALF = 1e-2  # half precision: other kernels round at other places
UNSAFE = "\"'\\"  # would end the string that a name stands in
PROGRAM = 1e-5  # of the outputs' size: the same kernels, sometimes fused


@dataclass(frozen=True)
class Exported:
    """An exported program, its example, and which of the example's sizes are free."""

    program: torch.export.ExportedProgram
    inputs: Inputs
    free: tuple[int, ...]  # dimensions: 0 is the batch


def in_words(free: Sequence[int]) -> str:
    """Which sizes are free."""
    if not free:
        return "sizes fixed"
    return "batch and size free" if len(free) > 1 else "batch free, size fixed"


def export(model: nn.Module, inputs: Inputs | None, seed: int) -> Exported:
    """The model as a program, its mode restored. Raises ``WriteError`` when torch.export does not take it."""
    if inputs is None:
        raise WriteError("cannot export the model: there are no example inputs. Give them when the plan is made.")
    if odd := next((name for name in _names(model) if any(c in UNSAFE or not c.isprintable() for c in name)), ""):
        raise WriteError(f"torch.export writes names into code: rename {odd!a}, or leave out the formats pt2 and onnx.")
    example = batched(inputs)
    failure = ""
    with preserved(model), forked_rng(seed), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, for its own developers
        model.eval()
        for free in levels(example):
            tried = list(cases(model, example, free, seed))
            if not tried:
                continue
            try:
                program = _program(model, example, free)
                if all(_agrees(program, model, case, seed) for case in tried):
                    return Exported(program, example, free)
            except Exception as error:  # torch.export raises whatever it meets
                failure = failure or first_line(error)
    raise WriteError(
        f"torch.export does not take this model ({failure or 'its outputs are others'}). "
        "Leave out the formats pt2 and onnx."
    )


def _names(model: nn.Module) -> Iterator[str]:
    """Of modules, parameters and buffers, each path in whole."""
    for named in (model.named_modules(), model.named_parameters(), model.named_buffers()):
        yield from (name for name, _ in named)


def batched(inputs: Inputs) -> Inputs:
    """The inputs with a batch of at least 2."""
    found = tensors(inputs)
    single = bool(found) and all(t.ndim > 1 and t.shape[0] == 1 for t in found)
    return inputs.map(lambda t: torch.cat([t] * BATCH)) if single else inputs


def tensors(inputs: Inputs) -> list[torch.Tensor]:
    """The tensors among the arguments, in the order in which an export takes them."""
    return tensor_leaves((inputs.args, inputs.kwargs))


def levels(example: Inputs) -> Iterator[tuple[int, ...]]:
    """Which dimensions to set free: as many as possible first."""
    found = tensors(example)
    if len(found) == 1 and found[0].ndim > 2:
        yield (0, *range(2, found[0].ndim))
    if found and len({t.shape[0] for t in found if t.ndim}) == 1 and example.kind != "list":
        yield (0,)
    yield ()


def _program(model: nn.Module, example: Inputs, free: Sequence[int]) -> torch.export.ExportedProgram:
    sizes = torch.export.ShapesCollection()
    for tensor in tensors(example):
        sizes[tensor] = {d: torch.export.Dim.AUTO for d in free if d < tensor.ndim}
    shapes = sizes.dynamic_shapes(model, example.args, example.kwargs) if free else None
    program = torch.export.export(model, example.args, example.kwargs, dynamic_shapes=shapes, strict=False)
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)  # paths of this machine
    return program


def cases(model: nn.Module, example: Inputs, free: Sequence[int], seed: int) -> Iterator[Inputs]:
    """What an export is compared on: other batches, another size; nothing when the model itself does not run so."""
    if not free:
        yield example
        return
    if len(free) == 1:
        yield from (_of_batch(example, batch, seed) for batch in BATCHES)
        return
    small = shrink(model, example, seed)
    (tensor,) = tensors(small)
    sides = [side + more for side, more in zip(tensor.shape[2:], LARGER, strict=False)]
    other = small.map(lambda t: noise((BATCH, t.shape[1], *sides), t.dtype, seed).to(t.device))
    if not run_forward(model, other, False, seed).failure:
        yield from (_of_batch(small, batch, seed) for batch in BATCHES)
        yield other


def _of_batch(example: Inputs, batch: int, seed: int) -> Inputs:
    def resize(t: torch.Tensor) -> torch.Tensor:
        if example.shape is not None and example.kind == "batch":
            return noise((batch, *t.shape[1:]), t.dtype, seed + batch).to(t.device)
        return t[torch.arange(batch) % t.shape[0]] if t.ndim else t

    return example.map(resize)


def _agrees(program: torch.export.ExportedProgram, model: nn.Module, case: Inputs, seed: int) -> bool:
    with torch.no_grad():
        got = tensors_in(program.module()(*case.args, **case.kwargs))
    return close(run_forward(model, case, False, seed).outputs, got, PROGRAM)[0]


def close(want: Sequence[torch.Tensor], got: Sequence[torch.Tensor], limit: float) -> tuple[bool, float]:
    """Whether the outputs agree within ``limit`` of their size (half precision: 1e-2), and how far they are apart."""
    if len(want) != len(got):
        return False, float("inf")
    apart = relative(list(want), list(got))
    half = any(t.dtype in (torch.float16, torch.bfloat16) for t in want)
    return apart <= (HALF if half else limit), apart


def label(plan: Plan, exported: Exported) -> dict[str, str]:
    """What an exported file says of itself."""
    return {
        "made_by": "se_inject",
        "mode": "inference (eval)",
        "model": plan.model,
        "blocks": str(len(plan.insertions)),
        "sizes": in_words(exported.free),
        "free": json.dumps(exported.free),
        "inputs": str(exported.inputs),
    }
