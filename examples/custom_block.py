"""A block of your own: any nn.Module that keeps the shape of its input, with its options in the rules.

python examples/custom_block.py
"""

from __future__ import annotations

import timm
import torch
from torch import nn

import se_inject


class ContrastGate(nn.Module):
    """Gate each channel by its mean and its standard deviation; exactly 1 at the start."""

    def __init__(self, channels: int, *, hidden: int = 8, start: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(2 * channels, hidden)
        self.fc2 = nn.Linear(hidden, channels)
        nn.init.constant_(self.fc2.weight, start)
        nn.init.zeros_(self.fc2.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        spread, mean = torch.std_mean(x, dim=(2, 3))  # (N, C) each
        s = 2 * torch.sigmoid(self.fc2(torch.relu(self.fc1(torch.cat([mean, spread], dim=1)))))
        return x * s[:, :, None, None]


def main() -> None:
    model = timm.create_model("resnet18").eval()
    rules = {"placement": "standard", "stages": [3, 4], "block": {"name": ContrastGate, "hidden": 16}}
    result = se_inject.inject(model, (3, 64, 64), rules)
    print(result)
    for decision in result.plan.insertions:
        print(f"  {decision.key}: {decision.block} {decision.kwargs}")

    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        print("the same outputs as before:", torch.equal(model(x), result.model.eval()(x)))

    # A registered class has a name that rules in files may use too; what moves the outputs needs `init: paper`.
    name = se_inject.register_block(ContrastGate, "contrast")
    try:
        se_inject.plan(model, (3, 64, 64), {"placement": "standard", "block": {"name": name, "start": 0.5}})
    except se_inject.RulesError as error:
        print(f"refused: {error}")


if __name__ == "__main__":
    main()
