"""Transformers and hybrids: channels last and tokens by option; `auto` leaves pure transformers alone and says so."""

from __future__ import annotations

from collections import Counter

import pytest
import timm
import torch

import se_inject
from tests.helpers import randomise, refused
from tests.tiny import open_gates

# Member -> what `auto` inserts by placement, or the code of why it takes nothing; layouts of blocks under `standard`.
MEMBERS: dict[str, tuple[dict[str, int] | str, dict[str, int]]] = {
    "test_vit": ("transformer", {"NLC": 12}),
    "levit_128s": ("transformer", {"NLC": 20}),
    "swin_tiny_patch4_window7_224": ("transformer", {"NHWC": 12, "NLC": 12}),
    "convnext_atto": ({"standard": 12}, {"NCHW": 12}),
    "convnext_atto_ols": ({"standard": 12}, {"NCHW": 12}),
    "poolformer_s12": ({"standard": 12}, {"NCHW": 12}),
    "test_coatnet": ({"standard": 6}, {"NCHW": 8}),
    "test_maxvit": ("gated", {"NHWC": 8, "NCHW": 4}),
}


def planned(name: str, rules: str) -> se_inject.Plan:
    with torch.device("meta"):
        return se_inject.plan(timm.create_model(name).eval(), None, rules)


@pytest.mark.parametrize("name", MEMBERS)
def test_auto_and_by_option(name: str) -> None:
    auto, standard = MEMBERS[name]
    if isinstance(auto, str):
        with refused(auto):
            planned(name, "auto")
    else:
        assert Counter(d.site.placement for d in planned(name, "auto").insertions) == auto
    assert Counter(d.site.layout for d in planned(name, "standard").insertions) == standard


@pytest.mark.parametrize("name", ["test_vit", "test_maxvit", "levit_128s"])
def test_tokens_on_real_tensors(name: str) -> None:
    """Bit-equal, reached, and a gate on the tokens shows in the output."""
    torch.manual_seed(0)
    model = randomise(timm.create_model(name, num_classes=5).eval())
    result = se_inject.inject(model, None, "standard")
    assert all(check.passed for check in result.report.checks), result.report.checks
    x = torch.randn(1, *model.pretrained_cfg["input_size"])
    with torch.no_grad():
        assert not torch.equal(open_gates(result.model)(x), model(x))


def test_the_squeeze_is_the_mean_of_the_tokens() -> None:
    """The gate of a channel is the same for all tokens, and that of a map whose pixels they are."""
    from se_inject.blocks.squeeze_excite import SqueezeExcite

    torch.manual_seed(0)
    tokens, pixels = (SqueezeExcite(8, rd_channels=4, layout=layout) for layout in ("NLC", "NCHW"))
    shapes = {key: value.shape for key, value in pixels.state_dict().items()}
    pixels.load_state_dict({key: value.reshape(shapes[key]) for key, value in tokens.state_dict().items()})
    x = torch.randn(2, 12, 8)
    want = pixels(x.transpose(1, 2).reshape(2, 8, 3, 4)).flatten(2).transpose(1, 2)
    torch.testing.assert_close(tokens(x), want)
    gates = tokens(x) / x
    torch.testing.assert_close(gates, gates[:, :1].expand_as(gates))
