"""Saving after training: the folder says so, and is verified against what was saved, not against the original."""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path

import pytest
import timm
import torch
from click.testing import Result
from safetensors.torch import load_file, save_file
from torch import nn

import se_inject
from se_inject.checks import reference, trained
from se_inject.checks.reference import digest, digests
from se_inject.errors import SpliceError
from se_inject.output.formats import adapter
from tests.helpers import randomise, reseal, run

SIZE, NAME, ARGUMENTS = (3, 64, 64), "resnet10t", {"num_classes": 3}


def base() -> nn.Module:
    return randomise(timm.create_model(NAME, **ARGUMENTS)).eval()


def injected(init: str = "identity", **options: bool) -> se_inject.Injection:
    rules = {"placement": "standard", "init": init}
    return se_inject.inject(base(), SIZE, rules, name=f"timm:{NAME}", model_args=ARGUMENTS, **options)


def train(model: nn.Module, *, blocks_only: bool = False) -> None:
    chosen = [p for name, p in model.named_parameters() if ".se." in name or not blocks_only]
    optimizer = torch.optim.SGD(chosen, 0.01)
    model.train(not blocks_only)  # batch norms in eval mode keep their statistics
    model(torch.randn(4, *SIZE)).square().mean().backward()
    optimizer.step()
    model.eval()


def verify(folder: Path) -> Result:
    return run("verify", str(folder))


@pytest.mark.parametrize("init", ["identity", "absorb", "paper"])
@pytest.mark.parametrize("blocks_only", [False, True], ids=["everything", "blocks"])
def test_a_trained_model_is_saved_as_it_is(tmp_path: Path, init: str, blocks_only: bool) -> None:
    result = injected(init)
    train(result.model, blocks_only=blocks_only)
    report = se_inject.save(result, tmp_path / "out")
    said = {check.name: check for check in report.checks}["trained"]
    total, blocks = len(result.model.state_dict()), sum(".se." in name for name in result.model.state_dict())
    moved = int(said.detail.split()[0])
    assert said.passed is None and f" of {total} tensors moved" in said.detail
    assert 0 < moved <= blocks if blocks_only else moved > blocks
    verified = verify(tmp_path / "out")
    assert verified.exit_code == 0 and "bit-equal to those saved after training" in " ".join(verified.stdout.split())
    x = torch.randn(2, *SIZE)
    assert torch.equal(se_inject.load(tmp_path / "out")(x), result.model(x))


@pytest.mark.parametrize("moved", [False, True], ids=["untouched", "trained"])
def test_every_tensor_of_the_model_is_hashed_once(tmp_path: Path, moved: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """All formats that compare tensors share the hashes with the line that says what was trained."""
    result = injected()
    if moved:
        train(result.model)
    places = {t.data_ptr(): name for name, t in result.model.state_dict().items()}
    hashed: Counter[str] = Counter()

    def count(tensor: torch.Tensor) -> str:
        hashed[places.get(tensor.data_ptr(), "read back")] += 1
        return digest(tensor)

    for module in (reference, adapter):
        monkeypatch.setattr(module, "digest", count)
    se_inject.save(result, tmp_path / "out", formats="safetensors,adapter")
    assert hashed.pop("read back") >= len(places)
    assert hashed == dict.fromkeys(places.values(), 1)


@pytest.mark.parametrize("init", ["identity", "absorb", "paper"])
def test_untouched_weights_are_not_called_trained(tmp_path: Path, init: str) -> None:
    report = se_inject.save(injected(init), tmp_path / "out")
    assert report.plan.trained is None and "trained" not in {check.name for check in report.checks}
    assert verify(tmp_path / "out").exit_code == 0


@pytest.mark.parametrize("name", ["conv1.0.weight", "layer1.0.se.fc1.weight"])
def test_another_weight_than_was_saved_is_found(tmp_path: Path, name: str) -> None:
    result = injected()
    train(result.model)
    se_inject.save(result, tmp_path / "out")
    file = tmp_path / "out/model.safetensors"
    tensors = load_file(file)
    tensors[name] = tensors[name] + 1
    save_file(tensors, file)
    reseal(tmp_path / "out")
    verified = verify(tmp_path / "out")
    assert verified.exit_code == 1
    assert f"1 tensors are not those that were saved, the first is {name}" in verified.stderr


def test_a_gate_that_training_closed_is_no_fault(tmp_path: Path) -> None:
    result = injected()
    with torch.no_grad():
        result.model.get_submodule("layer1.0.se.fc2").bias.fill_(-1e4)
    se_inject.save(result, tmp_path / "out")
    verified = verify(tmp_path / "out")
    assert verified.exit_code == 0 and "1 have saturated gates" in " ".join(verified.stdout.split())


def test_the_plan_still_inserts_into_the_original(tmp_path: Path) -> None:
    result = injected()
    train(result.model)
    se_inject.save(result, tmp_path / "out")
    plan = se_inject.read_plan(tmp_path / "out/plan.json")
    assert plan.trained and plan.trained.tensors != plan.baseline.tensors
    x, original = torch.randn(1, *SIZE), base()
    assert torch.equal(se_inject.apply(original, plan)(x), original(x))


def test_without_checks_there_is_nothing_to_compare_with(tmp_path: Path) -> None:
    result = injected(verify=False)
    train(result.model)
    assert trained.up_to_date(result.report, result.model, result.inputs, digests(result.model)) == result.report
    assert se_inject.save(result, tmp_path / "out").plan.trained is None


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize("other", [None, nn.Identity(), nn.Conv2d(64, 64, 1)])
def test_a_block_taken_out_by_hand_is_not_saved(tmp_path: Path, other: nn.Module | None, check: bool) -> None:
    result = injected(verify=check)
    if other is None:
        del result.model.layer1[0].se
    else:
        result.model.layer1[0].se = other
    with pytest.raises(SpliceError, match=r"block layer1.0.se was replaced or removed .* se_inject.prune"):
        se_inject.save(result, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_block_of_other_weights_is_saved(tmp_path: Path) -> None:
    result = injected()
    result.model.layer1[0].se = copy.deepcopy(result.model.layer1[0].se)
    with torch.no_grad():
        result.model.layer1[0].se.fc1.weight.add_(1)
    se_inject.save(result, tmp_path / "out")
    assert torch.equal(se_inject.load(tmp_path / "out").layer1[0].se.fc1.weight, result.model.layer1[0].se.fc1.weight)
