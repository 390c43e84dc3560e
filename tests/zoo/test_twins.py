"""Against networks that other people wrote: an injected ResNet is timm's own SE-ResNet, key by key and bit by bit."""

from __future__ import annotations

import pytest
import timm
import torch

import se_inject
from tests.helpers import randomise

TWINS = {
    "resnet18": ("seresnet18", 90_112),
    "resnet34": ("seresnet34", 162_744),
    "resnet50": ("seresnet50", 2_530_992),
    "resnet101": ("seresnet101", 4_777_712),
    "resnet152": ("seresnet152", 6_629_040),
    "resnext50_32x4d": ("seresnext50_32x4d", 2_530_992),
    "resnext101_32x4d": ("seresnext101_32x4d", 4_777_712),
}


@pytest.mark.parametrize("init", ["absorb", "paper"])
@pytest.mark.parametrize("base", TWINS)
def test_twin(base: str, init: str) -> None:
    twin_name, added = TWINS[base]
    plain = randomise(timm.create_model(base).eval())
    model = se_inject.inject(plain, rules={"placement": "standard", "init": init}, verify=False).model
    twin = timm.create_model(twin_name).eval()

    assert twin.load_state_dict(model.state_dict(), strict=True).missing_keys == []
    assert sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in plain.parameters()) == added

    randomise(twin, seed=1)
    model.load_state_dict(twin.state_dict(), strict=True)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model(x), twin(x))
        assert not torch.equal(model(x), plain(x))  # the gates do something


def test_absorbed_twin_is_the_plain_network() -> None:
    plain = randomise(timm.create_model("resnet18").eval())
    model = se_inject.inject(plain, rules={"placement": "standard", "init": "absorb"}, verify=False).model
    twin = timm.create_model("seresnet18").eval()
    twin.load_state_dict(model.state_dict(), strict=True)
    x = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        assert torch.equal(twin(x), plain(x))
        assert torch.equal(model(x), plain(x))
