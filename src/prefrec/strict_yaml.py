"""Read YAML without its traps: nested aliases that expand forever, keys given twice, and numbers in base 8 or 60."""

from __future__ import annotations

import re
from typing import Any

import yaml

MOST_NODES = 100_000
"""Most values of a text, those of its aliases included."""
_BASE_8_OR_60 = re.compile(r"[-+]?(0[0-7_]+|[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?)")


class TrapError(yaml.YAMLError):
    """A text that is YAML, but would be read as something else than it seems, or as far more than it holds."""


def read_yaml(text: str) -> Any:
    """Return the value of a YAML text.

    Raises:
        TrapError: the text has more than `MOST_NODES` values, an alias inside its own anchor, a key twice in a
            mapping, or a number such as 010 or 1:30. The message names the line.
        yaml.YAMLError: the text is not YAML.
        ValueError: a date does not exist, or a number has too many digits.
        RecursionError: the text is nested too deeply.
    """
    return yaml.load(text, _Loader)  # a `SafeLoader`


class _Loader(yaml.SafeLoader):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.nodes = 0
        self.sizes: dict[yaml.Node, int] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        node: Any
        before, event = self.nodes, self.peek_event()
        self.nodes += 1
        node = super().compose_node(parent, index)
        if isinstance(event, yaml.AliasEvent):
            if node not in self.sizes:
                raise _refused(event, f"the alias *{event.anchor} lies inside its own anchor")
            self.nodes = before + self.sizes[node]
        else:
            self.sizes[node] = self.nodes - before
        if self.nodes > MOST_NODES:
            raise _refused(
                event, f"more than {MOST_NODES:,} values with those of aliases; write fewer, or no aliases"
            )
        return node

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        keys = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in keys:
                    raise _refused(key, f"the key {key.value!r} occurs twice; remove one of them")
                keys.add((key.tag, key.value))
        return node

    def construct_number(self, node: yaml.ScalarNode) -> Any:
        if _BASE_8_OR_60.fullmatch(node.value):
            base = "60" if ":" in node.value else "8"
            raise _refused(
                node, f"{node.value} is a number in base {base}; write it without zeros in front, or in quotes"
            )
        is_int = node.tag == "tag:yaml.org,2002:int"
        return self.construct_yaml_int(node) if is_int else self.construct_yaml_float(node)


for _tag in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", _Loader.construct_number)


def _refused(place: Any, problem: str) -> TrapError:
    return TrapError(f"line {place.start_mark.line + 1}: {problem}")
