"""What the tests share."""

from __future__ import annotations

import gc
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from torch import nn

from se_inject.cli import main
from se_inject.errors import RulesError
from se_inject.hashing import sha256
from se_inject.models import loading
from se_inject.models.loading import Loaded
from se_inject.models.request import WeightsRequest
from se_inject.output.sums import SUMS, sums_text
from se_inject.types import Carrier, Reason, Site
from tests.rewording import REWORDED

ROOT = Path(__file__).parents[1]  # of the checkout


def calls(work: Callable[[], object]) -> int:
    """How many calls of functions, Python's and C's, some work takes: the same number on a busy machine."""
    count = 0

    def hear(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    gc.disable()  # what it would call belongs to others
    sys.setprofile(hear)
    try:
        work()
    finally:
        sys.setprofile(None)
        gc.enable()
    return count


def run(*args: str) -> Result:
    """``se-inject`` with these arguments, in this process."""
    return CliRunner().invoke(main, args)


def ok(*args: str) -> Result:
    result = run(*args)
    assert result.exit_code == 0, result.stderr or result.exception
    return result


def code(reason: Reason | None) -> str | None:
    return reason.code if reason is not None else None


def says(reason: Reason | None, code: str, text: str) -> bool:
    """Whether a reason has this code, and the text in it; of reworded ones the code counts alone."""
    return reason is not None and reason.code == code and (REWORDED or text in reason.text)


@contextmanager
def refused(code: str, text: str = "") -> Iterator[None]:
    """As ``pytest.raises(RulesError, match=text)``, for what a reason of this code says."""
    with pytest.raises(RulesError) as caught:
        yield
    assert caught.value.code == code
    assert REWORDED or re.search(text, str(caught.value)), caught.value


def site_at(path: str, placement: str = "standard", **fields: Any) -> Site:
    """A site of ``path``, carried by itself."""
    values: dict[str, Any] = {
        "id": f"{path}:{placement}", "placement": placement, "owner": path, "cls": "Block", "channels": 64, "axis": 1,
        "shape": (2, 64, 8, 8), "stage": 1, "order": 1, "block_channels": 64, "block": f"{path}:standard", "calls": 1,
        "carrier": Carrier("source", path, "se"),
    }  # fmt: skip
    return Site(**{**values, **fields})


def reseal(folder: Path) -> None:
    """The sums of an output anew, as one who changed its files would make them."""
    files = {p.relative_to(folder).as_posix(): sha256(p) for p in folder.rglob("*") if p.is_file()}
    files.pop(SUMS, None)
    (folder / SUMS).write_bytes(sums_text(files))


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Batch norms with gammas, betas and running statistics of their own.

    timm zeroes the last gamma of every block: there any gate is the identity, and a comparison shows nothing.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm | nn.GroupNorm | nn.LayerNorm):
                if module.weight is not None:
                    module.weight.copy_(0.5 + torch.rand(module.weight.shape, generator=generator))
                if module.bias is not None:
                    module.bias.copy_(0.2 * torch.randn(module.bias.shape, generator=generator))
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
                module.running_mean.copy_(0.2 * torch.randn(module.running_mean.shape, generator=generator))
                module.running_var.copy_(0.5 + torch.rand(module.running_var.shape, generator=generator))
            for name, parameter in module._parameters.items():
                if parameter is None or parameter.is_meta:
                    continue
                gain = parameter.ndim <= 1 and "bias" not in name and not parameter.any()  # SkipInit starts at 0
                if gain or name.startswith("gamma"):  # layer scale, often 1e-6
                    parameter.copy_(0.5 + torch.rand(parameter.shape, generator=generator))
    return model


def load_model(spec: str, *, allow_factory: bool = False, weights_needed: bool = True, **asked: Any) -> Loaded:
    """The model that is asked for with the fields of a request."""
    return loading.load_model(WeightsRequest(spec, **asked), allow_factory=allow_factory, weights_needed=weights_needed)
