"""The attention blocks, one file each, and the table of them.

A block is an ``nn.Module`` class whose first argument is ``channels``, whose other arguments are keyword-only, and
whose output has the shape of its input. Its class needs torch and ``parts.py`` alone, because ``modeling.py`` carries
a copy of both. A class of the user's own joins the table by ``register_block``.
"""

from __future__ import annotations

from torch import nn

from se_inject.blocks import (
    cbam,
    effective_se,
    efficient_channel,
    global_context,
    plain_se,
    spatial_transformer,
    squeeze_excite,
)
from se_inject.blocks.block import INITS, Block
from se_inject.blocks.custom import REGISTERED, register_block, unknown
from se_inject.blocks.parts import LAYOUTS, MAPS

__all__ = ["BLOCKS", "INITS", "Block", "find_block", "is_block", "register_block"]

BLOCKS: dict[str, Block] = {
    "se": Block(
        squeeze_excite.SqueezeExcite,
        squeeze_excite.resolve,
        squeeze_excite.OPTIONS,
        LAYOUTS,
        INITS,
        "Hu et al., Squeeze-and-Excitation Networks, arXiv 1709.01507",
    ),
    "se_plain": Block(
        plain_se.PlainSE,
        plain_se.resolve,
        plain_se.OPTIONS,
        LAYOUTS,
        INITS,
        "Hu et al., Squeeze-and-Excitation Networks, arXiv 1709.01507",
    ),
    "ese": Block(
        effective_se.EffectiveSE,
        effective_se.resolve,
        effective_se.OPTIONS,
        LAYOUTS,
        INITS,
        "Lee and Park, CenterMask, arXiv 1911.06667",
    ),
    "eca": Block(
        efficient_channel.EfficientChannelAttention,
        efficient_channel.resolve,
        efficient_channel.OPTIONS,
        LAYOUTS,
        INITS,
        "Wang et al., ECA-Net, arXiv 1910.03151",
    ),
    "cbam": Block(
        cbam.Cbam,
        cbam.resolve,
        cbam.OPTIONS,
        MAPS,  # its convolution over space would take tokens in a row for neighbours
        ("identity", "paper"),  # its two gates are 1/4 at zero
        "Woo et al., CBAM: Convolutional Block Attention Module, arXiv 1807.06521",
    ),
    "gc": Block(
        global_context.GlobalContext,
        global_context.resolve,
        global_context.OPTIONS,
        LAYOUTS,
        INITS,
        "Cao et al., GCNet, arXiv 1904.11492",
    ),
    "stn": Block(
        spatial_transformer.SpatialTransformer,
        spatial_transformer.resolve,
        spatial_transformer.OPTIONS,
        ("NCHW", "NCDHW"),  # an affine map of positions needs two axes of space
        ("identity", "paper"),  # it moves values, and has no gate
        "Jaderberg et al., Spatial Transformer Networks, arXiv 1506.02025",
    ),
}


def find_block(name: str) -> Block:
    """The block of that name: of the table, or registered. Imports nothing. Raises ``ValueError`` that says which are
    known."""
    block = BLOCKS.get(name) or REGISTERED.get(name)
    if block is None:
        raise ValueError(unknown(name, BLOCKS))
    return block


def is_block(module: nn.Module) -> bool:
    """Whether a module is one of these blocks, or of a registered class: what stands there is gated already."""
    return isinstance(module, tuple(block.module for block in (*BLOCKS.values(), *REGISTERED.values())))
