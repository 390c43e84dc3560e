"""Identity on the families of timm and torchvision: a small member each, batch norms and layer scales randomised.

`inject` checks by itself that eval outputs are bit-equal, that train mode is equal under the same seed with all
buffers, and that every block runs and gets a gradient; here half precision, `absorb` and removal come on top.
"""

from __future__ import annotations

import copy
import warnings

import pytest
import timm
import torch
import torchvision
from torch import nn

import se_inject
from tests.helpers import randomise, refused, says

# Families, each by a small member. Left out: pure transformers (token layouts, see EXCLUDED) and families that another
# here stands for.
TIMM = [
    "convmixer_768_32", "test_convnext", "cpubone_nano", "csatv2", "cs3darknet_focus_s", "dla46x_c",
    "dpn48b", "edgenext_xx_small", "efficientformer_l1", "efficientformerv2_s0", "efficientvim_m1", "efficientvit_b0",
    "efficientvit_m0", "fasternet_t0", "fastvit_t8", "ghostnet_050", "hardcorenas_b", "hgnetv2_b0",
    "hrnet_w18_small", "iformer_t", "inception_next_atto", "mobilenetv3_small_050", "mobilenetv2_035", "resnet10t",
    "regnetx_002", "res2net50_14w_8s", "resnetv2_50", "repvgg_a0", "mobileone_s0", "rexnet_100",
    "tresnet_m", "tf_efficientnet_lite0", "mixnet_s", "selecsls42", "legacy_xception", "vgg11_bn",
    "nf_resnet26",
]  # fmt: skip
TORCHVISION = [
    "convnext_tiny", "efficientnet_b0", "googlenet", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small",
    "regnet_x_400mf", "resnet18", "resnext50_32x4d", "shufflenet_v2_x0_5", "squeezenet1_1", "vgg11",
]  # fmt: skip
# Slow members and rules that `auto` does not choose by itself.
RULES = {"repvgg_a0": "sum", "mobileone_s0": "sum", "efficientnet_b0": "standard", "regnetx_002": "inner"}
# The size that a member takes when 64 is too small or not allowed.
SIZES = {
    "efficientformer_l1": 224, "efficientformerv2_s0": 224, "efficientvit_m0": 224, "csatv2": 128, "googlenet": 96,
    "legacy_xception": 96, "fastvit_t8": 128, "iformer_t": 128, "edgenext_xx_small": 96, "efficientvim_m1": 128,
    "cpubone_nano": 128,
}  # fmt: skip
# Nothing to insert, with the reason that is given.
EXCLUDED = {
    "timm:test_vit": ("transformer", "layout NLC"),
    "timm:deit_tiny_patch16_224": ("transformer", "layout NLC"),
    "timm:swin_tiny_patch4_window7_224": ("transformer", "layout"),
    "timm:cspnext_tiny": ("gated", "already gated by stages"),
    "timm:resnest14d": ("gated", "already gated by layer1.0.conv2"),  # split attention
    "timm:skresnet18": ("gated", "already gated"),  # selective kernels
}


def build(name: str) -> tuple[nn.Module, tuple[int, int, int]]:
    library, _, model = name.partition(":")
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if library == "timm":
            made = timm.create_model(model, drop_path_rate=0.1) if "convnext" in model else timm.create_model(model)
        else:
            made = torchvision.models.get_model(model, weights=None)
    if model.startswith("vgg"):
        narrow(made)
    side = SIZES.get(model, 64)
    return randomise(made.eval()), (3, side, side)


def narrow(vgg: nn.Module, width: int = 64) -> None:
    """Its head with hidden layers of 64 instead of 4096 channels, which are nine tenths of its weights."""
    if isinstance(vgg, torchvision.models.VGG):
        vgg.classifier[0] = nn.Linear(512 * 7 * 7, width)
        vgg.classifier[3], vgg.classifier[6] = nn.Linear(width, width), nn.Linear(width, 1000)
    else:
        vgg.pre_logits.fc1, vgg.pre_logits.fc2 = nn.Conv2d(512, width, 7), nn.Conv2d(width, width, 1)
        vgg.head.fc = nn.Linear(width, 1000)


def rules(name: str) -> str:
    return RULES.get(name.partition(":")[2], "auto")


@pytest.mark.parametrize("name", [f"timm:{n}" for n in TIMM] + [f"torchvision:{n}" for n in TORCHVISION])
def test_identity(name: str) -> None:
    model, size = build(name)
    result = se_inject.inject(model, size, rules(name))
    checks = {check.name: check for check in result.report.checks}
    assert all(check.passed for check in checks.values())
    assert "bit-equal" in checks["outputs (eval)"].detail and "bit-equal" in checks["outputs (train)"].detail

    half, injected = copy.deepcopy(model).to(torch.bfloat16).eval(), result.model.to(torch.bfloat16).eval()
    x = torch.randn(2, *size, dtype=torch.bfloat16)
    with torch.no_grad():
        want, got = half(x), injected(x)
    assert want.dtype == got.dtype == torch.bfloat16 and torch.equal(want, got)
    back = se_inject.remove(injected)
    assert list(back.state_dict()) == list(model.state_dict())


ABSORB = ["timm:resnet10t", "torchvision:resnet18", "torchvision:regnet_x_400mf", "torchvision:mnasnet0_5"]
REFUSED = {
    "torchvision:mobilenet_v2": ("not-scaling", "ReLU6, which does not scale with its input"),
    "torchvision:convnext_tiny": ("not-scaling", "which does not scale with its input"),
    "timm:nf_resnet26": ("not-scaling", "absorb: "),
}


@pytest.mark.parametrize("name", ABSORB)
def test_absorb_is_bit_equal(name: str) -> None:
    model, size = build(name)
    result = se_inject.inject(model, size, {"placement": rules(name), "init": "absorb"})
    assert all(check.passed for check in result.report.checks)
    assert all(d.init == "absorb" for d in result.plan.insertions)


@pytest.mark.parametrize("name", REFUSED)
def test_absorb_is_refused_with_the_reason(name: str) -> None:
    model, size = build(name)
    with refused(*REFUSED[name]):
        se_inject.plan(model, size, {"placement": "auto", "init": "absorb"})


@pytest.mark.parametrize("name", EXCLUDED)
def test_left_alone_with_the_reason(name: str) -> None:
    with torch.device("meta"):
        made = timm.create_model(name.partition(":")[2])
    with refused(*EXCLUDED[name]):
        se_inject.plan(made)


def test_faster_rcnn_on_real_tensors() -> None:
    """What fx cannot trace as a whole: 16 sites in its backbone, and boxes that show something."""
    torch.manual_seed(0)
    model = torchvision.models.detection.fasterrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, min_size=96, max_size=128, box_score_thresh=0.0
    )
    randomise(model.eval())
    images = ([torch.rand(3, 96, 96), torch.rand(3, 96, 128)],)
    result = se_inject.inject(model, images)
    assert len(result.plan.insertions) == 16
    assert all(d.site.owner.startswith("backbone.body.layer") for d in result.plan.insertions)
    assert all(check.passed is not False for check in result.report.checks)
    with torch.no_grad():
        assert sum(len(found["boxes"]) for found in model(*images)) > 0
    assert says(result.plan.notes[0], "real-run", "run on real tensors")
