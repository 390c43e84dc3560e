"""Rules: what is said about a wrong word, what YAML may not do, and which sites a pattern or an entry takes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from se_inject.errors import RulesError
from se_inject.rules.schema import Rules, read
from se_inject.rules.select import CONDITIONS, matches, names_of, refusal, select
from se_inject.rules.yaml_file import MAX_BYTES, read_yaml
from se_inject.types import Carrier, Reason
from tests.helpers import calls, site_at


def message(source: Any) -> str:
    with pytest.raises(RulesError) as error:
        read(source)
    text = str(error.value)
    assert "\n" not in text
    return text


# -- reading --------------------------------------------------------------------------------------------------------
FULL: dict[str, Any] = {
    "placement": "standard",
    "init": "absorb",
    "block": {"name": "se", "rd_ratio": 0.0625, "rd_divisor": 8, "gate": "sigmoid", "bias": True},
    "sites": [
        {"include": "layer[34].*", "min_channels": 512, "block": {"rd_ratio": 0.125}},
        {"exclude": "re:.*downsample.*"},
    ],
}
YAML = """
placement: standard            # default auto
init: absorb                   # default identity
block: {name: se, rd_ratio: 0.0625, rd_divisor: 8, gate: sigmoid, bias: true}
sites:                         # first match wins
  - {include: "layer[34].*", min_channels: 512, block: {rd_ratio: 0.125}}
  - {exclude: "re:.*downsample.*"}
"""


def test_yaml_json_and_dict_are_the_same_rules(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(YAML)
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(FULL))
    (tmp_path / "rules.json").write_text(json.dumps(FULL, indent=2))
    expected = read(FULL)
    assert expected.placement == ("standard",)
    assert expected.sites[0].include == ("layer[34].*",)
    for name in ("rules.yaml", "rules.yml", "rules.json"):
        assert read(tmp_path / name) == read(str(tmp_path / name)) == expected
    assert read(expected) is expected


def test_names_and_defaults() -> None:
    assert read() == read("auto") == read(None) == read({}) == Rules()
    assert read("inner") == read({"placement": "inner"}) == read({"placement": ["inner"]})


def test_reading_leaves_the_given_dict_alone() -> None:
    given = {"block": {"name": "se", "rd_ratio": 0.5}, "include": ["a"], "sites": [{"block": {"rd_ratio": 0.25}}]}
    copy = json.loads(json.dumps(given))
    rules = read(given)
    rules.block["rd_ratio"] = 1
    rules.sites[0].block["rd_ratio"] = 1
    assert given == copy


# -- wrong words: each names the closest ----------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("rules", "asked", "meant"),
    [
        ("standart", "'standart'", "'standard'"),
        ({"placement": "iner"}, "'iner'", "'inner'"),
        ({"placment": "inner"}, "'placment'", "'placement'"),
        ({"init": "absorbe"}, "'absorbe'", "'absorb'"),
        ({"min_channel": 8}, "'min_channel'", "'min_channels'"),
        ({"block": {"rd_rato": 0.5}}, "'rd_rato'", "'rd_ratio'"),
        ({"block": "see"}, "'see'", "'se'"),
        ({"block": {"name": "see"}}, "'see'", "'se'"),
        ({"sites": [{}, {"includ": "x"}]}, "sites[1]: unknown key 'includ'", "'include'"),
        ({"sites": [{"block": {"gates": "sigmoid"}}]}, "'gates'", "'gate'"),
    ],
)
def test_the_closest_match_is_named(rules: Any, asked: str, meant: str) -> None:
    text = message(rules)
    assert asked in text
    assert f"Did you mean {meant}" in text


@pytest.mark.parametrize(
    ("rules", "parts"),
    [
        (3, ["expected a dict", "int"]),
        ([], ["expected a dict", "list"]),
        ({1: 2}, ["unknown key 1"]),
        ({"placement": None}, ["placement", "None"]),
        ({"init": None}, ["init", "None"]),
        ({"init": ""}, ["init", "''"]),
        ({"block": None}, ["block", "None"]),
        ({"block": 3}, ["block", "3"]),
        ({"include": 3}, ["include", "3"]),
        ({"include": [None]}, ["include", "None"]),
        ({"include": {"a": 1}}, ["include"]),
        ({"exclude": "re:("}, ["exclude", "'re:('", "not a regular expression"]),
        ({"min_channels": "64"}, ["min_channels", "'64'"]),
        ({"min_channels": -1}, ["min_channels", "-1"]),
        ({"min_channels": True}, ["min_channels", "True"]),
        ({"min_channels": 64.0}, ["min_channels", "64.0"]),
        ({"stages": 0}, ["stages", "0"]),
        ({"stages": [1, "2"]}, ["stages", "'2'"]),
        ({"stages": True}, ["stages", "True"]),
        ({"sites": {"include": "a"}}, ["sites", "list", "dict"]),
        ({"sites": ["a"]}, ["sites[0]", "mapping", "str"]),
        ({"sites": [{"sites": []}]}, ["sites[0]", "unknown key 'sites'"]),
    ],
    ids=repr,
)
def test_wrong_kinds(rules: Any, parts: list[str]) -> None:
    text = message(rules)
    assert [part for part in parts if part not in text] == []


def test_right_kinds() -> None:
    rules = read({"include": "a", "exclude": ["b", "re:c.*"], "stages": 2, "min_channels": 0, "block": "se"})
    assert (rules.include, rules.exclude, rules.stages, rules.block) == (("a",), ("b", "re:c.*"), (2,), {"name": "se"})


# -- YAML -----------------------------------------------------------------------------------------------------------
def from_yaml(tmp_path: Path, text: str | bytes) -> Rules:
    path = tmp_path / "rules.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read(path)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("a: &x [1]\nb: *x\n", "aliases"),
        ("a: &x {b: *x}\n", "aliases"),
        ("block: !!python/object/apply:os.system ['touch CANARY']\n", "python/object/apply"),
        ("block: !!python/name:os.system\n", "python/name"),
        ("!!python/object/new:os.system ['touch CANARY']\n", "python/object/new"),
        ("placement: inner\nplacement: standard\n", "'placement' stands twice"),
        ("block: {rd_ratio: 0.5, rd_ratio: 0.25}\n", "'rd_ratio' stands twice"),
        ("sites:\n- {include: a, include: b}\n", "'include' stands twice"),
        ("include: re:a: b\n", "not the YAML of a rules file"),
        ("? [a, b]\n: 1\n", "not the YAML of a rules file"),
        ("placement: [inner\n", "not the YAML of a rules file"),
        ("placement: inner\n---\nplacement: standard\n", "not the YAML of a rules file"),
        ("\tplacement: inner\n", "not the YAML of a rules file"),
        (b"placement: \xff\n", "not the YAML of a rules file"),
        ("", "is empty; write a rule"),
        ("- inner\n", "list"),
    ],
)
def test_yaml_that_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | bytes, part: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RulesError) as error:
        from_yaml(tmp_path, text)
    assert part in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "CANARY").exists()


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("include: no\n", "False"),
        ("include: 12:30\n", ""),
        ("min_channels: 12:30\n", "'12:30'"),  # 750 in YAML 1.1
        ("min_channels: 010\n", "'010'"),  # 8 in YAML 1.1
        ("min_channels: 1_000\n", "'1_000'"),
        ("min_channels: 0x10\n", "'0x10'"),
        ("stages: yes\n", "True"),
        ("include: 2024-01-01\n", "2024"),
        ("min_channels: ~\n", "None"),
        ("block: {rd_channels: 1:30}\n", ""),
    ],
)
def test_surprises_of_yaml_are_caught_by_their_types(tmp_path: Path, text: str, part: str) -> None:
    if part:
        with pytest.raises(RulesError, match=part):
            from_yaml(tmp_path, text)
    else:
        rules = from_yaml(tmp_path, text)
        assert "12:30" in rules.include or rules.block["rd_channels"] == "1:30"


def test_plain_values_of_yaml(tmp_path: Path) -> None:
    path = tmp_path / "values.yaml"
    path.write_text("[64, -3, 0, 0.5, .5, 1., 1e-1, 2.5E+3, -.inf, true, no, null, on off, 'no', 1.2.3, -, +]")
    values = read_yaml(path)
    assert values == [
        64, -3, 0, 0.5, 0.5, 1.0, 0.1, 2500.0, float("-inf"), True, False, None, "on off", "no", "1.2.3", "-", "+",
    ]  # fmt: skip
    assert [type(v) for v in values[:4]] == [int, int, int, float]


@pytest.mark.parametrize("start", ["[", "{a: ", "- "], ids=["lists", "maps", "dashes"])
def test_deep_nesting_is_refused_before_its_end(tmp_path: Path, start: str) -> None:
    def refused(text: str) -> None:
        with pytest.raises(RulesError):
            from_yaml(tmp_path, text)

    short, long = (calls(lambda text=start * n: refused(text)) for n in (2_000, 200_000 // len(start)))
    assert long < 1.1 * short


def test_size_limit(tmp_path: Path) -> None:
    comment = "#" * MAX_BYTES
    with pytest.raises(RulesError, match="larger than 1 MiB"):
        from_yaml(tmp_path, "placement: inner " + comment)
    assert from_yaml(tmp_path, "placement: inner #" + comment[:1000]).placement == ("inner",)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.yaml", tmp_path):
        with pytest.raises(RulesError, match="cannot be read"):
            read(path)


# -- patterns -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("pattern", "taken"),
    [
        ("layer3.0", True),
        ("layer3.*", True),
        ("layer[34].?", True),
        ("*.0", True),
        ("layer3.0:standard", True),
        ("*:standard", True),
        ("layer3.0.relu", True),  # what carries it
        ("re:layer\\d\\.0", True),
        ("re:.*", True),
        ("layer3", False),
        ("Layer3.0", False),
        ("layer[12].*", False),
        ("*:inner", False),
        ("re:layer3", False),  # a full match
        ("re:0", False),
        ("", False),
    ],
)
def test_patterns(pattern: str, taken: bool) -> None:
    found = site_at("layer3.0", carrier=Carrier("wrap_output", "layer3.0.relu", "se"))
    assert matches(pattern, names_of(found)) is taken


def test_the_path_of_the_root_is_empty() -> None:
    assert names_of(site_at("", carrier=None)) == {"", ":standard"}
    assert matches("", names_of(site_at("")))


# -- conditions -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("rules", "fields", "reason"),
    [
        ({"include": ["a", "c*"]}, {}, Reason("not-included", "not included by a, c*")),
        ({"include": ["x", "blocks.*"]}, {}, None),
        ({"exclude": ["a", "blocks.*"]}, {}, Reason("excluded", "excluded by blocks.*")),
        ({"exclude": "a"}, {}, None),
        ({"include": "blocks.*", "exclude": "*.0"}, {}, Reason("excluded", "excluded by *.0")),
        ({"min_channels": 65}, {}, Reason("too-narrow", "64 channels, fewer than min_channels 65")),
        ({"min_channels": 64}, {}, None),
        ({"stages": [2, 3]}, {}, Reason("other-stage", "stage 1 is not among stages 2, 3")),
        ({"stages": [1, 3]}, {}, None),
        ({}, {}, None),
    ],
)
def test_conditions(rules: dict[str, Any], fields: dict[str, Any], reason: Reason | None) -> None:
    assert refusal(read(rules), site_at("blocks.0", **fields)) == reason
    assert refusal(read({"sites": [rules]}).sites[0], site_at("blocks.0", **fields)) == reason


def test_the_reason_is_that_of_the_first_condition_that_fails() -> None:
    rules = read({"include": "x", "exclude": "*", "min_channels": 99, "stages": 2})
    reasons = [reason for check in CONDITIONS if (reason := check(rules, site_at("a")))]
    assert len(reasons) == 4
    assert refusal(rules, site_at("a")) == reasons[0] == Reason("not-included", "not included by x")


# -- entries: the first that matches --------------------------------------------------------------------------------
SITES = (site_at("a.0"), site_at("a.1", channels=128), site_at("b.0", stage=2), site_at("c.0", channels=8))


def chosen(rules: dict[str, Any]) -> dict[str, Any]:
    """owner -> number of the entry that takes it, None without entries, or the reason why it is left out."""
    parsed = read(rules)
    answers = select(parsed, SITES)
    found: dict[str, Any] = {}
    for s in SITES:
        entry, reason = answers[s.id]
        found[s.owner] = reason or (None if entry is None else parsed.sites.index(entry))
    return found


NONE = Reason("no-entry", "no entry of sites matches it")


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ([], [None, None, None, None]),
        ([{}], [0, 0, 0, 0]),
        ([{"include": "a.*"}], [0, 0, NONE, NONE]),
        ([{"include": "a.0"}, {"include": "a.*", "init": "paper"}], [0, 1, NONE, NONE]),
        ([{"include": "a.*"}, {"include": "a.0", "init": "paper"}], [0, 0, NONE, NONE]),
        ([{"min_channels": 64}, {"include": "c.*"}], [0, 0, 0, 1]),
        ([{"include": "a.*", "exclude": "*.1"}, {}], [0, 1, 1, 1]),
        ([{"stages": 2}], [NONE, NONE, 0, NONE]),
        ([{"exclude": "b.*"}], [None, None, Reason("excluded", "excluded by b.*"), None]),
        (
            [{"exclude": "b.*"}, {"exclude": "c.*"}],
            [None, None, Reason("excluded", "excluded by b.*"), Reason("excluded", "excluded by c.*")],
        ),
        ([{"exclude": "b.*"}, {"include": "*"}], [1, 1, Reason("excluded", "excluded by b.*"), 1]),
        ([{"include": "*"}, {"exclude": "b.*"}], [0, 0, 0, 0]),
        ([{"exclude": "b.*", "min_channels": 64}], [0, 0, NONE, NONE]),
        ([{"exclude": "b.*", "block": {"rd_ratio": 0.5}}, {"include": "b.*"}], [0, 0, 1, 0]),
    ],
    ids=repr,
)
def test_the_first_entry_that_matches_decides(entries: list[dict[str, Any]], expected: list[Any]) -> None:
    assert list(chosen({"sites": entries}).values()) == expected


def test_the_rules_own_conditions_come_first() -> None:
    found = chosen({"include": ["a.*", "c.*"], "min_channels": 64, "sites": [{"include": "*.0"}]})
    assert list(found.values()) == [
        0,
        NONE,
        Reason("not-included", "not included by a.*, c.*"),
        Reason("too-narrow", "8 channels, fewer than min_channels 64"),
    ]


# -- what an entry changes ------------------------------------------------------------------------------------------
def test_options_of_the_entry_go_over_those_of_the_rules() -> None:
    rules = read({"block": {"rd_ratio": 0.5, "gate": "hardsigmoid"}, "sites": [{"block": {"rd_ratio": 0.25}}]})
    spec = rules.spec(rules.sites[0], {"rd_ratio": 0.1, "rd_base": "block"}, SITES[0])
    assert (spec.name, spec.options) == ("se", {"gate": "hardsigmoid", "rd_ratio": 0.25})


def test_defaults_hold_where_the_user_says_nothing_of_the_width() -> None:
    rules = read({"block": {"gate": "hardsigmoid"}})
    defaults = {"rd_ratio": 0.25, "rd_base": "block"}
    assert rules.spec(None, defaults, SITES[0]).options == {**defaults, "gate": "hardsigmoid"}
    wide = read({"block": {"rd_channels": 8}})
    assert wide.spec(None, defaults, SITES[0]).options == {"rd_channels": 8}


def test_a_copy_of_rules_is_equal() -> None:
    assert replace(read(FULL)) == read(FULL)
