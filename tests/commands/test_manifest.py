"""Manifests: three ways to write the same entries, globs, names, and what is said of mistakes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from se_inject.commands.batch.columns import COLUMNS
from se_inject.commands.batch.manifest import Entry, read_manifest
from se_inject.commands.request import InputRequest, ModelRequest
from se_inject.errors import RulesError
from se_inject.models.request import WeightsRequest
from se_inject.rules.schema import Rules

Write = Callable[..., tuple[Entry, ...]]


@pytest.fixture
def entries(tmp_path: Path) -> Write:
    """The entries of a manifest of this text."""

    def read(text: str, name: str = "m.yaml", **options: object) -> tuple[Entry, ...]:
        (tmp_path / name).write_text(text)
        return read_manifest(tmp_path / name, **options)  # type: ignore[arg-type]

    return read


YAML = """
- model: timm:resnet18
  model_args: {num_classes: 10, act: "a b"}
  checkpoint: best.pth
  rules: {placement: standard, ratio: 8}
  formats: [safetensors, timm]
  allow_missing: ["fc.*", "head.*"]
  input_size: [3, 64, 64]
  ema: false
  seed: 3
- {model: "torchvision:resnet18", random_init: true}
"""
JSONL = "\n\n".join(
    json.dumps(row)
    for row in (
        {
            "model": "timm:resnet18", "model_args": {"num_classes": 10, "act": "a b"}, "checkpoint": "best.pth",
            "rules": {"placement": "standard", "ratio": 8}, "formats": "safetensors,timm",
            "allow_missing": ["fc.*", "head.*"], "input_size": "3,64,64", "ema": False, "seed": 3,
        },
        {"model": "torchvision:resnet18", "random_init": True},
    )
)  # fmt: skip
CSV = (
    "\ufeffmodel,model_args,checkpoint,rules,formats,allow_missing,input_size,ema,seed,random_init\n"
    'timm:resnet18,num_classes=10 "act=\'a b\'",best.pth,"{placement: standard, ratio: 8}","safetensors,timm",'
    '"fc.*,head.*","3,64,64",false,3,\n'
    "torchvision:resnet18,,,,,,,,,true\n"
)


def test_three_ways_to_write_the_same(entries: Write, tmp_path: Path) -> None:
    first, second = entries(YAML)
    asked = ModelRequest.of(
        model="timm:resnet18", model_args={"num_classes": 10, "act": "a b"}, checkpoint=tmp_path / "best.pth",
        rules=Rules(placement=("standard",), ratio=8), allow_missing=("fc.*", "head.*"), ema=False,
        input_size=(3, 64, 64), seed=3,
    )  # fmt: skip
    assert first == Entry(2, "best", asked, ("safetensors", "timm"))
    asked = ModelRequest.of(model="torchvision:resnet18", rules=Rules(), random_init=True)
    assert second == Entry(11, "resnet18", asked)
    for text, name, lines in ((JSONL, "m.jsonl", (1, 3)), (CSV.replace("\"act='a b'\"", "act='a b'"), "m.csv", (2, 3))):
        assert [{**vars(e), "line": 0} for e in entries(text, name)] == [
            {**vars(e), "line": 0} for e in (first, second)
        ]
        assert tuple(e.line for e in entries(text, name)) == lines


def test_globs_stand_for_files_and_folders_are_folders(entries: Write, tmp_path: Path) -> None:
    for name in ("a/x.pth", "a/y.pth", "b/x.pth", "a/notes.txt", "odd[1].pth"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    row = "- {{model: timm:resnet18, checkpoint: '{}', name: '{}'}}"
    found = entries(row.format("a/*.pth", ""))
    assert [(e.name, e.checkpoint) for e in found] == [("x", tmp_path / "a/x.pth"), ("y", tmp_path / "a/y.pth")]
    assert [e.name for e in entries(row.format("**/?.pth", "{folder}-{stem}"))] == ["a-x", "a-y", "b-x"]
    assert [e.checkpoint for e in entries(row.format("odd[1].pth", ""))] == [tmp_path / "odd[1].pth"]
    assert [(e.name, e.checkpoint) for e in entries(row.format("a", ""))] == [("a", tmp_path / "a")]
    assert [e.name for e in entries(row.format("../../etc/x y.pth", "../{model}:{stem}"))] == ["resnet18-x-y"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- {model: timm:resnet18, rulse: auto}", "line 1: unknown column 'rulse'. Did you mean 'rules'?"),
        ("- {random_init: true}", "line 1: no model"),
        ("\n- {model: timm:resnet18}", "line 2: the weights come from one of"),
        ("- {model: timm:resnet18, random_init: true, pretrained: true}", "given: pretrained and random_init"),
        ("- {model: timm:resnet18, checkpoint: '*.pth'}", "line 1: checkpoint: '*.pth' matches no file"),
        ("- {model: timm:resnet18, random_init: true, rules: standrad}", "Did you mean 'standard'"),
        ("- {model: timm:resnet18, random_init: true, rules: {ratoi: 2}}", "Did you mean 'ratio'"),
        ("- {model: timm:resnet18, random_init: true, rules: {block: 'os:path'}}", "what a file says is not imported"),
        ("- {model: timm:resnet18, random_init: true, formats: onxx}", "Did you mean 'onnx'"),
        ("- {model: timm:resnet18, random_init: 1}", "random_init: takes true or false, found 1"),
        ("- {model: timm:resnet18, random_init: true, seed: -1}", "seed: takes a whole number from 0, found -1"),
        ("- {model: timm:resnet18, random_init: true, name: '..'}", "cannot be that of an output folder"),
        ("- {model: timm:resnet18, random_init: true, name: summary.csv}", "cannot be that of an output folder"),
        ("- {model: timm:resnet18, random_init: true, allow_pickle: true}", "unknown column 'allow_pickle'"),
        ("- {model: 'os:system', random_init: true}", "may not run; allow it with --factory os:system"),
        (
            "- {model: timm:vgg11, random_init: true, name: A}\n- {model: timm:vgg11, random_init: true, name: a}",
            "line 2: writes 'a'",
        ),
        ("- {model: resnet18, random_init: true}", "Did you mean 'timm:resnet18'"),
        ("- {model: timm:resnet81, random_init: true}", "no model is called 'timm:resnet81'"),
        ("- {model: timm:resnet18, random_init: true, input_size: large}", "input_size: 'large': expected"),
        ("- {model: timm:resnet18, random_init: true, input_kind: [batch]}", "input_kind: takes a text"),
        (f"- {{model: timm:resnet18, random_init: true, name: {'n' * 300}}}", "cannot be that of an output folder"),
        ("- timm:resnet18", "line 1: expected a mapping"),
        ("model: timm:resnet18", "expected a list of entries"),
        ("- !!python/object/apply:os.system [true]", "not the YAML of a manifest"),
        ("", "no entries"),
    ],
)  # fmt: skip
def test_mistakes_are_named_with_their_line(entries: Write, text: str, said: str) -> None:
    with pytest.raises(RulesError) as error:
        entries(text)
    assert said in str(error.value) and "?." not in str(error.value)


def test_all_mistakes_are_told_at_once(entries: Write) -> None:
    with pytest.raises(RulesError, match=r"line 1: .*line 2: .*line 5: .* And 2 more\."):
        entries("- {model: x}\n" * 7)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("m.jsonl", '{"model": "a"', "line 1 is not JSON"),
        ("m.jsonl", '{"model": "a", "model": "b"}', "a key stands twice"),
        ("m.jsonl", '{"seed": NaN}', "NaN is no number"),
        (
            "m.csv",
            "model,random_init,rules\ntimm:resnet18,true,{ratio: [}\n",
            "line 2: rules: '{ratio: .}' is no",
        ),
        ("m.csv", "model,seed\na\n", "line 2 has not as many cells"),
        ("m.csv", "model,seed\na,1,2\n", "line 2 has not as many cells"),
        ("m.csv", "model,model,random_init\na,b,true\n", "names the column 'model' twice"),
        ("m.txt", "", "a manifest is one of .yaml"),
    ],
)
def test_broken_files_are_refused(entries: Write, name: str, text: str, said: str) -> None:
    with pytest.raises(RulesError, match=said):
        entries(text, name)


def test_factories_are_allowed_by_name_or_module(entries: Write) -> None:
    text = "- {model: 'mine:make', random_init: true}"
    assert entries(text, factories=["mine:make"]) == entries(text, factories=["mine"])
    with pytest.raises(RulesError, match="--factory mine:make"):
        entries(text, factories=["mine:other", "min"])


def test_rules_from_a_file_beside_the_manifest(entries: Write, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("ratio: 4")
    (entry,) = entries("- {model: timm:resnet18, random_init: true, rules: r.yaml}")
    assert entry.request.rules.rules == Rules(ratio=4)


def test_what_a_request_says_of_weights_and_inputs_is_a_column() -> None:
    fields = {*WeightsRequest.__dataclass_fields__, *InputRequest.__dataclass_fields__} - {"allow_pickle"}
    assert set(COLUMNS) == fields | {"rules", "seed", "formats", "name"}
