"""Two gloo processes train an injected model, replicated and sharded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import multiprocessing

import se_inject
from tests.ecosystem import distributed
from tests.ecosystem.cases import Case, out, over

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the state dict of each rank, for each way and model."""
    folder = tmp_path_factory.mktemp("ranks")
    multiprocessing.spawn(distributed.work, (str(folder),), nprocs=distributed.RANKS)
    return folder


def states(trained: Path, way: str, case: Case) -> list[dict[str, torch.Tensor]]:
    found: list[Any] = [
        torch.load(trained / f"{way}-{case.name}-{rank}.pt", weights_only=True) for rank in range(distributed.RANKS)
    ]
    assert all(isinstance(state, dict) for state in found), found
    return found


def check(trained: Path, way: str, case: Case) -> dict[str, torch.Tensor]:
    """Both ranks have the same parameters, under the keys of the plain model, which loads them; the blocks moved."""
    first, second = states(trained, way, case)
    assert list(first) == list(second) and set(first) == set(case.model.state_dict())
    trained_names = [name for name, _ in case.model.named_parameters()]
    assert all(torch.equal(first[name], second[name]) for name in trained_names)
    assert not any(torch.equal(first[name], case.model.state_dict()[name]) for name in case.added)
    fresh = se_inject.apply(case.base, case.plan)
    fresh.load_state_dict(first)
    assert out(fresh, case.x).isfinite().all()
    return {name: first[name] for name in trained_names}


@over()
def test_e2_ddp(case: Case, trained: Path) -> None:
    """`DistributedDataParallel`: parameters of both ranks equal after two steps, keys those of the plain model."""
    check(trained, "ddp", case)


@over()
def test_e2_fsdp_root(case: Case, trained: Path) -> None:
    """FSDP2, `fully_shard` of the root: the same, and the parameters are those of DDP within rounding."""
    same_as_ddp(trained, "fsdp_root", case)


@over()
def test_e2_fsdp_stages(case: Case, trained: Path) -> None:
    """FSDP2, `fully_shard` of every stage, then the root: the same."""
    same_as_ddp(trained, "fsdp_stages", case)


@over()
def test_e2_fsdp_blocks(case: Case, trained: Path) -> None:
    """FSDP2, `fully_shard` of every rewritten module, then the root: the same."""
    same_as_ddp(trained, "fsdp_blocks", case)


def same_as_ddp(trained: Path, way: str, case: Case) -> None:
    found, wanted = check(trained, way, case), check(trained, "ddp", case)
    for name, value in found.items():
        assert torch.allclose(value, wanted[name], rtol=1e-4, atol=1e-5), name
