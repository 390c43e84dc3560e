"""A rules file: YAML with nothing in it but data, of a bounded size."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from se_inject.errors import RulesError
from se_inject.json_strict import read_bounded

MAX_BYTES = 1 << 20


INT, FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"


class Loader(yaml.SafeLoader):
    """Safe, without aliases (a small file must not become a large one) and without duplicate keys. Numbers are those of
    YAML 1.2: in 1.1, ``12:30`` is 750 and ``010`` is 8."""

    def compose_node(self, parent: Any, index: int) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not allowed")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"key {key!r} stands twice")
        return super().construct_mapping(node, deep)


Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in (INT, FLOAT)]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Loader.add_implicit_resolver(INT, re.compile(r"[-+]?(0|[1-9][0-9]*)$"), list("-+0123456789"))
Loader.add_implicit_resolver(
    FLOAT,
    re.compile(
        r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?$|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$"
    ),
    list("-+0123456789."),
)


def read_yaml(path: Path) -> Any:
    """The content of the file. Raises ``RulesError`` when it is too large, or not plain YAML."""
    text = read_bounded(path, MAX_BYTES, RulesError, "; a rules file is a page of text")
    try:
        return yaml.load(text.decode(), Loader=Loader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise RulesError(f"{path}: not the YAML of a rules file: {' '.join(str(error).split())}") from error
