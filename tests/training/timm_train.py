"""What timm's own ``train.py`` does with a model, in its order and by the same functions of timm, on random images.

The script itself is in timm's repository, and not in its package.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from timm import utils
from timm.data import resolve_data_config
from timm.models import create_model, safe_model_name
from timm.optim import create_optimizer_v2, optimizer_kwargs

parser = argparse.ArgumentParser()
parser.add_argument("--data-dir")
parser.add_argument("--model", default="resnet50")
parser.add_argument("--pretrained", action="store_true")
parser.add_argument("--initial-checkpoint", default="")
parser.add_argument("--num-classes", type=int)
parser.add_argument("--input-size", nargs=3, type=int)
parser.add_argument("--opt", default="sgd")
parser.add_argument("--lr", type=float, default=0.01)
parser.add_argument("--weight-decay", type=float, default=2e-5)
parser.add_argument("--momentum", type=float, default=0.9)
parser.add_argument("--experiment", default="")
parser.add_argument("--model-kwargs", nargs="*", default={}, action=utils.ParseKwargs)


def main() -> None:
    args = parser.parse_args()
    utils.random_seed(42, 0)
    model = create_model(
        args.model,
        pretrained=args.pretrained,
        in_chans=args.input_size[0],
        num_classes=args.num_classes,
        drop_rate=0.0,
        drop_path_rate=None,
        drop_block_rate=None,
        global_pool=None,
        bn_momentum=None,
        bn_eps=None,
        scriptable=False,
        checkpoint_path=args.initial_checkpoint,
        **args.model_kwargs,
    )
    size = resolve_data_config(vars(args), model=model)["input_size"]
    optimizer = create_optimizer_v2(model, **optimizer_kwargs(cfg=args))
    folder = utils.get_outdir("./output/train", args.experiment or safe_model_name(args.model))
    saver = utils.CheckpointSaver(model, optimizer, args, checkpoint_dir=folder, recovery_dir=folder)
    for _ in range(3):
        optimizer.zero_grad()
        labels = torch.randint(args.num_classes, (4,))
        torch.nn.functional.cross_entropy(model.train()(torch.randn(4, *size)), labels).backward()
        optimizer.step()
    saver.save_checkpoint(0, metric=0.0)
    assert Path(folder, "last.pth.tar").exists()


if __name__ == "__main__":
    main()
