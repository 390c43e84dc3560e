"""Leave-SE-out and put back: networks that come with attention lose it, the tool finds the places again, and with the
matching preset and the original's own weights the outputs are the original's."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import nn

import se_inject
from se_inject.inputs import resolve
from se_inject.rules.presets import PRESETS
from se_inject.search.chains import chain
from se_inject.trace.calls import record_of
from se_inject.trace.record import trace
from tests.helpers import randomise

SIZE = (3, 64, 64)


def gates(model: nn.Module, size: tuple[int, ...]) -> list[str]:
    """Paths of the modules whose output is a gate of their input, outermost, in order of execution."""
    found: list[str] = []
    for call in trace(model, resolve(model, size)).calls:
        if any(call.path.startswith(f"{path}.") for path in found):
            continue
        for node in call.graph.nodes:
            if node.op == "call_module":
                kinds = {o.kind for o in chain(node)}
                if "gate" in kinds and kinds <= {"gate", "pass"} and record_of(node).path not in found:
                    found.append(record_of(node).path)
    return found


def leave_out(model: nn.Module, size: tuple[int, ...] = SIZE) -> tuple[nn.Module, dict[str, nn.Module]]:
    """A copy with ``Identity`` in the place of every gate, and the gates by path."""
    bare = copy.deepcopy(model)
    taken = {path: model.get_submodule(path) for path in gates(model, size)}
    for path in taken:
        parent, _, name = path.rpartition(".")
        bare.get_submodule(parent).add_module(name, nn.Identity())
    return bare, taken


# network -> preset, what the network does otherwise than the preset, relative tolerance (0: bit for bit).
# torchvision squeezes with AdaptiveAvgPool2d, which sums in another order than mean; timm's ECA and GC are as ours.
POOL = 1e-5
NETWORKS: dict[str, tuple[str, dict[str, Any], float]] = {
    "timm:seresnet18": ("se-resnet", {}, 0),
    "timm:seresnext50_32x4d": ("se-resnet", {}, 0),
    "timm:resnetrs50": ("resnet-rs", {}, 0),
    "timm:ecaresnet26t": ("ecanet", {}, 0),
    "timm:efficientnet_b0": ("efficientnet", {}, 0),
    "timm:mobilenetv3_large_100": ("mobilenetv3", {}, 0),
    "timm:regnety_002": ("regnety", {}, 0),
    "timm:ese_vovnet19b_dw": ("ese-vovnet", {}, 0),
    "torchvision:efficientnet_b0": ("efficientnet", {}, POOL),
    "torchvision:mobilenet_v3_large": ("mobilenetv3", {}, POOL),
    "torchvision:regnet_y_400mf": ("regnety", {}, POOL),
}


def build(name: str) -> nn.Module:
    library, _, model = name.partition(":")
    torch.manual_seed(0)
    made = timm.create_model(model) if library == "timm" else torchvision.models.get_model(model, weights=None)
    return randomise(made.eval())


@pytest.mark.parametrize("name", NETWORKS)
def test_put_back(name: str) -> None:
    preset, changes, tolerance = NETWORKS[name]
    original = build(name)
    bare, taken = leave_out(original)
    assert taken and not gates(bare, SIZE)
    include = [f"{path.rpartition('.')[0]}" for path in taken]
    rules = {**PRESETS[preset].rules, **changes, "init": "paper", "include": include}
    model = se_inject.inject(bare, SIZE, rules, verify=False).model

    blocks = {path: model.get_submodule(path) for path in taken}  # every place was found, under the same name
    for path, block in blocks.items():
        ours, theirs = block.state_dict(), taken[path].state_dict()
        assert [t.shape for t in ours.values()] == [t.shape for t in theirs.values()], path
        block.load_state_dict(dict(zip(ours, theirs.values(), strict=True)))
    x = torch.randn(2, *SIZE)
    with torch.no_grad():
        want, got = original(x), model(x)
        assert not torch.equal(bare(x), want)
    if tolerance:
        assert (got - want).abs().max() <= tolerance * want.abs().max()
    else:
        assert torch.equal(got, want)
