"""``modeling.py``: the rewritten model as code that runs where this tool is not installed."""

from __future__ import annotations

import copy
import functools
import importlib
import itertools
import pickle
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import fx, nn
from torch.nn import functional as F

import se_inject
from se_inject.output.tensors import tensors_writer
from se_inject.surgery.modeling import _build, render
from se_inject.surgery.portable import Header, NoSource
from se_inject.types import Carrier
from tests.helpers import randomise
from tests.tiny import SIZE, Borrowed, Layers, Private, Residual, by_hand, image, inject, net, open_gates

COUNT = 0
numbers = itertools.count()


def executed(text: str) -> Any:
    """The text as a module, as Python would import it."""
    module = types.ModuleType(f"modeling_{next(numbers)}")
    module.__file__ = __file__
    sys.modules[module.__name__] = module
    exec(compile(text, "modeling.py", "exec"), module.__dict__)
    return module


def rebuilt(model: nn.Module, result: Any = None) -> tuple[Any, str]:
    """The model built again by the generated text, with the weights of the injected one (gates open); and the text."""
    result = result if result is not None else inject(model)
    open_gates(result.model)
    text = render(result.base, result.plan)
    again = executed(text).build(model=copy.deepcopy(model))
    again.load_state_dict(result.model.state_dict(), strict=True)
    again.eval()
    assert torch.equal(again(image()), result.model(image()))
    assert not torch.equal(again(image()), model(image()))
    return again, text


# -- where se_inject is not -------------------------------------------------------------------------------------------
LIBRARY = """
import torch
from torch import nn
from torch.nn import functional as F

SCALE = 0.5


class Base(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)

    def first(self, x):
        return F.relu(self.bn1(self.conv1(x)))


class Block(Base):
    def forward(self, x):
        y = super().first(x)  # größer
        return F.relu(x + SCALE * self.bn2(self.conv2(y)))


class Last(Block):
    def first(self, x):
        raise AssertionError("super() must not come here")


class Model(nn.Module):
    def __init__(self, classes=5):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.blocks = nn.Sequential(Block(), Last(), Last())
        self.fc = nn.Linear(8, classes)

    def forward(self, x):
        return self.fc(self.blocks(self.stem(x)).mean((2, 3)))
"""

CHILD = """
import copy, importlib.util, os, pickle, sys
from pathlib import Path

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "se_inject":
            raise ImportError("se_inject is blocked")

sys.meta_path.insert(0, Block())
sys.modules["se_inject"] = None
import torch
torch.set_num_threads(1)
for folder in map(Path, sys.argv[1:]):
    name = "modeling_" + folder.name
    spec = importlib.util.spec_from_file_location(name, folder / "modeling.py")
    modeling = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(modeling)
    x, y = torch.load(folder.with_suffix(".pt"))
    model = modeling.load()
    assert not model.training
    with torch.no_grad():
        assert torch.equal(model(x), y), folder
        assert torch.equal(pickle.loads(pickle.dumps(model))(x), y)
        assert torch.equal(copy.deepcopy(model)(x), y)
        built = modeling.build()
        assert list(built.state_dict()) == list(model.state_dict())
        built.load_state_dict(model.state_dict())
        assert torch.equal(built.eval()(x), y)
    before = {k: b.clone() for k, b in model.named_buffers()}
    weights = {k: p.detach().clone() for k, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.train()(x).square().sum().backward()
    optimizer.step()
    assert all(p.grad is not None for p in model.parameters())
    assert all(not torch.equal(b, before[k]) for k, b in model.named_buffers() if "running" in k)
    assert sum(not torch.equal(p, weights[k]) for k, p in model.named_parameters()) > len(weights) / 2
    assert not [m for m in sys.modules if m.startswith("se_inject.")]
    print(folder.name, "ok")
"""


def library(folder: Path) -> Any:
    (folder / "a_small_library.py").write_text(LIBRARY, encoding="utf-8")
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        return importlib.import_module("a_small_library").Model
    finally:
        sys.path.remove(str(folder))


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Any]:
    yield library(tmp_path)
    sys.modules.pop("a_small_library", None)


def test_without_se_inject(own: Any, tmp_path: Path) -> None:
    """For a slot and a rewritten class of timm, for wrapped outputs of torchvision, for a factory."""
    models: dict[str, tuple[nn.Module, str, Any, tuple[int, ...]]] = {
        "timm": (
            timm.create_model("mobilenetv2_035", num_classes=7),
            "timm:mobilenetv2_035",
            {"num_classes": 7},
            (3, 64, 64),
        ),
        "torchvision": (
            torchvision.models.mobilenet_v2(width_mult=0.25, num_classes=7),
            "torchvision:mobilenet_v2",
            {"width_mult": 0.25, "num_classes": 7},
            (3, 64, 64),
        ),
        "factory": (own(classes=7), "a_small_library:Model", {"classes": 7}, SIZE),
    }
    for name, (model, spec, args, size) in models.items():
        rules = "inner" if name == "torchvision" else "standard"
        result = inject(randomise(model).eval(), rules, size, name=spec, model_args=args, verify=False)
        open_gates(result.model)
        report = se_inject.save(result, tmp_path / "out" / name)
        assert [c.passed for c in report.checks] == [True], report.checks
        x = image(size=size)
        with torch.no_grad():
            torch.save((x, result.model(x)), tmp_path / "out" / f"{name}.pt")
    child = tmp_path / "child.py"
    child.write_text(CHILD)
    folders = [str(tmp_path / "out" / name) for name in models]
    done = subprocess.run(
        [sys.executable, "-W", "error", str(child), *folders],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1", "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [word for name in models for word in (name, "ok")]


# -- the text ---------------------------------------------------------------------------------------------------------
def test_what_it_says(own: Any) -> None:
    result = inject(own().eval(), name="a_small_library:Model")
    text = render(result.base, result.plan)
    assert text.startswith('"""Model with 3 attention blocks.\n\nMade by se_inject from a_small_library:Model. ')
    assert "those of a_small_library,\n" in text and "the original's licence applies" in text
    assert text.count("class SE") == 2  # Block, Last; the two equal blocks share one
    assert "# größer" in text
    assert text.count("SCALE * self.se(self.bn2(self.conv2(y)))") == 2
    assert text.count("super(Block, self).first(x)") == 2
    assert "import torch\n" in text and "from a_small_library import Block, " not in text
    for line in (
        "from a_small_library import Block\n",
        "from a_small_library import Last\n",
        "from a_small_library import SCALE\n",
    ):
        assert text.count(line) == 1
    assert "se_inject" not in text.replace("Made by se_inject", "")


def test_super_is_that_of_the_defining_class(own: Any) -> None:
    again, _ = rebuilt(randomise(own()).eval())
    assert [type(b).__name__ for b in again.blocks] == ["SEBlock", "SELast", "SELast"]
    assert type(again.blocks[1]) is type(again.blocks[2])


@pytest.mark.parametrize("name", ["build", "load"])
def test_a_factory_may_have_the_name_of_a_function_here(own: Any, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(sys.modules[own.__module__], name, own, raising=False)
    result = inject(own().eval(), name=f"a_small_library:{name}")
    text = render(result.base, result.plan)
    assert f"from a_small_library import {name} as {name}2\n" in text
    again = executed(text).build(classes=7)
    assert again.fc.out_features == 7
    assert hasattr(again.blocks[0], "se")


def test_slots_need_no_class() -> None:
    model = timm.create_model("resnet10t").eval()
    result = inject(model, size=(3, 64, 64), name="timm:resnet10t")
    text = render(result.base, result.plan)
    assert "class SE" not in text and "CLASSES = {}" in text
    assert "timm.create_model('resnet10t', pretrained=False, **{**{}, **options})" in text
    assert "from timm.models.resnet" not in text


def test_detection_models_take_no_weights_for_their_backbone() -> None:
    plan = by_hand(net())
    detector = replace(plan, model="torchvision:fasterrcnn_resnet50_fpn")
    assert "weights=None, weights_backbone=None, " in _build(detector, Header())
    assert "weights_backbone" not in _build(replace(plan, model="torchvision:resnet18"), Header())


def test_a_model_from_the_api_is_passed_in() -> None:
    result = inject(net())
    module = executed(render(result.base, result.plan))
    with pytest.raises(TypeError, match=r"build\(model=...\), load\(model=...\)"):
        module.build()
    model = net()
    assert module.build(model=model) is model


@pytest.mark.parametrize("spec", ['a.b:c"""\nimport os\n"""', "x:y; import os", "torch:class", "a:b.c d", "no spec"])
def test_a_strange_spec_is_neither_code_nor_import(spec: str) -> None:
    result = inject(net(), name=spec)
    text = render(result.base, result.plan)
    assert "\nimport os" not in text
    executed(text).build(model=net())


class Decorated(Layers):
    @torch.no_grad()
    def forward(self, x, scale: float = 1.0, *, act=F.relu) -> torch.Tensor:
        """Doc."""
        return act(x + self.bn2(self.conv2(self.first(x))) * scale)


class Explicit(Layers):
    def forward(self, x):
        return F.relu(x + self.bn2(self.conv2(super(Explicit, self).first(x))))  # noqa: UP008


class Strings(Layers):
    def forward(self, x):
        mark = """one
two"""
        return F.relu(x + self.bn2(self.conv2(self.first(x)))) * len(mark)


@pytest.mark.parametrize("kind", [Residual, Decorated, Borrowed, Explicit, Strings])
def test_methods_that_can_be_moved(kind: type[nn.Module]) -> None:
    model = net(kind)
    named = {"placement": "standard", "include": ["blocks.*"]}  # the decorated one, which has no gradients
    again, text = rebuilt(model, inject(model, named))
    assert isinstance(again.blocks[0], kind) and type(again.blocks[0]).__module__.startswith("modeling_")
    assert text.count("self.se(") == 1
    assert again(image()).requires_grad
    if kind is Decorated:
        assert not again.blocks[0](torch.randn(1, 8, 4, 4)).requires_grad


class Lambda(Layers):
    forward = lambda self, x: (x + self.bn2(self.conv2(self.first(x)))).relu()  # noqa: E731


def test_a_wrapped_forward() -> None:
    """Its ``super()`` is the base of the generated class, and stays as it is."""
    model = net(Lambda)
    plan = by_hand(model, Carrier("wrap_output", "blocks.0", "se"), Carrier("wrap_output", "blocks.0", "se_1"))
    after = open_gates(se_inject.apply(model, plan))
    text = render(model, plan)
    assert "return self.se_1(self.se(super().forward(*args, **kwargs)))" in text
    again = executed(text).build(model=copy.deepcopy(model))
    again.load_state_dict(after.state_dict())
    assert torch.equal(again(image()), after(image()))


def test_a_wrapped_output_of_torch() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU()).eval()
    plan = by_hand(model, Carrier("wrap_output", "1", "se"))
    text = render(model, plan)
    assert "from torch.nn.modules.activation import ReLU\n" in text
    again = executed(text).build(model=copy.deepcopy(model))
    after = open_gates(se_inject.apply(model, plan))
    again.load_state_dict(after.state_dict())
    assert torch.equal(again(image()), after(image()))


def test_a_model_pickles_by_the_name_of_its_module() -> None:
    again, _ = rebuilt(net())
    assert torch.equal(pickle.loads(pickle.dumps(again))(image()), again(image()))


@pytest.mark.parametrize("kind", ["half", "bfloat16", "mixed"])
def test_load_keeps_the_dtypes_of_the_file(kind: str, tmp_path: Path) -> None:
    model = net()
    if kind == "mixed":
        model.fc.bfloat16()
    else:
        getattr(model, kind)()
    result = inject(net())
    state = se_inject.apply(model, result.plan).state_dict()
    tensors_writer(state)(tmp_path / "model.safetensors")
    again = executed(render(result.base, result.plan)).load(tmp_path / "model.safetensors", model=net())
    assert {k: v.dtype for k, v in again.state_dict().items()} == {k: v.dtype for k, v in state.items()}
    assert all(torch.equal(v, state[k]) for k, v in again.state_dict().items())


@pytest.mark.parametrize(
    "name", ['a" if __import__("os").mkdir("C") else "b', "a'b", "a\\", "läyer", "a\nb", "a b", "class", "\u202e"]
)
def test_names_of_modules_are_literals(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 1)
            self.add_module(name.replace(".", ""), Residual())

        def forward(self, x):
            return getattr(self, name.replace(".", ""))(self.stem(x))

    model = Odd().eval()
    _, text = rebuilt(model)
    assert f"({name.replace('.', '')!r}, 'se', " in text and not list(tmp_path.iterdir())
    assert torch.equal(se_inject.remove(inject(model).model)(image()), model(image()))


# -- what cannot be moved ---------------------------------------------------------------------------------------------
def make_closure() -> Any:
    act = F.relu

    class Closure(Layers):
        def forward(self, x):
            return act(x + self.bn2(self.conv2(self.first(x))))

    Closure.__qualname__ = "Closure"
    return Closure


Closure = make_closure()


class ClassScope(Layers):
    SCALE = 2

    def forward(self, x, scale=SCALE):
        return F.relu(x + self.bn2(self.conv2(self.first(x))) * scale)


class Itself(Layers):
    def forward(self, x):
        assert __class__ is Itself
        return F.relu(x + self.bn2(self.conv2(self.first(x))))


class Counts(Layers):
    def forward(self, x):
        global COUNT
        COUNT += 1
        return F.relu(x + self.bn2(self.conv2(self.first(x))))


class LongSuper(Layers):
    def forward(self, x):
        # fmt: off
        y = super(
        ).first(x)
        # fmt: on
        return F.relu(x + self.bn2(self.conv2(y)))


class Outer:
    class Nested(Layers):
        def forward(self, x):
            return F.relu(x + self.bn2(self.conv2(self.first(x))))


def load() -> None: ...


class Reserved(Layers):
    """Reads a name that ``modeling.py`` has a function of its own for."""

    def forward(self, x):
        assert load
        return F.relu(x + self.bn2(self.conv2(self.first(x))))


print = functools.partial(len)  # a name of Python's own means something else here


class Shadows(Layers):
    def forward(self, x):
        assert print
        return F.relu(x + self.bn2(self.conv2(self.first(x))))


CANNOT = {
    "Closure.forward uses variables of the function that defines it": Closure,
    "Private.forward uses private names": Private,
    "ClassScope.forward reads SCALE from the body of its class": ClassScope,
    "Itself.forward uses __class__": Itself,
    "Counts.forward writes a global variable of its module": Counts,
    "LongSuper.forward writes super.. over several lines": LongSuper,
    "Outer.Nested of tests.surgery.test_modeling cannot be imported by name": Outer.Nested,
    "the name load stands for different things": Reserved,
    "the name print stands for different things": Shadows,
}


@pytest.mark.parametrize("reason", CANNOT)
def test_what_would_not_mean_the_same_is_not_written(reason: str, tmp_path: Path) -> None:
    model = net(CANNOT[reason])
    result = open_and_inject(model)
    with pytest.raises(NoSource, match=reason):
        render(result.base, result.plan)
    report = se_inject.save(result, tmp_path / "out")
    (check,) = [c for c in report.checks if c.name == "modeling.py"]
    assert check.passed is None and check.detail.startswith("not written: ")
    written = {p.name for p in (tmp_path / "out").iterdir()}
    assert {"model.safetensors", "plan.json", "report.json"} <= written and "modeling.py" not in written
    again = se_inject.load(tmp_path / "out", model=net(CANNOT[reason]))
    assert torch.equal(again(image()), result.model(image()))


def open_and_inject(model: nn.Module) -> Any:
    result = inject(model)
    open_gates(result.model)
    return result


def test_a_graph_has_no_source() -> None:
    result = inject(fx.symbolic_trace(net()))
    with pytest.raises(NoSource, match="GraphModule"):
        render(result.base, result.plan)


def test_two_classes_of_one_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    make: list[Callable[[], nn.Module]] = []
    for i in (1, 2):
        (tmp_path / f"blocks_{i}.py").write_text(LIBRARY.replace("0.5", f"0.{i}"))
        importlib.invalidate_caches()
        make.append(importlib.import_module(f"blocks_{i}").Block)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), make[0](), make[1]()).eval()
    result = inject(model)
    with pytest.raises(NoSource, match=r"the name (Block|SCALE) stands for different things in the modules"):
        render(result.base, result.plan)
    alone = nn.Sequential(nn.Conv2d(3, 8, 1), make[0]()).eval()
    rebuilt(randomise(alone).eval())
    for i in (1, 2):
        sys.modules.pop(f"blocks_{i}", None)


SEResidual = object()


class ReadsTheName(Residual):
    def forward(self, x):
        assert SEResidual
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(x + y)


def test_a_name_that_is_taken_gets_a_number() -> None:
    model = net(Residual)
    model.blocks.append(ReadsTheName())
    again, text = rebuilt(randomise(model).eval())
    assert [type(b).__name__ for b in again.blocks] == ["SEResidual2", "SEReadsTheName"]
    assert "class SEResidual2(Residual):" in text
