"""What ``plan --explain`` shows of one module: its graph, its joins, and each decision with its reason."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from rich.console import Console
from torch import nn

from se_inject.cli import main
from se_inject.errors import RulesError
from se_inject.injection.plan import make_plan
from se_inject.report import tables
from se_inject.report.explain import render
from se_inject.search.explain import Explanation, explain
from se_inject.types import Reason, to_dict
from tests.report.test_report import EVIL
from tests.rewording import REWORDED
from tests.tiny import SIZE, Chain, Layers, net


def explained(model: nn.Module, path: str, rules: Any = "standard") -> Explanation:
    planned = make_plan(model, SIZE, rules)
    return explain(planned.trace, planned.found, planned.plan.decisions, path)


def shown(explanation: Explanation, width: int = 100) -> str:
    file = io.StringIO()
    render(explanation, Console(file=file, width=width, color_system=None))
    return file.getvalue()


class Parallel(Layers):
    """A sum of equal branches beside a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv3 = nn.Conv2d(16, 8, 1)

    def forward(self, x):
        y = self.first(x) + self.bn2(self.conv2(x)).relu()
        return self.conv3(torch.cat([y, self.conv1(y)], 1)) + x


def test_residual_block() -> None:
    found = explained(net(), "blocks.0")
    assert (found.path, found.calls) == ("blocks.0", 1)
    assert found.cls == "tests.tiny.Residual"
    names = ["arg0", "conv1", "bn1", "relu", "conv2", "bn2", "add", "relu_1", "output"]
    assert [step.name for step in found.steps] == names
    assert [step.runs for step in found.steps][:3] == ["argument", "conv1 (Conv2d)", "bn1 (BatchNorm2d)"]
    (join,) = found.meetings
    assert (join.kind, join.fork) == ("residual join", "arg0")
    assert {(side.part, side.weight) for side in join.sides} == {("shortcut", "no layer"), ("branch", "deep")}
    (decision,) = found.decisions
    assert (decision.status, decision.reason) == ("insert", Reason("placement", "placement standard"))


def test_shapes_and_words() -> None:
    steps = {step.name: step for step in explained(net(), "blocks.0").steps}
    assert steps["conv1"].shape == (2, 8, 8, 8)
    assert (steps["conv1"].means, steps["bn1"].means, steps["relu"].means) == ("conv", "norm", "act")
    assert steps["bn1"].inputs == ("conv1",)


def test_sums_and_concatenations() -> None:
    found = explained(net(Parallel), "blocks.0")
    assert {m.kind for m in found.meetings} == {"residual join", "sum", "concatenation"}


def test_refused_sites_are_shown_with_the_rule() -> None:
    rules = {"placement": "standard", "exclude": ["blocks.0"]}
    found = explained(net(n=2), "blocks.0", rules)
    (decision,) = found.decisions
    assert decision.status == "skip"
    assert f"skip  blocks.0:standard: {decision.reason}" in shown(found)


def test_the_model_itself_and_modules_that_carry() -> None:
    assert explained(net(), ".") == explained(net(), "")
    found = explained(Chain(), "features", "conv")
    assert len(found.decisions) == 2
    assert "No join" in shown(found)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("blocks.7", "no module is called 'blocks.7'"),
        ("blocks.0.conv1", "a single node: explain its parent, blocks.0"),
        ("blocks.0.unused", r"unused \(Layers\) does not run in this forward"),
    ],
)
def test_paths_without_a_graph(path: str, message: str) -> None:
    model = net()
    model.blocks[0].unused = Layers()
    with pytest.raises(RulesError, match=message):
        explained(model, path)


@pytest.mark.wording
def test_shown() -> None:
    text = shown(explained(net(), "blocks.0"))
    for part in (
        "blocks.0: tests.tiny.Residual", "2 x 8 x 8 x 8", "residual join add, fork arg0", "shortcut, no layer",
        "insert  blocks.0:standard: placement standard", "blocks.0.se = se(", "start identity",
        "carried by blocks.0 (source, Residual.forward, its line", "absorb: blocks.0.bn2",
    ):  # fmt: skip
        assert part in text, part


@pytest.mark.parametrize("width", [60, 80, 200])
def test_shown_at_every_width(width: int) -> None:
    assert max(map(len, shown(explained(net(), "blocks.0"), width).splitlines())) <= width


@pytest.mark.parametrize("text", EVIL, ids=ascii)
def test_names_are_shown_literally(text: str) -> None:
    if "." in text:
        pytest.skip("no module can have a dot in its name")
    model = net()
    model.blocks._modules[text] = model.blocks._modules.pop("0")
    path = f"blocks.{text}"
    made = shown(explained(model, path), 400)
    assert all(c.isprintable() or c == "\n" for c in made)
    assert tables.visible(path) in made


def test_command_line() -> None:
    runner = CliRunner()
    asked = ["plan", "torchvision:resnet18", "--explain", "layer1.0"]
    result = runner.invoke(main, asked)
    assert result.exit_code == 0, result.output
    assert "residual join add_, fork arg0" in result.stdout and "insert  layer1.0:standard: " in result.stdout
    assert REWORDED or "layer1.0:standard: residual block" in result.stdout
    data = json.loads(runner.invoke(main, [*asked, "--json"]).stdout)
    assert data["cls"] == "torchvision.models.resnet.BasicBlock"
    assert [d["reason"]["code"] for d in data["decisions"]] == ["residual-block"]
    assert runner.invoke(main, [*asked, "-q"]).stdout == ""
    refused = runner.invoke(main, [*asked, "-o", "plan.json"])
    assert refused.exit_code == 2 and "--explain" in refused.stderr
    missing = runner.invoke(main, ["plan", "torchvision:resnet18", "--explain", "layer11"])
    assert missing.exit_code == 1 and "Did you mean" in missing.stderr


def test_plain_data() -> None:
    assert json.dumps(to_dict(explained(net(), "blocks.0")))
