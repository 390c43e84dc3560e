"""What a workflow tells the person who waits for it."""

from __future__ import annotations

from typing import Protocol


class Screen(Protocol):
    """Where progress and warnings go."""

    def step(self, name: str) -> None: ...

    def advance(self, done: int, total: int, unit: str) -> None: ...

    def warn(self, text: str) -> None: ...
