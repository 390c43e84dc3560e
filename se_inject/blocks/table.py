"""The table of the blocks: one line and one file for each."""

from __future__ import annotations

from importlib import import_module

from torch import nn

from se_inject.blocks.block import Block
from se_inject.errors import closest

FILES = {  # name -> file of this folder, which ends in ``BLOCK``
    "se": "squeeze_excite",
    "se_plain": "plain_se",
    "ese": "effective_se",
    "eca": "efficient_channel",
    "cbam": "cbam",
    "gc": "global_context",
    "stn": "spatial_transformer",
}
BLOCKS: dict[str, Block] = {name: import_module(f"se_inject.blocks.{file}").BLOCK for name, file in FILES.items()}
REGISTERED: dict[str, Block] = {}  # classes of the user's own


def find_block(name: str) -> Block:
    """The block of that name: of the table, or registered. Imports nothing. Raises ``ValueError`` that says which are
    known."""
    block = BLOCKS.get(name) or REGISTERED.get(name)
    if block is None:
        raise ValueError(_unknown(str(name)))
    return block


def block_of(module: nn.Module) -> Block | None:
    """What is known of a module that is one of these blocks, or of a registered class."""
    return next((b for b in (*BLOCKS.values(), *REGISTERED.values()) if isinstance(module, b.module)), None)


def is_block(module: nn.Module) -> bool:
    """Whether a module is a block: what stands there is gated already."""
    return block_of(module) is not None


def _unknown(name: str) -> str:
    """Why no block has that name, and what to do about it."""
    if ":" in name:
        return (
            f"no class is registered as {name!r}, and what a file says is not imported: call "
            f"se_inject.register_block(cls, {name!r}) first, or give --block {name} on the command line."
        )
    return f"no block is called {name!r}.{closest(name, [*BLOCKS, *REGISTERED])}"
