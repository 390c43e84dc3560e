"""An output folder, opened again. What it holds may have been edited."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from torch import nn

from se_inject.errors import LoadError, PlanMismatchError, SEInjectError, one_line
from se_inject.models.loading import load_model, parse_model_args
from se_inject.output import folder as store
from se_inject.output.names import PLAN
from se_inject.types import Plan


@contextlib.contextmanager
def trusting(path: Path | None) -> Iterator[None]:
    """What is read from ``path`` has the right types, but an edited file may hold any value in them."""
    try:
        yield
    except SEInjectError:
        raise
    except Exception as error:
        if path is None:
            raise
        raise PlanMismatchError(
            f"{path} was edited, or is not for this model: {one_line(error)}. Make the plan again."
        ) from error


def open_folder(folder: Path, spec: str | None, model_arg: Iterable[str]) -> tuple[nn.Module, Plan]:
    made = store.read_plan(folder / PLAN) if folder.is_dir() else None
    if made is None:
        raise LoadError(f"{folder} is not a folder written by se_inject.")
    base = None
    if spec is not None:
        args = {**made.model_args, **parse_model_args(model_arg)}
        base = load_model(spec, model_args=args, random_init=True, allow_factory=True).model
    return store.load(folder, base), made
