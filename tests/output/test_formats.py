"""The formats of an output: written together or alone, compared again by `verify`, refused with a reason."""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import timm
import torch
from torch import nn
from torch.nn import functional as F

import se_inject
from se_inject.api import Injection
from se_inject.errors import LoadError, SpliceError, WriteError
from se_inject.inputs import Inputs, resolve
from se_inject.output.formats import FORMATS, exporting, format_names, onnxfile, program
from se_inject.output.weights import INDEX, parse_size, read_weights, weights_files
from tests.helpers import randomise, reseal, run
from tests.output.test_atomic import content
from tests.tiny import SIZE, image, inject, net, open_gates


def digests(model: nn.Module) -> dict[str, bytes]:
    return {name: t.numpy().tobytes() for name, t in model.state_dict().items()}


def write_all(files: dict[str, Any], folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data) if isinstance(data, bytes) else data(folder / name)


# -- the table --------------------------------------------------------------------------------------------------------
def test_names() -> None:
    assert format_names("safetensors, onnx,safetensors") == ("safetensors", "onnx")
    assert format_names(["pt2"]) == ("pt2",)
    with pytest.raises(WriteError, match=r"'safetensor' is unknown\. Did you mean 'safetensors'\?"):
        format_names("safetensor")
    with pytest.raises(WriteError, match="'' is unknown"):
        format_names("")


# -- shards -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "size"), [("5GB", 5 * 10**9), ("2 GiB", 2**31), ("1.5kb", 1500), ("77", 77), (4096, 4096), (None, None)]
)
def test_sizes(text: Any, size: int | None) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "5XB", "-1", "0", "0.1", "GB", "1e3", "5GB/s"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(WriteError, match="expected a size above 0 such as 5GB"):
        parse_size(text)


def test_shards_hold_at_most_the_size_and_tied_tensors_stay_tied(tmp_path: Path) -> None:
    tied = torch.randn(4, 4)
    state = {"a": tied, "b": torch.randn(40), "c": torch.randn(8), "d": torch.randn(8), "z.tied": tied}
    files = weights_files(state, 100)
    assert [name for name in files if name != INDEX] == [f"model-{i:05}-of-00003.safetensors" for i in (1, 2, 3)]
    write_all(files, tmp_path)
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["metadata"]["total_size"] == 4 * (16 + 40 + 8 + 8)
    assert [index["weight_map"][name][:11] for name in "abcd"] == [f"model-0000{i}" for i in (1, 2, 3, 3)]
    for shard in set(index["weight_map"].values()):  # as Hugging Face reads them
        with safetensors.safe_open(tmp_path / shard, "pt") as file:
            assert {n for n, place in index["weight_map"].items() if place == shard} == set(file.keys())
    back = read_weights(tmp_path)
    assert list(back) == sorted(state) and all(torch.equal(back[name], value) for name, value in state.items())
    assert back["a"] is back["z.tied"]


def test_what_fits_is_one_file(tmp_path: Path) -> None:
    assert list(weights_files({"a": torch.ones(4)}, 16)) == ["model.safetensors"]
    assert list(weights_files({"a": torch.ones(400)}, None)) == ["model.safetensors"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: {**m, "a": "../model-00001-of-00002.safetensors"}, "is not the name of a .safetensors file"),
        (lambda m: {**m, "a": "/etc/passwd"}, "is not the name of a .safetensors file"),
        (lambda m: {**m, "a": 3}, "is not the name of a .safetensors file"),
        (lambda m: {}, "weight_map is no mapping"),
        (lambda m: [], "weight_map is no mapping"),
        (lambda m: {**m, "more": m["a"]}, "places 'more' in .*, which does not hold it"),
        (lambda m: {**m, "a": "model-00003-of-00003.safetensors"}, "no such file"),
    ],
)
def test_an_edited_index_is_refused(change: Callable[[Any], Any], says: str, tmp_path: Path) -> None:
    write_all(weights_files({"a": torch.ones(4), "b": torch.ones(4)}, 16), tmp_path)
    index = json.loads((tmp_path / INDEX).read_text())
    index["weight_map"] = change(index["weight_map"])
    (tmp_path / INDEX).write_text(json.dumps(index))
    with pytest.raises(LoadError, match=says):
        read_weights(tmp_path)


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    write_all(weights_files({"a": torch.ones(4), "b": torch.ones(4)}, 16), tmp_path)
    shutil.copy(tmp_path / "model-00001-of-00002.safetensors", tmp_path / "model-00002-of-00002.safetensors")
    with pytest.raises(LoadError, match="holds 'a', which its index places in"):
        read_weights(tmp_path)


def test_a_sharded_output_is_loaded_verified_and_replaced(tmp_path: Path) -> None:
    result = inject(net(n=3))
    open_gates(result.model)
    report = se_inject.save(result, tmp_path / "out", max_shard_size="2KB")
    assert "tensors identical in" in report.checks[-1].detail and "shards" in report.checks[-1].detail
    assert len([a for a in report.artifacts if a.path.startswith("model-")]) > 2
    again = se_inject.load(tmp_path / "out", net(n=3))
    assert torch.equal(again(image()), result.model(image()))
    se_inject.save(result, tmp_path / "out", force=True)  # the shards of before are ours, and go
    assert not list((tmp_path / "out").glob("model-*"))


# -- adapter ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("init", ["identity", "absorb"])
def test_an_adapter_on_the_original_base_is_the_model(init: str, tmp_path: Path) -> None:
    """Trained gates; under `absorb` the norms are doubled exactly once, by the plan."""
    base = net(n=2)
    result = inject(base, {"placement": "standard", "init": init})
    open_gates(result.model)
    se_inject.save_adapter(result.model, tmp_path / "adapter")
    assert {p.name for p in (tmp_path / "adapter").iterdir()} == {"SHA256SUMS", "adapter.safetensors", "plan.json"}
    before = digests(base)
    again = se_inject.load_adapter(base, tmp_path / "adapter")
    assert torch.equal(again(image()), result.model(image()))
    assert not torch.equal(again(image()), base(image()))
    assert digests(again) == digests(result.model)
    assert digests(base) == before
    factor = 2.0 if init == "absorb" else 1.0
    assert torch.equal(again.blocks[0].bn2.weight, factor * base.blocks[0].bn2.weight)


@pytest.mark.parametrize("init", ["identity", "absorb"])
def test_an_adapter_goes_on_once(init: str, tmp_path: Path) -> None:
    base = net(n=2)
    result = inject(base, {"placement": "standard", "init": init})
    se_inject.save_adapter(result.model, tmp_path / "adapter")
    once = se_inject.load_adapter(base, tmp_path / "adapter", inplace=True)
    assert once is base
    for strict in (True, False):
        with pytest.raises(LoadError, match="holds inserted blocks already"):
            se_inject.load_adapter(once, tmp_path / "adapter", strict=strict)


def test_norms_that_are_doubled_already_are_not_doubled_again(tmp_path: Path) -> None:
    """A base that carries the weights of an absorbed model, without its blocks."""
    base = net(n=2)
    result = inject(base, {"placement": "standard", "init": "absorb"})
    se_inject.save_adapter(result.model, tmp_path / "adapter")
    base.load_state_dict({k: v for k, v in result.model.state_dict().items() if ".se." not in k})
    before = digests(base)
    for strict in (True, False):
        with pytest.raises(LoadError, match=r"'blocks\.\d\.bn2\.(weight|bias)' is doubled already"):
            se_inject.load_adapter(base, tmp_path / "adapter", inplace=True, strict=strict)
    assert digests(base) == before


def test_the_base_must_be_the_plans(tmp_path: Path) -> None:
    base = net(n=2)
    result = open_gates(inject(base).model)
    se_inject.save_adapter(result, tmp_path / "adapter")
    other = net(n=2)
    other.fc.bias.data += 1
    with pytest.raises(LoadError, match=r"not the one that the adapter was made on: \d+ of 28 tensors differ"):
        se_inject.load_adapter(other, tmp_path / "adapter")
    again = se_inject.load_adapter(other, tmp_path / "adapter", strict=False)
    assert torch.equal(again.blocks[0].se.fc1.weight, result.blocks[0].se.fc1.weight)
    with pytest.raises(se_inject.PlanMismatchError):
        se_inject.load_adapter(net(n=3), tmp_path / "adapter")


def test_a_trained_base_is_said_or_written(tmp_path: Path) -> None:
    base = net(n=2)
    model = inject(base).model.train()
    model(image()).sum().backward()  # moves running statistics
    model.fc.bias.data += 1
    with pytest.raises(WriteError, match=r"\d+ tensors of the base changed .* changed=True"):
        se_inject.save_adapter(model, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()
    se_inject.save_adapter(model, tmp_path / "adapter", changed=True)
    again = se_inject.load_adapter(base, tmp_path / "adapter")
    assert digests(again) == digests(model)
    with safetensors.safe_open(tmp_path / "adapter/adapter.safetensors", "pt") as file:
        assert "fc.bias" in file.keys() and "fc.weight" not in file.keys()  # noqa: SIM118


def test_an_adapter_keeps_dtype_and_training_mode(tmp_path: Path) -> None:
    base = net().bfloat16().train()
    result = inject(base)
    se_inject.save_adapter(result.model, tmp_path / "adapter")
    again = se_inject.load_adapter(base, tmp_path / "adapter")
    assert again.blocks[0].se.fc1.weight.dtype is torch.bfloat16 and again.training and again.blocks[0].se.training


def test_what_is_no_adapter(tmp_path: Path) -> None:
    result = inject(net())
    se_inject.save(result, tmp_path / "out")
    with pytest.raises(LoadError, match=r"holds no adapter.*se_inject\.load"):
        se_inject.load_adapter(net(), tmp_path / "out")
    with pytest.raises(SpliceError, match="no inserted block"):
        se_inject.save_adapter(net(), tmp_path / "adapter")
    twice = inject(result.model, {"placement": "standard", "again": True}).model
    with pytest.raises(SpliceError, match="2 insertions"):
        se_inject.save_adapter(twice, tmp_path / "adapter")


def test_an_edited_adapter_is_refused_and_leaves_the_base(tmp_path: Path) -> None:
    base = net()
    se_inject.save_adapter(inject(base).model, tmp_path / "adapter")
    path = tmp_path / "adapter/adapter.safetensors"
    tensors = safetensors.torch.load_file(path)
    before = digests(base)
    for wrong, says in (
        ({k: v for k, v in tensors.items() if "fc1.bias" not in k}, "has no tensor 'blocks.0.se.fc1.bias'"),
        ({**tensors, "more": torch.ones(1)}, "holds 'more'.*the model has none"),
        ({**tensors, "fc.bias": torch.ones(7)}, r"holds 'fc.bias' of shape \[7\]; the model has \[5\]"),
    ):
        safetensors.torch.save_file(wrong, path)
        with pytest.raises(LoadError, match=says):
            se_inject.load_adapter(base, tmp_path / "adapter", inplace=True)
        assert digests(base) == before and not hasattr(base.blocks[0], "se")


def test_an_adapter_alone_is_verified_and_load_says_what_it_is(tmp_path: Path) -> None:
    result = inject(net())
    report = se_inject.save(result, tmp_path / "out", formats="adapter")
    assert [a.path for a in report.artifacts] == ["adapter.safetensors", "modeling.py", "plan.json"]
    with pytest.raises(LoadError, match=r"only adapter\. An adapter goes onto a base: se_inject\.load_adapter"):
        se_inject.load(tmp_path / "out")
    checks = verified(tmp_path / "out")
    assert checks["adapter.safetensors"]["passed"] and "exactly those that the plan adds" in str(checks)
    assert checks["outputs (eval)"]["passed"] is None


# -- verify -----------------------------------------------------------------------------------------------------------
def verified(folder: Path, *args: str, code: int = 0) -> dict[str, Any]:
    result = run("verify", str(folder), "--json", *args)
    assert result.exit_code == code, result.output
    return {check["name"]: check for check in json.loads(result.stdout)}


ARGUMENTS = {"channels": [8, 16, 24, 32], "stem_width": 8, "num_classes": 5}


def resnet(arguments: dict[str, Any] = ARGUMENTS, name: str = "resnet10t") -> nn.Module:
    return randomise(timm.create_model(name, **arguments)).eval()


def of_timm(rules: Any = "standard", name: str = "resnet10t", arguments: Any = ARGUMENTS, **options: Any) -> Injection:
    model = resnet(arguments, name)
    return se_inject.inject(model, (3, 64, 64), rules, name=f"timm:{name}", model_args=arguments, **options)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("formats") / "out"
    torch.manual_seed(0)
    se_inject.save(of_timm(), folder, formats=["safetensors", "adapter", "timm"])
    return folder


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "out"
    torch.manual_seed(0)
    se_inject.save(of_timm(), folder, formats=list(FORMATS))
    return folder


def test_verify_says_what_it_compared(written: Path) -> None:
    checks = verified(written)
    assert all(check["passed"] for check in checks.values())
    said = {name: check["detail"] for name, check in checks.items()}
    assert said["files"] == "9 files have the hashes of SHA256SUMS"
    assert said["adapter.safetensors"].startswith("16 tensors identical to the model's")
    assert said["timm"] == "timm.create_model loads the folder, outputs bit-equal"


@pytest.mark.slow
def test_verify_says_what_it_compared_of_exports(exported: Path) -> None:
    said = {name: check["detail"] for name, check in verified(exported, "--run-onnx").items() if check["passed"]}
    assert said["model.pt2"].startswith("108 tensors in it are the model's; not run, as a .pt2 can run code")
    assert said["model.onnx"].startswith("ONNX Runtime: 4 inputs within")


@pytest.mark.slow
def test_verify_runs_a_program_when_told_to(exported: Path) -> None:
    said = verified(exported, "--run-pt2")["model.pt2"]
    assert said["detail"] == "loaded in a clean process: 4 inputs bit-equal; batch and size free"


@pytest.mark.slow
def test_verify_without_the_whole_weights_compares_with_the_original(exported: Path, tmp_path: Path) -> None:
    """The gates are new here, so that the outputs are the original's, which the plan remembers."""
    shutil.copytree(exported, tmp_path / "out")
    (tmp_path / "out/model.safetensors").unlink()
    reseal(tmp_path / "out")
    found = verified(tmp_path / "out", "--run-onnx")
    said = {name: (check["passed"], check["detail"]) for name, check in found.items()}
    assert said["outputs (eval)"] == (None, "no file here holds all weights")
    assert said["timm"] == (True, "1 tensor bit-equal to the original's")
    assert said["model.onnx"][0] is True and "of the original's, not bit-equal" in said["model.onnx"][1]
    assert said["model.pt2"][0] is True and said["model.pt2"][1].startswith("92 tensors in it are the original's")


def tamper(folder: Path, name: str, change: Callable[[bytes], bytes]) -> None:
    """A file changed, and its hash in the sums with it."""
    path = folder / name
    path.write_bytes(change(path.read_bytes()))
    reseal(folder)


def other_bias(data: bytes) -> bytes:
    """The file with the classifier's bias one larger."""
    tensors = safetensors.torch.load(data)
    name = next(key for key in tensors if key.endswith(("fc.bias", "fc2.bias")))
    tensors[name] = tensors[name] + 1
    return safetensors.torch.save(tensors)


@pytest.mark.slow
def test_verify_sees_a_tampered_file(exported: Path, tmp_path: Path) -> None:
    for name, change, check, says in (
        ("adapter.safetensors", other_bias, "adapter.safetensors", "1 tensors are not the model's"),
        ("timm/model.safetensors", other_bias, "timm", "outputs differ"),
        ("model.onnx", lambda data: data[:-50], "model.onnx", "does not run"),
        ("model.pt2", lambda data: data.replace(weight_of(data), bytes(20)), "model.pt2", "cannot be read (BadZipFile"),
        ("model.pt2", other_weight, "model.pt2", "1 tensors in it are not the model's, the first is fc.bias"),
    ):
        folder = tmp_path / says
        shutil.copytree(exported, folder)
        tamper(folder, name, change)
        said = verified(folder, "--run-onnx", code=1)
        assert {n for n, c in said.items() if c["passed"] is False} == {check}
        assert says in said[check]["detail"]


def weight_of(data: bytes) -> bytes:
    """The classifier's bias in a .pt2 file: it has five classes."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        config = json.loads(archive.read("model/data/weights/model_weights_config.json"))["config"]
        return archive.read(f"model/data/weights/{config['fc.bias']['path_name']}")


def other_weight(data: bytes) -> bytes:
    """The archive written anew, checksums and all, with another bias."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        for info in old.infolist():
            new.writestr(info.filename, old.read(info).replace(weight_of(data), bytes(20)))
    return out.getvalue()


def test_a_stranger_in_the_timm_folder_is_not_loaded(written: Path, tmp_path: Path) -> None:
    shutil.copytree(written, tmp_path / "out")
    (tmp_path / "out/timm/pytorch_model.bin").write_bytes(b"a pickle, who knows")
    said = verified(tmp_path / "out", code=1)["timm"]
    assert said["passed"] is False
    assert said["detail"] == "not opened: timm/pytorch_model.bin is not listed in SHA256SUMS"
    reseal(tmp_path / "out")
    said = verified(tmp_path / "out", code=1)["timm"]
    assert said["passed"] is False and "'pytorch_model.bin', which is not ours; not loaded" in said["detail"]


@pytest.mark.slow
def test_a_program_that_is_damaged_is_no_traceback(exported: Path, tmp_path: Path) -> None:
    for damage in (b"", b"PK\x03\x04", (exported / "model.pt2").read_bytes()[:-100]):
        (tmp_path / "model.pt2").write_bytes(damage)
        with pytest.raises(LoadError, match="cannot be read"):
            list(program.weights_in(tmp_path / "model.pt2"))


def test_force_replaces_every_format_and_nothing_else(written: Path, tmp_path: Path) -> None:
    shutil.copytree(written, tmp_path / "out")
    (tmp_path / "out/timm/notes.txt").write_text("mine")
    with pytest.raises(WriteError, match=r"'timm/notes\.txt', which is not ours"):
        se_inject.save(of_timm(verify=False), tmp_path / "out", force=True)
    (tmp_path / "out/timm/notes.txt").unlink()
    se_inject.save(of_timm(verify=False), tmp_path / "out", force=True)
    assert not (tmp_path / "out/timm").exists() and not (tmp_path / "out/adapter.safetensors").exists()


# -- exports ----------------------------------------------------------------------------------------------------------
class Flat(nn.Module):
    """A head for one size of image."""

    def __init__(self) -> None:
        super().__init__()
        self.body = net(n=1)
        self.body.fc = nn.Identity()
        self.fc = nn.Linear(8 * 64, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.body.blocks(self.body.stem(x)).flatten(1))


class OneBatch(nn.Module):
    """The batch is written into the code."""

    def __init__(self) -> None:
        super().__init__()
        self.body = net(n=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x.reshape(2, 3, 16, 16))


@pytest.mark.parametrize(
    ("make", "free"), [(net, (0, 2, 3)), (Flat, (0,)), (OneBatch, ())], ids=["all", "batch", "none"]
)
def test_what_is_free_is_found_by_trying(make: Callable[[], nn.Module], free: tuple[int, ...]) -> None:
    model = make().train()
    exported = exporting.export(model, resolve(model, SIZE), 0)
    assert exported.free == free and model.training and all(m.training for m in model.modules())
    assert not any("stack_trace" in node.meta for node in exported.program.graph.nodes)
    assert not any("dropout" in str(node.target) for node in exported.program.graph.nodes)


def test_a_batch_of_one_is_exported_as_two() -> None:
    exported = exporting.export(net(), Inputs((image(1),), {}), 0)
    assert exported.inputs.args[0].shape[0] == 2 and exported.free == (0, 2, 3)


class DataDependent(nn.Module):
    """What it computes depends on the values, which no export follows."""

    def __init__(self) -> None:
        super().__init__()
        self.body = net(n=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x if x.sum().item() > 0 else F.relu(x))


def test_a_model_that_is_not_exported_is_refused_with_nothing_written(tmp_path: Path) -> None:
    result = inject(DataDependent(), verify=False)
    with pytest.raises(WriteError, match=r"torch\.export does not take this model .*Leave out the formats pt2"):
        se_inject.save(result, tmp_path / "out", formats="safetensors,pt2")
    assert not (tmp_path / "out").exists()


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(WriteError, match=r"format onnx needs onnxruntime: python -m pip install 'se_inject\[onnx\]'"):
        se_inject.save(inject(net()), tmp_path / "out", formats="onnx")


def test_an_onnx_file_ends_at_two_gigabytes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(onnxfile, "LARGEST", 100)
    with pytest.raises(WriteError, match="one ONNX file holds less than 2 GiB"):
        se_inject.save(inject(net()), tmp_path / "out", formats="onnx")


# -- timm -------------------------------------------------------------------------------------------------------------
NARROW: dict[str, Any] = {"num_classes": 5}
TIMM = {
    "se, identity: the factor goes into the norms": ("resnet10t", "standard", ARGUMENTS),
    "se, absorb": ("resnet10t", {"placement": "standard", "init": "absorb"}, ARGUMENTS),
    "se, paper": ("resnet10t", {"placement": "standard", "init": "paper"}, ARGUMENTS),
    "eca": ("resnet10t", {"placement": "standard", "block": "eca"}, ARGUMENTS),
    "ese": ("resnet10t", {"placement": "standard", "block": "ese"}, ARGUMENTS),
    "gc, paper": ("resnet10t", {"placement": "standard", "block": "gc", "init": "paper"}, NARROW),
    "a RegNet": ("regnetx_002", "regnety", NARROW),
    "last blocks of VoVNet": (
        "vovnet39a",
        {"block": "ese", "include": ["re:stages\\.[01]\\.blocks\\.0", "stages.2.blocks.1", "stages.3.blocks.1"]},
        NARROW,
    ),
    "a ratio of RepVGG's, paper": ("repvgg_a0", {"placement": "sum", "init": "paper", "ratio": 4}, NARROW),
    "cbam, paper": ("resnet10t", {"placement": "standard", "block": "cbam", "init": "paper"}, NARROW),
    "sums of RepVGG, paper": ("repvgg_a0", {"placement": "sum", "init": "paper"}, NARROW),
}


LARGE = ("sums of RepVGG, paper", "a ratio of RepVGG's, paper", "last blocks of VoVNet", "a RegNet")


@pytest.mark.parametrize("case", [pytest.param(c, marks=[pytest.mark.slow] if c in LARGE else []) for c in TIMM])
def test_timm_folder(case: str, tmp_path: Path) -> None:
    """Bit-equal with gates that are open, each in its own way."""
    name, rules, arguments = TIMM[case]
    result = of_timm(rules, name, arguments, verify=False)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for decision in result.plan.insertions:
            for parameter in result.model.get_submodule(decision.key).parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    se_inject.save(result, tmp_path / "out", formats="timm")
    loaded = timm.create_model(f"local-dir:{tmp_path / 'out/timm'}", pretrained=True).eval()
    x = image(size=(3, 64, 64))
    with torch.no_grad():
        assert torch.equal(loaded(x), result.model(x))
        assert not torch.equal(loaded(x), se_inject.remove(result.model)(x))


REFUSED: dict[str, tuple[Callable[[], Injection], str]] = {
    "no timm": (lambda: inject(net()), r"tests\.tiny\.Net is not built by timm"),
    "no slot": (
        lambda: of_timm("auto", "mobilenetv2_035", NARROW, verify=False),
        "timm's EfficientNet takes no argument that puts blocks in",
    ),
    "a place left out": (
        lambda: of_timm({"placement": "standard", "exclude": "layer1.*"}),
        r"fills every place of its kind, and the plan has no block in layer1\.0",
    ),
    "a place of ours": (lambda: of_timm({"placement": "post", "init": "paper"}), "computes something else"),
    "another ratio": (lambda: of_timm({"placement": "standard", "ratio": 1}), r"is \[8\] in timm, \[16\] in the plan"),
    "another gate": (
        lambda: of_timm({"placement": "standard", "block": {"name": "se", "gate": "hardsigmoid"}}),
        "has gate='hardsigmoid', timm's se another",
    ),
    "a block timm has not": (
        lambda: of_timm({"placement": "standard", "block": "se_plain"}),
        "timm has no block 'se_plain'",
    ),
    "a factor no norm takes": (
        lambda: of_timm({"placement": "standard", "block": "gc"}),
        "is twice timm's, and no norm can take the factor over",
    ),
    "half precision": (lambda: half(), "timm builds float32 models"),
}


def half() -> Injection:
    return se_inject.inject(
        resnet().bfloat16(), (3, 64, 64), "standard", name="timm:resnet10t", model_args=ARGUMENTS, verify=False
    )


@pytest.mark.parametrize("case", REFUSED)
def test_what_timm_cannot_express_is_refused_in_a_line(case: str, tmp_path: Path) -> None:
    make, says = REFUSED[case]
    result = make()
    with pytest.raises(WriteError, match=f"format timm: .*{says}") as caught:
        se_inject.save(result, tmp_path / "out", formats="safetensors,timm")
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


# -- the command line -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("args", "says"),
    [(["--format", "onxx"], "Did you mean 'onnx'"), (["--max-shard-size", "5 elephants"], "expected a size above 0")],
)
def test_the_command_line_refuses_before_it_loads(args: list[str], says: str, tmp_path: Path) -> None:
    result = run("convert", "timm:nothing", "-o", str(tmp_path / "out"), *args)
    assert result.exit_code == 1 and says in result.stderr


def test_convert_writes_what_is_asked_for(tmp_path: Path) -> None:
    args = ["convert", "timm:resnet10t", "--random-init", "--input-size", "3,64,64", "--format", "adapter,timm"]
    args += [part for key, value in ARGUMENTS.items() for part in ("--model-arg", f"{key}={value}")]
    result = run(*args, "--placement", "standard", "-o", str(tmp_path / "out"))
    assert result.exit_code == 0, result.stderr
    assert sorted(content(tmp_path / "out")) == sorted([
        "adapter.safetensors", "modeling.py", "plan.json", "report.html", "report.json", "report.md",
        "timm/config.json", "timm/model.safetensors",
    ])  # fmt: skip
