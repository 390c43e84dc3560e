"""Leave-SE-out: networks that come with channel attention lose it, and the search finds every place again.

Weightless: on meta tensors. `test_transplant.py` also puts the attention back; `benchmarks/leave_se_out.py` does this
to the whole of both libraries.
"""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from torch import nn

from benchmarks.leave_se_out import behind
from se_inject.inputs import resolve
from se_inject.search.carriers import reaches
from se_inject.search.sites import Found, find_sites
from se_inject.trace.record import trace
from tests.zoo.test_transplant import leave_out

# network -> gates that it comes with, and which placement finds them; sites beyond them (of both placements).
NETWORKS: dict[str, tuple[int, str, int]] = {
    "timm:seresnet18": (8, "standard", 0),
    "timm:seresnet50": (16, "standard", 16),
    "timm:seresnext50_32x4d": (16, "standard", 16),
    "timm:seresnetaa50d": (16, "standard", 16),
    "timm:ecaresnet50d": (16, "standard", 16),
    "timm:gcresnet50t": (16, "inner", 16),
    "timm:resnetrs50": (16, "standard", 16),
    "timm:legacy_senet154": (50, "standard", 50),
    "timm:efficientnet_b0": (16, "inner", 9),
    "timm:efficientnet_b3": (26, "inner", 19),
    "timm:efficientnet_blur_b0": (16, "inner", 9),  # the gate stands behind the anti-aliasing
    "timm:tf_efficientnetv2_s": (30, "inner", 43),
    "timm:mobilenetv3_large_100": (8, "inner", 17),
    "timm:semnasnet_100": (8, "inner", 17),
    "timm:regnety_002": (13, "inner", 13),
    "timm:nf_regnet_b0": (16, "inner", 16),
    "timm:mixnet_s": (13, "inner", 14),  # convolutions side by side
    "timm:efficientnet_cc_b0_4e": (16, "inner", 9),  # computed weights
    "timm:ghostnet_050": (7, "inner", 30),
    "timm:ghostnetv2_100": (7, "inner", 30),
    "timm:ghostnetv3_050": (7, "inner", 30),
    "timm:repghostnet_050": (7, "inner", 30),
    "timm:repvit_m0_9": (10, "inner", 42),
    "timm:lcnetv2_small": (4, "inner", 8),
    "timm:coatnet_0_rw_224": (5, "inner", 23),
    "timm:rdnet_tiny": (15, "standard", 27),  # dense layers
    "timm:cs3sedarknet_l": (21, "early", 25),
    "torchvision:efficientnet_b0": (16, "inner", 9),
    "torchvision:mobilenet_v3_large": (8, "inner", 17),
    "torchvision:regnet_y_400mf": (16, "inner", 16),
}


def build(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    library, _, model = name.partition(":")
    # torchvision's RegNets read values in their constructor, which the meta device has not.
    with torch.device("cpu" if name == "torchvision:regnet_y_400mf" else "meta"):
        if library == "timm":
            made = timm.create_model(model)
            return made.eval(), made.pretrained_cfg["input_size"]
        return torchvision.models.get_model(model, weights=None).eval(), (3, 224, 224)


def hits(found: Found, path: str) -> list[str]:
    """Ids of the sites that stand where the Identity at ``path`` does."""
    nodes = {site.id: found.places[site.id][0][1] for site in found.sites}
    return [name for name, node in nodes.items() if reaches(node, path) or behind(node, path)]


@pytest.mark.parametrize("name", NETWORKS)
def test_every_place_is_found(name: str) -> None:
    count, placement, beyond = NETWORKS[name]
    model, size = build(name)
    bare, taken = leave_out(model, size)
    assert len(taken) == count
    found = find_sites(trace(bare, resolve(bare, size)), {"standard", "inner", placement})
    here = {path: hits(found, path) for path in taken}
    assert {path: len(ids) for path, ids in here.items()} == dict.fromkeys(taken, 1)
    assert {ids[0].partition(":")[2].partition("_")[0] for ids in here.values()} == {placement}
    assert len(found.sites) - count == beyond
    assert not any(site.gated or site.gate_on_branch or site.obstacle for site in found.sites)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_original_is_gated_at_all_of_them(name: str) -> None:
    count, placement, _ = NETWORKS[name]
    model, size = build(name)
    found = find_sites(trace(model, resolve(model, size)), {"standard", "inner", placement})
    assert sum(bool(site.gated) for site in found.sites if site.placement == placement) == count
