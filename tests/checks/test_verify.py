"""Every check can fail, says why, and leaves the model as it was. A check that cannot fail would prove nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import se_inject
from se_inject.checks import reference as baseline
from se_inject.checks.keys import keys
from se_inject.checks.outputs import _compare, against_baseline, outputs, same
from se_inject.checks.overhead import overhead
from se_inject.checks.reached import reached
from se_inject.checks.reference import Run, digests, preserved, run_forward
from se_inject.checks.structure import structure
from se_inject.checks.table import require
from se_inject.errors import VerifyError
from se_inject.injection import plan as planning
from se_inject.inputs import from_shape, tensors_in
from se_inject.surgery import splice
from se_inject.surgery.expected import differences
from se_inject.trace.record import trace
from se_inject.types import Check, Cost, Plan, SiteCost, dump
from tests.tiny import SIZE, Layers, Net, Residual, image, inject, net, open_gates

IDENTITY = {"placement": "standard"}


class Case:
    """A planned model, its reference, and the rewritten model on which a test then does something wrong."""

    def __init__(self, model: nn.Module | None = None, init: str = "identity", n: int = 2) -> None:
        self.model = model if model is not None else net(n=n)
        self.planned = planning.make_plan(self.model, SIZE, {"placement": "standard", "init": init})
        self.plan: Plan = self.planned.plan
        self.reference = baseline.take(self.model, self.planned.inputs, self.plan.seed)
        self.result: Any = splice.apply(self.model, self.plan)

    def structure(self) -> Check:
        again = trace(self.result, self.planned.inputs)
        return structure(differences(self.planned.trace, self.planned.found, self.plan.insertions, again), 2)

    def outputs(self) -> tuple[Check, ...]:
        return outputs(self.reference, self.result, self.plan)

    def reached(self) -> Check:
        return reached(self.result, self.reference.probe, self.plan)

    def keys(self) -> Check:
        return keys(self.reference.tensors, self.result, self.plan)


@pytest.mark.parametrize("init", ["identity", "absorb"])
def test_all_pass_on_what_was_planned(init: str) -> None:
    case = Case(init=init)
    checks = [case.structure(), *case.outputs(), case.reached(), case.keys()]
    assert all(check.passed is True for check in checks), checks
    report = inject(net(n=2), {"placement": "standard", "init": init}).report
    assert [check.name for check in report.checks] == [
        "structure", "outputs (eval)", "outputs (train)", "reached", "keys", "overhead", "independent"
    ]  # fmt: skip
    assert all(check.passed is True for check in report.checks)
    assert inject(net(n=2), verify=False).report.checks == ()


# -- 1. structure -----------------------------------------------------------------------------------------------------
class Other(Residual):
    """The call stands at another place than the plan says."""

    def forward(self, x):
        y = F.relu(self.bn1(self.se(self.conv1(x))))
        y = self.bn2(self.conv2(y))
        return F.relu(x + y)


class Forgotten(Residual):
    """No call at all."""


class Extra(Residual):
    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.se(self.bn2(self.conv2(y)))
        return F.relu(x + y) * 2


class Again(Residual):
    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.se(self.se(self.bn2(self.conv2(y))))
        return F.relu(x + y)


class Right(Residual):
    """What was planned, written by hand, with an Identity and another order of independent steps."""

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = nn.Identity()(self.se(self.bn2(self.conv2(y))))
        return F.relu(x + y)


@pytest.mark.parametrize("kind", [Other, Forgotten, Extra, Again])
def test_a_wrong_graph(kind: type[nn.Module]) -> None:
    case = Case()
    case.result.blocks[1].__class__ = kind
    check = case.structure()
    assert check.passed is False and check.detail == "not the planned graph: blocks.1"
    case.result.blocks[1].__class__ = Right
    assert case.structure().passed is True


def test_many_wrong_graphs_are_counted() -> None:
    check = structure([f"block{i}" for i in range(8)], 8)
    assert check.detail.endswith("block4 and 3 more")


# -- 2. outputs -------------------------------------------------------------------------------------------------------
def test_a_changed_output() -> None:
    case = Case()
    with torch.no_grad():
        case.result.blocks[0].se.fc2.bias.add_(1e-3)
    evaluated, trained = case.outputs()
    for check in (evaluated, trained):
        assert check.passed is False and "1 of 1 tensors differ, by " in check.detail
    with pytest.raises(VerifyError, match=r"outputs \(eval\): 1 of 1 tensors differ"):
        require((evaluated,))
    require((Check("a", None, ""), Check("b", True, "")))


class TrainOnly(Residual):
    """Differs in train mode alone, or in a buffer alone."""

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.se(self.bn2(self.conv2(y)))
        if self.training:
            self.bn2.running_mean.add_(1)
        return F.relu(x + y)


def test_a_buffer_that_differs_after_one_step() -> None:
    case = Case()
    case.result.blocks[1].__class__ = TrainOnly
    evaluated, trained = case.outputs()
    assert evaluated.passed is True
    assert trained.passed is False and trained.detail == (
        "after one step 1 buffers differ, the first is blocks.1.bn2.running_mean"
    )


class Fails(Residual):
    def forward(self, x):
        raise RuntimeError("broken\nin two lines")


def test_a_rewritten_model_that_does_not_run() -> None:
    case = Case()
    case.result.blocks[1].__class__ = Fails
    for check in case.outputs():
        assert check.passed is False
        assert check.detail == "the original runs, the rewritten model does not: broken"


class NeedsTargets(Net):
    def forward(self, x, targets=None):
        y = super().forward(x)
        if self.training:
            if targets is None:
                raise ValueError("targets should not be none when in training mode")
            return F.cross_entropy(y, targets)
        return y


def test_a_model_that_needs_targets_in_train_mode_is_said_so() -> None:
    checks = {c.name: c for c in inject(NeedsTargets().eval()).report.checks}
    assert checks["outputs (eval)"].passed is True
    assert checks["outputs (train)"].passed is None
    assert checks["outputs (train)"].detail == (
        "the original does not run so in train mode: targets should not be none when in training mode"
    )


@pytest.mark.parametrize(
    ("a", "b", "equal"),
    [
        ([0.0], [0.0], True),
        ([float("nan"), 1.0], [float("nan"), 1.0], True),
        ([float("inf"), -float("inf")], [float("inf"), -float("inf")], True),
        ([0.0], [float("nan")], False),
        ([float("nan")], [0.0], False),
        ([float("inf")], [torch.finfo(torch.float32).max], False),
        ([1.0], [1.0 + 2**-23], False),
        ([1.0], [1.0, 1.0], False),
    ],
)
def test_same(a: list[float], b: list[float], equal: bool) -> None:
    assert same(torch.tensor(a), torch.tensor(b)) is equal


def test_same_asks_for_the_dtype() -> None:
    assert not same(torch.zeros(2), torch.zeros(2, dtype=torch.float64))
    assert not same(torch.zeros(2), None)
    assert same(torch.ones(2, dtype=torch.int64), torch.ones(2, dtype=torch.int64))


class NaN(Net):
    def forward(self, x):
        return super().forward(x) * float("nan")


def test_outputs_that_are_not_numbers_are_compared_and_said() -> None:
    result = inject(NaN().eval())
    (check,) = [c for c in result.report.checks if c.name == "outputs (eval)"]
    assert check.passed is True and "the original's hold NaN or infinity" in check.detail
    assert result.plan.baseline.samples == () and result.plan.baseline.outputs
    assert ": NaN" not in dump(result.plan)
    lost = Run([torch.zeros(2)], {})
    assert _compare("outputs", lost, Run([torch.full((2,), float("nan"))], {})).passed is False


class Complex(Net):
    def forward(self, x):
        y = super().forward(x)
        return torch.complex(y, -y)


def test_complex_outputs() -> None:
    case = Case(Complex().eval())
    assert all(check.passed for check in case.outputs())
    open_gates(case.result)
    assert all(check.passed is False for check in case.outputs())


class Silent(Net):
    def forward(self, x):
        super().forward(x)
        return {"logits": None}


def test_an_output_without_tensors_proves_nothing() -> None:
    checks = {c.name: c for c in inject(Silent().eval()).report.checks}
    for name in ("outputs (eval)", "outputs (train)"):
        assert checks[name].passed is None and "no tensor that could be compared" in checks[name].detail


def test_another_number_of_tensors() -> None:
    check = _compare("outputs", Run([torch.zeros(1)], {}), Run([torch.zeros(1)] * 2, {}))
    assert check.passed is False and check.detail == "1 tensors before, 2 after"


def test_tensors_in_finds_those_of_result_objects() -> None:
    class Result:
        def __init__(self) -> None:
            self.logits, self.aux = torch.zeros(1), [torch.zeros(2)]

    assert [len(t) for t in tensors_in({"a": torch.zeros(3), "b": (Result(), 4)})] == [3, 1, 2]


# -- against the baseline of a plan, without the original ------------------------------------------------------------
def test_against_the_baseline() -> None:
    result = inject(net(n=2))
    again, plan = result.model, result.plan
    assert against_baseline(again, result.inputs, plan).passed is True
    assert against_baseline(again, None, plan).passed is None
    assert (
        against_baseline(again, result.inputs, replace(plan, baseline=replace(plan.baseline, outputs=()))).passed
        is None
    )
    with torch.no_grad():
        again.fc.bias.add_(1e-7)
    check = against_baseline(again, result.inputs, plan)
    assert check.passed is True and "not bit-equal" in check.detail
    blind = replace(plan, baseline=replace(plan.baseline, samples=()))
    assert against_baseline(again, result.inputs, blind).passed is None
    with torch.no_grad():
        again.fc.bias.add_(1)
    assert against_baseline(again, result.inputs, plan).passed is False
    with torch.no_grad():
        again.fc.bias[3] = float("nan")
    assert against_baseline(again, result.inputs, plan).passed is False
    again.fc = nn.Linear(8, 1)
    assert against_baseline(again, result.inputs, plan).passed is False
    again.fc = nn.Linear(7, 1)
    assert against_baseline(again, result.inputs, plan).passed is False
    paper = inject(net(), {"placement": "standard", "init": "paper"})
    assert against_baseline(paper.model, paper.inputs, paper.plan).passed is None


# -- 3. reached -------------------------------------------------------------------------------------------------------
def test_a_block_that_never_runs() -> None:
    case = Case()
    case.result.blocks[1].__class__ = Residual
    check = case.reached()
    assert check.passed is False and check.detail == "1 blocks never ran in train mode, the first is blocks.1.se"


class Detached(Residual):
    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(x + y + 0 * self.se(y).detach())


class Swamped(Residual):
    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(x + self.se(self.bn2(self.conv2(y))) * float("inf"))


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Detached, "1 blocks get no gradient from the outputs in train mode, the first is blocks.1.se"),
        (Swamped, "the gradient of 2 blocks is not finite in train mode, the first is blocks.0.se"),
        (Fails, "the forward with gradients failed: broken"),
    ],
)
def test_a_block_that_cannot_learn(kind: type[nn.Module], reason: str) -> None:
    case = Case()
    case.result.blocks[1].__class__ = kind
    check = case.reached()
    assert check.passed is False and check.detail == reason


class Mute(Residual):
    def forward(self, x):
        if torch.is_grad_enabled():
            raise AssertionError
        return self.se(x)


def test_an_error_without_a_message_is_named() -> None:
    case = Case()
    case.result.blocks[1].__class__ = Mute
    assert case.reached().detail == "the forward with gradients failed: AssertionError"


def test_a_block_that_is_gone() -> None:
    case = Case()
    del case.result.blocks[1].se
    check = case.reached()
    assert check.passed is False and "no attribute `se`" in check.detail
    assert not any(m._forward_hooks for m in case.result.modules())


def test_a_zeroed_last_gamma_is_reported_not_failed() -> None:
    model = net(n=2)
    nn.init.zeros_(model.blocks[1].bn2.weight)
    nn.init.zeros_(model.blocks[1].bn2.bias)
    case = Case(model)
    check = case.reached()
    assert check.passed is True
    assert check.detail.startswith("2 blocks ran in train mode, ")
    assert check.detail.endswith("; 1 see nothing but zeros (a zeroed last gamma)")
    assert "zeros" not in Case().reached().detail


def test_a_frozen_model_still_trains_its_new_blocks() -> None:
    model = net().requires_grad_(False)
    assert Case(model).reached().passed is True


# -- 4. keys ----------------------------------------------------------------------------------------------------------
SPOILED: dict[str, tuple[Callable[[Any], object], str]] = {
    "value": (lambda m: m.stem.weight[0, 0, 0, 0].add_(1), "1 keys changed, the first is stem.weight"),
    "sign of zero": (lambda m: m.stem.bias[0].neg_(), "1 keys changed, the first is stem.bias"),
    "buffer": (
        lambda m: m.blocks[0].bn1.running_var.mul_(2), "1 keys changed, the first is blocks.0.bn1.running_var"
    ),
    "lost": (lambda m: delattr(m.fc, "bias"), "1 keys lost, the first is fc.bias"),
    "lost block key": (
        lambda m: m.blocks[1].se.fc2.register_parameter("bias", None), "1 keys lost, the first is blocks.1.se.fc2.bias"
    ),
    "foreign": (lambda m: m.register_buffer("count", torch.zeros(1)), "1 keys not planned, the first is count"),
    "foreign in the block": (
        lambda m: m.blocks[1].se.register_buffer("count", torch.zeros(1)),
        "1 keys not planned, the first is blocks.1.se.count",
    ),
    "dtype": (lambda m: m.fc.to(torch.float64), "2 keys changed, the first is fc.bias"),
}  # fmt: skip


@pytest.mark.parametrize(("spoil", "detail"), SPOILED.values(), ids=SPOILED)
def test_keys_that_are_not_as_planned(spoil: Callable[[Any], object], detail: str) -> None:
    model = net(n=2)
    with torch.no_grad():
        model.stem.bias[0] = 0.0
    case = Case(model)
    assert case.keys().passed is True
    with torch.no_grad():
        spoil(case.result)
    assert case.keys() == Check("keys", False, detail, "keys")


def test_keys_under_absorb() -> None:
    case = Case(init="absorb")
    assert case.keys() == Check(
        "keys",
        True,
        f"{len(case.reference.tensors) - 4} tensors identical, 4 of absorbed norms doubled, 8 new ones all planned",
    )
    with torch.no_grad():
        case.result.blocks[0].bn2.weight.mul_(2)
    assert case.keys() == Check("keys", False, "1 keys not doubled, the first is blocks.0.bn2.weight", "keys")
    del case.result.blocks[0].bn2.weight
    case.result.blocks[0].bn2.register_parameter("weight", None)
    assert case.keys() == Check("keys", False, "1 keys lost, the first is blocks.0.bn2.weight", "keys")


# -- 5. overhead ------------------------------------------------------------------------------------------------------
def test_a_wrong_overhead() -> None:
    sites = (SiteCost("a", 10, 100, 0, 0), SiteCost("b", 1, 5, 0, 0))
    before = Cost(1000, 5000, 0, 0)
    assert overhead(before, Cost(1011, 5105, 9, 9), sites) == Check(
        "overhead", True, "grew by exactly 11 parameters and 105 MACs"
    )
    for after in (Cost(1012, 5105, 0, 0), Cost(1011, 5104, 0, 0)):
        check = overhead(before, after, sites)
        assert check.passed is False and "planned 11 and 105" in check.detail


# -- nothing stays changed --------------------------------------------------------------------------------------------
class Stateful(Layers):
    """Writes a buffer, replaces another, and draws random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("written", torch.zeros(1))
        self.register_buffer("replaced", torch.zeros(1))

    def forward(self, x):
        self.written += 1
        self.replaced = self.replaced + 1
        return x + self.bn2(self.conv2(F.dropout(self.first(x), 0.5)))


def test_modes_buffers_gradients_and_random_state_come_back() -> None:
    case = Case(net(Stateful, 2))
    model = case.result
    model.train()
    model.blocks[1].eval()
    case.model.zero_grad()
    model(image()).sum().backward()
    grads = {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}
    buffers = dict(model.named_buffers())
    values = {key: value.clone() for key, value in buffers.items()}
    modes, rng = [m.training for m in model.modules()], torch.get_rng_state()
    checks = [*case.outputs(), case.reached(), case.keys(), case.structure()]
    assert checks[-1].passed is True
    assert [m.training for m in model.modules()] == modes
    assert all(model.get_buffer(key) is value and torch.equal(value, values[key]) for key, value in buffers.items())
    assert all(torch.equal(p.grad, grads[key]) for key, p in model.named_parameters() if p.grad is not None)
    assert torch.equal(torch.get_rng_state(), rng)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    with pytest.raises(KeyError), preserved(model):
        model.eval()
        model.blocks[0].written.fill_(9)
        raise KeyError
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(model.blocks[0].written, values["blocks.0.written"])


def test_run_is_seeded_and_fails_politely() -> None:
    model = net(Stateful)
    inputs = planning.make_plan(model, SIZE, IDENTITY).inputs
    a, b, c = (
        run_forward(model, inputs, True, 0),
        run_forward(model, inputs, True, 0),
        run_forward(model, inputs, True, 1),
    )
    assert torch.equal(a.outputs[0], b.outputs[0]) and not torch.equal(a.outputs[0], c.outputs[0])
    assert a.buffers.keys() == dict(model.named_buffers()).keys() and run_forward(model, inputs, False, 0).buffers == {}
    assert run_forward(net(Fails), inputs, False, 0) == Run([], {}, "broken")


def test_a_large_image_is_probed_small() -> None:
    model = net()
    planned = planning.make_plan(model, (3, 160, 224), IDENTITY)
    assert baseline.take(model, planned.inputs).probe.shape == (3, 64, 96)
    planned = planning.make_plan(model, image(size=(3, 160, 160)), IDENTITY)
    assert baseline.take(model, planned.inputs).probe is planned.inputs  # given by the user: as it is
    fixed = nn.Sequential(net().stem, nn.Flatten(), nn.Linear(8 * 64 * 64, 2))
    inputs = from_shape((3, 128, 128), torch.float32)
    assert baseline.shrink(fixed, inputs) is inputs  # takes one size alone


def test_digests_see_dtype_shape_and_every_byte() -> None:
    tensor = torch.arange(6, dtype=torch.float32)
    different = [
        tensor.reshape(2, 3),
        tensor.double(),
        tensor.clone().index_fill_(0, torch.tensor([0]), -0.0),
        tensor.flip(0),
        tensor.bfloat16(),
        tensor > 2,
        torch.complex(tensor, tensor),
    ]
    assert len({baseline.digest(t) for t in (tensor, *different)}) == len(different) + 1
    assert baseline.digest(tensor) == baseline.digest(tensor.reshape(1, 6).T.contiguous().T.reshape(6))
    assert baseline.digest(tensor.reshape(2, 3).T.contiguous().T) == baseline.digest(tensor.reshape(2, 3))
    model = copy.deepcopy(net())
    assert digests(model).keys() == model.state_dict().keys()


class SkipInit(nn.Module):
    """NFNet: the branch is multiplied by a gain that starts at zero."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.conv1, self.act, self.conv2 = nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1)
        self.gain = nn.Parameter(torch.tensor(gain))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.conv2(self.act(self.conv1(x)))
        return x + out * self.gain


@pytest.mark.parametrize("gain", [0.0, 0.5])
def test_a_branch_that_starts_at_zero_is_reached(gain: float) -> None:
    model = SkipInit(gain)
    result = se_inject.inject(model, (8, 6, 6), "standard")
    detail = next(check.detail for check in result.report.checks if check.name == "reached")
    assert ("are multiplied by a parameter that is zero" in detail) is (gain == 0)
    assert model.gain.item() == result.model.gain.item() == gain
