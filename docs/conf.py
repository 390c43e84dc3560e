"""How Sphinx makes the site of the pages as they are: ``make site`` (from the root of the checkout, into ``site/``)."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import sys
import textwrap
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from se_inject._version import __version__  # noqa: E402

# Heading in the contents -> pages, as paths in the checkout. A page that is not here fails the build.
CONTENTS = {
    "Use": ("docs/tutorial", "docs/rules", "docs/sites", "docs/blocks", "docs/formats", "docs/report", "docs/security"),
    "Train": ("docs/training", "docs/gates", "docs/ecosystem"),
    "Many models": ("docs/batch", "docs/sweep"),
    "Reference": ("docs/api", "docs/cli"),
    "Evidence": ("docs/evidence", "docs/coverage", "docs/leave-se-out"),
    "Project": ("ARCHITECTURE", "CONTRIBUTING", "SECURITY", "CHANGES"),
}
HOME = "README"

project = "se_inject"
version = release = __version__
copyright = "the se_inject authors"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_click"]
root_doc = HOME
smartquotes = False  # --option stays what is typed
include_patterns = ["*.md", "docs/*.md"]

myst_heading_anchors = 4
myst_enable_extensions = ["strikethrough"]

autodoc_member_order = "bysource"  # of the package itself: the order of its index
autodoc_default_options = {"undoc-members": True}
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
# other projects' inventories are fetched from elsewhere: their names stand without a link
nitpick_ignore_regex = [("py:.*", "(torch|numpy|pathlib|collections|matplotlib|fx|nn|Path|Figure)\\b.*")]

html_theme = "furo"
html_title = f"se_inject {release}"
html_copy_source = False
html_show_sourcelink = False
html_show_search_summary = False  # a browser that reads the site from disk lets no page fetch another


def add_contents(app: Any, page: str, source: list[str]) -> None:
    """The contents of the site, behind the README: GitHub's readers have its links."""
    if page == HOME:
        for name, pages in CONTENTS.items():
            source[0] += "\n".join(("\n", "```{toctree}", ":hidden:", f":caption: {name}", "", *pages, "```", ""))


def show_fields(app: Any, what: str, name: str, item: Any, options: Any, lines: list[str]) -> None:
    """The fields of a dataclass as they stand in its source, with the comments beside them."""
    if dataclasses.is_dataclass(item):
        source = textwrap.dedent(inspect.getsource(item))
        (tree,) = ast.parse(source).body
        found = [node for node in ast.iter_child_nodes(tree) if isinstance(node, ast.AnnAssign)]
        fields = [line for node in found for line in source.splitlines()[node.lineno - 1 : node.end_lineno]]
        lines += ["", ".. code-block:: python", "", *(f"   {line[4:]}" for line in fields), ""]


def skip_fields(app: Any, what: str, name: str, item: Any, skip: bool, options: Any) -> bool | None:
    """Members are methods and properties, those without a docstring too; fields are shown together."""
    return None if callable(item) or isinstance(item, property) else True


def no_signature(app: Any, what: str, name: str, item: Any, options: Any, given: str, returned: str) -> Any:
    """Of a dataclass: its fields say the same."""
    return ("", None) if dataclasses.is_dataclass(item) else None


def add_front(app: Any, error: Exception | None) -> None:
    """A site begins at index.html, and this one with the README."""
    if error is None:
        (Path(app.outdir) / "index.html").write_text(f'<meta http-equiv="refresh" content="0; url={HOME}.html">\n')


def setup(app: Any) -> None:
    app.connect("source-read", add_contents)
    app.connect("autodoc-process-docstring", show_fields)
    app.connect("autodoc-skip-member", skip_fields)
    app.connect("autodoc-process-signature", no_signature)
    app.connect("build-finished", add_front)
