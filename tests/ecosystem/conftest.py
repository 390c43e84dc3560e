"""The fixture that the rows share."""

from __future__ import annotations

import pytest

from tests.ecosystem import cases


@pytest.fixture
def case(request: pytest.FixtureRequest) -> cases.Case:
    return cases.case(*request.param)
