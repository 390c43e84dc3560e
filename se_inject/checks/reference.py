"""What a model computes and holds, taken before the surgery, so that the result can be compared with it.

Nothing is left changed: modes, buffers, gradients and the random state are restored.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from se_inject.errors import TraceError, first_line
from se_inject.guard import eager
from se_inject.inputs import Inputs, dtype_of, from_shape, tensor_leaves, tensors_in
from se_inject.random_state import seed_all, undisturbed
from se_inject.trace.calls import graphs_of
from se_inject.types import Baseline, Plan

SAMPLES = 8


@dataclass
class Run:
    """One forward: its output tensors, and the buffers after it; or why it could not be run."""

    outputs: list[torch.Tensor]
    buffers: dict[str, torch.Tensor]
    failure: str = ""


@dataclass
class Reference:
    """The original's tensors and behaviour."""

    probe: Inputs
    tensors: dict[str, str]
    eval: Run
    train: Run

    def baseline(self) -> Baseline:
        """The part that travels with the plan."""
        return describe(self.tensors, self.probe.shape or (), self.eval.outputs)


def describe(hashes: dict[str, str], probe: tuple[int, ...], outputs: list[torch.Tensor]) -> Baseline:
    """A model as data: the hashes of its tensors, and its outputs on the noise of a shape."""
    first = outputs[0].flatten()[:SAMPLES] if outputs else torch.empty(0)
    if first.is_complex() or not torch.isfinite(first).all():  # JSON has no NaN
        first = torch.empty(0)
    return Baseline(hashes, probe, tuple(digest(t) for t in outputs), tuple(float(v) for v in first))


def probe_of(made: Plan, dtype: torch.dtype) -> Inputs | None:
    """The probe of a plan: seeded noise of the size that it names."""
    return _noise(made, made.baseline.probe, dtype)


def example_of(made: Plan, dtype: torch.dtype) -> Inputs | None:
    """The input for which the costs were counted, if it was made from a shape."""
    return _noise(made, made.inputs.shape, dtype)


def _noise(made: Plan, shape: tuple[int, ...], dtype: torch.dtype) -> Inputs | None:
    kind = made.inputs.kind
    return from_shape(shape, dtype, made.seed, kind) if shape and kind else None


def take(
    model: nn.Module, inputs: Inputs, seed: int = 0, fits: Callable[[Inputs], bool] = lambda small: True
) -> Reference:
    """The reference of ``model`` on a probe: ``inputs``, or smaller where they were made from a shape alone.

    ``fits``: whether a smaller probe meets all that is to be checked (a forward may go another way on a small map).
    """
    probe = shrink(model, inputs, seed)
    if probe is not inputs and not fits(probe):
        probe = inputs
    training = run_forward(model, probe, True, seed)
    if training.failure and probe is not inputs and not (full := run_forward(model, inputs, True, seed)).failure:
        probe, training = inputs, full  # too small for train mode alone: an auxiliary head
    return Reference(probe, digests(model), run_forward(model, probe, False, seed), training)


def shrink(model: nn.Module, inputs: Inputs, seed: int = 0) -> Inputs:
    """A smaller image of the same kind, if the model takes one: a check need not cost a full forward."""
    shape = inputs.shape
    if shape is None or len(shape) != 3 or min(shape[1:]) < 128:
        return inputs
    smaller = (shape[0], *(max(64, side // 64 * 32) for side in shape[1:]))
    small = from_shape(smaller, dtype_of(model), seed, inputs.kind)
    small = small.map(lambda t: t.to(_device(model)))
    return inputs if run_forward(model, small, False, seed).failure else small


def run_forward(model: nn.Module, inputs: Inputs, training: bool, seed: int) -> Run:
    """One forward without gradients, in the given mode and from the given random state."""
    with preserved(model), undisturbed(), torch.no_grad():
        seed_all(seed)
        try:
            set_mode(model, training)
            output = model(*inputs.args, **inputs.kwargs)
        except Exception as error:  # foreign code may raise anything
            return Run([], {}, first_line(error))
        tensors = [t.detach().clone() for t in tensors_in(output)]
        buffers = {name: t.detach().clone() for name, t in model.named_buffers()} if training else {}
    return Run(tensors, buffers)


Hook = Callable[[nn.Module, Any, Any], None]


def watch(model: nn.Module, inputs: Inputs, seed: int, hooks: Iterable[tuple[nn.Module, Hook]]) -> Run:
    """One forward in eval mode, with a hook behind each of these modules. Raises ``TraceError`` when it fails."""
    handles = []
    try:
        for module, hook in hooks:
            handles.append(module.register_forward_hook(hook))
        ran = run_forward(model, inputs, False, seed)
    finally:
        for handle in handles:
            handle.remove()
    if ran.failure:
        raise TraceError(f"the model does not run on the batch: {ran.failure}")
    return ran


def set_mode(model: nn.Module, training: bool) -> None:
    """The module of an exported program has the one mode that it was exported in: it runs so where eval is asked."""
    try:
        model.train(training)
    except NotImplementedError:
        if training:
            raise


@contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Modes and buffers of all modules are afterwards what they were, whether a forward writes or replaces them.

    So are attributes in which a forward left tensors (RAFT's pyramid): with their history they could not be copied.

    What was compiled is set aside meanwhile: the checks run the code itself.
    """
    modes = [(module, module.training) for module in model.modules()]
    held = [(module._buffers, dict(module._buffers)) for module in model.modules()]
    values = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    plain = [(module.__dict__, dict(module.__dict__)) for module in model.modules()]
    compiled = [(m, m._compiled_call_impl) for m in model.modules() if m._compiled_call_impl is not None]
    for module, _ in compiled:
        module._compiled_call_impl = None
    try:
        with eager():
            yield
    finally:
        for module, call in compiled:
            module._compiled_call_impl = call
        for attributes, earlier in plain:
            for name in [
                name for name, value in attributes.items() if value is not earlier.get(name) and _holds(value)
            ]:
                attributes.pop(name)
                attributes.update({name: earlier[name]} if name in earlier else {})
        for own, buffers in held:
            own.clear()
            own.update(buffers)
        with torch.no_grad():
            for buffer, value in values:
                if not buffer.is_meta:
                    buffer.copy_(value)
        for module, mode in modes:
            if len(graphs_of(module)) > 1 and module.training is not mode:
                module.train(mode)  # which changes its graph; what is inside comes after it
            module.training = mode


def _holds(value: Any) -> bool:
    """Whether there is a tensor in a plain value."""
    return isinstance(value, torch.Tensor | list | tuple | dict) and bool(tensor_leaves(value))


def digest(tensor: torch.Tensor) -> str:
    """SHA-256 over dtype, shape and bytes."""
    sha = hashlib.sha256(f"{tensor.dtype}{list(tensor.shape)}".encode())
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    if flat.numel():
        data: Any = flat.view(torch.uint8).numpy()
        sha.update(data)
    return sha.hexdigest()


def digests(model: nn.Module) -> dict[str, str]:
    """The SHA-256 of every entry of the state dict that is a tensor."""
    state = model.state_dict()
    return {name: digest(t) for name, t in state.items() if isinstance(t, torch.Tensor) and not t.is_meta}


def _device(model: nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))
