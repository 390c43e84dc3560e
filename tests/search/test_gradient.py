"""Where a gate could not learn: skipped with its reason, or inserted and said where an include asks for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import se_inject
from se_inject.search.gradient import UNTOLD, UNUSED, WITHOUT
from se_inject.search.train_mode import EVAL_ONLY
from se_inject.types import Check, Plan, Reason, dump, from_dict
from tests.helpers import randomise, refused
from tests.tiny import SIZE, Layers, Net, Residual, image, inject, open_gates

STANDARD = {"placement": "standard"}
# The checks run a model without gradients too.
pytestmark = pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")


class Two(Net):
    """A backbone of one block and a neck of another; ``features`` says how the first comes to the second."""

    def __init__(self, block: Any = Residual) -> None:
        super().__init__(block, 2)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks[0](self.stem(x))

    def head(self, f: torch.Tensor) -> torch.Tensor:
        return self.fc(self.blocks[1](f).mean((2, 3)))

    def forward(self, x: torch.Tensor) -> Any:
        return self.head(self.features(x))


class NoGrad(Two):
    def forward(self, x: torch.Tensor) -> Any:
        with torch.no_grad():
            f = self.features(x)
        return self.head(f)


class GradOn(Two):
    """As in ``NoGrad``, with gradients."""

    def forward(self, x: torch.Tensor) -> Any:
        with torch.set_grad_enabled(True):
            f = self.features(x)
        return self.head(f)


class Decorated(Two):
    @torch.no_grad()
    def features(self, x: torch.Tensor) -> torch.Tensor:
        return super().features(x)


class Detached(Two):
    def forward(self, x: torch.Tensor) -> Any:
        return self.head(self.features(x).detach())


class DetachedBeside(Two):
    """A second path with its gradient."""

    def forward(self, x: torch.Tensor) -> Any:
        f = self.features(x)
        return self.head(f.detach() + f)


class DetachedInput(Two):
    """What comes before all layers has no gradient anyway."""

    def forward(self, x: torch.Tensor) -> Any:
        return super().forward(x.detach())


class Unused(Two):
    def forward(self, x: torch.Tensor) -> Any:
        self.features(x)
        return self.head(self.stem(x))


class UsedInADict(Two):
    def forward(self, x: torch.Tensor) -> Any:
        return {"logits": self.head(self.stem(x)), "maps": [(self.features(x),)]}


@dataclass
class Output:
    logits: torch.Tensor
    features: Any = None


class InADataclass(Two):
    def forward(self, x: torch.Tensor) -> Any:
        return Output(self.head(self.stem(x)), (self.features(x),))


class NotInTheDataclass(Two):
    def forward(self, x: torch.Tensor) -> Any:
        f = self.features(x)
        return Output(self.head(self.stem(x)), f.shape)


class InEvalAlone(Two):
    """No gradients in eval mode alone, as many write it."""

    def forward(self, x: torch.Tensor) -> Any:
        with torch.set_grad_enabled(self.training):
            return super().forward(x)


class InTrainAlone(Two):
    """A teacher."""

    def forward(self, x: torch.Tensor) -> Any:
        f = self.features(x)
        return self.head(f.detach() if self.training else f)


class Checkpointed(Two):
    reentrant = False

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return checkpoint(self.blocks[0], self.stem(x), use_reentrant=self.reentrant)


class Reentrant(Checkpointed):
    reentrant = True


class Through(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        return grads[0] * 2


class Blocked(Through):
    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        return None


class PassedOn(Two):
    function: Any = Through

    def forward(self, x: torch.Tensor) -> Any:
        return self.head(self.function.apply(self.features(x)))


class NotPassedOn(PassedOn):
    function = Blocked


class WrittenInPlace(Two):
    """A view that is written later: its first history is not that of what comes out."""

    def forward(self, x: torch.Tensor) -> Any:
        f = self.features(x) + 1
        rows = f.flatten(2)
        rows += 1
        rows[:, :2] = 0
        return self.head(f)


class NeedsTargets(Two):
    """A detector: eval mode returns what has no gradient, train mode wants more."""

    def forward(self, x: torch.Tensor, targets: Any = None) -> Any:
        f = self.features(x)
        if self.training and targets is None:
            raise ValueError("targets should not be None")
        return self.head(f.detach()), F.relu(self.stem(x))


class NoGradAndTargets(NoGrad):
    def forward(self, x: torch.Tensor, targets: Any = None) -> Any:
        out = super().forward(x)
        if self.training and targets is None:
            raise ValueError("targets should not be None")
        return out


def frozen() -> nn.Module:
    model = Two()
    model.blocks[0].requires_grad_(False)
    return model.requires_grad_(False)


# What becomes of the first block's site; the second's is always taken.
TRUTH: dict[str, tuple[Callable[[], nn.Module], Reason | None]] = {
    "plain": (Two, None),
    "no_grad": (NoGrad, WITHOUT),
    "gradients on": (GradOn, None),
    "a method under no_grad": (Decorated, WITHOUT),
    "detach": (Detached, UNUSED),
    "detach, and a path beside it": (DetachedBeside, None),
    "a detached input": (DetachedInput, None),
    "unused": (Unused, UNUSED),
    "used in a dict": (UsedInADict, None),
    "used in a dataclass": (InADataclass, None),
    "only its shape in a dataclass": (NotInTheDataclass, UNUSED),
    "no gradients in eval mode": (InEvalAlone, None),
    "detached in train mode": (InTrainAlone, UNUSED),
    "a checkpoint": (Checkpointed, None),
    "a reentrant checkpoint": (Reentrant, None),
    "a function that passes gradients": (PassedOn, None),
    "a function that blocks them": (NotPassedOn, UNUSED),
    "a view written in place": (WrittenInPlace, None),
    "frozen by hand": (frozen, None),
    "no_grad before targets": (NoGradAndTargets, WITHOUT),
}


def check(result: se_inject.Injection) -> Check:
    return next(check for check in result.report.checks if check.name == "reached")


@pytest.mark.parametrize("kind", TRUTH)
def test_a_gate_stands_where_it_can_learn(kind: str) -> None:
    make, reason = TRUTH[kind]
    model = randomise(make()).eval()
    result = inject(model, STANDARD)
    told = {d.site.owner: (d.status, d.reason.code) for d in result.plan.decisions}
    assert told["blocks.1"][0] == "insert"
    assert told["blocks.0"] == (("skip", reason.code) if reason else ("insert", "placement"))
    assert check(result).passed is True


@pytest.mark.parametrize("kind", [kind for kind, (_, reason) in TRUTH.items() if reason])
def test_who_names_such_a_site_gets_it_and_is_told(kind: str) -> None:
    make, reason = TRUTH[kind]
    for rules in ({**STANDARD, "include": ["blocks.0"]}, {**STANDARD, "sites": [{"include": ["blocks.0"]}]}):
        result = inject(randomise(make()).eval(), rules)
        (decision,) = result.plan.insertions
        assert decision.site.owner == "blocks.0" and decision.site.note == reason != decision.reason
        assert check(result).detail.endswith("; 1 more were asked for where no gate can learn")
        assert str(reason) in " ".join(str(result.report).split())


@pytest.mark.parametrize("kind", TRUTH)
def test_the_truth_is_what_a_step_of_training_does(kind: str) -> None:
    """Not by our walk, but by a plain backward in train mode."""
    make, reason = TRUTH[kind]
    model = randomise(make()).eval()
    result = inject(model, {**STANDARD, "include": ["blocks.*"]})
    model = open_gates(result.model).train()
    x = image().requires_grad_()  # a reentrant checkpoint wants it
    out = model(x, 0) if "targets" in kind else model(x)
    tensors = [out.logits, *out.features] if isinstance(out, Output) and out.features else [out]
    if isinstance(out, Output) and reason:
        tensors = [out.logits]
    if isinstance(out, dict):
        tensors = [out["logits"], out["maps"][0][0]]
    sum((t * torch.randn(t.shape)).sum() for t in tensors).backward()
    learns = any(p.grad is not None and p.grad.any() for p in model.blocks[0].se.parameters())
    assert learns is not bool(reason)


def test_eval_mode_alone_proves_nothing() -> None:
    result = inject(randomise(NeedsTargets()).eval(), STANDARD)
    notes = {d.site.owner: d.site.note for d in result.plan.insertions}
    assert notes["blocks.0"] == UNTOLD and notes["blocks.1"] is None
    found = check(result)
    assert found.passed is None and found.detail == (
        "1 blocks get no gradient from the outputs in eval mode (train mode does not run so: targets should not be "
        "None), the first is blocks.0.se"
    )


def test_nothing_that_learns_is_refused_with_the_reason() -> None:
    class AllOff(Two):
        @torch.no_grad()
        def forward(self, x: torch.Tensor) -> Any:
            return super().forward(x)

    with refused("no-grad", r"select none of the 2 sites; most often \(2\): it is computed without grad"):
        se_inject.plan(AllOff(), SIZE, STANDARD)


def test_the_model_is_left_as_it_is() -> None:
    model = randomise(NoGrad()).train()
    model.blocks[0].eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    modes, state = [m.training for m in model.modules()], torch.get_rng_state()
    se_inject.plan(model, SIZE, STANDARD)
    assert [m.training for m in model.modules()] == modes and torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


# -- branches on the mode ---------------------------------------------------------------------------------------------
class Sides(Layers):
    """The same place on both sides of a branch, as shake-shake and stochastic paths write it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            y = self.bn2(self.conv2(self.first(x))) * torch.rand(x.shape[0], 1, 1, 1)
        else:
            y = self.bn2(self.conv2(self.first(x))) * 0.5
        return F.relu(x + y)


class OneSide(Layers):
    """In train mode another layer makes the value, in a loop that hides it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        if self.training:
            return F.relu(x + y)
        return F.relu(x + self.bn2(self.conv2(y)))


class Common(Layers):
    """The value is made before the branch."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(self.first(x)))
        if self.training:
            return F.relu(x + y * torch.rand(x.shape[0], 1, 1, 1))
        return F.relu(x + y * 0.5)


def test_both_sides_of_a_branch_get_the_same_child() -> None:
    model = randomise(Two(Sides)).eval()
    result = inject(model, STANDARD)
    assert [d.site.owner for d in result.plan.decisions if d.status == "insert"] == ["blocks.0", "blocks.1"]
    assert not result.plan.skips and check(result).passed is True
    (source,) = result.report.rewritten.values()
    assert source.after.count("self.se(self.bn2(self.conv2(self.first(x))))") == 2
    rewritten, x = open_gates(result.model), image()
    for training in (False, True):
        model.train(training), rewritten.train(training)
        outputs = []
        for net in (model, rewritten):
            torch.manual_seed(0)
            outputs.append(net(x))
        assert not torch.equal(*outputs)
    rewritten.zero_grad()
    rewritten(x).sum().backward()
    assert all(p.grad is not None for d in result.plan.insertions for p in rewritten.get_submodule(d.key).parameters())


def test_a_plan_with_two_places_survives_its_file() -> None:
    model = randomise(Two(Sides)).eval()
    plan = inject(model, STANDARD).plan
    again = from_dict(Plan, json.loads(dump(plan)))
    assert again == plan and all(len(d.site.carrier.others) == 1 for d in again.insertions if d.site.carrier)


@pytest.mark.parametrize(("block", "reason"), [(OneSide, EVAL_ONLY), (Common, None)])
def test_what_runs_in_eval_mode_alone_is_skipped(block: Any, reason: Reason | None) -> None:
    class Mixed(Two):
        def __init__(self) -> None:
            super().__init__()
            self.blocks[0] = block()

    result = inject(randomise(Mixed()).eval(), STANDARD)
    told = {d.site.owner: (d.status, d.reason.code) for d in result.plan.decisions if "train" not in d.site.id}
    assert told["blocks.1"] == ("insert", "placement")
    assert told["blocks.0"] == (("skip", reason.code) if reason else ("insert", "placement"))
    if reason:
        asked = inject(randomise(Mixed()).eval(), {**STANDARD, "include": ["blocks.0"]})
        assert asked.plan.insertions[0].site.note.code == reason.code


class Skipping(Layers):
    """Stochastic depth that leaves out the whole branch, by a draw that the skeleton can make too."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        import random

        if self.training and random.random() < 0.5:
            return x
        return F.relu(x + self.bn2(self.conv2(self.first(x))))


def test_a_branch_that_chance_leaves_out_is_not_one_of_eval_mode() -> None:
    result = inject(randomise(Two(Skipping)).eval(), STANDARD)
    assert len(result.plan.insertions) == 2 and check(result).passed is True
