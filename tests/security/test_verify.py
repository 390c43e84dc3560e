"""``verify``: a file whose hash is wrong is not opened; a model file runs when asked for, and within limits."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import timm
from onnx import TensorProto, helper

import se_inject
from se_inject.output.formats import child
from tests.helpers import randomise, reseal, run
from tests.tiny import inject, net

ARGUMENTS = {"channels": [8, 16, 24, 32], "stem_width": 8, "num_classes": 5}


def verified(folder: Path, *args: str, code: int = 0) -> dict[str, tuple[bool | None, str]]:
    result = run("verify", str(folder), "--json", *args)
    assert result.exit_code == code and isinstance(result.exception, SystemExit | None), (
        result.output,
        result.exception,
    )
    return {check["name"]: (check["passed"], check["detail"]) for check in json.loads(result.stdout)}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("verify") / "out"
    model = randomise(timm.create_model("resnet10t", **ARGUMENTS)).eval()
    result = se_inject.inject(model, (3, 64, 64), "standard", name="timm:resnet10t", model_args=ARGUMENTS)
    se_inject.save(result, out, formats=["safetensors", "adapter", "timm"])
    return out


@pytest.fixture
def out(written: Path, tmp_path: Path) -> Path:
    """An output with two files more that nothing could open."""
    folder = Path(shutil.copytree(written, tmp_path / "out"))
    for name in ("model.onnx", "model.pt2"):
        (folder / name).write_bytes(b"no model")
    reseal(folder)
    return folder


# -- the hash first ---------------------------------------------------------------------------------------------------
STOPS: dict[str, str] = {  # file that was changed -> the check that is then not done
    "report.json": "outputs (eval)",
    "plan.json": "outputs (eval)",
    "model.safetensors": "outputs (eval)",
    "adapter.safetensors": "adapter.safetensors",
    "model.pt2": "model.pt2",
    "model.onnx": "model.onnx",
    "timm/config.json": "timm",
    "timm/model.safetensors": "timm",
}


@pytest.mark.parametrize("name", STOPS)
def test_what_has_a_wrong_hash_is_not_opened(out: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """It is garbage, which any reader would complain about."""
    monkeypatch.setattr(child.subprocess, "run", lambda *args, **how: pytest.fail("a model file was run"))
    for other in {"model.onnx", "model.pt2"} - {name}:
        (out / other).unlink()
    if name != "timm/config.json" and not name.startswith("timm/"):
        shutil.rmtree(out / "timm")
    reseal(out)
    (out / name).write_bytes(b"\0garbage")
    checks = verified(out, "--run-onnx", "--run-pt2", code=1)
    assert checks["files"] == (False, f"{name} is not the file that was written")
    assert checks[STOPS[name]] == (None, f"not opened: {name} has not the hash of SHA256SUMS")
    assert {n for n, (passed, _) in checks.items() if passed is False} == {"files"}


@pytest.mark.parametrize(("name", "check"), [("model.onnx", "model.onnx"), ("model.safetensors", "outputs (eval)")])
def test_what_is_not_listed_is_not_opened_either(out: Path, name: str, check: str) -> None:
    kept = (out / name).read_bytes()
    (out / name).unlink()
    shutil.rmtree(out / "timm")
    (out / "model.pt2").unlink()
    reseal(out)
    (out / name).write_bytes(kept)
    checks = verified(out, "--run-onnx", code=1)
    assert checks[check] == (False, f"not opened: {name} is not listed in SHA256SUMS")
    assert "1 more are not listed" in checks["files"][1]


def test_without_sums_nothing_is_opened(out: Path) -> None:
    (out / "SHA256SUMS").unlink()
    checks = verified(out, "--run-onnx", code=1)
    assert checks.keys() == {"files", "outputs (eval)"} and "there is no SHA256SUMS" in checks["files"][1]


# -- limits -----------------------------------------------------------------------------------------------------------
def graph(nodes: list[Any], *constants: Any) -> bytes:
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, "height", "width"])
    found = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3, "height", "width"])
    made = helper.make_graph(nodes, "g", [given], [found], list(constants))
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def a_loop() -> bytes:
    """2^62 steps."""
    values = [helper.make_tensor_value_info(n, TensorProto.BOOL, []) for n in ("keep", "on")]
    step = helper.make_tensor_value_info("step", TensorProto.INT64, [])
    state = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("old", "new")]
    body = helper.make_graph(
        [helper.make_node("Identity", ["keep"], ["on"]), helper.make_node("Sin", ["old"], ["new"])],
        "body", [step, values[0], state[0]], [values[1], state[1]],
    )  # fmt: skip
    return graph(
        [helper.make_node("Loop", ["steps", "yes", "x"], ["y"], body=body)],
        helper.make_tensor("steps", TensorProto.INT64, [], [2**62]),
        helper.make_tensor("yes", TensorProto.BOOL, [], [True]),
    )


def a_constant() -> bytes:
    """2^30 elements of four bytes."""
    nodes = [
        helper.make_node("ConstantOfShape", ["size"], ["c"]),
        helper.make_node("ReduceSum", ["c"], ["s"], keepdims=0),
        helper.make_node("Add", ["x", "s"], ["y"]),
    ]
    return graph(nodes, helper.make_tensor("size", TensorProto.INT64, [1], [2**30]))


def an_honest_one() -> bytes:
    return graph([helper.make_node("Identity", ["x"], ["y"])])


GRAPHS: dict[str, tuple[Callable[[], bytes], str]] = {
    "loop": (a_loop, "after 8 s"),
    "constant": (a_constant, "does not run"),
    "honest": (an_honest_one, "ONNX Runtime's outputs differ"),  # the negative twin: it runs
}


@pytest.mark.parametrize("what", GRAPHS)
def test_a_graph_runs_when_asked_and_within_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """The attacker has made the sums anew."""
    pytest.importorskip("onnxruntime")
    make, says = GRAPHS[what]
    se_inject.save(inject(net()), tmp_path / "out")
    (tmp_path / "out/model.onnx").write_bytes(make())
    onnx.checker.check_model(tmp_path / "out/model.onnx")
    reseal(tmp_path / "out")
    args = ["--model", "tests.tiny:net"]
    assert verified(tmp_path / "out", *args)["model.onnx"][1].startswith("not run")
    monkeypatch.setattr(child, "SECONDS", 20 if what != "loop" else 8)
    passed, detail = verified(tmp_path / "out", *args, "--run-onnx", code=1)["model.onnx"]
    assert passed is False and says in detail, detail


def test_a_timm_folder_of_too_many_classes_stops_at_the_limit(out: Path) -> None:
    """2^21 classes of 1,024 channels: 8 GiB, which its config.json of 1 KB asks for."""
    for name in ("model.onnx", "model.pt2"):
        (out / name).unlink()
    config = json.loads((out / "timm/config.json").read_text())
    config["num_classes"] = config["model_args"]["num_classes"] = 2**21
    config["model_args"]["channels"] = [8, 16, 24, 1024]
    (out / "timm/config.json").write_text(json.dumps(config))
    reseal(out)
    passed, detail = verified(out, code=1)["timm"]
    assert passed is False and "does not load and run" in detail and "memory" in detail, detail


def test_time_is_limited_by_the_clock_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for nothing uses no core."""
    monkeypatch.setattr(child, "SECONDS", 1)
    (tmp_path / "x").touch()
    outputs, failure, _ = child.run_in_child(tmp_path / "x", "import signal; signal.pause()", [])
    assert outputs == [] and failure == "no result after 1 s"
