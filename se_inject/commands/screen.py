"""What a workflow tells the person who waits for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol


class Screen(Protocol):
    """Where progress and warnings go."""

    def step(self, name: str) -> None: ...

    def advance(self, done: int, total: int, unit: str) -> None: ...

    def warn(self, text: str) -> None: ...


@dataclass
class Listener:
    """The screen of a process that nobody watches: it keeps the warnings."""

    warnings: list[str] = field(default_factory=list)

    def step(self, name: str) -> None: ...

    def advance(self, done: int, total: int, unit: str) -> None: ...

    def warn(self, text: str) -> None:
        self.warnings.append(text)
