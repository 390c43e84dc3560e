"""One report, rendered for machines, for people, and for a terminal; golden files under ``tests/golden``."""

from __future__ import annotations

import html
import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jsonschema
import pytest
from markdown_it import MarkdownIt
from rich.console import Console

from se_inject.errors import LoadError, VerifyError
from se_inject.injection.inject import rewritten
from se_inject.report import tables
from se_inject.report.formats import from_json, render_checks, render_plan, schema, to_json, to_markdown, to_terminal
from se_inject.report.html.page import to_html
from se_inject.types import (
    Argument,
    Artifact,
    Check,
    Cost,
    Decision,
    GateStats,
    InputSpec,
    Plan,
    Reason,
    Report,
    Rewrite,
    Site,
    SiteCost,
    to_dict,
)
from tests import tiny
from tests.conftest import ACCEPT
from tests.helpers import ROOT, site_at

Golden = Callable[[str, str], None]


def site(owner: str, channels: int, placement: str = "standard", cls: str = "BasicBlock", **more: Any) -> Site:
    fields = {"channels": channels, "shape": (2, channels, 56, 56), "block_channels": channels}
    return site_at(owner, placement, cls=cls, order=0, block=owner, **fields, **more)


GATED = Reason("gated", "already gated: mul by a sigmoid of its mean")
RESIDUAL = Reason("residual-block", "residual block")


def insert(where: Site, reduced: int | None, reason: Reason = RESIDUAL) -> Decision:
    kwargs = {"channels": where.channels} | ({} if reduced is None else {"rd_channels": reduced})
    return Decision(where, "insert", reason, kwargs=kwargs)


METHOD = "def forward(self, x):\n\treturn {} + x  # `s`\n"


def sample() -> Report:
    """A small model with everything that a report can hold."""
    decisions = (
        insert(site("layer1.0", 64), 8),
        insert(site("layer2.0", 128, note=Reason("eval-mode-only", "runs in eval mode only")), 8),
        insert(
            site("features.1.conv", 96, "inner", "InvertedResidual"),
            None,
            Reason("depthwise-block", "depthwise 3x3 followed by a 1x1 projection"),
        ),
        Decision(site("stem", 32, "conv"), "skip", Reason("no-block", "auto: no block of its own")),
        *(Decision(site(f"layer3.{i}", 256), "skip", GATED) for i in range(5)),
    )
    plan = Plan(
        model="timm:tiny",
        model_args={"num_classes": 10},
        inputs=InputSpec("batch", (3, 224, 224), (Argument("0", "float32", (2, 3, 224, 224)),)),
        fingerprint="f" * 64,
        rules={"placement": "auto"},
        seed=0,
        decisions=decisions,
        notes=(Reason("real-run", "head could not be followed: a loop over a tensor"),),
    )
    sites = (
        SiteCost("layer1.0:standard", 1096, 1024, 401_480, 800_000),
        SiteCost("layer2.0:standard", 2184, 2048, 200_968, 400_000),
        SiteCost("features.1.conv:inner", 18_624, 18_432, 602_208, 1_200_000),
    )
    before = Cost(11_689_512, 1_814_073_344, 22_500_000, 24_000_000, {"aten.topk": 2})
    after = Cost(
        before.parameters + sum(s.parameters for s in sites),
        before.macs + sum(s.macs for s in sites),
        before.elementwise + sum(s.elementwise for s in sites),
        before.activation_bytes + 2_000_000,
        {"aten.topk": 2, "aten.mv": 1},
    )
    checks = (
        Check("structure", True, "3 graphs equal what was spliced"),
        Check("outputs (train)", None, "the original does not run so in train mode: it needs targets", "fails"),
        Check("keys", False, "1 keys lost, the first is fc.weight", "keys"),
    )
    return Report(
        plan,
        before,
        after,
        sites,
        checks,
        source={"weights": "checkpoint", "file": "tiny.pth", "stripped": ["module."], "ema": None},
        versions={"torch": "2.14.1", "se_inject": "0.1.0"},
        artifacts=(Artifact("model.safetensors", 46_852_416), Artifact("plan.json", 512)),
        rewritten={"SEBasicBlock (tiny)": Rewrite(METHOD.format("self.bn2(x)"), METHOD.format("self.se(self.bn2(x))"))},
    )


def terminal(render: Callable[[Console], None], width: int = 80, encoding: str = "utf-8", **options: Any) -> str:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="")
    render(Console(file=file, width=width, legacy_windows=False, **{"color_system": None, **options}))
    file.flush()
    return file.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]


# ---------------------------------------------------------------- golden files


@pytest.mark.wording
def test_golden_json(golden: Golden) -> None:
    golden("report.json", to_json(sample()))


@pytest.mark.wording
def test_golden_markdown(golden: Golden) -> None:
    golden("report.md", to_markdown(sample()))


@pytest.mark.wording
def test_golden_terminal(golden: Golden) -> None:
    golden("report.txt", terminal(lambda console: to_terminal(sample(), console)))


@pytest.mark.wording
def test_golden_plan(golden: Golden) -> None:
    golden("plan.txt", terminal(lambda console: render_plan(sample().plan, console, all=True)))


# ---------------------------------------------------------------- JSON


def test_json_round_trip() -> None:
    report = sample()
    assert from_json(to_json(report)) == report
    assert json.loads(to_json(report))["schema"] == 2


def test_json_is_stable() -> None:
    report = sample()
    other = replace(
        report, source=dict(reversed(report.source.items())), versions=dict(reversed(report.versions.items()))
    )
    assert to_json(other) == to_json(report)


def changed(path: str, value: Any) -> str:
    """The sample's JSON with one field set."""
    data = at = to_dict(sample())
    *parents, last = path.split(".")
    for key in parents:
        at = at[int(key) if isinstance(at, list) else key]
    at[last] = value
    return json.dumps(data)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "schema None"),
        ("[" * 100_000, "not JSON"),
        (changed("schema", 3), "schema 3, this version reads 2"),
        (changed("more", 1), "unknown field 'more'"),
        (changed("before.macs", "1"), "before.macs: expected int"),
        (changed("before.macs", 2**63), "too large"),
        (changed("before.macs", float("nan")), "NaN"),
        (changed("plan.decisions.0.status", "maybe"), "expected one of 'insert', 'skip'"),
        (changed("plan.decisions.0.site.carrier", None), "'layer1.0:standard' is inserted, but has no carrier"),
        ('{"schema": 1, "schema": 1}', "stands twice"),
    ],
)
def test_json_that_is_refused(text: str, message: str) -> None:
    with pytest.raises(LoadError, match=re.escape(message)):
        from_json(text)


# ---------------------------------------------------------------- sums


def doctored(**changes: Any) -> Report:
    report = sample()
    return replace(report, after=replace(report.after, **changes))


RENDERERS: list[Callable[[Report], Any]] = [to_json, to_markdown, lambda r: to_terminal(r, Console(file=io.StringIO()))]


@pytest.mark.parametrize("render", RENDERERS, ids=["json", "markdown", "terminal"])
@pytest.mark.parametrize("column", ["parameters", "macs", "elementwise"])
def test_columns_that_do_not_add_up(render: Callable[[Report], Any], column: str) -> None:
    right = getattr(sample().after, column)
    with pytest.raises(VerifyError, match=f"disagrees with itself: {column} .*but the total after is {right + 1:,}"):
        render(doctored(**{column: right + 1}))
    render(doctored(**{column: right}))


def test_a_site_too_few() -> None:
    report = sample()
    with pytest.raises(VerifyError, match="costs for 2 sites, the plan has 3"):
        to_json(replace(report, sites=report.sites[1:]))
    with pytest.raises(VerifyError, match="total after"):
        from_json(changed("after.macs", 7))


# ---------------------------------------------------------------- units


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1.00 K"),
        (999_994, "999.99 K"),
        (999_995, "1.00 M"),
        (1_230_000, "1.23 M"),
        (4_089_184_256, "4.09 G"),
        (-90_112, "-90.11 K"),
        (2**62, "4611.69 P"),
    ],
)
def test_count(number: int, text: str) -> None:
    assert tables.count(number) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.00 KiB"), (46_852_416, "44.68 MiB"), (-2048, "-2.00 KiB")],
)
def test_size(number: int, text: str) -> None:
    assert tables.size(number) == text


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [
        (100, 101, "+1.00 %"),
        (100, 100, "+0.00 %"),
        (200, 100, "-50.00 %"),
        (10**9, 10**9 + 3, "+3e-07 %"),
        (25_557_032, 28_088_024, "+9.90 %"),
        (0, 5, "n.a."),
    ],
)
def test_percent(before: int, after: int, text: str) -> None:
    assert tables.percent(before, after) == text


# ---------------------------------------------------------------- what a person sees


def test_terminal_names_the_first_sites_of_a_reason_or_all() -> None:
    some = terminal(lambda console: to_terminal(sample(), console), width=120)
    assert "layer3.0:standard, layer3.1:standard, layer3.2:standard and 2 more (--all)" in some
    assert "layer3.4:standard" not in some
    every = terminal(lambda console: to_terminal(sample(), console, all=True))
    assert [f"layer3.{i}:standard" in every for i in range(5)] == [True] * 5
    assert "--all" not in every


def test_plan_that_inserts_nothing() -> None:
    plan = sample().plan
    text = terminal(lambda console: render_plan(replace(plan, decisions=plan.skips), console))
    assert "0 blocks would be inserted, 6 sites skipped" in text


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_terminal_folds_long_paths(width: int) -> None:
    path = "backbone." + ".".join(f"very_long_name_{i}" for i in range(8))
    plan = replace(sample().plan, decisions=(insert(site(path, 64), 8), *sample().plan.skips))
    text = terminal(lambda console: render_plan(plan, console), width)
    assert max(map(len, text.splitlines())) <= width
    assert "64 -> 8" in text and "standard" in text
    first_column = [line.split("  ")[0].strip() for line in text.splitlines()]
    assert f"{path}.se" in (first_column if width == 200 else "".join(first_column))


def test_terminal_in_ascii() -> None:
    plan = replace(sample().plan, model="größe", decisions=(insert(site("größe", 64), 8),))
    text = terminal(lambda console: render_plan(plan, console), encoding="ascii")
    assert "gr\\xf6\\xdfe.se" in text


def test_checks_alone() -> None:
    text = terminal(lambda console: render_checks(sample().checks, console), width=120)
    assert [line.split()[0] for line in text.splitlines()] == ["pass", "n.a.", "FAIL"]


def test_report_of_a_model_without_skips_and_checks() -> None:
    report = sample()
    plain = replace(report, plan=replace(report.plan, decisions=report.plan.insertions, notes=()), checks=(), source={})
    plain = replace(plain, artifacts=(), rewritten={}, versions={}, after=replace(report.after, uncounted={}))
    text = to_markdown(plain)
    assert re.findall("^#+ .*", text, re.M) == [
        "# `timm:tiny`: 3 blocks inserted (se, start identity), 0 sites skipped",
        "## Cost",
        "## Inserted",
        "## Notes",
    ]
    assert "Not counted: nothing that this model runs." in text
    assert "Skipped" not in terminal(lambda console: to_terminal(plain, console))


# ---------------------------------------------------------------- names that nobody should trust

EVIL = [
    "[red]x[/red]",
    "\x1b[31mred\x1b[0m\x1b]8;;http://x\x07",
    "a|b||c",
    "`tick` ```fence",
    "<script>alert(1)</script>",
    "</td><img src=x onerror=alert(1)>",
    "[text](javascript:alert(1)) ![i](http://x)",
    "https://example.com www.example.com",
    "line\nbreak\r\n# heading\u2028x",
    "\u202eabc\u200b\ufeff",
    "\ud800",
    "&lt;b&gt; &#124;",
    "**bold** _it_ ~~no~~ $x$",
    "\\| \\\\| trailing\\",
    "1. x",
    "- x",
    "    x",
    ":smile: {x}",
]


def evil(text: str) -> Report:
    """The sample with ``text`` in every place that a model or a file can reach."""
    report = sample()
    said = Reason("gated", text)
    bad = site(text, 64, cls=text, note=said)
    decisions = (insert(bad, 8, said), *(Decision(site(text + str(i), 3), "skip", said) for i in range(2)))
    plan = replace(
        report.plan,
        model=text,
        inputs=InputSpec(arguments=(Argument("0", value=text), Argument(text, value=1))),
        decisions=decisions,
        notes=(said,),
    )
    cost = SiteCost(bad.id, 0, 0, 0, 0)
    return Report(
        plan,
        report.before,
        replace(report.before, uncounted={text: 1}),
        (cost,),
        (Check(text, False, text),),
        source={text: text, "b": [text]},
        versions={text: text},
        artifacts=(Artifact(text, 1),),
        rewritten={text: Rewrite("", f"# {text}\n")},
    )


@pytest.mark.parametrize("text", EVIL, ids=ascii)
def test_terminal_shows_names_literally(text: str) -> None:
    shown = terminal(lambda console: to_terminal(evil(text), console, all=True), width=300)
    assert all(c.isprintable() or c == "\n" for c in shown)
    assert shown.count(tables.visible(text)) >= 10
    coloured = terminal(
        lambda console: to_terminal(evil(text), console), 300, color_system="truecolor", force_terminal=True
    )
    plain = re.sub(r"\x1b\[[0-9;]*m", "", coloured)
    assert all(c.isprintable() or c == "\n" for c in plain)
    assert set(re.findall(r"\x1b\[[0-9;]*31m", coloured)) == {"\x1b[1;31m"}, "only FAIL is red"


LAYOUT = {"heading", "paragraph", "bullet_list", "list_item", "table", "thead", "tbody", "tr", "th", "td", "fence"}
INLINE = {"inline", "text", "code_inline", "strong", "softbreak"}


def tokens(markdown: str) -> list[tuple[str, str]]:
    """(kind, content) of every token, inline ones included."""
    found = []
    for token in MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(markdown):
        for part in (token, *(token.children or ())):
            found.append((part.type.removesuffix("_open").removesuffix("_close"), part.content))
    return found


@pytest.mark.parametrize("text", EVIL, ids=ascii)
def test_markdown_shows_names_literally(text: str) -> None:
    report = evil(text)
    markdown = to_markdown(report)
    found, harmless = tokens(markdown), tokens(to_markdown(evil("harmless")))
    assert {kind for kind, _ in found} <= LAYOUT | INLINE
    assert [kind for kind, _ in found if kind in LAYOUT] == [kind for kind, _ in harmless if kind in LAYOUT]
    rendered = MarkdownIt("commonmark", {"html": True}).enable("table").render(markdown)
    assert not re.search("<(?!/?(h[123]|p|ul|li|table|thead|tbody|tr|th|td|code|pre|strong|em)[ >])", rendered)
    shown = html.unescape(re.sub("<[^>]*>", "", rendered))
    assert shown.count(tables.visible(text).strip()) >= 10
    assert "<em>" not in rendered and "href" not in rendered
    assert all(c.isprintable() or c in "\n\t" for c in markdown)
    markdown.encode()


@pytest.mark.parametrize("text", EVIL, ids=ascii)
def test_json_keeps_names(text: str) -> None:
    assert to_json(evil(text)).isascii()
    assert from_json(to_json(evil(text))) == evil(text)


def test_the_structure_test_can_fail() -> None:
    assert ("html_inline", "<b>") in tokens("a <b>")
    assert "em" in {kind for kind, _ in tokens("*a*")}


# ---------------------------------------------------------------- JSON Schema


SCHEMAS = {"report.schema.json": Report, "plan.schema.json": Plan}


@pytest.mark.parametrize("name", SCHEMAS)
def test_schema_is_current(name: str) -> None:
    """EXPECTTEST_ACCEPT=1 records ``docs/`` anew."""
    path = ROOT / "docs" / name
    text = json.dumps(schema(SCHEMAS[name]), indent=1) + "\n"
    jsonschema.Draft202012Validator.check_schema(schema(SCHEMAS[name]))
    if ACCEPT:
        path.write_text(text)
    assert path.read_text() == text


def test_reports_meet_the_schema() -> None:
    real = tiny.inject(tiny.net(), size=tiny.image()).report
    for report in (sample(), real):
        jsonschema.validate(json.loads(to_json(report)), schema())
        jsonschema.validate(to_dict(report.plan), schema(Plan))
    data = to_dict(real)
    for change in ({"more": 1}, {"schema": 1}, {"gates": [{"block": 1}]}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**data, **change}, schema())


# ---------------------------------------------------------------- gates


def test_gates_are_shown() -> None:
    report = tiny.inject(tiny.net(), size=tiny.image()).report
    assert from_json(to_json(report)) == report
    note = Reason("no-gate", "it has no channel gate")
    report = replace(report, gates=(*report.gates, GateStats("blocks.9.se", "Stn", note=note)))
    for text in (to_markdown(report), to_html(report), terminal(lambda console: to_terminal(report, console))):
        assert all(part in text for part in ("blocks.0.se", "0 to 2", "1.000", note.text))
    assert 'href="#gates"' not in to_html(sample())


# ---------------------------------------------------------------- sources


def test_variants_of_a_class_are_numbered() -> None:
    first = tiny.inject(tiny.net(n=2), {"placement": "standard", "include": "blocks.0"}).model
    both = tiny.inject(first, {"placement": "pre", "include": "blocks.1"}).model
    sources = rewritten(both)
    assert len(sources) == len(set(sources.values())) == 2
    assert [key.rpartition(")")[2] for key in sorted(sources)] == ["", " 2"]


def test_bytes_of_the_checkpoint_given() -> None:
    report = sample()
    exact = replace(report, source={**report.source, "bytes": 46_800_000})
    assert "44.63 MiB" in to_html(exact) and "≈" not in to_html(exact)


def test_an_injection_prints_as_one_line_and_never_rounds_a_growth_to_zero() -> None:
    result = tiny.inject(tiny.net())
    before = replace(result.report.before, macs=10**9)
    after = replace(result.report.after, macs=10**9 + 100)
    shown = repr(replace(result, report=replace(result.report, before=before, after=after)))
    assert "MACs +1e-05 %" in shown and "checks passed)" in shown and "\n" not in shown
