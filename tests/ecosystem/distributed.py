"""The worker of `test_distributed.py`: one of two gloo processes, which trains every model in every way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from tests.ecosystem import cases

RANKS = 2


def parents(paths: list[str]) -> list[str]:
    """The modules that hold these, each once."""
    return list(dict.fromkeys(path.rpartition(".")[0] for path in paths))


def ddp(case: cases.Case) -> nn.Module:
    return DistributedDataParallel(case.model)


def fsdp_root(case: cases.Case) -> nn.Module:
    return fully_shard(case.model)


def fsdp_stages(case: cases.Case) -> nn.Module:
    for path in parents(case.owners):
        fully_shard(case.model.get_submodule(path))
    return fully_shard(case.model)


def fsdp_blocks(case: cases.Case) -> nn.Module:
    for path in case.owners:
        fully_shard(case.model.get_submodule(path))
    return fully_shard(case.model)


WAYS = {"ddp": ddp, "fsdp_root": fsdp_root, "fsdp_stages": fsdp_stages, "fsdp_blocks": fsdp_blocks}


def train(way: str, name: str) -> dict[str, Any]:
    """Two steps on data of this rank's own; the whole state dict after them."""
    case = cases.case(name)
    kinds = [type(case.model.get_submodule(path)) for path in case.owners]
    model = WAYS[way](case).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    generator = torch.Generator().manual_seed(dist.get_rank())
    torch.manual_seed(0)
    for _ in range(2):
        optimizer.zero_grad()
        x = torch.randn(2, *cases.SIZE, generator=generator)
        F.cross_entropy(model(x), torch.tensor([3, 7])).backward()
        optimizer.step()
    for path, kind in zip(case.owners, kinds, strict=True):
        assert isinstance(case.model.get_submodule(path), kind)
    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=False))


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", RANKS)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=RANKS)
    for way in WAYS:
        for name in cases.MODELS:
            try:
                result: Any = train(way, name)
            except Exception as error:
                result = f"{type(error).__name__}: {error}"
            torch.save(result, Path(folder) / f"{way}-{name}-{rank}.pt")
    dist.destroy_process_group()
