"""E1: `torch.export`, .pt2 files and ONNX."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim, ExportedProgram, export, unflatten

from tests.ecosystem.cases import Case, close, out, over

DYNAMIC = ({0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC},)


def gates(program: ExportedProgram) -> int:
    """How many blocks the program still names: each node remembers the modules that it came from."""
    paths = {path for node in program.graph.nodes for path, _ in node.meta.get("nn_module_stack", {}).values()}
    return sum(path.endswith((".se", ".se_1")) for path in paths)


@over()
def test_export(case: Case) -> None:
    """`torch.export.export`: outputs equal, each block in the program."""
    program = export(case.model, (case.x,))
    assert torch.equal(out(program.module(), case.x), case.y)
    assert gates(program) == len(case.blocks)
    assert set(program.state_dict) == set(case.model.state_dict())


@pytest.mark.slow
@over()
def test_export_strict(case: Case) -> None:
    """`export(strict=True)`: the same."""
    program = export(case.model, (case.x,), strict=True)
    assert torch.equal(out(program.module(), case.x), case.y)
    assert gates(program) == len(case.blocks)


@pytest.mark.slow
@over()
def test_export_dynamic(case: Case) -> None:
    """`export` with a dynamic batch and image size: outputs equal at batches 1 and 7 and at other sizes."""
    module = export(case.model, (case.x,), dynamic_shapes=DYNAMIC).module()
    for batch, height, width in ((1, 64, 64), (7, 64, 96), (2, 128, 64)):
        x = torch.randn(batch, 3, height, width)
        assert close(out(module, x), out(case.model, x), 1e-5)


@over()
def test_unflatten(case: Case) -> None:
    """`torch.export.unflatten`: outputs equal, the blocks are modules again."""
    modules: Any = unflatten(export(case.model, (case.x,)))
    assert torch.equal(out(modules, case.x), case.y)
    for path in case.blocks:
        assert isinstance(modules.get_submodule(path), nn.Module)


@pytest.mark.slow
@over()
def test_pt2(case: Case, tmp_path: Path) -> None:
    """`torch.export.save` and `load` of a .pt2 file: outputs equal, the keys too."""
    torch.export.save(export(case.model, (case.x,)), tmp_path / "model.pt2")
    program = torch.export.load(tmp_path / "model.pt2")
    assert torch.equal(out(program.module(), case.x), case.y)
    assert set(program.state_dict) == set(case.model.state_dict())


@pytest.mark.slow
@over()
def test_onnx(case: Case, tmp_path: Path) -> None:
    """`torch.onnx.export` with a dynamic batch: the checker passes, ONNX Runtime gives the same within 1e-4."""
    import onnx
    import onnxruntime

    path = tmp_path / "model.onnx"
    torch.onnx.export(
        case.model, (case.x,), path, dynamic_shapes=({0: Dim("batch")},), external_data=False, verbose=False
    )
    onnx.checker.check_model(str(path), full_check=True)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    for batch in (2, 5):
        x = torch.randn(batch, *case.x.shape[1:])
        assert close(torch.from_numpy(session.run(None, {name: x.numpy()})[0]), out(case.model, x), 1e-4)
