"""Read label lists from text files, and show what was read."""

from __future__ import annotations

import re
from pathlib import Path

from rich.console import Console

from orchestrator.config.yaml import read_bytes
from orchestrator.errors import InputError, as_input_error
from prompt_tuning.categories import CategoryList, category_named
from prompt_tuning.label_names import name_key
from prompt_tuning.plain_text import plain_lines

_COMMENT = re.compile(r"(^|\s)#(\s.*|$)")
_BULLET = re.compile(r"[-*•‣◦▪·–—]\s*")
_NUMBER = re.compile(r"\(?\d+[.):]\s+|\d+[.)](?=[^\W\d_])")
_COUNTED = re.compile(r"\(?(\d+)[.):]?\s+(?=\S)")
_FEWEST_COUNTED = 3
_HEADERS = frozenset(
    ("label", "name", "category", "class", "tag", "label name", "category name", "class name")
)
_LOOKS_LIKE_A_HEADER = "looks like a header; delete the line, or list a label of this name in YAML"
_SHOWN = 8


def read_label_list(path: Path) -> list[str]:
    """The labels of a text file with one label per line.

    Drops comments (`# …`), bullets (`- dog`), numbers (`1. dog`), quotes around a label and
    separators after it. Refuses a header, and lines with several names, which could be labels or
    synonyms.

    Raises:
        InputError: naming file and line, what is wrong and what would be right.
    """
    with as_input_error():
        lines = plain_lines(read_bytes(path), str(path))
    kept = [(row, _COMMENT.sub("", line).strip()) for row, line in enumerate(lines, start=1)]
    entries = _without_counts([(row, text) for row, text in kept if text], path)
    return [
        _label(text, f"{path}, line {row}", first=place == 0)
        for place, (row, text) in enumerate(entries)
    ]


def _without_counts(entries: list[tuple[int, str]], path: Path) -> list[tuple[int, str]]:
    """Remove numbers that count the lines; any other number may belong to a name.

    Raises:
        InputError: when only the first line has no number.
    """
    counts = [int(match[1]) if (match := _COUNTED.match(text)) else -1 for _, text in entries]
    if _are_counts(counts):
        return [(row, _COUNTED.sub("", text, count=1)) for row, text in entries]
    if counts[:1] == [-1] and _are_counts(counts[1:]):
        row, text = entries[0]
        raise InputError(f"{path}, line {row}: {text!r} {_LOOKS_LIKE_A_HEADER}")
    return entries


def _are_counts(numbers: list[int]) -> bool:
    return len(numbers) >= _FEWEST_COUNTED and any(
        numbers == list(range(first, first + len(numbers))) for first in (0, 1)
    )


def _label(text: str, where: str, first: bool) -> str:
    """The label of a line. Raises InputError."""
    for mark in (_BULLET, _NUMBER):
        if match := mark.match(text):
            text = text[match.end() :]
    text = text.rstrip(",;\t ")
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        text = text[1:-1]
    text = re.sub("[ \u00a0]+", " ", text).strip()
    if first and name_key(text.rstrip(":")) in _HEADERS:
        raise InputError(f"{where}: {text!r} {_LOOKS_LIKE_A_HEADER}")
    if text.startswith("#"):
        raise InputError(
            f"{where}: a comment must have a blank after # (got {text!r}); list a label of this "
            "name in YAML"
        )
    if not re.search(r"\w", text):
        raise InputError(f"{where}: must be a label (got {text!r})")
    with as_input_error(f"{where}: "):
        return category_named(text).name


def show_labels(categories: CategoryList, console: Console) -> None:
    """Print how many labels there are, and the first of them."""
    names = categories.names
    first = ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
    console.print(f"{len(names):,} labels: {first}", soft_wrap=True, highlight=False, markup=False)
