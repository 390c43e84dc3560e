"""What rebuilds a model for inference keeps every block: fusion, quantization, synchronised norms."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from timm.layers import convert_sync_batchnorm
from torch import nn
from torch.ao.quantization import fuse_modules, get_default_qconfig_mapping
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx
from torch.fx.experimental.optimization import fuse

from tests.ecosystem.cases import Case, Fails, close, out, over

QUANTIZED = 0.3  # of the largest logit: int8 without any calibration worth the name


def pairs(model: nn.Module) -> list[list[str]]:
    """Each convolution with the batch norm that is registered right after it."""
    found = []
    for path, module in model.named_modules():
        children = list(module.named_children())
        for (name, a), (after, b) in pairwise(children):
            if type(a) is nn.Conv2d and type(b) is nn.BatchNorm2d:
                found.append([f"{path}.{name}" if path else name, f"{path}.{after}" if path else after])
    return found


@over()
def test_fuse_fx(case: Case) -> None:
    """`torch.fx.experimental.optimization.fuse` (conv and batch norm): relative error under 1e-4, every block there."""
    fused = fuse(case.model)
    assert close(out(fused, case.x), case.y, 1e-4)
    assert all(isinstance(fused.get_submodule(path).fc2, nn.Conv2d) for path in case.blocks)


@over(only=("resnet50", "resnet18"))
def test_fuse_modules(case: Case) -> None:
    """`torch.ao.quantization.fuse_modules` of every convolution with its batch norm: the same."""
    fused = fuse_modules(case.model, pairs(case.model))
    assert not any(type(m) is nn.BatchNorm2d for m in fused.modules())
    assert close(out(fused, case.x), case.y, 1e-4)
    assert all(isinstance(fused.get_submodule(path).fc2, nn.Conv2d) for path in case.blocks)


NORM_AND_ACT = Fails(AssertionError, "torch's converter drops the activation in timm's BatchNormAct2d; use timm's")


@over(fails={"efficientnet_lite0": NORM_AND_ACT, "regnetx_002": NORM_AND_ACT})
def test_sync_batch_norm(case: Case) -> None:
    """`nn.SyncBatchNorm.convert_sync_batchnorm`: outputs equal, every block there."""
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(case.model)
    assert torch.equal(out(synced, case.x), case.y)


@over()
def test_sync_batch_norm_timm(case: Case) -> None:
    """timm's `convert_sync_batchnorm`: the same."""
    synced = convert_sync_batchnorm(case.model)
    assert torch.equal(out(synced, case.x), case.y)


@over()
def test_torchao_int8(case: Case) -> None:
    """torchao `quantize_` to int8 weights, of the linear layers and of the blocks' convolutions."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(case.model, Int8WeightOnlyConfig(version=2))
    found = out(case.model, case.x)
    assert not torch.equal(found, case.y) and close(found, case.y, 0.05)


@pytest.mark.slow
@over(fails={"resnet50": Fails(ValueError, "the quantizer does not take a ReLU module that runs more than once")})
def test_pt2e_quantization(case: Case) -> None:
    """PT2E quantization (torchao, X86 quantizer): error under 0.3, each gate still in the graph."""
    import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer as x86
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(torch.export.export(case.model, (case.x,)).module(), quantizer)
    out(prepared, case.x)
    quantized = convert_pt2e(prepared)
    assert close(out(quantized, case.x), case.y, QUANTIZED)
    names = [str(node.target) for node in quantized.graph.nodes]
    assert sum("sigmoid" in name for name in names) == len(case.blocks)
    assert sum("quantize_per_tensor" in name for name in names) > len(case.blocks)


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Please use quant_min and quant_max:UserWarning")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor, .* are deprecated:UserWarning")
@over()
def test_fx_quantization(case: Case) -> None:
    """FX graph mode quantization (`torch.ao`, fbgemm): error under 0.3, each gate still in the graph."""
    prepared: Any = prepare_fx(case.model, get_default_qconfig_mapping("fbgemm"), (case.x,))
    out(prepared, case.x)
    quantized = convert_fx(prepared)
    assert close(out(quantized, case.x), case.y, QUANTIZED)
    kinds = [type(quantized.get_submodule(f"{path}.fc2")).__module__ for path in case.blocks]
    assert all("quantized" in kind for kind in kinds)
