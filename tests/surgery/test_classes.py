"""The classes made at run time keep everything that their authors' methods had: names, globals, closures, decorators,
flags; and are one class for equal blocks, through pickle and copies."""

from __future__ import annotations

import copy
import functools
import inspect
import io
import pickle
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from efficientnet_lite_pytorch import EfficientNet
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torchvision.models.resnet import BasicBlock, Bottleneck

import se_inject
from se_inject.errors import PlanMismatchError, SpliceError
from se_inject.surgery.classes import generated, is_generated
from se_inject.surgery.edit import Edit
from se_inject.trace.source import method_source
from tests.helpers import ROOT, refused
from tests.tiny import Borrowed, Layers, Private, Residual, at, by_hand, changes, image, inject, net, open_gates

GAIN = 1.0
CALLS: list[str] = []


def block_of(kind: Any, **options: Any) -> tuple[Any, Any]:
    """A block of a kind before and after, in a net; its gate is open."""
    model = net(kind, **options)
    named = {"placement": "standard", "include": ["blocks.*"]}  # without gradients too
    result = open_gates(inject(model, named).model)
    assert is_generated(type(result.blocks[0]))
    return model.blocks[0], result.blocks[0]


def one_call_more(cls: type, base: type, method: str = "forward") -> list[tuple[str, str]]:
    old = inspect.getsource(inspect.unwrap(getattr(base, method)))
    return changes(old, inspect.getsource(getattr(cls, method)))


# -- decorators -----------------------------------------------------------------------------------------------------
class NoGrad(Layers):
    @torch.no_grad()
    def forward(self, x):
        return F.relu(x + self.bn2(self.conv2(self.first(x))))


def test_no_grad_is_put_around_again() -> None:
    before, after = block_of(NoGrad)
    x = torch.randn(2, 8, 4, 4, requires_grad=True)
    assert not after(x).requires_grad
    assert after(x).ne(before(x)).any()
    assert block_of(Residual)[1](x).requires_grad  # the twin without it


class Half(Layers):
    @torch.autocast("cpu", dtype=torch.bfloat16)
    def forward(self, x):
        return x + self.bn2(self.conv2(self.first(x)))


def test_autocast_is_put_around_again() -> None:
    before, after = block_of(Half)
    seen: list[torch.dtype] = []
    after.se.fc1.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    after(torch.randn(2, 8, 4, 4))
    assert seen == [torch.bfloat16]
    assert vars(type(after).forward).get("__script_unsupported") == vars(type(before).forward)["__script_unsupported"]


def counted(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        CALLS.append(function.__name__)
        return function(self, *args, **kwargs)

    return wrapper


class Counted(Layers):
    @counted
    @counted
    def forward(self, x, scale=1.0):
        """Forward, counted twice."""
        return F.relu(x + self.bn2(self.conv2(self.first(x))) * scale)


def test_wraps_is_put_around_again() -> None:
    _, after = block_of(Counted)
    CALLS.clear()
    after(torch.randn(2, 8, 4, 4))
    assert CALLS == ["forward", "forward"]
    forward = type(after).forward
    assert (forward.__name__, forward.__doc__) == ("forward", "Forward, counted twice.")
    assert list(inspect.signature(forward).parameters) == ["self", "x", "scale"]
    CALLS.clear()
    Counted().eval()(torch.randn(2, 8, 4, 4))
    assert CALLS == ["forward", "forward"]  # the original's wrappers still call the original


def by_default(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(self: Any, x: Any, _function: Any = function) -> Any:
        return _function(self, x)

    return wrapper


class Hidden(Layers):
    @by_default
    def forward(self, x):
        return F.relu(x + torch.tanh(self.conv2(self.first(x))))


def test_a_decorator_that_holds_its_function_elsewhere_is_a_reason() -> None:
    model = net(Hidden)
    with refused("no-source", r"Hidden.forward is decorated by by_default.<locals>.wrapper"):
        inject(model)
    code = inspect.unwrap(Hidden.forward).__code__
    text, digest = method_source(code)
    with pytest.raises(SpliceError, match=r"is decorated by by_default.<locals>.wrapper"):
        generated(Hidden, (Edit("se", at(text, "torch.tanh(self.conv2(self.first(x)))", digest=digest)),))


# -- names ----------------------------------------------------------------------------------------------------------
class Derived(Layers):
    def forward(self, x):
        y = self.bn2(self.conv2(super().first(x)))
        return F.relu(x + y)


class Deeper(Derived):
    """Its own ``first`` is not the one that the method means."""

    def first(self, x):
        raise AssertionError


def test_super_means_the_class_that_the_method_was_written_in() -> None:
    before, after = block_of(Deeper)
    assert one_call_more(type(after), Derived) == [
        ("y = self.bn2(self.conv2(super().first(x)))", "y = self.se(self.bn2(self.conv2(super().first(x))))")
    ]
    assert type(after).__mro__[1:3] == (Deeper, Derived)
    x = torch.randn(2, 8, 4, 4)
    assert torch.equal(after(x), F.relu(x + after.se(before.bn2(before.conv2(Layers.first(before, x))))))


class ByName(Layers):
    """Names its own class in the method, as code for Python 2 did."""

    def forward(self, x):
        assert isinstance(self, ByName)
        return F.relu(x + self.bn2(self.conv2(super(ByName, self).first(x))))  # noqa: UP008


def make_by_name() -> Any:
    class Local(Layers):
        def forward(self, x):
            return F.relu(x + self.bn2(self.conv2(super(Local, self).first(x))))  # noqa: UP008

    return Local


def test_the_method_may_name_its_own_class() -> None:
    for kind in (ByName, make_by_name()):
        before, after = block_of(kind)
        x = torch.randn(2, 8, 4, 4)
        assert torch.equal(after(x), F.relu(x + after.se(before.bn2(before.conv2(before.first(x))))))


def make_closure(factor: float, act: Any) -> Any:
    class Closure(Layers):
        def forward(self, x):
            return act(x + self.bn2(self.conv2(self.first(x)))) * factor

        def double(self) -> None:
            nonlocal factor
            factor *= 2

    return Closure


def test_closures_stay_the_same_cells() -> None:
    _, after = block_of(make_closure(1.0, F.relu))
    x = torch.randn(2, 8, 4, 4)
    y = after(x)
    after.double()
    assert torch.equal(after(x), y * 2)
    original = type(after).__mro__[1].forward
    assert type(after).forward.__closure__ == original.__closure__


DEFAULT = object()


class Defaults(Layers):
    def forward(self, x, scale: float = 2.0, *, marker: Any = DEFAULT) -> torch.Tensor:
        """Its words."""
        assert marker is DEFAULT
        return F.relu(x + self.bn2(self.conv2(self.first(x))) * scale)

    forward.tag = "kept"  # type: ignore[attr-defined]


def test_signature_and_attributes_of_the_method_are_kept() -> None:
    _, after = block_of(Defaults)
    old, new = Defaults.forward, type(after).forward
    assert inspect.signature(new) == inspect.signature(old)
    assert new.__kwdefaults__ is old.__kwdefaults__ and new.__defaults__ is old.__defaults__
    assert (new.__name__, new.__doc__, new.__module__) == ("forward", "Its words.", Defaults.__module__)
    assert new.__annotations__ == old.__annotations__
    assert new.tag == "kept"
    assert new.__qualname__ == "SEDefaults.forward"


class Global(Layers):
    def forward(self, x):
        return F.relu(x + self.bn2(self.conv2(self.first(x)))) * GAIN


def test_globals_are_live(monkeypatch: pytest.MonkeyPatch) -> None:
    _, after = block_of(Global)
    x = torch.randn(2, 8, 4, 4)
    y = after(x)
    monkeypatch.setattr(sys.modules[__name__], "GAIN", 2.0)
    assert torch.equal(after(x), 2 * y)


class Flags(Layers):
    """Reads a scale, and a flag that sends its branch through activation checkpointing."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.checkpointing = 1.0, False

    def branch(self, x):
        CALLS.append("branch")
        return self.bn2(self.conv2(self.first(x)))

    def forward(self, x):
        if self.checkpointing and x.requires_grad:
            y = checkpoint(self.branch, x, use_reentrant=False)
        else:
            y = self.branch(x)
        return x + y * self.scale


def test_flags_that_the_method_reads_still_take_effect() -> None:
    model = net(Flags)
    before, after = model.blocks[0], inject(model, {"placement": "standard", "include": "blocks.*"}).model.blocks[0]
    assert one_call_more(type(after), Flags, "branch") == [
        ("return self.bn2(self.conv2(self.first(x)))", "return self.se(self.bn2(self.conv2(self.first(x))))")
    ]
    x = torch.randn(2, 8, 4, 4, requires_grad=True)
    for block in (before, after):
        block.scale = 3.0
    assert torch.equal(before(x), after(x))
    after.scale = 1.0
    assert not torch.equal(before(x), after(x))
    CALLS.clear()
    after(x).sum().backward()
    assert CALLS == ["branch"]
    after.checkpointing = True
    CALLS.clear()
    after(x).sum().backward()
    assert CALLS == ["branch", "branch"]  # once forward, once more for the gradient


def test_private_names_belong_to_the_class_that_wrote_them() -> None:
    before, after = block_of(Private)
    x = torch.randn(2, 8, 4, 4)
    assert torch.equal(after(x), F.relu(x + after.se(before.bn2(before.conv2(before.first(x)))) * 0.5))


def test_a_function_of_the_module_as_forward() -> None:
    _, after = block_of(Borrowed)
    assert inspect.getsource(type(after).forward) == (
        "    def outside(self, x):\n        return F.relu(x + self.se(self.bn2(self.conv2(self.first(x)))))\n"
    )
    assert type(after).se_rewrite.after.endswith("    forward = outside\n")


class Alias(Layers):
    def _forward(self, x):
        return F.relu(x + self.bn2(self.conv2(self.first(x))))

    forward = _forward


def test_a_method_under_two_names_is_rewritten_under_both() -> None:
    before, after = block_of(Alias)
    x = torch.randn(2, 8, 4, 4)
    assert torch.equal(after.forward(x), after._forward(x)) and not torch.equal(after(x), before(x))
    assert type(after).forward is type(after)._forward
    assert vars(type(before))["forward"] is vars(type(before))["_forward"]


class Broken(Residual):
    def forward(self, x):
        y = (
            self.first(x)  # one
        )
        y = self.bn2(self.conv2(y))
        if x.shape[0] == 3:
            raise ArithmeticError("three")
        return F.relu(x + y)


def test_a_traceback_shows_the_generated_text() -> None:
    _, after = block_of(Broken)
    try:
        after(torch.randn(3, 8, 4, 4))
    except ArithmeticError:
        text = traceback.format_exc()
    assert 'raise ArithmeticError("three")' in text
    assert "<se_inject SEBroken " in text
    after.se.fc1.weight.data = torch.zeros(1, 1, 1, 1)
    with pytest.raises(RuntimeError) as caught:
        after(torch.randn(2, 8, 4, 4))
    assert any("y = self.se(self.bn2(self.conv2(y)))" in str(entry) for entry in caught.traceback)


def test_getsource_is_the_original_and_one_call() -> None:
    _, after = block_of(Broken)
    assert one_call_more(type(after), Broken) == [
        ("y = self.bn2(self.conv2(y))", "y = self.se(self.bn2(self.conv2(y)))")
    ]


class Lines(Residual):
    def forward(self, x):
        mark = "a\u2028b"  # and a form feed:
        y = self.bn2(self.conv2(self.first(x)))
        return F.relu(x + y) if len(mark) == 3 else mark


def test_only_newlines_end_a_line() -> None:
    _, after = block_of(Lines)
    assert "self.se(self.bn2(self.conv2(self.first(x))))" in inspect.getsource(type(after).forward)


# -- one class ------------------------------------------------------------------------------------------------------
def test_sixteen_equal_blocks_are_one_class() -> None:
    model = inject(net(Residual, 16)).model
    classes = {type(block) for block in model.blocks}
    assert len(classes) == 1
    assert {type(block) for block in inject(net(Residual, 3)).model.blocks} == classes  # and the next model's too
    assert classes != {type(block) for block in inject(net(Broken)).model.blocks}


def test_the_class_is_a_subclass_and_says_what_it_is() -> None:
    before, after = block_of(Residual)
    cls = type(after)
    assert isinstance(after, Residual) and issubclass(cls, Residual) and not is_generated(type(before))
    assert cls.__name__ == "SEResidual"
    assert cls.se_base is Residual and [edit.name for edit in cls.se_edits] == ["se"]


def roundtrips() -> dict[str, Callable[[Any], Any]]:
    def save(model: Any) -> Any:
        buffer = io.BytesIO()
        torch.save(model, buffer)
        return torch.load(io.BytesIO(buffer.getvalue()), weights_only=False)

    return {
        "copy": copy.copy,
        "deepcopy": copy.deepcopy,
        "pickle": lambda model: pickle.loads(pickle.dumps(model)),
        "pickle protocol 2": lambda model: pickle.loads(pickle.dumps(model, 2)),
        "torch.save": save,
    }


@pytest.mark.parametrize("how", roundtrips())
def test_copies_are_of_the_same_class(how: str) -> None:
    model = open_gates(inject(net(Residual, 2)).model)
    again = roundtrips()[how](model)
    assert [type(block) for block in again.blocks] == [type(block) for block in model.blocks]
    assert torch.equal(again(image()), model(image()))
    assert list(again.state_dict()) == list(model.state_dict())
    if how != "copy":
        assert again.blocks[0].se is not model.blocks[0].se
        assert sorted(se_inject.remove(again).state_dict()) == sorted(net(Residual, 2).state_dict())


def test_a_pickle_makes_the_class_again_in_another_process(tmp_path: Path) -> None:
    model = open_gates(inject(net(Residual, 2)).model)
    torch.save((model, image(), model(image())), tmp_path / "model.pt")
    code = (
        "import sys, torch\n"
        "model, x, y = torch.load(sys.argv[1], weights_only=False)\n"
        "assert torch.equal(model(x), y)\n"
        "a, b = map(type, model.blocks)\n"
        "assert a is b and a.__name__ == 'SEResidual', (a, b)\n"
    )
    root = ROOT
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "model.pt")], cwd=root, check=True)


def test_a_model_rewritten_twice_still_pickles() -> None:
    block = nn.Sequential(Bottleneck(8, 2), Bottleneck(8, 2)).eval()
    once = inject(block, size=(8, 6, 6)).model
    twice = open_gates(inject(once, "inner", size=(8, 6, 6)).model)
    assert type(twice[0]).__mro__[1:3] == (type(once[0]), Bottleneck)
    source = inspect.getsource(type(twice[0]).forward)
    assert source.count("self.se") == 2
    again = pickle.loads(pickle.dumps(twice))
    assert type(again[0]) is type(again[1]) is type(twice[0])
    x = image(size=(8, 6, 6))
    assert torch.equal(again(x), twice(x))


class Secret(Bottleneck):
    """Private names in a method that is rewritten twice."""

    def __init__(self) -> None:
        super().__init__(8, 2)
        self.__act = nn.ReLU()

    def forward(self, x):
        out = self.__act(self.bn1(self.conv1(x)))
        out = self.__act(self.bn2(self.conv2(out)))
        return self.__act(x + self.bn3(self.conv3(out)))


def test_private_names_survive_a_second_rewriting() -> None:
    once = inject(nn.Sequential(Secret()).eval(), size=(8, 6, 6)).model
    twice = inject(once, "inner", size=(8, 6, 6)).model
    assert torch.equal(twice(image(size=(8, 6, 6))), once(image(size=(8, 6, 6))))


class ShardedModule:
    """What FSDP2 does: a class of its own on top, by another swap."""


def test_a_later_swap_keeps_its_class_and_ours() -> None:
    model = open_gates(inject(net()).model)
    y = model(image())
    block = model.blocks[0]
    ours = type(block)
    block.__class__ = type("Sharded", (ShardedModule, ours), {})
    assert torch.equal(model(image()), y)
    assert isinstance(block, ShardedModule) and isinstance(block, Residual)
    assert type(copy.deepcopy(block)) is type(block)  # not silently ours alone
    with pytest.raises(SpliceError, match=r"blocks\.0 is a Sharded, not the class that was generated"):
        se_inject.remove(model)
    block.__class__ = ours
    assert type(se_inject.remove(model).blocks[0]) is Residual


@pytest.mark.filterwarnings("ignore:.*is deprecated")
def test_torch_jit_script() -> None:
    block = nn.Sequential(BasicBlock(8, 8)).eval()
    model = open_gates(inject(block, size=(8, 6, 6)).model)
    scripted = torch.jit.script(model[0])
    x = image(size=(8, 6, 6))
    assert torch.equal(scripted(x), model[0](x))
    assert not torch.equal(scripted(x), block[0](x))


# -- refusals -------------------------------------------------------------------------------------------------------
class Registered(Layers):
    def __init_subclass__(cls, *, key: str, **options: Any) -> None:
        super().__init_subclass__(**options)

    def forward(self, x):
        return F.relu(x + self.bn2(self.conv2(self.first(x))))


def test_a_class_that_asks_for_arguments_cannot_be_subclassed() -> None:
    model = net(Registered)
    keys = list(model.state_dict())
    with pytest.raises(SpliceError, match=r"Registered cannot be subclassed: .*missing 1 required keyword-only"):
        inject(model, inplace=True)
    assert type(model.blocks[0]) is Registered and list(model.state_dict()) == keys


class Twice(nn.Module):
    def forward(self, x):
        return x * 2


def test_a_parametrized_class_is_refused() -> None:
    block = Residual()
    block.register_parameter("gain", nn.Parameter(torch.ones(1)))
    nn.utils.parametrize.register_parametrization(block, "gain", Twice())
    with pytest.raises(SpliceError, match="ParametrizedResidual is parametrized: remove the parametrization first"):
        generated(type(block), (Edit("se"),))
    nn.utils.parametrize.remove_parametrizations(block, "gain")
    assert generated(type(block), (Edit("se"),)).__name__ == "SEResidual"


def test_source_that_is_another_is_refused() -> None:
    text, digest = method_source(Residual.forward.__code__)
    place = at(text, "self.bn2(self.conv2(y))", digest=digest)
    assert generated(Residual, (Edit("se", place),))
    for wrong, reason in (
        (at(text, "self.bn2(self.conv2(y))", digest="0" * 64), "the source of Residual.forward is not the one"),
        (at(text, "self.bn2(self.conv2(y)", digest=digest), "no expression at line 3"),
        (at(text, "self.bn2(self.conv2(y))", digest=digest, method="backward"), "has no method backward"),
    ):
        with pytest.raises(PlanMismatchError, match=reason):
            generated(Residual, (Edit("se", wrong),))


# -- a forward that cannot be rewritten is wrapped --------------------------------------------------------------------
class Lambda(nn.Module):
    forward = lambda self, x: x.relu()  # noqa: E731


def test_a_lambda_is_wrapped_by_all_of_its_blocks() -> None:
    from se_inject.types import Carrier

    model = nn.Sequential(nn.Conv2d(3, 8, 1), Lambda()).eval()
    plan = by_hand(model, Carrier("wrap_output", "1", "se"), Carrier("wrap_output", "1", "se_1"))
    after = open_gates(se_inject.apply(model, plan))
    assert isinstance(after[1], Lambda)
    assert "return self.se_1(self.se(super().forward(*args, **kwargs)))" in type(after[1]).se_rewrite.after
    y = model(image())
    assert torch.equal(after(image()), after[1].se_1(after[1].se(y)))
    assert not torch.equal(after(image()), after[1].se(y))
    assert torch.equal(pickle.loads(pickle.dumps(after))(image()), after(image()))


# -- golden files ---------------------------------------------------------------------------------------------------
def lite() -> nn.Module:
    return EfficientNet.from_name("efficientnet-lite0").eval()


GOLDEN: dict[str, tuple[Callable[[], nn.Module], str, str, tuple[str, str]]] = {
    "bottleneck.py.txt": (
        lambda: torchvision.models.resnet50(),
        "standard",
        "layer3.1",
        ("out = self.bn3(out)", "out = self.se(self.bn3(out))"),
    ),
    "mbconv.py.txt": (lite, "auto", "_blocks.3", ("x = self._swish(x)", "x = self.se(self._swish(x))")),
    "inverted_residual.py.txt": (
        lambda: timm.create_model("mobilenetv2_035"),
        "standard",
        "blocks.1.1",
        ("x = self.bn3(x)", "x = self.se_1(self.bn3(x))"),
    ),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_source(name: str, golden: Callable[[str, str], None]) -> None:
    """The original text, comments kept, one call more."""
    build, rules, path, line = GOLDEN[name]
    with torch.device("meta"):
        model = build()
    plan = se_inject.plan(model, (3, 64, 64), rules)
    block = se_inject.apply(model, plan).get_submodule(path)
    cls = type(block)
    assert one_call_more(cls, cls.__mro__[1]) == [line]
    golden(name, vars(cls)["se_rewrite"].after)
