"""What attention adds to a trained net: the same further training with nothing added, and with each kind of block.

    python -m benchmarks.evidence        on scikit-learn's digits, printed
    make evidence FASHION=FILE.npz       docs/evidence.md: on the digits, and on Fashion-MNIST from a file

Per seed one small residual net is trained on a split of its own. Every arm starts from a copy of that net and gets the
same further training: pictures in the same order, the same shifts, optimizer, rates and epochs. Nothing is chosen by
looking at the test pictures, and nothing is tuned for an arm. Rows are lines of JSON in a file that is read again: a
run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad
from torchvision.models.resnet import BasicBlock

import se_inject
from benchmarks.evidence_page import BASELINE, PLOT, Row, joined, page, plot
from se_inject.report.tables import plural

SE = {"placement": "standard", "ratio": 4}  # of 16 channels the usual ratio of 16 would leave one
ARMS: dict[str, dict[str, Any] | None] = {
    BASELINE: None,
    "SE, random": {**SE, "init": "paper"},
    "SE, identity": SE,
    "SE, absorb": {**SE, "init": "absorb"},
    "ECA, identity": {"placement": "standard", "block": "eca"},
    "CBAM, identity": {**SE, "block": "cbam"},
}


@dataclass(frozen=True)
class Setting:
    """One experiment: data, net and budget."""

    data: str
    seeds: int
    train: int  # pictures; digits: all others are for the test
    widths: tuple[int, ...]  # channels of the stages, two residual blocks each
    stride: int  # of the first convolution
    epochs: tuple[int, int]  # of the plain net, and further
    rates: tuple[float, float] = (0.1, 0.02)  # at the start of each; then half a cosine to zero
    batch: int = 64
    shift: int = 1  # pixels, up to which a batch is moved


SETTINGS = {
    "digits": Setting("digits", seeds=20, train=900, widths=(16, 32), stride=1, epochs=(20, 10)),
    "fashion": Setting("Fashion-MNIST", seeds=5, train=10_000, widths=(16, 32, 64), stride=2, epochs=(6, 3), shift=2),
}


@dataclass(frozen=True)
class Split:
    """Pictures (N, 1, H, W) from 0 to 1 and their classes."""

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor
    pool: int  # pictures that x was drawn from


Draw = Callable[[Setting, int], Split]


def digits(setting: Setting, seed: int) -> Split:
    """A split of its own for each seed."""
    x, y = (torch.tensor(part) for part in load_digits(return_X_y=True))
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    x, y = x[order].float().view(-1, 1, 8, 8) / 16, y[order]
    return Split(x[: setting.train], y[: setting.train], x[setting.train :], y[setting.train :], len(x))


def fashion_mnist(setting: Setting, seed: int, file: Path) -> Split:
    """Training pictures of its own for each seed; the test set is the data's own. The arrays are those of Keras's
    ``mnist.npz``: ``x_train``, ``y_train``, ``x_test``, ``y_test``."""
    with np.load(file) as arrays:
        pool = len(arrays["x_train"])
        order = np.random.default_rng(seed).permutation(pool)[: setting.train]
        x, x_test = (torch.tensor(a).float().unsqueeze(1) / 255 for a in (arrays["x_train"][order], arrays["x_test"]))
        y, y_test = (torch.tensor(a).long() for a in (arrays["y_train"][order], arrays["y_test"]))
    return Split(x, y, x_test, y_test, pool)


def net(setting: Setting, seed: int) -> nn.Module:
    """A ResNet with two of torchvision's basic blocks per stage."""
    torch.manual_seed(seed)
    before = setting.widths[0]
    layers = [nn.Conv2d(1, before, 3, setting.stride, 1, bias=False), nn.BatchNorm2d(before), nn.ReLU(inplace=True)]
    for width in setting.widths:
        stride, down = 1, None
        if width != before:
            stride, down = 2, nn.Sequential(nn.Conv2d(before, width, 1, 2, bias=False), nn.BatchNorm2d(width))
        layers += [BasicBlock(before, width, stride, down), BasicBlock(width, width)]
        before = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 10))


def train(model: nn.Module, split: Split, setting: Setting, epochs: int, rate: float, seed: int) -> None:
    """SGD in an order that the seed alone decides."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9, weight_decay=5e-4, nesterov=True)
    steps = epochs * -(-len(split.x) // setting.batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    high, wide = split.x.shape[2:]
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(split.x), generator=generator).split(setting.batch):
            top, left = torch.randint(2 * setting.shift + 1, (2,), generator=generator).tolist()
            x = pad(split.x[batch], [setting.shift] * 4)[:, :, top : top + high, left : left + wide]
            optimizer.zero_grad()
            cross_entropy(model(x), split.y[batch]).backward()
            optimizer.step()
            schedule.step()


@torch.no_grad()
def test(model: nn.Module, split: Split) -> tuple[float, float]:
    """Accuracy in percent and cross-entropy, on the pictures left out."""
    model.eval()
    scores = torch.cat([model(x) for x in split.x_test.split(500)])
    correct = (scores.argmax(1) == split.y_test).double().mean().item()
    return round(100 * correct, 4), round(cross_entropy(scores, split.y_test).item(), 6)


def arm(base: nn.Module, split: Split, setting: Setting, seed: int, name: str) -> Row:
    """One arm: a copy of the trained net, changed, and trained further."""
    rules, size = ARMS[name], tuple(split.x.shape[1:])
    model = copy.deepcopy(base) if rules is None else se_inject.inject(base, size, rules, seed=seed).model
    cost = se_inject.cost(model, size)
    start, _ = test(model, split)
    train(model, split, setting, setting.epochs[1], setting.rates[1], seed + 1)
    end, loss = test(model, split)
    gates = [gate.std for gate in se_inject.gates(model, split.x_test[:500]) if gate.std is not None]
    spread = round(sum(gates) / len(gates), 6) if gates else None
    costs = cost.parameters, cost.macs, cost.elementwise
    return Row(setting.data, seed, name, start, end, loss, spread, *costs, split.pool)


def rows(setting: Setting, draw: Draw, done: set[tuple[str, int, str]]) -> Iterator[Row]:
    """What ``done`` does not hold yet."""
    for seed in range(setting.seeds):
        left = [name for name in ARMS if (setting.data, seed, name) not in done]
        if not left:
            continue
        split = draw(setting, seed)
        base = net(setting, seed)
        train(base, split, setting, setting.epochs[0], setting.rates[0], seed)
        for name in left:
            yield arm(base, split, setting, seed, name)


def words(found: Iterable[Row]) -> dict[str, str]:
    """How each data set in the rows was used."""
    pools, known = {row.data: row.pool for row in found}, {s.data: s for s in SETTINGS.values()}
    return {data: _describe(known[data], pool) for data, pool in pools.items()}


def _describe(s: Setting, pool: int) -> str:
    tested = "all others are for the test" if s.data == "digits" else "the test set is the data's own"
    widths, pixels = joined([str(width) for width in s.widths]), plural(s.shift, "pixel")
    return (
        f"Each seed draws {s.train:,} of {pool:,} pictures for training; {tested}. The net is a ResNet with two basic "
        f"blocks in each stage of {widths} channels. SGD with momentum 0.9 (Nesterov), weight decay 5e-4, batches of "
        f"{s.batch} that are moved by up to {pixels}; {s.epochs[0]} epochs at a rate of {s.rates[0]}, then in each arm "
        f"{s.epochs[1]} at {s.rates[1]}, both half a cosine to zero."
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--fashion-mnist", type=Path, metavar="FILE", help="npz with its pictures: a second experiment")
    parser.add_argument("--rows", type=Path, default=Path("evidence-rows.jsonl"), help="lines of JSON, read again")
    parser.add_argument("--out", type=Path, help="Markdown to write; rows and plot go beside it")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # sums in one order: the same rows again
    experiments: list[tuple[Setting, Draw]] = [(SETTINGS["digits"], digits)]
    if options.fashion_mnist:
        experiments.append((SETTINGS["fashion"], partial(fashion_mnist, file=options.fashion_mnist)))
    found = [Row(**json.loads(line)) for line in options.rows.read_text().splitlines()] if options.rows.exists() else []
    done = {(row.data, row.seed, row.arm) for row in found}
    with options.rows.open("a") as out:
        for setting, draw in experiments:
            left = setting.seeds * len(ARMS) - sum(data == setting.data for data, _, _ in done)
            for row in track(rows(setting, draw, done), setting.data, total=left):
                found.append(row)
                out.write(json.dumps(asdict(row)) + "\n")
                out.flush()
    text = page(found, words(found))
    if options.out is None:
        print(text)
        return
    options.out.write_text(text)
    lines = [json.dumps(asdict(row)) for row in found]
    options.out.with_suffix(".json").write_text("[\n" + ",\n".join(lines) + "\n]\n")
    plot(found, options.out.parent / PLOT)


if __name__ == "__main__":
    main()
