"""No pickle of a checkpoint runs code."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from se_inject.checkpoints.checkpoint import blocked_globals
from tests.checkpoints.files import STATE, TORCH_FILES, Call, refusal, refused, write_zip
from tests.security.payloads import CONTAINERS, LIVE, NAMED, code, pickled


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
import os, pickle, sys, warnings
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
    # Some start a process and do not wait for it: output ends when the last that holds its pipe is gone.
    command = [sys.executable, "-c", RUN, str(tmp_path)]
    subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert [path for number, path in enumerate(LIVE) if not os.path.lexists(tmp_path / f"canary{number}")] == []


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


def test_s1_names_of_globals_are_printable(tmp_path: Path) -> None:
    write_zip(b"\x80\x02cbad\x1b[31m\nname\n.", tmp_path / "x.pt")
    assert blocked_globals(tmp_path / "x.pt") == ("bad\\x1b[31m.name",)
    assert "would run bad\\x1b[31m.name. " in refusal(tmp_path / "x.pt")
