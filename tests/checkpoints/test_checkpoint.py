"""State dicts in files: their wrappers, and what lies beside the weights. Bad files have tests of their own."""

from __future__ import annotations

import argparse
import random
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from se_inject.checkpoints.checkpoint import read_state_dict
from se_inject.errors import LoadError
from tests.checkpoints.files import SAVERS, STATE, refusal, same


@pytest.mark.parametrize(
    ("value", "unwrapped", "ema", "ignored"),
    [
        ({"state_dict": STATE, "epoch": 3, "optimizer": {"state": {0: STATE}}}, ("state_dict",), False, ()),
        ({"model": STATE, "args": argparse.Namespace(lr=0.1, layers=[1], tags={"x"})}, ("model",), False, ()),
        ({"model_state_dict": STATE}, ("model_state_dict",), False, ()),
        ({"state_dict_ema": STATE}, ("state_dict_ema",), True, ()),
        ({"model_ema": STATE, "model": None}, ("model_ema",), True, ()),
        ({"params_ema": STATE}, ("params_ema",), True, ()),
        ({"module": STATE, "loss": [0.5]}, ("module",), False, ()),  # DeepSpeed
        ({"model": {"state_dict": STATE}}, ("model", "state_dict"), False, ()),
        ({**STATE, "epoch": 3}, (), False, ("epoch",)),
        (OrderedDict(STATE), (), False, ()),
    ],
)
def test_wrappers(tmp_path: Path, value: Any, unwrapped: tuple[str, ...], ema: bool, ignored: tuple[str, ...]) -> None:
    for kind in ("torch-zip", "torch-legacy"):
        SAVERS[kind](value, tmp_path / kind)
        file = read_state_dict(tmp_path / kind)
        assert same(file.tensors, STATE)
        assert (file.unwrapped, file.ema, file.ignored) == (unwrapped, ema, ignored)


def test_averaged_and_raw_weights_ask_for_a_choice(tmp_path: Path) -> None:
    path, other = tmp_path / "both.pt", {"a": torch.ones(1)}
    torch.save({"state_dict": STATE, "state_dict_ema": other}, path)
    assert "under 'state_dict' and 'state_dict_ema'; choose with --ema or --no-ema" in refusal(path)
    assert same(read_state_dict(path, ema=True).tensors, other)
    assert same(read_state_dict(path, ema=False).tensors, STATE)
    torch.save({"state_dict": STATE}, path)
    assert "--ema was asked" in refusal(path, ema=True)
    torch.save({"state_dict_ema": STATE}, path)
    assert "--no-ema was asked" in refusal(path, ema=False)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"net": STATE, 3: 4}, "Its keys are 'net', 3;"),
        ({}, "Its keys are none"),
        ({"state_dict": {}}, "Its keys are 'state_dict'"),
        ({"\x1b[31m": 1}, "Its keys are '\\x1b[31m'"),
        ([STATE], "holds a list, not a state dict"),
        (torch.zeros(2), "holds a Tensor, not a state dict"),
        ({"model": STATE, "state_dict": STATE}, "holds weights under 'state_dict' and 'model'"),
    ],
)
def test_files_without_one_state_dict(tmp_path: Path, value: Any, said: str) -> None:
    torch.save(value, tmp_path / "x.pt")
    assert said in refusal(tmp_path / "x.pt")


def test_a_dict_inside_itself_ends(tmp_path: Path) -> None:
    value: dict[str, Any] = {}
    value["model"] = value
    torch.save(value, tmp_path / "x.pt")
    assert "no weights found" in refusal(tmp_path / "x.pt")


def test_versions_of_modules_are_kept(tmp_path: Path) -> None:
    torch.save({"model": nn.BatchNorm2d(2).state_dict()}, tmp_path / "x.pt")
    assert read_state_dict(tmp_path / "x.pt").versions == {"": {"version": 2}}


def test_all_that_torch_save_writes_of_plain_data(tmp_path: Path) -> None:
    plain = {
        "dtypes": [torch.ones(2, dtype=d) for d in (torch.float16, torch.bfloat16, torch.float64, torch.bool)],
        "parameter": nn.Parameter(torch.ones(2)),
        "view": torch.arange(10)[2:8:2],
        "strided": torch.ones(2, 3).t(),
        "expanded": torch.ones(1).expand(3),
        "bytes": [b"ab", bytearray(b"cd"), {1, "a"}, torch.Size([2]), torch.device("cpu"), torch.strided, 1j, 2**70],
        "nothing": torch.ones(0, 3),
    }
    for kind in ("torch-zip", "torch-legacy"):
        SAVERS[kind]({"state_dict": STATE, "extra": plain}, tmp_path / kind)
        assert same(read_state_dict(tmp_path / kind).tensors, STATE), kind
    untyped = {"a": torch.ones(2, dtype=torch.uint16), "b": torch.ones(2).to(torch.float8_e4m3fn)}
    torch.save(untyped, tmp_path / "x.pt")  # the old format writes these, and torch cannot read them back
    assert read_state_dict(tmp_path / "x.pt").tensors["a"].equal(untyped["a"])


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs the memory map of Linux")
@pytest.mark.parametrize("kind", ["torch-zip", "safetensors"])
def test_tensors_lie_in_the_file(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "weights"
    SAVERS[kind]({"a": torch.zeros(1 << 20)}, path)
    address = read_state_dict_kept(path).data_ptr()
    lines = [line for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(str(path))]
    ranges = [tuple(int(n, 16) for n in line.split()[0].split("-")) for line in lines]
    assert any(start <= address < end for start, end in ranges)


KEPT: list[torch.Tensor] = []


def read_state_dict_kept(path: Path) -> torch.Tensor:
    KEPT.append(read_state_dict(path).tensors["a"])
    return KEPT[-1]


def test_damaged_files_are_read_or_refused(tmp_path: Path) -> None:
    value = {"state_dict": nn.BatchNorm2d(3).state_dict(), "other": [1, 2.5, None, {"a"}]}
    for i, kind in enumerate(SAVERS):
        SAVERS[kind](value if "torch" in kind else value["state_dict"], tmp_path / "whole")
        whole = (tmp_path / "whole").read_bytes()
        choose, refused = random.Random(i), 0
        for n in range(150):
            data, at = bytearray(whole), choose.randrange(len(whole))
            data[at : at + choose.randrange(3)] = choose.randbytes(choose.randrange(3))
            path = tmp_path / f"{kind}{n}"
            path.write_bytes(data)
            try:
                read_state_dict(path)
            except LoadError as error:
                refused += 1
                assert "\n" not in str(error) and "weights_only" not in str(error)
        assert refused > 50
