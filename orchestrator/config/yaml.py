"""Reading YAML that a person wrote: YAML 1.2's scalars, no tags, no aliases, no repeated keys."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from orchestrator.errors import InputError

_MAX_BYTES = 1_000_000
_MAX_DEPTH = 50


class _PlainLoader(yaml.SafeLoader):
    """A safe loader without aliases (alias bombs), tags, merge keys, dates, octals or `yes` as a
    bool."""

    yaml_implicit_resolvers: dict[str, list[Any]] = {}
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()
        problem = None
        if isinstance(event, yaml.AliasEvent):
            problem = "aliases are not allowed"
        elif event.tag is not None:
            tag = event.tag.replace("tag:yaml.org,2002:", "!!")
            problem = f"tags are not allowed (here: {tag[:60]})"
        elif self.depth == _MAX_DEPTH:
            problem = "nested too deeply"
        if problem:
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> str:
        value = super().construct_scalar(node)
        # Neither a path nor JSON can hold them.
        if re.search("[\0\ud800-\udfff]", value):
            raise yaml.MarkedYAMLError(
                problem="a text with a character that no file can hold",
                problem_mark=node.start_mark,
            )
        return value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.MarkedYAMLError(
                    problem=f"the key {key!r} is not a text", problem_mark=key_node.start_mark
                )
            if key in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"the key {key!r} is given twice", problem_mark=key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


for _tag, _pattern, _first in (
    ("null", r"~|null|", ["~", "n", ""]),
    ("bool", r"true|false", list("tf")),
    # Longer ones are floats: Python refuses to read more than 4300 digits as an integer.
    ("int", r"[-+]?[0-9]{1,40}", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan",
        list("-+.0123456789"),
    ),
):
    _PlainLoader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first
    )


def _decimal(loader: _PlainLoader, node: yaml.ScalarNode) -> int:
    return int(loader.construct_scalar(node))


# PyYAML's own takes 010 for 8.
_PlainLoader.add_constructor("tag:yaml.org,2002:int", _decimal)


def parse_yaml(text: str, source: str) -> Any:
    """The value of a YAML text.

    Raises:
        InputError: naming `source`, line and what is wrong.
    """
    try:
        return yaml.load(text, Loader=_PlainLoader)  # a SafeLoader, made stricter above
    except yaml.MarkedYAMLError as error:
        place = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise InputError(f"{source}{place}: {error.problem}") from None
    except yaml.YAMLError as error:
        raise InputError(f"{source}: not YAML: {' '.join(str(error).split())[:300]}") from None


def read_bytes(path: Path) -> bytes:
    """A small file's content.

    Raises:
        InputError: when it is missing, no file, too large or unreadable.
    """
    try:
        if not path.is_file():
            raise InputError(f"{path}: {'is no file' if path.exists() else 'no such file'}")
        if path.stat().st_size > _MAX_BYTES:
            raise InputError(f"{path}: larger than 1 MB, so hardly a text that a person wrote")
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None


def read_yaml(path: Path) -> Any:
    """The value in a YAML file, in UTF-8. Raises InputError as `read_bytes`, `parse_yaml` do."""
    try:
        text = read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 (byte {error.start}); save it as UTF-8") from None
    return parse_yaml(text, str(path))
