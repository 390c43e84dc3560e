"""Rows of the experiment as Markdown and as a plot."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

BASELINE = "nothing added"


@dataclass(frozen=True)
class Row:
    """One arm with one seed."""

    data: str
    seed: int
    arm: str
    start: float  # accuracy on the test pictures before the further training, in percent
    end: float  # after it
    loss: float  # cross-entropy after it
    spread: float | None  # standard deviation of the channel gates on test pictures after it, mean of the blocks
    parameters: int
    macs: int
    elementwise: int


def page(rows: list[Row]) -> str:
    return ""


def plot(rows: list[Row], path: Path) -> None:
    pass
