"""What is not a plain model: wrappers are taken off, and what cannot be rewritten is refused by name."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import fx, nn

from se_inject.errors import SEInjectError

# Wrapper class (by its qualified name, so that nothing is imported for it) -> attribute that holds the model.
WRAPPERS = {
    "torch._dynamo.eval_frame.OptimizedModule": "_orig_mod",
    "torch.nn.parallel.distributed.DistributedDataParallel": "module",
    "torch.nn.parallel.data_parallel.DataParallel": "module",
    "torch.optim.swa_utils.AveragedModel": "module",
}

# Where a tensor subclass comes from -> what a parameter of that class means.
TENSORS = {
    "torchao": "a quantized {} ({}): inject into the float model, then quantize",
    "torch.distributed": "a sharded {} ({}): inject first, then shard",
}
QUANTIZED_OPS = {"quantized", "quantized_decomposed", "torchao"}


def inside(model: nn.Module) -> nn.Module:
    """The model inside compiled, data-parallel and averaged wrappers."""
    if not isinstance(model, nn.Module):
        raise SEInjectError(f"expected an nn.Module, found {type(model).__name__}.")
    while attribute := wrapped_in(model):
        model = getattr(model, attribute)
    return model


def wrapped_in(model: nn.Module) -> str:
    """The attribute in which a wrapper holds its model; empty for all else."""
    return next((WRAPPERS[name] for name in map(_name, type(model).__mro__) if name in WRAPPERS), "")


def eager() -> AbstractContextManager[object]:
    """Compiled code runs as it was written meanwhile."""
    if "torch._dynamo" not in sys.modules:  # nothing can be compiled, and to import it takes seconds
        return nullcontext()
    return torch.compiler.set_stance("force_eager")


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside its wrappers, where it can be rewritten.

    Raises ``SEInjectError`` for what has no source or no plain parameters: ScriptModule, FSDP, quantized, lazy.
    """
    model = inside(model)
    for path, module in model.named_modules():
        reason = _refusal(module)
        if reason:
            where = f" at {path}" if path else ""
            raise SEInjectError(f"{type(model).__name__} holds {reason}{where}.")
    return model


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _refusal(module: nn.Module) -> str:
    name = type(module).__module__
    if isinstance(module, torch.jit.ScriptModule):
        return "a ScriptModule, which has no Python source: give the model before torch.jit.script or trace"
    if any(base.__module__.startswith("torch.distributed.fsdp") for base in type(module).__mro__):
        return "an FSDP module: inject first, then shard"
    if ".quantized" in name and "ao.nn" in name and "FloatFunctional" not in type(module).__name__:
        return f"a quantized {type(module).__name__}: inject into the float model, then quantize"
    if isinstance(module, fx.GraphModule) and any(
        getattr(node.target, "namespace", "") in QUANTIZED_OPS for node in module.graph.nodes
    ):
        return "a quantized graph: inject into the float model, then quantize"
    for tensor in module._parameters.values():
        for library, reason in TENSORS.items():
            if type(tensor).__module__.startswith(library):
                return reason.format(type(module).__name__, type(tensor).__name__)
    if isinstance(module, nn.modules.lazy.LazyModuleMixin) and module.has_uninitialized_params():
        return f"an uninitialised {type(module).__name__}: run one forward first, so that its shapes are known"
    return ""
