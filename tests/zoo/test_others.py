"""Models of other people: segmentation, faces, 3-D medicine, Hugging Face, from their packages, built small.

`inject` checks by itself that outputs are bit-equal in eval and in train mode, that each block runs and gets a
gradient, keys and overhead; what is looked at here is where the blocks went.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import se_inject
from se_inject.api import Injection
from tests.helpers import randomise, refused
from tests.tiny import open_gates

# Large imports, and libraries that warn of their own dependencies.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]


def quietly(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return randomise(make().eval())


def placed(result: Injection) -> dict[str, int]:
    assert all(check.passed for check in result.report.checks), result.report.checks
    return dict(Counter(d.site.placement for d in result.plan.insertions))


# -- faces: the weights of MTCNN come with its package ----------------------------------------------------------------
NETS = {"PNet": (64, 5), "RNet": (24, 3), "ONet": (48, 4)}


@pytest.mark.parametrize("name", NETS)
def test_mtcnn_with_its_real_weights(name: str) -> None:
    library = pytest.importorskip("facenet_pytorch.models.mtcnn")
    photos = pytest.importorskip("sklearn.datasets").load_sample_images().images
    side, blocks = NETS[name]
    x = torch.stack([torch.from_numpy(p[:side, 200 : 200 + side].copy()) for p in photos]).permute(0, 3, 1, 2)
    x = (x.float() - 127.5) / 128
    model = getattr(library, name)(pretrained=True).eval()
    result = se_inject.inject(model, (x,))
    assert placed(result) == {"conv": blocks}
    with torch.no_grad():
        before, after = model(x), result.model(x)
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
        assert any(not torch.equal(a, b) for a, b in zip(before, open_gates(result.model)(x), strict=True))


def test_inception_resnet_of_facenet() -> None:
    package = pytest.importorskip("facenet_pytorch")
    model = quietly(lambda: package.InceptionResnetV1(classify=True, num_classes=5))
    assert placed(se_inject.inject(model, (3, 128, 128))) == {"standard": 21, "concat": 2}


def test_efficientnet_lite() -> None:
    package = pytest.importorskip("efficientnet_lite_pytorch")
    model = quietly(lambda: package.EfficientNet.from_name("efficientnet-lite0"))
    assert placed(se_inject.inject(model, (3, 64, 64))) == {"inner": 16}


# -- segmentation_models_pytorch --------------------------------------------------------------------------------------
ENCODERS = {"resnet18": ("auto", {"standard": 8}), "mobilenet_v2": ("auto", {"inner": 17})}


@pytest.mark.parametrize("encoder", ENCODERS)
def test_unet_of_smp(encoder: str) -> None:
    smp = pytest.importorskip("segmentation_models_pytorch")
    rules, counts = ENCODERS[encoder]
    result = se_inject.inject(quietly(lambda: smp.Unet(encoder, encoder_weights=None)), (3, 64, 64), rules)
    assert placed(result) == counts
    assert all(d.site.owner.startswith("encoder.") for d in result.plan.insertions)


def test_unet_of_smp_with_a_gated_encoder() -> None:
    """EfficientNet has its gates; each of its blocks with a shortcut takes another by name."""
    smp = pytest.importorskip("segmentation_models_pytorch")
    model = quietly(lambda: smp.Unet("efficientnet-b0", encoder_weights=None))
    with refused("gated", "already gated by"):
        se_inject.plan(model, (3, 64, 64))
    assert placed(se_inject.inject(model, (3, 64, 64), "standard")) == {"standard": 9}


# -- MONAI: three axes of space ---------------------------------------------------------------------------------------
def monai(name: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: getattr(pytest.importorskip("monai.networks.nets"), name)(**options)


UNET = {"spatial_dims": 3, "in_channels": 1, "out_channels": 2, "channels": (4, 8, 8), "strides": (2, 2)}
VOLUMES: dict[str, tuple[Callable[[], nn.Module], int, dict[str, int]]] = {
    "UNet": (monai("UNet", **UNET, num_res_units=2), 16, {"standard": 4}),
    "UNet, no residual units": (monai("UNet", **UNET, num_res_units=0), 16, {"standard": 2}),
    "ResNet": (
        monai("ResNet", block="basic", layers=[1, 1, 1, 1], block_inplanes=[4, 8, 8, 8], n_input_channels=1),
        32,
        {"standard": 4},
    ),
    "SegResNet": (monai("SegResNet", init_filters=8, in_channels=1, out_channels=2), 16, {"standard": 12}),
    "DenseNet": (
        monai("DenseNet", spatial_dims=3, in_channels=1, out_channels=2, init_features=8, growth_rate=4,
              block_config=(2, 2, 2)),
        32,
        {"standard": 6},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", VOLUMES)
def test_volumes_of_monai(name: str) -> None:
    make, side, counts = VOLUMES[name]
    result = se_inject.inject(quietly(make), (1, side, side, side))
    assert placed(result) == counts
    assert {d.site.layout for d in result.plan.insertions} == {"NCDHW"}


# -- Hugging Face transformers, from a configuration ------------------------------------------------------------------
def hugging(name: str, head: str = "ForImageClassification", **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        library = pytest.importorskip("transformers")
        return getattr(library, f"{name}{head}")(getattr(library, f"{name}Config")(**options))

    return make


STAGES = {"embedding_size": 8, "hidden_sizes": [16, 32, 32, 64], "depths": [2, 1, 1, 1]}
SEGFORMER = {
    "hidden_sizes": [8, 16, 16, 32],
    "depths": [1, 1, 1, 1],
    "num_attention_heads": [1, 1, 2, 2],
    "decoder_hidden_size": 16,
}
TOKENS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
VISION: dict[str, tuple[Callable[[], nn.Module], str, dict[str, int]]] = {
    "ResNet": (hugging("ResNet", **STAGES), "auto", {"standard": 5}),
    "ResNet, basic blocks": (hugging("ResNet", **STAGES, layer_type="basic"), "auto", {"standard": 5}),
    "RegNetX": (hugging("RegNet", **STAGES, groups_width=8, layer_type="x"), "auto", {"standard": 5}),
    "ConvNext": (hugging("ConvNext", hidden_sizes=[8, 16, 16, 32], depths=[1, 1, 2, 1]), "auto", {"standard": 5}),
    "MobileNetV2": (hugging("MobileNetV2", depth_multiplier=0.35, image_size=64), "auto", {"inner": 17}),
    # four layers, each of attention and MLP
    "Segformer": (hugging("Segformer", "ForSemanticSegmentation", **SEGFORMER), "standard", {"standard": 8}),
    "ViT": (hugging("ViT", **TOKENS, image_size=64), "standard", {"standard": 4}),
}


@pytest.mark.parametrize("name", VISION)
def test_vision_models_of_transformers(name: str) -> None:
    make, rules, counts = VISION[name]
    model, x = quietly(make), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        before = model(x).logits
    result = se_inject.inject(model, {"pixel_values": x}, rules)
    assert placed(result) == counts
    with torch.no_grad():
        assert torch.equal(result.model(pixel_values=x).logits, before)
        assert not torch.equal(open_gates(result.model)(pixel_values=x).logits, before)


LEFT_ALONE = {
    "RegNetY": (hugging("RegNet", **STAGES, groups_width=8, layer_type="y"), "gated", "already gated by"),
    "Segformer": (
        VISION["Segformer"][0],
        "transformer",
        "auto: layout NLC is a transformer's; placement standard takes it",
    ),
    "ViT": (VISION["ViT"][0], "transformer", "auto: layout NLC is a transformer's; placement standard takes it"),
}


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_what_auto_leaves_alone(name: str) -> None:
    make, code, text = LEFT_ALONE[name]
    with refused(code, text):
        se_inject.plan(quietly(make), (3, 64, 64))


def test_labels_beside_the_image() -> None:
    """A dict in, an object with a loss out."""
    model = quietly(VISION["ResNet, basic blocks"][0])
    result = se_inject.inject(model, {"pixel_values": torch.randn(2, 3, 64, 64), "labels": torch.tensor([0, 1])})
    assert placed(result) == {"standard": 5}
    assert "2 tensors bit-equal" in {check.name: check.detail for check in result.report.checks}["outputs (eval)"]
