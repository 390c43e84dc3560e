"""What is written is complete, the same every time, and of use without this tool."""

from __future__ import annotations

import hashlib
import json
import os
import pickletools
import shutil
import signal
import stat
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

import se_inject
from se_inject.api import Injection
from se_inject.output.atomic import check_output
from se_inject.output.formats import FORMATS
from tests.helpers import ROOT, randomise, run
from tests.output.test_atomic import content, in_child
from tests.tiny import image, inject, net, open_gates

pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork\\(\\) may lead to deadlocks:DeprecationWarning")
ARGUMENTS = {"channels": [8, 16, 24, 32], "stem_width": 8, "num_classes": 5}  # a small one of a class with a slot
IMAGE = (3, 64, 64)
ALL = ",".join(FORMATS)


def resnet() -> nn.Module:
    torch.manual_seed(0)
    return randomise(timm.create_model("resnet10t", **ARGUMENTS)).eval()


def injected(rules: Any = "standard", model: nn.Module | None = None) -> Injection:
    """A timm ResNet with open gates."""
    spec = {"name": "timm:resnet10t", "model_args": ARGUMENTS}
    result = se_inject.inject(model or resnet(), IMAGE, rules, **spec)
    open_gates(result.model)
    return result


def outside(code: str, *args: str, cwd: Path) -> str:
    """What a script prints in a process that cannot import se_inject."""
    text = "import sys; sys.modules['se_inject'] = None\n" + code
    done = subprocess.run([sys.executable, "-IB", "-c", text, *args], capture_output=True, text=True, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Injection, Path]:
    """One model in every format, its gates open; and its outputs on an image, for processes of their own."""
    folder = tmp_path_factory.mktemp("o")
    result = injected()
    result.model.train()
    report = se_inject.save(result, folder / "out", formats=ALL, max_shard_size="20KB")
    assert result.model.training  # the caller's mode is restored
    assert all(check.passed for check in report.checks if check.name != "trained"), report.checks
    result.model.eval()
    with torch.no_grad():
        save_file({"x": image(size=IMAGE), "y": result.model(image(size=IMAGE))}, folder / "example.safetensors")
    return result, folder


# -- used without this tool --------------------------------------------------------------------------------------------
TRAIN = """
import copy, pickle, torch
from safetensors.torch import load_file
sys.path.insert(0, sys.argv[1])
import modeling
example = load_file("example.safetensors")
x, y = example["x"], example["y"]
model = modeling.load()
assert torch.equal(model(x), y)
assert torch.equal(copy.deepcopy(model)(x), y)
assert torch.equal(pickle.loads(pickle.dumps(model))(x), y)
model.train()
before = {k: v.clone() for k, v in model.state_dict().items()}
model(x).sum().backward()
assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
torch.optim.SGD(model.parameters(), 0.1).step()
moved = [k for k, v in model.state_dict().items() if not torch.equal(v, before[k])]
assert {k for k in before if "running_mean" in k} <= set(moved)
assert any(".se.fc2.weight" in k for k in moved)
print("done")
"""


def test_o1_modeling_is_a_model_without_us(written: tuple[Injection, Path]) -> None:
    """Weights in shards, too: ``load()`` reads their index."""
    assert (written[1] / "out/model.safetensors.index.json").exists()
    assert outside(TRAIN, str(written[1] / "out"), cwd=written[1]) == "done\n"


# -- never over an input -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("how", ["equal", "around", "inside", "link to the file", "link to its folder", "hard link"])
@pytest.mark.parametrize("force", [False, True])
def test_o2_the_input_is_never_the_output(how: str, force: bool, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    weights = tmp_path / "in/model.safetensors"
    save_file(resnet().state_dict(), weights)
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    out = tmp_path / "out"
    if how == "link to the file":
        out.symlink_to(weights)
    elif how == "link to its folder":
        out.symlink_to(tmp_path / "in")
    elif how == "hard link":
        os.link(weights, out)
    else:
        out = {"equal": weights, "around": tmp_path / "in", "inside": weights / "out"}[how]
    args = ["convert", "timm:resnet10t", "--input-size", "3,64,64", "--checkpoint", str(weights), "-o", str(out)]
    args += [part for key, value in ARGUMENTS.items() for part in ("--model-arg", f"{key}={value}")]
    result = run(*args, *(["--force"] if force else []))
    assert result.exit_code == 1 and result.stderr.count("\n") == 1, result.stderr
    assert hashlib.sha256(weights.read_bytes()).hexdigest() == digest
    assert {p.name for p in tmp_path.rglob("*")} <= {"in", "model.safetensors", "out"}


# -- all or nothing ----------------------------------------------------------------------------------------------------
POINTS = 20


def killed(result: Injection, out: Path, after: int) -> int:
    """How a run ends that is killed after so many file operations; the number of operations when it is not."""

    def body() -> None:
        count = 0

        def hook(event: str, args: tuple[object, ...]) -> None:
            nonlocal count
            if event in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "os.listdir"):
                count += 1
                if count == after:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        se_inject.save(result, out, formats="safetensors,adapter", max_shard_size="2KB")
        if after < 0:
            (out.parent / "count").write_text(str(count))

    return in_child(body)


def test_o3_killed_at_twenty_points(tmp_path: Path) -> None:
    """The output is absent, or complete and verifying; the next run leaves no litter."""
    result = inject(net(n=2))
    (tmp_path / "whole").mkdir()
    assert killed(result, tmp_path / "whole/out", -1) == 0
    total = int((tmp_path / "whole/count").read_text())
    whole = content(tmp_path / "whole/out")
    absent = 0
    for point in range(POINTS):
        folder = tmp_path / str(point)
        folder.mkdir()
        assert killed(result, folder / "out", 1 + point * (total - 1) // (POINTS - 1)) == -signal.SIGKILL
        absent += not (folder / "out").exists()
        if (folder / "out").exists():
            assert content(folder / "out") == whole
        check_output(folder / "out", force=True)  # what the next run does first
        assert os.listdir(folder) in (["out"], [])
    assert absent > 0
    assert total > POINTS, "too few points to show anything"


FULL = """
import os, sys, torch
import se_inject
from tests.tiny import inject, net
result = inject(net(n=2))
try:
    se_inject.save(result, sys.argv[1] + "/out", formats="safetensors,adapter")
except se_inject.WriteError as error:
    print(error)
print(os.listdir(sys.argv[1]))
"""


def test_o3_a_full_disk(tmp_path: Path) -> None:
    """A real file system of 16 KiB, in a mount namespace of its own."""
    (tmp_path / "disk").mkdir()
    enter = ["unshare", "--user", "--map-root-user", "--mount"]
    mount = f"mount -t tmpfs -o size=16k none {tmp_path / 'disk'}"
    if shutil.which("unshare") is None or subprocess.run([*enter, "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("no right to mount a small file system here")
    script = f'{mount} && exec {sys.executable} -c "$1" {tmp_path / "disk"}'
    done = subprocess.run([*enter, "sh", "-c", script, "sh", FULL], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"cannot write {tmp_path / 'disk/out'}: No space left on device.\n[]\n"


# -- modes -------------------------------------------------------------------------------------------------------------
def test_o4_the_modes_of_every_file_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        se_inject.save(injected(), tmp_path / "out", formats="safetensors,adapter,timm")
    finally:
        os.umask(before)
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "out").rglob("*")}
    assert {"adapter.safetensors", "config.json", "model.safetensors"} <= modes.keys()
    assert set(modes.values()) == {0o640, 0o750} and modes["timm"] == 0o750


# -- the same bytes ----------------------------------------------------------------------------------------------------
AGAIN = """
import sys, se_inject
from tests.output.test_outputs import ALL, injected
result = injected()
result.model.train()
se_inject.save(result, sys.argv[1], formats=ALL, max_shard_size="20KB")
"""


@pytest.mark.slow
def test_o5_the_same_bytes_in_another_process(written: tuple[Injection, Path], tmp_path: Path) -> None:
    """Another folder, another hash seed, another time of day: every file is the same to the byte."""
    env = {**os.environ, "PYTHONHASHSEED": "7", "TMPDIR": str(tmp_path), "TZ": "Asia/Tokyo"}
    root = str(ROOT)
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [root, env.get("PYTHONPATH")]))
    (tmp_path / "else where").mkdir()
    args = [sys.executable, "-c", AGAIN, str(tmp_path / "else where/o")]
    subprocess.run(args, check=True, env=env, cwd=tmp_path / "else where")
    first, second = content(written[1] / "out"), content(tmp_path / "else where/o")
    assert first.keys() == second.keys()
    assert {name for name in first if first[name] != second[name]} == set()


def test_o5_no_paths_of_this_machine(written: tuple[Injection, Path]) -> None:
    places = [str(written[1]), str(ROOT), str(Path(torch.__file__).parents[1]), str(Path.home())]
    for name, data in content(written[1] / "out").items():
        assert not [place for place in places if place.encode() in data], name


# -- exported programs -------------------------------------------------------------------------------------------------
def cases(result: Injection) -> list[tuple[torch.Tensor, torch.Tensor]]:
    inputs = [image(batch, IMAGE) for batch in (1, 2, 7)] + [image(2, (3, 96, 64))]
    with torch.no_grad():
        return [(x, result.model(x)) for x in inputs]


def test_o6_pt2_at_other_batches_and_sizes(written: tuple[Injection, Path]) -> None:
    module = torch.export.load(written[1] / "out/model.pt2").module()
    for x, y in cases(written[0]):
        assert torch.allclose(module(x), y, rtol=0, atol=1e-5)


def test_o6_onnx_at_other_batches_and_sizes(written: tuple[Injection, Path]) -> None:
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    path = written[1] / "out/model.onnx"
    onnx.checker.check_model(path, full_check=True)
    assert [p.name for p in path.parent.glob("*.onnx*")] == ["model.onnx"]
    session = onnxruntime.InferenceSession(path)
    assert session.get_inputs()[0].shape == ["batch", 3, "height", "width"]
    assert session.get_modelmeta().custom_metadata_map["mode"] == "inference (eval)"
    for x, y in cases(written[0]):
        (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        assert torch.allclose(torch.from_numpy(got), y, rtol=0, atol=1e-4)


# -- a folder of timm's ------------------------------------------------------------------------------------------------
TIMM = """
import timm, torch
from safetensors.torch import load_file
example = load_file("example.safetensors")
model = timm.create_model("local-dir:" + sys.argv[1], pretrained=True).eval()
assert torch.equal(model(example["x"]), example["y"])
print(type(model.layer1[0].se).__name__)
"""


def test_o7_timm_loads_the_folder_without_us(written: tuple[Injection, Path]) -> None:
    """The gates are twice a sigmoid, and timm's once: the factor is in the norms."""
    assert written[0].plan.insertions[0].kwargs["gain"] == 2.0
    assert outside(TIMM, str(written[1] / "out/timm"), cwd=written[1]) == "SEModule\n"


# -- no pickle ---------------------------------------------------------------------------------------------------------
def test_o8_no_pickle_in_any_file(written: tuple[Injection, Path]) -> None:
    files = content(written[1] / "out")
    for name, data in files.items():
        if name != "model.pt2":
            assert not zipfile.is_zipfile(written[1] / "out" / name), name
            with pytest.raises(ValueError):
                list(pickletools.genops(data))
        if not name.endswith((".safetensors", ".pt2", ".onnx")):
            data.decode("ascii" if name.endswith(".json") else "utf-8")
    with zipfile.ZipFile(written[1] / "out/model.pt2") as archive:
        weights = json.loads(archive.read("model/data/weights/model_weights_config.json"))["config"]
        pickled = [n for n in archive.namelist() if archive.read(n)[:2] in (b"PK", b"\x80\x02")]
    assert not any(entry["use_pickle"] for entry in weights.values())
    assert pickled == ["model/data/sample_inputs/model.pt"]
