"""RepVGG and MobileOne: the gates run on the trained path and on the fused one (`sum` fills the slot that both use)."""

from __future__ import annotations

import pytest
import timm
import torch
from timm.utils.model import reparameterize_model

import se_inject
from tests.helpers import randomise

# Fusing convolutions and batch norms rounds anew: at most this, relative to the largest logit.
ROUNDING = {"repvgg_a0": 1e-5, "mobileone_s0": 1e-4}


@pytest.mark.parametrize("name", ROUNDING)
def test_gates_survive(name: str) -> None:
    result = se_inject.inject(randomise(timm.create_model(name)), (3, 64, 64), "repvgg-se")
    model, x = result.model.train(), torch.randn(2, 3, 64, 64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        trained = model(x)
    fused = reparameterize_model(model)
    ran: list[str] = []
    for decision in result.plan.insertions:
        block = fused.get_submodule(decision.key)
        block.register_forward_hook(lambda *_, key=decision.key: ran.append(key))
    with torch.no_grad():
        deployed = fused(x)
    assert sorted(ran) == sorted(d.key for d in result.plan.insertions)
    assert (trained - deployed).abs().max() <= ROUNDING[name] * trained.abs().max()
    assert any(block.fc2.weight.any() for block in map(fused.get_submodule, ran))  # trained, not at their start

    exported = torch.export.export(fused, (x,)).module()
    assert torch.allclose(exported(x), deployed, rtol=1e-5, atol=1e-5 * float(deployed.abs().max()))
