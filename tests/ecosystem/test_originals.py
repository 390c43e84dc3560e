"""Which checkpoints an injected model loads, and what they give."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import se_inject
from tests.ecosystem import cases
from tests.ecosystem.cases import SIZE, Case, out, over


@over()
def test_e5_original_checkpoint(case: Case) -> None:
    """The original's checkpoint over a model at its `identity` start: nothing unexpected, outputs the original's."""
    model = se_inject.apply(case.base, case.plan)
    with torch.no_grad():  # it says something else until the checkpoint is loaded
        model.get_parameter(next(iter(case.base.state_dict()))).neg_()
    assert not torch.equal(out(model, case.x), out(case.base, case.x))
    found = model.load_state_dict(case.base.state_dict(), strict=False)
    assert found.unexpected_keys == [] and sorted(found.missing_keys) == sorted(case.added)
    assert torch.equal(out(model, case.x), out(case.base, case.x))


@over()
def test_e5_injected_checkpoint(case: Case, tmp_path: Path) -> None:
    """The injected model's checkpoint loads strictly into a fresh one, made by the plan: outputs equal."""
    torch.save(case.model.state_dict(), tmp_path / "model.pt")
    fresh = se_inject.apply(case.base, case.plan)
    fresh.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    assert torch.equal(out(fresh, case.x), case.y)


NO_ABSORB = {
    "efficientnet_lite0": "`absorb` is refused: a ReLU6 between batch norm and gate does not scale",
    "convnext_atto": "`absorb` is refused: there is no batch norm",
}


@over(absent=NO_ABSORB)
def test_e5_absorb(case: Case) -> None:
    """Under `absorb` the original's checkpoint undoes the doubled norms, as the README says, and no more than that."""
    plan = se_inject.plan(case.base, SIZE, {"placement": "auto", "init": "absorb"})
    model = se_inject.apply(case.base, plan)
    assert torch.equal(out(model, case.x), out(case.base, case.x))
    doubled = [f"{d.site.absorb}.{name}" for d in plan.insertions for name in ("weight", "bias")]
    before = model.state_dict()
    found = model.load_state_dict(case.base.state_dict(), strict=False)
    assert found.unexpected_keys == [] and not torch.equal(out(model, case.x), out(case.base, case.x))
    with torch.no_grad():
        for key in doubled:
            model.get_parameter(key).mul_(2)
    assert torch.equal(out(model, case.x), out(case.base, case.x)) and set(before) == set(model.state_dict())


@pytest.mark.parametrize("name", NO_ABSORB)
def test_no_absorb(name: str) -> None:
    with pytest.raises(se_inject.RulesError, match=r"absorb: .*(ReLU6|batch norm)"):
        se_inject.plan(cases.case(name).base, SIZE, {"placement": "auto", "init": "absorb"})
