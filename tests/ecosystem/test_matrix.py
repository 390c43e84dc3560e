"""`docs/ecosystem.md` says what the tests hold."""

from __future__ import annotations

from pathlib import Path

from tests.conftest import ACCEPT
from tests.ecosystem import matrix
from tests.ecosystem.cases import MODELS
from tests.helpers import ROOT

PAGE = ROOT / "docs/ecosystem.md"


def test_the_page_is_the_table() -> None:
    if ACCEPT:
        PAGE.write_text(matrix.render(), encoding="utf-8")
    text = PAGE.read_text(encoding="utf-8")
    assert text.endswith("\n".join(matrix.table())), "EXPECTTEST_ACCEPT=1 records docs/ecosystem.md anew"


def test_every_file_is_in_the_table() -> None:
    files = {path.stem for path in Path(__file__).parent.glob("test_*.py")} - {Path(__file__).stem}
    assert {file.__name__.rpartition(".")[2] for file in matrix.FILES} == files
    assert all(list(matrix.rows(file)) for file in matrix.FILES)


def test_every_row_says_what_it_shows() -> None:
    tests = [test for file in matrix.FILES for test in matrix.rows(file)]
    assert len(tests) > 50 and all(test.__doc__ and set(test.cells) <= set(MODELS) for test in tests)
