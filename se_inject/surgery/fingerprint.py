"""What a plan remembers of the model that it was made for: classes, keys and shapes, not weights."""

from __future__ import annotations

import hashlib
import json

from torch import nn


def fingerprint(model: nn.Module) -> str:
    """SHA-256 over the class of every module and the shape of every parameter and buffer."""
    modules = [(path, f"{type(m).__module__}.{type(m).__qualname__}") for path, m in model.named_modules()]
    tensors = [
        (name, list(t.shape)) for named in (model.named_parameters(), model.named_buffers()) for name, t in named
    ]
    return hashlib.sha256(json.dumps([modules, sorted(tensors)]).encode()).hexdigest()
