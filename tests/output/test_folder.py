"""The output folder: written whole, read back the same, and refused when a hand has been on it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

import se_inject
from se_inject.errors import LoadError, PlanMismatchError, SEInjectError, VerifyError, WriteError
from se_inject.output.formats import Subject, whole
from se_inject.output.tensors import read_tensors, tensors_writer
from se_inject.output.weights import read_weights
from tests.helpers import ROOT, randomise
from tests.tiny import SIZE, Chain, Residual, image, inject, net, open_gates

FILES = ["SHA256SUMS", "model.safetensors", "modeling.py", "plan.json", "report.html", "report.json", "report.md"]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def saved(model: nn.Module, out: Path, rules: Any = "standard", size: Any = SIZE, **options: Any) -> Any:
    """An injection with open gates, saved."""
    result = inject(randomise(model).eval(), rules, size, **options)
    open_gates(result.model)
    se_inject.save(result, out)
    return result


# -- save, then load --------------------------------------------------------------------------------------------------
ZOO: dict[str, tuple[Callable[[], nn.Module], dict[str, Any], Any, tuple[int, ...]]] = {
    "timm:resnet10t": (
        lambda: timm.create_model("resnet10t", num_classes=7),
        {"num_classes": 7},
        "standard",
        (3, 64, 64),
    ),
    "timm:mobilenetv2_035": (lambda: timm.create_model("mobilenetv2_035"), {}, "inner", (3, 64, 64)),
    # one of the 15 that cannot be built without data
    "torchvision:regnet_x_400mf": (lambda: torchvision.models.regnet_x_400mf(), {}, "standard", (3, 64, 64)),
}


@pytest.mark.parametrize("spec", ZOO)
def test_zoo_models_are_built_by_load(spec: str, tmp_path: Path) -> None:
    build, args, rules, size = ZOO[spec]
    result = saved(build(), tmp_path / "out", rules, size, name=spec, model_args=args, verify=False)
    assert sorted(files(tmp_path / "out")) == FILES
    again = se_inject.load(tmp_path / "out")
    x = image(size=size)
    with torch.no_grad():
        assert torch.equal(again(x), result.model(x))
        assert not torch.equal(se_inject.remove(again)(x), result.model(x))
    assert not again.training and list(again.state_dict()) == list(result.model.state_dict())
    assert not any(t.is_meta for t in (*again.parameters(), *again.buffers()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_model_from_the_api_is_passed_in(dtype: torch.dtype, tmp_path: Path) -> None:
    result = saved(net(n=3).to(dtype), tmp_path / "out")
    fresh = net(n=3)
    before = {key: value.clone() for key, value in fresh.state_dict().items()}
    again = se_inject.load(tmp_path / "out", model=fresh)
    assert torch.equal(again(image().to(dtype)), result.model(image().to(dtype)))
    assert again.fc.weight.dtype is dtype and again.blocks[0].se.fc1.weight.dtype is dtype
    assert type(again.blocks[0]) is type(result.model.blocks[0])
    assert list(fresh.state_dict()) == list(before)  # the given model stays as it was
    assert all(torch.equal(value, before[key]) for key, value in fresh.state_dict().items())
    with pytest.raises(LoadError, match=r"the plan is for tests.tiny.Net, .*load\(out, model=...\)"):
        se_inject.load(tmp_path / "out")


def test_a_trained_model_is_saved_as_it_is_now(tmp_path: Path) -> None:
    result = inject(net())
    optimizer = torch.optim.SGD(result.model.parameters(), lr=0.1)
    result.model.train()(image()).square().sum().backward()
    optimizer.step()
    se_inject.save(result, tmp_path / "out")
    again = se_inject.load(tmp_path / "out", model=net())
    assert torch.equal(again(image()), result.model.eval()(image()))


class TwoNames(nn.Module):
    """Tied weights, and a buffer that no file holds."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block = nn.Conv2d(3, 8, 1), Residual()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
        self.b.weight = self.a.weight
        self.register_buffer("shift", torch.arange(8.0), persistent=False)

    def forward(self, x):
        y = self.block(self.stem(x)).mean((2, 3))
        return self.b(F.relu(self.a(y))) + self.shift


def test_tied_weights_and_buffers_that_are_not_written(tmp_path: Path) -> None:
    result = saved(TwoNames(), tmp_path / "out")
    again: Any = se_inject.load(tmp_path / "out", model=TwoNames())
    assert torch.equal(again(image()), result.model(image()))
    assert again.a.weight is again.b.weight


def test_hooks_of_the_user_do_not_disturb(tmp_path: Path) -> None:
    model = net()
    model.blocks.register_forward_hook(lambda module, args, output: output * 3)
    report = se_inject.save(inject(model), tmp_path / "out")
    assert report.checks[-1].passed is True


class NotANumber(nn.Sequential):
    def forward(self, x):
        return super().forward(x) * float("nan")


def test_outputs_that_are_not_numbers(tmp_path: Path) -> None:
    model = NotANumber(net()).eval()
    report = se_inject.save(inject(model), tmp_path / "out")
    assert report.checks[-1].passed is True


# -- the files --------------------------------------------------------------------------------------------------------
def test_the_report_lists_the_files_and_the_check_of_what_was_read_back(tmp_path: Path) -> None:
    result = inject(net(n=2))
    report = se_inject.save(result, tmp_path / "out", source={"weights": "given"})
    assert report.source == {"weights": "given"}
    assert report.checks[:-1] == result.report.checks
    assert report.checks[-1].name == "read back" and report.checks[-1].detail.endswith("outputs bit-equal")
    assert [a.path for a in report.artifacts] == ["model.safetensors", "modeling.py", "plan.json"]
    assert all(a.bytes == (tmp_path / "out" / a.path).stat().st_size for a in report.artifacts)
    data = json.loads((tmp_path / "out" / "report.json").read_text())
    assert data["plan"] == json.loads((tmp_path / "out" / "plan.json").read_text())
    assert se_inject.read_plan(tmp_path / "out" / "plan.json") == result.plan


SAME = """
import sys
import torch
import se_inject
from tests.tiny import inject, net
torch.manual_seed(0)
se_inject.save(inject(net(n=3), {"placement": "standard", "init": sys.argv[2]}), sys.argv[1])
"""


@pytest.mark.wording  # one of the two processes is not reworded
def test_the_same_input_and_seed_give_the_same_bytes(tmp_path: Path) -> None:
    """In another process, in another folder, under another hash seed and locale; and no path in it."""
    root = ROOT
    torch.manual_seed(0)
    se_inject.save(inject(net(n=3), {"placement": "standard", "init": "paper"}), tmp_path / "one" / "out")
    env = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(root), "LC_ALL": "C", "PYTHONUTF8": "0"}
    subprocess.run([sys.executable, "-c", SAME, "two", "paper"], cwd=tmp_path, env=env, check=True)
    one, two = files(tmp_path / "one" / "out"), files(tmp_path / "two")
    assert sorted(one) == FILES and one == two
    for name, content in one.items():
        for word in (str(tmp_path), str(root), str(Path.home()) + "/", "/tmp/", os.sep + "usr" + os.sep):
            assert word.encode() not in content, (name, word)
    torch.manual_seed(0)
    se_inject.save(inject(net(n=3), {"placement": "standard", "init": "paper"}, seed=1), tmp_path / "three")
    assert files(tmp_path / "three")["model.safetensors"] != one["model.safetensors"]


def test_the_report_does_not_depend_on_what_else_is_imported() -> None:
    assert "timm" in sys.modules
    assert sorted(inject(net()).report.versions) == ["python", "se_inject", "torch"]


def test_load_does_not_run_the_code_beside_the_weights(tmp_path: Path) -> None:
    result = saved(net(), tmp_path / "out")
    canary = tmp_path / "canary"
    for name in ("modeling.py", "__init__.py", "conftest.py", "torch.py"):
        (tmp_path / "out" / name).write_text(f"open({str(canary)!r}, 'w')\n")
    again = se_inject.load(tmp_path / "out", model=net())
    assert torch.equal(again(image()), result.model(image())) and not canary.exists()


def test_what_was_loaded_may_be_saved_over_itself(tmp_path: Path) -> None:
    """The loaded tensors are mapped from the file that is replaced."""
    out = tmp_path / "out"
    result = saved(net(n=2), out)
    again: Any = se_inject.load(out, model=net(n=2))
    with torch.no_grad():
        again.fc.bias.add_(1)
    base = se_inject.remove(again)
    second = inject(base, {"placement": "standard", "init": "absorb"})
    se_inject.save(second, out, force=True)
    third = se_inject.load(out, model=net(n=2))
    assert torch.equal(third(image()), second.model(image()))
    assert torch.isfinite(again(image())).all() and not torch.equal(again(image()), result.model(image()))
    assert not [p for p in tmp_path.iterdir() if p != out]


# -- refusals ---------------------------------------------------------------------------------------------------------
def test_an_existing_folder_is_refused(tmp_path: Path) -> None:
    result = saved(net(), tmp_path / "out")
    before = files(tmp_path / "out")
    with pytest.raises(WriteError, match="exists"):
        se_inject.save(result, tmp_path / "out")
    assert files(tmp_path / "out") == before


class Extra(Residual):
    def get_extra_state(self) -> dict[str, int]:
        return {"step": 1}

    def set_extra_state(self, state: Any) -> None: ...


def test_state_that_is_no_tensor_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(WriteError, match=r"'blocks.0._extra_state': it is a dict, not a tensor"):
        se_inject.save(inject(net(Extra)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_without_weights_is_refused(tmp_path: Path) -> None:
    with torch.device("meta"):
        result = inject(net())
    assert {c.name: c.passed for c in result.report.checks}["outputs"] is None
    with pytest.raises(WriteError, match="is on the meta device"):
        se_inject.save(result, tmp_path / "out")


def test_a_file_that_reads_back_differently_is_not_handed_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = inject(net())
    subject = Subject(result.plan, result.inputs, result.model)
    path = tmp_path / "model.safetensors"
    state = result.model.state_dict()
    tensors_writer(state)(path)
    assert whole.check(tmp_path, subject).passed is True
    for wrong in (
        {**state, "fc.bias": state["fc.bias"] + 1},
        {key: value for key, value in state.items() if key != "fc.bias"},
        {**state, "more": torch.zeros(1)},
    ):
        tensors_writer(wrong)(path)
        assert whole.check(tmp_path, subject).passed is False
    monkeypatch.setattr(whole, "read_weights", lambda folder: {**read_weights(folder), "fc.bias": torch.zeros(5)})
    with pytest.raises(VerifyError, match=r"does not give the same model back\. read back: 1 tensors differ"):
        se_inject.save(result, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def edit_plan(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def run(out: Path) -> None:
        data = json.loads((out / "plan.json").read_text())
        change(data)
        (out / "plan.json").write_text(json.dumps(data))

    return run


def edit_tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def run(out: Path) -> None:
        tensors = {key: value.clone() for key, value in read_tensors(out / "model.safetensors").items()}
        change(tensors)
        tensors_writer(tensors)(out / "model.safetensors")

    return run


def truncate(out: Path) -> None:
    content = (out / "model.safetensors").read_bytes()
    (out / "model.safetensors").write_bytes(content[:-8])


def insertion(data: dict[str, Any]) -> dict[str, Any]:
    decision: dict[str, Any] = data["decisions"][0]
    return decision


TAMPERED: dict[str, tuple[Callable[[Path], Any], type[SEInjectError], str]] = {
    "no plan": (lambda out: (out / "plan.json").unlink(), LoadError, "cannot be read"),
    "no weights": (lambda out: (out / "model.safetensors").unlink(), LoadError, "cannot read"),
    "short weights": (truncate, LoadError, "cannot read"),
    "weights that are a pickle": (
        lambda out: torch.save({"fc.bias": torch.zeros(5)}, out / "model.safetensors"), LoadError, "cannot read"
    ),
    "a key less": (edit_tensors(lambda t: t.pop("fc.bias")), LoadError, "1 missing: fc.bias"),
    "a block's key less": (
        edit_tensors(lambda t: t.pop("blocks.0.se.fc1.bias")), LoadError, "1 missing: blocks.0.se.fc1.bias"
    ),
    "a key more": (edit_tensors(lambda t: t.update(more=torch.zeros(1))), LoadError, "1 unexpected: more"),
    "another shape": (
        edit_tensors(lambda t: t.update({"fc.bias": torch.zeros(6)})),
        LoadError,
        r"fc.bias \(file float32\[6\], model float32\[5\]\)",
    ),
    "another fingerprint": (edit_plan(lambda d: d.update(fingerprint="0" * 64)), PlanMismatchError, "other classes"),
    "another place": (
        edit_plan(lambda d: insertion(d)["site"]["carrier"]["position"].update(column=9)),
        PlanMismatchError,
        "no expression",
    ),
    "another source": (
        edit_plan(lambda d: insertion(d)["site"]["carrier"]["position"].update(digest="0" * 64)),
        PlanMismatchError,
        "the source of Residual.forward is not the one",
    ),
    "another width": (
        edit_plan(lambda d: insertion(d)["kwargs"].update(rd_channels=5)), LoadError, "of another shape or dtype"
    ),
    "an unknown option": (
        edit_plan(lambda d: insertion(d)["kwargs"].update(evil=1)), PlanMismatchError, "cannot be built from"
    ),
    "an unknown activation": (
        edit_plan(lambda d: insertion(d)["kwargs"].update(act="os.system")), PlanMismatchError, "cannot be built from"
    ),
    "one block less": (
        edit_plan(lambda d: d.update(decisions=d["decisions"][1:])), LoadError, "unexpected: blocks.0.se.fc1.bias"
    ),
    "the same block twice": (
        edit_plan(lambda d: d["decisions"].append(insertion(d))), PlanMismatchError, "already has an attribute 'se'"
    ),
    "a factory": (edit_plan(lambda d: d.update(model="os:system")), LoadError, "not built from a file's word"),
}  # fmt: skip


@pytest.mark.parametrize("what", TAMPERED)
def test_a_tampered_folder_is_refused(what: str, tmp_path: Path) -> None:
    change, error, reason = TAMPERED[what]
    saved(net(n=2), tmp_path / "out")
    change(tmp_path / "out")
    with pytest.raises(error, match=reason):
        se_inject.load(tmp_path / "out", None if what == "a factory" else net(n=2))


def test_an_unknown_block_is_refused(tmp_path: Path) -> None:
    saved(net(), tmp_path / "out")
    edit_plan(lambda d: insertion(d).update(block="sr"))(tmp_path / "out")
    with pytest.raises(SEInjectError, match="'sr'"):
        se_inject.load(tmp_path / "out", net())


def test_the_fresh_model_must_be_the_plans(tmp_path: Path) -> None:
    saved(net(n=2), tmp_path / "out")
    for other in (net(n=3), Chain()):
        with pytest.raises(PlanMismatchError, match="other classes, keys or shapes"):
            se_inject.load(tmp_path / "out", other)


def test_what_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "nowhere"):
        with pytest.raises(LoadError, match="is not a folder written by se_inject"):
            se_inject.load(path)
    with pytest.raises(LoadError, match="cannot be read"):
        se_inject.load(tmp_path)
