"""Speed and memory as ratios, each of two things measured in the same run: machines differ, ratios less so.

    make bench                    every row
    python -m benchmarks.bench splice memory

A row is the minimum of a few interleaved repetitions of either side. The goal is an upper bound for the ratio; the exit
code is 1 when a row misses it.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import timm
import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file
from torch import nn

import se_inject
from se_inject.checkpoints.checkpoint import read_state_dict
from se_inject.commands.sweep.grid import Point
from se_inject.commands.sweep.rows import rows_of
from se_inject.inputs import resolve
from se_inject.parallel import machine
from se_inject.rules import schema

NETS = ("resnet50", "resnet152")
SWEPT = ("resnet50", "mobilenetv2_100")
MAPPED = "resnet152"
CHAIN = (100, 2000)  # blocks
GROWN = 280  # blocks of each of four stages: ten thousand modules
REPEAT = 3
CHECKPOINT = 1800 << 20  # bytes
LAYER = 2048  # in and out: 16 MiB of weights
MANY = 32  # models of a batch
LIMIT = 2 * 10**9  # bytes for a batch that four processes would exceed

NET = """
from torch import nn

class Net(nn.Sequential):
    def __init__(self, layers, width):
        super().__init__(*[nn.Linear(width, width, bias=False) for _ in range(layers)])
"""
READ = """
import os, sys
sys.path.insert(0, sys.argv[1])
from se_inject.models.loading import load_model
from se_inject.models.request import WeightsRequest

def status(file, name):
    return next(int(line.split()[1]) * 1024 for line in open(f"/proc/self/{file}") if line.startswith(name))

def load(path, layers, width):
    args = {"layers": layers, "width": width}
    model = load_model(WeightsRequest("checkpoint_net:Net", args, checkpoint=path), allow_factory=True).model
    return model, sum(p.sum() for p in model.parameters())  # every page is read

layers, width = map(int, sys.argv[4:])
kept = load(sys.argv[2], 1, 8)  # imports and caches
anonymous, resident = status("smaps_rollup", "Anonymous:"), status("status", "VmRSS:")
kept = load(sys.argv[3], layers, width)
print(status("smaps_rollup", "Anonymous:") - anonymous, status("status", "VmHWM:") - resident)
"""

BARE = """
import timm
from safetensors.torch import save_file
model = timm.create_model({name!r})
save_file(model.state_dict(), {path!r})
"""
Row = tuple[str, str, float, float | None]  # what, against what, ratio, goal


def fastest(*sides: Callable[[], object]) -> list[float]:
    """Seconds of each side: the minimum over interleaved repetitions."""
    best = [float("inf")] * len(sides)
    for _ in range(REPEAT):
        for i, side in enumerate(sides):
            start = time.perf_counter()
            side()
            best[i] = min(best[i], time.perf_counter() - start)
    return best


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn1(self.conv1(x)).relu()
        y = self.bn2(self.conv2(y))
        return (x + y).relu()


def inject(model: nn.Module, size: tuple[int, int, int]) -> nn.Module:
    plan = se_inject.plan(model, size, "standard")
    return se_inject.apply(model, plan, inplace=True)


def splice() -> Iterator[Row]:
    """Planning and splicing in place, in a process that has its imports done."""
    for name in NETS:
        models = iter([timm.create_model(name) for _ in range(REPEAT)])
        ours, theirs = fastest(
            lambda models=models: inject(next(models), (3, 224, 224)),
            lambda name=name: timm.create_model(name),
        )
        yield f"plan + splice, {name}", "timm.create_model", ours / theirs, 1.0


def chain() -> Iterator[Row]:
    """Cost per block of a chain of residual blocks."""
    few, many = CHAIN
    small = iter([nn.Sequential(*[Block(8) for _ in range(few)]) for _ in range(REPEAT)])
    large = iter([nn.Sequential(*[Block(8) for _ in range(many)]) for _ in range(REPEAT)])
    a, b = fastest(lambda: inject(next(small), (8, 16, 16)), lambda: inject(next(large), (8, 16, 16)))
    yield f"plan + splice per block, chain of {many:,}", f"chain of {few}", (b / many) / (a / few), 1.5


def growth() -> Iterator[Row]:
    """Cost per module from resnet18 to the same network of thousands of modules, without weights."""

    def net(blocks: int) -> nn.Module:
        with torch.device("meta"):
            return timm.models.resnet.ResNet(timm.models.resnet.BasicBlock, (blocks,) * 4).eval()

    nets = {blocks: [net(blocks) for _ in range(REPEAT)] for blocks in (2, GROWN)}
    small, large = (sum(1 for _ in made[0].modules()) for made in nets.values())
    few, many = map(iter, nets.values())
    a, b = fastest(lambda: inject(next(few), (3, 64, 64)), lambda: inject(next(many), (3, 64, 64)))
    yield f"plan + splice per module, ResNet of {large:,} modules", f"resnet18, {small}", (b / large) / (a / small), 1.5


def command() -> Iterator[Row]:
    """The whole command, against a process that imports timm, builds the model and saves it with safetensors."""
    with tempfile.TemporaryDirectory() as folder:
        for name in NETS:
            bare = BARE.format(name=name, path=str(Path(folder) / "bare.safetensors"))
            convert = [sys.executable, "-m", "se_inject", "convert", f"timm:{name}", "--random-init", "--force"]
            convert += ["--quiet", "--placement", "standard", "-o", str(Path(folder) / "out")]
            times = fastest(
                lambda convert=convert: subprocess.run([*convert, "--no-verify"], check=True),
                lambda convert=convert: subprocess.run(convert, check=True),
                lambda bare=bare: subprocess.run([sys.executable, "-c", bare], check=True),
            )
            yield f"convert --no-verify, {name}", "import, build, save", times[0] / times[2], 1.3
            yield f"convert, {name}", "import, build, save", times[1] / times[2], 2.0


def memory() -> Iterator[Row]:
    """Anonymous memory that surgery in place adds to a model whose weights are mapped from a file."""
    code = """
import sys, timm, torch, se_inject
from se_inject.output.tensors import read_tensors
def anonymous():
    for line in open("/proc/self/smaps_rollup"):
        if line.startswith("Anonymous:"):
            return int(line.split()[1]) * 1024
with torch.device("meta"):
    model = timm.create_model(sys.argv[2])
model.load_state_dict(read_tensors(sys.argv[1]), assign=True)
with torch.device("meta"):
    other = timm.create_model("resnet18")
se_inject.apply(other, se_inject.plan(other, (3, 64, 64), "standard"), inplace=True)  # imports and caches
before = anonymous()
se_inject.apply(model, se_inject.plan(model, (3, 64, 64), {"placement": "standard", "block": {"rd_ratio": 1 / 256}}), inplace=True)
print(anonymous() - before)
"""  # noqa: E501
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        from se_inject.output.tensors import tensors_writer

        tensors_writer(timm.create_model(MAPPED).state_dict())(path)
        command = [sys.executable, "-c", code, str(path), MAPPED]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        yield (
            f"anonymous memory of surgery in place, {MAPPED}",
            "size of its file",
            int(done.stdout) / path.stat().st_size,
            0.1,
        )


def sweep() -> Iterator[Row]:
    """A grid of rules over several architectures in one process, against a plan and a cost for each of its points."""
    asked = [{"placement": place, "ratio": ratio} for place in ("standard", "inner") for ratio in (8, 16, 32)]
    points = [Point("", schema.read(rules)) for rules in asked]
    models = [timm.create_model(name).eval() for name in SWEPT]

    def singly(model: nn.Module) -> None:
        for rules in asked:
            with contextlib.suppress(se_inject.RulesError):  # rules that take nothing are a row of a sweep
                se_inject.plan(model, (3, 224, 224), rules)
            se_inject.cost(model, (3, 224, 224))

    ours, theirs = fastest(
        lambda: [rows_of("", model, resolve(model, (3, 224, 224)), points) for model in models],
        lambda: [singly(model) for model in models],
    )
    yield f"sweep of {len(SWEPT)} architectures, {len(points)} points", "plan and cost of each", ours / theirs, 0.4


def save_shards(state: dict[str, torch.Tensor], path: Path, count: int = 4) -> None:
    """A folder of shards with their index."""
    path.mkdir()
    names = [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]
    placed = {key: names[i % count] for i, key in enumerate(state)}
    for name in names:
        save_file({key: state[key] for key in state if placed[key] == name}, path / name)
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))


SAVERS: dict[str, Callable[[dict[str, torch.Tensor], Path], object]] = {
    "zip": torch.save,
    "safetensors": save_file,
    "4 shards": save_shards,
    "old format": lambda state, path: torch.save(state, path, _use_new_zipfile_serialization=False),
}


def read() -> Iterator[Row]:
    """What reading a checkpoint into a model costs: memory of its own, and resident at most, against the file."""
    layers = CHECKPOINT // (LAYER * LAYER * 4)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "checkpoint_net.py").write_text(NET)
        for kind, save in SAVERS.items():
            save({"0.weight": torch.ones(8, 8)}, folder / "small")
            save({f"{i}.weight": torch.full((LAYER, LAYER), float(i)) for i in range(layers)}, folder / "large")
            command = [sys.executable, "-c", READ, temporary, str(folder / "small"), str(folder / "large")]
            done = subprocess.run(
                [*command, str(layers), str(LAYER)], check=True, capture_output=True, text=True, cwd=temporary
            )
            own, peak = (int(n) / (layers * LAYER * LAYER * 4) for n in done.stdout.split())
            yield f"memory of its own, reading {kind}", "size of the file", own, 1.1 if kind == "old format" else 0.1
            yield f"resident memory, reading {kind}", "size of the file", peak, 1.1
            for path in (folder / "small", folder / "large"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def refuse() -> Iterator[Row]:
    """The slowest to be refused of small files that are made to cost much."""
    from tests.security.costly import COSTLY

    def refused(path: Path) -> None:
        with contextlib.suppress(se_inject.LoadError):
            read_state_dict(path)
            raise AssertionError(f"{path.name} was read")

    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in COSTLY]
        for path in paths:
            path.write_bytes(COSTLY[path.name]())
        *ours, theirs = fastest(
            *[lambda path=path: refused(path) for path in paths],
            lambda: subprocess.run([sys.executable, "-c", "import torch"], check=True),
        )
    slowest = max(ours)
    yield f"refusing a small file, {paths[ours.index(slowest)].name}", "importing torch", slowest / theirs, 2.0


def batch() -> Iterator[Row]:
    """One command for many checkpoints, against as many commands; and what all its processes take, against a limit."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for i in range(MANY):
            torch.save(timm.create_model("resnet18").state_dict(), folder / f"{i}.pth")
        (folder / "m.yaml").write_text("- {model: timm:resnet18, checkpoint: '*.pth'}")
        tool = [sys.executable, "-m", "se_inject"]
        start = time.perf_counter()
        subprocess.run([*tool, "batch", str(folder / "m.yaml"), "-o", str(folder / "a"), "--quiet"], check=True)
        ours = time.perf_counter() - start
        start = time.perf_counter()
        for i in range(MANY):
            one = ["convert", "timm:resnet18", "--checkpoint", str(folder / f"{i}.pth"), "-o", str(folder / f"b{i}")]
            subprocess.run([*tool, *one, "--quiet"], check=True)
        yield (
            f"batch of {MANY} on {machine.cores()} cores",
            "single commands",
            ours / (time.perf_counter() - start),
            0.35,
        )
        limited = ["batch", str(folder / "m.yaml"), "-o", str(folder / "c"), "-j4", f"--memory={LIMIT}", "--quiet"]
        running = subprocess.Popen([*tool, *limited], start_new_session=True)
        most = 0
        while running.poll() is None:
            most = max(most, proportional(running.pid))
            time.sleep(0.05)
        assert running.returncode == 0
        yield "memory of all processes of a batch", f"a limit of {LIMIT / 1e9:g} GB", most / LIMIT, 1.0


def proportional(session: int) -> int:
    """Bytes in memory of all processes of a session; a page that several share is divided among them."""
    found = 0
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended
            if int((process / "stat").read_text().rpartition(")")[2].split()[3]) == session:
                lines = (process / "smaps_rollup").read_text().splitlines()
                found += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return found


ROWS = {
    "splice": splice,
    "chain": chain,
    "growth": growth,
    "command": command,
    "sweep": sweep,
    "memory": memory,
    "read": read,
    "refuse": refuse,
    "batch": batch,
}


def main() -> int:
    if unknown := set(sys.argv[1:]) - ROWS.keys():
        sys.exit(f"no rows {', '.join(sorted(unknown))}; there are {', '.join(ROWS)}")
    table = Table("what", "against", "ratio", "goal", box=None)
    missed = 0
    for name in sys.argv[1:] or ROWS:
        for what, against, ratio, goal in ROWS[name]():
            missed += goal is not None and ratio > goal
            table.add_row(what, against, f"{ratio:.2f}", "" if goal is None else f"at most {goal}")
    Console().print(table)
    return min(missed, 1)


if __name__ == "__main__":
    sys.exit(main())
