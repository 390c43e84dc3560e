"""The zoos of timm and torchvision: how many blocks `auto` inserts where, counted on meta tensors, and the checks on
real ones for the families that `test_families.py` leaves out.

Every `inject` compares eval outputs bit by bit, train mode under the same seed with all buffers, that every block runs
and gets a gradient, keys, and overhead; batch norms and layer scales are randomised, so that a gate would show.
"""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import nn

import se_inject
from se_inject.types import Plan
from tests.helpers import randomise, refused
from tests.zoo.test_families import EXCLUDED, TIMM

# Architecture -> insertions under `auto`, by placement.
COUNTS: dict[str, dict[str, int]] = {
    # residual blocks with full convolutions
    "timm:resnet50": {"standard": 16},
    "timm:resnetv2_50": {"standard": 16},
    "timm:resnetblur50": {"standard": 16},
    "timm:nf_resnet26": {"standard": 8},
    "timm:regnetx_002": {"standard": 13},
    "timm:darknet53": {"standard": 23},
    "timm:cspresnet50": {"standard": 13},
    "timm:hrnet_w18_small": {"standard": 23},  # and no fuse sum
    "timm:res2net50_26w_4s": {"standard": 16},  # and no sum of parts
    "timm:dla34": {"standard": 12},  # the shortcut is an argument
    "timm:dpn48b": {"standard": 16},  # four of them with an activated projection
    "timm:ghostnet_050": {"inner": 9},  # the other seven hold a gate
    "timm:fasternet_t0": {"standard": 13},
    "timm:convmixer_768_32": {"standard": 32},
    "timm:convnext_atto": {"standard": 12},
    "timm:fastvit_t8": {
        "standard": 10,
        "inner": 4,
    },  # not its mixers, but where it downsamples
    "timm:repvit_m1": {"standard": 26},
    "timm:efficientvit_m0": {"standard": 22},
    "timm:nextvit_small": {"standard": 44},
    "timm:poolformer_s12": {"standard": 12},
    # depthwise convolution and 1x1 projection
    "timm:efficientnet_lite0": {"inner": 16},
    "timm:mobilenetv2_035": {"inner": 17},
    "timm:mobilenetv3_large_100": {"inner": 7},  # the early blocks; the others are gated
    "timm:mixnet_s": {"inner": 3},
    "timm:rexnet_100": {"inner": 3},
    "timm:tf_efficientnetv2_b0": {"standard": 2},  # its fused blocks with a shortcut
    "timm:xception41": {"inner": 33},
    # both
    "timm:gernet_s": {"standard": 11, "inner": 3},
    "timm:efficientvit_b0": {"inner": 11, "standard": 4},
    "timm:mobilenetv4_hybrid_medium": {"inner": 13, "standard": 17},  # not the keys and values of its attention
    "timm:mobilenetv5_base": {"standard": 35, "inner": 3},  # norms written out by hand
    # concatenated branches
    "timm:inception_v4": {"concat": 19},
    "timm:inception_resnet_v2": {"concat": 3, "standard": 40},
    "timm:hgnet_tiny": {"concat": 4},
    # dense layers, concatenated with all before them
    "timm:densenet121": {"standard": 58},
    "torchvision:densenet121": {"standard": 58},
    "timm:rdnet_tiny": {"standard": 6},  # the other fifteen are gated
    # depthwise and 1x1 convolutions side by side
    "timm:mobileone_s0": {"inner": 18},
    "timm:repghostnet_050": {"standard": 1, "inner": 8},
    "timm:lcnetv2_small": {"inner": 3},
    "timm:selecsls42": {"concat": 6},
    # plain chains
    "timm:vgg11_bn": {"conv": 8},
    "torchvision:alexnet": {"conv": 5},
    "torchvision:vgg16": {"conv": 13},
    # torchvision
    "torchvision:resnet50": {"standard": 16},
    "torchvision:convnext_tiny": {"standard": 18},  # linear layers, and the axes put back
    "torchvision:mobilenet_v2": {"inner": 17},
    "torchvision:mobilenet_v3_large": {"inner": 7},
    "torchvision:efficientnet_v2_s": {"standard": 8},
    "torchvision:shufflenet_v2_x0_5": {"inner": 19},
    "torchvision:googlenet": {"concat": 9},
    "torchvision:inception_v3": {"concat": 11},
    "torchvision:squeezenet1_1": {"concat": 8},
    "torchvision:deeplabv3_resnet50": {"standard": 16},
    "torchvision:lraspp_mobilenet_v3_large": {"inner": 7},
    "torchvision:quantized_resnet18": {"standard": 8},
    "torchvision:quantized_googlenet": {"concat": 9},
    "torchvision:r2plus1d_18": {"standard": 8},
    "torchvision:s3d": {"concat": 9},
}
SIZES = {
    "torchvision:inception_v3": (3, 299, 299),
    "torchvision:r2plus1d_18": (3, 8, 64, 64),
    "torchvision:s3d": (3, 16, 224, 224),
}
# Nothing to insert under `auto`, and what is said.
LEFT_ALONE = {
    "timm:efficientnet_b0": ("gated", "already gated by blocks.0.0.se"),
    "timm:seresnet18": ("gated", "already gated by layer1.0.se"),
    "timm:nf_regnet_b0": ("gated", "already gated by"),  # all blocks are gated inside
    "timm:vit_tiny_patch16_224": ("transformer", "auto: layout NLC is a transformer's"),
    "timm:swin_tiny_patch4_window7_224": ("transformer", "auto: layout NHWC is a transformer's"),
    "timm:davit_tiny": (
        "transformer",
        "auto: layout NLC is a transformer's",
    ),  # its depthwise positional encodings are no blocks
    "timm:mambaout_femto": ("transformer", "auto: layout NHWC is a transformer's"),
    "timm:repvgg_a0": ("no-sites", "no place for auto"),
    "torchvision:vit_b_32": ("transformer", "auto: layout NLC is a transformer's"),
}


def architecture(name: str, device: str = "meta") -> nn.Module:
    library, _, model = name.partition(":")
    options: dict[str, Any] = {} if library == "timm" else {"weights": None}
    if library == "torchvision" and any(part in model for part in ("deeplab", "lraspp")):
        options["weights_backbone"] = None
    if model.startswith("quantized"):
        options["quantize"] = False
    with warnings.catch_warnings(), torch.device(device):
        warnings.simplefilter("ignore")
        return timm.create_model(model) if library == "timm" else torchvision.models.get_model(model, **options)


def planned(name: str, rules: Any = "auto") -> Plan:
    size = SIZES.get(name, (3, 224, 224)) if name.startswith("torchvision:") else None
    return se_inject.plan(architecture(name).eval(), size, rules)


@pytest.mark.parametrize("name", COUNTS)
def test_insertions_under_auto(name: str) -> None:
    assert Counter(d.site.placement for d in planned(name).insertions) == COUNTS[name]


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_left_alone_and_why(name: str) -> None:
    with refused(*LEFT_ALONE[name]):
        planned(name)


def test_inner_sites_of_mobilenet_v2() -> None:
    """Each of its 17 blocks, in the `Sequential` of its depthwise convolution; widths by the block's input."""
    found = planned("torchvision:mobilenet_v2").insertions
    assert [d.key for d in found] == ["features.1.conv.0.se"] + [f"features.{i}.conv.1.se" for i in range(2, 18)]
    assert {d.site.carrier.kind for d in found if d.site.carrier} == {"append"}
    expanded = [32, 96, 144, 144, 192, 192, 192, 384, 384, 384, 384, 576, 576, 576, 960, 960, 960]
    assert [d.site.channels for d in found] == expanded
    assert [d.site.block_channels for d in found] == [32, 16, 24, 24] + [32] * 3 + [64] * 4 + [96] * 3 + [160] * 3
    assert [d.kwargs["rd_channels"] for d in found] == [8, 8, 8, 8] + [8] * 3 + [16] * 4 + [24] * 3 + [40] * 3
    assert all(d.site.depthwise and d.site.projects and d.site.kernel == (3, 3) for d in found)
    assert sum(d.site.block.endswith(":standard") for d in found) == 10  # blocks with a shortcut


@pytest.mark.parametrize(
    ("name", "blocks", "shortcuts"), [("torchvision:efficientnet_b0", 16, 9), ("timm:efficientnet_b0", 16, 9)]
)
def test_sites_of_efficientnet(name: str, blocks: int, shortcuts: int) -> None:
    plan = planned(name, "standard")
    assert len(plan.insertions) == shortcuts  # asked for by name, it is taken, gates inside or not
    assert all(d.site.gate_on_branch for d in plan.insertions)
    with refused("gated", "already gated"):
        planned(name, "inner")
    assert len(planned(name, {"placement": "inner", "again": True}).insertions) == blocks


# -- on real tensors ------------------------------------------------------------------------------------------------
# The families of timm that `test_families.py` leaves out because of their size or speed, by a small member. Rules
# where `auto` leaves the member alone, but places exist.
FAMILIES: dict[str, str] = {
    "halonet_h1": "auto", "test_byobnet": "standard", "cspnext_tiny": "standard", "densenet121": "auto",
    "focalnet_tiny_srf": "auto", "test_efficientnet": "inner", "gcvit_xxtiny": "standard",
    "inception_resnet_v2": "auto", "inception_v3": "auto", "inception_v4": "auto", "lcnetv2_small": "auto",
    "lowformer_b0": "auto", "test_mambaout": "standard", "test_coatnet": "auto", "poolformerv2_s12": "auto",
    "mobilenetv5_300m": "auto", "mobilevit_xxs": "auto", "nest_tiny": "standard", "nextvit_small": "auto",
    "test_nfnet": "inner", "nasnetalarge": "auto", "pnasnet5large": "auto", "repghostnet_050": "auto",
    "repvit_m1": "auto", "resnest14d": "standard", "sequencer2d_s": "standard", "shvit_s1": "auto",
    "skresnet18": "standard", "starnet_s050": "auto", "swiftformer_xs": "auto",
    "swin_tiny_patch4_window7_224": "standard", "swinv2_tiny_window16_256": "standard", "tiny_vit_5m_224": "standard",
    "visformer_tiny": "auto", "vitamin_small_224": "auto", "volo_d1_224": "standard", "ese_vovnet19b_slim_dw": "auto",
    "xception41p": "auto", "rdnet_tiny": "auto", "sam2_hiera_tiny": "standard",
}  # fmt: skip
VERSION = "1.0.31"  # of timm, whose families these are
# Left out, with the reason; what they would show, others here do.
NOT_HERE = {
    "tokens alone: `test_tokens.py`, and `make zoo` for one of each": (
        "beit", "cait", "coat", "convit", "crossvit", "davit", "deepseek_vit", "deit", "eva", "gemma4_vit", "hiera",
        "levit", "mlp_mixer", "mvitv2", "naflexvit", "pit", "pvt_v2", "qwen3_vit", "swin_transformer_v2_cr", "tnt",
        "twins", "vision_transformer", "vision_transformer_hybrid", "vision_transformer_relpos", "xcit",
    ),
    "attention that computes the value inside a helper function": ("vision_transformer_sam",),
    "every place is gated already": ("senet",),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_identity_on_the_other_families(name: str) -> None:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = randomise(timm.create_model(name).eval())
    result = se_inject.inject(model, None, FAMILIES[name])
    checks = {check.name: check for check in result.report.checks}
    assert all(check.passed for check in checks.values()), checks
    assert "bit-equal" in checks["outputs (eval)"].detail and "bit-equal" in checks["outputs (train)"].detail
    assert checks["reached"].detail.startswith(f"{len(result.plan.insertions)} blocks ran")


def test_every_family_of_timm_is_accounted_for() -> None:
    if timm.__version__ != VERSION:
        pytest.skip(f"the tables are made for timm {VERSION}")

    def family(model: str) -> str:
        return timm.models.model_entrypoint(model).__module__.rpartition(".")[2]

    tested = {family(name) for name in (*FAMILIES, *TIMM)}
    explained = {name for group in NOT_HERE.values() for name in group}
    assert {family(name.partition(":")[2]) for name in EXCLUDED} <= tested | explained
    known = {family(name) for name in timm.list_models()}
    missing = sorted(known - tested - explained)
    assert not missing, f"families of timm that no test takes: {missing}"


ABSORB = {
    # every site, or those that are not, and why
    "timm:resnet18": {},
    "timm:resnet50d": {},
    "timm:resnext50_32x4d": {},
    "timm:hrnet_w18_small": {},
    "timm:dla34": {},
    "timm:regnetx_002": {},
    "timm:res2net50_26w_4s": {},
    "torchvision:mnasnet0_5": {},
    "torchvision:regnet_x_400mf": {},
    "torchvision:shufflenet_v2_x0_5": {},
    "torchvision:googlenet": {"between it and a batch norm stands cat": 9},
    "timm:darknet53": {},  # LeakyReLU scales with its input
    "timm:convnext_atto": {"between it and a batch norm stands Conv2d": 12},
    "timm:resnetv2_50": {"between it and a batch norm stands Conv2d": 16},  # norms come first
    "timm:efficientnet_lite0": {"ReLU6, which does not scale": 16},
    "timm:cs3darknet_focus_s": {"SiLU, which does not scale": 9},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ABSORB)
def test_absorb_is_bit_equal_or_refused(name: str) -> None:
    torch.manual_seed(0)
    model = randomise(architecture(name, "cpu").eval())
    total = len(se_inject.plan(model, (3, 96, 96)).insertions)
    left_out = sum(ABSORB[name].values())
    rules = {"placement": "auto", "init": "absorb"}
    if left_out == total:
        with refused("not-scaling", next(iter(ABSORB[name]))):
            se_inject.plan(model, (3, 96, 96), rules)
        return
    result = se_inject.inject(model, (3, 96, 96), rules)
    assert all(check.passed for check in result.report.checks), result.report.checks
    assert len(result.plan.insertions) == total - left_out
    half, injected = copy.deepcopy(model).to(torch.bfloat16), result.model.to(torch.bfloat16)
    x = torch.randn(1, 3, 96, 96, dtype=torch.bfloat16)
    with torch.no_grad():
        assert torch.equal(half.eval()(x), injected.eval()(x))


# -- what takes other things than one image -------------------------------------------------------------------------
def images() -> tuple[Any, ...]:
    return ([torch.rand(3, 96, 96), torch.rand(3, 96, 128)],)


def frames() -> tuple[Any, ...]:
    return torch.rand(1, 3, 128, 128) * 2 - 1, torch.rand(1, 3, 128, 128) * 2 - 1


SMALL = {"min_size": 96, "max_size": 128}
RCNN = {"box_score_thresh": 0.0, **SMALL}
# detector of torchvision -> its options; where the blocks go
OTHERS: dict[str, tuple[dict[str, Any], dict[str, int]]] = {
    "fasterrcnn_mobilenet_v3_large_320_fpn": (RCNN, {"inner": 7}),
    "fasterrcnn_resnet50_fpn_v2": (RCNN, {"standard": 16}),
    "retinanet_resnet50_fpn": ({"score_thresh": 0.0, **SMALL}, {"standard": 16}),
    "fcos_resnet50_fpn": ({"score_thresh": 0.0, **SMALL}, {"standard": 16}),
    "ssdlite320_mobilenet_v3_large": ({"score_thresh": 0.0}, {"inner": 13}),
    "maskrcnn_resnet50_fpn": ({"box_detections_per_img": 5, **RCNN}, {"standard": 16}),
    "keypointrcnn_resnet50_fpn": ({"box_detections_per_img": 5, **RCNN}, {"standard": 16}),
    "raft_small": ({}, {"standard": 12}),  # optical flow
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_detectors_and_optical_flow(name: str) -> None:
    options, counts = OTHERS[name]
    torch.manual_seed(0)
    without = {"weights": None} if name == "raft_small" else {"weights": None, "weights_backbone": None}
    model = randomise(torchvision.models.get_model(name, **without, **options).eval())
    inputs = frames() if name == "raft_small" else images()
    result = se_inject.inject(model, inputs)
    assert Counter(d.site.placement for d in result.plan.insertions) == counts
    checks = {check.name: check for check in result.report.checks}
    # Detectors take targets in train mode, which nobody gave.
    assert {name for name, check in checks.items() if not check.passed} <= {"outputs (train)"}
    assert checks["outputs (train)"].passed is not False
    with torch.no_grad():
        found = model(*inputs)
    if isinstance(found[0], dict) and name != "keypointrcnn_resnet50_fpn":  # two classes: random scores keep no box
        assert all(len(one["boxes"]) for one in found)
