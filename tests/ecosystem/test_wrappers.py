"""What is given to the API wrapped, sharded, scripted or quantized."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.ao.quantization import get_default_qconfig_mapping
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

import se_inject
from tests.ecosystem.cases import SIZE, Case, out, over


@pytest.fixture(scope="module", autouse=True)
def process_group() -> Iterator[None]:
    """A process group of one."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


WRAPPERS: dict[str, Callable[[nn.Module], Any]] = {
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "DDP": DistributedDataParallel,
    "averaged": AveragedModel,
    "averaged DDP": lambda model: AveragedModel(DistributedDataParallel(model)),
}


@over()
def test_e6_unwrapped(case: Case) -> None:
    """Compiled, DDP and averaged models: what is inside is injected, without their prefixes in the keys."""
    for kind, wrap in WRAPPERS.items():
        model = se_inject.apply(wrap(case.base), case.plan)
        assert list(model.state_dict()) == list(case.model.state_dict()), kind
        assert torch.equal(out(model, case.x), out(case.base, case.x)), kind


def fx_quantized(model: nn.Module, x: torch.Tensor) -> nn.Module:
    prepared = prepare_fx(model, get_default_qconfig_mapping("fbgemm"), (x,))
    out(prepared, x)
    return convert_fx(prepared)


def pt2e_quantized(model: nn.Module, x: torch.Tensor) -> nn.Module:
    import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer as x86
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(torch.export.export(model, (x,)).module(), quantizer)
    out(prepared, x)
    return convert_pt2e(prepared)


def torchao_quantized(model: nn.Module, x: torch.Tensor) -> nn.Module:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(model, Int8WeightOnlyConfig(version=2))
    return model


def tensor_parallel(model: nn.Module, x: torch.Tensor) -> nn.Module:
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

    return parallelize_module(model, dist.init_device_mesh("cpu", (1,)), {"fc": ColwiseParallel()})


REFUSED: dict[str, tuple[Callable[[nn.Module, torch.Tensor], Any], str]] = {
    "FSDP2": (lambda model, x: fully_shard(model), "holds an FSDP module: inject first, then shard"),
    "FSDP1": (
        lambda model, x: FullyShardedDataParallel(model, device_id=torch.device("cpu")),
        "holds an FSDP module: inject first, then shard",
    ),
    "tensor parallel": (tensor_parallel, r"holds a sharded Linear \(DTensor\): inject first, then shard at fc"),
    "scripted": (lambda model, x: torch.jit.script(model), "holds a ScriptModule, which has no Python source"),
    "traced": (lambda model, x: torch.jit.trace(model, x), "holds a ScriptModule, which has no Python source"),
    "FX quantized": (fx_quantized, "holds a quantized ConvReLU2d: inject into the float model, then quantize at conv1"),
    "PT2E quantized": (pt2e_quantized, "holds a quantized graph: inject into the float model, then quantize"),
    "torchao": (torchao_quantized, r"holds a quantized Linear \(Int8Tensor\): inject into the float model, .* at fc"),
}


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Please use quant_min and quant_max:UserWarning")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor, .* are deprecated:UserWarning")
@pytest.mark.filterwarnings("ignore:FSDP is switching to use `NO_SHARD`:UserWarning")
@pytest.mark.parametrize("kind", REFUSED)
@over(only=("resnet18",))
def test_e6_refused(case: Case, kind: str) -> None:
    """FSDP, tensor parallel, ScriptModule, quantized: refused by name, by every entry."""
    make, reason = REFUSED[kind]
    model = make(copy.deepcopy(case.base), case.x)
    for entry in (
        lambda: se_inject.inject(model, SIZE),
        lambda: se_inject.plan(model, SIZE),
        lambda: se_inject.apply(model, case.plan),
        lambda: se_inject.remove(model),
        lambda: se_inject.cost(model, SIZE),
    ):
        with pytest.raises(se_inject.SEInjectError, match=reason):
            entry()
