"""What a format writes, and what it is compared with when it is read again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from se_inject.checks.reference import digests
from se_inject.inputs import Inputs
from se_inject.types import Check, Plan

if TYPE_CHECKING:
    from se_inject.output.formats.exporting import Exported

Content = bytes | Callable[[Path], None]


@dataclass
class Subject:
    """A rewritten model with its plan; without a model, what the plan remembers of the original takes its place."""

    plan: Plan
    inputs: Inputs | None  # what it is run on
    model: nn.Module | None = None
    base: nn.Module | None = None  # the original without weights, when it is at hand
    given_hashes: Mapping[str, str] | None = None  # of the model's tensors, where they are known already
    runs: frozenset[str] = frozenset()  # formats of which a file in the folder may be run
    max_shard_size: int | None = None  # bytes
    advance: Callable[[int, int, str], None] = lambda done, total, unit: None  # progress callback

    @property
    def whole(self) -> nn.Module:
        """The model, where there must be one: when it is written."""
        assert self.model is not None
        return self.model

    @cached_property
    def hashes(self) -> Mapping[str, str]:
        """Of the model's tensors, for all formats that compare a file with them."""
        return digests(self.whole) if self.given_hashes is None else self.given_hashes

    @cached_property
    def exported(self) -> Exported:
        """The model as an exported program, made once for all formats that need it."""
        from se_inject.output.formats.exporting import export

        return export(self.whole, self.inputs, self.plan.seed)


@dataclass(frozen=True)
class Format:
    """One way to write a model, and to compare what was written."""

    about: str
    markers: tuple[str, ...]  # files by any of which the format is known in a folder
    write: Callable[[Subject], Mapping[str, Content]]  # path in the folder -> its content; may refuse
    check: Callable[[Path, Subject], Check]  # compares what was just written in a folder with the model
    inspect: Callable[[Path, Subject], Check] | None = None  # the same for a folder that is not trusted, if it differs


@contextmanager
def unlogged(library: str) -> Iterator[None]:
    """Its log lines are for its own developers; errors are still told."""
    logger = logging.getLogger(library)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
