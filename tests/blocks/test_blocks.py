"""The Squeeze-and-Excitation block by itself: its equation, its start, its options."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.layers import SEModule
from torch import fx, nn

from se_inject.blocks import BLOCKS
from se_inject.blocks.squeeze_excite import SqueezeExcite


def block(**options: Any) -> SqueezeExcite:
    return SqueezeExcite(8, rd_channels=4, **options)


def test_the_equation() -> None:
    """y = sigmoid(W2 relu(W1 mean(x) + b1) + b2) * x, on a map that is not square."""
    se, x = block().double(), torch.randn(3, 8, 5, 2, dtype=torch.float64)
    w1, w2 = se.fc1.weight.flatten(1), se.fc2.weight.flatten(1)
    s = torch.sigmoid(torch.relu(x.mean((2, 3)) @ w1.T + se.fc1.bias) @ w2.T + se.fc2.bias)
    assert torch.allclose(se(x), x * s[:, :, None, None], rtol=1e-12, atol=0)
    assert not torch.allclose(se(x), x)


def test_keys_and_values_are_timms() -> None:
    theirs, ours = SEModule(32, rd_ratio=1 / 4), SqueezeExcite(32, rd_channels=8)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.randn(2, 32, 6, 5)
    assert torch.equal(ours(x), theirs(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("gate", ["sigmoid", "hardsigmoid"])
def test_the_identity_is_exact_in_every_format(dtype: torch.dtype, gate: str) -> None:
    se = block(gate=gate, gain=2.0, zero_init=True).to(dtype)
    x = torch.randn(4, 8, 3, 3).to(dtype) * 100
    y = se(x)
    assert y.dtype is dtype and torch.equal(y, x)
    half = block(gate=gate, zero_init=True).to(dtype)
    assert torch.equal(half(x), x / 2)
    with torch.no_grad():
        se.fc2.bias.fill_(0.1)
    assert not torch.equal(se(x), x)


@pytest.mark.parametrize("enabled", [True, False])
def test_autocast_keeps_the_maps_dtype(enabled: bool) -> None:
    se, x = block(gain=2.0, zero_init=True), torch.randn(2, 8, 4, 4).bfloat16()
    if not enabled:
        se.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
        y = se(x)
    assert y.dtype is torch.bfloat16 and torch.equal(y, x)


def test_no_shape_is_written_into_its_graph() -> None:
    """A graph made at one size runs at any other: no python numbers taken from a shape."""
    graph = fx.symbolic_trace(block())
    assert not [n for n in graph.graph.nodes if n.target in ("size", "view", "reshape") or "shape" in n.args]
    for shape in ((1, 8, 1, 1), (3, 8, 7, 5)):
        x = torch.randn(shape)
        assert graph(x).shape == x.shape


def test_channels_last_stays() -> None:
    x = torch.randn(2, 8, 4, 4).to(memory_format=torch.channels_last)
    assert block()(x).is_contiguous(memory_format=torch.channels_last)


def test_the_order_of_learning() -> None:
    """With a zeroed last layer only that layer has a gradient at first; the input's is that of the identity."""
    se = block(gain=2.0, zero_init=True)
    x = torch.randn(2, 8, 4, 4, requires_grad=True)
    se(x).square().sum().backward()
    assert se.fc2.weight.grad is not None and se.fc2.weight.grad.any() and se.fc2.bias.grad.any()
    assert se.fc1.weight.grad is not None and not se.fc1.weight.grad.any()
    assert torch.equal(x.grad, 2 * x.detach())  # type: ignore[arg-type]


def test_options_of_the_constructor() -> None:
    se = block(bias=False, act="silu", gate="hardsigmoid", gain=2.0)
    assert se.fc1.bias is None and se.fc2.bias is None
    assert type(se.act) is nn.SiLU and type(se.gate) is nn.Hardsigmoid
    assert "gain=2" in repr(se) and "gain" not in repr(block())
    assert sum(p.numel() for p in block().parameters()) == 2 * 8 * 4 + 8 + 4
    meta = SqueezeExcite(8, rd_channels=4, device="meta", dtype=torch.float16)
    assert meta.fc1.weight.is_meta and meta.fc2.weight.dtype is torch.float16
    with pytest.raises(TypeError):
        SqueezeExcite(8, rd_channels=4, unknown=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        SqueezeExcite(8, 4)  # type: ignore[misc]


def test_the_table() -> None:
    assert BLOCKS["se"].module is SqueezeExcite
    assert "NCHW" in BLOCKS["se"].layouts and set(BLOCKS["se"].inits) >= {"identity", "absorb", "paper"}
    assert "1709.01507" in BLOCKS["se"].paper


@pytest.mark.filterwarnings("ignore:.*is deprecated")
def test_torch_jit_script() -> None:
    se, x = block(gain=2.0), torch.randn(2, 8, 4, 3)
    assert torch.equal(torch.jit.script(se)(x), se(x))
