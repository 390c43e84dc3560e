"""Rows as CSV that a spreadsheet shows and does not calculate."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from typing import Any

from se_inject.types import Reason

FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "|")  # with which a text begins that a spreadsheet would calculate


def to_csv(columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """A head and a line for each row; None is an empty cell, and before a text like a formula stands an apostrophe.

    >>> to_csv(("model", "blocks"), [("=1+1", 8), ("net", None)])
    "model,blocks\\n'=1+1,8\\nnet,\\n"
    """
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULA) else cell for cell in row])
    return out.getvalue()


def flat(reason: Reason | None) -> dict[str, str]:
    """A reason as two cells."""
    return {"reason": reason.text, "code": reason.code} if reason else {"reason": "", "code": ""}
