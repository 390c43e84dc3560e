"""Gate statistics: what the gates of inserted blocks do on a batch, against figures by hand."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import se_inject
from se_inject import Gates, GateStats
from tests import tiny
from tests.helpers import randomise
from tests.nets import Basic

SIZE = (8, 8, 8)


def injected(**rules: object) -> nn.Module:
    return se_inject.inject(randomise(Basic()).eval(), SIZE, {"placement": "standard", **rules}).model


@pytest.mark.parametrize("block", ["se", "se_plain", "ese", "eca", "cbam", "gc"])
def test_an_identity_start_is_open_for_every_channel(block: str) -> None:
    (found,) = se_inject.gates(injected(block=block), torch.randn(4, *SIZE))
    assert (found.mean, found.std, found.min, found.max) == (1.0, 0.0, 1.0, 1.0)
    assert (found.dead, found.saturated) == (0.0, 1.0 if found.highest == 1 else 0.0) and not found.note


def test_the_block_is_named_by_its_path_and_class() -> None:
    (found,) = se_inject.gates(injected(), torch.randn(4, *SIZE))
    assert (found.block, found.kind, found.highest) == ("se", "SqueezeExcite", 2.0)


def test_figures_by_hand() -> None:
    model = injected(init="paper")
    with torch.no_grad():
        model.se.fc2.weight.zero_()
        model.se.fc2.bias.copy_(torch.tensor([-50.0, 50.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]))
    (found,) = se_inject.gates(model, torch.randn(4, *SIZE))
    assert (found.min, found.max, found.mean) == (pytest.approx(0.0, abs=1e-6), 1.0, 0.5)
    assert (found.dead, found.saturated) == (0.125, 0.125)


def test_figures_are_those_of_the_gate_that_runs() -> None:
    model = tiny.open_gates(tiny.inject(tiny.net()).model)
    seen: list[torch.Tensor] = []
    block = model.get_submodule("blocks.0.se")
    block.register_forward_hook(lambda module, args, out: seen.append(module.scale(args[0]).detach()))
    (found,) = se_inject.gates(model, tiny.image())
    assert found.mean == pytest.approx(seen[0].mean().item(), rel=1e-4)
    assert found.std == pytest.approx(seen[0].std(correction=0).item(), rel=1e-4)


def test_a_model_without_blocks_has_none() -> None:
    none = se_inject.gates(Basic().eval(), torch.randn(2, *SIZE))
    assert len(none) == 0 and str(none) == "no inserted blocks"


def test_a_block_without_a_channel_gate_says_so() -> None:
    (found,) = se_inject.gates(injected(block={"name": "gc", "fusion": "add"}), torch.randn(4, *SIZE))
    assert found.mean is None and found.note


def test_the_model_is_left_as_it_was() -> None:
    model = injected().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    se_inject.gates(model, torch.randn(4, *SIZE))
    assert model.training and all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks for m in model.modules())


def test_a_batch_that_does_not_fit_is_refused() -> None:
    with pytest.raises(se_inject.TraceError, match="does not run on the batch"):
        se_inject.gates(injected(), torch.randn(4, 3, 8, 8))


def test_in_the_report_when_real_inputs_were_given() -> None:
    model = randomise(Basic()).eval()
    batch = torch.randn(2, *SIZE)
    result = se_inject.inject(model, batch, "standard")
    assert result.report.gates == se_inject.gates(result.model, batch).sites != ()
    assert se_inject.inject(model, SIZE, "standard").report.gates == ()


# ---------------------------------------------------------------- shown and drawn


def test_the_table_has_the_figures_of_the_report() -> None:
    model, images = tiny.open_gates(tiny.inject(tiny.net(n=2)).model), tiny.image()
    found = se_inject.gates(model, images)
    for text in (str(found), found._repr_html_()):
        for gate in found:
            assert gate.block in text and f"{gate.mean:.3f}" in text and f"{gate.std:.3f}" in text
            assert f"{100 * gate.dead:.1f} %" in text and f"{100 * gate.saturated:.1f} %" in text


def test_a_note_stands_where_there_are_no_figures() -> None:
    found = se_inject.gates(injected(block={"name": "gc", "fusion": "add"}), torch.randn(4, *SIZE))
    for text in (str(found), found._repr_html_()):
        assert f"se: {found[0].note}" in text and "0 to" not in text


def test_the_plot_shows_the_figures(tmp_path: Path) -> None:
    found = se_inject.gates(tiny.open_gates(tiny.inject(tiny.net(n=3)).model), tiny.image())
    figure = found.plot(tmp_path / "gates.svg")
    assert (tmp_path / "gates.svg").read_text().count("</svg>") == 1
    values, shares = figure.axes
    assert [label.get_text() for label in values.get_yticklabels()] == [gate.block for gate in found]
    (means, _, _), *_ = values.containers
    assert list(means.get_xdata()) == [gate.mean for gate in found]
    assert [(s[0, 0], s[1, 0]) for s in values.collections[0].get_segments()] == [(g.min, g.max) for g in found]
    dead, saturated = shares.containers
    assert [bar.get_width() for bar in dead] == [100 * gate.dead for gate in found]
    assert [bar.get_width() for bar in saturated] == [100 * gate.saturated for gate in found]


def test_text_has_no_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b" not in str(se_inject.gates(tiny.inject(tiny.net()).model, tiny.image()))


def test_names_in_the_plot_are_literal(tmp_path: Path) -> None:
    Gates((GateStats("a$\\x$.se", "Se", 1.0, 0.5, 0.0, 0.5, 0.5, 0.0, 0.0),)).plot(tmp_path / "gates.png")


def test_without_matplotlib_the_plot_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Gates(()).plot()
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(se_inject.SEInjectError, match=r"se_inject\[plot\]"):
        Gates(()).plot()


@pytest.mark.parametrize("name", ["gates.xyz", "gates"])
def test_a_plot_of_unknown_ending_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(se_inject.SEInjectError, match=rf"cannot write .*{name}: the ending is one of .*\.png, .*\.svg"):
        Gates(()).plot(tmp_path / name)
    assert not list(tmp_path.iterdir())
    Gates(()).plot(tmp_path / "gates.SVG")
    assert (tmp_path / "gates.SVG").exists()


def test_a_model_without_blocks_says_so() -> None:
    found = se_inject.gates(nn.Conv2d(8, 8, 3), torch.randn(1, *SIZE))
    assert str(found) == "no inserted blocks" and found._repr_html_() == "<p>no inserted blocks</p>"
    assert "no inserted blocks" not in se_inject.gates(injected(), torch.randn(4, *SIZE))._repr_html_()
