"""What a budget buys: which sites, at which ratios, and why others are left out.

python examples/budget.py [NAME]
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable

import timm

import se_inject

SIZE = (3, 224, 224)


def counted(values: Iterable[int]) -> str:
    return ", ".join(f"{n} x {value}" for value, n in sorted(Counter(values).items()))


def main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else "resnet18"
    model = timm.create_model(name)
    base = se_inject.cost(model, SIZE)
    print(f"{name}: {base.parameters:,} parameters, {base.macs:,} MACs\n")

    print(f"{'budget':>6}  {'spent':>7}  {'blocks in stage':<30}at ratio")
    for share in ("0.2%", "0.5%", "1%", "2%"):
        rules = {"placement": "standard", "budget": {"params": share, "macs": "1%"}}
        result = se_inject.inject(model, SIZE, rules, verify=False)
        spent = result.report.after.parameters / base.parameters - 1
        blocks = result.plan.insertions
        stages = counted(d.site.stage for d in blocks)
        ratios = counted(d.site.channels // d.kwargs["rd_channels"] for d in blocks)
        print(f"{share:>6}  {100 * spent:>5.2f} %  {stages:<30}{ratios}")

    small = se_inject.plan(model, SIZE, {"placement": "standard", "budget": {"params": "0.2%"}})
    print("\nUnder 0.2 %:")
    for decision in (small.insertions[-1], *(d for d in small.skips if d.reason.code == "over-budget")):
        print(f"  {decision.site.id}, {decision.status}: {decision.reason}")


if __name__ == "__main__":
    main()
