"""The few words that the search has for what is applied to a value: one table for functions, one for modules.

Nothing here knows the class or attribute names of a model library.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.modules import activation, conv, dropout, padding, pooling

# Functions and tensor methods by name; a trailing underscore (in place) is dropped before the look-up.
FUNCTIONS: dict[str, str] = {
    name: kind
    for kind, names in {
        "conv": "conv1d conv2d conv3d convolution deform_conv2d conv_transpose1d conv_transpose2d conv_transpose3d",
        "linear": "linear addmm multi_head_attention_forward scaled_dot_product_attention",
        "norm": "batch_norm layer_norm group_norm instance_norm rms_norm local_response_norm native_batch_norm "
        "_native_batch_norm_legit _native_batch_norm_legit_no_training native_layer_norm native_group_norm",
        "act": "relu relu6 silu gelu sigmoid hardswish hardsigmoid hardtanh tanh leaky_relu elu selu celu softplus "
        "mish prelu rrelu clamp clamp_min clamp_max softsign logsigmoid threshold",
        "pass": "dropout dropout1d dropout2d dropout3d alpha_dropout feature_dropout native_dropout contiguous clone "
        "to _to_copy float half bfloat16 double type type_as detach alias lift_fresh_copy",
        "pool": "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d "
        "adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d "
        "lp_pool1d lp_pool2d max_pool2d_with_indices _adaptive_avg_pool2d",
        "resample": "interpolate upsample upsample_nearest2d upsample_bilinear2d grid_sample pixel_shuffle "
        "pixel_unshuffle",
        "add": "add",
        "mul": "mul multiply",
        "div": "div true_divide",
        "cat": "cat concat concatenate",
        "pad": "pad constant_pad_nd",
        "permute": "permute transpose swapaxes movedim t",
        "slice": "getitem chunk split split_with_sizes narrow unbind tensor_split select",
        "expand": "expand expand_as broadcast_to unsqueeze squeeze",
        "reshape": "view reshape flatten unflatten",
    }.items()
    for name in names.split()
}

MODULES: tuple[tuple[Any, str], ...] = (
    (conv._ConvNd, "conv"),
    ((nn.Linear, nn.Bilinear, nn.RNNBase, nn.MultiheadAttention, nn.Transformer), "linear"),
    ((nn.TransformerEncoderLayer, nn.TransformerDecoderLayer, nn.TransformerEncoder), "linear"),
    ((nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.LocalResponseNorm, nn.RMSNorm), "norm"),
    ((nn.Identity, dropout._DropoutNd), "pass"),
    ((nn.Upsample, nn.PixelShuffle, nn.PixelUnshuffle), "resample"),
    ((nn.Flatten, nn.Unflatten), "reshape"),
)
# Whole files of torch.nn, where every class has the same word.
FILES = {activation.__name__: "act", pooling.__name__: "pool", padding.__name__: "pad"}

SIGMOIDS = {"sigmoid", "hardsigmoid", "Sigmoid", "Hardsigmoid"}
REDUCTIONS = {"mean", "sum", "amax", "max", "var", "std", "var_mean", "std_mean", "norm", "logsumexp"}
# Norms over the last axes; all others have the channels on axis 1.
LAST_AXES = {"LayerNorm", "layer_norm", "native_layer_norm", "RMSNorm", "rms_norm"}
# What multiplies values with each other: attention has no activation, and is not linear.
PRODUCTS = {
    *("matmul", "bmm", "einsum", "baddbmm", "softmax", "Softmax", "scaled_dot_product_attention"),
    *("multi_head_attention_forward", "MultiheadAttention", "TransformerEncoderLayer", "TransformerEncoder"),
}
# f(2x) = 2 f(x), exactly, for every x: what `absorb` may have between the doubled batch norm and the gate.
HOMOGENEOUS = {"relu", "leaky_relu", "prelu", "ReLU", "LeakyReLU", "PReLU"}


@dataclass(frozen=True)
class Op:
    """One operator of a chain."""

    kind: str
    name: str = ""  # function name or class name
    path: str = ""  # of the module that holds its weights
    kernel: tuple[int, ...] = ()
    inputs: int = 0
    outputs: int = 0
    groups: int = 1

    @property
    def spatial(self) -> bool:
        return self.kind == "conv" and any(k > 1 for k in self.kernel)

    @property
    def pointwise(self) -> bool:
        return self.kind == "conv" and self.groups == 1 and set(self.kernel) == {1}  # a kernel, and one that is known

    @property
    def depthwise(self) -> bool:
        return self.kind == "conv" and self.groups > 1 and self.groups == self.inputs
