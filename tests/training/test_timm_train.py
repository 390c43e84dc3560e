"""docs/training.md: its commands train an output folder, by a stand-in for timm's ``train.py``."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from timm.models import load_checkpoint

import se_inject
from tests.docs.test_docs import STAND_INS
from tests.helpers import ROOT
from tests.snippets import Reader, commands, fences

PAGE = fences((ROOT / "docs" / "training.md").read_text())

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the page's output folder and files, in which all of its commands of timm were run."""
    folder = tmp_path_factory.mktemp("timm")
    shutil.copy(ROOT / "tests" / "training" / "timm_train.py", folder / "train.py")
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with contextlib.chdir(folder):
        for fence in PAGE:
            first = fence.body.split()[0] if fence.kind == "sh" else ""
            if fence.kind == "py" or first == "se-inject":
                Reader(STAND_INS["training.md"]).do(fence)
            for command in commands(fence):
                if command.startswith("python train"):
                    _, *rest = shlex.split(command)
                    done = subprocess.run([sys.executable, *rest], env=env, capture_output=True, text=True)
                    assert done.returncode == 0, done.stderr
    return folder


def test_the_folder_for_timm(trained: Path) -> None:
    """The base and the blocks are those of the output, and everything trained."""
    state, before = weights(trained / "output/train/out_timm"), se_inject.load(trained / "out").state_dict()
    assert state.keys() == before.keys() and state["fc.weight"].shape == (10, 512)
    assert (state["layer1.0.conv1.weight"] - before["layer1.0.conv1.weight"]).abs().max() < 0.1
    assert not any(torch.equal(tensor, before[name]) for name, tensor in state.items())


def test_new_layers_first_and_then_everything(trained: Path) -> None:
    before, new, everything = (
        se_inject.load(trained / "out").state_dict(),
        weights(trained / "output/train/new"),
        weights(trained / "output/train/all"),
    )
    moved = {name for name, tensor in new.items() if not torch.equal(tensor, before[name])}
    assert moved == {name for name in new if ".se." in name or name.startswith("fc.")}
    assert all(
        name in moved or "num_batches" in name or not torch.equal(t, new[name]) for name, t in everything.items()
    )


def test_the_checkpoint_comes_back(trained: Path) -> None:
    model = se_inject.load(trained / "out")
    model.reset_classifier(10)
    load_checkpoint(model, trained / "output/train/all/last.pth.tar")
    assert all(torch.equal(t, model.state_dict()[n]) for n, t in weights(trained / "output/train/all").items())


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "last.pth.tar", weights_only=False)["state_dict"]
