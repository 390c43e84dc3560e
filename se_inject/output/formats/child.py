"""Runs a model file from a folder in a process of its own, with limits of memory, time and output.

What is in such a file decides what running it takes: a loop without an end, a constant of gigabytes, or, in a .pt2,
any code. The process knows neither this tool nor the caller's memory; what it computes comes back as plain tensors.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from se_inject.inputs import Inputs

SECONDS = 600  # by the clock; of each core as well
MEMORY = 3 << 30  # bytes beside the file's own
COPIES = 8  # of the file: read, unpacked, laid out anew for the kernels
OUTPUTS = 1 << 30  # bytes that come back
REFUSED = 3  # exit code: a valid file that this machine has no kernels for

RUN = """
import resource, sys
folder, path = sys.argv[1:3]
threads, memory, seconds, largest = map(int, sys.argv[3:])
resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
resource.setrlimit(resource.RLIMIT_CPU, (seconds * threads, seconds * threads))
resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
import torch
torch.set_num_threads(threads)
fits = lambda sizes, args, kwargs: True
{load}
outputs = []
for sizes, args, kwargs in torch.load(folder + "/inputs.pt", weights_only=True):
    found = []
    if fits(sizes, args, kwargs):
        with torch.no_grad():
            found = torch.utils._pytree.tree_leaves(call(*args, **kwargs))
    outputs.append([t for t in found if isinstance(t, torch.Tensor)])
torch.save(outputs, folder + "/outputs.pt")
"""


def run_in_child(
    path: Path, load: str, cases: Sequence[tuple[Sequence[int] | None, Inputs]]
) -> tuple[list[list[torch.Tensor]], str, bool]:
    """The outputs for each case, why there are none, and whether that is for lack of kernels.

    ``load``: a program that makes ``call`` from ``path``, and may say by ``fits`` which cases the file is for, by the
    sizes that are free in them (their first item) and their inputs; others have no outputs.
    """
    threads = torch.get_num_threads()
    size = sum(file.stat().st_size for file in ([path] if path.is_file() else path.iterdir()))
    limits = (threads, MEMORY + COPIES * size, SECONDS, OUTPUTS)
    with tempfile.TemporaryDirectory() as folder:
        torch.save([(free, case.args, case.kwargs) for free, case in cases], Path(folder) / "inputs.pt")
        command = [sys.executable, "-I", "-c", RUN.replace("{load}", load), folder, str(path.absolute())]
        try:
            done = subprocess.run(
                [*command, *map(str, limits)], capture_output=True, text=True, timeout=SECONDS, cwd=folder
            )
        except subprocess.TimeoutExpired:
            return [], f"no result after {SECONDS} s", False
        if done.returncode:
            return [], _why(done), done.returncode == REFUSED
        return torch.load(Path(folder) / "outputs.pt", weights_only=True), "", False


def _why(done: subprocess.CompletedProcess[str]) -> str:
    if done.returncode == -signal.SIGXCPU or done.returncode == -signal.SIGKILL:
        return f"stopped after {SECONDS} s of each core"
    if done.returncode < 0:
        return f"ended by {signal.Signals(-done.returncode).name}"
    return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1][:200]
