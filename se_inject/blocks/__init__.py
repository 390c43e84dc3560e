"""The attention blocks, one file each.

A block is an ``nn.Module`` class whose first argument is ``channels``, whose other arguments are keyword-only, and
whose output has the shape of its input. Its class needs torch and ``parts.py`` alone, because ``modeling.py`` carries
a copy of both. A class of the user's own joins the table by ``register_block``.
"""

from se_inject.blocks.block import Block
from se_inject.blocks.custom import register_block
from se_inject.blocks.table import BLOCKS, block_of, find_block, is_block

__all__ = ["BLOCKS", "Block", "block_of", "find_block", "is_block", "register_block"]
