"""An injected model is a module like any other: classes, keys, copies, files, wrappers of torch itself."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_model, save_model
from torch import nn

import se_inject
from se_inject.surgery import classes as generated
from tests.ecosystem.cases import Case, close, out, over


@over()
def test_every_gate_shows(case: Case) -> None:
    """What the other rows rest on: a block that is lost moves the output by more than their bounds."""
    for path in case.blocks:
        block = case.model.get_submodule(path)
        case.model.set_submodule(path, nn.Identity())
        assert not close(out(case.model, case.x), case.y, 1e-3), path
        case.model.set_submodule(path, block)


@over()
def test_isinstance(case: Case) -> None:
    """Every module is an instance of its class from before; the root keeps its class."""
    assert type(case.model).__name__.removeprefix("SE") == type(case.base).__name__
    for path, module in case.base.named_modules():
        found = case.model.get_submodule(path)
        assert isinstance(found, type(module)) or (path in case.blocks and type(module) is nn.Identity), path


@over()
def test_keys(case: Case) -> None:
    """All keys of before, in their order; what is new belongs to the blocks."""
    before, after = list(case.base.state_dict()), list(case.model.state_dict())
    assert [key for key in after if key not in case.added] == before
    assert len(case.added) == 4 * len(case.blocks)


@over()
def test_load_of_the_original(case: Case) -> None:
    """`load_state_dict(original, strict=False)`: nothing unexpected, and only the blocks' keys missing."""
    found = case.model.load_state_dict(case.base.state_dict(), strict=False)
    assert found.unexpected_keys == [] and sorted(found.missing_keys) == sorted(case.added)


@over()
def test_deepcopy(case: Case) -> None:
    """`copy.deepcopy`: the same class, outputs equal, no tensor shared."""
    copied = copy.deepcopy(case.model)
    assert [type(m) for m in copied.modules()] == [type(m) for m in case.model.modules()]
    assert torch.equal(out(copied, case.x), case.y)
    assert not {p.data_ptr() for p in copied.parameters()} & {p.data_ptr() for p in case.model.parameters()}


@over()
def test_pickle(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """`pickle`: outputs equal, also where the generated class has to be made again."""
    data = pickle.dumps(case.model)
    monkeypatch.setattr(generated, "_CLASSES", {})
    assert torch.equal(out(pickle.loads(data), case.x), case.y)


@over()
def test_safetensors(case: Case, tmp_path: Path) -> None:
    """`safetensors.torch.save_model` and `load_model`: strict, outputs equal."""
    save_model(case.model, str(tmp_path / "model.safetensors"))
    fresh = se_inject.apply(case.base, case.plan)
    assert load_model(fresh, tmp_path / "model.safetensors") == (set(), [])
    assert torch.equal(out(fresh, case.x), case.y)


@over()
def test_meta_and_assign(case: Case) -> None:
    """A copy on the meta device takes the weights by `load_state_dict(assign=True)`, and shares them."""
    empty = copy.deepcopy(case.model).to("meta")
    assert out(empty, case.x.to("meta")).shape == case.y.shape
    empty.load_state_dict(case.model.state_dict(), assign=True)
    assert torch.equal(out(empty, case.x), case.y)
    assert {p.data_ptr() for p in empty.parameters()} == {p.data_ptr() for p in case.model.parameters()}


@over()
def test_functional_call(case: Case) -> None:
    """`torch.func.functional_call` with parameters of its own, the blocks' included."""
    state = {**case.model.state_dict(), **{key: torch.zeros_like(case.model.state_dict()[key]) for key in case.added}}
    closed = torch.func.functional_call(case.model, state, (case.x,))
    assert torch.equal(closed, out(case.base, case.x))  # zeroed, the gates are at their start again
    assert torch.equal(out(case.model, case.x), case.y)


@over()
def test_vmap_over_an_ensemble(case: Case) -> None:
    """`torch.func.stack_module_state` and `vmap`: two models of other gates in one call."""
    other = copy.deepcopy(case.model)
    with torch.no_grad():
        for path in case.blocks:
            for parameter in other.get_submodule(path).parameters():
                parameter.neg_()
    params, buffers = torch.func.stack_module_state([case.model, other])

    def call(params: dict[str, torch.Tensor], buffers: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.func.functional_call(case.model, (params, buffers), (case.x,))

    found = torch.func.vmap(call)(params, buffers)
    assert close(found[0], case.y, 1e-5) and close(found[1], out(other, case.x), 1e-5)


@over()
def test_replicate_for_data_parallel(case: Case) -> None:
    """`_replicate_for_data_parallel`, of which `nn.DataParallel` makes its replicas: class and blocks are there."""
    for path in {*case.owners, ""}:
        module = case.model.get_submodule(path)
        replica = module._replicate_for_data_parallel()
        assert type(replica) is type(module) and list(replica._modules) == list(module._modules)
    replica = case.model._replicate_for_data_parallel()
    replica._parameters = case.model._parameters
    assert torch.equal(out(replica, case.x), case.y)


@over()
def test_channels_last(case: Case) -> None:
    """`memory_format=torch.channels_last`: outputs equal within rounding, and the layout is kept through the blocks."""
    model = case.model.to(memory_format=torch.channels_last)
    seen: list[bool] = []
    for path in case.blocks:
        model.get_submodule(path).register_forward_hook(
            lambda _, args, y: seen.append(y.is_contiguous(memory_format=torch.channels_last))
        )
    assert close(out(model, case.x.to(memory_format=torch.channels_last)), case.y, 1e-5)
    assert len(seen) == len(case.blocks) and all(seen)


@over()
def test_autocast_bfloat16(case: Case) -> None:
    """`torch.autocast` to bfloat16: no block turns its feature map back to float32; the loss can be differentiated."""
    dtypes: dict[str, tuple[torch.dtype, torch.dtype]] = {}
    for path in case.blocks:
        case.model.get_submodule(path).register_forward_hook(
            lambda _, args, y, path=path: dtypes.update({path: (args[0].dtype, y.dtype)})
        )
    with torch.autocast("cpu", torch.bfloat16):
        found = case.model(case.x)
    assert close(found.float(), case.y, 0.1)
    assert set(dtypes) == set(case.blocks) and all(before == after for before, after in dtypes.values())
    found.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in case.model.parameters())
