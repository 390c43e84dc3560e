"""S1, S2, S3: no pickle of a checkpoint runs code."""

from __future__ import annotations

import argparse
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from se_inject.files.checkpoint import blocked_globals, read_state_dict
from tests.checks.files import CONTAINERS, SAVERS, STATE, Call, named_call, refusal, same, write_zip

FUNCTIONS = [
    ("os", "system"),
    ("posix", "system"),
    ("nt", "system"),
    ("subprocess", "Popen"),
    ("subprocess", "getoutput"),
    ("builtins", "eval"),
    ("builtins", "exec"),
    ("builtins", "getattr"),
    ("__builtin__", "eval"),
    ("runpy", "run_path"),
    ("ctypes", "CDLL"),
    ("importlib", "import_module"),
    ("pickle", "loads"),
    ("torch", "load"),
    ("torch.hub", "load"),
    ("torch.fx.graph_module", "reduce_graph_module"),
    ("torch.fx._symbolic_trace", "symbolic_trace"),
    ("torch._inductor.codecache", "compile_file"),
    ("torch.utils._config_module", "load_config"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("argparse", "Namespace.__init__"),
    ("copyreg", "_reconstructor"),
]


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize(("module", "name"), FUNCTIONS)
def test_named_code_is_listed_and_never_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, container: str, module: str, name: str
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    path, canary = tmp_path / "x.pt", tmp_path / "canary"
    CONTAINERS[container](named_call(module, name, f"touch {canary}"), path)
    listed = f"{module.replace('__builtin__', 'builtins')}.{name}"
    assert f"loading it would run {listed}. " in refusal(path)
    assert blocked_globals(path) == (listed,)
    assert not canary.exists()


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("container", [*CONTAINERS, "bare"])
@pytest.mark.parametrize("place", ["top", "ema", "tensor"])
def test_payloads_of_every_protocol(tmp_path: Path, protocol: int, container: str, place: str) -> None:
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


def test_the_canary_sings_when_asked(tmp_path: Path) -> None:
    """The negative twin: these payloads do run where pickles are trusted."""
    path, canary = tmp_path / "x.pt", tmp_path / "canary"
    pickle.loads(pickle.dumps(Call(os.mkdir, str(canary))))
    canary.rmdir()
    torch.save({"state_dict": STATE, "extra": Call(os.mkdir, str(canary))}, path)
    assert blocked_globals(path) == (f"{os.mkdir.__module__}.mkdir",) and not canary.exists()
    file = read_state_dict(path, allow_pickle=True)
    assert canary.exists() and same(file.tensors, STATE)
    assert file.globals == (f"{os.mkdir.__module__}.mkdir",)


def test_names_of_globals_are_printable(tmp_path: Path) -> None:
    write_zip(b"\x80\x02cbad\x1b[31m\nname\n.", tmp_path / "x.pt")
    assert blocked_globals(tmp_path / "x.pt") == ("bad\\x1b[31m.name",)
    assert "would run bad\\x1b[31m.name. " in refusal(tmp_path / "x.pt")


def test_a_whole_model_needs_the_flag(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    torch.save({"model": model}, tmp_path / "x.pt")
    assert "torch.nn.modules.linear.Linear" in refusal(tmp_path / "x.pt")
    file = read_state_dict(tmp_path / "x.pt", allow_pickle=True)
    assert file.unwrapped == ("model", "Linear") and same(file.tensors, model.state_dict())


@pytest.mark.parametrize("kind", ["torch-zip", "torch-legacy"])
def test_weights_only_is_passed_and_tried_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
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
def test_safe_globals_are_as_before(tmp_path: Path, known: list[Any]) -> None:
    torch.save({"state_dict": STATE, "args": argparse.Namespace(a=1)}, tmp_path / "x.pt")
    with torch.serialization.safe_globals(known):
        before = set(torch.serialization.get_safe_globals())
        read_state_dict(tmp_path / "x.pt")
        assert set(torch.serialization.get_safe_globals()) == before
    with torch.serialization.safe_globals([Call]):  # what others allowed is not allowed here
        torch.save({"state_dict": STATE, "x": Path("a")}, tmp_path / "x.pt")
        assert "pathlib" in refusal(tmp_path / "x.pt")
