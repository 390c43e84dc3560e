"""Timm's own API on an injected model, and torchvision's feature extraction."""

from __future__ import annotations

import copy

import pytest
import torch
from timm.models import FeatureListNet
from timm.optim import create_optimizer_v2
from timm.utils.model import freeze_batch_norm_2d, reparameterize_model
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

import se_inject
from tests.ecosystem.cases import MODELS, SIZE, TORCHVISION, Case, close, out, over
from tests.ecosystem.cases import case as case_of

timm_only = over(absent=dict.fromkeys(TORCHVISION, "timm's own interface"))


@pytest.mark.parametrize("name", TORCHVISION)
def test_not_torchvision(name: str) -> None:
    base = case_of(name).base
    for attribute in (
        "forward_features", "forward_head", "forward_intermediates", "reset_classifier", "feature_info",
        "set_grad_checkpointing", "group_matcher",
    ):  # fmt: skip
        assert not hasattr(base, attribute)


@timm_only
def test_forward_features(case: Case) -> None:
    """`forward_features` and `forward_head`, one after the other, are the forward."""
    features = out(case.model.forward_features, case.x)
    assert torch.equal(out(case.model.forward_head, features), case.y)
    assert not close(features, out(case.base.forward_features, case.x), 0.1)


@timm_only
def test_forward_head(case: Case) -> None:
    """`forward_head(pre_logits=True)`, and the classifier after it."""
    features = out(case.model.forward_features, case.x)
    pooled = out(lambda x: case.model.forward_head(x, pre_logits=True), features)
    assert pooled.shape == (2, case.model.head_hidden_size)
    assert torch.equal(out(case.model.get_classifier(), pooled), case.y)


@timm_only
def test_forward_intermediates(case: Case) -> None:
    """`forward_intermediates`: shapes as the base's, values changed by the gates in four stages."""
    last, maps = case.model.forward_intermediates(case.x)
    _, before = case.base.forward_intermediates(case.x)
    assert torch.equal(last, out(case.model.forward_features, case.x))
    assert [m.shape for m in maps] == [m.shape for m in before]
    assert not close(maps[-1], before[-1], 0.1)
    assert sum(not torch.equal(a, b) for a, b in zip(maps, before, strict=True)) >= 4


@timm_only
def test_reset_classifier(case: Case) -> None:
    """`reset_classifier(7)`: seven classes, the blocks untouched."""
    features = out(case.model.forward_features, case.x)
    case.model.reset_classifier(7)
    assert out(case.model, case.x).shape == (2, 7)
    assert torch.equal(out(case.model.forward_features, case.x), features)


@timm_only
def test_feature_info(case: Case) -> None:
    """`feature_info`, `default_cfg`, `num_features` and `num_classes` are the base's."""
    assert [dict(i) for i in case.model.feature_info] == [dict(i) for i in case.base.feature_info]
    assert case.model.default_cfg == case.base.default_cfg
    assert (case.model.num_features, case.model.num_classes) == (case.base.num_features, 10)
    for info in case.model.feature_info:
        case.model.get_submodule(info["module"])


@timm_only
def test_features_only(case: Case) -> None:
    """`features_only`: timm's feature net around an injected model, and a feature net that is injected."""
    maps = case.model.forward_intermediates(case.x, intermediates_only=True)
    nested = any("." in info["module"] for info in case.model.feature_info)  # timm's own choice, by family
    net = FeatureListNet(copy.deepcopy(case.model), tuple(range(len(maps))), flatten_sequential=nested)
    assert all(torch.equal(a, b) for a, b in zip(out(net, case.x), maps, strict=True))

    bare = MODELS[case.name](features_only=True).eval()
    wrapped = se_inject.inject(bare, SIZE, verify=False).model
    assert [y.shape for y in out(wrapped, case.x)] == [y.shape for y in out(bare, case.x)]
    assert wrapped.feature_info.channels() == bare.feature_info.channels()
    added = set(wrapped.state_dict()) - set(bare.state_dict())
    assert len({key.rpartition(".")[0].rpartition(".")[0] for key in added}) == len(case.blocks)


@timm_only
def test_set_grad_checkpointing(case: Case) -> None:
    """`set_grad_checkpointing`: the same loss and gradients, the blocks' too."""
    grads = []
    for enable in (False, True):
        case.model.zero_grad()
        case.model.set_grad_checkpointing(enable)
        case.model.train()
        torch.manual_seed(0)
        case.model(case.x).square().mean().backward()
        grads.append({name: p.grad.clone() for name, p in case.model.named_parameters()})
    assert set(case.added) <= set(grads[0])
    assert all(torch.equal(grads[0][name], grads[1][name]) for name in grads[0])


@timm_only
def test_layer_decay(case: Case) -> None:
    """`create_optimizer_v2(layer_decay=…)`: a block learns at the rate of the layer that it is in."""
    optimizer = create_optimizer_v2(case.model, "sgd", lr=1.0, layer_decay=0.5, weight_decay=0.1)
    scale = {id(p): group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    assert set(scale) == {id(p) for p in case.model.parameters()}
    assert len(set(scale.values())) > 2
    for path, owner in zip(case.blocks, case.owners, strict=True):
        inside = {scale[id(p)] for p in case.model.get_submodule(path).parameters()}
        around = {scale[id(p)] for p in case.model.get_submodule(owner).parameters()}
        assert len(inside) == 1 and inside == around, path


@over()
def test_freeze_batch_norm(case: Case) -> None:
    """timm's `freeze_batch_norm_2d`: relative error under 1e-4, every block there."""
    frozen = freeze_batch_norm_2d(case.model)
    assert not any(type(m) is nn.BatchNorm2d for m in frozen.modules())
    assert close(out(frozen, case.x), case.y, 1e-4)
    assert close(out(frozen.train().requires_grad_(False), case.x), out(case.model, case.x), 1e-4)


@over()
def test_reparameterize_model(case: Case) -> None:
    """timm's `reparameterize_model`: nothing to fuse here, nothing lost."""
    assert torch.equal(out(reparameterize_model(case.model), case.x), case.y)


@pytest.mark.filterwarnings("ignore:NOTE. The nodes obtained by tracing:UserWarning")
@over()
def test_create_feature_extractor(case: Case) -> None:
    """torchvision's `create_feature_extractor`: the gates by their names, and the last output."""
    names = [f"{path}.gate" for path in case.blocks]
    seen: list[torch.Tensor] = []
    hooks = [case.model.get_submodule(name).register_forward_hook(lambda _, args, y: seen.append(y)) for name in names]
    out(case.model, case.x)
    for hook in hooks:
        hook.remove()
    last = get_graph_node_names(case.model)[1][-1]
    found = out(create_feature_extractor(case.model, return_nodes=[*names, last]), case.x)
    assert torch.equal(found[last], case.y)
    assert all(torch.equal(found[name], y) for name, y in zip(names, seen, strict=True))
