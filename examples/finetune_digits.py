"""How a gate starts, and what that does: a small net is pretrained on scikit-learn's digits, then fine-tuned as it is,
with SE that starts as the identity, and with SE from random weights. Prints and plots the accuracies.

python examples/finetune_digits.py [CURVES.svg]
"""

from __future__ import annotations

import sys

import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import nn
from torchvision.models.resnet import BasicBlock

import se_inject

SIZE, TRAINED = (1, 8, 8), 1200  # of the 1,797 images
X, Y = (torch.tensor(part) for part in load_digits(return_X_y=True))
X = X.float().view(-1, *SIZE) / 16


def train(model: nn.Module, epochs: int, rate: float) -> list[float]:
    """Accuracy on the images left out, in percent, before the first step and after each epoch."""
    torch.manual_seed(1)
    optimizer, found = torch.optim.SGD(model.parameters(), rate, momentum=0.9), []
    for epoch in range(epochs + 1):
        with torch.no_grad():
            found.append(100 * (model.eval()(X[TRAINED:]).argmax(1) == Y[TRAINED:]).float().mean().item())
        for batch in torch.randperm(TRAINED).split(64) if epoch < epochs else ():
            optimizer.zero_grad()
            nn.functional.cross_entropy(model.train()(X[batch]), Y[batch]).backward()
            optimizer.step()
    return found


def main(path: str = "finetune_digits.svg", pretrain: int = 5, epochs: int = 10) -> dict[str, list[float]]:
    torch.manual_seed(0)
    blocks, head = [BasicBlock(32, 32) for _ in range(4)], (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))
    base = nn.Sequential(nn.Conv2d(1, 32, 3, padding=1), *blocks, *head)
    print(f"pretrained: {train(base, pretrain, 0.02)[-1]:.1f} %\n")
    starts = {"SE, identity": "identity", "SE, random": "paper"}
    models = {name: se_inject.inject(base, SIZE, {"init": init, "ratio": 4}).model for name, init in starts.items()}
    curves = {name: train(model, epochs, 0.01) for name, model in {"as it was": base, **models}.items()}
    print("epoch".rjust(5), *(name.rjust(14) for name in curves))
    for epoch, row in enumerate(zip(*curves.values(), strict=True)):
        print(f"{epoch:>5}", *(f"{accuracy:>12.1f} %" for accuracy in row))
    axes = (figure := Figure(figsize=(6, 3.5), layout="constrained")).subplots()
    for width, (name, curve) in zip((6, 3, 1), curves.items(), strict=True):  # curves that coincide can all be seen
        axes.plot(curve, linewidth=width, label=name)
    axes.set(xlabel="epoch of fine-tuning", ylabel="accuracy, %")
    axes.legend()
    figure.savefig(path)
    return curves


if __name__ == "__main__":
    main(*sys.argv[1:2])
