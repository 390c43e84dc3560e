"""The experiment of docs/evidence.md: a tiny one end to end, its statistics by hand, and the committed figures."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import evidence
from benchmarks.evidence import ARMS, SETTINGS
from benchmarks.evidence_page import BASELINE, Row, arms, interval, page, plot
from tests.helpers import ROOT

TINY = {
    key: replace(setting, seeds=2, train=32, widths=(4, 8), epochs=(1, 1), batch=16)
    for key, setting in SETTINGS.items()
}


def row(arm: str, seed: int, end: float, loss: float = 0.5, start: float = 80.0) -> Row:
    return Row("digits", seed, arm, start, end, loss, 0.1, 1000, 2000, 3000, 1797)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A file like that of Fashion-MNIST, of noise."""
    random = np.random.default_rng(0)
    x, y = (random.integers(0, high, shape) for high, shape in ((256, (64, 28, 28)), (10, 64)))
    np.savez(tmp_path / "f.npz", x_train=x.astype(np.uint8), y_train=y, x_test=x[:8].astype(np.uint8), y_test=y[:8])
    return tmp_path / "f.npz"


def test_a_tiny_one_end_to_end(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence, "SETTINGS", TINY)
    rows, out = tmp_path / "rows.jsonl", tmp_path / "evidence.md"
    asked = ["--fashion-mnist", str(pictures), "--rows", str(rows), "--out", str(out)]
    evidence.main(asked)
    found = [Row(**json.loads(line)) for line in rows.read_text().splitlines()]
    assert [(r.data, r.seed, r.arm) for r in found] == [
        (data, seed, arm) for data in ("digits", "Fashion-MNIST") for seed in (0, 1) for arm in ARMS
    ]
    for r in found:  # the plain net of a seed is where every arm that starts as the identity is
        plain = next(p for p in found if (p.data, p.seed, p.arm) == (r.data, r.seed, BASELINE))
        assert r.arm == "SE, random" or r.start == plain.start
        assert (r.parameters > plain.parameters) == (r.arm != BASELINE) == (r.spread is not None)
    assert [Row(**r) for r in json.loads(out.with_suffix(".json").read_text())] == found
    assert out.read_text() == page(found, evidence.words(found))
    assert (tmp_path / "pictures/evidence.svg").read_text().count("</svg>") == 1

    rows.write_text("".join(line + "\n" for line in rows.read_text().splitlines()[:-1]))  # stopped before the last row
    evidence.main(asked)
    assert [Row(**json.loads(line)) for line in rows.read_text().splitlines()] == found


def test_every_arm_gets_the_same_batches() -> None:
    setting = TINY["digits"]
    split = evidence.digits(setting, 0)
    seen: list[list[torch.Tensor]] = []
    for seed in (0, 1):
        model = evidence.net(setting, seed)
        torch.manual_seed(seed)  # the global state does not matter
        batches: list[torch.Tensor] = []
        model.register_forward_pre_hook(lambda m, args, batches=batches: batches.append(args[0]))
        evidence.train(model, split, setting, 2, 0.1, 7)
        seen.append(batches)
    assert len(seen[0]) == 4 and all(map(torch.equal, *seen))


def test_training_and_test_pictures_are_apart() -> None:
    split = evidence.digits(SETTINGS["digits"], 0)
    assert len(split.x) == 900 and len(split.x) + len(split.x_test) == split.pool == 1797
    other = evidence.digits(SETTINGS["digits"], 1)
    assert not torch.equal(split.x, other.x)


def test_intervals_by_hand() -> None:
    found = interval([1.0, 2.0, 3.0])
    assert found.mean == 2 and found.half == pytest.approx(4.302653 / 3**0.5) and found.widened == found.half
    wider = interval([1.0, 2.0, 3.0], 5)
    assert wider.half == found.half and wider.widened == pytest.approx(9.924843 / 3**0.5)  # 99 %
    assert interval([1.0]).verdict(1) == "no difference shown"


def test_verdicts() -> None:
    few, more = (0.1, 0.2, 0.3), (1.1, 1.2, 1.3)
    made = [row(BASELINE, s, 90.0) for s in range(3)]
    made += [row("up", s, 90 + d, 0.5 - d) for s, d in enumerate(more)]
    made += [row("down", s, 90 - d, 0.5 + d, start=10.0) for s, d in enumerate(more)]
    made += [row("same", s, 90 + d - 0.2, 0.5 + d - 0.2) for s, d in enumerate(few)]
    made.append(row(BASELINE, 3, 0.0))  # of a seed that is not complete
    plain, up, down, same = arms(made)
    assert all(len(arm.rows) == 3 for arm in (plain, up, down, same))
    assert (up.gain.verdict(1), up.loss.verdict(-1)) == ("better", "better")
    assert (down.gain.verdict(1), down.loss.verdict(-1)) == ("worse", "worse")
    assert (same.gain.verdict(1), same.loss.verdict(-1)) == ("no difference shown", "no difference shown")
    text = " ".join(page(made, {"digits": "As they are."}).split())
    assert "**In short**: more accurate than the same training with nothing added: *up* on digits;" in text
    assert "Accuracy against *nothing added*. Better: *up*; worse: *down*; no difference shown: *same*." in text
    assert (
        "*up* and *same* have the accuracy of the trained net with every seed, 80.0 % in the mean; *down* is at 10.0 %"
        in text
    )


def test_the_committed_page_is_that_of_its_rows(tmp_path: Path) -> None:
    rows = [Row(**r) for r in json.loads((ROOT / "docs/evidence.json").read_text())]
    text = (ROOT / "docs/evidence.md").read_text()
    assert text == page(rows, evidence.words(rows))
    # as the README says
    assert "with nothing added: none; less accurate: *SE, random* on Fashion-MNIST." in " ".join(text.split())
    seeds = {data: {r.seed for r in rows if r.data == data} for data in ("digits", "Fashion-MNIST")}
    assert all(len(found) >= 5 for found in seeds.values())
    assert {(r.data, r.seed, r.arm) for r in rows} == {
        (d, s, a) for d, found in seeds.items() for s in found for a in ARMS
    }
    plot(rows, tmp_path / "pictures/evidence.svg")
    picture = (tmp_path / "pictures/evidence.svg").read_text()
    assert all(f">{text}<" in picture for text in (*ARMS, *seeds))
