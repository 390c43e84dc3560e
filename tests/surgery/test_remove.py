"""What ``inject`` did, ``remove`` undoes: classes, attributes, children in their order, keys, values, doubled norms."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models.resnet import Bottleneck

import se_inject
from se_inject.checks import overhead
from se_inject.errors import SpliceError, VerifyError
from se_inject.types import Carrier, Check
from tests.helpers import randomise
from tests.tiny import Chain, Layers, Residual, by_hand, image, inject, net, open_gates


def describe(model: nn.Module) -> list[Any]:
    return [(path, type(m), list(m._modules), set(vars(m))) for path, m in model.named_modules()]


def equal(a: nn.Module, b: nn.Module) -> bool:
    old, new = a.state_dict(), b.state_dict()
    return list(old) == list(new) and all(torch.equal(old[key], new[key]) for key in old)


class Slot(Layers):
    """The zoo's pattern: an attribute that is None, or the block."""

    def __init__(self) -> None:
        super().__init__()
        self.se = None

    def forward(self, x):
        y = self.bn2(self.conv2(self.first(x)))
        if self.se is not None:
            y = self.se(y)
        return x + y


class Place(Layers):
    """The zoo's other pattern: an Identity that the forward runs; children follow it."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.Identity()
        self.last = nn.ReLU()

    def forward(self, x):
        return self.last(x + self.attn(self.bn2(self.conv2(self.first(x)))))


class Empty(Residual):
    """A child slot that is None, and that nothing reads."""

    def __init__(self) -> None:
        super().__init__()
        self.register_module("se", None)
        self.last = nn.ReLU()


@pytest.mark.parametrize("init", ["identity", "absorb"])
@pytest.mark.parametrize("kind", [Residual, Slot, Place, Empty])
def test_remove_undoes_inject(kind: type[nn.Module], init: str) -> None:
    model = net(kind, 2)
    result = inject(model, {"placement": "standard", "init": init})
    assert describe(result.model) != describe(model)
    back = se_inject.remove(result.model)
    assert describe(back) == describe(model) and equal(back, model)
    assert torch.equal(back(image()), model(image()))
    assert result.model.get_submodule(result.plan.insertions[0].key)  # a copy was changed, not this


def test_wrapped_outputs_and_last_children() -> None:
    model = randomise(Chain()).eval()
    plan = by_hand(model, Carrier("wrap_output", "features.2", "se"), Carrier("append", "features", "se"))
    back = se_inject.remove(se_inject.apply(model, plan))
    assert describe(back) == describe(model) and equal(back, model)


def test_in_place() -> None:
    model = net(Residual, 2)
    before = describe(model)
    inject(model, inplace=True)
    assert se_inject.remove(model, inplace=True) is model
    assert describe(model) == before


def test_through_copies_and_pickles() -> None:
    model = net(Slot, 2)
    injected = inject(model, {"placement": "standard", "init": "absorb"}).model
    for again in (copy.deepcopy(injected), pickle.loads(pickle.dumps(injected))):
        back = se_inject.remove(again)
        assert describe(back) == describe(model) and equal(back, model)


def test_after_training_the_structure_comes_back_and_the_outputs_do_not() -> None:
    model = net()
    injected = inject(model).model.train()
    optimizer = torch.optim.SGD(injected.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        injected(image()).square().sum().backward()
        optimizer.step()
    back = se_inject.remove(injected).eval()
    assert describe(back) == describe(model)
    assert not torch.equal(back(image()), model(image()))


def test_two_insertions_are_both_undone() -> None:
    model = randomise(nn.Sequential(Bottleneck(8, 2), Bottleneck(8, 2))).eval()
    once = inject(model, {"placement": "standard", "init": "absorb"}, size=(8, 6, 6)).model
    twice = inject(once, "inner", size=(8, 6, 6)).model
    assert len([k for k in twice.state_dict() if k.endswith("fc1.weight")]) == 4
    back = se_inject.remove(twice)
    assert describe(back) == describe(model) and equal(back, model)


def test_a_second_insertion_that_fails_leaves_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    model = randomise(nn.Sequential(Bottleneck(8, 2))).eval()
    inject(model, size=(8, 6, 6), inplace=True)
    before = describe(model)
    monkeypatch.setattr(overhead, "overhead", lambda *args: Check("overhead", False, "made to fail"))
    with pytest.raises(VerifyError):
        inject(model, "inner", size=(8, 6, 6), inplace=True)
    assert describe(model) == before


# -- refusals: then nothing was changed -------------------------------------------------------------------------------
def refused(model: nn.Module, reason: str) -> None:
    before = describe(model)
    for inplace in (False, True):
        with pytest.raises(SpliceError, match=reason):
            se_inject.remove(model, inplace=inplace)
    assert describe(model) == before


def test_nothing_to_remove() -> None:
    refused(net(), "Net holds no block that se_inject inserted: nothing to remove")
    refused(se_inject.remove(inject(net()).model), "nothing to remove")


def test_a_class_that_is_not_the_generated_one() -> None:
    model = inject(net(Residual, 2)).model
    ours = type(model.blocks[1])
    model.blocks[1].__class__ = type("Wrapped", (ours,), {})
    refused(model, "blocks.1 is a Wrapped, not the class that was generated for it")
    model.blocks[1].__class__ = Residual
    refused(model, "blocks.1 is a Residual, not the class that was generated for it")
    model.blocks[1].__class__ = ours
    assert type(se_inject.remove(model).blocks[1]) is Residual


def test_a_block_that_is_gone() -> None:
    model = inject(net(Residual, 2)).model
    del model.blocks[1].se
    refused(model, "blocks.1 has no child 'se' any more")


def test_an_owner_that_is_gone() -> None:
    model = inject(net(Residual, 2)).model
    del model.blocks[1]
    refused(model, "the model was changed since the insertion")


def test_a_doubled_norm_that_was_fused() -> None:
    model = inject(net(), {"placement": "standard", "init": "absorb"}).model
    block = model.blocks[0]
    block.conv2, block.bn2 = fuse_conv_bn_eval(block.conv2, block.bn2), nn.Identity()
    refused(model, "blocks.0.bn2 is a Identity, not the batch norm that was doubled")


def test_a_block_that_was_replaced_is_taken_out_all_the_same() -> None:
    """What stands under the planned name goes: a pruned gate, for instance."""
    model = net()
    injected = open_gates(inject(model).model)
    injected.blocks[0].se = nn.Identity()
    assert torch.equal(injected(image()), model(image()))
    assert describe(se_inject.remove(injected)) == describe(model)


def test_a_graph_module() -> None:
    model = fx.symbolic_trace(net(Residual, 2))
    injected = inject(model, {"placement": "standard", "init": "absorb"}).model
    back = se_inject.remove(injected)
    assert back.code == model.code and equal(back, model)
    assert injected.code != model.code
