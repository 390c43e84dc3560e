"""Gate statistics: what the gates of inserted blocks do on a batch, against figures by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import se_inject
from tests import tiny
from tests.helpers import randomise
from tests.nets import Basic

SIZE = (8, 8, 8)


def injected(**rules: object) -> nn.Module:
    return se_inject.inject(randomise(Basic()).eval(), SIZE, {"placement": "standard", **rules}).model


@pytest.mark.parametrize("block", ["se", "se_plain", "ese", "eca", "cbam", "gc"])
def test_an_identity_start_is_open_for_every_channel(block: str) -> None:
    (found,) = se_inject.gate_statistics(injected(block=block), torch.randn(4, *SIZE))
    assert (found.mean, found.std, found.min, found.max) == (1.0, 0.0, 1.0, 1.0)
    assert (found.closed, found.open) == (0.0, 1.0 if found.highest == 1 else 0.0) and not found.note


def test_the_block_is_named_by_its_path_and_class() -> None:
    (found,) = se_inject.gate_statistics(injected(), torch.randn(4, *SIZE))
    assert (found.block, found.kind, found.highest) == ("se", "SqueezeExcite", 2.0)


def test_figures_by_hand() -> None:
    model = injected(init="paper")
    with torch.no_grad():
        model.se.fc2.weight.zero_()
        model.se.fc2.bias.copy_(torch.tensor([-50.0, 50.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]))
    (found,) = se_inject.gate_statistics(model, torch.randn(4, *SIZE))
    assert (found.min, found.max, found.mean) == (pytest.approx(0.0, abs=1e-6), 1.0, 0.5)
    assert (found.closed, found.open) == (0.125, 0.125)


def test_figures_are_those_of_the_gate_that_runs() -> None:
    model = tiny.open_gates(tiny.inject(tiny.net()).model)
    seen: list[torch.Tensor] = []
    block = model.get_submodule("blocks.0.se")
    block.register_forward_hook(lambda module, args, out: seen.append(module.scale(args[0]).detach()))
    (found,) = se_inject.gate_statistics(model, tiny.image())
    assert found.mean == pytest.approx(seen[0].mean().item(), rel=1e-4)
    assert found.std == pytest.approx(seen[0].std(correction=0).item(), rel=1e-4)


def test_a_model_without_blocks_has_none() -> None:
    assert se_inject.gate_statistics(Basic().eval(), torch.randn(2, *SIZE)) == ()


def test_a_block_without_a_channel_gate_says_so() -> None:
    (found,) = se_inject.gate_statistics(injected(block={"name": "gc", "fusion": "add"}), torch.randn(4, *SIZE))
    assert found.mean is None and found.note


def test_the_model_is_left_as_it_was() -> None:
    model = injected().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    se_inject.gate_statistics(model, torch.randn(4, *SIZE))
    assert model.training and all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks for m in model.modules())


def test_a_batch_that_does_not_fit_is_refused() -> None:
    with pytest.raises(se_inject.TraceError, match="does not run on the batch"):
        se_inject.gate_statistics(injected(), torch.randn(4, 3, 8, 8))


def test_in_the_report_when_real_inputs_were_given() -> None:
    model = randomise(Basic()).eval()
    assert len(se_inject.inject(model, torch.randn(2, *SIZE), "standard").report.gates) == 1
    assert se_inject.inject(model, SIZE, "standard").report.gates == ()
