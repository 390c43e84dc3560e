"""Example inputs: what may be given, what comes of it, and what is said when it will not do."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest
import timm
import torch
from torch import nn

from se_inject.errors import TraceError
from se_inject.inputs import BATCH, KINDS, Inputs, default_size, dtype_of, from_shape, noise, resolve
from se_inject.types import InputKind, InputSpec, from_dict, to_dict
from tests.nets import Basic


def test_a_tensor_is_the_one_argument() -> None:
    x = torch.randn(1, 3, 8, 8)
    inputs = resolve(Basic(), x)
    assert (len(inputs.args), inputs.kwargs, inputs.shape) == (1, {}, None)
    assert inputs.args[0] is x


def test_a_tuple_or_list_is_the_arguments_and_a_dict_the_keywords() -> None:
    x, y = torch.zeros(1), torch.ones(1)
    for given in ((x, y, "flag"), [x, y, "flag"]):
        inputs = resolve(Basic(), given)
        assert inputs.args == (x, y, "flag") and inputs.kwargs == {}
    keywords = {"x": x, "y": [y]}
    inputs = resolve(Basic(), keywords)
    assert inputs.args == () and inputs.kwargs == keywords and inputs.kwargs is not keywords
    assert resolve(Basic(), (x, 3)).args == (x, 3)
    assert resolve(Basic(), ()).args == ()


@pytest.mark.parametrize("given", [(3, 8, 16), [3, 8, 16], torch.Size([3, 8, 16])])
def test_a_shape_gets_a_batch_of_seeded_noise(given: Any) -> None:
    net, state = Basic(), torch.get_rng_state()
    inputs = resolve(net, given)
    assert inputs.shape == (3, 8, 16)
    (x,) = inputs.args
    assert x.shape == (BATCH, 3, 8, 16) and x.dtype == torch.float32
    assert torch.equal(x, resolve(net, given).args[0])
    assert not torch.equal(x, resolve(net, given, seed=1).args[0])
    assert x.std() > 0.5 and not torch.equal(x[0], x[1])
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_noise_has_the_dtype_of_the_model(dtype: torch.dtype) -> None:
    assert resolve(Basic().to(dtype), (8, 4, 4)).args[0].dtype == dtype


def test_dtype_of() -> None:
    class Integers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.index = nn.Parameter(torch.zeros(2, dtype=torch.int64), requires_grad=False)
            self.weight = nn.Parameter(torch.zeros(2, dtype=torch.float64))

    assert dtype_of(Integers()) == torch.float64
    assert dtype_of(nn.ReLU()) == torch.float32


def test_inputs_stay_as_they_are() -> None:
    inputs = Inputs((1,), {})
    assert resolve(Basic(), inputs) is inputs


# -- the model's own size -------------------------------------------------------------------------------------------
@dataclass
class Config:
    input_size: tuple[int, ...] | None = (3, 5, 7)


@pytest.mark.parametrize(
    ("attribute", "config", "size"),
    [
        ("pretrained_cfg", {"input_size": (3, 5, 7)}, (3, 5, 7)),
        ("default_cfg", {"input_size": [3, 5, 7]}, (3, 5, 7)),
        ("default_cfg", Config(), (3, 5, 7)),
        ("default_cfg", Config(None), None),
        ("default_cfg", {}, None),
        ("default_cfg", {"other": 1}, None),
        ("default_cfg", None, None),
        ("other", {"input_size": (3, 5, 7)}, None),
    ],
)
def test_the_size_in_the_configuration(attribute: str, config: Any, size: tuple[int, ...] | None) -> None:
    net = Basic()
    setattr(net, attribute, config)
    assert default_size(net) == size
    if size is not None:
        assert resolve(net).shape == size
    else:
        with pytest.raises(TraceError):
            resolve(net)


def test_the_size_of_a_timm_model() -> None:
    assert resolve(timm.create_model("efficientnet_b3")).shape == (3, 288, 288)


# -- refusals -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("given", "parts"),
    [
        (None, ["no input size given", "Basic", "example_inputs=(3, 224, 224)", "--input-size"]),
        ("3,224,224", ["a str", "a shape such as (3, 224, 224)"]),
        (224, ["a int"]),
        ({1, 2}, ["a set"]),
        ((3, 0, 224), ["(3, 0, 224)", "at least 1"]),
        ((3, -1, 224), ["(3, -1, 224)", "at least 1"]),
        ({1: torch.zeros(1)}, ["1", "names of arguments"]),
    ],
)
def test_refusals_say_what_to_give(given: Any, parts: list[str]) -> None:
    with pytest.raises(TraceError) as error:
        resolve(Basic(), given)
    text = str(error.value)
    assert "\n" not in text and text.endswith(".")
    assert [part for part in parts if part not in text] == []


def test_flags_are_no_shape() -> None:
    assert resolve(Basic(), (True, False)).args == (True, False)
    assert resolve(Basic(), (3, 8.0)).args == (3, 8.0)


# -- what the plan says of them -------------------------------------------------------------------------------------
def test_describe_is_data() -> None:
    class Odd:
        pass

    x = torch.zeros(2, 3, dtype=torch.bfloat16)
    inputs = Inputs((x, [x, {"a": x, "b": (1, None, 0.5, True, "s")}]), {"k": x, "odd": Odd(), "t": torch.float32})
    described = inputs.describe()
    assert from_dict(InputSpec, json.loads(json.dumps(to_dict(described)))) == described
    assert (described.kind, described.shape) == (None, ())
    *arguments, odd, dtype = described.arguments
    assert [(a.path, a.dtype, a.shape) for a in arguments if a.dtype] == [
        (path, "bfloat16", (2, 3)) for path in ("0", "1.0", "1.1.a", "k")
    ]
    assert [a.value for a in arguments if a.path.startswith("1.1.b.")] == [1, None, 0.5, True, "s"]
    assert (odd.path, dtype.path) == ("odd", "t") and "Odd" in odd.value
    assert str(described).startswith("bfloat16[2, 3], 1.0=bfloat16[2, 3], ") and '1.1.b.4="s", k=' in str(described)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_made_from_a_shape_says_so(kind: InputKind) -> None:
    described = from_shape((3, 8, 8), torch.float32, kind=kind).describe()
    assert (described.kind, described.shape) == (kind, (3, 8, 8))
    assert {a.shape for a in described.arguments} == {(3, 8, 8) if kind == "list" else (2, 3, 8, 8)}


def test_map_reaches_every_tensor_and_nothing_else() -> None:
    x = torch.zeros(1)
    inputs = Inputs((x, [x, {"a": x}], 1), {"k": (x, "s")}, (1,))
    mapped = inputs.map(lambda t: t + 1)
    assert mapped.args == (1, [1, {"a": 1}], 1) and mapped.kwargs == {"k": (1, "s")} and mapped.shape == (1,)
    assert inputs.args[1][0] is x


def test_noise_and_shapes() -> None:
    assert torch.equal(noise((2, 3), torch.float32, 5), noise((2, 3), torch.float32, 5))
    assert from_shape((), torch.float32).args[0].shape == (BATCH,)
