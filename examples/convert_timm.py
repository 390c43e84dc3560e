"""The Python API: SE into a timm ResNet in a form that timm itself can load, then a fine-tuning step on the new layers.

python examples/convert_timm.py [NAME]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import timm
import torch

import se_inject


def main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else "resnet18"
    base = timm.create_model(name, zero_init_last=False)  # pretrained=True for real weights

    # `absorb` keeps the zoo's own layout: plain sigmoid gates, undone by the batch norms before them.
    injection = se_inject.inject(base, rules={"placement": "standard", "init": "absorb"})
    print(injection)
    for decision in injection.plan.insertions[:3]:
        print(f"  {decision.key}: {decision.site.channels} -> {decision.kwargs['rd_channels']}, {decision.reason}")

    twin = timm.create_model(f"se{name}").eval()
    twin.load_state_dict(injection.model.state_dict(), strict=True)
    x = torch.randn(2, 3, 96, 96)
    model = injection.model.eval()
    with torch.no_grad():
        print(f"timm's own se{name} with these weights gives the same outputs:", torch.equal(twin(x), model(x)))

    # Train the new layers alone: they are the keys that the plan names.
    new = {decision.key for decision in injection.plan.insertions}
    for key, parameter in model.named_parameters():
        parameter.requires_grad = key.rsplit(".", 2)[0] in new
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    loss = torch.nn.functional.cross_entropy(model(x), torch.tensor([0, 1]))
    loss.backward()
    optimizer.step()
    with torch.no_grad():
        print("after one step the gates moved:", not torch.equal(twin(x), model(x)))

    with tempfile.TemporaryDirectory() as folder:
        se_inject.save(injection, Path(folder) / "out")
        again = se_inject.load(Path(folder) / "out", model=timm.create_model(name))
        with torch.no_grad():
            print("read back, the trained model is the same:", torch.equal(again(x), model(x)))


if __name__ == "__main__":
    main()
