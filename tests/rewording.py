"""``SE_INJECT_TEST_REASONS=1 pytest``: the text of every reason is another, and no behaviour may change with it.

Equal texts stay equal and others different, so that a test may compare with ``Reason(code, text)``. Tests of the
wording itself are marked ``wording`` and left out.
"""

from __future__ import annotations

import hashlib
import os

from se_inject.types import Reason

REWORDED = os.environ.get("SE_INJECT_TEST_REASONS") == "1"
SIGN = "reworded "


def reword() -> None:
    made = Reason.__init__

    def other(self: Reason, code: str, text: str) -> None:
        digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:12]
        made(self, code, text if text.startswith(SIGN) else SIGN + digest)

    Reason.__init__ = other  # type: ignore[method-assign]
    Reason.__setstate__ = lambda self, state: other(self, **state)  # type: ignore[attr-defined]  # of other processes
