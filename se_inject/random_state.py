"""The state of torch's random generator, as it was before."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def forked_rng(seed: int) -> Iterator[None]:
    """Random numbers from ``seed`` for a while, on the CPU."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # not the accelerators'
        yield
