"""Rules of published networks, by name: ``rules="se-resnet"``, ``--rules se-resnet``.

They say where and which block. The start stays ``identity``; for training from scratch add ``init: paper``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Preset:
    rules: dict[str, Any]
    selects: str
    paper: str


HU = "Hu et al., Squeeze-and-Excitation Networks, arXiv 1709.01507"

PRESETS: dict[str, Preset] = {
    "se-resnet": Preset(
        {"placement": "standard", "ratio": 16}, "the end of every residual branch, C/16", f"{HU}, fig. 3"
    ),
    "se-resnet-3x3": Preset(
        {"placement": "inner", "ratio": 16, "block": {"rd_divisor": 1}},
        "after the 3x3 convolution of every bottleneck, C/16",
        f"{HU}, SE_3x3",
    ),
    "se-vgg": Preset(
        {"placement": "conv", "ratio": 16, "block": {"rd_divisor": 1}},
        "after every convolution of a plain chain",
        f"{HU}, SE-VGG-16",
    ),
    "se-inception": Preset(
        {"placement": "concat", "ratio": 16, "block": {"rd_divisor": 1}},
        "after the concatenation of every inception module",
        f"{HU}, fig. 2",
    ),
    "mobilenetv3": Preset(
        {
            "placement": "inner",
            "depthwise": True,
            "block": {"rd_ratio": 0.25, "rd_divisor": 8, "rd_round_limit": 0.9, "gate": "hardsigmoid"},
        },
        "after the depthwise convolution, a quarter of its own channels, hard sigmoid",
        "Howard et al., Searching for MobileNetV3, arXiv 1905.02244",
    ),
    "efficientnet": Preset(
        {
            "placement": "inner",
            "depthwise": True,
            "block": {"rd_ratio": 0.25, "rd_base": "block", "rd_divisor": 1, "act": "silu"},
        },
        "after the depthwise convolution, a quarter of the block's input channels, SiLU",
        "Tan and Le, EfficientNet, arXiv 1905.11946",
    ),
    "regnety": Preset(
        {"placement": "inner", "block": {"rd_ratio": 0.25, "rd_base": "block", "rd_divisor": 1}},
        "after the 3x3 group convolution, a quarter of the block's input channels",
        "Radosavovic et al., Designing Network Design Spaces, arXiv 2003.13678",
    ),
    "ecanet": Preset(
        {"placement": "standard", "block": {"name": "eca"}},
        "the end of every residual branch, a 1-D convolution over the channels",
        "Wang et al., ECA-Net, arXiv 1910.03151",
    ),
    "cbam": Preset(
        {"placement": "standard", "block": {"name": "cbam", "rd_ratio": 1 / 16}},
        "the end of every residual branch, channel gate then spatial gate",
        "Woo et al., CBAM, arXiv 1807.06521",
    ),
    "gcnet": Preset(
        {"placement": "standard", "stages": [2, 3, 4], "block": {"name": "gc", "fusion": "add", "rd_ratio": 1 / 16}},
        "the end of every residual branch of stages c3 to c5, global context added",
        "Cao et al., GCNet, arXiv 1904.11492",
    ),
    "resnet-rs": Preset(
        {"placement": "standard", "ratio": 4},
        "the end of every residual branch, C/4",
        "Bello et al., Revisiting ResNets, arXiv 2103.07579",
    ),
    "ese-vovnet": Preset(
        {"placement": "concat", "block": {"name": "ese"}},
        "after the 1x1 convolution that fuses a one-shot aggregation, one layer C to C",
        "Lee and Park, CenterMask, arXiv 1911.06667",
    ),
    "repvgg-se": Preset(
        {"placement": "sum", "ratio": 16},
        "after the sum of parallel branches, before its activation",
        "Ding et al., RepVGG, arXiv 2101.03697 (the D2se models of its authors' code)",
    ),
}
