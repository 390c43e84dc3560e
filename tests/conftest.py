"""What every test starts from: one thread, a fixed seed, no network, no clock; and the golden files."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: xdist runs a worker for each core
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that asks for weights from a hub fails at once

from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
import torch

from tests import rewording
from tests.collecting import pytest_make_collect_report  # noqa: F401
from tests.processes import start  # noqa: F401

GOLDEN = Path(__file__).parent / "golden"
ACCEPT = os.environ.get("EXPECTTEST_ACCEPT") == "1"  # EXPECTTEST_ACCEPT=1 pytest: record the golden files anew

torch.set_num_threads(1)
if rewording.REWORDED:
    rewording.reword()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Reworded reasons are not what tests of their wording expect."""
    left = [item for item in items if rewording.REWORDED and item.get_closest_marker("wording")]
    config.hook.pytest_deselected(items=left)
    items[:] = [item for item in items if item not in left]


# Neither how fast examples are made nor which ones failed in an earlier run decides: `make fuzz` is what explores.
hypothesis.settings.register_profile(
    "suite",
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("suite")


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    """The same seed, folder and environment for each test, whatever the one before it did."""
    torch.manual_seed(0)
    folder, environment = os.getcwd(), dict(os.environ)
    yield
    modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")
    torch.set_grad_enabled(True)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    assert modes == (True, False, False), "the test left torch in another mode"


@pytest.fixture
def golden() -> Callable[[str, str], None]:
    """``golden(name, text)``: the text equals ``tests/golden/<name>``, to the byte."""

    def check(name: str, text: str) -> None:
        path = GOLDEN / name
        if ACCEPT:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8", newline="")
        assert path.exists(), f"no golden file {name}: record it with EXPECTTEST_ACCEPT=1"
        assert text == path.read_bytes().decode(), (
            f"differs from tests/golden/{name}: EXPECTTEST_ACCEPT=1 records it anew"
        )

    return check
