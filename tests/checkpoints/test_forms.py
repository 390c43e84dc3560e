"""The same weights in every form that training scripts write give the same output, and the report says what
was taken off. One wrapper or prefix alone: ``test_checkpoint.py`` and ``tests/models/test_loading.py``."""

from __future__ import annotations

import argparse
import functools
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from se_inject.output.sums import read_sums
from tests.checkpoints.files import refused, save_legacy, save_shards
from tests.helpers import randomise, run

SPEC = "timm:test_resnet"
NET = "test_resnet"
Saver = Callable[[nn.Module, Path], Any]  # makes one file or folder at the path, or in the folder that it returns


@functools.cache
def net() -> nn.Module:
    torch.manual_seed(0)
    return randomise(timm.create_model(NET)).eval()


def convert(path: Path, out: Path, *options: str) -> dict[str, Any]:
    """The report of ``se-inject convert`` with the weights at ``path``, and the sums of what it wrote."""
    given = ["--checkpoint", str(path), "--input-size", "3,32,32", "--no-verify", "-o", str(out), "--json"]
    result = run("convert", SPEC, *given, *options)
    assert result.exit_code == 0, result.output
    return {**json.loads(result.stdout), "sums": read_sums(out)}


def timm_train(model: nn.Module, path: Path) -> None:
    """As ``timm.utils.CheckpointSaver`` writes it."""
    from timm.utils import CheckpointSaver

    args = argparse.Namespace(model=NET, lr=0.1, amp=False, img_size=None, opt_betas=(0.9, 0.99))
    optimizer = torch.optim.AdamW(model.parameters())
    saver = CheckpointSaver(model, optimizer, args=args, checkpoint_dir=str(path.parent), recovery_dir=str(path.parent))
    saver._save(str(path), epoch=7, metric=0.8)


def torchvision_train(model: nn.Module, path: Path) -> None:
    """As torchvision's ``references/classification/train.py`` writes it."""
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 30)
    args = argparse.Namespace(data_path="x", lr=0.1, weights=None)
    value = {"model": nn.DataParallel(model).module.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save({**value, "lr_scheduler": schedule.state_dict(), "epoch": 3, "args": args}, path)


def lightning(model: nn.Module, path: Path) -> None:
    pytest.importorskip("pytorch_lightning")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pytorch_lightning

        class Training(pytorch_lightning.LightningModule):
            def __init__(self, model: nn.Module) -> None:
                super().__init__()
                self.save_hyperparameters({"lr": 0.1, "arch": NET})
                self.model = model

        trainer = pytorch_lightning.Trainer(
            accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
        )
        trainer.strategy.connect(Training(model))
        trainer.save_checkpoint(path)


def timm_ema(model: nn.Module, path: Path) -> None:
    from timm.utils import ModelEmaV3

    torch.save({"state_dict_ema": ModelEmaV3(model).state_dict()}, path)


def folder(model: nn.Module, path: Path) -> None:
    """As ``timm.models.save_for_hf`` writes it."""
    from timm.models import save_for_hf

    save_for_hf(model, str(path), safe_serialization=True)


def shards_in_folder(model: nn.Module, path: Path) -> None:
    save_shards(model.state_dict(), path, 3)
    (path / "config.json").write_text(json.dumps({"architecture": NET, "num_classes": 1000}))


FORMS: dict[str, tuple[Saver, dict[str, Any]]] = {
    "zip": (lambda model, path: torch.save(model.state_dict(), path), {"kind": "torch-zip", "unwrapped": []}),
    "legacy": (lambda model, path: save_legacy(model.state_dict(), path), {"kind": "torch-legacy"}),
    "safetensors": (lambda model, path: save_file(model.state_dict(), path), {"kind": "safetensors"}),
    "shards": (lambda model, path: save_shards(model.state_dict(), path.parent / "s"), {"kind": "shards"}),
    "Hugging Face folder": (folder, {"kind": "safetensors", "file": "model.safetensors"}),
    "folder of shards": (shards_in_folder, {"kind": "shards", "file": "model.safetensors.index.json"}),
    "Lightning": (lightning, {"unwrapped": ["state_dict"], "stripped": ["model"]}),
    "timm train": (timm_train, {"unwrapped": ["state_dict"]}),
    "timm EMA": (timm_ema, {"unwrapped": ["state_dict_ema"], "ema": True, "stripped": ["module"]}),
    "torchvision train": (torchvision_train, {"unwrapped": ["model"]}),
}


@functools.cache
def expected(root: Path) -> str:
    """SHA-256 of what the plain state dict gives, which holds its values."""
    torch.save(net().state_dict(), root / "plain.pt")
    report = convert(root / "plain.pt", root / "plain")
    written, state = load_file(root / "plain" / "model.safetensors"), net().state_dict()
    assert written.keys() > state.keys() and all(torch.equal(written[key], state[key]) for key in state)
    return hash_of(report)


def hash_of(report: dict[str, Any]) -> str:
    return str(report["sums"]["model.safetensors"])


@pytest.mark.parametrize("form", FORMS)
def test_a1_one_net_in_every_form(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, form: str) -> None:
    save, facts = FORMS[form]
    (tmp_path / "given").mkdir()
    path = tmp_path / "given" / "weights"
    save(net(), path)
    report = convert(path if path.exists() else tmp_path / "given" / "s", tmp_path / "out")
    assert hash_of(report) == expected(tmp_path_factory.getbasetemp())
    source = report["source"]
    plain = {"unwrapped": [], "stripped": [], "ema": False, "ignored": [], "missing": [], "remapped": ""}
    said = {**source, "stripped": sorted(source["stripped"]), "ignored": source["ignored"]}
    assert {key: said[key] for key in {**plain, **facts}} == {**plain, **facts}
    keys = len(net().state_dict())
    assert all(count in (keys, keys + 1) for count in source["stripped"].values())


def both(model: nn.Module, other: nn.Module, path: Path) -> None:
    """A training checkpoint of timm with raw and averaged weights."""
    from timm.utils import ModelEmaV3

    torch.save({"arch": NET, "state_dict": model.state_dict(), "state_dict_ema": ModelEmaV3(other).state_dict()}, path)


def both_of_lightning(model: nn.Module, other: nn.Module, path: Path) -> None:
    """As Lightning's ``WeightAveraging`` writes it: the average takes the usual place."""
    state, average = ({f"model.{k}": v for k, v in m.state_dict().items()} for m in (model, other))
    counter = {"n_averaged": torch.tensor(2)}
    torch.save({"state_dict": average, "current_model_state": state, "averaging_state": counter}, path)


@pytest.mark.parametrize("save", [both, both_of_lightning])
def test_a6_the_average_or_the_raw_weights(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, save: Callable[..., None]
) -> None:
    path = tmp_path / "both.pt"
    save(net(), randomise(timm.create_model(NET), 1), path)
    assert "choose with --ema or --no-ema" in refused(path, spec=SPEC)
    raw, average = convert(path, tmp_path / "raw", "--no-ema"), convert(path, tmp_path / "ema", "--ema")
    assert (raw["source"]["ema"], average["source"]["ema"]) == (False, True)
    assert hash_of(raw) == expected(tmp_path_factory.getbasetemp()) != hash_of(average)
    assert all(len(report["source"]["unwrapped"]) == 1 for report in (raw, average))
