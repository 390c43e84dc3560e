"""Sweeps: the grid, the rows against reports of injections, what fails, the front, and the command."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torchvision
from click.testing import CliRunner, Result
from rich.console import Console
from torch import nn

import se_inject
from se_inject.checks.cost import measure
from se_inject.cli import main
from se_inject.commands.request import RulesRequest
from se_inject.commands.sweep import grid, pareto
from se_inject.commands.sweep import table as sweep_table
from se_inject.commands.sweep.grid import Point
from se_inject.commands.sweep.rows import Row, rows_of
from se_inject.errors import LoadError, RulesError
from se_inject.injection import plan as planning
from se_inject.inputs import resolve
from se_inject.reasons import REASONS
from se_inject.rules.schema import read
from se_inject.types import Reason
from tests.helpers import says
from tests.nets import Basic
from tests.rewording import REWORDED

POINTS = tuple(
    Point("", read({"placement": placement, "ratio": ratio}))
    for placement, ratio in (("auto", 4), ("standard", 16), ("inner", 16), ("inner", 2))
)
FAMILIES: dict[str, Any] = {
    "resnet": lambda: timm.create_model("resnet10t"),
    "mobilenet": lambda: torchvision.models.mobilenet_v2(),
    "grouped": lambda: timm.create_model("regnetx_002"),
    "convnext": lambda: timm.create_model("convnext_atto"),
    "efficientnet": lambda: timm.create_model("efficientnet_b0"),
    "branches": lambda: timm.create_model("inception_next_atto"),
    "tokens": lambda: timm.create_model("swin_tiny_patch4_window7_224"),
}
FAST = {"resnet", "mobilenet"}
MODULE = """
from torch import nn
from tests.nets import Basic, Plain


def make():
    return nn.Sequential(Basic(8, 16, 2), Basic(16, 16))


def plain():
    return Plain()


def broken():
    raise RuntimeError("needs a package")


class Gate(nn.Module):
    def __init__(self, channels, width=4):
        super().__init__()
        self.out = nn.Linear(channels, width)

    def forward(self, x):
        return x
"""
SIZE = ("--input-size", "8,16,16")
COSTS = ("blocks", "base_parameters", "base_macs", "added_parameters", "added_macs")


def report(model: nn.Module, size: Any, rules: Any) -> tuple[int, int, int, int, int]:
    """Blocks, then parameters and MACs before, then what was added."""
    found = se_inject.inject(model, size, rules, verify=False).report
    before, after = found.before, found.after
    added = after.parameters - before.parameters, after.macs - before.macs
    return len(found.sites), before.parameters, before.macs, *added


def numbers(row: Row) -> tuple[int, ...]:
    return tuple(getattr(row, name) for name in COSTS)


# -- rows -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in FAST else [pytest.mark.slow]) for n in FAMILIES])
def test_rows_are_the_reports_of_injections(name: str) -> None:
    model = FAMILIES[name]()
    size = None if name == "tokens" else (3, 64, 64)
    rows = rows_of(name, model, resolve(model, size), POINTS)
    assert [(row.placement, row.ratio) for row in rows] == [("+".join(p.rules.placement), p.ratio) for p in POINTS]
    assert any(row.blocks for row in rows)
    for row, point in zip(rows, POINTS, strict=True):
        if row.blocks:
            assert numbers(row) == report(model, size, point.rules)
        else:
            with pytest.raises(RulesError) as refused:
                se_inject.plan(model, size, point.rules)
            assert row.reason == Reason(refused.value.code, str(refused.value)) and not row.failed


def test_other_blocks_presets_and_budgets() -> None:
    model = nn.Sequential(*[Basic(8, 8) for _ in range(4)])
    asked = (
        {"block": "eca"},
        "se-resnet",
        {"block": {"name": "se", "rd_ratio": 0.5}},
        {"ratio": 2, "budget": {"params": "10%"}},
    )
    points = [Point("", read(rules)) for rules in asked]
    rows = rows_of("m", model, resolve(model, (8, 8, 8)), points)
    assert [numbers(row) for row in rows] == [report(model, (8, 8, 8), rules) for rules in asked]
    assert [(row.block, row.ratio) for row in rows] == [("eca", None), ("se", 16), ("se", 2), ("se", None)]
    assert rows[3].blocks < rows[0].blocks == 4


def test_the_base_is_measured_once_for_all_points(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[nn.Module] = []

    def count(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        measured.append(model)
        return measure(model, *args, **kwargs)

    monkeypatch.setattr(planning, "measure", count)
    model = nn.Sequential(*[Basic(8, 8) for _ in range(4)])
    points = [Point("", read({"ratio": 2, "budget": {"params": share}})) for share in ("5%", "10%", "20%")]
    rows = rows_of("m", model, resolve(model, (8, 8, 8)), points)
    assert measured == [model] and len({row.blocks for row in rows}) == 3


# -- grid -------------------------------------------------------------------------------------------------------------
def test_every_combination_the_last_fastest() -> None:
    axes = {"placement": ("standard,inner", "conv"), "ratio": ("8, 16",)}
    found = list(grid.combinations(RulesRequest(init="paper", again=True), axes))
    assert [(one.placement, one.ratio) for one in found] == [
        ((p,), r) for p in ("standard", "inner", "conv") for r in (8.0, 16.0)
    ]
    assert {(one.block, one.init, one.again) for one in found} == {(None, "paper", True)}


@pytest.mark.parametrize("text", ["16,", "x", "0", "-8", "nan", "inf"])
def test_ratios_that_are_none(text: str) -> None:
    with pytest.raises(RulesError, match=r"--ratio .*(empty|is not a number)"):
        list(grid.combinations(RulesRequest(), {"ratio": (text,)}))


def test_points_that_come_to_the_same_are_one() -> None:
    both = [Point("", read({"block": block, "ratio": ratio})) for block in ("se", "eca") for ratio in (8, 16)]
    assert [(p.block, p.ratio) for p in grid.distinct(both)] == [("se", 8), ("se", 16), ("eca", None)]


def test_a_budget_chooses_the_ratio() -> None:
    rules = [{"ratio": ratio, "budget": {"params": share}} for ratio in (8, 16) for share in ("1%", "2%")]
    points = grid.distinct(Point("", read({**one, "block": {"name": "se", "rd_ratio": 0.5}})) for one in rules)
    assert [(p.rules.budget["params"], p.ratio) for p in points] == [(0.01, None), (0.02, None)]
    without = [Point("", read({"ratio": ratio})) for ratio in (8, 16)]
    assert grid.distinct(without) == tuple(without)


def test_rules_files_of_one_name_are_told_apart() -> None:
    assert grid.labels(["a/r.yaml", "b/r.yaml", ""]) == {"a/r.yaml": "a/r.yaml", "b/r.yaml": "b/r.yaml", "": ""}
    assert grid.labels(["a/r.yaml", "a/r.yaml", "b/s.yaml"]) == {"a/r.yaml": "r.yaml", "b/s.yaml": "s.yaml"}


def test_patterns_of_models() -> None:
    assert grid.models(["torchvision:resnet1?"]) == ["torchvision:resnet18"]
    assert grid.models(["resnet18", "timm:resnet18"][1:] * 2) == ["timm:resnet18"]
    assert grid.models(["resnet1[8]"]) == ["timm:resnet18", "torchvision:resnet18"]
    assert grid.models(["timm:resnet18.a1_in1k"]) == ["timm:resnet18.a1_in1k"]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("timm:resnett18", "no model is called 'timm:resnett18'. Did you mean .*'timm:resnet18'"),
        ("timm:resnt18*", "no model is called 'timm:resnt18\\*'. Did you mean"),
        ("resnet18", "Did you mean 'timm:resnet18'"),
        ("no_such_module:make", "no module named 'no_such_module'"),
        ("os:getcwd", "standard library"),
    ],
)
def test_patterns_that_name_nothing(pattern: str, message: str) -> None:
    with pytest.raises(LoadError, match=message):
        grid.models([pattern])


# -- front and picture ------------------------------------------------------------------------------------------------
def row(name: str, macs: int, parameters: int) -> Row:
    return Row(name, "", "standard", "se", 16.0, "identity", 1, 1000, 1000, parameters, macs)


def test_front() -> None:
    rows = [row("a", 5, 5), row("b", 1, 9), row("c", 9, 1), row("d", 5, 6), row("e", 6, 5), row("f", 5, 5)]
    assert [r.model for r in pareto.front(rows)] == ["b", "a", "f", "c"]
    assert pareto.front([]) == []


ONE, MANY = [row("a", 0, 3)], [row(f"zoo:m{i}", 1 + i, 40 - i) for i in range(30)]


@pytest.mark.parametrize(("kind", "rows"), [("svg", []), ("svg", ONE), ("svg", MANY), ("png", ONE), ("pdf", ONE)])
def test_the_same_rows_draw_the_same_file(kind: str, rows: list[Row]) -> None:
    picture = pareto.draw(rows, kind)
    assert picture == pareto.draw(rows, kind) and len(picture) > 1000


def test_the_front_is_named_at_its_ends() -> None:
    picture = pareto.draw(MANY, "svg").decode()
    named = [f"m{i}" for i in range(len(MANY)) if f"  m{i}, standard / 16<" in picture]
    assert len(named) == pareto.LABELS and (named[0], named[-1]) == ("m0", "m29")


# -- tables -----------------------------------------------------------------------------------------------------------
def rendered(rows: list[Row], *, all: bool = False) -> str:
    console = Console(file=io.StringIO(), width=100)
    sweep_table.render(rows, console, all=all)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_a_long_table_is_medians_and_the_front() -> None:
    rows = [row(f"m{i}", 10 + i, 10 + i) for i in range(sweep_table.SHOWN + 1)]
    short, full = rendered(rows), rendered(rows, all=True)
    assert "+3 %" in short and " 41 " in short and "m0" in short and "m1" not in short and "The other 40 rows" in short
    assert "m40" in full and "median" not in full


def test_ratios_of_presets_are_shown() -> None:
    net = nn.Sequential(Basic(8, 8))
    rows = rows_of(
        "m", net, resolve(net, (8, 8, 8)), [Point("se-resnet", read("se-resnet")), Point("", read("standard"))]
    )
    assert " 16 " in rendered(rows) and sweep_table.to_csv(rows).splitlines()[1].startswith(
        "m,se-resnet,standard,se,16,"
    )
    assert sweep_table.to_csv(rows).splitlines()[2].startswith("m,,standard,se,,")


def test_reasons_of_one_kind_are_told_once() -> None:
    why = "the rules select none of the {0} sites; most often ({0}): already gated by layer1.{0}.se."
    gated = [Row(f"m{i}", "", "inner", reason=Reason("gated", why.format(i))) for i in range(3)]
    failed = Row("z", reason=Reason("error", "cannot be built"))
    alone = Row("y", "", "inner", reason=Reason("no-sites", "no place for inner"))
    text = rendered([*gated, failed, alone])
    assert f"3 x {REASONS['gated']}" in text and "1 x " + str(alone.reason) in text
    assert "1 x " + str(failed.reason) in text and "1 architecture failed" in text


def test_cells_are_safe_from_formulas() -> None:
    rows = [Row("=cmd()", reason=Reason("error", "+1")), row("ok", 1, 2)]
    plus = str(rows[0].reason) if REWORDED else "'+1"
    first, second = csv.DictReader(io.StringIO(sweep_table.to_csv(rows)))
    assert (first["model"], first["reason"], first["base_macs"], first["front"]) == ("'=cmd()", plus, "", "")
    assert (first["code"], second["code"]) == ("error", "")
    assert (second["model"], second["added_macs"], second["front"]) == ("ok", "1", "1")


def test_speed() -> None:
    rows = [Row(f"m{i}", "", "standard") for i in range(1000) for _ in range(6)]
    assert sweep_table.speed(rows, 212.4) == "1,000 architectures, 6,000 grid points in 212 s: 4.7 architectures/s"


# -- the command ------------------------------------------------------------------------------------------------------
@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "sweep_nets.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "sweep_nets", None)
    monkeypatch.delitem(sys.modules, "sweep_nets")
    return tmp_path


def run(*args: str) -> Result:
    return CliRunner(env={"COLUMNS": "100"}).invoke(main, ["sweep", *args])


def told(result: Result, code: str, text: str) -> bool:
    """Whether the first row has a reason of this code, with the text in it."""
    return says(Reason(**json.loads(result.stdout)[0]["reason"]), code, text)


def test_the_command(here: Path) -> None:
    models = [f"sweep_nets:{name}" for name in ("make", "broken", "plain")]
    grid_options = ("--placement", "standard,inner", "--ratio", "2,4", "--jobs", "2")
    result = run(*models, *SIZE, *grid_options, "--csv", "a.csv", "--plot", "a.svg")
    assert result.exit_code == 0, result.stderr or result.exception
    said = "3 architectures, 8 grid points: 2 with blocks, 6 where the rules take none, 1 architecture failed."
    assert said in " ".join(result.stdout.split())
    assert (REWORDED or "needs a package" in result.stdout) and "Written to a.csv" in result.stdout
    assert " architectures/s" in result.stderr and "architectures/s" not in result.stdout
    written = (here / "a.csv").read_bytes(), (here / "a.svg").read_bytes()
    rows = list(csv.DictReader(io.StringIO(written[0].decode())))
    assert [r["model"] for r in rows] == [models[0]] * 4 + [models[1]] + [models[2]] * 4
    net = nn.Sequential(Basic(8, 16, 2), Basic(16, 16))
    expected = [report(net, (8, 16, 16), {"placement": "standard", "ratio": ratio}) for ratio in (2, 4)]
    assert [tuple(int(r[name]) for name in COSTS) for r in rows[:2]] == expected
    again = run(*models, *SIZE, *grid_options, "--csv", "a.csv", "--plot", "a.svg", "--force", "--json")
    assert again.exit_code == 0 and written == ((here / "a.csv").read_bytes(), (here / "a.svg").read_bytes())
    assert [tuple(r[name] for name in COSTS) for r in json.loads(again.stdout)][:2] == expected


def test_a_block_of_ones_own_is_known_in_other_processes(here: Path) -> None:
    result = run("sweep_nets:make", *SIZE, "--block", "se,sweep_nets:Gate", "--json")
    assert result.exit_code == 0, result.stderr or result.exception
    rows = json.loads(result.stdout)
    assert [(r["block"], r["blocks"]) for r in rows] == [("se", 2), ("sweep_nets:Gate", 2)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--placement", "standard,iner"], "'iner' is not known. Did you mean 'inner'?"),
        (["--block", "se,sse"], "no block is called 'sse'"),
        (["--init", "identity,absorbed"], "'absorbed' is not known. Did you mean 'absorb'?"),
        (["--rules", "se-resnet,se-resnt"], "'se-resnt' is no placement, preset or YAML file. Did you mean"),
        (["--ratio", "8,many"], "--ratio 'many' is not a number"),
        (["--plot", "a.bmp"], "a picture is one of .svg, .png, .pdf"),
        (["--input-size", "8,x"], "--input-size '8,x': expected whole numbers"),
        (["--model-arg", "width"], "model arg 'width': expected NAME=VALUE"),
        (["--block-arg", "gat=relu"], "se has no option 'gat'"),
        (["--block-arg", "gate=nope"], "block se: gate: 'nope' is none of"),
        (["--ratio", "16,0.125", "--block-arg", "rd_min=0"], "block se: rd_min: 0 is not an integer above 0"),
        (["--block-arg", "gate=tanh1", "--init", "identity,absorb"], "block se: gate: tanh1 is 1 at zero"),
        (["--rules", "entry.yaml"], "block se: gate: 'nope' is none of"),
        (["--csv", "a.svg", "--plot", "./a.svg"], "--csv and --plot both write a.svg"),
        (["--csv", "there.csv"], "there.csv exists"),
        (["--csv", "missing/a.csv"], "there is no folder missing"),
    ],
)
def test_refused_in_one_line_before_anything_starts(
    here: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], message: str
) -> None:
    monkeypatch.setattr("se_inject.commands.sweep.run.run", None)
    (here / "there.csv").touch()
    (here / "entry.yaml").write_text("sites: [{stages: 1}, {block: {name: se, gate: nope}}]")
    result = run("sweep_nets:make", *options)
    assert result.exit_code == 1 and message in result.stderr and result.stderr.count("\n") == 1


def test_when_every_model_fails_so_does_the_command(here: Path) -> None:
    result = run("sweep_nets:broken", *SIZE, "--csv", "a.csv", "--json")
    assert result.exit_code == 1 and told(result, "load", "needs a package")
    assert (here / "a.csv").exists()
    nothing = run("sweep_nets:plain", *SIZE, "--placement", "inner", "--json")
    assert nothing.exit_code == 0 and not json.loads(nothing.stdout)[0]["blocks"]


def test_rules_files_of_one_name_and_a_budget(here: Path) -> None:
    for folder, share in (("a", "5%"), ("b", "10%")):
        (here / folder).mkdir()
        (here / folder / "r.yaml").write_text(f"budget: {{params: {share}}}")
    result = run("sweep_nets:make", *SIZE, "--rules", "a/r.yaml,b/r.yaml", "--ratio", "2,4", "--json")
    assert result.exit_code == 0, result.stderr or result.exception
    assert [(r["rules"], r["ratio"]) for r in json.loads(result.stdout)] == [("a/r.yaml", None), ("b/r.yaml", None)]


def test_a_block_too_narrow_for_one_model_is_a_row(here: Path) -> None:
    result = run("sweep_nets:make", *SIZE, "--block", "gc", "--block-arg", "rd_min=1", "--ratio", "16", "--json")
    assert result.exit_code == 0, result.stderr or result.exception
    assert told(result, "rules", "too narrow")


def test_a_picture_needs_matplotlib(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = run("sweep_nets:make", "--plot", "a.svg")
    assert result.exit_code == 1 and "pip install 'se_inject[plot]'" in result.stderr


@pytest.mark.slow
def test_forty_architectures(tmp_path: Path) -> None:
    patterns = ["timm:*18*", "timm:*34*", "timm:*_atto*", "timm:*_pico*", "timm:*_femto*"]
    result = run(*patterns, "--placement", "standard,inner", "--ratio", "8,16", "--json")
    rows = json.loads(result.stdout)
    models = list(dict.fromkeys(r["model"] for r in rows))
    assert len(models) >= 40 and models == grid.models(patterns)
    assert not [r for r in rows if not r["placement"]]
    for name in models[:: len(models) // 6]:
        model = timm.create_model(name.partition(":")[2])
        for r in (r for r in rows if r["model"] == name and r["blocks"]):
            costs = tuple(r[name] for name in COSTS)
            assert costs == report(model, None, {"placement": r["placement"], "ratio": r["ratio"]})
