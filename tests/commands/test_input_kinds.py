"""Models that take other things than one batch, through the command line: lists of images, pairs of frames."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from se_inject.inputs import from_shape
from se_inject.models.zoos import input_kind, input_size
from tests.helpers import ok, run

NETS = '''
"""Made for a test: a detector in small, and a flow net in small."""
import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.conv2, self.bn2 = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

    def forward(self, x):
        return F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


class Detector(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = Block()

    def forward(self, images):
        assert isinstance(images, list) and all(image.dim() == 3 for image in images)
        return [{"boxes": self.block(image[None])} for image in images]


class Flow(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = Block()

    def forward(self, first, second):
        return self.block(first) - self.block(second)


class Single(Detector):
    def forward(self, images):
        return {"boxes": self.block(torch.stack(images))}
'''


def test_noise_of_each_kind() -> None:
    batch, many, pair = (from_shape((3, 4, 5), torch.float32, 1, kind) for kind in ("batch", "list", "pair"))
    (images,), (first, second) = many.args, pair.args
    assert isinstance(images, list) and torch.equal(torch.stack(images), batch.args[0])
    assert torch.equal(first, batch.args[0]) and first.shape == second.shape and not torch.equal(first, second)
    assert {i.shape for i in (batch, many, pair)} == {(3, 4, 5)}


KINDS = {
    "torchvision:resnet18": ("batch", (3, 224, 224)),
    "torchvision:fasterrcnn_resnet50_fpn": ("list", (3, 224, 224)),
    "torchvision:ssd300_vgg16": ("list", (3, 224, 224)),
    "torchvision:raft_small": ("pair", (3, 128, 128)),
    "torchvision:r3d_18": ("batch", (3, 16, 112, 112)),
    "torchvision:deeplabv3_resnet50": ("batch", (3, 520, 520)),
}


@pytest.mark.parametrize("spec", KINDS)
def test_what_torchvision_s_models_take(spec: str) -> None:
    assert (input_kind(spec), input_size(spec, torch.nn.Identity(), {})) == KINDS[spec]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "kinds_of_nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("net", "kind", "paths", "shape"),
    [("Single", "list", ["0.0", "0.1"], [3, 16, 12]), ("Flow", "pair", ["0", "1"], [2, 3, 16, 12])],
)
def test_convert_and_verify_a_factory(here: Path, net: str, kind: str, paths: list[str], shape: list[int]) -> None:
    spec = f"kinds_of_nets:{net}"
    options = ("--random-init", "--input-size", "3,16,12", "--input-kind", kind)
    ok("convert", spec, *options, "-o", "out")
    inputs = json.loads((here / "out/plan.json").read_text())["inputs"]
    assert (inputs["kind"], inputs["shape"]) == (kind, [3, 16, 12])
    assert [(a["path"], a["dtype"], a["shape"]) for a in inputs["arguments"]] == [(p, "float32", shape) for p in paths]
    checks = json.loads(ok("verify", "out", "--model", spec, "--json").output)
    assert {check["name"]: check["passed"] for check in checks} == {
        "files": True, "keys": True, "outputs (eval)": True, "reached": True, "overhead": True
    }  # fmt: skip


def test_a_block_that_runs_for_each_image(here: Path) -> None:
    found = ok("plan", "kinds_of_nets:Detector", "--input-size", "3,16,12", "--input-kind", "list", "--json").output
    (decision,) = json.loads(found)["decisions"]
    assert (decision["site"]["id"], decision["site"]["calls"], decision["status"]) == ("block:standard", 2, "insert")


def test_refusals(here: Path) -> None:
    missing = run("plan", "kinds_of_nets:Flow", "--input-kind", "pair")
    assert missing.exit_code == 1
    assert "--input-kind pair needs the size of one image: give --input-size, such as 3,224,224." in missing.output
    other = run("plan", "kinds_of_nets:Flow", "--input-size", "3,16,12")
    assert other.exit_code == 1 and "cannot be run on the example inputs" in other.output
    unknown = run("plan", "kinds_of_nets:Flow", "--input-kind", "video")
    assert unknown.exit_code == 2 and "'batch', 'list', 'pair'" in unknown.output


SMALL = ("--model-arg", "min_size=64", "--model-arg", "max_size=64")
MODELS = {
    "fasterrcnn_mobilenet_v3_large_320_fpn": (SMALL, 7),
    "retinanet_resnet50_fpn": (SMALL, 16),
    "raft_small": ((), 12),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_detectors_and_flow_of_torchvision(here: Path, name: str) -> None:
    args, blocks = MODELS[name]
    ok("convert", f"torchvision:{name}", "--random-init", *args, "-o", "out", "-q")
    plan = json.loads((here / "out/plan.json").read_text())
    assert sum(decision["status"] == "insert" for decision in plan["decisions"]) == blocks
    checks = json.loads(ok("verify", "out", "--json").output)
    assert all(check["passed"] for check in checks), checks
    assert {"outputs (eval)", "reached", "overhead"} <= {check["name"] for check in checks}
