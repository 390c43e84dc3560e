"""``report.html``: one self-contained page from the one ``Report``; readable without scripts, and it fetches nothing.

Names come from models and files. Every value is escaped twice over: what does not show (control characters, changes of
direction) is written out by ``tables.visible``, and markup by Jinja's autoescape. The page forbids itself everything
but its own style sheet and script, which are named by their hashes.
"""

from __future__ import annotations

import base64
import functools
import hashlib
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from se_inject.report import tables
from se_inject.report.html import view
from se_inject.types import Report


def to_html(report: Report) -> str:
    """The whole report as one HTML page, the same text for the same report.

    Raises ``VerifyError`` when the report disagrees with itself.
    """
    tables.check_sums(report)
    return render("report.html.j2", view.context(report))


def render(template: str, context: dict[str, Any]) -> str:
    """A page in the style of the report; its template is handed ``style``, ``script`` and ``policy`` too."""
    style, script = _resource("report.css"), _resource("report.js")
    policy = (
        f"default-src 'none'; style-src '{digest(style)}'; script-src '{digest(script)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    page = _template(template).render(context, style=Markup(style), script=Markup(script), policy=policy)
    return page.rstrip("\n") + "\n"


def digest(text: str) -> str:
    """As a content security policy names what stands between the tags: ``sha256-...``."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


@functools.cache
def _resource(name: str) -> str:
    return (files("se_inject.report.html") / name).read_text(encoding="utf-8")


@functools.cache
def _template(name: str) -> Any:
    environment = Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined, finalize=_shown
    )
    return environment.from_string(_resource(name))


def _shown(value: Any) -> Any:
    """Every value that the template prints passes here, before it is escaped."""
    return value if isinstance(value, Markup) else tables.visible(str(value))
