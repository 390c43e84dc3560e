"""How much trains, in the line that peft prints."""

from __future__ import annotations

from torch import nn

from se_inject.guard import inside


def trainable_summary(model: nn.Module) -> None:
    """Print how many parameters train, of how many, and their share; a shared parameter counts once.

    >>> trainable_summary(model)
    trainable params: 1,234 || all params: 25,600,000 || trainable%: 0.0048
    """
    counts = [(parameter.numel(), parameter.requires_grad) for parameter in inside(model).parameters()]
    total, trained = sum(n for n, _ in counts), sum(n for n, trains in counts if trains)
    share = 100 * trained / max(total, 1)
    print(f"trainable params: {trained:,} || all params: {total:,} || trainable%: {share:.4f}")
