"""Reading YAML that a person wrote: YAML 1.2's scalars, no tags, no aliases, no repeated keys."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

_MAX_BYTES = 1_000_000


class InputError(ValueError):
    """A mistake in what a person gave: one clear line, exit code 2, no traceback."""


class _PlainLoader(yaml.SafeLoader):
    """A safe loader without aliases (alias bombs), merge keys, dates, octals or `yes` as a bool."""

    yaml_implicit_resolvers: dict[str, list[Any]] = {}

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.MarkedYAMLError(problem="aliases are not allowed", problem_mark=event.start_mark)
        return super().compose_node(parent, index)

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
    ("int", r"[-+]?[0-9]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan",
        list("-+.0123456789"),
    ),
):
    _PlainLoader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first
    )


def parse_yaml(text: str, source: str) -> Any:
    """The value of a YAML text.

    Raises:
        InputError: naming `source`, line and what is wrong.
    """
    try:
        return yaml.load(text, Loader=_PlainLoader)  # noqa: S506, a SafeLoader made stricter
    except yaml.MarkedYAMLError as error:
        place = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise InputError(f"{source}{place}: {error.problem}") from None
    except yaml.YAMLError as error:
        raise InputError(f"{source}: not YAML: {' '.join(str(error).split())[:300]}") from None
    except (RecursionError, ValueError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)[:200]
        raise InputError(f"{source}: {reason}") from None


def read_text(path: Path) -> str:
    """A small UTF-8 file's text.

    Raises:
        InputError: when it is missing, no file, too large, unreadable or not UTF-8.
    """
    try:
        if not path.is_file():
            raise InputError(f"{path}: no such file")
        if path.stat().st_size > _MAX_BYTES:
            raise InputError(f"{path}: larger than 1 MB, so hardly a text that a person wrote")
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 (byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None


def read_yaml(path: Path) -> Any:
    """The value in a YAML file. Raises InputError as `read_text` and `parse_yaml` do."""
    return parse_yaml(read_text(path), str(path))
