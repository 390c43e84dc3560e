"""Freezing the base and undoing it, groups for an optimizer, the line of what trains; adapters of what was trained."""

from __future__ import annotations

import copy
import io
import pickle
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from timm.layers import BatchNormAct2d, EvoNorm2dB0, convert_sync_batchnorm
from timm.optim import create_optimizer_v2
from torch import fx, nn
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import se_inject
from se_inject import SEInjectError
from tests.helpers import randomise
from tests.tiny import Chain, Dropped, Net, Residual, image, inject, net

LABELS = torch.tensor([1, 3])
NEW = {f"blocks.0.se.{layer}.{tensor}" for layer in ("fc1", "fc2") for tensor in ("weight", "bias")}
HEAD = {"fc.weight", "fc.bias"}


@pytest.fixture
def model() -> Net:
    return inject(net()).model.train()


def steps(model: nn.Module, n: int = 1, rate: float = 0.1, parameters: Any = None) -> None:
    """Steps of training as a user writes them: the mode is set at each."""
    optimizer = torch.optim.AdamW(parameters or model.parameters(), lr=rate)
    for seed in range(n):
        optimizer.zero_grad()
        F.cross_entropy(model.train()(image(seed=seed)), LABELS).backward()
        optimizer.step()


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def moved(model: nn.Module, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}


def training(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def norms(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


def is_frozen(model: nn.Module) -> bool:
    """Whether norms stay in eval through calls of ``train`` on the whole and on every part, which all else follows."""
    found = norms(model)
    rest = [module for module in model.modules() if module not in found]
    model.eval().train()
    for module in rest:
        module.train()
    return bool(found) and not any(norm.training for norm in found) and all(module.training for module in rest)


# -- freeze_base ------------------------------------------------------------------------------------------------------
def test_fifty_steps_move_nothing_but_blocks_and_head(model: Net) -> None:
    before = state(model)
    se_inject.freeze_base(model)
    steps(model, 50)
    assert moved(model, before) == NEW | HEAD  # not a running mean, variance or counter of batches, to the bit
    assert list(model.state_dict()) == list(before)


def test_without_it_everything_moves(model: Net) -> None:
    before = state(model)
    steps(model, 50)
    assert moved(model, before) == set(before)


def test_frozen_parameters_alone_let_the_statistics_drift(model: Net) -> None:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in NEW)
    before = state(model)
    steps(model)
    assert {name.rpartition(".")[2] for name in moved(model, before) - NEW} == {
        "running_mean", "running_var", "num_batches_tracked",
    }  # fmt: skip


def test_without_the_head(model: Net) -> None:
    se_inject.freeze_base(model, train_head=False)
    assert training(model) == NEW


def test_train_mode_gives_what_eval_mode_gives(model: Net) -> None:
    """Norms use their running statistics: in a net without dropout the mode makes no difference any more."""
    assert not torch.equal(model.train()(image()), copy.deepcopy(model).eval()(image()))
    se_inject.freeze_base(model)
    assert torch.equal(model.train()(image()), copy.deepcopy(model).eval()(image()))


def test_dropout_goes_by_the_mode() -> None:
    model = inject(net(Dropped)).model
    se_inject.freeze_base(model)
    assert not torch.equal(model.train()(image()), model(image()))
    assert torch.equal(model.eval()(image()), model(image()))


def test_a_norm_that_is_asked_itself_stays_too(model: Net) -> None:
    se_inject.freeze_base(model)
    assert all(norm.train() is norm and not norm.training for norm in norms(model))


@pytest.mark.parametrize("mode", [True, False])
def test_the_mode_stays(model: Net, mode: bool) -> None:
    se_inject.freeze_base(model.train(mode))
    assert all(module.training is (mode and module not in norms(model)) for module in model.modules())


def test_modes_of_the_users_own_stay(model: Net) -> None:
    model.blocks[0].conv1.eval()
    se_inject.freeze_base(model)
    se_inject.unfreeze(model)
    assert [path for path, module in model.named_modules() if not module.training] == ["blocks.0.conv1"]


def test_what_is_left_of_a_gradient_moves_nothing(model: Net) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    F.cross_entropy(model(image()), LABELS).backward()
    optimizer.step()
    se_inject.freeze_base(model)
    before = state(model)
    F.cross_entropy(model(image()), LABELS).backward()
    optimizer.step()
    assert moved(model, before) == NEW | HEAD


def test_freezing_again_starts_anew(model: Net) -> None:
    se_inject.freeze_base(model, train_head=False)
    se_inject.freeze_base(model)
    assert training(model) == NEW | HEAD and is_frozen(model)
    se_inject.freeze_base(model, train_head="blocks.0.conv1")
    assert training(model) == NEW | {"blocks.0.conv1.weight"} and is_frozen(model)


def test_absorbed_norms_are_of_the_base() -> None:
    model = inject(net(), {"placement": "standard", "init": "absorb"}).model
    before = state(model)
    se_inject.freeze_base(model)
    steps(model, 2)
    assert moved(model, before) == NEW | HEAD


class WithNorm(nn.Module):
    """A block of the user's own that learns statistics."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.norm(x)


def test_norms_of_what_trains_learn() -> None:
    """Of a block, and of a head given by its path."""
    rules = {"placement": "standard", "block": se_inject.register_block(WithNorm), "init": "paper"}
    model = inject(net(n=2), {**rules, "include": "blocks.0"}).model
    se_inject.freeze_base(model, train_head="blocks.1")
    model.train()
    assert {path for path, module in model.named_modules() if module in norms(model) and module.training} == {
        "blocks.0.se.norm", "blocks.1.bn1", "blocks.1.bn2",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("norm", "learns"),
    [
        (nn.SyncBatchNorm(8), True),
        (BatchNormAct2d(8), True),
        (EvoNorm2dB0(8), True),
        (nn.InstanceNorm2d(8, track_running_stats=True), True),
        (nn.InstanceNorm2d(8), False),
        (nn.BatchNorm2d(8, track_running_stats=False), False),
        (nn.GroupNorm(2, 8), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_norms_with_running_statistics(norm: nn.Module, learns: bool) -> None:
    base = net()
    base.stem = nn.Sequential(base.stem, norm)
    model = inject(base, verify=False).model
    se_inject.freeze_base(model)
    frozen = model.train().stem[1]
    assert frozen.training is not learns
    assert all(child.training for child in frozen.children())
    se_inject.unfreeze(model)
    assert frozen.training


# -- the head ---------------------------------------------------------------------------------------------------------
class Classifier(Net):
    """timm's interface, over a layer whose name says nothing."""

    def __init__(self, found: Any = None) -> None:
        super().__init__()
        self.last, self.second = nn.Linear(5, 5), nn.Linear(5, 5)
        self.found = found

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(super().forward(x)) + self.second(super().forward(x))

    def get_classifier(self) -> Any:
        return self.last if self.found is None else self.found(self)


class Heads(nn.Module):
    """A residual block, and layers behind it that take what is pooled."""

    def __init__(self, **layers: nn.Module) -> None:
        super().__init__()
        self.body, self.mix = Residual(3), nn.Conv2d(3, 5, 1)
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.names = tuple(layers)

    def forward(self, x: torch.Tensor) -> list[Any]:
        pooled = self.mix(self.body(x)).mean((2, 3)) if x.ndim == 4 else x
        layers = [self.get_submodule(name) for name in self.names]
        flat = [part for layer in layers for part in (layer if isinstance(layer, nn.ModuleList) else [layer])]
        return [layer(pooled) for layer in flat]


@pytest.mark.parametrize(
    ("make", "head"),
    [
        (Net, {"fc"}),
        (Classifier, {"last"}),
        (lambda: Classifier(lambda model: (model.last, model.second)), {"last", "second"}),  # of distilled models
        (lambda: nn.Sequential(Residual(3), nn.Flatten(), nn.Linear(768, 2), nn.ReLU()), {"2"}),
        (lambda: Heads(out=nn.Linear(5, 2)), {"out"}),
        (lambda: Heads(out=nn.Sequential(nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 2))), {"out.2"}),
    ],
)
def test_the_head_is_found(make: Any, head: set[str]) -> None:
    model = inject(make(), verify=False).model
    se_inject.freeze_base(model)
    assert {name.rpartition(".")[0] for name in training(model) if ".se." not in name} == head


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Sequential(Residual(3)),
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(768, 768), nn.Unflatten(1, (3, 16, 16)), Residual(3)),
        lambda: Classifier(lambda model: nn.Identity()),
        lambda: Heads(cls_score=nn.Linear(5, 3), bbox_pred=nn.Linear(5, 4)),
        lambda: Heads(a=nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 3)), b=nn.Sequential(nn.Linear(5, 4), nn.ReLU())),
        lambda: Heads(predictor=Heads(cls_score=nn.Linear(5, 3), bbox_pred=nn.Linear(5, 4))),
        lambda: Heads(outs=nn.ModuleList([nn.Linear(5, 3), nn.Linear(5, 4)])),
    ],
    ids=[
        "none",
        "a linear layer before others",
        "timm's without classes",
        "two",
        "two ends",
        "inside a part",
        "a list",
    ],
)
def test_no_head(make: Any) -> None:
    model = inject(make(), verify=False).model
    with pytest.raises(SEInjectError, match=r"found no head in \w+: say which .*train_head='path'.*train_head=False"):
        se_inject.freeze_base(model)
    assert training(model) == {name for name, _ in model.named_parameters()}
    se_inject.freeze_base(model, train_head=False)


def test_heads_of_the_zoos() -> None:
    for model, head in (
        (torchvision.models.resnet18(), {"fc"}),
        (torchvision.models.mobilenet_v2(), {"classifier"}),
        (timm.create_model("resnet18"), {"fc"}),
        (timm.create_model("convnext_atto"), {"head.fc"}),
    ):
        injected = se_inject.inject(model, (3, 32, 32), "standard", verify=False)
        new = tuple(decision.key for decision in injected.plan.insertions)
        se_inject.freeze_base(injected.model)
        found = {name for name in training(injected.model) if not name.startswith(new)}
        assert found == {n for n, _ in model.named_parameters() if any(n.startswith(f"{path}.") for path in head)}


def test_paths_of_the_head(model: Net) -> None:
    se_inject.freeze_base(model, train_head=("fc", "stem"))
    assert training(model) == NEW | HEAD | {"stem.weight", "stem.bias"}
    with pytest.raises(SEInjectError, match=r"Net has no module 'blocks.0.bn3'. Did you mean 'blocks.0.bn[12]'"):
        se_inject.freeze_base(model, train_head="blocks.0.bn3")
    with pytest.raises(SEInjectError, match="no module ''"):
        se_inject.freeze_base(model, train_head="")
    assert training(model) == NEW | HEAD | {"stem.weight", "stem.bias"}


def test_a_parameter_that_base_and_head_share_trains() -> None:
    base = net()
    base.tied = nn.Linear(8, 5)
    base.tied.weight = base.fc.weight
    model = inject(base, verify=False).model
    se_inject.freeze_base(model, train_head="fc")
    assert model.tied.weight.requires_grad and not model.tied.bias.requires_grad


def test_a_model_without_blocks() -> None:
    with pytest.raises(SEInjectError, match=r"Net holds no inserted block.*inject\(...\).model"):
        se_inject.freeze_base(net())
    with pytest.raises(SEInjectError, match=r"expected an nn\.Module, found Injection"):
        se_inject.freeze_base(inject(net()))  # type: ignore[arg-type]


# -- unfreeze ---------------------------------------------------------------------------------------------------------
def test_unfreeze_restores_everything(model: Net) -> None:
    model.stem.bias.requires_grad_(False)  # the user's own
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    attributes = [{**module.__dict__} for module in model.modules()]
    before = state(model)
    se_inject.freeze_base(model)
    se_inject.unfreeze(model)
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == flags
    assert [{**module.__dict__} for module in model.modules()] == attributes
    steps(model, 2)
    assert moved(model, before) == set(before) - {"stem.bias"}


def test_unfreeze_is_for_any_model_and_any_time(model: Net) -> None:
    se_inject.unfreeze(model)
    assert training(model) == {name for name, _ in model.named_parameters()}


def test_unfreeze_without_the_norms(model: Net) -> None:
    before = state(model)
    se_inject.freeze_base(model)
    se_inject.unfreeze(model, norms=False)
    assert is_frozen(model) and training(model) == {name for name, _ in model.named_parameters()}
    steps(model, 2)
    assert moved(model, before) == training(model)  # and no statistics
    se_inject.unfreeze(model)
    steps(model)
    assert moved(model, before) == set(before)


def test_norms_take_on_the_mode_around_them(model: Net) -> None:
    se_inject.freeze_base(model)
    model.train()
    model.blocks.eval()
    se_inject.unfreeze(model)
    assert model.training and not any(norm.training for norm in norms(model))
    se_inject.freeze_base(model.train())
    se_inject.unfreeze(model)
    assert all(norm.training for norm in norms(model))


def test_stage_by_stage() -> None:
    model = inject(net(n=2)).model
    se_inject.freeze_base(model, train_head=False)
    se_inject.unfreeze(model.blocks[1])
    assert {name.rpartition(".se.")[0] for name in training(model) if ".se." in name} == {"blocks.0", "blocks.1"}
    assert {name for name in training(model) if ".se." not in name} == {
        f"blocks.1.{name}" for name, _ in Residual().named_parameters()
    }
    model.train()
    assert [norm.training for norm in norms(model)] == [False, False, True, True]


# -- copies, wrappers, tools ------------------------------------------------------------------------------------------
def pickled(model: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(model))


def saved(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=False)


@pytest.mark.parametrize("again", [copy.deepcopy, pickled, saved, se_inject.remove])
def test_copies_are_frozen_for_themselves(model: Net, again: Any) -> None:
    se_inject.freeze_base(model)
    other = again(model)
    assert is_frozen(other) and training(other) - NEW == HEAD
    se_inject.unfreeze(other)
    assert not is_frozen(other) and training(other) == {name for name, _ in other.named_parameters()}
    assert is_frozen(model) and training(model) == NEW | HEAD


def test_a_frozen_model_is_traced_and_run_as_before(model: Net) -> None:
    se_inject.freeze_base(model)
    wanted = model(image())
    graph = fx.symbolic_trace(model)
    called = {node.target for node in graph.graph.nodes if node.op == "call_module"}
    assert {"blocks.0.bn1", "blocks.0.bn2"} <= called  # leaves, as before
    assert torch.equal(graph(image()), wanted) and is_frozen(graph) and is_frozen(copy.deepcopy(graph))
    assert torch.equal(torch.compile(model, backend="eager", fullgraph=True).train()(image()), wanted)
    assert torch.equal(torch.export.export(model, (image(),)).module()(image()), wanted)
    assert torch.equal(torch.jit.script(model)(image()), wanted)


def test_a_compiled_model_follows() -> None:
    model = inject(net()).model
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    drifting = compiled.train()(image())
    se_inject.freeze_base(compiled)
    before = state(model)
    steps(compiled, 3)
    assert moved(model, before) == NEW | HEAD
    se_inject.unfreeze(compiled)
    steps(compiled)
    assert moved(model, before) == set(before)
    assert not torch.equal(drifting, compiled(image()))


def test_a_traced_model_is_frozen() -> None:
    model = inject(fx.symbolic_trace(net())).model
    se_inject.freeze_base(model)
    before = state(model)
    steps(model, 2)
    assert len(moved(model, before)) == 6
    assert is_frozen(copy.deepcopy(model))


def test_replicas_are_frozen_before_they_are_made(model: Net, tmp_path: Path) -> None:
    """Their reducer would leave what is unfrozen later to each rank. On one process there is nothing else to see."""
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        se_inject.freeze_base(model)
        replica = DistributedDataParallel(model)
        before = state(model)
        steps(replica, 3, parameters=se_inject.param_groups(replica, 0.1))
        assert moved(model, before) == NEW | HEAD
        for change in (se_inject.freeze_base, se_inject.unfreeze):
            with pytest.raises(SEInjectError, match=r"DistributedDataParallel.*wrap it anew"):
                change(replica)
        assert training(model) == NEW | HEAD
        sharded = fully_shard(copy.deepcopy(model))  # at any time, on the other hand
        assert shards_that_move(sharded) == NEW | HEAD
        se_inject.unfreeze(sharded)
        assert shards_that_move(sharded) == set(before)
        se_inject.freeze_base(sharded, train_head=False)
        assert shards_that_move(sharded) == NEW
    finally:
        torch.distributed.destroy_process_group()


def shards_that_move(model: nn.Module) -> set[str]:
    before = {name: getattr(tensor, "_local_tensor", tensor).clone() for name, tensor in model.state_dict().items()}
    steps(model, 2, parameters=se_inject.param_groups(model, 0.1))
    after = {name: getattr(tensor, "_local_tensor", tensor) for name, tensor in model.state_dict().items()}
    return {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}


@pytest.mark.parametrize("convert", [nn.SyncBatchNorm.convert_sync_batchnorm, convert_sync_batchnorm])
def test_synchronised_norms_stay_frozen(model: Net, convert: Any) -> None:
    """A conversion, as trainers make it, puts new modules where the norms were."""
    names = {name for name, _ in model.named_parameters()}
    se_inject.freeze_base(model)
    converted = convert(model)
    assert all(isinstance(norm, nn.SyncBatchNorm) for norm in norms(converted))
    assert is_frozen(converted) and training(converted) == NEW | HEAD
    se_inject.unfreeze(converted)
    assert not is_frozen(converted) and training(converted) == names


def test_a_norm_that_is_gone(model: Net) -> None:
    se_inject.freeze_base(model)
    del model.blocks[0].bn1
    assert is_frozen(model)
    se_inject.unfreeze(model)
    assert all(module.training for module in model.modules())


def test_gradient_checkpointing_of_timm() -> None:
    base = randomise(timm.create_model("resnet18", layers=(1, 1, 1, 1), num_classes=5))
    model = se_inject.inject(base, (3, 32, 32), "standard", verify=False).model
    se_inject.freeze_base(model)
    before, gradients = state(model), []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        F.cross_entropy(model.train()(image(size=(3, 32, 32))), LABELS).backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() == training(model)
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])
    assert not moved(model, before)


# -- after training ---------------------------------------------------------------------------------------------------
def test_an_adapter_of_a_frozen_model_that_was_trained(tmp_path: Path) -> None:
    base = net()
    model = inject(base).model
    se_inject.freeze_base(model, train_head=False)
    steps(model, 5)
    se_inject.save_adapter(model, tmp_path / "adapter")  # still frozen; nothing of the base moved
    fresh = se_inject.load_adapter(base, tmp_path / "adapter")
    assert torch.equal(fresh.eval()(image()), model.eval()(image()))
    assert not torch.equal(fresh(image()), base(image()))
    assert training(fresh) == {name for name, _ in fresh.named_parameters()}


def test_an_adapter_with_a_trained_head(tmp_path: Path) -> None:
    base = net()
    model = inject(base).model
    se_inject.freeze_base(model)
    steps(model, 5)
    with pytest.raises(se_inject.WriteError, match=r"2 tensors of the base changed.*'fc.weight'"):
        se_inject.save_adapter(model, tmp_path / "adapter")
    se_inject.save_adapter(model, tmp_path / "adapter", changed=True)
    fresh = se_inject.load_adapter(base, tmp_path / "adapter")
    assert torch.equal(fresh.eval()(image()), model.eval()(image()))


def test_an_adapter_onto_a_frozen_model_is_loaded_frozen(tmp_path: Path) -> None:
    base = net()
    result = inject(base)
    se_inject.freeze_base(result.model, train_head=False)
    se_inject.save_adapter(result.model, tmp_path / "adapter")
    frozen = se_inject.remove(result.model)
    assert is_frozen(se_inject.load_adapter(frozen, tmp_path / "adapter"))


def test_the_output_of_a_frozen_model(tmp_path: Path) -> None:
    """Saving, and the code that is written, go by the classes: they see nothing of it."""
    result = inject(net())
    se_inject.freeze_base(result.model)
    steps(result.model, 2)
    report = se_inject.save(result, tmp_path / "out")
    assert all(check.passed for check in report.checks if check.name != "trained")
    again = se_inject.load(tmp_path / "out", model=net())
    assert torch.equal(again(image()), result.model.eval()(image()))


def test_a_frozen_base_is_injected(model: Net) -> None:
    se_inject.freeze_base(model)
    twice = inject(model, "conv").model
    assert is_frozen(twice)
    assert {name.split(".")[-2] for name in training(twice)} == {"fc", "fc1", "fc2"}


# -- param_groups -----------------------------------------------------------------------------------------------------
def named(model: nn.Module, groups: list[dict[str, Any]]) -> dict[str, set[str]]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {group["name"]: {names[id(parameter)] for parameter in group["params"]} for group in groups}


def test_groups_of_the_whole(model: Net) -> None:
    groups = se_inject.param_groups(model, 1e-3, block_lr=1e-2, weight_decay=0.05)
    weights = {"stem.weight", "blocks.0.conv1.weight", "blocks.0.conv2.weight", "fc.weight"}
    rest = {name for name, _ in model.named_parameters()} - weights - NEW
    assert named(model, groups) == {"base": weights, "base without decay": rest, "blocks": NEW}
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [(1e-3, 0.05), (1e-3, 0.0), (1e-2, 0.0)]
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


def test_groups_of_what_is_not_frozen(model: Net) -> None:
    se_inject.freeze_base(model)
    found = named(model, se_inject.param_groups(model, 1e-3))
    assert found == {"base": {"fc.weight"}, "base without decay": {"fc.bias"}, "blocks": NEW}


def test_a_rate_alone_leaves_the_decay_to_the_optimizer(model: Net) -> None:
    optimizer = torch.optim.AdamW(se_inject.param_groups(model, 1e-3))
    assert [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups] == [
        (1e-3, 0.01), (1e-3, 0.0), (1e-3, 0.0),
    ]  # fmt: skip
    groups = se_inject.param_groups(model, 1e-3, weight_decay=0.0)
    assert [group["weight_decay"] for group in groups] == [0.0] * 3


def test_decay_does_not_pull_at_gates(model: Net) -> None:
    before = state(model)
    optimizer = torch.optim.SGD(se_inject.param_groups(model, 0.1, weight_decay=0.5))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert moved(model, before) == {"stem.weight", "blocks.0.conv1.weight", "blocks.0.conv2.weight", "fc.weight"}


class Spared(Net):
    def __init__(self) -> None:
        super().__init__()
        self.position, self.scale = nn.Parameter(torch.zeros(1, 8, 1, 1)), nn.Parameter(torch.ones(8, 1))
        self.bias, self.some_bias = nn.Parameter(torch.zeros(1, 8)), nn.Parameter(torch.zeros(1, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.blocks(self.stem(x) + self.position).mean((2, 3)) * self.scale.T)

    def no_weight_decay(self) -> set[str]:
        return {"position"}


def test_what_a_model_spares_is_spared() -> None:
    model = inject(Spared(), verify=False).model
    for whole in (model, nn.ModuleDict({"net": model})):
        base, rest, _ = se_inject.param_groups(whole, 1e-3)
        assert {id(model.position), id(model.bias)} <= {id(parameter) for parameter in rest["params"]}
        assert {id(model.scale), id(model.some_bias)} <= {id(parameter) for parameter in base["params"]}


def test_a_shared_parameter_is_in_one_group(model: Net) -> None:
    model.tied = model.fc
    model.again = nn.Parameter(torch.zeros(2, 2))
    model.blocks[0].more = model.again
    parameters = [p for group in se_inject.param_groups(model, 1e-3) for p in group["params"]]
    assert len(parameters) == len({id(p) for p in parameters}) == len(list(model.parameters()))
    torch.optim.AdamW(se_inject.param_groups(model, 1e-3))


def test_groups_for_an_optimizer_of_timm(model: Net) -> None:
    groups = se_inject.param_groups(model, 1e-3, block_lr=1e-2, weight_decay=0.05)
    optimizer = create_optimizer_v2(groups, "adamw", lr=1.0, weight_decay=1.0)
    assert [(g["name"], g["lr"], g["weight_decay"]) for g in optimizer.param_groups] == [
        ("base", 1e-3, 0.05), ("base without decay", 1e-3, 0.0), ("blocks", 1e-2, 0.0),
    ]  # fmt: skip


def test_groups_that_would_be_empty() -> None:
    with pytest.raises(SEInjectError, match=r"block_lr=0.1, and Net holds no inserted block that trains"):
        se_inject.param_groups(net(), 1e-3, block_lr=0.1)
    assert {group["name"] for group in se_inject.param_groups(net(), 1e-3)} == {"base", "base without decay"}
    with pytest.raises(SEInjectError, match="every parameter of Net is frozen"):
        se_inject.param_groups(net().requires_grad_(False), 1e-3)


# -- trainable_summary ------------------------------------------------------------------------------------------------
def test_summary_of_a_frozen_model(model: Net, capsys: pytest.CaptureFixture[str]) -> None:
    se_inject.freeze_base(model)
    se_inject.trainable_summary(model)
    shown = capsys.readouterr().out
    new, head = 2 * 8 * 8 + 16, 8 * 5 + 5  # the tiny net's SE keeps 8 channels
    total = sum(parameter.numel() for parameter in model.parameters())
    assert shown == (
        f"trainable params: {new + head} || all params: {total:,} || trainable%: {100 * (new + head) / total:.4f}\n"
    )


def test_summary_groups_digits_and_counts_shared_parameters_once(capsys: pytest.CaptureFixture[str]) -> None:
    big, small = nn.Linear(5000, 1000, bias=False, device="meta"), nn.Linear(1, 1234, bias=False)
    se_inject.trainable_summary(nn.Sequential(big.requires_grad_(False), big, small))
    assert capsys.readouterr().out == ("trainable params: 1,234 || all params: 5,001,234 || trainable%: 0.0247\n")
    se_inject.trainable_summary(nn.ReLU())
    assert capsys.readouterr().out == "trainable params: 0 || all params: 0 || trainable%: 0.0000\n"


def test_chains_have_a_head_too() -> None:
    model = inject(Chain(), "conv", verify=False).model
    se_inject.freeze_base(model)
    assert is_frozen(model) and {"fc.weight", "fc.bias"} < training(model)
