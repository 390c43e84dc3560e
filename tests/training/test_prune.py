"""Pruning: idle blocks go, the others stay as trained, and the result is as if the idle ones had never been put in."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import fx, nn

import se_inject
from se_inject.models.zoos import build_model
from se_inject.surgery import splice
from se_inject.types import Reason
from tests import tiny
from tests.helpers import randomise, run
from tests.nets import Basic

BLOCKS = ["se", "se_plain", "ese", "eca", "cbam", "gc"]


def injected(n: int = 3, **rules: Any) -> tuple[nn.Module, nn.Module]:
    """The base and the model with blocks."""
    base = tiny.net(n=n)
    return base, tiny.inject(base, {"placement": "standard", **rules}).model


def trained(model: nn.Module, *paths: str, seed: int = 1) -> nn.Module:
    """Random weights in some of the blocks and in the rest of the net, as training leaves them; the others are idle."""
    generator = torch.Generator().manual_seed(seed)
    idle = [name for name, module in model.named_modules() if name.endswith(".se") and name not in paths]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith(tuple(f"{path}." for path in idle)):
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def outputs(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(x)


# ---------------------------------------------------------------- what is dropped


@pytest.mark.parametrize("block", BLOCKS)
def test_idle_blocks_leave_the_original(block: str) -> None:
    base, model = injected(block=block)
    pruned, x = se_inject.prune(model, tiny.image(), 0), tiny.image(4, seed=9)
    assert len(pruned.dropped) == 3 and pruned.kept == () and pruned.change == 0
    assert torch.equal(outputs(pruned.model, x), outputs(base, x))
    assert [type(m) for m in pruned.model.modules()] == [type(m) for m in base.modules()]
    assert all(torch.equal(v, base.state_dict()[k]) for k, v in pruned.model.state_dict().items())
    assert pruned.after == se_inject.cost(base, tiny.SIZE) and pruned.before == se_inject.cost(model, tiny.SIZE)
    with pytest.raises(se_inject.SpliceError, match="no inserted block"):
        splice.plan_of(pruned.model)


@pytest.mark.parametrize("init", ["identity", "absorb"])
def test_the_trained_block_stays_as_it_is(init: str) -> None:
    _, model = injected(init=init)
    trained(model, "blocks.1.se")
    pruned, x = se_inject.prune(model, tiny.image()), tiny.image(4, seed=9)
    assert pruned.kept == ("blocks.1.se",) and pruned.dropped == ("blocks.0.se", "blocks.2.se")
    assert pruned.change == 0 and torch.equal(outputs(pruned.model, x), outputs(model, x))
    old, new = model.state_dict(), pruned.model.state_dict()
    assert [k for k in old if ".se." not in k or k.startswith("blocks.1.")] == list(new)
    assert all(torch.equal(new[k], old[k]) for k in new if init == "identity" or "bn2" not in k)
    halves = {k: 0.5 if init == "absorb" and k[:8] in ("blocks.0", "blocks.2") else 1.0 for k in new}
    assert all(torch.equal(new[k], old[k] * halves[k]) for k in new if k.endswith(("bn2.weight", "bn2.bias")))


def test_a_trained_block_is_kept_at_zero_and_dropped_above_its_deviation() -> None:
    _, model = injected(n=1)
    trained(model, "blocks.0.se")
    assert se_inject.prune(model, tiny.image(), 0).kept == ("blocks.0.se",)
    deviation = se_inject.prune(model, tiny.image()).deviations["blocks.0.se"]
    assert se_inject.prune(model, tiny.image(), deviation).dropped == ("blocks.0.se",)
    assert se_inject.prune(model, tiny.image(), deviation * 0.999).kept == ("blocks.0.se",)


@pytest.mark.parametrize("init", ["identity", "absorb", "paper"])
def test_the_deviation_is_the_farthest_gate_from_one(init: str) -> None:
    _, model = injected(n=1, init=init)
    trained(model, "blocks.0.se")
    seen: list[torch.Tensor] = []
    hook = model.blocks[0].se.register_forward_hook(lambda m, args, out: seen.append(m.scale(args[0])))
    outputs(model, tiny.image())
    hook.remove()
    gate = seen[0] * (2 if init == "absorb" else 1)
    (found,) = se_inject.prune(model, tiny.image()).deviations.values()
    assert found == pytest.approx((gate - 1).abs().max().item(), rel=1e-5)


def test_a_gate_that_moves_for_one_sample_is_not_idle() -> None:
    _, model = injected(n=1)
    block = model.blocks[0].se
    with torch.no_grad():  # the gate follows one reduced channel that only large features open
        block.fc1.bias.fill_(-10.0)
        block.fc1.weight.abs_()
        block.fc2.weight.fill_(1.0)
    quiet = tiny.image(4)
    assert se_inject.prune(model, quiet).dropped == ("blocks.0.se",)
    loud = torch.cat([quiet, 1e3 * quiet[:1]])
    assert se_inject.prune(model, loud).kept == ("blocks.0.se",)


def test_what_a_small_threshold_changes_is_said() -> None:
    _, model = injected(n=1)
    with torch.no_grad():
        model.blocks[0].se.fc2.bias.fill_(1e-3)
    pruned, x = se_inject.prune(model, tiny.image(), 1e-2), tiny.image()
    before, after = outputs(model, x), outputs(pruned.model, x)
    assert pruned.dropped and pruned.change == pytest.approx(((before - after).abs().max() / before.abs().max()).item())
    assert 0 < pruned.change < 1e-2 and "move by at most" in str(pruned)


def test_an_added_context_is_measured_by_what_it_changes() -> None:
    _, model = injected(n=2, block={"name": "gc", "fusion": "add"})
    with torch.no_grad():
        model.blocks[1].se.mlp_add.fc2.bias.fill_(0.5)
    assert se_inject.prune(model, tiny.image()).kept == ("blocks.1.se",)


def test_nan_is_not_idle() -> None:
    _, model = injected(n=1)
    with torch.no_grad():
        model.blocks[0].se.fc2.bias[0] = torch.nan
    pruned = se_inject.prune(model, tiny.image(), float("inf"))
    assert pruned.kept == ("blocks.0.se",) and "nan" in str(pruned)


class Shallow(nn.Module):
    """Two residual blocks, of which a flag leaves the second one out."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.deep = Basic(), Basic(), True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        return self.second(x) if self.deep else x


def test_a_block_that_does_not_run_cannot_be_judged() -> None:
    model = se_inject.inject(randomise(Shallow()).eval(), (8, 8, 8), "standard").model
    assert len(se_inject.prune(model, torch.randn(2, 8, 8, 8)).dropped) == 2
    model.deep = False
    with pytest.raises(se_inject.TraceError, match=r"second\.se did not run"):
        se_inject.prune(model, torch.randn(2, 8, 8, 8))


# ---------------------------------------------------------------- what it is done to


def test_the_model_given_is_left_as_it_was() -> None:
    _, model = injected()
    trained(model, "blocks.1.se").train()
    before = copy.deepcopy(model.state_dict())
    pruned = se_inject.prune(model, tiny.image())
    assert model.training and pruned.model.training and len(splice.plan_of(model).insertions) == 3
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks for m in [*model.modules(), *pruned.model.modules()])
    assert not {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in pruned.model.parameters()}


@pytest.mark.parametrize(
    ("name", "placement", "kind"),
    [
        ("timm:test_resnet", "auto", "slot"),
        ("timm:test_vit", "standard", "source"),
        ("torchvision:shufflenet_v2_x0_5", "auto", "wrap_input"),
        pytest.param("torchvision:mobilenet_v2", "auto", "append", marks=pytest.mark.slow),
        pytest.param("torchvision:densenet121", "concat", "sequential_after", marks=pytest.mark.slow),
        pytest.param("torchvision:vgg11_bn", "conv", "wrap_output", marks=pytest.mark.slow),
    ],
)
def test_every_way_to_insert_can_be_pruned(name: str, placement: str, kind: str) -> None:
    base, x = randomise(build_model(name, {})).eval(), torch.randn(2, 3, 160, 160)
    model = se_inject.inject(base, (3, 160, 160), placement).model
    insertions = splice.plan_of(model).insertions
    assert kind in {d.site.carrier.kind for d in insertions}
    with torch.no_grad():
        for decision in insertions[::2]:
            for parameter in model.get_submodule(decision.key).parameters():
                parameter.add_(0.3 * torch.randn(parameter.shape))
    pruned = se_inject.prune(model, x)
    assert list(pruned.kept) == [d.key for d in insertions[::2]]
    assert torch.equal(outputs(pruned.model, x), outputs(model, x))


def test_a_graph_module() -> None:
    base = fx.symbolic_trace(tiny.net(n=2))
    model = trained(se_inject.inject(base, tiny.SIZE, "standard").model, "blocks_1.se")
    kept = next(d.key for d in splice.plan_of(model).insertions[1:])
    with torch.no_grad():
        model.get_submodule(kept).fc2.weight.normal_()
    pruned, x = se_inject.prune(model, tiny.image()), tiny.image(4, seed=9)
    assert kept in pruned.kept and torch.equal(outputs(pruned.model, x), outputs(model, x))


def test_a_new_head_does_not_matter() -> None:
    _, model = injected()
    model.fc = nn.Linear(8, 3)
    trained(model, "blocks.1.se")
    pruned, x = se_inject.prune(model, tiny.image()), tiny.image()
    assert pruned.kept == ("blocks.1.se",) and torch.equal(outputs(pruned.model, x), outputs(model, x))


def test_frozen_parameters_stay_frozen() -> None:
    _, model = injected()
    trained(model, "blocks.1.se").requires_grad_(False)
    model.blocks[1].se.fc2.requires_grad_(True)
    pruned = se_inject.prune(model, tiny.image()).model
    assert [n for n, p in pruned.named_parameters() if p.requires_grad] == [
        "blocks.1.se.fc2.weight",
        "blocks.1.se.fc2.bias",
    ]


@pytest.mark.parametrize("threshold", [-1e-3, float("nan")])
def test_a_threshold_below_zero_is_refused(threshold: float) -> None:
    with pytest.raises(se_inject.SEInjectError, match="expected 0 or more"):
        se_inject.prune(injected()[1], tiny.image(), threshold)


def test_what_cannot_be_pruned_is_refused() -> None:
    base, model = injected()
    with pytest.raises(se_inject.SpliceError, match="no inserted block"):
        se_inject.prune(base, tiny.image())
    with pytest.raises(se_inject.TraceError, match="does not run on the batch"):
        se_inject.prune(model, torch.randn(2, 4, 16, 16))
    twice = tiny.inject(model, "pre").model
    with pytest.raises(se_inject.SpliceError, match="one after the other"):
        se_inject.prune(twice, tiny.image())


# ---------------------------------------------------------------- what can be done with it


@pytest.mark.parametrize("init", ["identity", "absorb"])
def test_the_plan_is_that_of_the_blocks_that_are_left(init: str) -> None:
    base, model = injected(init=init)
    trained(model, "blocks.1.se")
    pruned = se_inject.prune(model, tiny.image())
    plan = splice.plan_of(pruned.model)
    assert plan == pruned.plan and [d.key for d in plan.insertions] == ["blocks.1.se"]
    assert [d.reason for d in plan.skips] == [Reason("pruned", "pruned: within 0.001 of the identity on a batch")] * 2
    assert all((d.block, d.kwargs) == ("se", {}) for d in plan.skips)
    fresh = se_inject.apply(base, plan)
    assert list(fresh.state_dict()) == list(pruned.model.state_dict())
    assert [type(m).__name__ for m in fresh.modules()] == [type(m).__name__ for m in pruned.model.modules()]
    bare = se_inject.remove(pruned.model)
    assert all(torch.equal(v, bare.state_dict()[k]) for k, v in se_inject.remove(model).state_dict().items())


@pytest.mark.parametrize("init", ["identity", "absorb"])
def test_saved_and_loaded_again(init: str, tmp_path: Path) -> None:
    base, model = injected(init=init)
    pruned, x = se_inject.prune(trained(model, "blocks.1.se"), tiny.image()), tiny.image(4, seed=9)
    assert [(c.name, c.passed) for c in pruned.injection.report.checks] == [
        ("structure", True), ("keys", True), ("overhead", True),
    ]  # fmt: skip
    report = se_inject.save(pruned.injection, tmp_path / "out")
    assert all(check.passed is not False for check in report.checks)
    assert torch.equal(outputs(se_inject.load(tmp_path / "out", model=base), x), outputs(pruned.model, x))
    assert report.after.parameters == sum(p.numel() for p in pruned.model.parameters())
    assert [gate.block for gate in report.gates] == ["blocks.1.se"]
    assert report.gates == se_inject.gates(pruned.model, tiny.image()).sites


def test_verified_without_the_original(tmp_path: Path) -> None:
    """A folder of a trained model, loaded, pruned and saved: `verify` compares with what was saved last."""
    base = randomise(build_model("timm:test_resnet", {})).eval()
    result = se_inject.inject(base, (3, 64, 64), name="timm:test_resnet")
    first, *_, last = result.plan.insertions
    with torch.no_grad():
        result.model.get_submodule(first.key).fc2.weight.normal_()
    se_inject.save(result, tmp_path / "all")
    model = se_inject.load(tmp_path / "all")
    assert splice.plan_of(model).trained is not None
    pruned = se_inject.prune(model, tiny.image(4, (3, 64, 64)))
    assert pruned.kept == (first.key,) and last.key in pruned.dropped and pruned.plan.trained is None
    se_inject.save(pruned.injection, tmp_path / "out")
    assert splice.plan_of(se_inject.load(tmp_path / "out")).insertions == (first,)
    shown = run("verify", str(tmp_path / "out"))
    assert shown.exit_code == 0 and "FAIL" not in shown.stdout, shown.stdout


def test_an_adapter_of_what_is_left(tmp_path: Path) -> None:
    base, model = injected()
    with torch.no_grad():
        model.blocks[1].se.fc2.weight.normal_()
    pruned = se_inject.prune(model, tiny.image())
    se_inject.save_adapter(pruned.model, tmp_path / "adapter")
    assert {k.rpartition(".se.")[0] for k in load_file(tmp_path / "adapter/adapter.safetensors")} == {"blocks.1"}
    again, x = se_inject.load_adapter(base, tmp_path / "adapter"), tiny.image(4, seed=9)
    assert torch.equal(outputs(again, x), outputs(pruned.model, x))


def test_without_blocks_it_is_saved_as_the_base(tmp_path: Path) -> None:
    base, model = injected()
    pruned, x = se_inject.prune(model, tiny.image()), tiny.image()
    se_inject.save(pruned.injection, tmp_path / "out")
    assert torch.equal(outputs(se_inject.load(tmp_path / "out", model=base), x), outputs(base, x))
    assert tiny.inject(pruned.model).plan.insertions  # blocks can be put in again


def test_pruned_twice_is_pruned_once() -> None:
    _, model = injected()
    first = se_inject.prune(trained(model, "blocks.1.se"), tiny.image())
    second = se_inject.prune(first.model, tiny.image())
    assert second.dropped == () and second.plan == first.plan and second.before == second.after == first.after


def test_it_prints_what_is_saved() -> None:
    _, model = injected()
    pruned = se_inject.prune(trained(model, "blocks.1.se"), tiny.image())
    saved = pruned.before.parameters - pruned.after.parameters
    assert saved == 2 * sum(p.numel() for p in model.blocks[0].se.parameters())
    for text in (str(pruned), pruned._repr_html_()):
        flat = " ".join(text.split())
        assert "2 of 3 blocks dropped" in flat and f"{saved} parameters" in flat and "bit-equal" in flat
        assert text.count("dropped") == 3 and text.count("kept") == 1 and f"-{saved}" in text


def test_a_model_of_one_class_with_and_without_the_block() -> None:
    """Two blocks of one class, of which one is pruned: each has its own class then."""
    model = se_inject.inject(nn.Sequential(*[randomise(Basic()).eval() for _ in range(2)]), (8, 8, 8), "standard").model
    with torch.no_grad():
        model[1].se.fc2.weight.normal_()
    pruned = se_inject.prune(model, torch.randn(2, 8, 8, 8)).model
    assert [type(m).__name__ for m in pruned] == ["Basic", "SEBasic"]
