"""Read YAML with numbers as in YAML 1.2, and refuse tags, aliases and repeated keys."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NoReturn

import yaml

from orchestrator.errors import InputError

_MAX_BYTES = 1_000_000
_MAX_DEPTH = 50
_WORDS = {"true": True, "false": False, "null": None, "~": None, "": None}
# Longer integers become floats: Python refuses to read more than 4300 digits as an integer.
_INTEGER = re.compile(r"[-+]?[0-9]{1,40}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan")


class _StrictLoader(yaml.BaseLoader):
    """Reads `1e-3` as a number, and `010`, `yes` and dates not as YAML 1.1 does."""

    def construct_scalar(self, node: yaml.ScalarNode) -> Any:
        text = super().construct_scalar(node)
        if re.search("[\0\ud800-\udfff]", text):
            _refuse("a text with a character that no file can hold", node)
        if node.style is not None:  # quoted
            return text
        if text in _WORDS:
            return _WORDS[text]
        if _INTEGER.fullmatch(text):
            return int(text)
        return float(re.sub(r"\.(?=[in])", "", text)) if _FLOAT.fullmatch(text) else text

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node)
            if not isinstance(key, str):
                _refuse(f"the key {key!r} is not a text", key_node)
            if key in seen:
                _refuse(f"the key {key!r} is given twice", key_node)
            seen.add(key)
        return super().construct_mapping(node, deep)


def _check_events(text: str) -> None:
    """Refuse aliases, which could expand without bound, tags and deep nesting."""
    depth = 0
    for event in yaml.parse(text, Loader=_StrictLoader):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent):
            _refuse("aliases are not allowed", event)
        if tag := getattr(event, "tag", None):
            tag = tag.replace("tag:yaml.org,2002:", "!!")
            _refuse(f"tags are not allowed (got {tag[:60]})", event)
        if depth > _MAX_DEPTH:
            _refuse("nested too deeply", event)


def _refuse(problem: str, place: Any) -> NoReturn:
    raise yaml.MarkedYAMLError(problem=problem, problem_mark=place.start_mark)


def parse_yaml(text: str, source: str) -> Any:
    """The value of a YAML text. Raises InputError, naming `source`, line and what is wrong."""
    try:
        _check_events(text)
        return yaml.load(text, Loader=_StrictLoader)
    except yaml.MarkedYAMLError as error:
        place = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise InputError(f"{source}{place}: {error.problem}") from None
    except yaml.YAMLError as error:
        raise InputError(f"{source}: not YAML: {' '.join(str(error).split())[:300]}") from None


def read_bytes(path: Path) -> bytes:
    """The content of a file of at most 1 MB. Raises InputError."""
    try:
        if not path.is_file():
            raise InputError(f"{path}: {'not a file' if path.exists() else 'no such file'}")
        if path.stat().st_size > _MAX_BYTES:
            raise InputError(f"{path}: must be at most 1 MB")
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None


def read_yaml(path: Path) -> Any:
    """The value of a YAML file in UTF-8. Raises InputError."""
    try:
        text = read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 (byte {error.start}); save it as UTF-8") from None
    return parse_yaml(text, str(path))
