"""Presets: each is readable, cites its paper, and selects what it says on the network that it is for."""

from __future__ import annotations

import json
import re

import jsonschema
import pytest
import timm
import torch
import torchvision
from torch import nn

import se_inject
from se_inject.rules import schema as rules
from se_inject.rules.presets import PRESETS

# preset -> a network it is for, and how many sites it takes there
FOR = {
    "se-resnet": ("torchvision:resnet18", 8),
    "se-resnet-3x3": ("torchvision:resnet50", 16),
    "se-vgg": ("torchvision:vgg16_bn", 13),
    "se-inception": ("torchvision:googlenet", 9),
    "mobilenetv3": ("torchvision:mobilenet_v2", 17),
    "efficientnet": ("torchvision:mobilenet_v2", 17),
    "regnety": ("timm:regnetx_002", 13),
    "ecanet": ("torchvision:resnet50", 16),
    "cbam": ("torchvision:resnet18", 8),
    "gcnet": ("torchvision:resnet50", 13),
    "resnet-rs": ("torchvision:resnet50", 16),
    "ese-vovnet": ("timm:ese_vovnet19b_dw", 4),
    "repvgg-se": ("timm:repvgg_a0", 22),
}


def build(name: str) -> nn.Module:
    library, _, model = name.partition(":")
    with torch.device("meta"):
        if library == "timm":
            return timm.create_model(model)
        extra = {"init_weights": False} if model == "googlenet" else {}
        return torchvision.models.get_model(model, weights=None, **extra)


def test_every_preset_is_tried() -> None:
    assert FOR.keys() == PRESETS.keys()


@pytest.mark.parametrize("name", PRESETS)
def test_preset(name: str) -> None:
    preset = PRESETS[name]
    assert re.search(r"arXiv \d{4}\.\d{5}", preset.paper)
    assert preset.selects
    jsonschema.validate(preset.rules, rules.schema())
    network, count = FOR[name]
    again = {"again": True} if name == "ese-vovnet" else {}
    plan = se_inject.plan(build(network), (3, 64, 64), {**preset.rules, **again})
    assert len(plan.insertions) == count


@pytest.mark.parametrize("name", PRESETS)
def test_a_plan_remembers_rules_that_can_be_read(name: str) -> None:
    for extra in ({}, {"budget": {"params": "2%"}, "sites": [{"last": True, "ratio_by_stage": {1: 4}}]}):
        parsed = rules.read({**PRESETS[name].rules, **extra})
        again = json.loads(json.dumps(rules.to_plain(parsed)))
        assert rules.read(again) == parsed
    assert rules.to_plain(rules.Rules()) == {}


def test_by_name() -> None:
    assert rules.read("resnet-rs") == rules.read(PRESETS["resnet-rs"].rules)
    with pytest.raises(se_inject.RulesError, match="Did you mean 'se-resnet'"):
        rules.read("se-resnt")


def test_schema_and_reader_agree() -> None:
    """What the reader takes, the schema takes; what the schema refuses by type, the reader refuses."""
    schema = rules.schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    good = {
        "placement": ["standard", "post"],
        "ratio_by_stage": {"3": 8},
        "classes": "Bottle*",
        "every": 2,
        "sites": [{"include": "layer1.*", "init": "paper", "last": True, "ratio": 4}],
    }
    rules.read(good)
    jsonschema.validate(good, schema)
    for bad in ({"every": 0}, {"placment": "standard"}, {"init": "none"}, {"sites": [{"budget": {"params": 1}}]}):
        with pytest.raises(se_inject.RulesError):
            rules.read(bad)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(bad, schema)
