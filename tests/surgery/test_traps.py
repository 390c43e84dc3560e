"""Traps that were met on the way, each with the smallest net that has it. Those of one file have their test there:
slots and names in test_splice, decorators, closures and ``super()`` in test_generated, copies of files in test_store.
"""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path
from types import MethodType
from typing import Any

import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

import se_inject
from se_inject.errors import SEInjectError
from tests.helpers import refused
from tests.tiny import SIZE, Layers, Net, Residual, image, inject, net, open_gates

ROUNDING = 1e-4  # fusing rounds weights anew; relative to the output's size


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool((a - b).abs().max() < ROUNDING * b.abs().max())


# -- more than one path -----------------------------------------------------------------------------------------------
class Fusable(Layers):
    """Its branch runs as two convolutions, and as one after ``fuse``; an insertion in one path is lost in the other."""

    def __init__(self) -> None:
        super().__init__()
        self.fused: Any = None

    def fuse(self) -> None:
        self.fused = nn.Conv2d(8, 8, 5, padding=2)

    def forward(self, x):
        if self.fused is not None:
            return F.relu(x + self.fused(x))
        return F.relu(x + self.bn2(self.conv2(self.first(x))))


class FusableSlot(Fusable):
    """The zoo's way out: a slot that both paths run."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.Identity()

    def forward(self, x):
        y = self.fused(x) if self.fused is not None else self.bn2(self.conv2(self.first(x)))
        return F.relu(x + self.attn(y))


def test_a_slot_serves_both_paths() -> None:
    model = open_gates(inject(net(FusableSlot)).model)
    ran: list[int] = []
    model.blocks[0].attn.register_forward_hook(lambda *args: ran.append(1))
    model(image())
    model.blocks[0].fuse()
    model(image())
    assert len(ran) == 2


def test_an_insertion_on_one_of_two_paths_is_said_in_the_plan() -> None:
    (decision,) = inject(net(Fusable)).plan.insertions
    assert decision.site.note.code == "one-path"


# -- what stands in the way -------------------------------------------------------------------------------------------
class Tanh(Layers):
    """The end of its branch is no module, so that no wrapped output can carry the block instead."""

    def forward(self, x):
        return F.relu(x + torch.tanh(self.conv2(self.first(x))))


def test_a_foreign_forward_on_the_instance_is_a_reason() -> None:
    model = net(Tanh)
    block = model.blocks[0]
    block.forward = lambda x: type(block).forward(block, x)
    with refused("own-forward", "forward is set on the instance of Tanh"):
        inject(model)
    block.forward = MethodType(Tanh.forward, block)
    assert inject(model).plan.insertions


class Twice(nn.Module):
    def forward(self, x):
        return x * 2


class Scaled(Residual):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1))

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(x + y * self.gain)


def test_a_parametrized_owner_is_not_lost_in_silence() -> None:
    """It goes back to its own class when the parametrization is removed: it cannot be rewritten, and that is said."""
    model = net(Scaled, 2)
    nn.utils.parametrize.register_parametrization(model.blocks[1], "gain", Twice())
    try:
        result = inject(model)
    except SEInjectError as error:
        assert "parametriz" in str(error)
        return
    assert any(d.site.owner == "blocks.1" for d in result.plan.decisions)


def test_a_parametrized_child_is_no_hindrance() -> None:
    model = net()
    nn.utils.parametrizations.weight_norm(model.blocks[0].conv2)
    result, y = inject(model), model(image())
    assert torch.equal(result.model(image()), y)
    nn.utils.parametrize.remove_parametrizations(result.model.blocks[0].conv2, "weight")
    assert type(result.model.blocks[0].conv2) is nn.Conv2d
    assert torch.equal(result.model(image()), y)


def test_a_model_compiled_in_place() -> None:
    model = net()
    model.compile(backend="eager", fullgraph=True)
    x = image()
    y = model(x)
    copied = open_gates(inject(model).model)
    assert torch.equal(model(x), y) and not torch.equal(copied(x), y)
    inject(model, inplace=True)
    assert torch.equal(model(x), y)
    open_gates(model)
    assert torch.equal(model(x), copied(x))  # not the compiled code of before
    se_inject.remove(model, inplace=True)
    assert torch.equal(model(x), y)


def test_compile_in_one_graph() -> None:
    model = open_gates(inject(net(n=3)).model)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert torch.equal(compiled(image()), model(image()))


# -- optimizers, averages, mapped files -------------------------------------------------------------------------------
@pytest.mark.parametrize("init", ["identity", "absorb"])
def test_an_optimizer_made_before_goes_on_and_can_be_mapped(init: str) -> None:
    """In place every parameter stays the same object. The order of ``parameters()`` moves: state goes over by name."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(image()).square().sum().backward()
    optimizer.step()
    before = [name for name, _ in model.named_parameters()]
    inject(model, {"placement": "standard", "init": init}, inplace=True)
    after = [name for name, _ in model.named_parameters()]
    assert [name for name in after if ".se." not in name] == before
    assert after[: len(before)] != before  # an index means another parameter now
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert {id(p) for name, p in model.named_parameters() if ".se." not in name} == held
    weight = model.blocks[0].bn2.weight.clone()
    optimizer.zero_grad()
    model(image()).square().sum().backward()
    optimizer.step()
    assert not torch.equal(model.blocks[0].bn2.weight, weight)

    state = optimizer.state_dict()
    moved = {after.index(before[i]): value for i, value in state["state"].items()}
    again = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    groups = [{**state["param_groups"][0], "params": list(range(len(after)))}]
    again.load_state_dict({"state": moved, "param_groups": groups})
    for name, parameter in model.named_parameters():
        if ".se." in name:
            assert parameter not in again.state
        else:
            assert torch.equal(again.state[parameter]["momentum_buffer"], optimizer.state[parameter]["momentum_buffer"])


def test_surgery_in_place_does_not_write_a_mapped_file(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(net().state_dict(), path)
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    model = net()
    model.load_state_dict(torch.load(path, mmap=True, weights_only=True), assign=True)
    inject(model, {"placement": "standard", "init": "absorb"}, inplace=True)
    assert torch.equal(model.blocks[0].bn2.weight, 2 * net_weight(path))
    se_inject.remove(model, inplace=True)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == before


def net_weight(path: Path) -> torch.Tensor:
    weight: torch.Tensor = torch.load(path, weights_only=True)["blocks.0.bn2.weight"]
    return weight


# -- what the ecosystem does to leaf modules ---------------------------------------------------------------------------
def test_the_block_survives_conversion_fusion_and_freezing() -> None:
    model = open_gates(inject(net()).model)
    y = model(image())
    assert not torch.equal(y, net()(image()))
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model))
    assert type(synced.blocks[0]) is type(model.blocks[0]) and hasattr(synced.blocks[0], "se")
    assert torch.equal(synced(image()), y)
    fused = copy.deepcopy(model)
    block = fused.blocks[0]
    block.conv2, block.bn2 = fuse_conv_bn_eval(block.conv2, block.bn2), nn.Identity()
    assert close(fused(image()), y)
    frozen = copy.deepcopy(model).requires_grad_(False)
    assert torch.equal(frozen(image()), y)


class Plain(nn.Module):
    """Depthwise unit without an activation at the end: its last layer before the projection is the batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 16, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.BatchNorm2d(16),
            nn.Conv2d(16, 8, 1),
        )  # fmt: skip

    def forward(self, x):
        return self.layers(x)


def test_a_batch_norm_does_not_carry_a_block() -> None:
    """``convert_sync_batchnorm`` and fusion would replace it, and the block would be gone without a word: the layer
    that takes the value carries it."""
    result = inject(Plain().eval(), "inner")
    assert result.plan.insertions[0].site.carrier.kind == "wrap_input"
    assert "input = self.se(input)" in type(result.model.layers[4]).se_rewrite.after
    model = open_gates(result.model)
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model))
    assert torch.equal(synced(image()), model(image()))


def test_replicas_and_functional_calls() -> None:
    model = open_gates(inject(net()).model)
    replica = model.blocks[0]._replicate_for_data_parallel()
    assert type(replica) is type(model.blocks[0])
    state = {key: value * 2 for key, value in model.state_dict().items() if "running" not in key and "num" not in key}
    assert not torch.equal(torch.func.functional_call(model, state, (image(),)), model(image()))


def test_fx_traces_the_result_again() -> None:
    model = open_gates(inject(net(n=2)).model)
    graph = fx.symbolic_trace(model)
    assert torch.equal(graph(image()), model(image()))
    # the blocks that stand there already are seen for what they are
    with refused("gated", "already gated"):
        inject(graph)
    with refused("gated", "already gated"):
        inject(model)


# -- methods that are called alone ------------------------------------------------------------------------------------
class Features(Layers):
    """A root with the pattern of the zoos: the site stands in ``forward_features``."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.fc = nn.Conv2d(3, 8, 1), nn.Linear(8, 5)

    def forward_features(self, x):
        x = self.stem(x)
        return x + self.bn2(self.conv2(self.first(x)))

    def forward(self, x):
        return self.fc(self.forward_features(x).mean((2, 3)))


def test_a_site_of_the_root_runs_when_its_method_is_called_alone() -> None:
    model = Features().eval()
    after = open_gates(inject(model).model)
    assert [k for k in after.state_dict() if k.startswith("se.")]
    assert not torch.equal(after.forward_features(image()), model.forward_features(image()))
    assert torch.equal(after(image()), after.fc(after.forward_features(image()).mean((2, 3))))


class Shared(nn.Module):
    """One block, called twice: one site, one new child."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block = nn.Conv2d(3, 8, 1), Residual()

    def forward(self, x):
        return self.block(self.block(self.stem(x)))


def test_a_block_that_runs_twice_is_one_site() -> None:
    model = Shared().eval()
    result = inject(model)
    (decision,) = result.plan.insertions
    assert decision.site.calls == 2 and decision.key == "block.se"
    assert torch.equal(result.model(image()), model(image()))


class Alias(nn.Module):
    """One block under two names: its keys stand twice in the state dict, the old and the new."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block = nn.Conv2d(3, 8, 1), Residual()
        self.again = self.block

    def forward(self, x):
        return self.again(self.stem(x))


def test_a_block_with_two_names() -> None:
    model = Alias().eval()
    for init in ("identity", "absorb"):
        result = inject(model, {"placement": "standard", "init": init})
        assert all(check.passed for check in result.report.checks)
        assert {"block.se.fc1.weight", "again.se.fc1.weight"} <= set(result.model.state_dict())
        back = se_inject.remove(result.model)
        assert list(back.state_dict()) == list(model.state_dict()) and back.again is back.block


class Repeats(Layers):
    """The expression runs twice in one forward: one call in its text would serve both, so the child carries it, or
    nothing does."""

    def forward(self, x):
        for _ in range(2):
            x = x + torch.tanh(self.conv2(self.first(x)))
        return x


def test_a_loop_in_the_method_is_a_reason() -> None:
    with refused("loop", "runs the expression more than once in one forward"):
        inject(net(Repeats))


class Keyword(Residual):
    def forward(self, x, *, scale=1.0, flag=None):
        if flag is not None:
            raise ValueError(flag)
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(x + y * scale)


class Calls(Net):
    def forward(self, x, options=None):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x, scale=(options or {}).get("scale", 1.0), flag=None)
        return self.fc(x.mean((2, 3)))


def test_keyword_and_other_arguments_keep_their_values() -> None:
    model = Calls(Keyword, 2).eval()
    result = se_inject.inject(model, {"x": image(), "options": {"scale": 0.5}}, "standard")
    for options in (None, {"scale": 0.5}, {"scale": 3.0}):
        assert torch.equal(result.model(image(), options), model(image(), options))
    with pytest.raises(ValueError, match="set"):
        result.model.blocks[0](torch.zeros(1, 8, 2, 2), flag="set")


def test_train_or_eval_the_mode_of_the_call_does_not_matter() -> None:
    model = net()
    plan = inject(model).plan
    assert inject(model.train()).plan == plan and model.training


def test_an_empty_plan_is_an_error_not_a_copy() -> None:
    with refused("no-sites", "no place for standard found in this model"):
        se_inject.inject(nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU()), SIZE, "standard")
