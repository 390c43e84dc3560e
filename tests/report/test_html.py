"""``report.html``: parsed and compared, never trusted by its looks; ``tests/report/test_browser.py`` opens it."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import se_inject
from se_inject.cli import main
from se_inject.errors import VerifyError
from se_inject.report import tables
from se_inject.report.formats import from_json, to_json
from se_inject.report.html import diagram, notebook, view
from se_inject.report.html.graph import STEP, graph, without
from se_inject.report.html.methods import LONGEST, diff
from se_inject.report.html.page import digest, to_html
from se_inject.search.placements import PLACEMENTS
from se_inject.types import Check, GraphNode, Reason, Report, Rewrite, SiteCost
from tests import tiny
from tests.helpers import calls
from tests.report.test_report import EVIL, GATED, evil, insert, sample, site

MORE_EVIL = ["</style><b>", "</script><script>alert(1)</script>", "javascript:alert(1)", "\x1b[2J", "\u202etxt.exe",
             "' onmouseover='alert(1)", "\" onload=\"alert(1)", "{{ 7 * 7 }}{% raw %}", "=HYPERLINK(\"http://x\")",
             "<!-- x", "<svg/onload=alert(1)>", "]]>", "&amp;"]  # fmt: skip
VOID = {"meta", "link", "br", "hr", "img", "input", "rect", "path", "circle"}


class Page(HTMLParser):
    """Elements with their attributes, the text of the body, and the raw text of style and script."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, tuple[str, ...]]] = []
        self.values: list[tuple[str, str, str]] = []
        self.open: list[str] = []
        self.raw: dict[str, str] = {}
        self.text: list[str] = []
        self.comments = 0
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, tuple(name for name, _ in attrs)))
        self.values += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing that is open"

    def handle_comment(self, data: str) -> None:
        self.comments += 1

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("style", "script"):
            self.raw[self.open[-1]] = self.raw.get(self.open[-1], "") + data
        else:
            self.text.append(data)

    def value(self, tag: str, name: str) -> list[str]:
        return [value for t, n, value in self.values if (t, n) == (tag, name)]


def big(sites: int) -> Report:
    """A report with that many insertions and as many skips."""
    report = sample()
    owners = [site(f"stages.{i // 50}.blocks.{i}", 64 + i % 7) for i in range(sites)]
    decisions = tuple(insert(owner, 8) for owner in owners) + tuple(
        replace(
            insert(site(f"other.{i}", 3), None),
            status="skip",
            reason=Reason("gated", f"already gated by other.{i}.gate"),
        )
        for i in range(sites)
    )
    costs = tuple(SiteCost(owner.id, 100, 90, 10_000, 5_000) for owner in owners)
    before = report.before
    after = replace(
        before,
        parameters=before.parameters + 100 * sites,
        macs=before.macs + 90 * sites,
        elementwise=before.elementwise + 10_000 * sites,
    )
    return replace(report, plan=replace(report.plan, decisions=decisions), sites=costs, after=after)


# ---------------------------------------------------------------- structure


def test_page_is_well_formed() -> None:
    page = Page(to_html(sample()))
    assert page.open == []
    ids = [value for _, name, value in page.values if name == "id"]
    assert len(ids) == len(set(ids))
    assert {link.removeprefix("#") for link in page.value("a", "href")} <= set(ids)


def test_policy_names_the_style_and_the_script_by_their_hashes() -> None:
    page = Page(to_html(sample()))
    (policy,) = (v for v in page.value("meta", "content") if "default-src" in v)
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules == {
        "default-src": "'none'",
        "style-src": f"'{digest(page.raw['style'])}'",
        "script-src": f"'{digest(page.raw['script'])}'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }


def test_page_fetches_nothing_and_has_no_inline_handlers_or_styles() -> None:
    text = to_html(sample())
    page = Page(text)
    names = {name for _, name, _ in page.values}
    assert not {n for n in names if n.startswith("on")} and not names & {"style", "src", "srcset", "action", "data"}
    assert all(link.startswith("#") for link in page.value("a", "href"))
    assert not re.search(r"url\(|@import|https?:", text)
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"link", "img", "iframe", "object", "embed", "base", "use", "image", "foreignObject"}


def test_nothing_needs_the_script() -> None:
    """What only the script makes work is hidden in the page as written; all else shows."""
    page = Page(to_html(sample()))
    hidden = [dict.fromkeys(names) for tag, names in page.elements if "hidden" in names]
    assert len(hidden) == 4  # fold all, the filters, and the button below the table with its paragraph
    shown = " ".join(page.text)
    for row in tables.site_rows(sample().plan, sample().sites):
        assert row.parameters in shown and row.macs in shown


def test_same_report_same_page() -> None:
    report = sample()
    other = replace(report, versions=dict(reversed(report.versions.items())))
    assert to_html(other) == to_html(report)
    assert to_html(sample()) == to_html(sample())


def test_a_report_that_disagrees_with_itself_has_no_page() -> None:
    with pytest.raises(VerifyError, match="disagrees with itself"):
        to_html(replace(sample(), sites=sample().sites[:1]))


# ---------------------------------------------------------------- contents


def test_columns_add_up() -> None:
    """Each column of figures in the table sums to the difference of the totals, and the charts show the same sums."""
    report = sample()
    cells = re.findall(r'data-v="(-?\d+)" data-l="(parameters|MACs|element-wise)"', to_html(report))
    sums = {label: sum(int(v) for v, name in cells if name == label and v != "-1") for _, label in cells}
    before, after = report.before, report.after
    assert sums == {
        "parameters": after.parameters - before.parameters,
        "MACs": after.macs - before.macs,
        "element-wise": after.elementwise - before.elementwise,
    }
    charts = {chart.name: chart.total for chart in view.context(report)["charts"]}
    assert charts["parameters"] == tables.count(sums["parameters"])
    assert charts["MACs"] == tables.count(sums["MACs"])


def test_page_says_all_of_the_report() -> None:
    report = sample()
    shown = " ".join("".join(Page(to_html(report)).text).split())
    for part in (
        report.plan.model, tables.headline(report.plan), report.plan.fingerprint, GATED.text,
        str(report.plan.decisions[1].site.note), *map(str, report.plan.notes), "1 of 3 checks failed",
        "it needs targets", "tiny.pth", "44.68 MiB", "aten.mv x 1", "num_classes", 'se_inject.load("out")', "2.14.1",
    ):  # fmt: skip
        assert part in shown, part


def test_checkpoint_bytes() -> None:
    row = view.context(sample())["checkpoint"]
    assert (row.after, row.added) == ("44.68 MiB", "+85.56 KiB")
    assert view.context(replace(sample(), artifacts=()))["checkpoint"] is None


def test_a_model_of_ones_own_is_given_to_load() -> None:
    report = sample()
    assert 'load("out", model=base)' in "".join(
        Page(to_html(replace(report, plan=replace(report.plan, model="nets.Net")))).text
    )


@pytest.mark.parametrize("change", ["no checks", "no insertions", "nothing else"])
def test_page_of_less(change: str) -> None:
    report = sample()
    if change == "no checks":
        report = replace(report, checks=())
    elif change == "no insertions":
        report = replace(report, plan=replace(report.plan, decisions=report.plan.skips), sites=(), after=report.before)
    else:
        report = replace(report, source={}, versions={}, artifacts=(), rewritten={})
    assert Page(to_html(report)).open == []


# ---------------------------------------------------------------- the source


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("y = self.bn(x)", "y = self.se(self.bn(x))"),
        ("return self.act(x) + x", "return self.se_1(self.act(x)) + x"),
        ("x += y", "x += y; x = self.se(x)"),
        ("x += y", "x = self.se(x); x += y"),
        ("y = self.bn('größe', x)", "y = self.se(self.bn('größe', x))"),
        ("return x", "return self.se(self.se_1(x))"),
    ],
)
def test_the_original_is_what_is_left(old: str, new: str) -> None:
    frame = "class SEBlock(Block):\n    def forward(self, x):\n        {}\n        return z\n"
    lines = diff(Rewrite(frame.format(old), frame.format(new)))
    before = "".join("".join(t for t, _ in line.parts) + "\n" for line in lines if line.mark != "+")
    after = "".join("".join(t for t, _ in line.parts) + "\n" for line in lines if line.mark != "-")
    assert (before, after) == (frame.format(old), frame.format(new))
    assert any(marked for line in lines for _, marked in line.parts)


@pytest.mark.parametrize(
    ("old", "new", "inserted"),
    [
        ("y = self.bn(x)", "y = self.se(self.bn(x))", ["self.se(", ")"]),
        ("return self.act(x)", "return self.se(self.act(x))", ["self.se(", ")"]),
        ("return self.se(x)", "return self.se_1(self.se(x))", ["self.se_1(", ")"]),
        ("x += y", "x += y; x = self.se(x)", ["; x = self.se(x)"]),
        ("x += y", "x = self.se(x); x += y", ["x = self.se(x); "]),
    ],
)
def test_only_what_was_inserted_is_marked(old: str, new: str, inserted: list[str]) -> None:
    (before, after) = diff(Rewrite(old, new))
    assert before.parts == ((old, False),) and [text for text, marked in after.parts if marked] == inserted


@pytest.mark.parametrize("text", ["def f(self, x):\n    return self.se(x)\n", "def (", "(" * 5000])
@pytest.mark.parametrize("kept", [True, False])
def test_what_is_the_same_or_was_not_kept_is_not_marked(text: str, kept: bool) -> None:
    lines = diff(Rewrite(text if kept else "", text))
    assert {line.mark for line in lines} == {" "}
    assert "".join(t + "\n" for line in lines for t, _ in line.parts) == text.rstrip("\n") + "\n"


def test_a_call_over_several_lines() -> None:
    text = "def f(self, x):\n    return {}self.bn(\n        x\n    ){}\n"
    lines = diff(Rewrite(text.format("", ""), text.format("self.se(", ")")))
    assert [line.mark for line in lines] == [" ", "-", "+", " ", "-", "+"]


def test_a_line_of_its_own() -> None:
    text = "def f(self, x):\n    {}return self.bn(x)\n"
    lines = diff(Rewrite(text.format(""), text.format("x = self.se(x)\n    ")))
    assert [(line.mark, line.number) for line in lines] == [(" ", 1), ("+", 2), (" ", 3)]
    assert lines[1].parts == (("    x = self.se(x)", True),)


def test_texts_too_long_to_compare_are_shown_as_they_are() -> None:
    lines = diff(Rewrite("(" * LONGEST, ")" * LONGEST))
    assert [line.mark for line in lines] == [" "]


def test_real_classes() -> None:
    injection = tiny.inject(tiny.net())
    (change,) = view.context(injection.report)["changes"]
    marked = [line for line in change.lines if line.mark != " "]
    assert ["".join(t for t, _ in line.parts).strip() for line in marked] == [
        "y = self.bn2(self.conv2(y))",
        "y = self.se(self.bn2(self.conv2(y)))",
    ]


@pytest.mark.parametrize("name", [*PLACEMENTS, "of tomorrow"])
def test_every_placement_has_a_picture(name: str) -> None:
    before, after = (diagram.placement(name, "se", after=after) for after in (False, True))
    assert ("new" in after) is (name in PLACEMENTS)
    assert 'class="new"' not in before


# ---------------------------------------------------------------- graphs


def nodes_of(block: Any, rules: Any = "standard") -> tuple[GraphNode, ...]:
    (nodes,) = tiny.inject(tiny.net(block), rules).report.graphs.values()
    return nodes


def test_graph_of_a_block() -> None:
    nodes = {node.name: node for node in nodes_of(tiny.Residual)}
    assert [n.label for n in nodes.values() if n.new] == ["se"]
    assert nodes["+"].inputs == ("bn2",) and nodes["add"].inputs == ("arg0", "+")
    before = {node.name: node for node in without(tuple(nodes.values()))}
    assert "+" not in before and before["add"].inputs == ("arg0", "bn2")


def test_graph_of_one_user_alone() -> None:
    """`pre` gates what the branch takes, and not what the shortcut takes."""
    nodes = {node.name: node for node in nodes_of(tiny.Residual, "pre")}
    assert nodes["conv1"].inputs == ("+",) and nodes["add"].inputs == ("arg0", "bn2")


def test_graphs_are_drawn_once_for_each_change() -> None:
    report = tiny.inject(tiny.net(n=3)).report
    assert list(report.graphs) == ["blocks.0:standard"]
    assert from_json(to_json(report)) == report
    page = Page(to_html(report))
    assert [v for v in page.value("svg", "class") if v == "graph"] == ["graph"] * 2


def test_long_graphs_are_cut_around_the_block() -> None:
    class Long(tiny.Residual):
        def forward(self, x):
            y = x
            for _ in range(40):
                y = y * 1.5
            return self.bn2(self.conv2(self.first(y))) + x

    nodes = nodes_of(Long)
    assert 10 < len(nodes) < 30 and sum(node.new for node in nodes) == 1
    names = {node.name for node in nodes}
    assert all(name in names for node in nodes for name in node.inputs)


def test_edges_in_one_lane_do_not_overlap() -> None:
    nodes = [GraphNode(str(i), "n", tuple(str(j) for j in range(i))) for i in range(7)]
    paths = re.findall(r'd="M[\d.]+ (\d+)H(\d+)V(\d+)H', graph(nodes))
    assert len(paths) == 15
    lanes: dict[str, list[tuple[int, int]]] = {}
    for start, lane, end in paths:
        lanes.setdefault(lane, []).append((int(start), int(end)))
    for edges in lanes.values():
        edges.sort()
        assert all(a[1] <= b[0] + STEP for a, b in itertools.pairwise(edges))


@pytest.mark.parametrize("text", [*EVIL, *MORE_EVIL], ids=ascii)
def test_labels_of_graphs_are_text(text: str) -> None:
    def nodes(label: str) -> tuple[GraphNode, ...]:
        return (
            GraphNode(label, label),
            GraphNode("b", label, (label, "nobody")),
            GraphNode("+", label, ("b",), new=True),
        )

    first = sample().plan.insertions[0].site.id
    made = to_html(replace(sample(), graphs={first: nodes(text)}))
    assert shape(made) == shape(to_html(replace(sample(), graphs={first: nodes("harmless")})))
    assert all(c.isprintable() or c == "\n" for c in made)


# ---------------------------------------------------------------- names that nobody should trust


def shape(text: str) -> list[Any]:
    """All elements with the names of their attributes; bars aside, no value of which depends on a name."""
    return [(tag, names) for tag, names in Page(text).elements]


@pytest.mark.parametrize("text", [*EVIL, *MORE_EVIL], ids=ascii)
def test_names_add_no_element(text: str) -> None:
    made = to_html(evil(text))
    page = Page(made)
    lines = f"# {text}".count("\n") + 1  # a line of source is a row of its own
    harmless = replace(evil("harmless"), rewritten={"harmless": Rewrite("", "harmless\n" * lines)})
    assert shape(made) == shape(to_html(harmless)), "an element or an attribute that the template has not"
    assert page.open == [] and page.comments == 0
    assert (page.raw["style"], page.raw["script"]) == tuple(Page(to_html(sample())).raw[k] for k in ("style", "script"))
    assert "".join(page.text).count(tables.visible(text)) >= 10
    assert all(c.isprintable() or c in "\n" for c in made)
    made.encode()


@pytest.mark.parametrize("text", [*EVIL, *MORE_EVIL], ids=ascii)
def test_notebooks_show_names_literally(text: str) -> None:
    for render in (notebook.report, lambda report: notebook.plan(report.plan)):
        made, harmless = render(evil(text)), render(evil("harmless"))
        assert [tag for tag, _ in Page(made).elements] == [tag for tag, _ in Page(harmless).elements]
        assert tables.visible(text) in "".join(Page(made).text)


def test_the_structure_test_can_fail() -> None:
    made = to_html(evil("harmless"))
    assert shape(made.replace("harmless", "<br>", 1)) != shape(made)


# ---------------------------------------------------------------- size, notebooks, files


def test_five_hundred_sites_are_small_and_take_work_by_the_site() -> None:
    to_html(sample())  # the template is compiled once
    few, many = big(25), big(100)
    assert calls(lambda: to_html(many)) <= 4 * calls(lambda: to_html(few))
    assert len(to_html(big(500)).encode()) < 1_500_000


def test_notebooks() -> None:
    report = sample()
    assert "+0.19 %" in report._repr_html_() and "FAIL keys" in report._repr_html_()
    assert "layer1.0.se" in report.plan._repr_html_() and "5 skipped" in report.plan._repr_html_()
    assert "11.69 M" in report.before._repr_html_()
    assert "and 30 more" in big(80).plan._repr_html_()
    assert "not checked" in replace(report, checks=())._repr_html_()
    injection = tiny.inject(tiny.net())
    assert injection._repr_html_() == injection.report._repr_html_()


def test_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    se_inject.save(tiny.inject(tiny.net()), "out")
    written = Path("out/report.html").read_text()
    runner = CliRunner()
    assert runner.invoke(main, ["report", "out", "--format", "html"]).stdout == written
    asked = ["report", "out", "--format", "html", "-o", "page.html"]
    assert runner.invoke(main, asked).exit_code == 0 and Path("page.html").read_text() == written
    again = runner.invoke(main, asked)
    assert again.exit_code == 1 and "--force" in again.stderr
    assert runner.invoke(main, [*asked, "--force"]).exit_code == 0
    over = runner.invoke(main, [*asked[:-1], "out/report.json", "--force"])
    assert over.exit_code == 1 and "input of this run" in over.stderr
    assert runner.invoke(main, ["report", "out", "-o", "page.txt"]).exit_code == 2


def test_written_beside_the_other_reports(tmp_path: Any) -> None:
    report = se_inject.save(tiny.inject(tiny.net()), tmp_path / "out")
    assert (tmp_path / "out" / "report.html").read_bytes().decode() == to_html(report)
    assert any(check == Check("read back", True, check.detail) for check in report.checks)
