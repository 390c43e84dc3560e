"""S1, S2, S3: no pickle of a checkpoint runs code."""

from __future__ import annotations

import argparse
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from se_inject.files.checkpoint import blocked_globals, read_state_dict
from tests.checks.files import SAVERS, STATE, TORCH_FILES, Call, refusal, refused, same, write_zip
from tests.checks.payloads import CONTAINERS, LIVE, NAMED, code, pickled


@pytest.mark.parametrize("path", [*LIVE, *NAMED])
def test_s1_named_code_is_listed_and_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    canary, script = tmp_path / "canary", tmp_path / "script.py"
    script.write_text(code(str(canary)))
    body = pickled(path, LIVE.get(path, lambda *paths: paths)(str(canary), str(script)))
    spelled = {"__builtin__": "builtins", "cPickle": "pickle", "commands": "subprocess"}
    module, _, name = path.rpartition(".")
    listed = f"{spelled.get(module, module)}.{name}"
    for container, (write, lists) in CONTAINERS.items():
        given = tmp_path / container
        write(body, given)
        said = refused(given)
        if lists:
            assert f"loading it would run {listed}. " in said, container
            assert blocked_globals(given) == (listed,), container
        assert not os.path.lexists(canary), container


def test_s1_there_are_enough_payloads() -> None:
    assert len({*LIVE, *NAMED}) >= 60 and len(LIVE) >= 40


RUN = """
import os, pickle, sys, time, warnings
warnings.simplefilter("ignore")
os.chdir(sys.argv[1])
for name in sorted(os.listdir(".")):
    if name.endswith(".pkl"):
        try:
            with open(name, "rb") as file:
                pickle.load(file)
        except Exception:
            pass  # it may fail once the canary is there
"""


@pytest.mark.slow
def test_s1_the_payloads_run_where_pickles_are_trusted(tmp_path: Path) -> None:
    """The negative twin: every one of these makes its canary."""
    for number, (path, arguments) in enumerate(LIVE.items()):
        canary, script = str(tmp_path / f"canary{number}"), tmp_path / f"script{number}.py"
        script.write_text(code(canary))
        (tmp_path / f"{number}.pkl").write_bytes(pickled(path, arguments(canary, str(script))))
    subprocess.run([sys.executable, "-c", RUN, str(tmp_path)], check=True, stdout=subprocess.DEVNULL)

    def dead() -> list[str]:
        return [path for number, path in enumerate(LIVE) if not os.path.lexists(tmp_path / f"canary{number}")]

    end = time.monotonic() + 10
    while dead() and time.monotonic() < end:  # some start a process and do not wait for it
        time.sleep(0.05)
    assert dead() == []


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("container", [*TORCH_FILES, "bare"])
@pytest.mark.parametrize("place", ["top", "ema", "tensor"])
def test_s1_payloads_of_every_protocol(tmp_path: Path, protocol: int, container: str, place: str) -> None:
    path, canary = tmp_path / "x.pt", tmp_path / "canary"
    call = Call(os.mkdir, str(canary))
    value = {"top": call, "ema": {"state_dict": {}, "state_dict_ema": {"a": call}}, "tensor": [STATE["a"], call]}[place]
    if container == "bare":
        path.write_bytes(pickle.dumps(call, protocol))
        text = refusal(path)
        assert "bare Python pickle" in text or "no known kind" in text  # protocols 0 and 1 have no mark
        assert not canary.exists()
        return
    torch.save(value, path, pickle_protocol=protocol, _use_new_zipfile_serialization=container == "zip")
    if protocol < 2 and container == "legacy":
        assert "no known kind" in refusal(path)
    elif protocol > 2 and container == "legacy":
        assert "bare Python pickle" in refusal(path)
    else:
        assert f"loading it would run {os.mkdir.__module__}.mkdir. " in refusal(path)
    assert not canary.exists()


def test_s3_the_canary_sings_when_asked(tmp_path: Path) -> None:
    """The negative twin: these payloads do run where pickles are trusted."""
    path, canary = tmp_path / "x.pt", tmp_path / "canary"
    pickle.loads(pickle.dumps(Call(os.mkdir, str(canary))))
    canary.rmdir()
    torch.save({"state_dict": STATE, "extra": Call(os.mkdir, str(canary))}, path)
    assert blocked_globals(path) == (f"{os.mkdir.__module__}.mkdir",) and not canary.exists()
    file = read_state_dict(path, allow_pickle=True)
    assert canary.exists() and same(file.tensors, STATE)
    assert file.globals == (f"{os.mkdir.__module__}.mkdir",)


def test_s1_names_of_globals_are_printable(tmp_path: Path) -> None:
    write_zip(b"\x80\x02cbad\x1b[31m\nname\n.", tmp_path / "x.pt")
    assert blocked_globals(tmp_path / "x.pt") == ("bad\\x1b[31m.name",)
    assert "would run bad\\x1b[31m.name. " in refusal(tmp_path / "x.pt")


def test_s3_a_whole_model_needs_the_flag(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    torch.save({"model": model}, tmp_path / "x.pt")
    assert "torch.nn.modules.linear.Linear" in refusal(tmp_path / "x.pt")
    file = read_state_dict(tmp_path / "x.pt", allow_pickle=True)
    assert file.unwrapped == ("model", "Linear") and same(file.tensors, model.state_dict())


@pytest.mark.parametrize("kind", ["torch-zip", "torch-legacy"])
def test_s2_weights_only_is_passed_and_tried_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    calls = []

    def load(*args: Any, **kwargs: Any) -> Any:
        calls.append(kwargs["weights_only"])
        raise pickle.UnpicklingError("you can turn weights_only off")

    SAVERS[kind](STATE, tmp_path / "x.pt")
    monkeypatch.setattr(torch, "load", load)
    for allow_pickle in (False, True):  # a plain file is read safely, flag or not
        assert "torch could not read" in refusal(tmp_path / "x.pt", allow_pickle=allow_pickle)
    assert calls == [True, True]


@pytest.mark.parametrize("known", [[], [argparse.Namespace]])
def test_s2_safe_globals_are_as_before(tmp_path: Path, known: list[Any]) -> None:
    torch.save({"state_dict": STATE, "args": argparse.Namespace(a=1)}, tmp_path / "x.pt")
    with torch.serialization.safe_globals(known):
        before = set(torch.serialization.get_safe_globals())
        read_state_dict(tmp_path / "x.pt")
        assert set(torch.serialization.get_safe_globals()) == before
    with torch.serialization.safe_globals([Call]):  # what others allowed is not allowed here
        torch.save({"state_dict": STATE, "x": Path("a")}, tmp_path / "x.pt")
        assert "pathlib" in refusal(tmp_path / "x.pt")
