"""Nets as people write them: gates stand where they must, or a reason says why there is none."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import se_inject
from se_inject.blocks import is_block
from se_inject.errors import NothingSelectedError, PlanMismatchError
from se_inject.surgery import splice
from tests.helpers import randomise
from tests.zoo.handwritten import NETS, Hand

RIGHT = [name for name, cls in NETS.items() if not cls.code]
REFUSED = [name for name, cls in NETS.items() if cls.code]


def made(name: str) -> Hand:
    model = NETS[name]()
    randomise(model)
    return model.eval()


def leaves(value: Any) -> list[torch.Tensor]:
    return [value] if isinstance(value, torch.Tensor) else list(value)


def test_there_are_many() -> None:
    assert len(NETS) >= 80


@pytest.mark.parametrize("name", RIGHT)
def test_gates_stand_at_the_end_of_each_branch(name: str) -> None:
    """With every block's output at zero, the net is the one whose f(x) is zero."""
    model, cls = made(name), NETS[name]
    x = torch.randn(*[2] * cls.batched, *cls.shape, generator=torch.Generator().manual_seed(1))
    injection = se_inject.inject(model, cls.shape if cls.batched else x, "standard")
    assert tuple(d.site.id.rpartition(":")[0] for d in injection.plan.insertions) == cls.at

    without = copy.deepcopy(model)
    for path in cls.zero:
        for parameter in without.get_submodule(path).parameters():
            nn.init.zeros_(parameter)
    for module in injection.model.modules():
        if is_block(module):
            module.register_forward_hook(lambda block, args, y: torch.zeros_like(y))
    for training in (False, True):
        with torch.no_grad():
            expected, found = without.train(training)(x.clone()), injection.model.train(training)(x.clone())
            differs = model.train(training)(x.clone())
        assert torch.equal(leaves(found)[0], leaves(expected)[0])  # the sum: what is used inside a body stays
        assert not torch.equal(leaves(differs)[0], leaves(expected)[0])


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_place_is_refused_with_the_reason(name: str) -> None:
    with pytest.raises(NothingSelectedError) as refusal:
        se_inject.plan(made(name), NETS[name].shape, "standard")
    assert refusal.value.code == NETS[name].code


def test_a_block_takes_the_dtype_of_its_value() -> None:
    injection = se_inject.inject(made("TwoTypes"), Hand.shape, "standard")
    (decision,) = injection.plan.insertions
    block = injection.model.get_submodule(decision.key)
    assert decision.site.dtype == "float32" and {p.dtype for p in block.parameters()} == {torch.float32}
    assert se_inject.plan(made("Plus"), Hand.shape, "standard").insertions[0].site.dtype == ""
    wrong = replace(decision, site=replace(decision.site, dtype="load"))
    with pytest.raises(PlanMismatchError, match="the dtype 'load'; it can be float16"):
        splice.apply(made("TwoTypes"), replace(injection.plan, decisions=(wrong,)))


def test_an_addition_in_a_forward_hook_is_told() -> None:
    """The gate is on f(x): the hook adds x behind it."""
    model = made("Chained")
    model.f.register_forward_hook(lambda module, args, y: y + args[0])
    injection = se_inject.inject(model, Hand.shape, "conv")
    (note,) = injection.plan.notes
    assert (note.code, note.text.rpartition(": ")[2]) == ("hooks", "f")
    assert not se_inject.plan(made("Chained"), Hand.shape, "conv").notes
