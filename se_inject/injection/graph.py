"""A whole model as one ``fx.GraphModule``, for tools that take nothing else."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import fx, nn

from se_inject.checks.outputs import same
from se_inject.checks.reference import Run, run_forward
from se_inject.errors import TraceError, first_line
from se_inject.guard import eager
from se_inject.inputs import Inputs
from se_inject.trace.skeleton import to_meta

Maker = Callable[[nn.Module, Inputs], fx.GraphModule]


def _symbolic(model: nn.Module, inputs: Inputs) -> fx.GraphModule:
    return fx.symbolic_trace(model)


def _exported(model: nn.Module, inputs: Inputs) -> fx.GraphModule:
    made = torch.export.export(model, inputs.args, inputs.kwargs).module()
    assert isinstance(made, fx.GraphModule)
    return made


# In order of preference: fx keeps layers as modules and sizes open, export follows more models.
MAKERS: dict[str, Maker] = {"torch.fx": _symbolic, "torch.export": _exported}


def whole(model: nn.Module, inputs: Inputs) -> fx.GraphModule:
    """The graph of the first maker that gives the model's own outputs on ``inputs``.

    Raises ``TraceError`` that says why each of them does not.
    """
    odd = next((path for path, _ in (*model.named_modules(), *model.named_parameters()) if not _plain(path)), None)
    if odd is not None:  # fx writes names into its code as they are
        raise TraceError(f"{type(model).__name__} has a module or parameter called {odd!r}, which is no name in code.")
    if any(p.is_meta for p in model.parameters()):
        inputs = inputs.map(to_meta)
    mode, reasons = model.training, []
    want = run_forward(model, inputs, mode, 0)
    if want.failure:
        raise TraceError(f"{type(model).__name__} cannot be run on the example inputs: {want.failure}.")
    for name, make in MAKERS.items():
        try:
            with warnings.catch_warnings(), eager():
                warnings.simplefilter("ignore")  # the makers warn of what the comparison finds out
                made = make(model, inputs)
        except Exception as error:  # whatever a foreign forward raises
            reasons.append(f"{name}: {first_line(error)}")
            continue
        # An exported module has one mode, the model's, and cannot be asked for it.
        if equal(want, run_forward(made, inputs, mode and name == "torch.fx", 0)):
            return made
        reasons.append(f"{name}: the graph gives other outputs")
    raise TraceError(f"{type(model).__name__} is not one graph: {'; '.join(reasons)}. inject and plan need none.")


def _plain(path: str) -> bool:
    return all(part.isidentifier() or part.isdecimal() for part in path.split(".") if path)


def equal(want: Run, got: Run) -> bool:
    """Whether two forwards gave the same; of tensors without data, the same shapes."""
    if got.failure or len(want.outputs) != len(got.outputs):
        return False
    pairs = zip(want.outputs, got.outputs, strict=True)
    return all(a.shape == b.shape and a.dtype == b.dtype if a.is_meta else same(a, b) for a, b in pairs)
