"""Memory, tensors that no file holds, and tensors that are not plain."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from se_inject.checkpoints.checkpoint import read_state_dict
from se_inject.checkpoints.wrappers import match_keys
from se_inject.models.assign import assign
from tests.checkpoints.files import refused, save_legacy, save_shards
from tests.checkpoints.test_forms import SPEC, convert, net
from tests.helpers import ROOT, load_model, randomise

BENCH = ROOT / "benchmarks" / "bench.py"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs the memory maps of Linux")
def test_a5_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory of its own and resident memory, against the file, as `make bench` says them of 1.8 GB."""
    spec = importlib.util.spec_from_file_location("bench", BENCH)
    assert spec is not None and spec.loader is not None
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    monkeypatch.setattr(bench, "CHECKPOINT", 256 << 20)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(BENCH.parents[1]), os.environ.get("PYTHONPATH", "")]))
    rows = list(bench.read())
    assert len(rows) == 8 and not [row for row in rows if row[2] > row[3]], rows
    assert all(ratio > 0.9 for what, _, ratio, _ in rows if "resident" in what), "every page was read"


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "levit_128s"])
def test_a7_buffers_that_no_state_dict_holds(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    model = randomise(timm.create_model(name, num_classes=3)).eval()
    save_file(model.state_dict(), tmp_path / "x.safetensors")
    loaded = load_model(f"timm:{name}", model_args={"num_classes": 3}, checkpoint=tmp_path / "x.safetensors").model
    buffers = dict(model.named_buffers())
    assert set(buffers) - set(model.state_dict())
    assert not any(t.is_meta for t in (*loaded.parameters(), *loaded.buffers()))
    assert all(torch.equal(buffer, buffers[key]) for key, buffer in loaded.named_buffers())
    x = torch.randn(1, 3, 224, 224)
    assert torch.equal(loaded(x), model(x))


def changed(name: str, value: Any) -> dict[str, Any]:
    return {**net().state_dict(), name: value}


def test_a8_expanded_zeros_do_not_blow_up(tmp_path: Path) -> None:
    """1.5 KB on disk, 16 GiB where it is laid out: refused by name, as unexpected, and as of another shape."""
    huge = torch.zeros(1).expand(2**20, 2**12)
    torch.save({"state_dict": {"x": huge}}, tmp_path / "small.pt")
    assert (tmp_path / "small.pt").stat().st_size < 3000
    assert "1 unexpected: x." in refused(tmp_path / "small.pt", spec=SPEC)
    torch.save(changed("fc.bias", huge), tmp_path / "x.pt")
    assert "fc.bias (file float32[1048576, 4096], model float32[1000])" in refused(tmp_path / "x.pt", spec=SPEC)


@pytest.mark.parametrize(
    "value",
    [
        torch.full((1,), 0.5).expand(1000),  # stride 0
        torch.arange(2000.0)[::2],  # every second
        torch.arange(3000.0).as_strided((1000,), (1,), 7),  # in the middle of its storage
        nn.Parameter(torch.ones(1000)),
    ],
    ids=["stride 0", "strided", "offset", "parameter"],
)
def test_a8_views_are_laid_out(tmp_path: Path, value: torch.Tensor) -> None:
    torch.save(changed("fc.bias", value), tmp_path / "x.pt")
    convert(tmp_path / "x.pt", tmp_path / "out")
    assert torch.equal(load_file(tmp_path / "out" / "model.safetensors")["fc.bias"], value.detach())


@pytest.mark.parametrize("kind", ["zip", "legacy"])
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: torch.ones(1000).to_sparse(), "'fc.bias' is sparse; only plain tensors can be loaded."),
        (lambda: torch.quantize_per_tensor(torch.ones(1000), 1.0, 0, torch.qint8), "_rebuild_qtensor"),
        (lambda: torch.ones(1000, device="meta"), "_rebuild_meta_tensor_no_storage"),
        (lambda: torch.ones(1000, dtype=torch.complex64), "fc.bias (file complex64[1000], model float32[1000])"),
        (lambda: torch.ones(1000, dtype=torch.int8), "fc.bias (file int8[1000], model float32[1000])"),
        (lambda: torch.nested.nested_tensor([torch.ones(2)]), "_rebuild_nested_tensor"),
    ],
    ids=["sparse", "quantized", "meta", "complex", "integer", "nested"],
)
@pytest.mark.filterwarnings("ignore")  # torch's own, of nested and quantized tensors
def test_a8_other_tensors_are_refused_by_name(
    tmp_path: Path, kind: str, make: Callable[[], torch.Tensor], said: str
) -> None:
    {"zip": torch.save, "legacy": save_legacy}[kind](changed("fc.bias", make()), tmp_path / "x.pt")
    assert said in refused(tmp_path / "x.pt", spec=SPEC)


def test_a8_tied_tensors_stay_tied(tmp_path: Path) -> None:
    """In one file, in shards, or with one of the two left out, as safetensors writes them."""

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)
            self.b.weight = self.a.weight

    state = Tied().state_dict()
    torch.save(state, tmp_path / "both.pt")
    alone = {key: value for key, value in state.items() if key != "b.weight"}
    save_file(alone, tmp_path / "one.safetensors")
    index = save_shards(alone, tmp_path / "shards")
    for path in (tmp_path / "both.pt", tmp_path / "one.safetensors", index):
        model, file = Tied(), read_state_dict(path)
        assign(model, match_keys(file.tensors, file.versions, model.state_dict()))
        assert model.b.weight is model.a.weight and torch.equal(model.a.weight, state["a.weight"])
