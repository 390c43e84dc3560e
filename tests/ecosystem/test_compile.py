"""Tracing, scripting and compiling an injected model, and what may happen to it under a compiled wrapper."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import fx, nn
from torch.jit import _builtins

from tests.ecosystem.cases import Case, close, out, over


@pytest.fixture(autouse=True)
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def gradients(model: nn.Module, run: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    torch.manual_seed(0)
    run(x).square().mean().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@over()
def test_fx_retrace(case: Case) -> None:
    """`torch.fx.symbolic_trace`: outputs equal."""
    assert torch.equal(out(fx.symbolic_trace(case.model), case.x), case.y)


@pytest.fixture
def no_dead_builtins(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.jit knows its builtins by `id()`. Importing torchao's PT2E registers operators anew that torch.ao has
    registered, the first ones die, and whatever list gets their address next is taken for an operator."""
    table = {key: name for key, name in _builtins._get_builtin_table().items() if "quantized_decomposed" not in name}
    monkeypatch.setattr(_builtins, "_builtin_table", table)


@over()
def test_script(case: Case, no_dead_builtins: None) -> None:
    """`torch.jit.script`: outputs equal."""
    assert close(out(torch.jit.script(case.model), case.x), case.y, 1e-5)


@over()
def test_trace(case: Case) -> None:
    """`torch.jit.trace`: outputs equal, at another batch size too."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # timm's assertions on shapes
        traced = torch.jit.trace(case.model, case.x)
    x = torch.randn(3, *case.x.shape[1:])
    assert close(out(traced, x), out(case.model, x), 1e-5)


@over()
def test_compile_eval(case: Case) -> None:
    """`torch.compile(fullgraph=True)` in eval mode: one graph, outputs equal."""
    compiled = torch.compile(case.model, backend="eager", fullgraph=True)
    assert torch.equal(out(compiled, case.x), case.y)


@pytest.mark.slow
@over()
def test_compile_train(case: Case) -> None:
    """`torch.compile(fullgraph=True)` in train mode, by AOT autograd: gradients and running statistics equal."""
    model = case.model.train()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    wanted, buffers = gradients(model, model, case.x), {k: b.clone() for k, b in model.named_buffers()}
    model.load_state_dict(state)
    found = gradients(model, torch.compile(model, backend="aot_eager", fullgraph=True), case.x)
    scale = max(g.abs().max() for g in wanted.values())
    assert set(found) == set(wanted) and set(case.added) <= set(found)
    assert all((found[name] - wanted[name]).abs().max() <= 1e-4 * scale for name in wanted)
    assert all(torch.allclose(buffer, buffers[name], rtol=1e-4, atol=1e-5) for name, buffer in model.named_buffers())


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="the inductor backend needs a C++ compiler")
@over(only=("resnet18", "convnext_atto"))
def test_compile_inductor(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`torch.compile` with its own backend, dynamic batch: outputs equal within rounding."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # the common one may hold half-written files
    compiled = torch.compile(case.model, fullgraph=True, dynamic=True)
    assert close(out(compiled, case.x), case.y, 1e-4)


@pytest.mark.slow
@over()
def test_compile_in_place(case: Case) -> None:
    """`model.compile()`: outputs equal, keys without a prefix."""
    keys = list(case.model.state_dict())
    case.model.compile(backend="eager", fullgraph=True)
    assert torch.equal(out(case.model, case.x), case.y) and list(case.model.state_dict()) == keys


@pytest.mark.slow
@over()
def test_class_swap_under_compile(case: Case) -> None:
    """A later `__class__` swap under a compiled model (as FSDP2 and parametrize do) takes effect, and can be undone."""
    compiled = torch.compile(case.model, backend="eager", fullgraph=True)
    assert torch.equal(out(compiled, case.x), case.y)
    for module in [m for m in case.model.modules() if hasattr(m, "fc2") and hasattr(m, "gate")]:
        cls = type(module)
        module.__class__ = type(f"Closed{cls.__name__}", (cls,), {"forward": lambda self, x: x})
    assert torch.equal(out(compiled, case.x), out(case.base, case.x))
    for module in case.model.modules():
        if type(module).__name__.startswith("Closed"):
            module.__class__ = type(module).__mro__[1]
    assert torch.equal(out(compiled, case.x), case.y)
