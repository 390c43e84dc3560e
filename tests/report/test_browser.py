"""``report.html`` in a real browser: nothing is fetched, nothing is logged, and what sorts, filters and folds works.

``SE_INJECT_SCREENSHOTS=folder`` keeps a picture of every page that is opened.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import se_inject
from se_inject.report.html.page import to_html
from se_inject.types import Report
from tests.report.test_html import MORE_EVIL, big
from tests.report.test_report import EVIL, evil

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), ""
)
ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PICTURES = os.environ.get("SE_INJECT_SCREENSHOTS", "")
WIDE, PHONE = 1280, 390
LIMIT = 60  # rows, in report.js

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM, reason="no chromium on this machine: apt-get install chromium"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:playwright"),
]

Open = Callable[..., AbstractContextManager[Any]]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    with sync.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS, timeout=0)
        yield opened
        opened.close()


@pytest.fixture
def visit(browser: Any, tmp_path: Path) -> Open:
    """``with visit(report, width, scheme) as page``: open, and fail at the end for what a clean page does not do."""

    @contextmanager
    def opened(
        report: Report, width: int = WIDE, scheme: str = "light", name: str = "", **options: Any
    ) -> Iterator[Any]:
        path = tmp_path / "report.html"
        path.write_bytes(to_html(report).encode())
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, **options)
        context.set_default_timeout(0)  # of playwright's own, half a minute: a busy machine may take longer
        page, problems, requests = context.new_page(), [], []
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("dialog", lambda dialog: (problems.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(path.as_uri())
        if PICTURES and name:
            Path(PICTURES).mkdir(parents=True, exist_ok=True)
            page.screenshot(path=f"{PICTURES}/{name}-{width}-{scheme}.png", full_page=True)
        try:
            yield page
        finally:
            context.close()
        assert problems == []
        assert requests == [path.as_uri()]

    return opened


@pytest.fixture(scope="module")
def resnet18() -> Report:
    torchvision = pytest.importorskip("torchvision")
    return se_inject.inject(torchvision.models.resnet18(), (3, 64, 64), name="torchvision:resnet18").report


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_resnet152(visit: Open, scheme: str) -> None:
    torchvision = pytest.importorskip("torchvision")
    with torch.device("meta"):
        model = torchvision.models.resnet152()
    report = se_inject.inject(model, (3, 64, 64), name="torchvision:resnet152").report
    assert len(to_html(report).encode()) < 1_500_000
    for width in (WIDE, PHONE):
        with visit(report, width, scheme, "resnet152") as page:
            assert page.evaluate("document.documentElement.scrollWidth") == width
            assert page.locator("#table tbody tr").count() == len(report.plan.decisions)


def sites(page: Any) -> list[str]:
    """The names in the rows that show, in order."""
    return page.locator("#table tbody tr:visible td.site").all_inner_texts()


def sort_by(page: Any, width: int, column: str, way: str) -> None:
    """By a column's head, or on a phone, where there is none, by the list of columns."""
    if width == PHONE:
        page.get_by_label("Sort by").select_option(label=f"{column} {way}")
        return
    head = page.locator("#table thead th", has_text=column).get_by_role("button")
    head.click()
    if page.locator("#table thead th[aria-sort]").inner_text()[-1] != way:
        wanted = {"↑": "ascending", "↓": "descending"}[way]
        if page.locator(f"#table thead th[aria-sort={wanted}]").count() == 0:
            head.click()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [WIDE, PHONE])
def test_sort_filter_fold(visit: Open, resnet18: Report, width: int, scheme: str) -> None:
    costs = {cost.id: cost.parameters for cost in resnet18.sites}
    with visit(resnet18, width, scheme, "resnet18") as page:
        assert page.evaluate("document.documentElement.scrollWidth") == width, "the page is wider than the screen"
        everything = sites(page)
        assert everything == [d.site.id for d in resnet18.plan.decisions]

        sort_by(page, width, "parameters", "↓")
        found = [costs.get(name, -1) for name in sites(page)]
        assert found == sorted(found, reverse=True) and found != [costs.get(name, -1) for name in everything]
        sort_by(page, width, "site", "↑")
        assert sites(page) == sorted(everything)

        page.get_by_label("Filter").fill("layer2 STANDARD")
        assert sites(page) == ["layer2.0:standard", "layer2.1:standard"]
        assert page.locator("#shown").inner_text().startswith("2 of ")
        page.get_by_label("Filter").fill("")
        page.get_by_label("Show").select_option("insert")
        assert sorted(sites(page)) == sorted(costs)

        details = page.locator("details")
        assert details.count() >= 2
        page.get_by_role("button", name="Fold all").click()
        assert page.locator("details[open]").count() == 0
        details.first.locator("summary").first.press("Enter")
        assert page.locator("details[open]").count() == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_follow_the_scheme(visit: Open, resnet18: Report, scheme: str) -> None:
    with visit(resnet18, WIDE, scheme) as page:
        red = int(page.evaluate("getComputedStyle(document.body).backgroundColor").split("(")[1].split(",")[0])
        assert (red > 200) is (scheme == "light")


@pytest.mark.parametrize("width", [WIDE, PHONE])
def test_readable_without_scripts(visit: Open, resnet18: Report, width: int) -> None:
    with visit(resnet18, width, java_script_enabled=False) as page:
        assert sites(page) == [d.site.id for d in resnet18.plan.decisions]
        assert page.locator("button:visible, input:visible, select:visible").count() == 0
        opened = page.locator("details[open]").count()
        page.locator("summary").first.click()
        assert page.locator("details[open]").count() == opened - 1


def test_keyboard(visit: Open, resnet18: Report) -> None:
    """Tab reaches the sort buttons, and Enter sorts."""
    with visit(resnet18) as page:
        page.locator("#status").focus()
        for _ in range(3):
            page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.tagName") == "BUTTON"
        page.keyboard.press("Enter")
        assert page.locator("#table thead th[aria-sort]").count() == 1


@pytest.mark.parametrize("width", [WIDE, PHONE])
def test_hostile_names(visit: Open, width: int) -> None:
    for i, text in enumerate([*EVIL, *MORE_EVIL]):
        with visit(evil(text), width, name=f"hostile-{i}") as page:
            assert page.locator("script").count() == 1 and page.locator("img, iframe, a[href^='java']").count() == 0
            assert page.evaluate("document.documentElement.scrollWidth") == width
            assert len(sites(page)) == 3


def test_five_hundred_sites(visit: Open) -> None:
    assert len(to_html(big(250)).encode()) < 1_500_000
    with visit(big(250), name="big") as page:
        assert len(sites(page)) == LIMIT
        ready = page.evaluate("performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd")
        assert ready < 1000, f"interactive after {ready:.0f} ms"
        page.get_by_role("button", name="Show all 500").click()
        assert len(sites(page)) == 500
        took = page.evaluate(
            "() => { const t = performance.now(); document.querySelector('#table th:nth-child(6) button').click();"
            " document.body.offsetHeight; return performance.now() - t; }"
        )
        assert took < 1000, f"sorting took {took:.0f} ms"


def test_print(visit: Open, resnet18: Report) -> None:
    with visit(resnet18) as page:
        page.emulate_media(media="print")
        assert page.locator("nav:visible, form:visible, #more:visible").count() == 0
        assert page.pdf()[:4] == b"%PDF"
