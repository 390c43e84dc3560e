"""The new layers of an injected net learn scikit-learn's digits with accelerate, on one process or on several, which
hold replicas or shards. Prints the loss of each batch, and writes what was trained as an adapter.

python examples/finetune_accelerate.py
accelerate launch --num_processes 2 --multi_gpu examples/finetune_accelerate.py
accelerate launch --num_processes 2 --use_fsdp --fsdp_version 2 --fsdp_cpu_ram_efficient_loading false examples/...
"""

from __future__ import annotations

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models.resnet import BasicBlock

import se_inject

X, Y = (torch.tensor(part) for part in load_digits(return_X_y=True))
DATA = TensorDataset(X.float().view(-1, 1, 8, 8) / 16, Y)


def pretrained() -> nn.Module:
    """A net that has learnt a little, the same on every process."""
    torch.manual_seed(0)
    blocks, head = [BasicBlock(32, 32) for _ in range(2)], (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))
    net = nn.Sequential(nn.Conv2d(1, 32, 3, padding=1), *blocks, *head)
    optimizer = torch.optim.SGD(net.parameters(), 0.02, momentum=0.9)
    for x, y in DataLoader(DATA, 64):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    return net


def main(folder: str = "finetune_accelerate") -> None:
    shared = DataLoaderConfiguration(split_batches=True)  # 64 images are a batch, however many processes share it
    accelerator = Accelerator(cpu=not torch.accelerator.is_available(), dataloader_config=shared)
    result = se_inject.inject(base := pretrained(), (1, 8, 8), {"ratio": 4})
    se_inject.freeze_base(result.model)  # before `prepare`, which wraps or shards the model
    optimizer = torch.optim.AdamW(se_inject.param_groups(result.model, lr=1e-3, block_lr=1e-2))
    loader = DataLoader(DATA, 64, shuffle=True, drop_last=True, generator=torch.Generator().manual_seed(1))
    model, optimizer, loader = accelerator.prepare(result.model, optimizer, loader)
    for step, (x, y) in enumerate(loader):
        optimizer.zero_grad()
        accelerator.backward(loss := nn.functional.cross_entropy(model.train()(x), y))
        optimizer.step()
        accelerator.print(f"{step:>2} {accelerator.reduce(loss.detach(), 'mean').item():.7f}")
    state = accelerator.get_state_dict(model)  # whole, on the first process
    if accelerator.is_main_process:
        (tuned := se_inject.apply(base, result.plan)).load_state_dict(state)
        se_inject.save_adapter(tuned, folder, changed=True)  # the head changed too
        print(f"{accelerator.distributed_type.value}, {accelerator.num_processes} processes: {folder}")
    accelerator.end_training()


if __name__ == "__main__":
    main()
