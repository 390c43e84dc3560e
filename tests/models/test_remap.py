"""Files in the layout of another library load as the zoo itself would load them, and the report says so."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from timm.models.convnext import checkpoint_filter_fn
from torch import nn

from se_inject.errors import LoadError
from se_inject.models import remap as remapping
from tests.helpers import load_model, randomise


def in_authors_layout(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """timm's ConvNeXt under the names of its authors' files."""
    names = (
        (r"^stem\.", "downsample_layers.0."),
        (r"^stages\.(\d)\.downsample\.", r"downsample_layers.\1."),
        (r"^stages\.(\d)\.blocks\.(\d+)\.", r"stages.\1.\2."),
        (r"\.conv_dw\.", ".dwconv."),
        (r"\.mlp\.fc(\d)\.", r".pwconv\1."),
        (r"^head\.fc\.", "head."),
        (r"^head\.norm\.", "norm."),
    )
    out = {}
    for key, value in state.items():
        for old, new in names:
            key = re.sub(old, new, key)
        out[key] = value
    return out


def with_dots(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A DenseNet under the names of torchvision's files: modules that no longer can be named so."""
    dotted = {re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", key): value for key, value in state.items()}
    return {
        key: value for key, value in dotted.items() if not key.endswith("num_batches_tracked")
    }  # younger than these


def same(model: nn.Module, state: dict[str, torch.Tensor]) -> bool:
    own = model.state_dict()
    return own.keys() == state.keys() and all(torch.equal(own[key], value) for key, value in state.items())


def load(tmp_path: Path, spec: str, state: dict[str, torch.Tensor], **kwargs: Any) -> Any:
    torch.save({"model": state}, tmp_path / "x.pth")
    return load_model(spec, checkpoint=tmp_path / "x.pth", **kwargs)


def test_files_of_the_authors(tmp_path: Path) -> None:
    state = randomise(timm.create_model("test_convnext")).state_dict()
    given = in_authors_layout(state)
    assert given.keys() != state.keys()
    loaded = load(tmp_path, "timm:test_convnext", given)
    assert same(loaded.model, state)
    assert loaded.source["remapped"] == "timm.models.convnext.checkpoint_filter_fn"


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_files_of_torchvisions_densenets(tmp_path: Path, library: str) -> None:
    make = timm.create_model if library == "timm" else torchvision.models.get_model
    state = make("densenet121", num_classes=3).state_dict()
    given = with_dots(state)
    assert "features.denseblock1.denselayer1.norm.1.weight" in given
    loaded = load(tmp_path, f"{library}:densenet121", given, model_args={"num_classes": 3})
    assert same(loaded.model, state)
    assert loaded.source["remapped"].startswith(f"{library}.models.densenet")


def test_position_embeddings_of_another_size(tmp_path: Path) -> None:
    """timm resizes them; the report says that the weights are not those of the file."""
    state = timm.create_model("test_vit").state_dict()
    loaded = load(tmp_path, "timm:test_vit", state, model_args={"img_size": 96})
    wanted = timm.models.vision_transformer.checkpoint_filter_fn(
        dict(state), timm.create_model("test_vit", img_size=96)
    )
    assert same(loaded.model, wanted) and loaded.model.pos_embed.shape != state["pos_embed"].shape
    assert loaded.source["remapped"] == "timm.models.vision_transformer.checkpoint_filter_fn"


def test_what_fits_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remapping, "ZOOS", {})  # an empty table would raise, were it asked
    monkeypatch.setattr(remapping, "_timm", lambda name: pytest.fail("remapped"))
    state = timm.create_model("test_convnext").state_dict()
    loaded = load(tmp_path, "timm:test_convnext", state)
    assert same(loaded.model, state) and loaded.source["remapped"] == ""


def test_a_head_of_another_size_is_not_dropped(tmp_path: Path) -> None:
    """timm's own loading leaves such a head at random; here the misfit is named, under the model's names."""
    given = in_authors_layout(timm.create_model("test_convnext", num_classes=3).state_dict())
    with pytest.raises(LoadError, match=r"2 of another shape or dtype: head\.fc\.weight"):
        load(tmp_path, "timm:test_convnext", given)


@pytest.mark.parametrize("spec", ["timm:test_convnext", "timm:test_vit", "torchvision:densenet121", "timm:resnet18"])
def test_what_no_filter_knows_is_refused_as_it_is(tmp_path: Path, spec: str) -> None:
    with pytest.raises(LoadError, match=r"unexpected: a\.weight, b\.bias"):
        load(tmp_path, spec, {"a.weight": torch.ones(1), "b.bias": torch.ones(2)})


def test_every_kind_of_filter_is_found() -> None:
    """The names under which timm's modules keep them, with one argument or two."""
    for name, filter_name in (
        ("convnext_atto", "checkpoint_filter_fn"),
        ("regnety_002", "_filter_fn"),
        ("densenet121", "_filter_torchvision_pretrained"),
    ):
        found = remapping._timm(name)
        assert found is not None and found[1].endswith(f".{filter_name}")
    assert remapping._timm("resnet18") is None and checkpoint_filter_fn.__module__ == "timm.models.convnext"
