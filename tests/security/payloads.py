"""Pickles that would run code, and the containers they hide in. What they run only ever makes a canary."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.checkpoints.files import STATE, legacy, save_shards, write_legacy, write_zip

Arguments = Callable[[str, str], tuple[Any, ...]]  # of the canary's path, and of a script that makes it


def code(canary: str) -> str:
    return f"open({canary!r}, 'w').close()"


def shell(canary: str) -> str:
    return f"touch '{canary}'"


def argv(canary: str) -> list[str]:
    return ["/bin/sh", "-c", shell(canary)]


def fx() -> dict[str, Any]:
    return {"_code": "def forward(self): pass", "_graphmodule_cls_name": "Net", "_tracer_cls": None, "training": True}


# These run where pickles are trusted: the twin of the check runs every one of them.
LIVE: dict[str, Arguments] = {
    "os.system": lambda c, s: (shell(c),),
    "posix.system": lambda c, s: (shell(c),),
    "os.popen": lambda c, s: (shell(c),),
    "os.mkdir": lambda c, s: (c,),
    "posix.mkdir": lambda c, s: (c,),
    "os.makedirs": lambda c, s: (c,),
    "os.mkfifo": lambda c, s: (c,),
    "os.symlink": lambda c, s: (s, c),
    "os.link": lambda c, s: (s, c),
    "os.open": lambda c, s: (c, 64),  # O_CREAT
    "os.spawnv": lambda c, s: (0, "/bin/sh", argv(c)),
    "os.posix_spawn": lambda c, s: ("/bin/sh", argv(c), {}),
    "subprocess.call": lambda c, s: (argv(c),),
    "subprocess.run": lambda c, s: (argv(c),),
    "subprocess.Popen": lambda c, s: (argv(c),),
    "subprocess.check_call": lambda c, s: (argv(c),),
    "subprocess.check_output": lambda c, s: (argv(c),),
    "subprocess.getoutput": lambda c, s: (shell(c),),
    "subprocess.getstatusoutput": lambda c, s: (shell(c),),
    "multiprocessing.util.spawnv_passfds": lambda c, s: (b"/bin/sh", [arg.encode() for arg in argv(c)], ()),
    "builtins.eval": lambda c, s: (code(c),),
    "builtins.exec": lambda c, s: (code(c),),
    "builtins.open": lambda c, s: (c, "w"),
    "__builtin__.eval": lambda c, s: (code(c),),
    "__builtin__.open": lambda c, s: (c, "w"),
    "io.open": lambda c, s: (c, "w"),
    "io.FileIO": lambda c, s: (c, "w"),
    "_io.FileIO": lambda c, s: (c, "w"),
    "codecs.open": lambda c, s: (c, "w"),
    "gzip.open": lambda c, s: (c, "wb"),
    "lzma.open": lambda c, s: (c, "wb"),
    "tarfile.open": lambda c, s: (c, "w"),
    "zipfile.ZipFile": lambda c, s: (c, "w"),
    "logging.FileHandler": lambda c, s: (c,),
    "shutil.copy": lambda c, s: (s, c),
    "shutil.copyfile": lambda c, s: (s, c),
    "runpy.run_path": lambda c, s: (s,),
    "runpy._run_code": lambda c, s: (code(c), {}),
    "timeit.timeit": lambda c, s: ("pass", code(c)),
    "cProfile.run": lambda c, s: (code(c),),
    "pickle.loads": lambda c, s: (pickled("os.mkdir", (c,)),),
    "_pickle.loads": lambda c, s: (pickled("os.mkdir", (c,)),),
    "cPickle.loads": lambda c, s: (pickled("os.mkdir", (c,)),),
    "numpy.testing.runstring": lambda c, s: (code(c), {}),
    "numpy.savetxt": lambda c, s: (c, [1]),
    "torch.save": lambda c, s: ({}, c),
    "torch.from_file": lambda c, s: (c, True, 1),
    "torch.storage._load_from_bytes": lambda c, s: (legacy(pickled("os.mkdir", (c,))),),
    "torch.fx.graph_module.reduce_graph_module": lambda c, s: (fx(), code(c) + "\n"),
    "torch.fx.graph_module._exec_with_source": lambda c, s: (code(c), {}),
    "torch.hub._import_module": lambda c, s: ("canary_module", s),
    "torch.utils.collect_env.run": lambda c, s: (shell(c),),
}
# Named, and not run anywhere: they need another system, a terminal, or more than one call.
NAMED = (
    "nt.system", "commands.getoutput", "ctypes.CDLL", "ctypes.PyDLL", "pty.spawn", "_posixsubprocess.fork_exec",
    "marshal.loads", "types.FunctionType", "types.CodeType", "builtins.getattr", "builtins.__import__",
    "importlib.import_module", "operator.attrgetter", "operator.methodcaller", "functools.partial", "functools.reduce",
    "webbrowser.open", "copyreg._reconstructor", "numpy.core.multiarray._reconstruct", "torch.load", "torch.hub.load",
    "torch.jit.load", "torch.ops.load_library", "torch.classes.load_library", "torch._inductor.codecache.compile_file",
    "torch.fx._symbolic_trace.symbolic_trace", "torch.utils._config_module.load_config", "argparse.Namespace.__init__",
    "torch.nn.modules.linear.Linear", "pathlib.Path.mkdir", "sys.setattr", "se_inject.models.zoos.build_model",
)  # fmt: skip


def pickled(path: str, args: tuple[Any, ...]) -> bytes:
    """A protocol 2 pickle that calls ``path`` with ``args``; nothing is imported to write it."""
    module, _, name = path.rpartition(".")
    return b"\x80\x02" + f"c{module}\n{name}\n".encode() + pickle.dumps(args, 2)[2:-1] + b"R."


def under(key: str, body: bytes) -> bytes:
    """``{key: {"a": ...}}`` around the body of a pickle."""
    return b"\x80\x02}" + _text(key) + b"}" + _text("a") + body[2:-1] + b"ss."


def _text(value: str) -> bytes:
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


def _folder(body: bytes, path: Path) -> None:
    path.mkdir()
    write_zip(body, path / "pytorch_model.bin")


def _shard(body: bytes, path: Path) -> None:
    write_zip(body, save_shards(STATE, path).parent / "model-00001-of-00002.safetensors")


def _beside_weights(body: bytes, path: Path) -> None:
    """A whole state dict, and the call in an entry beside it."""
    torch.save({"state_dict": STATE}, path)
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            entry = data[:-1] + _text("extra") + body[2:-1] + b"s."
            archive.writestr(name, entry if name.endswith("data.pkl") else data)


def _safetensors(body: bytes, path: Path) -> None:
    """Weights without a pickle, and a pickle behind a name that a library would look for first."""
    path.mkdir()
    save_file(STATE, path / "weights.safetensors")
    write_zip(body, path / "model.safetensors")


# Container -> what writes a pickle into it, and whether the globals are then listed (else the kind is named).
CONTAINERS: dict[str, tuple[Callable[[bytes, Path], object], bool]] = {
    "zip": (write_zip, True),
    "legacy": (write_legacy, True),
    "ema": (lambda body, path: write_zip(under("state_dict_ema", body), path), True),
    "beside weights": (_beside_weights, True),
    "folder": (_folder, True),
    "bare": (lambda body, path: path.write_bytes(body), False),
    "shard": (_shard, False),
    "safetensors name": (_safetensors, False),
}
