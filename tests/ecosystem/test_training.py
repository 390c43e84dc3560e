"""Averages, adapters and trainers; what is random in train mode stays as it was."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from timm.utils import ModelEmaV3
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models.convnext import CNBlockConfig, ConvNeXt

import se_inject
from tests.ecosystem.cases import SIZE, Case, close, out, over
from tests.helpers import randomise

LABELS = torch.tensor([3, 7])


def step(model: nn.Module, x: torch.Tensor, optimizer: torch.optim.Optimizer | None = None) -> None:
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.01)
    optimizer.zero_grad()
    F.cross_entropy(model.train()(x), LABELS).backward()
    optimizer.step()


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def moved(model: nn.Module, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}


@over()
def test_training_step(case: Case) -> None:
    """A step of SGD: every parameter of the blocks moves."""
    before = weights(case.model)
    step(case.model, case.x)
    assert set(case.added) <= moved(case.model, before)


@over()
def test_freeze_base(case: Case) -> None:
    """`se_inject.freeze_base`, three steps: the blocks and the head move, nothing else, not a running statistic."""
    before = {name: tensor.clone() for name, tensor in case.model.state_dict().items()}
    se_inject.freeze_base(case.model)
    trained = {name for name, parameter in case.model.named_parameters() if parameter.requires_grad}
    for _ in range(3):
        step(case.model, case.x)
    changed = {name for name, tensor in case.model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == trained and len(trained - set(case.added)) == 2


@over()
def test_ema_timm(case: Case) -> None:
    """timm's `ModelEmaV3`: the average of two weights, the blocks' too."""
    ema = ModelEmaV3(case.model, decay=0.5)
    assert torch.equal(out(ema, case.x), case.y)
    before = weights(case.model)
    step(case.model, case.x)
    ema.update(case.model)
    for name, p in ema.module.named_parameters():
        assert torch.allclose(p, (before[name] + case.model.get_parameter(name)) / 2, rtol=1e-5, atol=1e-7), name


@over()
def test_averaged_model(case: Case) -> None:
    """`torch.optim.swa_utils.AveragedModel` and `update_bn`: the mean of two weights, the blocks' too."""
    averaged = AveragedModel(case.model)
    averaged.update_parameters(case.model)
    before = weights(case.model)
    step(case.model, case.x)
    averaged.update_parameters(case.model)
    for name, p in averaged.module.named_parameters():
        assert torch.allclose(p, (before[name] + case.model.get_parameter(name)) / 2, rtol=1e-5, atol=1e-7), name
    torch.optim.swa_utils.update_bn([case.x], averaged)
    assert out(averaged.eval(), case.x).isfinite().all()


@over()
def test_peft_lora(case: Case) -> None:
    """PEFT LoRA on the blocks' own layers (`fc1`, `fc2`): only the adapters learn; merged, outputs equal."""
    from peft import LoraConfig, get_peft_model

    names = [f"{path}.{layer}" for path in case.blocks for layer in ("fc1", "fc2")]
    keys = list(case.model.state_dict())
    adapted: Any = get_peft_model(case.model, LoraConfig(r=2, target_modules=names, init_lora_weights=False)).eval()
    wanted = out(adapted, case.x)
    assert not close(wanted, case.y, 1e-3)
    trainable = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert len(trainable) == 2 * len(names) and all("lora_" in name for name in trainable)
    before = weights(adapted)
    step(adapted, case.x)
    assert moved(adapted, before) == set(trainable)
    wanted = out(adapted.eval(), case.x)
    merged = adapted.merge_and_unload()
    assert close(out(merged, case.x), wanted, 1e-4) and list(merged.state_dict()) == keys


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning")
@pytest.mark.filterwarnings("ignore:`isinstance\\(treespec, LeafSpec\\)` is deprecated:FutureWarning")
@over()
def test_lightning_fit(case: Case, tmp_path: Path) -> None:
    """Lightning's `Trainer.fit` and its checkpoint: two steps train the blocks, and the checkpoint loads strictly."""
    import pytorch_lightning as lightning

    class Task(lightning.LightningModule):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            return F.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.01)

    before, task = weights(case.model), Task(case.model.train())
    trainer = lightning.Trainer(
        max_steps=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=True, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(task, DataLoader(TensorDataset(case.x.repeat(2, 1, 1, 1), LABELS.repeat(2)), batch_size=2))
    assert set(case.added) <= moved(case.model, before)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    fresh = Task(se_inject.apply(case.base, case.plan))
    fresh.load_state_dict(state)
    assert torch.equal(out(fresh.net.eval(), case.x), out(case.model.eval(), case.x))


@over()
def test_accelerate(case: Case) -> None:
    """accelerate's `prepare`, a step, and `unwrap_model`: the blocks train, class and keys come back."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    before, kind, keys = weights(case.model), type(case.model), list(case.model.state_dict())
    model, optimizer = accelerator.prepare(case.model, torch.optim.SGD(case.model.parameters(), lr=0.01))
    optimizer.zero_grad()
    accelerator.backward(F.cross_entropy(model.train()(case.x), LABELS))
    optimizer.step()
    plain = accelerator.unwrap_model(model)
    assert type(plain) is kind and list(plain.state_dict()) == keys
    assert set(case.added) <= moved(plain, before)


# Something random in train mode, at a rate that shows in every batch.
RANDOM = {
    "torchvision efficientnet_b0": lambda: torchvision.models.efficientnet_b0(stochastic_depth_prob=0.5),
    "torchvision convnext": lambda: ConvNeXt([CNBlockConfig(24, 48, 2), CNBlockConfig(48, None, 2)], 0.5),
    "torchvision densenet": lambda: torchvision.models.DenseNet(8, (2, 2), 16, drop_rate=0.3),
    "timm resnet18": lambda: timm.create_model("resnet18", layers=(2, 1, 1, 1), drop_path_rate=0.3, drop_rate=0.3),
    "timm convnext_atto": lambda: timm.create_model("convnext_atto", depths=(1, 1, 2, 1), drop_path_rate=0.3),
}
# Where `auto` finds nothing to do: every block of torchvision's EfficientNet has a gate.
RULES = {"torchvision efficientnet_b0": "standard", "torchvision densenet": "conv"}


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", RANDOM)
def test_e4_randomness(name: str, training: bool) -> None:
    """Given in train or eval mode, a model with dropout or stochastic depth says in eval mode what the base says, draws
    the same in train mode, and stays random."""
    base = randomise(RANDOM[name]()).train(training)
    result = se_inject.inject(base, SIZE, RULES.get(name, "auto"), verify=False)
    assert all(module.training is training for module in [*base.modules(), *result.model.modules()])
    x = torch.randn(2, *SIZE)

    def draws(model: nn.Module) -> list[torch.Tensor]:
        model = copy.deepcopy(model).train()
        torch.manual_seed(1)
        return [out(model, x) for _ in range(5)]

    assert torch.equal(out(result.model.eval(), x), out(base.eval(), x))
    first, second = draws(result.model), draws(base)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not all(torch.equal(first[0], other) for other in first[1:])


test_e4_randomness.others = tuple(RANDOM)
