"""Decisions: one for every site, each with its reason; what `auto` takes in which block; an error when nothing is."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import se_inject
from se_inject.blocks import BLOCKS
from se_inject.errors import RulesError
from se_inject.inputs import resolve
from se_inject.rules.auto import needed
from se_inject.rules.decide import decide
from se_inject.rules.schema import read
from se_inject.search.sites import find_sites
from se_inject.trace.record import trace
from se_inject.types import Carrier, Decision, Reason
from tests.helpers import refused, site_at
from tests.nets import NETS, Basic, Bottleneck, Fn, MBConv, Net, body, conv, unit
from tests.search.test_sites import SE, ConvNeXt, Gated, Private, Staged, Tokens


def decided(net: nn.Module, rules: Any = "auto") -> dict[str, Decision]:
    """Site id -> decision."""
    parsed = read(rules)
    recorded = trace(net, resolve(net, getattr(net, "shape", (8, 8, 8))))
    found = find_sites(recorded, needed(parsed.placement)).sites
    return {d.site.id: d for d in decide(found, parsed)}


def outcome(net: nn.Module, rules: Any = "auto") -> dict[str, tuple[str, Reason]]:
    return {name: (d.status, d.reason) for name, d in decided(net, rules).items()}


def refusal(net: nn.Module, rules: Any) -> str:
    with pytest.raises(RulesError) as error:
        decided(net, rules)
    assert "\n" not in str(error.value)
    return str(error.value)


# -- auto, block by block -------------------------------------------------------------------------------------------
TAKES_INNER = ("skip", Reason("takes-inner", "auto: the block takes inner, before its 1x1 projection"))
FULL = ("skip", Reason("takes-standard", "auto: the block has a full 3x3 convolution, so it takes standard"))
DEPTHWISE = ("insert", Reason("depthwise-block", "depthwise 3x3 followed by a 1x1 projection"))
RESIDUAL = ("insert", Reason("residual-block", "residual block"))


class Expanding(Net):
    """ConvNeXt's order: a depthwise convolution, then a 1x1 that expands."""

    def __init__(self) -> None:
        super().__init__()
        self.dw, self.up, self.down = conv(8, 8, 7, g=8), conv(8, 32, 1), conv(32, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(F.gelu(self.up(self.dw(x))))


AUTO: dict[str, tuple[Callable[[], nn.Module], dict[str, tuple[str, Reason]]]] = {
    "residual": (Basic, {":standard": RESIDUAL}),
    "bottleneck": (Bottleneck, {":inner": FULL, ":standard": RESIDUAL}),
    "grouped": (NETS["Grouped"], {":inner": FULL, ":standard": RESIDUAL}),
    "mbconv": (MBConv, {":inner": DEPTHWISE, ":standard": TAKES_INNER}),
    "mbconv without shortcut": (NETS["MBConvStrided"], {":inner": DEPTHWISE}),
    "mbconv without expansion": (NETS["MBConvUnexpanded"], {":inner": DEPTHWISE, ":standard": TAKES_INNER}),
    "mbconv in a sequential": (NETS["SequentialMBConv"], {"conv.1:inner": DEPTHWISE, ":standard": TAKES_INNER}),
    "expanding": (
        Expanding,
        {
            ":inner": (
                "skip",
                Reason(
                    "takes-standard", "auto: the block expands after its depthwise convolution, so it takes standard"
                ),
            ),
            ":standard": RESIDUAL,
        },
    ),
    "shortcut around blocks": (
        NETS["AdditiveUNet"],
        {
            "middle:standard": RESIDUAL,
            ":standard": ("skip", Reason("nested", "auto: its branch holds 1 residual blocks of their own")),
        },
    ),
    "gated at the end": (
        lambda: nn.Sequential(Basic(), Gated("standard", False)),
        {"0:standard": RESIDUAL, "1:inner": DEPTHWISE, "1:standard": TAKES_INNER},
    ),
    "gated inside": (
        lambda: nn.Sequential(Basic(), Gated("inner", False)),
        {
            "0:standard": RESIDUAL,
            "1:inner": ("skip", Reason("gated", "already gated by 1.gate")),
            "1:standard": TAKES_INNER,
        },
    ),
}


@pytest.mark.parametrize("name", AUTO)
def test_auto(name: str) -> None:
    build, expected = AUTO[name]
    found = outcome(build())
    assert {name: answer for name, answer in found.items() if not name.partition(":")[2].startswith("conv")} == expected


def test_auto_leaves_a_block_alone_that_has_a_gate_before_its_last_layer() -> None:
    """RegNetY's order: the gate stands at `inner`, so the block's end gets none."""

    class RegNetY(Bottleneck):
        def __init__(self) -> None:
            super().__init__()
            self.gate = SE(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = F.relu(self.bn1(self.conv1(x)))
            y = self.gate(F.relu(self.bn2(self.conv2(y))))
            return F.relu(self.bn3(self.conv3(y)) + x)

    found = outcome(nn.Sequential(conv(8, 16, 1), RegNetY(), Bottleneck()))
    assert found["1:standard"] == ("skip", Reason("gated", "already gated by 1.gate"))
    assert found["1:inner"][0] == "skip"
    assert found["2:standard"] == RESIDUAL


def test_auto_says_so_when_no_block_is_around() -> None:
    net = nn.Sequential(Basic(), unit(8, 8), conv(8, 16, 1))
    assert outcome(net)["1:inner"] == (
        "skip",
        Reason("no-block", "auto: it has a full 3x3 convolution, in no residual block"),
    )


def test_auto_is_decided_for_each_block_by_itself() -> None:
    taken = [name for name, (status, _) in outcome(Staged()).items() if status == "insert"]
    assert taken == ["layers.0:standard", "layers.1:inner", "layers.2:standard", "layers.3:standard"]


def test_an_explicit_placement_takes_all_of_its_sites() -> None:
    found = outcome(Staged(), "inner")
    assert {name: answer for name, answer in found.items() if answer[0] == "insert"} == {
        "layers.1:inner": ("insert", Reason("placement", "placement inner")),
        "layers.3:inner": ("insert", Reason("placement", "placement inner")),
    }
    assert outcome(NETS["AdditiveUNet"](), "standard") == {
        "middle:standard": ("insert", Reason("placement", "placement standard")),
        ":standard": ("insert", Reason("placement", "placement standard")),
    }


# -- widths ---------------------------------------------------------------------------------------------------------
def widths(net: nn.Module, rules: Any) -> dict[str, int]:
    return {name: d.kwargs["rd_channels"] for name, d in decided(net, rules).items() if d.status == "insert"}


class Wide(Net):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(unit(8, 128), Basic(128, 128), MBConv(128, 128, 2), Basic(128, 256, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ("auto", {"1:standard": 8, "2:inner": 32, "3:standard": 16}),  # C/16; a quarter of the block's input
        ("standard", {"1:standard": 8, "2:standard": 8, "3:standard": 16}),
        ("inner", {"2:inner": 16}),
        ({"block": {"rd_ratio": 0.5}}, {"1:standard": 64, "2:inner": 128, "3:standard": 128}),
        ({"block": {"rd_ratio": 0.5, "rd_base": "block"}}, {"1:standard": 64, "2:inner": 64, "3:standard": 64}),
        ({"block": {"rd_channels": 5}}, {"1:standard": 5, "2:inner": 5, "3:standard": 5}),
    ],
)
def test_widths(rules: Any, expected: dict[str, int]) -> None:
    assert widths(Wide(), rules) == {f"layers.{name}": width for name, width in expected.items()}


def test_entries_change_block_and_start() -> None:
    rules = {
        "placement": "standard",
        "init": "paper",
        "block": {"gate": "hardsigmoid"},
        "sites": [
            {"include": "layers.3", "block": {"rd_ratio": 0.5}, "init": "absorb"},
            {"include": "layers.2", "block": {"gate": "sigmoid"}},
            {"min_channels": 100},
        ],
    }
    found = {name: d for name, d in decided(Wide(), rules).items() if d.status == "insert"}
    assert {name: (d.init, d.kwargs["gate"], d.kwargs["rd_channels"]) for name, d in found.items()} == {
        "layers.1:standard": ("paper", "hardsigmoid", 8),
        "layers.2:standard": ("paper", "sigmoid", 8),
        "layers.3:standard": ("absorb", "hardsigmoid", 128),
    }


def test_a_value_out_of_range_names_block_and_site() -> None:
    text = refusal(Basic(), {"block": {"rd_ratio": -1}})
    assert text.startswith("block se at :standard: rd_ratio: -1 is not")
    assert "'tanhh'" in refusal(Basic(), {"block": {"gate": "tanhh"}})


# -- skips, each with its reason ------------------------------------------------------------------------------------
LAYOUTS = ", ".join(BLOCKS["cbam"].layouts)
SKIPS: dict[str, tuple[Callable[[], nn.Module], Any, str, str]] = {
    "gated": (lambda: Gated("standard", False), "standard", "gated", "already gated by gate"),
    "private": (
        lambda: Fn(lambda x, f: x + F.relu(f(x)), body(8, 8)),
        "standard",
        "helper",
        "no way to insert: it is computed in",
    ),
    "tokens": (
        Tokens,
        {"placement": "standard", "block": "cbam"},
        "layout",
        f"layout NLC (shape [2, 16, 8]); block cbam takes {LAYOUTS}",
    ),
    "absorb": (
        lambda: Basic8(nn.ReLU6()),
        {"placement": "standard", "init": "absorb"},
        "not-scaling",
        "absorb: between it and a batch norm stands ReLU6, which does not scale with its input",
    ),
    "excluded": (Basic, {"exclude": "*:standard"}, "excluded", "excluded by *:standard"),
    "narrow": (Basic, {"min_channels": 9}, "too-narrow", "8 channels, fewer than min_channels 9"),
    "stage": (Basic, {"stages": 2}, "other-stage", "stage 1 is not among stages 2"),
}


class Basic8(Net):
    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.body, self.act = body(8, 8), act

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.act(self.body(x))


@pytest.mark.parametrize("name", SKIPS)
def test_skips(name: str) -> None:
    build, rules, code, text = SKIPS[name]
    with refused(code, re.escape(f"the rules select none of the 1 sites; most often (1): {text}")):
        decided(build(), rules)


def test_an_entry_that_no_site_meets_is_an_error() -> None:
    """Even where another entry inserts: what was named and is nowhere is a mistake (peft #1206)."""
    text = "sites[0] matches none of the 1 sites: 8 channels, fewer than min_channels 9."
    with refused("unmatched", f"^{re.escape(text)}$"):
        decided(Basic(), {"sites": [{"min_channels": 9}, {"min_channels": 1}]})
    message = refusal(nn.Sequential(Basic(), Basic()), {"include": ["0", "O*"]})
    assert message.startswith("include 'O*' matches none of the 2 sites.")
    assert outcome(Basic(), {"sites": [{"min_channels": 1}]})[":standard"][0] == "insert"


def test_a_skip_beside_an_insertion_is_no_error() -> None:
    found = outcome(nn.Sequential(Basic(), Gated("standard", False)), "standard")
    assert found == {
        "0:standard": ("insert", Reason("placement", "placement standard")),
        "1:standard": ("skip", Reason("gated", "already gated by 1.gate")),
    }


def test_layouts_are_said_for_each_site() -> None:
    class Mixed(Net):
        def __init__(self) -> None:
            super().__init__()
            self.maps, self.tokens = nn.Sequential(Basic(), ConvNeXt(back=False), ConvNeXt()), Tokens()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.tokens(self.maps(x).flatten(2).transpose(1, 2))

    decisions = decided(Mixed(), {"placement": "standard", "block": "cbam"})
    assert {name: (d.status, d.site.layout) for name, d in decisions.items()} == {
        "maps.0:standard": ("insert", "NCHW"),
        "maps.1:standard": ("insert", "NHWC"),
        "maps.2:standard": ("insert", "NCHW"),
        "tokens:standard": ("skip", "NLC"),
    }
    text = f"layout NLC (shape [2, 64, 8]); block cbam takes {LAYOUTS}"
    assert decisions["tokens:standard"].reason == Reason("layout", text)


def test_half_precision_has_no_absorb() -> None:
    found = find_sites(trace(net := Basic(), resolve(net, net.shape)), ("standard",)).sites
    rules = read({"placement": "standard", "init": "absorb"})
    assert [d.status for d in decide(found, rules)] == ["insert"]
    with refused("float16", "absorb is not exact in float16"):
        decide(found, rules, half=True)
    assert [d.status for d in decide(found, read("standard"), half=True)] == ["insert"]


def test_a_private_forward_that_is_written_in_the_class_is_no_obstacle() -> None:
    assert outcome(Private(), "standard") == {":standard": ("insert", Reason("placement", "placement standard"))}


# -- nothing to insert ----------------------------------------------------------------------------------------------
def test_a_pattern_that_matches_nothing_names_the_nearest_path() -> None:
    text = refusal(Staged(), {"include": "layer.0"})
    assert text.startswith("include 'layer.0' matches none of the ")
    assert "Did you mean 'layers.0'" in text
    assert "'layers.2'" in refusal(Staged(), {"sites": [{"include": "re:layers.22"}]})
    assert "Known: " in refusal(Staged(), {"include": "zzzz"})


def test_patterns_that_match_but_leave_nothing_tell_the_commonest_reason() -> None:
    text = "the rules select none of the 4 sites; most often (2): 8 channels, fewer than min_channels 16."
    with refused("too-narrow", f"^{re.escape(text)}$"):
        decided(Staged(), {"placement": "standard", "min_channels": 16, "exclude": ["layers.2", "layers.3"]})


def test_of_a_commonest_reason_in_several_forms_one_is_told() -> None:
    gates = nn.Sequential(Gated("standard", False), Gated("standard", False), Basic())
    text = "the rules select none of the 3 sites; most often (2, for instance): already gated by 0.gate."
    with refused("gated", f"^{re.escape(text)}$"):
        decided(gates, {"placement": "standard", "exclude": "2"})


def test_a_model_without_any_place() -> None:
    text = refusal(nn.Sequential(nn.Flatten(), nn.Linear(512, 8)), "auto")
    assert text.startswith("no place for auto found in this model.")
    assert "se-inject list placements" in text


# -- pure -----------------------------------------------------------------------------------------------------------
def test_every_site_gets_one_decision_in_order() -> None:
    sites = tuple(site_at(f"b.{i}", channels=8 * (i + 1)) for i in range(5))
    decisions = decide(sites, read({"placement": "standard", "min_channels": 24}))
    assert [d.site.owner for d in decisions] == [s.owner for s in sites]
    assert [d.status for d in decisions] == ["skip", "skip", "insert", "insert", "insert"]
    assert all(d.reason for d in decisions)
    assert all(d.kwargs == {} for d in decisions if d.status == "skip")


def test_deciding_changes_nothing_and_repeats() -> None:
    sites, rules = tuple(site_at(f"b.{i}") for i in range(3)), read("standard")
    before = copy.deepcopy((sites, rules))
    assert decide(sites, rules) == decide(sites, rules)
    assert (sites, rules) == before


def test_what_is_inserted_takes_the_first_free_names_of_its_owner() -> None:
    first = site_at("b")
    carriers = [Carrier("source", "b", "se")] * 3 + [Carrier("sequential_after", "b", "conv_se", node="conv")]
    sites = tuple(replace(first, id=f"b:standard_{i}", carrier=carrier) for i, carrier in enumerate(carriers))
    assert [d.key for d in decide(sites, read("standard"))] == ["b.se", "b.se_1", "b.se_2", "b.conv_se"]
    found = decide(sites, read("standard"), free=lambda path: path not in ("b.se", "b.se_2"))
    assert [d.key for d in found] == ["b.se_1", "b.se_3", "b.se_4", "b.conv_se"]
    found = decide(sites, read({"placement": "standard", "exclude": "b:standard_0"}))
    assert [d.key for d in found if d.status == "insert"] == ["b.se", "b.se_1", "b.conv_se"]
    slot = replace(sites[1], carrier=Carrier("slot", "b", "attn"))
    found = decide((sites[0], slot, sites[2]), read("standard"), free=lambda path: path != "b.attn")
    assert [d.key for d in found] == ["b.se", "b.attn", "b.se_1"]


@pytest.mark.parametrize("rules", ["standard", "inner", "auto"])
def test_names_are_free_and_distinct_in_a_real_model(rules: str) -> None:
    net = nn.Sequential(
        *(NETS[name]() for name in ("ThreeOperands", "ChainedBlocks", "MBConv", "SequentialMBConv", "Basic"))
    )
    keys = [d.key for d in decided(net, rules).values() if d.status == "insert"]
    assert len(set(keys)) == len(keys)
    held = {path for path, _ in net.named_modules()}
    assert not held & set(keys)


def test_a_plan_through_the_api_is_what_is_decided() -> None:
    plan = se_inject.plan(net := Staged(), net.shape)
    assert {d.site.id: (d.status, d.reason) for d in plan.decisions} == outcome(net)
