"""How far a long step is, and how fast it goes."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn

from se_inject import inject
from se_inject.cli.terminal import Terminal, amount_text
from se_inject.output import folder as store
from se_inject.output.weights import weights_files

SIZE = (3, 16, 16)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ((12, 40, "models", 4.0), "12 of 40 models, 3.0/s, 0:00:09 left"),
        ((2500, 10000, "models", 5.0), "2,500 of 10,000 models, 500/s, 0:00:15 left"),
        ((1_500_000, 3_000_000, "B", 0.5), "1.5 MB of 3.0 MB, 3.0 MB/s, 0:00:00 left"),
        ((0, 40, "models", 4.0), "0 of 40 models"),
        ((3, 40, "models", 0.0), "3 of 40 models"),
        ((0, 0, "B", 1.0), "0 bytes of 0 bytes"),
    ],
)
def test_amount(given: tuple[int, int, str, float], text: str) -> None:
    assert amount_text(*given) == text


def test_the_bar_moves_within_a_step_and_the_next_step_clears_the_amount() -> None:
    screen = Terminal(steps=2)
    screen.progress.live.console = Console(file=io.StringIO(), force_terminal=True)
    screen.step("read")
    screen.advance(1, 4, "files")
    task = screen.progress.tasks[0]
    assert task.completed == 0.25 and task.total == 2 and task.fields["amount"].startswith("1 of 4 files")
    screen.step("write")
    assert task.completed == 1 and task.fields["amount"] == ""
    screen.advance(4, 4, "files")
    assert task.completed == 2


@pytest.mark.parametrize("formats", ["safetensors", "timm"])
def test_every_byte_of_the_weights_is_counted_once(tmp_path: Path, formats: str) -> None:
    timm = pytest.importorskip("timm")
    made, arguments = timm.create_model("resnet10t", num_classes=3), {"num_classes": 3}
    injection = inject(made, (3, 64, 64), "standard", name="timm:resnet10t", model_args=arguments)
    total = sum(t.numel() * t.element_size() for t in injection.model.state_dict().values())
    heard: list[tuple[int, int, str]] = []
    store.save(injection, tmp_path / "out", formats=formats, advance=lambda *amount: heard.append(amount))
    assert heard[-1] == (total, total, "B")
    assert [done for done, _, _ in heard] == sorted(done for done, _, _ in heard)


def test_shards_count_on_and_shared_tensors_count_once(tmp_path: Path) -> None:
    shared = torch.ones(100)
    state = {**nn.Linear(10, 10).state_dict(), "one": shared, "other": shared}
    heard: list[tuple[int, int, str]] = []
    files = weights_files(state, 440, lambda *amount: heard.append(amount))
    for name, content in files.items():
        if callable(content):
            content(tmp_path / name)
    assert len(files) == 3 and [done for done, _, _ in heard][-1] == 840
    assert {total for _, total, _ in heard} == {840}
