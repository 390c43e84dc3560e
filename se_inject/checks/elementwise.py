"""What one call of an operator counts in element-wise ops, where its tags do not say: one table of formulas, and the
operators that only move or make numbers. The conventions are in ``measure.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch

Args = dict[str, Any]  # of one op, by the names in its schema
Formula = Callable[[Args, Any], int]  # arguments, first output tensor -> element-wise ops


def moves(a: Args, y: Any) -> int:
    return 0


def per_output(n: int) -> Formula:
    return lambda a, y: n * y.numel()


def per_input(n: int) -> Formula:
    return lambda a, y: n * next(v.numel() for v in a.values() if isinstance(v, torch.Tensor))


def pool(dims: int) -> Formula:
    """The size of the kernel for each output; a kernel of one number is meant for every side."""
    return lambda a, y: y.numel() * (prod(k) if len(k := a["kernel_size"]) == dims else k[0] ** dims)


def norm(a: Args, y: torch.Tensor) -> int:
    """Statistics of the input itself: mean, centre, square, scale, and 1 if affine, as fvcore counts."""
    return y.numel() * (4 + (a.get("weight") is not None))


def batch_norm(a: Args, y: torch.Tensor) -> int:
    """With running statistics: one scale, one shift."""
    return norm(a, y) if a.get("training") else 2 * y.numel()


def grid_sample(dims: int) -> Formula:
    """The taps of each output: modes are linear, nearest (moves only), cubic."""
    return lambda a, y: y.numel() * (2**dims, 0, 4**dims)[a["interpolation_mode"]]


ELEMENTWISE: dict[str, Formula] = {
    # pointwise, but without the tag
    **dict.fromkeys(("hardswish", "_prelu_kernel", "rrelu_with_noise", "log_sigmoid_forward"), per_output(1)),
    **dict.fromkeys(("masked_fill", "rsub", "floor_divide"), per_output(1)),
    "glu": per_output(2),  # sigmoid, product
    "cumsum": per_input(1),
    "col2im": per_input(1),  # overlapping patches are added up
    **dict.fromkeys(("_softmax", "_log_softmax", "_safe_softmax"), per_output(3)),  # exponential, sum, division
    **dict.fromkeys(("native_batch_norm", "cudnn_batch_norm", "_native_batch_norm_legit"), batch_norm),
    "_native_batch_norm_legit_no_training": batch_norm,
    "native_layer_norm": norm,
    "native_group_norm": norm,
    "avg_pool2d": pool(2),
    "avg_pool3d": pool(3),
    "max_pool2d_with_indices": pool(2),
    "max_pool3d_with_indices": pool(3),
    **dict.fromkeys(("_adaptive_avg_pool2d", "_adaptive_avg_pool3d"), per_input(1)),
    **dict.fromkeys(("adaptive_max_pool2d", "adaptive_max_pool3d"), per_input(1)),
    # resampling: its taps
    "upsample_linear1d": per_output(2),
    **dict.fromkeys(("upsample_bilinear2d", "_upsample_bilinear2d_aa"), per_output(4)),
    "upsample_trilinear3d": per_output(8),
    **dict.fromkeys(("upsample_bicubic2d", "_upsample_bicubic2d_aa"), per_output(16)),
    "grid_sampler_2d": grid_sample(2),
    "grid_sampler_3d": grid_sample(3),
    "affine_grid_generator": lambda a, y: y.numel() * a["theta"].shape[-1],
}

# One op for each input. The tag that says so is newer than the oldest torch that setup.cfg promises.
REDUCTIONS = frozenset([
    "all", "amax", "amin", "aminmax", "any", "argmax", "argmin", "count_nonzero", "linalg__powsum",
    "linalg_vector_norm", "logsumexp", "max", "mean", "min", "nansum", "norm", "prod", "std", "std_mean", "sum", "var",
    "var_mean",
])  # fmt: skip

# Moves and makes numbers, or draws them at random, but computes none. Views are recognised by their schema.
MOVES = frozenset([
    "arange", "bernoulli", "cat", "channel_shuffle", "clone", "constant_pad_nd", "copy", "embedding",
    "empty", "empty_like", "empty_strided", "eye", "fill", "flip", "full", "full_like", "gather", "im2col", "index",
    "index_copy", "index_put", "index_select", "lift", "lift_fresh", "linspace", "_local_scalar_dense",
    "masked_select", "new_empty", "new_empty_strided", "new_full", "new_ones", "new_zeros", "normal", "ones",
    "ones_like", "pixel_shuffle", "pixel_unshuffle", "rand", "rand_like", "randint", "randn", "randn_like",
    "randperm", "reflection_pad1d", "reflection_pad2d", "reflection_pad3d", "repeat", "repeat_interleave",
    "replication_pad1d", "replication_pad2d", "replication_pad3d", "resize", "roll", "rot90", "scalar_tensor",
    "scatter", "select_scatter", "set", "slice_scatter", "stack", "take", "_to_copy", "tril", "triu", "uniform",
    "_unsafe_index", "unsafe_split", "unsafe_split_with_sizes", "_unsafe_view", "upsample_nearest1d",
    "upsample_nearest2d", "upsample_nearest3d", "_upsample_nearest_exact1d", "_upsample_nearest_exact2d",
    "_upsample_nearest_exact3d", "zero", "zeros", "zeros_like",
])  # fmt: skip
