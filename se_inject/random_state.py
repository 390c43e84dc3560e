"""The state of the random generators, as it was before."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def forked_rng(seed: int) -> Iterator[None]:
    """Random numbers from ``seed`` for a while, on the CPU."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # not the accelerators'
        yield


@contextmanager
def undisturbed() -> Iterator[None]:
    """The random state of torch and of Python, put back."""
    state = random.getstate()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(state)


def seed_all(seed: int) -> None:
    """Seed what ``undisturbed`` puts back."""
    random.seed(seed)
    torch.default_generator.manual_seed(seed)  # not the accelerators'
